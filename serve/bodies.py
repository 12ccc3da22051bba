"""The two forms of a request's body, multipart and JSON, as its fields and the bytes of its image."""

import base64
import binascii
import json
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from .errors import Refused
from .fields import Fields, JsonBody, check_supported, refused
from .limits import JSON, type_of

NAME = re.compile(r"(\w{1,64})((?:\[\w{0,64}\]){0,2})")  # seed, reward_scores[], reward_guidance[image][]
SCORES = frozenset({"reward_scores", "reward_guidance"})  # "5,4.5,5" is taken too
MAX_TEXT = 256 * 1024  # bytes of a text field
MAX_PARTS = 64
Model = TypeVar("Model", bound=Fields)


async def read_body(request: Request) -> tuple[Fields, bytes]:
    """The fields of a request and the bytes of its image.

    Raises:
        Refused: no such body, or a field that cannot be used.
    """
    if type_of(request.headers) == JSON:
        return from_json(await request.body())
    form = await request.form(max_files=2, max_fields=MAX_PARTS, max_part_size=MAX_TEXT)
    try:
        return await from_form(form.multi_items())
    finally:
        await form.close()


def from_json(body: bytes) -> tuple[JsonBody, bytes]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused("invalid_body", f"the body is not JSON ({error}); send a JSON object") from None
    if not isinstance(given, dict):
        raise Refused("invalid_body", "the body is no JSON object; send one")
    check_supported(given)
    for image in given["images"] if isinstance(given.get("images"), list) else ():
        if isinstance(image, dict) and (
            "file_id" in image or not str(image.get("image_url", "data:")).startswith("data:")
        ):
            raise Refused(
                "unsupported_parameter", "images: this server fetches nothing; give image_url as a data URL", "images"
            )
    fields = validated(JsonBody, without_null(given), strict=True)
    _, comma, data = fields.images[0].image_url.partition(";base64,")
    try:
        return fields, base64.b64decode(data, validate=True) if comma else b""
    except (binascii.Error, ValueError):
        raise Refused("invalid_image", "images: the data URL is not base64", "image") from None


def without_null(given: dict) -> dict:
    """A field of null is one that is not given."""
    return {name: value for name, value in given.items() if value is not None}


async def from_form(parts: Iterable[tuple[str, str | UploadFile]]) -> tuple[Fields, bytes]:
    given: dict[str, Any] = {}
    files: list[UploadFile] = []
    for key, value in parts:
        name, path = split_name(key)
        if name == "image" and isinstance(value, UploadFile):
            files.append(value)
        elif isinstance(value, UploadFile):
            given[name] = ""  # refused below by its name: no other field is a file
            check_supported(given)
            raise Refused("unknown_parameter", f"{name} is no file; the image is named image", name)
        else:
            put(given, name, path, value)
    check_supported(given)
    if len(files) > 1 or "image" in given:
        raise Refused("invalid_value", "give one image, as a file", "image")
    if not files:
        raise Refused("missing_required_parameter", "image is missing; give a file", "image")
    for name in SCORES & given.keys():
        if isinstance(given[name], str):
            given[name] = given[name].split(",")
    return validated(Fields, given), await files[0].read()


def split_name(key: str) -> tuple[str, list[str]]:
    """`reward_guidance[image][]` → `reward_guidance` and `["image", ""]`."""
    if (found := NAME.fullmatch(key)) is None:
        raise Refused("unknown_parameter", f"{key[:64]!r} is no parameter of this server; see /openapi.json", key[:64])
    return found[1], [part.rstrip("]") for part in found[2].split("[")[1:]]


def put(given: dict[str, Any], name: str, path: list[str], value: str) -> None:
    """Set a field, add to a list (`[]`), or set a list's or dictionary's entry."""
    place, key = given, name
    for inner in path:
        if inner:
            place, key = place.setdefault(key, {}), inner
            if not isinstance(place, dict):
                raise Refused("invalid_value", f"{name} is given in two forms; give one", name)
    if path and not path[-1]:
        values = place.setdefault(key, [])
        if not isinstance(values, list):
            raise Refused("invalid_value", f"{name} is given in two forms; give one", name)
        values.append(value)
    elif key in place:
        raise Refused("invalid_value", f"{name} is given twice; give it once", name)
    else:
        place[key] = value


def validated(model: type[Model], given: dict, strict: bool = False) -> Model:
    try:
        return model.model_validate(given, strict=strict)
    except ValidationError as error:
        raise refused(error) from None
