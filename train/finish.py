"""The end of a run: the trained checkpoint and its record."""

import dataclasses
from functools import partial
from pathlib import Path

import accelerate
import diffusers
import torch
import transformers

from ..core.files import anything, write_json
from ..model.checkpoint import save_checkpoint
from ..model.smartedit.trained import save_conditioning
from .config import TrainConfig
from .lora import LORA_FILE, merge_lora, save_lora
from .objective import Editor
from .report import write_report
from .run_folder import check_own
from .setup import Run, init_folder, starting_point, trainable_editor, trained_parameters
from .sharding import gathered_on_first
from .smartedit import SmartEditor
from .state import TrainState

RECORD_EVERY = 50  # steps that one number of the recorded loss curve averages


def write_checkpoint(run: Run, state: TrainState, overwrite: bool) -> None:
    """Write `training.json`, `report.html` and last `checkpoint`: averaged weights in the released layout.

    With low-rank updates they are in a LoRA file, too.

    All processes must call it; the first one writes. With `overwrite` any folder `checkpoint` is replaced.
    """
    averages = gathered_on_first(enumerate(state.average.shadow_params), run.accelerator.is_main_process)
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    if not run.accelerator.is_main_process:
        return
    config, checkpoint, editor, trained = run.config, run.checkpoint, run.editor, state.trained
    if config.shard:  # whole modules again
        checkpoint = starting_point(config)
        editor = trainable_editor(checkpoint, config)
        trained = trained_parameters(editor)
    with torch.no_grad():
        for parameter, tensor in zip(trained, averages.values(), strict=True):
            parameter.copy_(tensor)
    out = Path(config.out)
    if config.lora_rank:
        save_lora(checkpoint, out / LORA_FILE)
        merge_lora(checkpoint.unet)
    elif overwrite:
        (out / LORA_FILE).unlink(missing_ok=True)  # of the run that this one replaces
    write_json(out / "training.json", training_record(run, state))
    write_report(out)
    finished = dataclasses.replace(checkpoint, unet=checkpoint.unet.eval(), text_encoder=checkpoint.text_encoder.eval())
    check = anything if overwrite else check_own
    save_checkpoint(
        finished, out / "checkpoint", check, partial(save_more, config, editor)
    )  # last: the run is finished then


def save_more(config: TrainConfig, editor: Editor, folder: Path) -> None:
    """Of SmartEdit also what reads image and instruction."""
    if isinstance(editor, SmartEditor):
        save_conditioning(init_folder(config), folder, editor.qformer, editor.bim)


def training_record(run: Run, state: TrainState) -> dict[str, object]:
    """Settings, versions, losses, seconds, broken samples, number of resized ones."""
    libraries = (torch, diffusers, transformers, accelerate)
    return {
        "config": run.config.record(),
        "versions": {module.__name__: module.__version__ for module in libraries},
        "seconds": round(sum(seconds for _, _, seconds in state.curve)),
        "loss_every_50_steps": state.mean_losses(RECORD_EVERY),
        "broken": sorted(state.broken),
        "resized": state.resized,
    }
