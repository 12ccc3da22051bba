"""What TensorRT for RTX compiles for a GPU as it first runs an engine, kept between processes."""

import hashlib
from pathlib import Path
from typing import Any

from ...core.errors import MRCError
from ...core.files import write_file
from .exported import cache_folder, without_cache

DIGEST = 32  # bytes of SHA-256 before the content


class RuntimeCache:
    """The cache of one engine.

    Args:
        config: of the engine's contexts, which takes the cache.
        key: all that the content depends on: digest of the engine, version of TensorRT, GPU.
    """

    def __init__(self, config: Any, key: str) -> None:
        folder = cache_folder()
        self.path = folder and folder / f"tensorrt-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self.cache = config.create_runtime_cache()
        self.stored = read(self.path) if self.path else b""
        if self.stored and not self.cache.deserialize(self.stored):
            self.stored = b""  # of another driver: compiled anew
        config.set_runtime_cache(self.cache)

    def store(self) -> None:
        """Write the cache if it grew; a disk that is full is said once."""
        content = bytes(self.cache.serialize())
        if self.path is None or content == self.stored:
            return
        try:
            write_file(self.path, hashlib.sha256(content).digest() + content)
            self.stored = content
        except MRCError as error:
            without_cache(self.path.parent, str(error))
            self.path = None


def read(path: Path) -> bytes:
    """The content of a cache file; empty if there is none, or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return b""
    digest, content = data[:DIGEST], data[DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else b""
