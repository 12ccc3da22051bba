"""What a backend is: the seam between the engine and the runtimes that compute the model."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from ...core.defaults import Defaults
from ...core.errors import MRCError
from ..loop import OnStep
from ..manifest import Geometry
from ..plan import Plan
from ..step_table import SamplerTable

Conditions = dict[str, Any]  # by name: arrays, or the runtime's own; a backend reads only those that it wrote


def feature_condition(geometry: Geometry, feature_bias: np.ndarray | None) -> dict[str, np.ndarray]:
    """The feature bias as a condition; none for a model that takes none.

    Raises:
        MRCError: one is missing, or given to a model that takes none.
    """
    if bool(geometry.feature_channels) != (feature_bias is not None):
        need = (
            "needs a feature_bias, and none was" if geometry.feature_channels else "takes no feature_bias, and one was"
        )
        raise MRCError(f"this model {need} given; SmartEdit models alone have one")
    return {} if feature_bias is None else {"feature_bias": feature_bias}


def guidance_condition(geometry: Geometry, guidance_scales: np.ndarray | None) -> dict[str, np.ndarray]:
    """The guidance scales as a condition; none for a model that takes none.

    Raises:
        MRCError: they are missing, or given to a model that takes none.
    """
    if geometry.embeds_guidance != (guidance_scales is not None):
        need = "needs guidance_scales" if geometry.embeds_guidance else "takes no guidance_scales"
        raise MRCError(f"this model {need}; distilled students alone have them")
    return {} if guidance_scales is None else {"guidance_scales": guidance_scales}


class GuidedUNet(ABC):
    """The U-Net for some branches of one edit. It owns their conditions, its buffers and its deep features.

    Shapes: P inputs, N branches, G rows of noise. What a call returns is valid until the next call.
    """

    @abstractmethod
    def full(self, step: int, sample: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        """Sample `[P, 2Z, h, w]` and guidance weights `[G, N]` → guided noise `[G, Z, h, w]`, all float32."""

    def shallow(self, step: int, sample: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        """As `full`, with the deep features of the last full step: lossy. Only where `reuses_features`."""
        raise TypeError(f"{type(self).__name__} computes full steps only")


class DeviceLoop(ABC):
    """The exact denoising loop with the latents on the device from the first step to the last."""

    @abstractmethod
    def denoise(
        self,
        unet: GuidedUNet,
        plan: Plan,
        table: SamplerTable,
        source: np.ndarray,
        generators: list[np.random.RandomState],
        on_step: OnStep | None,
    ) -> np.ndarray:
        """As `engine.loop.denoise`. Without `on_step` no step waits for the host."""


class Reader(ABC):
    """What reads image and instruction together, in SmartEdit a language model.

    Attributes:
        side: of the square picture that it looks at.
    """

    side: int

    @abstractmethod
    def check(self, instruction: str) -> None:
        """Refuse an instruction that cannot be read.

        Raises:
            MRCError: it cannot.
        """

    @abstractmethod
    def read(
        self, *, pictures: list[Image.Image], instructions: list[str], seeds: list[int], size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """B square pictures, instructions and seeds → text states `[B, L, D]`, feature bias `[B, C, h, w]`, float32.

        Args:
            size: h and w, those of the latents.
        """


class Backend(ABC):
    """One method a graph; arrays are numpy, float32 or int64, with shapes as in `engine.graphs`.

    Attributes:
        geometry, defaults: what the engine must know of the model, and what it edits best with.
        scheduler: content of `scheduler_config.json`, with the name of the diffusers class.
        reuses_features: whether `GuidedUNet.shallow` works, which lossy tiers need.
        device_loop: None where the host runs the loop.
        reader: of SmartEdit alone; otherwise the text encoder reads the instruction.
        folder: of the model, or its one file, where it was loaded from there.
    """

    geometry: Geometry
    defaults: Defaults
    scheduler: dict
    tokenizer: Tokenizer
    precision: str
    folder: Path
    reuses_features: bool = False
    device_loop: DeviceLoop | None = None
    reader: Reader | None = None

    @abstractmethod
    def text_encoder(self, *, input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids `[T, L]` int64 → states `[T, L, D]`, pooled states `[T, D]`."""

    @abstractmethod
    def vae_encoder(self, *, images: np.ndarray) -> np.ndarray:
        """Images `[B, 3, H, W]` in -1…1 → source latents `[B, Z, h, w]`."""

    @abstractmethod
    def vae_decoder(self, *, latents: np.ndarray) -> np.ndarray:
        """Latents `[B, Z, h, w]` → images `[B, 3, H, W]`; not finite if even float32 overflows."""

    @abstractmethod
    def conditioner(
        self, *, timesteps: np.ndarray, text_states: np.ndarray, reward_scores: np.ndarray, reward_text: np.ndarray,
        feature_bias: np.ndarray | None = None, guidance_scales: np.ndarray | None = None,
    ) -> Conditions:  # fmt: skip
        """All that depends on timesteps `[S]`, texts `[T, L, D]`, scores `[R, 3]` and reward texts `[R, D]` alone.

        Args:
            feature_bias: `[B, C, h, w]`, of SmartEdit alone: what it adds to the U-Net's first features of each image.
            guidance_scales: `[R, 2]`, of a student alone: guidance_scale, image_guidance_scale.
        """

    @abstractmethod
    def guided_unet(
        self, conditions: Conditions, *, branch: np.ndarray, text: np.ndarray, reward: np.ndarray, image: np.ndarray
    ) -> GuidedUNet:
        """The U-Net for N branches over P inputs.

        Args:
            branch: `[N]` int64, the input of each branch; text: `[N]`, its row of the conditions' T texts.
            reward: `[P]`, the row of each input in the conditions' R rewards; image: `[P]`, in its B images.
        """
