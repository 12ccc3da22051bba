"""An export proves itself: every graph against eager float32, at sizes that were not traced."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import MRCError
from ..core.fidelity import relative_error
from ..engine.backends import Backend
from ..engine.loop import denoise, denoise_whole
from ..engine.noise import generator, normal
from ..engine.plan import Plan, make_plan
from ..engine.sampling import SamplerTable
from ..engine.schedule import EXACT, groups_of, schedule
from ..engine.text import tokenize

# Height and width in pixels, neither of them traced.
SIZES = ((192, 128), (64, 192))
# Greatest relative error of a graph's output. Half precisions have 11 and 8 significant bits and a
# U-Net hundreds of layers.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
TIMESTEPS = np.array([981.0, 301.5])
# two steps that no sampler takes, with all that the graph of all steps must compute
TABLE = SamplerTable(
    timesteps=TIMESTEPS,
    input_scale=np.array([0.4, 0.8]),
    coefficients=np.array([[0.9, -0.3, 0.2, 0.1], [0.8, -0.2, 0.4, 0.3]]),
    data=np.array([[0.7, -0.5], [0.6, -0.4]]),
    initial_scale=2.0,
    ancestral=True,
)


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


def prepared(backend: Backend, case: Case) -> tuple[Plan, Any, dict[str, np.ndarray]]:
    """The plan of `case`, its laid-out conditions, and what the graphs so far gave."""
    geometry = backend.geometry
    reward = ((5.0, 3.5, 0.0), "None; the sky changed; None")
    plan = make_plan(
        ["make it snow", "turn the car red"][: case.batch], [(reward, reward, reward)] * case.batch, 7.5, 1.5
    )
    texts = [*plan.texts, reward[1]]
    states, pooled = backend.text_encoder(input_ids=tokenize(backend.tokenizer, texts, geometry))
    source = backend.vae_encoder(images=case.images)
    conditions = backend.conditioner(
        timesteps=TIMESTEPS.astype(np.float32),
        text_states=states[: len(plan.texts)],
        reward_scores=np.array([scores for scores, _ in plan.rewards], dtype=np.float32),
        reward_text=np.repeat(pooled[-1:], len(plan.rewards), axis=0),
    )
    laid_out = backend.layout(conditions=conditions, text=plan.text, reward=plan.reward)
    text = np.concatenate([states.reshape(len(texts), -1), pooled], axis=1)
    return plan, laid_out, {"text_encoder": text, "vae_encoder": source}


def outputs(backend: Backend, case: Case) -> dict[str, np.ndarray]:
    """What each graph gives for `case`; the conditioner is judged by what the U-Net makes of it."""
    plan, laid_out, made = prepared(backend, case)
    seen = np.where(plan.has_image[:, None, None, None], case.latents[::-1][plan.item] * 3, np.float32(0))
    sample = np.concatenate([case.latents[plan.item], seen], axis=1)
    feeds = {"conditions": laid_out, "step": 1, "sample": sample, "branch": plan.branch, "guidance": plan.guidance}
    noise, deep = backend.unet(**feeds, deep=None)
    noise = noise.copy()
    # given the features of its own step, the shallow graph is the whole one
    shallow = backend.unet(**feeds, deep=deep)[0] if backend.shallow else noise
    return made | {
        "vae_decoder": backend.vae_decoder(latents=case.latents),
        "unet": noise,
        "unet_shallow": shallow,
    }


def two_steps(backend: Backend, case: Case) -> dict[str, np.ndarray]:
    """What `unet_loop` gives for `case`, or the loop that it takes the place of."""
    plan, laid_out, _ = prepared(backend, case)
    states = [generator(seed) for seed in range(case.batch)]
    if backend.unet_loop:
        return {"unet_loop": denoise_whole(backend.unet_loop, laid_out, plan, case.latents, TABLE, states)}
    groups = groups_of(plan, EXACT)
    order = schedule(plan, groups, EXACT, len(TIMESTEPS))
    final = denoise(backend, [laid_out], plan, groups, order, case.latents, TABLE, states, lambda *_: None)
    return {"unet_loop": final}


def differences(expected: list[dict], found: list[dict], precision: str, folder: Path) -> dict[str, float]:
    """Greatest relative error by graph over all cases.

    Raises:
        MRCError: a graph further from eager than its precision explains.
    """
    worst = {}
    for role in expected[0]:
        errors = [relative_error(have[role], want[role]) for want, have in zip(expected, found, strict=True)]
        worst[role] = max(errors)
        if not worst[role] <= TOLERANCE[precision]:  # also true of NaN
            raise MRCError(
                f"the exported {role} differs from eager by {worst[role]:.1e} (relative, {precision}; "
                f"at most {TOLERANCE[precision]:.0e}); {folder} was not written, try --dtype float32"
            )
    return worst | {"conditioner": worst["unet"]}
