"""What all requests of a server share."""

import asyncio
import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Unpack

import numpy as np

from ..core.defaults import Defaults
from ..core.errors import MRCError
from ..engine import EditRequest, EditResult, Engine
from ..engine.finishing import AS_IT_IS, Finishing
from ..engine.images import ImageLike
from ..engine.manifest import Geometry
from ..engine.parameters import model_digest, runtime_of
from ..engine.request import EditOptions
from ..engine.tiers import TIERS, make_tier
from ..engine.waiting import OnStep
from .metrics import Metrics
from .preview import fit_preview

KEYS, KEYS_FILE = "MRC_API_KEYS", "MRC_API_KEYS_FILE"


@dataclass(frozen=True)
class Options:
    """The limits of a server.

    Attributes:
        max_bytes: of a request's body.
        max_pixels: of an edit, and of the image that is sent back.
        read_seconds: within which headers and body must have come.
        timeout: seconds of an edit, those in which it waits included.
        drain: seconds that running edits get when the server stops.
        finishing: what happens to every edit before it is sent.
    """

    max_bytes: int
    max_pixels: int
    read_seconds: float
    timeout: float
    drain: float
    finishing: Finishing = AS_IT_IS


@dataclass(frozen=True)
class Model:
    """What a server must know of its model, wherever that runs.

    Attributes:
        tiers: those that it can compute.
        preview: latents to colours (`serve.preview`).
        digest: SHA-256 of the model, for the parameters in a PNG; None where the server writes none.
        runtime: tier of requests that name none, backend and precision, for these parameters too.
    """

    name: str
    geometry: Geometry
    defaults: Defaults
    tiers: list[str]
    preview: np.ndarray
    digest: str | None
    runtime: dict[str, str]


def describe(engine: Engine, name: str, tier: str, metadata: bool) -> Model:
    """The model of an engine. Decodes once; with `metadata` a checkpoint is read once more, for its digest."""
    backend = engine.backend
    tiers = [each for each in TIERS if backend.reuses_features or not make_tier(each).reuses_features]
    digest = model_digest(engine, {}) if metadata else None
    runtime = {"tier": tier} | runtime_of(engine)
    return Model(name, backend.geometry, backend.defaults, tiers, fit_preview(backend), digest, runtime)


class Serving(Protocol):
    """What takes the edits of a server: an `AsyncEngine`, or replicas on other machines (`serve.ray`).

    Methods and attributes are those of `AsyncEngine`, which documents them.
    """

    open: bool
    max_waiting: int

    async def __aenter__(self) -> object: ...
    async def __aexit__(self, *_: object) -> None: ...
    def room(self, requests: int = 1) -> bool: ...
    def load(self) -> tuple[int, int]: ...
    async def check(self, request: EditRequest) -> object: ...
    async def drain(self, seconds: float) -> None: ...
    async def edit(
        self,
        image: ImageLike,
        instruction: str,
        *,
        timeout: float | None = None,
        tier: str | None = None,
        on_step: OnStep | None = None,
        **options: Unpack[EditOptions],
    ) -> EditResult: ...


@dataclass
class Service:
    """A model behind its queue.

    Attributes:
        keys: SHA-256 digests of the keys; without any, nobody is asked for one.
        reading: requests that were let in and whose body is not read yet.
        readers: the time limits of those.
        turn: when the next request that finds no room is told so, by the loop's clock.
    """

    model: Model
    serving: Serving
    options: Options
    keys: list[bytes]
    metrics: Metrics
    reading: int = 0
    turn: float = 0.0
    draining: bool = False
    readers: set[asyncio.Timeout] = field(default_factory=set)

    @property
    def open(self) -> bool:
        """Whether new edits are taken: it does not drain, and the queue has not failed."""
        return not self.draining and self.serving.open

    def knows(self, key: str) -> bool:
        """Whether a key is one of ours; takes as long for any other."""
        digest = hashlib.sha256(key.encode()).digest()
        return sum(hmac.compare_digest(digest, known) for known in self.keys) > 0

    async def drain(self, seconds: float) -> None:
        """Refuse what is read, what waits and all that comes; finish what runs, in that time."""
        self.draining = True
        now = asyncio.get_running_loop().time()
        for reader in self.readers:
            if not reader.expired():
                reader.reschedule(now)
        await self.serving.drain(seconds)


def read_keys(environment: Mapping[str, str] = os.environ) -> list[bytes]:
    """Digests of the keys in MRC_API_KEYS, separated by commas, or in the file that MRC_API_KEYS_FILE names, by lines.

    Raises:
        MRCError: both are set, the file cannot be read, there is no key in what is set, or one that no header carries.
    """
    if KEYS in environment and KEYS_FILE in environment:
        raise MRCError(f"{KEYS} and {KEYS_FILE} are both set; set one")
    if KEYS in environment:
        return digests(KEYS, environment[KEYS].split(","))
    if KEYS_FILE not in environment:
        return []
    path = Path(environment[KEYS_FILE])
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MRCError(f"{KEYS_FILE} names {path}, which cannot be read ({error}); name a text file") from None
    return digests(KEYS_FILE, lines)


def digests(name: str, keys: Iterable[str]) -> list[bytes]:
    stripped = [key.strip() for key in keys if key.strip()]
    if not stripped:
        raise MRCError(f"{name} is set and has no key; give keys, or unset it")
    for number, key in enumerate(stripped, 1):
        if not (key.isascii() and key.isprintable()):
            raise MRCError(f"key {number} of {name} has characters that are not printable ASCII; give another key")
    return [hashlib.sha256(key.encode()).digest() for key in stripped]
