"""Run the tests of what changed since origin/main, but for slow ones: `make check`.

A changed module has the tests of its name, or all of its folder where there are none; a changed test has itself.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def changed() -> list[str]:
    """Paths that differ from where this branch left origin/main, from the last commit where there is none."""
    base = git("merge-base", "origin/main", "HEAD") or ["HEAD"]
    return git("diff", "--name-only", base[0]) + git("ls-files", "--others", "--exclude-standard")


def tests_of(paths: Iterable[str], root: Path = ROOT) -> list[str]:
    """Test files of changed `paths`, all relative to `root`."""
    tests: set[Path] = set()
    for path in map(PurePosixPath, paths):
        own = path.is_relative_to("tests")
        folder = root / path.parent if own else root / "tests" / path.parent
        while not folder.is_dir():
            folder = folder.parent
        test = folder / (path.name if own else f"test_{path.stem}.py")
        named = test.name.startswith("test_") and test.is_file()
        tests.update([test] if named else folder.glob("test_*.py"))
    return sorted(str(test.relative_to(root)) for test in tests)


def main() -> int:
    tests = tests_of(changed())
    print(f"tests of what changed: {' '.join(tests) or 'none'}")
    if not tests:
        return 0
    status = pytest.main(["-m", "not slow", *(str(ROOT / test) for test in tests)])
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else int(status)


if __name__ == "__main__":
    sys.exit(main())
