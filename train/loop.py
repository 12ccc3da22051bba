"""The training loop, all stages, from top to bottom.

    mrc-train CHECKPOINT --data DATA --out OUT --stage 2

Stage 1 trains an InstructPix2Pix editor; stage 2 adds the reward modules (if they are missing) and
trains them with the rest. Stage distill makes a student of a trained model. The VAE is frozen, and so is the text
encoder unless `train_text_encoder` is set.
"""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ..core.errors import MRCError
from ..core.files import write_json
from .cache import CachedBatches
from .config import TrainConfig
from .data.batches import LoadedBatch
from .data.notes import add_resized, check_broken, say_counts
from .distill import distill_losses, open_distillation
from .finish import write_checkpoint
from .grid import save_grid
from .inputs import load_batches, load_texts, samples_to_show, to_device
from .objective import sample_losses
from .run_folder import remove_run, run_folder
from .setup import Run, arrange_weights, new_state, open_accelerator, start_run, starting_point, trainable_editor
from .sharding import gathered
from .state import TrainState, load_state, mean_loss, save_state
from .workers import load


def train(config: TrainConfig, resume: str | None = None, overwrite: bool = False) -> Path:
    """Train and write `out/checkpoint`; returns its path.

    Args:
        resume: "latest" or a step of `out/states`; None starts a new run.
        overwrite: a new run replaces what another left in `out`.

    Raises:
        MRCError: settings or data that cannot be used, an `out` that holds another run or that one is writing,
            too many broken samples, a loss that is not finite.
    """
    if resume and overwrite:
        raise MRCError("--resume goes on with a run and --overwrite replaces it; leave out one of the two")
    accelerator = open_accelerator(config)
    if not accelerator.is_main_process:  # the first process writes
        return train_in_folder(config, accelerator, resume, overwrite)
    with run_folder(Path(config.out), bool(resume), overwrite):
        return train_in_folder(config, accelerator, resume, overwrite)


def train_in_folder(config: TrainConfig, accelerator: Accelerator, resume: str | None, overwrite: bool) -> Path:
    """`train` in a folder that is this run's alone."""
    out = Path(config.out)

    # ---- model and data; latents and texts are cached before weights are shared out
    checkpoint = starting_point(config)
    checkpoint.vae.to(accelerator.device, memory_format=torch.channels_last)
    editor = trainable_editor(checkpoint, config).to(accelerator.device)
    batches = load_batches(config, checkpoint, accelerator)
    texts = load_texts(config, checkpoint, accelerator)
    distillation = open_distillation(editor) if config.stage == "distill" else None
    for each in (editor, *(distillation.editors if distillation else ())):
        arrange_weights(each, config, accelerator.device)

    # ---- all that a resumed run takes up again
    state = new_state(editor, config, distillation)
    if resume and (saved := load_state(out, resume, config.record())):
        state.restore(*saved)
    if overwrite and accelerator.is_main_process:
        remove_run(out)
    image_states = None
    if isinstance(batches, CachedBatches):
        image_states = batches.image_states
        check_broken(state.broken, batches.texts["broken"], config.broken_limit, show=False)
    run = start_run(config, accelerator, checkpoint, editor, texts, image_states, state, distillation)

    # ---- training, the rare events first
    first, passes = state.step, config.accumulation
    numbers = range(first * passes, config.steps * passes)
    stream = load(batches, numbers, config.workers)
    shown = samples_to_show(config) if config.validate_every and (accelerator.is_main_process or config.shard) else None
    bar = tqdm(total=config.steps, initial=first, desc="train", disable=None if accelerator.is_main_process else True)
    run.model.train(distillation is None)  # a student and its target see no dropout
    for step in range(first, config.steps + 1):
        # ---- rare: a state on the disk, a picture of edits
        last = step == config.steps
        if step > first and (last or step % config.checkpoint_every == 0):
            save_state(config, accelerator, state)
        if step > first and shown is not None and (last or step % config.validate_every == 0):
            save_grid(run, state, shown)
        if last:
            break

        # ---- one step
        started = time.perf_counter()
        rate = learning_rate(config, step)
        loss, norm = train_step(run, state, stream, rate)
        seconds = time.perf_counter() - started
        state.finish_step(loss, seconds)
        accelerator.log({"loss": loss, "rate": rate, "gradient_norm": norm}, step=step)
        recent, images_s = mean_loss(state.curve[-50:]), config.batch_size / seconds
        bar.update()
        bar.set_postfix(loss=f"{recent:.4f}", rate=f"{rate:.1e}", images_s=f"{images_s:.1f}")
    bar.close()
    if accelerator.is_main_process:
        say_counts(len(state.broken), state.resized, state.step * config.batch_size)
    write_checkpoint(run, state, overwrite)
    return out / "checkpoint"


def train_step(run: Run, state: TrainState, stream: Iterator[LoadedBatch], learning_rate: float) -> tuple[float, float]:
    """One optimizer step over all its passes; returns the mean loss and the gradient's norm before clipping.

    Raises:
        MRCError: the loss or the gradient is not finite, or too many samples are broken.
    """
    config, accelerator = run.config, run.accelerator
    process = state.step * accelerator.num_processes + accelerator.process_index
    set_seed((config.seed * 1_000_003 + process) % 2**32)  # for the dropout of the reward layer
    for group in state.optimizer.param_groups:
        group["lr"] = group["share"] * learning_rate
    loss, norm = 0.0, 0.0
    ids: list[str] = []
    for _ in range(config.accumulation):
        loaded = next(stream)
        note_samples(run, state, loaded)
        ids += loaded["ids"]
        with accelerator.accumulate(run.model), attention_kernel(accelerator.device):
            batch_loss = forward(run, loaded)
            loss += accelerator.reduce(batch_loss.detach(), "mean").item() / config.accumulation
            if not math.isfinite(loss):
                stop_on_nan(run, state.step, f"loss is {loss}", ids)
            accelerator.backward(batch_loss)
            if accelerator.sync_gradients:
                norm = float(gathered(accelerator.clip_grad_norm_(state.trained, config.max_grad_norm)))
                if not math.isfinite(norm) and config.mixed_precision != "fp16":  # accelerate skips such fp16 steps
                    stop_on_nan(run, state.step, f"gradient's norm is {norm}", ids)
            state.optimizer.step()
            state.optimizer.zero_grad()
    state.average.step(state.trained)
    return loss, norm


def note_samples(run: Run, state: TrainState, loaded: LoadedBatch) -> None:
    """Count broken samples and pairs of two sizes over all processes; the first one prints them.

    Raises:
        MRCError: too many samples are broken.
    """
    show = run.accelerator.is_main_process
    for broken, resized in gather_object([(loaded["broken"], loaded["resized"])]):
        check_broken(state.broken, broken, run.config.broken_limit, show)
        state.resized = add_resized(state.resized, resized, show)


def forward(run: Run, loaded: LoadedBatch) -> Tensor:
    """Mean loss of this process's share of a batch."""
    batch, draws = to_device(run, loaded)
    with run.accelerator.autocast():
        if run.distillation:
            return distill_losses(run.model, run.distillation, run.noise_schedule, batch, draws, run.config).mean()
        losses = sample_losses(
            run.model,
            run.noise_schedule,
            batch,
            draws,
            conditioning_dropout=run.config.conditioning_dropout,
            reward_dropout=run.config.reward_dropout,
            min_snr_gamma=run.config.min_snr_gamma,
            change_weight=run.config.change_weight,
        )
    return losses.mean()


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """Plain matrix products on CPUs, where torch's fused attention takes two to three times as long.

    Half precision stays: torch's default would compute these products in float32.
    """
    if device.type != "cpu":
        return nullcontext()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # this is the setting for CPUs too
    return sdpa_kernel(SDPBackend.MATH)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Warm-up, then constant or a half cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    if config.lr_schedule == "constant":
        return config.learning_rate * warm
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * max(0.0, share))))


def stop_on_nan(run: Run, step: int, what: str, ids: list[str]) -> None:
    """Save the ids of the whole batch and raise."""
    path = Path(run.config.out) / "not_finite.json"
    ids = gather_object(ids)
    if run.accelerator.is_main_process:
        write_json(path, {"step": step, "what": what, "ids": ids})
    run.accelerator.wait_for_everyone()
    raise MRCError(
        f"the {what} at step {step}; the batch's ids are in {path}. "
        "Look at those samples or give a lower --learning-rate, then --resume latest"
    )
