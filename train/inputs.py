"""A run's inputs: its data set or cache, its cached texts, and each batch on the device."""

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..core.errors import MRCError
from ..core.files import make_once
from ..model.checkpoint import Checkpoint
from ..model.pipeline import token_ids
from ..model.smartedit.trained import frozen_digest
from .cache import CachedBatches, build_cache, cache_key, cached_texts, open_cache, read_texts, weights_digest
from .config import TrainConfig
from .data import Triplets, open_data
from .data.batches import LoadedBatch, StepBatches
from .data.stream import Stream, StreamBatches, open_stream
from .image_states import ImageStates, build_image_states, is_whole
from .objective import HIDDEN_SCORES, Batch, Draws, RewardBatch, changed_positions, draw
from .setup import Run, init_folder
from .smartedit import reader
from .texts import TextStates, build_text_states

SHOWN = 32  # first samples of a stream, of which pictures of edits take those that open


def open_data_set(config: TrainConfig) -> Triplets:
    """The triplets that the settings name."""
    return open_data(config.data, config.rewards, config.photographs, config.world_seed, config.columns)


def open_config_stream(config: TrainConfig) -> Stream | None:
    """The stream that the settings name; None for data on this disk.

    Raises:
        MRCError: settings that a stream does not have, or what `open_stream` raises.
    """
    stream = open_stream(config.data, config.columns)
    for name in ("cache", "rewards"):
        if stream and (value := getattr(config, name)) is not None:
            raise MRCError(f"--{name} is {value}, but {config.data} is a stream; leave it out, or download the data")
    return stream


def samples_to_show(config: TrainConfig) -> Triplets:
    """The data's first samples, for pictures of edits."""
    stream = open_config_stream(config)
    return open_data_set(config) if stream is None else stream.head(SHOWN)


def load_batches(config: TrainConfig, checkpoint: Checkpoint, accelerator: Accelerator) -> StepBatches | CachedBatches:
    """This process's share of every batch; with `cache` from cached latents, which are computed if they are missing."""
    size = config.batch_size // config.accumulation
    rank, world_size = accelerator.process_index, accelerator.num_processes
    if stream := open_config_stream(config):
        return StreamBatches(stream, size, config.resolution, config.seed, rank, world_size, config.augment)
    if config.cache is None:
        triplets = open_data_set(config)
        return StepBatches(triplets, size, config.resolution, config.seed, rank, world_size, config.augment)
    folder = Path(config.cache)
    drawn = (config.world_seed, config.photographs) if config.data.startswith("miniature:") else None
    key = cache_key(config.data, config.rewards, drawn, config.resolution, checkpoint.vae)
    if config.columns is not None:
        key["columns"] = config.columns

    def build() -> None:
        limit = config.broken_limit
        build_cache(open_data_set(config), checkpoint.vae, folder, config.resolution, key, config.workers, limit)

    with accelerator.main_process_first():
        make_once(folder, lambda: open_cache(folder, key), build)
    states = load_image_states(config, accelerator) if checkpoint.unet.feature_bias else None
    return CachedBatches(folder, size, config.seed, rank, world_size, config.least_score, states)


def load_image_states(config: TrainConfig, accelerator: Accelerator) -> ImageStates:
    """What SmartEdit's language model and CLIP give for the cache's samples, computed if it is missing."""
    assert config.cache is not None
    ids = read_texts(Path(config.cache))["id"]
    init = init_folder(config)
    folder = Path(config.cache) / f"image-{frozen_digest(init)[:16]}"

    def build() -> None:
        encode = reader(init, accelerator.device)
        build_image_states(encode, open_data_set(config), ids, folder, config.resolution)

    with accelerator.main_process_first():
        make_once(folder, lambda: is_whole(folder, len(ids)), build)
    return ImageStates(folder, len(ids))


def load_texts(config: TrainConfig, checkpoint: Checkpoint, accelerator: Accelerator) -> TextStates | None:
    """The states of the cache's texts; None without a cache, or where the text encoder is trained."""
    if config.cache is None or config.train_text_encoder:
        return None
    folder = Path(config.cache) / f"text-{weights_digest(checkpoint.text_encoder)[:16]}"
    with accelerator.main_process_first():
        make_once(folder, folder.is_dir, lambda: build_text_states(checkpoint, cached_texts(folder.parent), folder))
    return TextStates(folder)


def to_device(run: Run, loaded: LoadedBatch) -> tuple[Batch, Draws]:
    """Latents, texts and random numbers of a batch.

    Raises:
        MRCError: a model with rewards on data without.
    """
    config, device = run.config, run.accelerator.device
    scale: float = run.checkpoint.vae.config.scaling_factor
    source, mean, std = latents(run, loaded)
    shape, timesteps = tuple(source.shape[1:]), run.noise_schedule.config.num_train_timesteps
    draws = draw(config.seed, loaded["positions"], shape, timesteps, config.timestep_power)
    draws = Draws(*(getattr(draws, field.name).to(device) for field in dataclasses.fields(draws)))
    batch = Batch(
        source=source,
        edited=mean + std * draws.posterior,
        changed=changed_positions(source * scale, mean),
        text=loaded["states"].to(device) if "states" in loaded else text_input(run, loaded["instructions"]),
        empty_text=text_input(run, [""]),
        reward=reward_batch(run, loaded) if run.checkpoint.unet.rewards else None,
        features=loaded["features"].to(device) if "features" in loaded else None,
    )
    return batch, draws


def latents(run: Run, loaded: LoadedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Source latents, unscaled; mean and standard deviation of the edited latents, scaled; each `[B, Z, h, w]`."""
    vae, device = run.checkpoint.vae, run.accelerator.device
    source, edited = loaded["source"].to(device), loaded["edited"].to(device)
    if edited.ndim == 5:  # from a cache
        mean, std = edited.unbind(1)
        return source, mean, std
    with torch.no_grad():
        source = vae.encode(source).latent_dist.mode()
        posterior = vae.encode(edited).latent_dist
    return source, posterior.mean * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor


def text_input(run: Run, texts: list[str]) -> Tensor:
    """What `Editor` takes: cached states `[B, L, D]`, or token ids `[B, L]`."""
    inputs = run.texts.states(texts) if run.texts else token_ids(run.checkpoint, texts)
    return inputs.to(run.accelerator.device)


def reward_batch(run: Run, loaded: LoadedBatch) -> RewardBatch:
    """Scores and reward texts of a batch, texts pooled `[B, D]` or as token ids `[B, L]`.

    Raises:
        MRCError: the data has no rewards.
    """
    scores, texts, device = loaded["scores"], loaded["reward_texts"], run.accelerator.device
    if scores is None or texts is None:
        raise MRCError(f"{run.config.data} has no rewards, and this model needs them; give --rewards or use --stage 1")
    if run.config.reward_only == "text":
        scores = torch.tensor(HIDDEN_SCORES).expand_as(scores)
    if run.config.reward_only == "scores":
        texts = [""] * len(texts)

    def pooled(some: list[str]) -> Tensor:
        return (run.texts.pooled(some) if run.texts else token_ids(run.checkpoint, some)).to(device)

    return RewardBatch(scores.to(device), pooled(texts), pooled([""]))
