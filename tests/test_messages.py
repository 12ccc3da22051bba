"""What messages and documents tell people to install exists, under our name."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALL = re.compile(r"pip install (?:-\S+ \S+ )*['\"]?([\w.-]+)\[([\w,{}.()\[\]\" -]+?)\]['\" ]")
EXTRAS = set(PROJECT["optional-dependencies"])


def texts() -> dict[str, str]:
    """Every tracked source and document, but for this file."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [
        path
        for path in listed.splitlines()
        if path.endswith((".py", ".md", ".toml", ".cmake", "CMakeLists.txt", "Makefile"))
    ]
    return {path: (ROOT / path).read_text() for path in paths if path != "tests/test_messages.py"}


def test_every_extra_that_is_named_exists():
    named = {
        (path, name, extra.strip())
        for path, text in texts().items()
        for name, extras in INSTALL.findall(text)
        for extra in extras.split(",")
        if "{" not in extra
    }
    assert len(named) >= 8
    for path, name, extra in named:
        assert name in (".", PROJECT["name"]), f"{path} installs {name}"
        assert extra in EXTRAS, f"{path} names the extra {extra}"


def test_the_readme_lists_every_extra():
    install = (ROOT / "README.md").read_text().split("## Install")[1].split("\n## ")[0]
    assert set(re.findall(r"`([\w-]+)`", install)) & EXTRAS == EXTRAS


def test_backends_name_extras_that_exist():
    from mrc_edit.engine.backends import BACKENDS

    for entry in BACKENDS.values():
        assert set(entry.extra.split(" or ")) <= EXTRAS


def test_nothing_names_the_other_mrc():
    """The index has another package `mrc`: nothing of ours imports or installs it."""
    for path, text in texts().items():
        assert not re.search(r"^\s*(from|import) mrc\b(?!_)", text, re.MULTILINE), path
        assert not re.search(r"python -m mrc\.|pip install ['\"]?mrc[\['\" ]", text), path
