"""Every command and example of the README, run as it stands."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FOLDERS = {"checkpoint", "exported"}  # that commands make and later ones read
INSTALL = "pip install "  # tests/test_install.py has the first; what the others bring is here


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    joined = "\n".join(blocks("sh")).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith(INSTALL)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "demo").mkdir()
    shutil.copy(ROOT / "demo" / "chelsea.jpg", folder / "demo")
    return folder


def run(command: str, folder: Path, earlier: Iterable[Future] = ()) -> None:
    """Run `command` once the `earlier` ones are done."""
    wait(earlier)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = command.replace("python bench/", f"python {ROOT}/bench/")  # README's are run from the root
    done = subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
def test_the_commands_run(folder):
    """Side by side, each after the one that makes the folder it reads."""
    assert len(commands()) >= 5
    makers: dict[str, Future] = {}  # by folder: the first command that names it
    futures = []
    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        for command in commands():
            names = FOLDERS & set(command.split())
            futures.append(pool.submit(run, command, folder, [makers[name] for name in names & makers.keys()]))
            makers.update(dict.fromkeys(names - makers.keys(), futures[-1]))
    for future in futures:
        future.result()
    for name in ("edited.png", "tiger.png", "exported-trt/manifest.json", "run/report.html"):
        assert (folder / name).stat().st_size > 0


@pytest.mark.slow
def test_the_python_examples_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert (folder / "exported").is_dir(), "the commands come first"
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
