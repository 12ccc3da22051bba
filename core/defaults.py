"""What a model edits best with, in a file of its folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from .files import read_record, write_json
from .schema import Between

FILE = "defaults.json"


@dataclass(frozen=True)
class Defaults:
    """Arguments of `Engine.edit` that are not given take these values; here are those of the released code.

    A scheduler of None is the one of the model's `scheduler_config.json`. The limits are a distilled student's: the
    greatest scales that it has learnt.
    """

    scheduler: str | None = None
    num_inference_steps: Annotated[int, Between(1, 10_000)] = 30
    guidance_scale: Annotated[float, Between(0, 1000)] = 7.5
    image_guidance_scale: Annotated[float, Between(0, 1000)] = 1.5
    guidance_limit: Annotated[float | None, Between(1, 1000)] = None
    image_guidance_limit: Annotated[float | None, Between(1, 1000)] = None


def read_defaults(folder: Path) -> Defaults:
    """Content of `defaults.json` in a checkpoint folder; the released values without that file.

    Raises:
        MRCError: no JSON, or an entry that is unknown or cannot be.
    """
    path = folder / FILE
    return read_record(path, Defaults, "mend the entry, or remove the file") if path.is_file() else Defaults()


def write_defaults(folder: Path, defaults: Defaults) -> None:
    """Write `defaults.json`, unless it would say what its absence says."""
    if defaults != Defaults():
        write_json(folder / FILE, {name: value for name, value in asdict(defaults).items() if value is not None})
