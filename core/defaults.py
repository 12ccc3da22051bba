"""What a model edits best with, in a file of its folder."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .errors import MRCError
from .files import read_json, write_json

FILE = "defaults.json"


@dataclass(frozen=True)
class Defaults:
    """Arguments of `Engine.edit` that are not given take these values; here are those of the released code.

    A scheduler of None is the one of the model's `scheduler_config.json`.
    """

    scheduler: str | None = None
    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    image_guidance_scale: float = 1.5


def read_defaults(folder: Path) -> Defaults:
    """Content of `defaults.json` in a checkpoint folder; the released values without that file.

    Raises:
        MRCError: no JSON, or an entry that is unknown.
    """
    path = folder / FILE
    if not path.is_file():
        return Defaults()
    values = read_json(path, "restore the file, or remove it for the released values")
    known = [field.name for field in fields(Defaults)]
    if unknown := sorted(values.keys() - set(known)):
        raise MRCError(f"{path} has {', '.join(unknown)}; its entries are {', '.join(known)}")
    return Defaults(**values)


def write_defaults(folder: Path, defaults: Defaults) -> None:
    """Write `defaults.json`, unless it would say what its absence says."""
    if defaults != Defaults():
        write_json(folder / FILE, asdict(defaults))
