"""JSON values as dataclasses: the annotations of the fields say which values fit."""

import dataclasses
import math
import reprlib
import types
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import MRCError

Record = TypeVar("Record")
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Between:
    """Bounds of a number, both of which it may reach: `Annotated[int, Between(1, 8)]`."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        return f"from {self.least:g} " + ("up" if self.most == math.inf else f"to {self.most:g}")


def parse(kind: type[Record], value: object, name: str) -> Record:
    """The dataclass `kind`, whose fields are the entries of the JSON object `value`, dataclasses in it too.

    Args:
        name: of the value, for messages.

    Raises:
        MRCError: an entry that is missing, unknown, of another type or out of its bounds.
    """
    if not isinstance(value, dict):
        raise mismatch(name, value, "an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # a dataclass
    if unknown := sorted(value.keys() - fields.keys()):
        raise MRCError(f"{name} has {reprlib.repr(unknown[0])}; its entries are {', '.join(fields)}")
    needed = {field.name for field in fields.values() if is_needed(field)}
    if missing := sorted(needed - value.keys()):
        raise MRCError(f"{name} lacks {', '.join(missing)}")
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{key: fit(hints[key], entry, f"{name}: {key}") for key, entry in value.items()})


def is_needed(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def fit(hint: Any, value: Any, name: str) -> Any:
    """`value`, if it is what the annotation `hint` says; a whole number is a float too.

    Raises:
        MRCError: it is not.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = fit(arguments[0], value, name)
        for bounds in arguments[1:]:
            if isinstance(bounds, Between) and value is not None and not bounds.least <= value <= bounds.most:
                raise mismatch(name, value, f"a number {bounds}")
        return value
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        kinds = [each for each in arguments if each is not types.NoneType]
        return fit(next((each for each in kinds if each is type(value)), kinds[0]), value, name)
    if dataclasses.is_dataclass(hint):
        return parse(hint, value, name)  # type: ignore[arg-type]  # a class, not an instance
    if origin is list:
        return [fit(arguments[0], each, f"{name}[{i}]") for i, each in enumerate(of_type(list, value, name))]
    if origin is dict:
        return {key: fit(arguments[1], each, f"{name}.{key}") for key, each in of_type(dict, value, name).items()}
    return of_type(hint, value, name)


def of_type(kind: type, value: Any, name: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float:
        if is_number and math.isfinite(value):
            return float(value)
    elif isinstance(value, kind) and (kind is not int or is_number):
        return value
    raise mismatch(name, value, KINDS[kind])


KINDS = {
    bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", list: "a list",
    dict: "an object",
}  # fmt: skip


def mismatch(name: str, value: object, expected: str) -> MRCError:
    return MRCError(f"{name} is {reprlib.repr(value)}, not {expected}")
