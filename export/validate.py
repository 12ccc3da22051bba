"""An export proves itself: every graph against eager float32, at sizes that were not traced."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..engine.backends import Backend
from ..engine.noise import generator, normal
from ..engine.plan import make_plan
from ..engine.text import tokenize
from ..errors import MRCError

# Height and width in pixels; the second is no multiple of 64, the first is traced neither way round.
SIZES = ((192, 128), (136, 200))
# Greatest relative error of a graph's output. Half precisions have 11 and 8 significant bits and a
# U-Net hundreds of layers.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
ROLES = ("text_encoder", "vae_encoder", "vae_decoder", "unet", "unet_shallow")


@dataclass(frozen=True)
class Case:
    """Inputs of all graphs at one size, drawn from a fixed seed."""

    images: np.ndarray
    latents: np.ndarray
    batch: int


def cases(geometry) -> list[Case]:
    state = generator(0)
    made = []
    for batch, (height, width) in enumerate(SIZES, start=1):
        rows, columns = height // geometry.vae_scale, width // geometry.vae_scale
        images = np.tanh(normal(state, (batch, 3, height, width)))
        made.append(Case(images, normal(state, (batch, geometry.latent_channels, rows, columns)), batch))
    return made


def outputs(backend: Backend, case: Case) -> dict[str, np.ndarray]:
    """What each graph gives for `case`; the conditioner is judged by what the U-Net makes of it."""
    geometry = backend.geometry
    reward = ((5.0, 3.5, 0.0), "None; the sky changed; None")
    plan = make_plan(
        ["make it snow", "turn the car red"][: case.batch], [(reward, reward, reward)] * case.batch, 7.5, 1.5
    )
    texts = [*plan.texts, reward[1]]
    states, pooled = backend.text_encoder(input_ids=tokenize(backend.tokenizer, texts, geometry))
    source = backend.vae_encoder(images=case.images)
    conditions = backend.conditioner(
        timesteps=np.array([981.0, 301.5], dtype=np.float32),
        text_states=states[: len(plan.texts)],
        reward_scores=np.array([scores for scores, _ in plan.rewards], dtype=np.float32),
        reward_text=np.repeat(pooled[-1:], len(plan.rewards), axis=0),
    )
    laid_out = backend.layout(conditions=conditions, text=plan.text, reward=plan.reward)
    seen = np.where(plan.has_image[:, None, None, None], case.latents[::-1][plan.item] * 3, np.float32(0))
    sample = np.concatenate([case.latents[plan.item], seen], axis=1)
    feeds = {"conditions": laid_out, "step": 1, "sample": sample, "branch": plan.branch, "guidance": plan.guidance}
    noise, deep = backend.unet(**feeds, deep=None)
    noise = noise.copy()
    # given the features of its own step, the shallow graph is the whole one
    shallow = backend.unet(**feeds, deep=deep)[0] if backend.shallow else noise
    return {
        "text_encoder": np.concatenate([states.reshape(len(texts), -1), pooled], axis=1),
        "vae_encoder": source,
        "vae_decoder": backend.vae_decoder(latents=case.latents),
        "unet": noise,
        "unet_shallow": shallow,
    }


def differences(expected: list[dict], found: list[dict], precision: str, folder: Path) -> dict[str, float]:
    """Greatest relative error by graph over all cases.

    Raises:
        MRCError: a graph further from eager than its precision explains.
    """
    worst = {}
    for role in ROLES:
        errors = [relative_error(have[role], want[role]) for want, have in zip(expected, found, strict=True)]
        worst[role] = max(errors)
        if not worst[role] <= TOLERANCE[precision]:  # also true of NaN
            raise MRCError(
                f"the exported {role} differs from eager by {worst[role]:.1e} (relative, {precision}; "
                f"at most {TOLERANCE[precision]:.0e}); {folder} was not written, try --dtype float32"
            )
    return worst | {"conditioner": worst["unet"]}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
