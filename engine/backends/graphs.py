"""What every backend that runs the five graphs of `engine.contract` shares: which rows go into which."""

from typing import Any

import numpy as np

from ..contract import INPUTS
from ..manifest import Geometry


class GraphBackend:
    """The `Backend` protocol over `run(role, **feeds)`, which a runtime provides."""

    geometry: Geometry

    def run(self, role: str, **feeds: np.ndarray) -> list[np.ndarray]:
        """Outputs of a graph, in the contract's order."""
        raise NotImplementedError

    def text_encoder(self, *, input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        states, pooled = self.run("text_encoder", input_ids=input_ids)
        return states, pooled

    def vae_encoder(self, *, images: np.ndarray) -> np.ndarray:
        return self.run("vae_encoder", images=images)[0]

    def vae_decoder(self, *, latents: np.ndarray) -> np.ndarray:
        return self.run("vae_decoder", latents=latents)[0]

    def conditioner(self, *, timesteps, text_states, reward_scores, reward_text, text, reward) -> dict[str, Any]:
        rewards = {"reward_scores": reward_scores, "reward_text": reward_text} if self.geometry.rewards else {}
        time_bias, text_kv, *folded = self.run("conditioner", timesteps=timesteps, text_states=text_states, **rewards)
        row = reward if self.geometry.rewards else np.zeros_like(reward)
        names = list(INPUTS["unet"])[-len(folded) :] if folded else []
        return {
            "time_bias": time_bias[:, row],
            "text_kv": text_kv[text],
            **{name: tensor[row] for name, tensor in zip(names, folded, strict=True)},
        }

    def unet(self, *, conditions, step, sample, branch, guidance) -> tuple[np.ndarray, np.ndarray]:
        feeds = {**conditions, "time_bias": conditions["time_bias"][step]}
        (noise,) = self.run("unet", sample=sample, branch=branch, guidance=guidance, **feeds)
        return noise, np.eye(len(guidance), dtype=np.float32)
