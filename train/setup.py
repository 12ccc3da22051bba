"""What a run starts from: processes, checkpoint, trainable weights, optimizer."""

import dataclasses
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import nn

from ..core.errors import MRCError
from ..core.paths import snapshot
from ..engine.models import layout_folders, model_folder
from ..model.checkpoint import Checkpoint, load_checkpoint
from ..model.extend import add_reward_blocks, add_rewards, widen_input
from ..model.smartedit.folder import load_conditioning
from .config import TrainConfig
from .distill import Distillation, averaged, student_of
from .image_states import ImageStates
from .lora import add_lora
from .objective import Editor
from .sharding import shard
from .smartedit import SmartEditor
from .state import TrainState
from .texts import TextStates

TEXT_SHARE = 0.1  # of the learning rate, for a trained text encoder: at the full rate all texts become the same
# What stays zero where rewards enter by one way alone: the last layers of the other (`model.extend.add_rewards`)
SILENT = {"latents": ("add_embedding.linear_2", "text_linear2"), "timestep": ("proj_deal.proj_out",)}
CACHE_TIME = timedelta(hours=12)  # how long the other processes wait for the one that fills a cache


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last. `model` is `editor`, wrapped for several processes."""

    config: TrainConfig
    accelerator: Accelerator
    checkpoint: Checkpoint
    editor: Editor
    model: nn.Module
    noise_schedule: DDPMScheduler
    texts: TextStates | None
    image_states: ImageStates | None
    distillation: Distillation | None


def open_accelerator(config: TrainConfig) -> Accelerator:
    """accelerate's view of the processes and the device.

    Raises:
        MRCError: settings that these processes or this device cannot train with.
    """
    AcceleratorState._reset_state()  # an earlier run in the same process may have had another precision
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.accumulation,
            log_with=config.tracker or None,
            project_dir=config.out,
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
    if config.tracker and not accelerator.log_with:
        raise MRCError(f"tracker is {config.tracker!r}, which is not installed; install it, or give --tracker ''")
    if config.shard and processes == 1:
        raise MRCError("shard needs more than one process; start mrc-train under torchrun, or leave --shard out")
    return accelerator


def init_folder(config: TrainConfig) -> Path:
    """The checkpoint to start from, as a folder or file on this disk."""
    return snapshot(model_folder(config.init, "eager", options={"variant": config.variant}))


def starting_point(config: TrainConfig) -> Checkpoint:
    """The checkpoint to start from, with the input channels and reward modules that the stage needs."""
    layout = layout_folders({"variant": config.variant, "vae": config.vae, "base": config.base})
    checkpoint = load_checkpoint(init_folder(config), **layout)
    unet = checkpoint.unet
    if unet.embeds_guidance:
        raise MRCError(f"{config.init} is a distilled student; give the model that it was distilled from")
    if config.stage == "distill":
        return student_of(checkpoint, config)
    if unet.config.in_channels == unet.config.out_channels:
        unet = widen_input(unet)
    if config.stage == 1 and unet.rewards:
        raise MRCError(f"{config.init} has rewards already, stage 1 trains without; use --stage 2")
    if config.reward_only in SILENT and unet.rewards:
        raise MRCError(f"{config.init} has rewards already, by both ways; {config.reward_only} needs one of stage 1")
    if config.stage == 2 and not unet.rewards:
        torch.manual_seed(config.seed)
        unet = add_rewards(unet, config.reward_injection)
    elif config.stage == 2 and config.reward_injection == "blocks" and not unet.reward_blocks:
        torch.manual_seed(config.seed)
        unet = add_reward_blocks(unet)
    return dataclasses.replace(checkpoint, unet=unet)


def trainable_editor(checkpoint: Checkpoint, config: TrainConfig) -> Editor:
    """The checkpoint's U-Net and text encoder; what the settings train requires gradients."""
    editor = make_editor(checkpoint, config)
    editor.requires_grad_(False)
    if isinstance(editor, SmartEditor):
        editor.qformer.requires_grad_(config.train_qformer)
        editor.bim.requires_grad_(config.train_bim)
    if config.lora_rank:
        add_lora(editor.unet, config.lora_rank, config.seed)
    else:
        editor.unet.requires_grad_(True)
    editor.text_encoder.requires_grad_(config.train_text_encoder)
    for layer in SILENT.get(config.reward_only, ()):
        for parameter in editor.unet.get_submodule(layer).parameters():
            parameter.register_hook(torch.zeros_like)  # frozen weights crash as `arrange_weights` says
    if config.gradient_checkpointing:
        editor.unet.enable_gradient_checkpointing()  # type: ignore[operator]  # a method of diffusers
    return editor


def make_editor(checkpoint: Checkpoint, config: TrainConfig) -> Editor:
    """An `Editor`, for a SmartEdit folder a `SmartEditor`.

    Raises:
        MRCError: settings that are for SmartEdit alone, or SmartEdit without a cache.
    """
    if checkpoint.unet.feature_bias:
        if not config.cache:
            raise MRCError("SmartEdit trains on cached states of its language model; give --cache and --no-augment")
        return SmartEditor(checkpoint.unet, checkpoint.text_encoder, *load_conditioning(init_folder(config)))
    for name in ("train_qformer", "train_bim"):
        if getattr(config, name):
            raise MRCError(f"{name} is set, and {config.init} is no SmartEdit folder; leave it out")
    return Editor(checkpoint.unet, checkpoint.text_encoder)


def trained_parameters(editor: Editor) -> list[nn.Parameter]:
    """What requires gradients, in a fixed order."""
    return [parameter for parameter in editor.parameters() if parameter.requires_grad]


def arrange_weights(editor: Editor, config: TrainConfig, device: torch.device) -> None:
    """Share the weights out over the processes, or lay them out channels last."""
    if config.shard:
        shard(editor, device)
    elif not config.lora_rank:  # with frozen weights torch 2.13's backward of this layout crashes on CPUs
        editor.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types it not


def new_state(editor: Editor, config: TrainConfig, distillation: Distillation | None = None) -> TrainState:
    """The state before the first step: AdamW and the average of the trained weights.

    In distillation the average is the target's own weights.
    """
    trained = trained_parameters(editor)
    groups = [
        {"params": [p for p in part.parameters() if p.requires_grad], "share": share}
        for name, part in editor.named_children()
        for share in (TEXT_SHARE if name == "text_encoder" else 1.0,)
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        config.learning_rate,
        (config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )
    average = EMAModel(trained, decay=config.ema_decay)  # decay at step s as released: (1 + s) / (10 + s), at most this
    if distillation:
        average.shadow_params = averaged(editor, distillation.target)
    return TrainState(trained, average, optimizer)


def start_run(
    config: TrainConfig, accelerator: Accelerator, checkpoint: Checkpoint, editor: Editor, texts: TextStates | None,
    image_states: ImageStates | None, state: TrainState, distillation: Distillation | None,
) -> Run:  # fmt: skip
    """Hand model and optimizer to accelerate (a sharded model stays as it is) and open the tracker."""
    model: nn.Module
    if config.shard:
        model, state.optimizer = editor, accelerator.prepare(state.optimizer)
    else:
        model, state.optimizer = accelerator.prepare(editor, state.optimizer)
    if config.tracker:
        settings = {name: value for name, value in config.record().items() if value is not None}
        accelerator.init_trackers("mrc", config=settings)
    noise_schedule = DDPMScheduler.from_config(checkpoint.scheduler.config)
    return Run(config, accelerator, checkpoint, editor, model, noise_schedule, texts, image_states, distillation)
