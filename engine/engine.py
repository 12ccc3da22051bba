"""`Engine`: image and instruction in, edited image out."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import MRCError
from ..core.reward import BEST
from .backends import Backend, load_backend
from .images import ImageLike, to_array, to_pil, to_unit
from .loop import check_finite, denoise, denoise_whole
from .noise import generator
from .plan import make_plan
from .request import Request, Settings, check
from .sampling import sampler_table
from .schedule import EXACT, Tier, groups_of, make_tier, schedule
from .shipped import shipped
from .text import tokenize

Scores = Sequence[float] | dict[str, Sequence[float]]
Callback = Callable[["Engine", int, float, dict[str, np.ndarray]], dict[str, np.ndarray] | None]


@dataclass
class EditResult:
    """What `Engine.edit` returns.

    Attributes:
        images: one an input image: Pillow images, float32 `[H, W, 3]` in 0…1 for "np", or for
            "latent" the final latents `[B, 4, h, w]` (a list where sizes differ).
        seed: the seed, or the list of seeds of a batch; give it again for the same edit.
        timings: seconds by phase: text, encode, condition, denoise, decode.
        step_seconds: seconds of every denoising step; with all steps in one graph, each is their mean.
    """

    images: Any
    seed: int | list[int]
    timings: dict[str, float] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)


class Engine:
    """An editor over one backend. Use `Engine.from_pretrained`."""

    def __init__(self, backend: Backend, tier: Tier = EXACT) -> None:
        self.backend = backend
        self.tier = tier

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backend: str = "auto",
        *,
        precision: str | None = None,
        tier: str = "exact",
        tier_settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "Engine":
        """Open a checkpoint folder (PyTorch) or an export folder (no PyTorch needed).

        Args:
            folder: where the model is, or "mini" for the small one that is part of this package.
            backend: a name of `engine.backends.BACKENDS`, or "auto" for what fits the folder.
            precision: float32, bfloat16, float16 or int8, where backend and folder have it; None for the
                backend's own choice.
            tier: "exact", or "fast" or "turbo" to compute less at a price (docs/runtime.md); turbo takes
                precision "int8" unless another is given.
            tier_settings: values of `engine.schedule.Tier` in place of the tier's.
            options: the backend's own, such as `provider` and `provider_options` of onnxruntime, or `loop=True`
                for all steps in one graph (docs/loop.md).

        Raises:
            MRCError: not such a folder, damaged or changed files, a backend that is not installed, or
                that does not have the precision, tier or option.
        """
        chosen = make_tier(tier, tier_settings)
        if precision is None and tier == "turbo":
            precision = "int8"
        loaded = load_backend(shipped(folder, backend), backend, precision=precision, **options)
        if chosen.reuses and not loaded.shallow:
            raise MRCError(f"tier {tier} keeps deep features, which this backend cannot; use tier='exact'")
        if loaded.unet_loop and chosen != EXACT:
            raise MRCError("all steps in one graph are computed alike, tiers differ by step; leave out tier or loop")
        return cls(loaded, chosen)

    def edit(
        self,
        image: ImageLike | Sequence[ImageLike],
        instruction: str | Sequence[str],
        *,
        reward_scores: Sequence[float] | Sequence[Sequence[float]] = BEST,
        reward_text: str | Sequence[str] | None = None,
        reward_guidance: Scores | Sequence[Scores | None] | None = None,
        reward_guidance_text: str | Sequence[str] | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.5,
        image_guidance_scale: float = 1.5,
        scheduler: str = "euler_ancestral",
        seed: int | Sequence[int] | None = None,
        resolution: int | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
    ) -> EditResult:
        """Edit one image, or a list of them in one pass.

        Every list must be as long as the batch; what is no list serves all of it. Images that come
        to different sizes are edited in one pass a size. An image of a batch gives what it gives
        alone, up to rounding.

        Args:
            image: Pillow image, path, or uint8 array `[H, W, 3]`.
            instruction: what to change; may be empty.
            reward_scores: following, preserving, quality, each 0–5.
            reward_text: what may go wrong, three texts joined by "; "; None asks for no faults.
            reward_guidance: scores that the guidance branches without the instruction are asked for; low
                ones steer like a negative prompt (docs/reward_guidance.md). Three scores for both, or
                `{"image": …, "empty": …}` for one or each; None asks them for `reward_scores`, as released.
            reward_guidance_text: their reward text; None for `reward_text`.
            num_inference_steps: 1–1000.
            guidance_scale: weight of the instruction, from 1.
            image_guidance_scale: weight of the source image, from 1.
            scheduler: euler, euler_ancestral, ddim or dpmpp_2m.
            seed: as for `torch.Generator("cpu").manual_seed`; None draws one and reports it.
            resolution: pixels of the longer side, about; None for what the model was trained at (512 in
                the release, 128 for `mini`), 0 keeps the image's size.
            output_type: "pil", "np" or "latent".
            callback_on_step_end: called as `f(engine, step, timestep, {"latents": array})` after
                each step; a returned dictionary may replace the latents, as in diffusers.

        Raises:
            MRCError: an argument that cannot be used, or a phase whose output is not finite.
        """
        requests, settings = check(
            self.backend,
            image=image,
            instruction=instruction,
            reward_scores=reward_scores,
            reward_text=reward_text,
            reward_guidance=reward_guidance,
            reward_guidance_text=reward_guidance_text,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
            scheduler=scheduler,
            seed=seed,
            resolution=resolution,
            output_type=output_type,
        )
        result = self.run(requests, settings, callback_on_step_end)
        if not isinstance(image, list | tuple) and not isinstance(instruction, list | tuple):
            result.seed = requests[0].seed
        return result

    def run(self, requests: list[Request], settings: Settings, callback: Callback | None = None) -> EditResult:
        """Edit what `request.check` passed, in one pass a size; `seed` of the result is a list."""
        if callback and self.backend.unet_loop:
            raise MRCError("nothing can be called between steps that are one graph; open the engine without loop")
        result = EditResult(images=[], seed=[request.seed for request in requests])
        outputs: list[np.ndarray] = [np.empty(0)] * len(requests)
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, request in enumerate(requests):
            by_size.setdefault(request.image.size, []).append(i)
        for group in by_size.values():
            latents = self.denoise_group([requests[i] for i in group], settings, result, callback)
            decoded = latents if settings.output_type == "latent" else self.decode(latents, result)
            for i, output in zip(group, decoded, strict=True):
                outputs[i] = output
        if settings.output_type == "latent":
            result.images = np.stack(outputs) if len(by_size) == 1 else outputs
        else:
            result.images = [(to_pil if settings.output_type == "pil" else to_unit)(output) for output in outputs]
        return result

    def denoise_group(
        self, requests: list[Request], settings: Settings, result: EditResult, callback: Callback | None
    ) -> np.ndarray:
        """B requests of one size → final latents `[B, 4, h, w]`."""
        backend = self.backend
        table = sampler_table(settings.scheduler, backend.scheduler, settings.steps)
        plan = make_plan(
            [request.instruction for request in requests],
            [request.rewards for request in requests],
            *settings.guidance,
        )
        groups = groups_of(plan, self.tier)
        order = schedule(plan, groups, self.tier, settings.steps)
        with timed(result, "text"):
            texts = list(dict.fromkeys([*plan.texts, *(text for _, text in plan.rewards)]))
            states, pooled = backend.text_encoder(input_ids=tokenize(backend.tokenizer, texts, backend.geometry))
            check_finite(states, "text_encoder")
            check_finite(pooled, "text_encoder")
        with timed(result, "encode"):
            source = backend.vae_encoder(images=np.stack([to_array(request.image) for request in requests]))
            check_finite(source, "vae_encoder")
        with timed(result, "condition"):
            conditions = backend.conditioner(
                timesteps=table.timesteps.astype(np.float32),
                text_states=states[: len(plan.texts)],
                reward_scores=np.array([scores for scores, _ in plan.rewards], dtype=np.float32),
                reward_text=pooled[[texts.index(text) for _, text in plan.rewards]],
            )
            laid_out = [
                backend.layout(conditions=conditions, text=plan.text[g.branches], reward=plan.reward[g.inputs])
                for g in groups
            ]

        clock = time.perf_counter()

        def on_step(step: int, latents: np.ndarray) -> np.ndarray | None:
            nonlocal clock
            result.step_seconds.append(time.perf_counter() - clock)
            changed = callback(self, step, float(table.timesteps[step]), {"latents": latents}) if callback else None
            clock = time.perf_counter()
            return (changed or {}).get("latents")

        with timed(result, "denoise"):
            noise = [generator(request.seed) for request in requests]
            if backend.unet_loop:
                final = denoise_whole(backend.unet_loop, laid_out[0], plan, source, table, noise)
                result.step_seconds += [(time.perf_counter() - clock) / settings.steps] * settings.steps
                return final
            return denoise(backend, laid_out, plan, groups, order, source, table, noise, on_step)

    def decode(self, latents: np.ndarray, result: EditResult) -> np.ndarray:
        with timed(result, "decode"):
            images = self.backend.vae_decoder(latents=latents)
            check_finite(images, "vae_decoder")
            return images


@contextmanager
def timed(result: EditResult, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    result.timings[phase] = result.timings.get(phase, 0.0) + time.perf_counter() - start
