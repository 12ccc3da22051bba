"""The folder that a run writes: one run at a time, and nothing of anybody else's in it is replaced."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..core.errors import MRCError
from ..core.files import foreign_files, read_json
from ..core.locks import locked
from ..model.checkpoint import CHECKPOINT_FILES
from ..model.smartedit.trained import own_files
from .lora import LORA_FILE
from .state import list_states, remove_states

RECORDS = {"config", "stage2"}  # entries of the training.json of a run, and of the recipe of mini


@contextmanager
def run_folder(out: Path, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the lock of `out` while a run trains. A run that wrote nothing leaves no folder.

    Args:
        resume: the folder may hold states of a run, which goes on.
        overwrite: it may hold anything; what has a name that a run writes is replaced.

    Raises:
        MRCError: another run is writing there, or it holds what this run may not replace.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out, inside=True, wait=False):
            if not (resume and list_states(out)):
                if not overwrite:
                    check_new(out)
            elif (out / "checkpoint").exists():
                check_own(out / "checkpoint")
            yield
    finally:
        with suppress(OSError):  # it holds something
            out.rmdir()


def remove_run(out: Path) -> None:
    """Remove what the end of a new run would mix with its own: states, and what the report shows."""
    remove_states(list_states(out))
    grids = (path for path in (out / "validation").glob("*.png") if path.stem.isdecimal())
    for path in (*grids, out / "scores.json"):
        path.unlink(missing_ok=True)


def check_new(out: Path) -> None:
    """Refuse to begin a run where another left something."""
    there = [name for name in ("checkpoint", "training.json", "report.html", LORA_FILE) if (out / name).exists()]
    if (out / "states").is_dir() and any(not entry.name.startswith(".") for entry in (out / "states").iterdir()):
        there.append("states")  # not those that a killed run was writing
    if there:
        raise MRCError(
            f"{out} holds {', '.join(there)} of a run; give --resume latest to go on, another --out, "
            "or --overwrite to replace them"
        )


def check_own(checkpoint: Path) -> None:
    """Refuse to replace a folder that is not the checkpoint of a run.

    Raises:
        MRCError: the run's record is not beside it, or it holds other files than a checkpoint.
    """
    advice = "give another --out, or move that folder away"
    if not RECORDS & read_json(checkpoint.parent / "training.json", f"{checkpoint} may be no run's, {advice}").keys():
        raise MRCError(f"{checkpoint} is not of the run in {checkpoint.parent}; {advice}")
    if foreign := foreign_files(checkpoint, {*CHECKPOINT_FILES, *own_files(checkpoint)}):
        raise MRCError(f"{checkpoint} holds {foreign[0]}, which is not of a checkpoint; {advice}")
