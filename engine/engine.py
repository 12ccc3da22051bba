"""`Engine`: image and instruction in, edited image out."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MRCError
from ..reward import BEST
from .backends import Backend, load_backend
from .images import ImageLike, fit, load_image, to_array, to_pil, to_unit
from .loop import check_finite, denoise
from .noise import generator
from .plan import Reward, check_guidance, check_reward, make_plan
from .sampling import SamplerTable, sampler_table
from .shipped import shipped
from .text import tokenize

OUTPUT_TYPES = ("pil", "np", "latent")
Callback = Callable[["Engine", int, float, dict[str, np.ndarray]], dict[str, np.ndarray] | None]


@dataclass
class EditResult:
    """What `Engine.edit` returns.

    Attributes:
        images: one an input image: Pillow images, float32 `[H, W, 3]` in 0…1 for "np", or for
            "latent" the final latents `[B, 4, h, w]` (a list where sizes differ).
        seed: the seed, or the list of seeds of a batch; give it again for the same edit.
        timings: seconds by phase: text, encode, condition, denoise, decode.
        step_seconds: seconds of every denoising step.
    """

    images: Any
    seed: int | list[int]
    timings: dict[str, float] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)


class Engine:
    """An editor over one backend. Use `Engine.from_pretrained`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @classmethod
    def from_pretrained(cls, folder: str | Path, backend: str = "auto") -> "Engine":
        """Open a checkpoint folder (PyTorch) or an export folder (no PyTorch needed).

        Args:
            folder: where the model is, or "mini" for the small one that is part of this package.
            backend: a name of `engine.backends.BACKENDS`, or "auto" for what fits the folder.

        Raises:
            MRCError: not such a folder, damaged or changed files, or a backend that is not installed.
        """
        return cls(load_backend(shipped(folder, backend), backend))

    def edit(
        self,
        image: ImageLike | Sequence[ImageLike],
        instruction: str | Sequence[str],
        *,
        reward_scores: Sequence[float] | Sequence[Sequence[float]] = BEST,
        reward_text: str | Sequence[str] | None = None,
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
        geometry = self.backend.geometry
        size = geometry.resolution if resolution is None else resolution
        images = [fit(load_image(one), size, geometry.vae_scale) for one in as_list(image)]
        instructions = as_list(instruction)
        count = max(len(images), len(instructions))
        if not count:
            raise MRCError("image and instruction are empty lists; give at least one of each")
        images = spread(images, count, "image")
        instructions = spread(instructions, count, "instruction")
        for text in instructions:
            if not isinstance(text, str):
                raise MRCError(f"instruction is {text!r}; give a text")
        rewards = self.rewards(reward_scores, reward_text, count)
        guidance = check_guidance(guidance_scale, "guidance_scale")
        image_guidance = check_guidance(image_guidance_scale, "image_guidance_scale")
        table = sampler_table(scheduler, self.backend.scheduler, num_inference_steps)
        seeds = check_seeds(seed, count)
        if output_type not in OUTPUT_TYPES:
            raise MRCError(f"output_type is {output_type!r}; choose one of {', '.join(OUTPUT_TYPES)}")

        result = EditResult(images=[], seed=seeds if is_list(image) or is_list(instruction) else seeds[0])
        outputs: list[np.ndarray] = [np.empty(0)] * count
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, one in enumerate(images):
            by_size.setdefault(one.size, []).append(i)
        for group in by_size.values():
            latents = self.denoise_group(
                np.stack([to_array(images[i]) for i in group]),
                [instructions[i] for i in group],
                [rewards[i] for i in group],
                (guidance, image_guidance),
                table,
                [seeds[i] for i in group],
                result,
                callback_on_step_end,
            )
            decoded = latents if output_type == "latent" else self.decode(latents, result)
            for i, output in zip(group, decoded, strict=True):
                outputs[i] = output
        if output_type == "latent":
            result.images = np.stack(outputs) if len(by_size) == 1 else outputs
        else:
            result.images = [(to_pil if output_type == "pil" else to_unit)(output) for output in outputs]
        return result

    def rewards(self, scores: Any, text: Any, count: int) -> list[Reward]:
        """Checked rewards, one an image."""
        many = is_list(scores) and len(scores) > 0 and is_list(scores[0])
        all_scores = spread(list(scores) if many else [scores], count, "reward_scores")
        all_texts = spread(as_list(text), count, "reward_text")
        rewards = [check_reward(*pair) for pair in zip(all_scores, all_texts, strict=True)]
        if not self.backend.geometry.rewards and any(reward != check_reward(BEST, None) for reward in rewards):
            raise MRCError(
                f"rewards {rewards[0]} were asked of a plain InstructPix2Pix model, which has none; "
                "leave out reward_scores and reward_text, or use an MRC checkpoint"
            )
        return rewards

    def denoise_group(
        self,
        images: np.ndarray,
        instructions: list[str],
        rewards: list[Reward],
        guidance: tuple[float, float],
        table: SamplerTable,
        seeds: list[int],
        result: EditResult,
        callback: Callback | None,
    ) -> np.ndarray:
        """Images `[B, 3, H, W]` of one size → final latents `[B, 4, h, w]`."""
        backend = self.backend
        plan = make_plan(instructions, rewards, *guidance)
        with timed(result, "text"):
            texts = list(dict.fromkeys([*plan.texts, *(text for _, text in plan.rewards)]))
            states, pooled = backend.text_encoder(input_ids=tokenize(backend.tokenizer, texts, backend.geometry))
            check_finite(states, "text_encoder")
            check_finite(pooled, "text_encoder")
        with timed(result, "encode"):
            source = backend.vae_encoder(images=images)
            check_finite(source, "vae_encoder")
        with timed(result, "condition"):
            conditions = backend.conditioner(
                timesteps=table.timesteps.astype(np.float32),
                text_states=states[: len(plan.texts)],
                reward_scores=np.array([scores for scores, _ in plan.rewards], dtype=np.float32),
                reward_text=pooled[[texts.index(text) for _, text in plan.rewards]],
                text=plan.text,
                reward=plan.reward,
            )

        clock = time.perf_counter()

        def on_step(step: int, latents: np.ndarray) -> np.ndarray | None:
            nonlocal clock
            result.step_seconds.append(time.perf_counter() - clock)
            changed = callback(self, step, float(table.timesteps[step]), {"latents": latents}) if callback else None
            clock = time.perf_counter()
            return (changed or {}).get("latents")

        with timed(result, "denoise"):
            return denoise(backend, conditions, plan, source, table, [generator(s) for s in seeds], on_step)

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


def is_list(value: object) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def as_list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def spread(values: list, count: int, name: str) -> list:
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise MRCError(f"{len(values)} values of {name} for a batch of {count}; give one, or one an image")
    return values


def check_seeds(seed: object, count: int) -> list[int]:
    seeds = spread([secrets.randbits(32) for _ in range(count)] if seed is None else as_list(seed), count, "seed")
    for value in seeds:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not -(2**63) <= value < 2**64:
            raise MRCError(f"seed is {value!r}; give a whole number of at most 64 bits, or None")
    return [int(value) for value in seeds]
