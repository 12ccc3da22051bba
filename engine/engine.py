"""`Engine`: image and instruction in, edited image out."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from ..core.errors import MRCError
from .aliases import to_tensors
from .arguments import check_threads
from .backends import Backend, load_backend
from .backends.base import Conditions, Reader
from .failures import computing, enough_memory
from .framing import Box, without_padding
from .images import ImageLike, to_array, to_pil, to_unit
from .loop import check_finite, denoise
from .models import layout_folders, model_folder
from .noise import drawing
from .plan import Plan, Read, make_plan
from .request import Checked, Edit, EditOptions, EditRequest, OutputType, Settings, check
from .sampling import sampler_table
from .step_table import SamplerTable
from .text import tokenize
from .tiers import EXACT, Tier, check_tier, make_tier, predictor

Callback = Callable[["Engine", int, float, dict[str, np.ndarray]], dict[str, np.ndarray] | None]


@dataclass
class EditResult:
    """What `Engine.edit` returns.

    Attributes:
        images: one an input image: Pillow images, float32 `[H, W, 3]` in 0…1 for "np", tensors `[B, 3, H, W]` in 0…1
            for "pt", or for "latent" the final latents `[B, Z, h, w]`, those of padding too (the last two are lists
            where sizes differ).
        boxes: for each, the part of its input image that it shows: left, top, right, bottom in pixels of the upright
            image. Other than "crop" all of it.
        seed: the seed, or the list of seeds of a batch; give it again for the same edit. None with a generator.
        timings: seconds by phase: read (SmartEdit), text, encode, condition, denoise, decode.
        step_seconds: seconds of every denoising step; each is their mean where a device loop runs them.
        batch_size: images that were edited together, those of this request among them.
        waited: seconds from the request to its batch, in an `AsyncEngine`.
        warnings: what `Engine.edit` warns of, in an `AsyncEngine`: parts of image or texts that the model does not get.
    """

    images: Any  # its type depends on `output_type`
    seed: int | list[int] | None
    boxes: list[Box] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    batch_size: int = 1
    waited: float = 0.0
    warnings: list[str] = field(default_factory=list)


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
        tier_settings: Mapping[str, object] | None = None,
        threads: int | None = None,
        lora: Mapping[str | Path, float] | None = None,
        embeddings: Mapping[str, str | Path] | None = None,
        **options: object,
    ) -> "Engine":
        """Open a checkpoint (PyTorch) or an export folder (no PyTorch needed).

        Args:
            folder: where the model is; "mini" for the small one that is part of this package; or OWNER/NAME on the
                Hugging Face hub, where @REVISION may follow. A folder goes before a name.
            backend: a name of `engine.backends.BACKENDS`, or "auto" for what fits the folder.
            precision: float32, tf32, bfloat16, float16 or int8, where backend and folder have it; None for the
                backend's own choice.
            tier: "exact", or "fast" or "turbo" to compute less at a price (docs/runtime.md); turbo takes
                precision "int8" unless another is given.
            tier_settings: values of `engine.tiers.Tier` in place of the tier's.
            threads: number of CPU threads; None for the backend's own choice. PyTorch's are the process's: the engine
                opened last decides. `tensorrt` computes on the GPU and refuses them.
            lora: scales by LoRA file, merged into the weights of a checkpoint (docs/lora.md). An export takes none:
                it is made with them.
            embeddings: files of textual inversion by the token that instructions use, such as "<cat>"; else as `lora`.
            options: the backend's own, such as `provider` and `provider_options` of onnxruntime, or `device` and
                `compile` of torch; for a checkpoint also `variant`, `vae` and `base` (docs/checkpoints.md), and
                `decode`, `template` and `llm_precision` of SmartEdit, and `reader` of its exports (docs/smartedit.md).

        Raises:
            MRCError: not such a folder or name, damaged or changed files, a backend that is not installed, or
                that does not have the precision, tier or option; a model that cannot be fetched.
        """
        chosen = make_tier(tier, tier_settings)
        if precision is None and tier == "turbo":
            precision = "int8"
        if threads is not None:
            options["threads"] = check_threads(threads)
        given = {"lora": lora, "embeddings": embeddings}
        adapters = {name: value for name, value in given.items() if value}
        reads = "eager" if adapters and backend == "auto" else backend  # of a shipped model the checkpoint
        found = model_folder(folder, reads, precision, options)
        loaded = load_backend(found, backend, precision=precision, **adapters, **layout_folders(options))
        return cls(loaded, check_tier(tier, chosen, loaded))

    def edit(
        self,
        image: ImageLike | Sequence[ImageLike] | None = None,
        instruction: str | Sequence[str] | None = None,
        *,
        callback_on_step_end: Callback | None = None,
        **options: Unpack[EditOptions],
    ) -> EditResult:
        """Edit one image, or a list of them in one pass.

        Images that come to different sizes are edited in one pass a size. An image of a batch gives what it gives
        alone, up to rounding.

        Args:
            image, instruction, options: the fields of `EditRequest`, which documents them.
            callback_on_step_end: called as `f(engine, step, timestep, {"latents": array})` after
                each step; a returned dictionary may replace the latents, as in diffusers. The array is a copy: it
                may be kept, and changing it without returning it changes nothing.

        Raises:
            MRCError: an argument that cannot be used, or a phase whose output is not finite.
        """
        checked = check(self.backend, EditRequest(image, instruction, **options))
        return self.run([checked], callback_on_step_end)[0]

    @enough_memory()
    def run(self, requests: list[Checked], callback: Callback | None = None) -> list[EditResult]:
        """Edit what `request.check` passed, with the same settings, in one pass a size; one result a request.

        Their timings are those of all.
        """
        settings = requests[0].settings
        edits = [edit for request in requests for edit in request.edits]
        shared = EditResult([], None, batch_size=len(edits))
        outputs: list[np.ndarray] = [np.empty(0)] * len(edits)
        with drawing([edit.seed for edit in edits], [edit.generator for edit in edits]) as random:
            for rows in passes(edits):
                some, states = [edits[i] for i in rows], [random[i] for i in rows]
                latents = self.edit_latents(some, states, settings, shared, callback)
                decoded = latents if settings.output_type == "latent" else self.decode(latents, shared)
                for i, output in zip(rows, decoded, strict=True):
                    outputs[i] = output
        left = iter(outputs)
        return [
            replace(
                shared,
                images=shown(list(islice(left, len(request.edits))), request.edits, settings.output_type),
                seed=request.seed,
                boxes=[edit.frame.box for edit in request.edits],
            )
            for request in requests
        ]

    def edit_latents(
        self, edits: list[Edit], random: list[np.random.RandomState], settings: Settings, result: EditResult,
        callback: Callback | None,
    ) -> np.ndarray:  # fmt: skip
        """B edits of one size → final latents `[B, Z, h, w]`."""
        table = sampler_table(settings.scheduler, self.backend.scheduler, settings.steps)
        plan = plan_of(self.backend, edits, settings)
        read, more = np.empty(0), {"guidance_scales": plan.scales} if self.backend.geometry.embeds_guidance else {}
        if self.backend.reader:
            with timed(result, "read"), computing("reader"):
                read, more["feature_bias"] = self.read(self.backend.reader, edits)
        with timed(result, "text"), computing("text_encoder"):
            states, reward_text = self.encode_texts(plan, read)
        with timed(result, "encode"), computing("vae_encoder"):
            source = self.backend.vae_encoder(images=np.stack([to_array(edit.image) for edit in edits]))
            check_finite(source, "vae_encoder")
        with timed(result, "condition"), computing("conditioner"):
            conditions = self.backend.conditioner(
                timesteps=table.timesteps.astype(np.float32),
                text_states=states,
                reward_scores=np.array([scores for scores, _ in plan.rewards], dtype=np.float32),
                reward_text=reward_text,
                **more,
            )
        with timed(result, "denoise"):
            return self.denoise(conditions, plan, table, source, random, result, callback)

    def read(self, reader: Reader, edits: list[Edit]) -> tuple[np.ndarray, np.ndarray]:
        """What the reader makes of each image and its instruction: text states, feature bias."""
        width, height = (side // self.backend.geometry.vae_scale for side in edits[0].image.size)
        states, bias = reader.read(
            pictures=[edit.seen for edit in edits if edit.seen],
            instructions=[edit.instruction for edit in edits],
            seeds=[edit.seed for edit in edits],
            size=(height, width),
        )
        check_finite(states, "reader")
        check_finite(bias, "reader")
        return states, bias

    def encode_texts(self, plan: Plan, read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States of the plan's T texts `[T, L, D]`, and pooled states of its R reward texts `[R, D]`.

        Args:
            read: states `[B, L, D]` that the reader gave, for the texts that it read.
        """
        backend = self.backend
        texts = plan.encoded
        states, pooled = backend.text_encoder(input_ids=tokenize(backend.tokenizer, texts, backend.geometry))
        check_finite(states, "text_encoder")
        check_finite(pooled, "text_encoder")
        rows = [read[text.image] if isinstance(text, Read) else states[texts.index(text)] for text in plan.texts]
        return np.stack(rows), pooled[[texts.index(text) for _, text in plan.rewards]]

    def denoise(
        self, conditions: Conditions, plan: Plan, table: SamplerTable, source: np.ndarray,
        generators: list[np.random.RandomState], result: EditResult, callback: Callback | None,
    ) -> np.ndarray:  # fmt: skip
        """Run the loop, on the device where the backend has one there, which computes every step in full."""
        steps = len(table.timesteps)
        clock = time.perf_counter()

        def on_step(step: int, latents: np.ndarray) -> np.ndarray | None:
            nonlocal clock
            result.step_seconds.append(time.perf_counter() - clock)
            changed = callback and callback(self, step, float(table.timesteps[step]), {"latents": latents.copy()})
            clock = time.perf_counter()
            if changed is not None and not isinstance(changed, Mapping):
                raise MRCError(f"the callback returned {changed!r:.60}; give a dictionary with latents, or None")
            return (changed or {}).get("latents")

        if self.backend.device_loop is None or self.tier != EXACT:
            predict = predictor(self.backend, conditions, plan, self.tier, steps)
            return denoise(predict, plan, table, source, generators, on_step)
        unet = self.backend.guided_unet(
            conditions, branch=plan.branch, text=plan.text, reward=plan.reward, image=plan.image
        )
        final = self.backend.device_loop.denoise(unet, plan, table, source, generators, on_step if callback else None)
        check_finite(final, "the device loop")
        if not callback:
            result.step_seconds += [(time.perf_counter() - clock) / steps] * steps
        return final

    def decode(self, latents: np.ndarray, result: EditResult) -> np.ndarray:
        with timed(result, "decode"), computing("vae_decoder"):
            images = self.backend.vae_decoder(latents=latents)
            check_finite(images, "vae_decoder")
            return images


def plan_of(backend: Backend, edits: Sequence[Edit], settings: Settings) -> Plan:
    """The plan of a pass over `edits`."""
    texts: list = [edit.instruction for edit in edits]
    if backend.reader:
        texts = [Read(*row) for row in enumerate(texts)]
    rewards, negatives = [edit.rewards for edit in edits], [edit.negative_prompt for edit in edits]
    return make_plan(texts, rewards, *settings.guidance, negatives, backend.geometry.embeds_guidance)


def passes(edits: Sequence[Edit]) -> list[list[int]]:
    """The rows of `edits` that each pass edits: one pass a size, in the order of their first edits."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for row, edit in enumerate(edits):
        by_size.setdefault(edit.image.size, []).append(row)
    return list(by_size.values())


def shown(outputs: list[np.ndarray], edits: list[Edit], output_type: OutputType) -> Any:
    """`EditResult.images` of what the decoder gives, images `[3, H, W]`, or of final latents `[4, h, w]`."""
    if output_type == "latent":
        return np.stack(outputs) if len({output.shape for output in outputs}) == 1 else outputs
    sized = [
        (without_padding(output, edit.frame), edit.frame.output) for output, edit in zip(outputs, edits, strict=True)
    ]
    if output_type == "pil":
        return [to_pil(*one) for one in sized]
    units = [to_unit(*one) for one in sized]
    return to_tensors(units) if output_type == "pt" else units


@contextmanager
def timed(result: EditResult, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    result.timings[phase] = result.timings.get(phase, 0.0) + time.perf_counter() - start
