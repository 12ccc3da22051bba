import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("changed", Path(__file__).with_name("changed.py"))
changed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(changed)


@pytest.fixture
def tree(tmp_path):
    for name in (
        "test_readme.py",
        "engine/test_text.py",
        "engine/test_plan.py",
        "engine/conftest.py",
        "train/data/test_a.py",
    ):
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "tests"),
    [
        ("engine/text.py", ["tests/engine/test_text.py"]),
        ("engine/loop.py", ["tests/engine/test_plan.py", "tests/engine/test_text.py"]),
        ("engine/backends/torch.py", ["tests/engine/test_plan.py", "tests/engine/test_text.py"]),
        ("train/data/b.py", ["tests/train/data/test_a.py"]),
        ("train/loop.py", []),  # its folder has tests of subfolders alone
        ("tests/engine/test_plan.py", ["tests/engine/test_plan.py"]),
        ("tests/engine/test_removed.py", ["tests/engine/test_plan.py", "tests/engine/test_text.py"]),
        ("tests/engine/conftest.py", ["tests/engine/test_plan.py", "tests/engine/test_text.py"]),
        ("README.md", ["tests/test_readme.py"]),
    ],
)
def test_a_changed_file_has_these_tests(tree, path, tests):
    assert changed.tests_of([path], tree) == tests


def test_tests_are_run_once(tree):
    assert changed.tests_of(["engine/text.py", "tests/engine/test_text.py"], tree) == ["tests/engine/test_text.py"]


def test_what_changed_here_is_in_the_tree():
    for path in changed.tests_of(changed.changed()):
        assert (changed.ROOT / path).is_file()
