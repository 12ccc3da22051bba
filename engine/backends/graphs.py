"""What all backends that run the graphs of `engine.graphs` share: which rows go into which graph."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from ..graphs import FEATURE_BIAS, FOLDED
from .base import Backend, Conditions, GuidedUNet, feature_condition, guidance_condition

Value = TypeVar("Value")  # the runtime's own array, on the device
Feeds = dict[str, Value]
Runner = Callable[[Feeds], Feeds]


class GraphBackend(Backend, Generic[Value]):
    """A backend over `runner`, `to_device` and `to_numpy`, which a runtime provides."""

    reuses_features = True

    @abstractmethod
    def runner(self, graph: str) -> Runner:
        """A function that runs a graph, inputs and outputs by name.

        It owns its buffers: a call may overwrite the outputs of the call before with the same shapes.
        """

    @abstractmethod
    def to_device(self, array: np.ndarray) -> Value: ...

    @abstractmethod
    def to_numpy(self, value: Value) -> np.ndarray: ...

    def run(self, graph: str, **arrays: np.ndarray) -> Conditions:
        """Run a graph once."""
        outputs = self.runner(graph)({name: self.to_device(array) for name, array in arrays.items()})
        return {name: self.to_numpy(value) for name, value in outputs.items()}

    def text_encoder(self, *, input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = self.run("text_encoder", input_ids=input_ids)
        return outputs["states"], outputs["pooled"]

    def wide_runner(self, graph: str) -> Runner | None:
        """Runs a graph of a half-precision model in float32; None where the backend has no such graph."""
        return None

    def run_finite(self, graph: str, **arrays: np.ndarray) -> Conditions:
        """Run a graph of images. Those that overflow in half precision are computed again in float32: those alone."""
        outputs = self.run(graph, **arrays)
        overflowed = ~np.all([np.isfinite(value).all(axis=(1, 2, 3)) for value in outputs.values()], axis=0)
        wide = self.wide_runner(graph) if overflowed.any() else None
        if wide is None:
            return outputs
        outputs = {name: value.copy() for name, value in outputs.items()}
        again = wide({name: self.to_device(array[overflowed]) for name, array in arrays.items()})
        for name, value in again.items():
            outputs[name][overflowed] = self.to_numpy(value)
        return outputs

    def vae_encoder(self, *, images: np.ndarray) -> np.ndarray:
        return self.run_finite("vae_encoder", images=images)["latents"]

    def vae_decoder(self, *, latents: np.ndarray) -> np.ndarray:
        return self.run_finite("vae_decoder", latents=latents)["images"]

    def conditioner(
        self, *, timesteps: np.ndarray, text_states: np.ndarray, reward_scores: np.ndarray, reward_text: np.ndarray,
        feature_bias: np.ndarray | None = None, guidance_scales: np.ndarray | None = None,
    ) -> Conditions:  # fmt: skip
        rewards = {"reward_scores": reward_scores, "reward_text": reward_text} if self.geometry.rewards else {}
        more = rewards | guidance_condition(self.geometry, guidance_scales)
        features = feature_condition(self.geometry, feature_bias)
        return self.run("conditioner", timesteps=timesteps, text_states=text_states, **more) | features

    def guided_unet(
        self, conditions: Conditions, *, branch: np.ndarray, text: np.ndarray, reward: np.ndarray, image: np.ndarray
    ) -> "GraphUNet[Value]":
        return GraphUNet(self, conditions, branch, text, reward, image)


class GraphUNet(GuidedUNet, Generic[Value]):
    """The step graphs with the conditions of some branches on the device."""

    def __init__(
        self, backend: GraphBackend[Value], conditions: Conditions, branch: np.ndarray, text: np.ndarray,
        reward: np.ndarray, image: np.ndarray,
    ) -> None:  # fmt: skip
        self.backend = backend
        geometry = backend.geometry
        row = reward if geometry.rewards or geometry.embeds_guidance else np.zeros_like(reward)
        self.time_bias, self.constant = self.placed(conditions, text, row, image)
        self.constant["branch"] = backend.to_device(branch)
        self.run_full, self.run_shallow = backend.runner("unet"), backend.runner("unet_shallow")
        self.deep: Feeds = {}
        self.weights: tuple[np.ndarray, Value | None] = (np.zeros(0), None)

    def placed(
        self, conditions: Conditions, text: np.ndarray, row: np.ndarray, image: np.ndarray
    ) -> tuple[list[Value], Feeds]:
        """The time bias of each step, and what all steps share, on the device.

        Args:
            text, row, image: `[N]`, `[P]`, `[P]`, rows of texts, rewards and images in the conditions.
        """
        to_device = self.backend.to_device
        rows = {"text_kv": text, **dict.fromkeys(FOLDED, row), **dict.fromkeys(FEATURE_BIAS, image)}
        shared = {name: to_device(conditions[name][index]) for name, index in rows.items() if name in conditions}
        return [to_device(step) for step in conditions["time_bias"][:, row]], shared

    def feeds(self, step: int, sample: Value, guidance: Value) -> Feeds:
        return {"sample": sample, "guidance": guidance, "time_bias": self.time_bias[step], **self.constant}

    def given(self, step: int, sample: np.ndarray, guidance: np.ndarray) -> Feeds:
        """The feeds of arrays. The guidance weights are copied to the device only where they change."""
        before, weights = self.weights
        if weights is None or not np.array_equal(before, guidance):
            before = guidance.copy()
            weights = self.backend.to_device(before)
            self.weights = before, weights
        return self.feeds(step, self.backend.to_device(sample), weights)

    def full(self, step: int, sample: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        outputs = self.run_full(self.given(step, sample, guidance))
        self.deep = {"deep": outputs["deep"]}
        return self.backend.to_numpy(outputs["noise"])

    def shallow(self, step: int, sample: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        outputs = self.run_shallow(self.given(step, sample, guidance) | self.deep)
        return self.backend.to_numpy(outputs["noise"])
