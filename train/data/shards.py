"""WebDataset shards: KEY.source.jpg, KEY.edited.jpg and KEY.json in uncompressed tar files.

Tar files are read by offset, so any sample can be read by its number, as with the other readers, and the
training order is the same shuffle for all.
"""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from ...core.errors import MRCError
from .triplet import Triplet, make_triplet

EXTENSIONS = ("jpg", "jpeg", "png", "webp")


class Shards:
    """See `Triplets`. The JSON has `edit`, and `scores` with `reward_text` where there are rewards."""

    def __init__(self, path: Path) -> None:
        files = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        members: dict[tuple[Path, str], dict[str, tuple[int, int]]] = {}
        for file in files:
            try:
                with tarfile.open(file, "r:") as tar:
                    for member in tar:
                        folder, _, base = member.name.rpartition("/")
                        stem, _, extension = base.partition(".")
                        key = f"{folder}/{stem}".removeprefix("./").removeprefix("/")
                        if member.isfile():
                            members.setdefault((file, key), {})[extension] = (member.offset_data, member.size)
            except (tarfile.TarError, OSError) as error:
                raise MRCError(f"{file} cannot be read as an uncompressed tar file ({error})") from None
        self.samples = sorted(members.items())
        if not self.samples:
            raise MRCError(f"{path} holds no sample; expected KEY.source.jpg, KEY.edited.jpg, KEY.json in tar files")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Triplet:
        (file, key), parts = self.samples[index]
        name = f"{file.name}:{key}"

        def read(role: str) -> bytes:
            names = ["json"] if role == "json" else [f"{role}.{extension}" for extension in EXTENSIONS]
            member = next((part for part in names if part in parts), None)
            if member is None:
                raise MRCError(f"sample {name} has no {names[0]}; its members are {sorted(parts)}")
            offset, size = parts[member]
            with file.open("rb") as opened:
                opened.seek(offset)
                return opened.read(size)

        try:
            record = json.loads(read("json"))
            images = [Image.open(io.BytesIO(read(role))) for role in ("source", "edited")]
            fields = [record.get(field) for field in ("edit", "scores", "reward_text")]
        except MRCError:
            raise
        except (OSError, SyntaxError, ValueError, AttributeError, Image.DecompressionBombError) as error:
            raise MRCError(f"sample {name} cannot be read ({error})") from None
        return make_triplet(name, *images, *fields)
