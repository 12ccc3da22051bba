"""What every backend that runs the graphs of `engine.contract` shares: which rows go into which."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..contract import FOLDED
from ..manifest import Geometry


class GraphBackend:
    """The `Backend` protocol over `run` and `hold`, which a runtime provides."""

    geometry: Geometry
    shallow = True
    unet_loop: Callable[..., np.ndarray] | None = None

    def run(self, role: str, kept: dict | None = None, **feeds: Any) -> list[Any]:
        """Outputs of a graph, in the contract's order, from arrays or held values.

        With `kept` what the run prepares stays in it for the next one, whose outputs may overwrite these.
        """
        raise NotImplementedError

    def hold(self, array: np.ndarray) -> Any:
        """`array` where the graphs compute, for inputs that many runs have in common."""
        return array

    def text_encoder(self, *, input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        states, pooled = self.run("text_encoder", input_ids=input_ids)
        return states, pooled

    def vae_encoder(self, *, images: np.ndarray) -> np.ndarray:
        return self.run("vae_encoder", images=images)[0]

    def vae_decoder(self, *, latents: np.ndarray) -> np.ndarray:
        return self.run("vae_decoder", latents=latents)[0]

    def conditioner(self, *, timesteps, text_states, reward_scores, reward_text) -> dict[str, np.ndarray]:
        rewards = {"reward_scores": reward_scores, "reward_text": reward_text} if self.geometry.rewards else {}
        time_bias, text_kv, *folded = self.run("conditioner", timesteps=timesteps, text_states=text_states, **rewards)
        return {"time_bias": time_bias, "text_kv": text_kv, **dict(zip(FOLDED, folded, strict=False))}

    def layout(self, *, conditions: dict[str, np.ndarray], text: np.ndarray, reward: np.ndarray) -> dict[str, Any]:
        row = reward if self.geometry.rewards else np.zeros_like(reward)
        biases = conditions["time_bias"][:, row]
        return {
            "time_bias": self.hold(biases) if self.unet_loop else [self.hold(step) for step in biases],
            "text_kv": self.hold(conditions["text_kv"][text]),
            **{name: self.hold(conditions[name][row]) for name in FOLDED if name in conditions},
            "kept": {},
        }

    def unet(self, *, conditions, step, sample, branch, guidance, deep=None) -> tuple[np.ndarray, np.ndarray | None]:
        feeds = {
            "sample": sample,
            "branch": branch,
            "guidance": guidance,
            "time_bias": conditions["time_bias"][step],
            "text_kv": conditions["text_kv"],
            **({} if deep is None else {"deep": deep}),
            **{name: conditions[name] for name in FOLDED if name in conditions},
        }
        if deep is not None:
            return self.run("unet_shallow", conditions["kept"], **feeds)[0], None
        noise, deep = self.run("unet", conditions["kept"], **feeds)
        return noise, deep

    def steps(self, *, conditions: dict[str, Any], **feeds: Any) -> np.ndarray:
        """All steps in one call, with the other inputs of `contract.LOOP` → final latents `[B, 4, h, w]`."""
        feeds |= {name: value for name, value in conditions.items() if name != "kept"}
        return self.run("unet_loop", **feeds)[0]
