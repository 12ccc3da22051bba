"""The denoising loop. It knows nothing of backends: it calls one object by keywords."""

from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from ..core.errors import MRCError
from .backends import Backend
from .noise import normal
from .plan import Plan
from .sampling import SamplerTable, sampler_step
from .schedule import Group, Step


def denoise(
    backend: Backend,
    conditions: list,
    plan: Plan,
    groups: list[Group],
    order: list[Step],
    source: np.ndarray,
    table: SamplerTable,
    states: list[np.random.RandomState],
    on_step: Callable[[int, np.ndarray], np.ndarray | None],
) -> np.ndarray:
    """Denoise B images.

    Args:
        conditions: what `backend.layout` returned, one a group.
        groups, order: what is computed when, from `schedule`.
        source: `[B, 4, h, w]` float32 source latents.
        states: B noise generators.
        on_step: called with the step and the latents `[B, 4, h, w]`; may return others to go on with.

    Returns:
        Final latents `[B, 4, h, w]` float32.
    """
    latents, seen = begin(plan, source, table, states)
    denoised = np.zeros_like(latents)
    sample = np.concatenate([latents[plan.item] * np.float32(table.input_scale[0]), seen], axis=1)
    deep: list = [None] * len(groups)
    pull = np.zeros_like(latents)
    steps = len(table.timesteps)
    for step in tqdm(range(steps), desc="edit", unit="step", leave=False, disable=None):
        parts = []
        for call in order[step].calls:
            group = groups[call.group]
            part, features = backend.unet(
                conditions=conditions[call.group],
                step=step,
                sample=sample if len(group.inputs) == len(sample) else sample[group.inputs],
                branch=group.branch,
                guidance=call.guidance,
                deep=None if call.deep else deep[call.group],
            )
            deep[call.group] = features if call.deep else deep[call.group]
            parts.append(part)
        noise = parts[0] if len(parts) == 1 else np.sum(parts, axis=0)
        check_finite(noise, f"unet at step {step + 1} of {steps}")
        if order[step].renews:
            noise, alone = np.split(noise, 2)
            pull = noise - alone
        elif order[step].keeps:
            noise = noise + pull
        next_scale = table.input_scale[min(step + 1, steps - 1)]
        fresh_noise = draw(states, source.shape) if table.ancestral else None
        latents, denoised = sampler_step(
            noise, latents, denoised, fresh_noise, table.coefficients[step], table.data[step]
        )
        replaced = on_step(step, latents)
        if replaced is not None:
            if np.shape(replaced) != source.shape:
                raise MRCError(f"the callback returned latents {np.shape(replaced)}; give {source.shape}")
            latents = np.array(replaced, dtype=np.float32)
        sample[:, : source.shape[1]] = latents[plan.item] * np.float32(next_scale)
    return latents


def denoise_whole(
    unet_loop: Callable[..., np.ndarray],
    conditions: Any,
    plan: Plan,
    source: np.ndarray,
    table: SamplerTable,
    states: list[np.random.RandomState],
) -> np.ndarray:
    """`denoise` in one call of a backend's `unet_loop`; the noise is the same."""
    latents, seen = begin(plan, source, table, states)
    fresh = np.zeros((len(table.timesteps), *source.shape), dtype=np.float32)
    for step in fresh if table.ancestral else ():
        step[:] = draw(states, source.shape)
    latents = unet_loop(
        conditions=conditions,
        latents=latents,
        source=seen,
        item=plan.item,
        branch=plan.branch,
        guidance=plan.guidance,
        table=np.column_stack([table.input_scale, table.coefficients, table.data]).astype(np.float32),
        fresh=fresh,
    )
    check_finite(latents, "unet_loop")
    return latents


def begin(
    plan: Plan, source: np.ndarray, table: SamplerTable, states: list[np.random.RandomState]
) -> tuple[np.ndarray, np.ndarray]:
    """Initial latents `[B, 4, h, w]`, and what each input sees of the source, `[P, 4, h, w]`."""
    latents = draw(states, source.shape) * np.float32(table.initial_scale)
    return latents, np.where(plan.has_image[:, None, None, None], source[plan.item], np.float32(0))


def draw(states: list[np.random.RandomState], shape: tuple[int, ...]) -> np.ndarray:
    """One tensor an image, each from its own generator, so that a batch changes no image."""
    return np.concatenate([normal(state, (1, *shape[1:])) for state in states])


def check_finite(array: np.ndarray, phase: str) -> None:
    if not np.isfinite(array).all():
        raise MRCError(f"{phase} gave NaN or infinity; export with --dtype float32, or check the checkpoint")
