"""The arguments of diffusers' pipeline: what it would ignore or take for something else is refused or read."""

import inspect
from typing import Any

from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image

from ..core.errors import MRCError
from ..engine.images import load_image


def refuse_unknown(options: dict[str, Any]) -> None:
    """Refuse what diffusers' pipeline would ignore, and what this U-Net does."""
    known = inspect.signature(StableDiffusionInstructPix2PixPipeline.__call__).parameters
    if unknown := sorted(options.keys() - known.keys() | options.keys() & {"self", "kwargs"}):
        raise MRCError(f"the pipeline has no argument {', '.join(unknown)}; check the name", argument=unknown[0])
    for name in ("cross_attention_kwargs", "ip_adapter_image", "ip_adapter_image_embeds"):
        if options.get(name) is not None:
            advice = "set_adapters(names, scales) scales LoRA" if name.startswith("cross") else "it has no IP adapters"
            raise MRCError(f"{name} does not reach this pipeline's U-Net: {advice}; leave it out", argument=name)


def count_images(image: Any) -> int:
    images = image if isinstance(image, list) else [image]
    return sum(len(one) if getattr(one, "ndim", 0) == 4 else 1 for one in images)


def check_pairs(images: int, prompts: int, times: int) -> None:
    """Refuse what diffusers would pair wrongly, since it repeats images and prompts in different orders, or fail at."""
    if images > 1 and (images != prompts or times != 1):
        raise MRCError(
            f"{images} images, {prompts} prompts and num_images_per_prompt={times} cannot be paired; give one prompt "
            "for each image and num_images_per_prompt=1, or one image",
            argument="image",
        )


def rgb(image: Any) -> Any:
    """Pillow images as RGB; all else as it is. Of four channels diffusers would take them as latents."""
    if isinstance(image, list):
        return [rgb(one) for one in image]
    return load_image(image) if isinstance(image, Image.Image) else image
