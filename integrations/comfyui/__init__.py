"""ComfyUI nodes: `MRCModel` opens a model, `MRCEdit` edits images with rewards (docs/comfyui.md).

ComfyUI loads this folder from its `custom_nodes`. Nothing here is relative to the package, which is installed apart.
"""

from typing import Any

import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import ComfyExtension, io

from mrc_edit import Engine
from mrc_edit.engine.backends import BACKENDS
from mrc_edit.engine.tiers import TIERS

PRECISIONS = ("own", "float32", "tf32", "bfloat16", "float16", "int8")  # own: the backend's choice
Model = io.Custom("MRC_MODEL")


def score(name: str, tooltip: str) -> Any:
    return io.Float.Input(name, default=5.0, min=0.0, max=5.0, step=0.5, tooltip=tooltip)


class MRCModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="MRCModel",
            display_name="MRC Model",
            category="MRC",
            description="Opens an MRC or InstructPix2Pix model.",
            inputs=[
                io.String.Input(
                    "folder", default="mini", tooltip="checkpoint or export folder, mini, or OWNER/NAME on the hub"
                ),
                io.Combo.Input("backend", options=["auto", *BACKENDS], tooltip="auto: what fits the folder"),
                io.Combo.Input("precision", options=list(PRECISIONS), tooltip="own: the backend's choice"),
                io.Combo.Input("tier", options=list(TIERS), tooltip="fast and turbo compute less and lose quality"),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, folder: str, backend: str, precision: str, tier: str) -> Any:
        chosen = None if precision == "own" else precision
        return io.NodeOutput(Engine.from_pretrained(folder, backend, precision=chosen, tier=tier))


class MRCEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        own = "0: the model's own"
        scale: dict[str, Any] = {"default": 0.0, "min": 0.0, "max": 30.0, "step": 0.1, "tooltip": f"{own}; else from 1"}
        return io.Schema(
            node_id="MRCEdit",
            display_name="MRC Edit",
            category="MRC",
            description="Edits each image of a batch by an instruction.",
            inputs=[
                Model.Input("model"),
                io.Image.Input("image"),
                io.String.Input("instruction", multiline=True, tooltip="what to change"),
                score("following", "how well the edit is to follow the instruction"),
                score("preserving", "how well it is to keep all else"),
                score("quality", "how good the image is to look"),
                io.String.Input("reward_text", default="", tooltip="faults to ask for; empty: none"),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip=own),
                io.Float.Input("guidance_scale", **scale),
                io.Float.Input("image_guidance_scale", **scale),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(
        cls, model: Engine, image: torch.Tensor, instruction: str, following: float, preserving: float, quality: float,
        reward_text: str, steps: int, guidance_scale: float, image_guidance_scale: float, seed: int,
    ) -> Any:  # fmt: skip
        """Images `[B, H, W, C]` float32 in 0…1 → edits `[B, h, w, 3]` of the same kind; each image has the seed."""
        progress = ProgressBar(len(image) * (steps or model.backend.defaults.num_inference_steps))

        def on_step(*state: Any) -> None:
            throw_exception_if_processing_interrupted()
            progress.update(1)

        edits = [
            model.edit(
                one.clamp(0, 1),  # other nodes overshoot a little
                instruction,
                reward_scores=(following, preserving, quality),
                reward_text=reward_text or None,
                num_inference_steps=steps or None,
                guidance_scale=guidance_scale or None,
                image_guidance_scale=image_guidance_scale or None,
                seed=seed,
                output_type="pt",
                callback_on_step_end=on_step,
            ).images
            for one in image
        ]
        return io.NodeOutput(torch.cat(edits).permute(0, 2, 3, 1).contiguous())


class MRCExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [MRCModel, MRCEdit]


async def comfy_entrypoint() -> MRCExtension:
    return MRCExtension()
