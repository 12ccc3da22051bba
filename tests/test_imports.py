"""Modules do not import each other in circles, imports inside functions included."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "core", "kernels", "model", "engine", "export", "convert", "judge", "train", "serve", "bench", "cli", "demo",
    "integrations",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """Files by module name, without the package's own."""
    files = [path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(path: Path, known: set[str]) -> set[str]:
    """The project's modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = path.parent.parts[: len(path.parent.parts) + 1 - node.level]
            base = ".".join([*package, *filter(None, [node.module])])
            names |= {name if (name := f"{base}.{alias.name}") in known else base for alias in node.names}
    return names & known


def test_imports_run_one_way():
    files = modules()
    graph = {name: imports(path, set(files)) - {name} for name, path in files.items()}
    assert graph["train.rewards.build"] > {"train.rewards.config", "judge.batch", "core.errors"}
    list(TopologicalSorter(graph).static_order())  # a CycleError names the circle
