"""The training loop, both stages, from top to bottom.

    mrc-train CHECKPOINT --data DATA --out OUT --stage 2

Stage 1 trains an InstructPix2Pix editor; stage 2 adds the reward modules (if they are not there) and
trains them with the rest. VAE frozen; text encoder too, unless `train_text_encoder`.
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, gather_object, set_seed
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..core.errors import MRCError
from ..model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ..model.extend import add_reward_blocks, add_rewards, widen_input
from ..model.pipeline import token_ids
from .cache import CachedBatches, build_cache, cache_key, cached_texts, open_cache, weights_digest
from .config import TrainConfig
from .data import Triplets, open_data
from .data.batches import StepBatches, check_broken
from .lora import add_lora, merge_lora
from .objective import Draws, Editor, changed_positions, draw, sample_losses
from .report import validation_grid, write_report
from .sharding import gathered, shard, shared_like
from .state import load_state, optimizer_tensors, restore_optimizer, save_state
from .texts import TextStates, build_text_states

TEXT_SHARE = 0.1  # of the learning rate, for a text encoder trained along: at the full one all texts become alike
CACHE_TIME = timedelta(hours=12)  # how long the other processes wait for the one that fills a cache


def train(config: TrainConfig, resume: str | None = None) -> Path:
    """Train and write `out/checkpoint`; returns its path.

    Args:
        resume: "latest" or a step of `out/states`; None starts anew.

    Raises:
        MRCError: settings or data that cannot be used, too many broken samples, a loss that is not finite.
    """
    out = Path(config.out)
    if resume is None and (out / "states").is_dir():
        raise MRCError(f"{out} holds states of a run; give --resume latest to go on, or another --out")
    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.accumulation,
            log_with=config.tracker or None,
            project_dir=out,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=CACHE_TIME)],
        )
    except ValueError as error:
        raise MRCError(f"accelerate cannot train so: {error}") from None
    processes = accelerator.num_processes
    if config.batch_size % (processes * config.accumulation):
        raise MRCError(
            f"batch_size {config.batch_size} does not divide among {processes} processes × "
            f"{config.accumulation} passes; give a multiple of {processes * config.accumulation}"
        )
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise MRCError("mixed_precision is fp16, which needs a GPU; give bf16 or no")
    if config.shard and processes == 1:
        raise MRCError("shard needs more than one process; start mrc-train under torchrun, or leave --shard out")

    # ---- model, and caches by the whole text encoder
    checkpoint = starting_point(config)
    checkpoint.vae.to(accelerator.device, memory_format=torch.channels_last)
    editor = Editor(checkpoint.unet, checkpoint.text_encoder)
    schedule = DDPMScheduler.from_config(checkpoint.scheduler.config)
    prepare_parameters(editor, config)
    editor.to(accelerator.device)
    batches = load_batches(config, checkpoint, accelerator)
    texts = load_texts(config, checkpoint, accelerator) if config.cache and not config.train_text_encoder else None
    if config.shard:
        shard(editor, accelerator.device)
    elif not config.lora_rank:  # with frozen weights torch 2.13's backward of this layout crashes on CPUs
        editor.unet.to(memory_format=torch.channels_last)
    trained = trained_parameters(editor)
    groups = [{"params": [p for p in part.parameters() if p.requires_grad], "share": share}
              for part, share in ((editor.unet, 1.0), (editor.text_encoder, TEXT_SHARE))]  # fmt: skip
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        config.learning_rate,
        (config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )
    average = EMAModel(trained, decay=config.ema_decay, use_ema_warmup=True, power=0.75)

    # ---- where it stands
    first, curve, seen_broken = 0, [], set[str]()
    state = load_state(out, resume, config.record()) if resume else None
    if state:
        tensors, record = state
        first, curve, seen_broken = record["step"], record["curve"], set(record["broken"])
        with torch.no_grad():
            for i, parameter in enumerate(trained):
                parameter.copy_(shared_like(tensors[f"weights.{i}"], parameter))
        average.shadow_params = [shared_like(tensors[f"average.{i}"], p) for i, p in enumerate(trained)]
        average.optimization_step = first
        restore_optimizer(optimizer, tensors)
    if config.shard:
        model, optimizer = editor, accelerator.prepare(optimizer)
    else:
        model, optimizer = accelerator.prepare(editor, optimizer)

    # ---- data
    passes = config.accumulation
    loader = DataLoader(
        batches, batch_size=None, sampler=range(first * passes, config.steps * passes), num_workers=config.workers
    )
    stream: Iterator[dict] = iter(loader)
    shows = accelerator.is_main_process or config.shard  # sharded weights are gathered by all processes
    shown = opened(config) if shows and config.validate_every else None

    if config.tracker:
        accelerator.init_trackers("mrc", config={k: v for k, v in config.record().items() if v is not None})
    bar = tqdm(total=config.steps, initial=first, desc="train", disable=None if accelerator.is_main_process else True)
    model.train()
    for step in range(first, config.steps):
        started = time.perf_counter()
        set_seed((config.seed * 1_000_003 + step * processes + accelerator.process_index) % 2**32)  # dropout
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate(config, step)
        total = 0.0
        ids: list[str] = []
        for _ in range(passes):
            raw = next(stream)
            check_broken(seen_broken, gather_object(raw["broken"]), config.broken_limit)
            ids += raw["ids"]
            with accelerator.accumulate(model), attention(accelerator.device):
                batch, draws = on_device(raw, checkpoint, texts, config, accelerator.device, schedule)
                with accelerator.autocast():
                    losses = sample_losses(
                        model, schedule, batch, draws,
                        conditioning_dropout=config.conditioning_dropout,
                        reward_dropout=config.reward_dropout,
                        min_snr_gamma=config.min_snr_gamma,
                        change_weight=config.change_weight,
                    )  # fmt: skip
                loss = losses.mean()
                total += accelerator.reduce(loss.detach(), "mean").item() / passes
                if not math.isfinite(total):
                    stop_on_nan(accelerator, out, step, f"loss is {total}", ids)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = float(gathered(accelerator.clip_grad_norm_(trained, config.max_grad_norm)))
                    if not math.isfinite(norm) and config.mixed_precision != "fp16":  # fp16 skips such steps itself
                        stop_on_nan(accelerator, out, step, f"gradient's norm is {norm}", ids)
                optimizer.step()
                optimizer.zero_grad()
        average.step(trained)

        seconds = time.perf_counter() - started
        curve.append([step, round(total, 6), round(seconds, 4)])
        bar.update()
        recent = np.mean([row[1] for row in curve[-50:]])
        rate = learning_rate(config, step)
        bar.set_postfix(loss=f"{recent:.4f}", rate=f"{rate:.1e}", images_s=f"{config.batch_size / seconds:.1f}")
        accelerator.log({"loss": total, "rate": rate, "gradient_norm": norm}, step=step)
        done = step + 1
        if done % config.checkpoint_every == 0 or done == config.steps:
            tensors = {f"weights.{i}": p for i, p in enumerate(trained)}
            tensors |= {f"average.{i}": p for i, p in enumerate(average.shadow_params)}
            tensors |= optimizer_tensors(optimizer)
            tensors = {name: gathered(tensor) for name, tensor in tensors.items()}
            record = {"config": config.record(), "curve": curve, "broken": sorted(seen_broken)}
            if accelerator.is_main_process:
                save_state(out, done, tensors, record, config.checkpoints_total_limit)
        if shown is not None and (done % config.validate_every == 0 or done == config.steps):
            average.store(trained)
            average.copy_to(trained)
            editor.eval()
            picture = validation_grid(checkpoint, shown, config.resolution)
            if accelerator.is_main_process:
                (out / "validation").mkdir(parents=True, exist_ok=True)
                picture.save(out / "validation" / f"{done:08d}.png")
            average.restore(trained)
            editor.train()
    bar.close()
    averages = [gathered(tensor) for tensor in average.shadow_params]
    accelerator.wait_for_everyone()
    accelerator.end_training()

    # ---- the trained checkpoint: averaged weights in the released layout
    if accelerator.is_main_process:
        if config.shard:  # whole modules again
            checkpoint = starting_point(config)
            editor = Editor(checkpoint.unet, checkpoint.text_encoder)
            prepare_parameters(editor, config)
            trained = trained_parameters(editor)
        with torch.no_grad():
            for parameter, tensor in zip(trained, averages, strict=True):
                parameter.copy_(tensor)
        merge_lora(checkpoint.unet, config.lora_rank)
        write_record(out, config, curve, sorted(seen_broken))
        write_report(out)
        save_checkpoint(  # last: what has a checkpoint is finished
            dataclasses.replace(checkpoint, unet=checkpoint.unet.eval(), text_encoder=checkpoint.text_encoder.eval()),
            out / "checkpoint",
        )
    return out / "checkpoint"


def starting_point(config: TrainConfig) -> Checkpoint:
    """The checkpoint to start from, widened as the stage needs."""
    checkpoint = load_checkpoint(config.init)
    unet = checkpoint.unet
    if unet.config.in_channels == unet.config.out_channels:
        unet = widen_input(unet)
    if config.stage == 1 and unet.rewards:
        raise MRCError(f"{config.init} has rewards already, stage 1 trains without; use --stage 2")
    if config.stage == 2 and not unet.rewards:
        torch.manual_seed(config.seed)
        unet = add_rewards(unet, config.reward_injection)
    elif config.stage == 2 and config.reward_injection == "blocks" and not unet.reward_blocks:
        torch.manual_seed(config.seed)
        unet = add_reward_blocks(unet)
    return dataclasses.replace(checkpoint, unet=unet)


def prepare_parameters(editor: Editor, config: TrainConfig) -> None:
    """Set what requires gradients."""
    editor.requires_grad_(False)
    if config.lora_rank:
        add_lora(editor.unet, config.lora_rank, config.seed)
    else:
        editor.unet.requires_grad_(True)
    editor.text_encoder.requires_grad_(config.train_text_encoder)
    if config.gradient_checkpointing:
        editor.unet.enable_gradient_checkpointing()


def trained_parameters(editor: Editor) -> list[torch.nn.Parameter]:
    """What requires gradients, in a fixed order."""
    return [parameter for parameter in editor.parameters() if parameter.requires_grad]


def attention(device: torch.device) -> AbstractContextManager:
    """On CPUs torch's fused attention takes two to three times as long as plain matrix products."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def learning_rate(config: TrainConfig, step: int) -> float:
    """Warm-up, then constant or a half cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    if config.lr_schedule == "constant":
        return config.learning_rate * warm
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * max(0.0, share))))


def opened(config: TrainConfig) -> Triplets:
    return open_data(config.data, config.rewards, config.photographs, config.seed)


def load_batches(config: TrainConfig, checkpoint: Checkpoint, accelerator: Accelerator) -> torch.utils.data.Dataset:
    size = config.batch_size // config.accumulation
    share = {"seed": config.seed, "rank": accelerator.process_index, "world_size": accelerator.num_processes}
    if config.cache is None:
        return StepBatches(opened(config), size, config.resolution, augment=config.augment, **share)
    folder = Path(config.cache)
    drawn = (config.seed, config.photographs) if config.data.startswith("miniature:") else None
    key = cache_key(config.data, config.rewards, drawn, config.resolution, checkpoint.vae, config.mixed_precision)
    with accelerator.main_process_first(), accelerator.autocast():
        if not open_cache(folder, key):
            limit = config.broken_limit
            build_cache(opened(config), checkpoint.vae, folder, config.resolution, key, config.workers, limit)
    return CachedBatches(folder, size, least_score=config.least_score, **share)


def load_texts(config: TrainConfig, checkpoint: Checkpoint, accelerator: Accelerator) -> TextStates:
    """The states of the cache's texts by this text encoder."""
    folder = Path(config.cache or "") / f"text-{weights_digest(checkpoint.text_encoder)[:16]}"
    with accelerator.main_process_first():
        if not folder.is_dir():
            build_text_states(checkpoint, cached_texts(Path(config.cache or "")), folder)
    return TextStates(folder)


def on_device(
    raw: dict, checkpoint: Checkpoint, texts: TextStates | None, config: TrainConfig, device: torch.device,
    schedule: DDPMScheduler,
) -> tuple[dict[str, Tensor], Draws]:  # fmt: skip
    """Latents, texts and random numbers of a batch from `StepBatches` or `CachedBatches`."""

    def states(some: list[str]) -> Tensor:
        return (texts.states(some) if texts else token_ids(checkpoint, some)).to(device)

    def pooled(some: list[str]) -> Tensor:
        return (texts.pooled(some) if texts else token_ids(checkpoint, some)).to(device)

    vae = checkpoint.vae
    if raw["edited"].ndim == 4:  # pictures
        with torch.no_grad():
            source = vae.encode(raw["source"].to(device)).latent_dist.mode()
            posterior = vae.encode(raw["edited"].to(device)).latent_dist
        mean, std = posterior.mean * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor
    else:
        source = raw["source"].to(device)
        mean, std = raw["edited"].to(device).unbind(1)
    shape, count = tuple(source.shape[1:]), schedule.config.num_train_timesteps
    draws = draw(config.seed, raw["positions"], shape, count, config.timestep_power)
    draws = Draws(*(getattr(draws, field.name).to(device) for field in dataclasses.fields(draws)))
    batch = {
        "source": source,
        "edited": mean + std * draws.posterior,
        "changed": changed_positions(source * vae.config.scaling_factor, mean),
        "text": states(raw["instructions"]),
        "empty_text": states([""]),
    }
    if config.stage == 2:
        if raw["scores"] is None:
            raise MRCError(f"{config.data} has no rewards, stage 2 needs them; give --rewards or use --stage 1")
        batch["scores"] = raw["scores"].to(device)
        batch["reward_text"] = pooled(raw["reward_texts"])
        batch["empty_reward"] = pooled([""])
    return batch, draws


def stop_on_nan(accelerator: Accelerator, out: Path, step: int, what: str, ids: list[str]) -> None:
    """Save the whole batch's ids and raise."""
    path = out / "not_finite.json"
    ids = gather_object(ids)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"step": step, "what": what, "ids": ids}) + "\n")
    accelerator.wait_for_everyone()
    raise MRCError(
        f"the {what} at step {step}; the batch's ids are in {path}. "
        "Look at those samples or give a lower --learning-rate, then --resume latest"
    )


def write_record(out: Path, config: TrainConfig, curve: list, broken: list[str]) -> None:
    """`training.json`: settings, versions, losses, seconds."""
    import accelerate
    import diffusers
    import transformers

    versions = {module.__name__: module.__version__ for module in (torch, diffusers, transformers, accelerate)}
    means = [[row[0], round(float(np.mean([r[1] for r in curve[i : i + 50]])), 5)]
             for i, row in enumerate(curve) if i % 50 == 0]  # fmt: skip
    record = {
        "config": config.record(),
        "versions": versions,
        "seconds": round(sum(row[2] for row in curve)),
        "loss_every_50_steps": means,
        "broken": broken,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
