"""The fields of a request, for multipart and JSON: OpenAI's, and those of `Engine.edit` under their own names."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..engine.sampling import SAMPLERS
from ..engine.text import MAX_CHARACTERS
from .errors import Refused

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Scores = Annotated[list[float], Field(min_length=3, max_length=3)]
Format = Literal["png", "jpeg", "webp"]
# OpenAI's fields that this server does not have, and values of others
UNSUPPORTED = frozenset({"mask", "markup", "input_fidelity", "complexity", "frame_count", "frame_duration_ms"})
UNSUPPORTED_VALUES = {
    "background": {"transparent"},
    "output_format": {"gif", "svg"},
    "quality": {"low", "medium", "high", "xhigh", "max"},
    "response_format": {"url"},
}


class Fields(BaseModel):
    """Everything but the image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Text = Field(description="What to change.")
    model: str | None = Field(None, description="Must be the id that /v1/models lists.")
    n: int = Field(1, ge=1, le=10, description="Edits of the image, with the seeds seed, seed + 1, …")
    size: str = Field(
        "auto", pattern=r"^(auto|[1-9]\d{0,3}x[1-9]\d{0,3})$", description="auto, or WIDTHxHEIGHT: crops the image."
    )
    output_format: Format = "png"
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of jpeg and webp.")
    response_format: Literal["b64_json"] = "b64_json"
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3, description="Rough pictures on the way, with stream.")
    quality: Literal["auto", "standard"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    user: str | None = Field(None, description="Accepted; nothing is done with it.")
    safety_identifier: str | None = Field(None, description="Accepted; nothing is done with it.")

    reward_scores: Scores | None = Field(None, description="Following, preserving, quality, each 0 to 5.")
    reward_text: Text | None = Field(None, description='Faults to ask for, three texts joined by "; ".')
    reward_guidance: Scores | dict[Literal["image", "empty"], Scores] | None = Field(
        None, description="Scores to steer away from."
    )
    reward_guidance_text: Text | None = None
    negative_prompt: Text | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="Drawn, and reported, where none is given.")
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=1)
    image_guidance_scale: float | None = Field(None, ge=1)
    scheduler: str | None = Field(None, json_schema_extra={"enum": [*SAMPLERS, None]})
    resolution: int | None = Field(None, ge=0, le=4096, description="Pixels of the longer side, about; 0 keeps it.")
    fit: Literal["crop", "pad", "stretch"] | None = None
    keep_size: bool | None = None
    tier: Literal["exact", "fast", "turbo"] | None = Field(None, description="The server's own where none is given.")


class ImageReference(BaseModel):
    """An image inside a JSON body."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_url: str = Field(description="A data URL: data:image/png;base64,…", pattern="^data:")


class JsonBody(Fields):
    """The JSON form of a request."""

    images: Annotated[list[ImageReference], Field(min_length=1, max_length=1)]


def check_supported(given: dict) -> None:
    """Refuse by name what OpenAI's interface has and this server has not; its absence would change the edit.

    Raises:
        Refused: there is such a field or value.
    """
    for name, value in given.items():
        if name in UNSUPPORTED and value is not None:
            raise Refused("unsupported_parameter", f"{name} is not supported here; leave it out", name)
        if isinstance(value, str) and value in UNSUPPORTED_VALUES.get(name, ()):
            raise Refused("unsupported_parameter", f"{name}={value} is not supported here; leave {name} out", name)


def refused(error: ValidationError) -> Refused:
    """The first thing that is wrong, as an error with the field's name. It repeats no value: that may be a prompt."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return Refused("missing_required_parameter", f"{name} is missing; give it", name)
    if first["type"] == "extra_forbidden":
        return Refused("unknown_parameter", f"{name} is no parameter of this server; see /openapi.json", name)
    if first["type"] == "json_invalid":
        return Refused("invalid_body", f"the body is not JSON ({first['msg']}); send a JSON object")
    return Refused("invalid_value", f"{name or 'the body'}: {first['msg']}", name)
