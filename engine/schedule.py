"""What of the plan is computed at each step: everything, or less at a price.

A tier says how often. Besides its branches a step may leave out the deep features of the U-Net, which
change slowly (DeepCache, arXiv 2312.00858), and the guidance: all of it outside an interval of the steps
(arXiv 2404.07724), or all but the pull away from the text branch, kept from an earlier step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..core.errors import MRCError
from .plan import Plan


@dataclass(frozen=True)
class Tier:
    """The first value of each is exact.

    Attributes:
        deep_every: deep features of the text branches are computed every so many steps.
        guidance_deep_every: the same for the other branches.
        guidance_every: the branches other than the text's are computed every so many steps.
        guidance_interval: shares of the steps between which there is guidance at all, e.g. (0.1, 0.8).
    """

    deep_every: int = 1
    guidance_deep_every: int = 1
    guidance_every: int = 1
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    @property
    def reuses(self) -> bool:
        """Whether deep features are kept from step to step."""
        return max(self.deep_every, self.guidance_deep_every) > 1


EXACT = Tier()
TIERS = {
    "exact": EXACT,
    "fast": Tier(deep_every=2, guidance_deep_every=2),
    "turbo": Tier(deep_every=3, guidance_deep_every=3, guidance_every=2),  # meant for int8
}


def make_tier(name: str, overrides: Mapping[str, Any] | None = None) -> Tier:
    """The tier of that name with some of its settings replaced.

    Raises:
        MRCError: an unknown name or setting, or a value out of range.
    """
    if name not in TIERS:
        raise MRCError(f"tier is {name!r}; choose one of {', '.join(TIERS)}")
    known = {field.name: getattr(TIERS[name], field.name) for field in fields(Tier)}
    if unknown := set(overrides or {}) - set(known):
        raise MRCError(f"tier_settings has {', '.join(sorted(unknown))}; the settings are {', '.join(known)}")
    settings = known | dict(overrides or {})
    for key, value in settings.items():
        if key != "guidance_interval" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise MRCError(f"{key} is {value!r}; give a whole number of steps from 1 (exact)")
    interval = settings["guidance_interval"]
    if not isinstance(interval, tuple | list) or len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise MRCError(f"guidance_interval is {interval!r}; give two shares such as (0.1, 0.8), or (0, 1) for exact")
    return Tier(**settings | {"guidance_interval": tuple(interval)})


@dataclass(frozen=True)
class Group:
    """Branches of a plan that are always computed together.

    Attributes:
        branches: `[n]`, into the plan's branches; inputs: into the plan's inputs, those they continue.
        branch: `[n]` into `inputs`.
    """

    branches: np.ndarray
    inputs: np.ndarray
    branch: np.ndarray


@dataclass(frozen=True)
class Call:
    """One run of the U-Net over a group.

    Attributes:
        group: into the groups; deep: whether deep features are computed, or those of the last time serve.
        guidance: `[G, n]`, weight of each branch in each row of noise.
    """

    group: int
    deep: bool
    guidance: np.ndarray


@dataclass(frozen=True)
class Step:
    """The calls whose rows of noise add up, and what becomes of the pull away from the text branch.

    With `renews` the rows are B guided noises and B of the text branch alone; with `keeps` they are of
    the text branch alone, and the pull of the last renewal is added.
    """

    calls: tuple[Call, ...]
    renews: bool = False
    keeps: bool = False


def groups_of(plan: Plan, tier: Tier) -> list[Group]:
    """One group of everything; or the text branches and the others, where a tier treats them differently."""
    every = np.arange(len(plan.branch))
    text = (plan.alone != 0).any(axis=0)
    whole = tier.deep_every == tier.guidance_deep_every and (tier.guidance_every, tier.guidance_interval) == (1, (0, 1))
    parts = [every] if whole else [every[text], every[~text]]
    made = []
    for branches in parts:
        inputs, branch = np.unique(plan.branch[branches], return_inverse=True)
        if len(branches):
            made.append(Group(branches, inputs, branch.astype(np.int64)))
    return made


def schedule(plan: Plan, groups: list[Group], tier: Tier, steps: int) -> list[Step]:
    """One entry a step."""
    first, last = (round(share * steps) for share in tier.guidance_interval)
    ages = [0] * len(groups)  # steps since the deep features were computed; 0 is never
    order = []
    for step in range(steps):
        guided = first <= step < last
        since = (step - first) % tier.guidance_every
        renews = guided and tier.guidance_every > 1 and since == 0
        alone = not guided or since != 0
        guidance = plan.alone if alone else np.concatenate([plan.guidance, plan.alone]) if renews else plan.guidance
        calls = []
        for i, group in enumerate(groups):
            ages[i] += bool(ages[i])
            if i and alone:
                continue
            deep = not ages[i] or ages[i] > (tier.guidance_deep_every if i else tier.deep_every)
            ages[i] = 1 if deep else ages[i]
            calls.append(Call(i, deep, np.ascontiguousarray(guidance[:, group.branches])))
        order.append(Step(tuple(calls), renews, keeps=guided and alone))
    return order
