"""How much of the U-Net a step computes: everything, or less at a price.

Two lossy methods. Deep features change slowly and can be reused (DeepCache, arXiv 2312.00858). Guidance can be left
out outside an interval of the steps (arXiv 2404.07724), or its delta, guided minus unguided noise, can be reused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from ..core.errors import MRCError
from .arguments import as_list, number
from .backends.base import Backend, Conditions
from .loop import Predict
from .plan import Plan


@dataclass(frozen=True)
class Tier:
    """The default of each setting is exact.

    Attributes:
        deep_every: deep features of the text branches are computed every so many steps.
        guidance_deep_every: the same for the other branches.
        guidance_every: the other branches are computed every so many steps.
        guidance_interval: shares of the steps between which there is guidance at all, such as (0.1, 0.8).
    """

    deep_every: int = 1
    guidance_deep_every: int = 1
    guidance_every: int = 1
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    @property
    def reuses_features(self) -> bool:
        return max(self.deep_every, self.guidance_deep_every) > 1

    @property
    def one_group(self) -> bool:
        """Whether every step treats all branches the same."""
        every_step = (self.guidance_every, self.guidance_interval) == (1, (0, 1))
        return every_step and self.deep_every == self.guidance_deep_every


EXACT = Tier()
TIERS = {
    "exact": EXACT,
    "fast": Tier(deep_every=2, guidance_deep_every=2),
    "turbo": Tier(deep_every=3, guidance_deep_every=3, guidance_every=2),  # meant for int8
}


def make_tier(name: str, settings: Mapping[str, object] | None = None) -> Tier:
    """The tier of that name with some of its settings replaced.

    Raises:
        MRCError: an unknown name or setting, or a value out of range.
    """
    if name not in TIERS:
        raise MRCError(f"tier is {name!r}; choose one of {', '.join(TIERS)}", argument="tier")
    own: dict[str, object] = {field.name: getattr(TIERS[name], field.name) for field in fields(Tier)}
    given = dict(settings or {})
    if unknown := given.keys() - own.keys():
        raise MRCError(f"tier_settings has {', '.join(sorted(unknown))}; the settings are {', '.join(own)}")
    every = {key: check_every(key, value) for key, value in (own | given).items() if key != "guidance_interval"}
    return Tier(**every, guidance_interval=check_interval((own | given)["guidance_interval"]))


def check_tier(name: str, tier: Tier, backend: Backend) -> Tier:
    """The tier, for a backend that can compute it.

    Raises:
        MRCError: it reuses deep features and the backend cannot.
    """
    if tier.reuses_features and not backend.reuses_features:
        raise MRCError(
            f"tier {name} reuses deep features, which this backend cannot; use tier='exact'", argument="tier"
        )
    return tier


def check_every(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise MRCError(f"{name} is {value!r}; give a whole number of steps from 1 (exact)")
    return value


def check_interval(value: object) -> tuple[float, float]:
    given = as_list(value)
    shares = [share for share in map(number, given) if share is not None]
    if not (len(given) == len(shares) == 2 and 0 <= shares[0] <= shares[1] <= 1):
        raise MRCError(f"guidance_interval is {value!r}; give two shares such as (0.1, 0.8), or (0, 1) for exact")
    return shares[0], shares[1]


@dataclass(frozen=True)
class Step:
    """What one step computes.

    Attributes:
        full: for each group of branches, whether it computes deep features (True), reuses them (False) or is left
            out (None). The first group has the text branches, or all.
        recompute_delta: the guidance delta is computed anew, for later steps to reuse.
        reuse_delta: the text branches alone are computed, and the last guidance delta is added.
        guided: False computes the text branches alone, without any guidance.
    """

    full: tuple[bool | None, ...]
    recompute_delta: bool = False
    reuse_delta: bool = False
    guided: bool = True


def schedule(tier: Tier, groups: int, steps: int) -> list[Step]:
    """One entry a step, for one group of all branches, or two: the text branches and the others."""
    first, last = (round(share * steps) for share in tier.guidance_interval)
    every = (tier.deep_every, tier.guidance_deep_every)
    ages = [0] * groups  # steps since a group's deep features were computed; 0 is never
    order = []
    for step in range(steps):
        guided = first <= step < last
        since = (step - first) % tier.guidance_every
        text_alone = not guided or since != 0
        full: list[bool | None] = []
        for group in range(groups):
            ages[group] += bool(ages[group])
            if group and text_alone:
                full.append(None)
                continue
            compute = not ages[group] or ages[group] > every[group]
            ages[group] = 1 if compute else ages[group]
            full.append(compute)
        recompute = guided and tier.guidance_every > 1 and since == 0
        order.append(Step(tuple(full), recompute, guided and text_alone, guided))
    return order


def predictor(backend: Backend, conditions: Conditions, plan: Plan, tier: Tier, steps: int) -> Predict:
    """The function that predicts the guided noise of each step, by tier."""
    if tier == EXACT:
        unet = backend.guided_unet(conditions, branch=plan.branch, text=plan.text, reward=plan.reward, image=plan.image)
        return lambda step, sample: unet.full(step, sample, plan.guidance)
    return LossyPredictor(backend, conditions, plan, tier, steps)


class LossyPredictor:
    """Predicts the guided noise by the schedule of a lossy tier."""

    def __init__(self, backend: Backend, conditions: Conditions, plan: Plan, tier: Tier, steps: int) -> None:
        self.plan = plan
        self.groups = branch_groups(plan, tier)
        self.order = schedule(tier, len(self.groups), steps)
        self.delta = np.zeros(())
        self.inputs, self.unets = [], []
        for branches in self.groups:
            inputs, branch = np.unique(plan.branch[branches], return_inverse=True)
            rows = {"text": plan.text[branches], "reward": plan.reward[inputs], "image": plan.image[inputs]}
            self.inputs.append(inputs)
            self.unets.append(backend.guided_unet(conditions, branch=branch.astype(np.int64), **rows))

    def __call__(self, step: int, sample: np.ndarray) -> np.ndarray:
        now = self.order[step]
        if now.recompute_delta:
            both = self.noise(step, sample, np.concatenate([self.plan.guidance, self.plan.unguided]))
            guided, unguided = np.split(both, 2)
            self.delta = guided - unguided
            return guided
        if now.reuse_delta:
            return self.noise(step, sample, self.plan.unguided) + self.delta
        return self.noise(step, sample, self.plan.guidance if now.guided else self.plan.unguided)

    def noise(self, step: int, sample: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        """Noise weighted by `guidance` `[G, N]`: the sum over the groups that this step computes."""
        parts = []
        for branches, inputs, unet, full in zip(
            self.groups, self.inputs, self.unets, self.order[step].full, strict=True
        ):
            if full is not None:
                weights = np.ascontiguousarray(guidance[:, branches])
                parts.append((unet.full if full else unet.shallow)(step, sample[inputs], weights))
        return np.sum(parts, axis=0)


def branch_groups(plan: Plan, tier: Tier) -> list[np.ndarray]:
    """Branches that are always computed together: all, or those with text and the others."""
    branches = np.arange(len(plan.branch))
    if tier.one_group:
        return [branches]
    text = (plan.unguided != 0).any(axis=0)
    return [group for group in (branches[text], branches[~text]) if len(group)]
