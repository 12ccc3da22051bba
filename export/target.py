"""What an export may replace: an export, whole, and nothing else."""

from pathlib import Path

from ..core.errors import MRCError
from ..core.files import foreign_files, read_json
from ..engine.manifest import NAME

ADVICE = "give a new folder, or --overwrite to replace it with all that is in it"


def check_target(checkpoint: Path, out: Path) -> None:
    """Refuse to replace the checkpoint, or a folder that holds it."""
    if checkpoint.resolve().is_relative_to(out.resolve()):
        raise MRCError(f"{out} holds the checkpoint itself; give another folder to write to")


def check_export(folder: Path) -> None:
    """Check that a folder is an export, of this or another version, and holds nothing else.

    Raises:
        MRCError: no manifest of an export, or a file that is not in it.
    """
    if not (folder / NAME).is_file():
        raise MRCError(f"{folder} exists and is no export folder; {ADVICE}")
    manifest = read_json(folder / NAME, ADVICE)
    files = manifest.get("files")
    if not (isinstance(manifest.get("schema"), int) and isinstance(files, dict) and manifest.get("artifacts")):
        raise MRCError(f"{folder / NAME} is not that of an export; {ADVICE}")
    if foreign := foreign_files(folder, {NAME, *files}):
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise MRCError(f"{folder} holds {foreign[0]}{more}, which its manifest does not list; {ADVICE}")
