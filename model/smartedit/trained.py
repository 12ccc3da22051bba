"""A SmartEdit folder before and after training, which changes Q-Former and BIM and never reads the language model."""

import hashlib
import shutil
from pathlib import Path

from ...core.files import file_digest
from ..checkpoint import write_weights
from ..weights import OTHER_WEIGHTS
from . import CONFIG
from .bim import BIM
from .folder import TOKENIZER
from .qformer import QFormer

TRAINED = ("qformer", "bim")


def frozen_digest(folder: Path) -> str:
    """SHA-256 over the files that decide what the language model and CLIP give."""
    digest = hashlib.sha256()
    for name in frozen_files(folder):
        digest.update(f"{name} {file_digest(folder / name)}\n".encode())
    return digest.hexdigest()


def frozen_files(folder: Path) -> list[str]:
    """Paths in the folder, sorted."""
    paths = [folder / CONFIG, *(folder / "projector").glob(OTHER_WEIGHTS), folder / TOKENIZER]
    for part in ("vision", "llm"):
        paths += [folder / part / "config.json", *(folder / part).glob("model*.safetensors*")]
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())


def own_files(folder: Path) -> list[str]:
    """All that `save_conditioning` wrote into the folder."""
    return frozen_files(folder) + [f"{part}/{name}" for part in TRAINED for name in ("config.json", OTHER_WEIGHTS)]


def save_conditioning(source: Path, target: Path, qformer: QFormer, bim: BIM) -> None:
    """Write the two modules to the folder `target`, and copy from `source` what is frozen."""
    for name in [*frozen_files(source), *(f"{part}/config.json" for part in TRAINED)]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    for part, module in zip(TRAINED, (qformer, bim), strict=True):
        write_weights(module.state_dict(), target / part / OTHER_WEIGHTS)
