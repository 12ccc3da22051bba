"""Models of other families, refused by their names: their networks are not the ones that are computed here."""

from collections.abc import Collection
from pathlib import Path

from ..core.errors import MRCError
from ..core.schema import JsonObject

OURS = "this package edits with InstructPix2Pix and MRC models of Stable Diffusion 1.x and 2.x"
PIPELINES = {"StableDiffusionXL": "SDXL", "StableDiffusion3": "Stable Diffusion 3", "Flux": "FLUX"}
# What the names of tensors in a single file tell
FILES = {
    "conditioner.embedders.": "an SDXL model",
    "model.diffusion_model.joint_blocks.": "a Stable Diffusion 3 model",
    "model.diffusion_model.double_blocks.": "a FLUX model",
    "double_blocks.": "a FLUX model",
    "lora_": "a LoRA, which changes a model and is none",
    "control_model.": "a ControlNet",
    "down_blocks.": "the U-Net alone, without text encoder and VAE",
    "encoder.": "a VAE alone; give it as vae beside a model",
    "first_stage_model.": "a VAE alone; give it as vae beside a model",
}


def check_pipeline(index: JsonObject, folder: Path) -> None:
    """Refuse a `model_index.json` of another family's pipeline.

    Raises:
        MRCError: the name of its class begins otherwise than those of the family.
    """
    name = index.get("_class_name", "StableDiffusion")
    other = next((family for start, family in PIPELINES.items() if str(name).startswith(start)), None)
    if other is None and str(name).startswith("StableDiffusion"):
        return
    raise MRCError(f"{folder} holds a model of {other or 'another family'} ({name!r:.60}); {OURS}")


def check_unet_family(config: JsonObject, keys: Collection[str], folder: Path) -> None:
    """Refuse SDXL's U-Net, whose `add_embedding` is of sizes and crops, not of rewards."""
    sizes = "add_embedding.linear_1.weight" in keys and not any(key.startswith(("text_linear", "ca.")) for key in keys)
    if sizes or config.get("addition_embed_type") == "text_time":
        raise MRCError(f"{folder} is the U-Net of an SDXL model; {OURS}")


def check_file(names: Collection[str], path: Path) -> None:
    """Refuse a single file that holds no model of the family."""
    for start, kind in FILES.items():
        whole = "model.diffusion_model.input_blocks.0.0.weight" in names and not start.startswith(("cond", "model."))
        if not whole and any(name.startswith(start) for name in names):
            raise MRCError(f"{path} is {kind}; {OURS}")
    if "model.diffusion_model.input_blocks.0.0.weight" not in names:
        raise MRCError(f"{path} holds no U-Net (model.diffusion_model.…); {OURS}")
