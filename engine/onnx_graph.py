"""A look into an ONNX file without the `onnx` package: what goes in and out, and does each operator run once?

A graph from others could loop for ever inside the runtime, where nothing can stop it. The graphs that `mrc-export`
writes are plain lists of operators: no loops, branches or functions.
"""

from collections.abc import Iterator
from pathlib import Path

from ..core.errors import MRCError

DOMAINS = (b"", b"ai.onnx", b"com.microsoft")  # of operators that the runtimes have themselves
# Field numbers of onnx.proto
GRAPH, FUNCTIONS = 7, 25  # of a ModelProto
NODE, INPUT, OUTPUT = 1, 11, 12  # of a GraphProto
NAME, TYPE = 1, 2  # of a ValueInfoProto
TENSOR, SHAPE, DIM, DIM_VALUE = 1, 2, 1, 1  # of a TypeProto, its tensor, the shape, a dimension
OPERATOR, ATTRIBUTE, DOMAIN = 4, 5, 7  # of a NodeProto
INNER = (6, 11)  # of an AttributeProto: a graph, several graphs
Shape = list[int | None]  # None for a dimension that is open
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # wire types of protobuf


def check_graph(model: bytes, path: Path) -> None:
    """Refuse a graph with other things than operators of ONNX, each of which runs once.

    Raises:
        MRCError: it has some, or is no ONNX file.
    """
    try:
        whole = list(fields(memoryview(model)))
        graphs = [value for number, value in whole if number == GRAPH]
        if any(number == FUNCTIONS for number, _ in whole):
            raise refusal(path, "functions")
        nodes = [list(fields(node)) for graph in graphs for number, node in fields(graph) if number == NODE]
        if not nodes:
            raise MRCError(f"{path} is no ONNX graph, it has no operators; run mrc-export again")
        for node in nodes:
            name = next((bytes(value).decode() for number, value in node if number == OPERATOR), "")
            for number, value in node:
                if number == DOMAIN and bytes(value) not in DOMAINS:
                    raise refusal(path, f"the operator {bytes(value).decode()}.{name}")
                if number == ATTRIBUTE and any(inner in INNER for inner, _ in fields(value)):
                    raise refusal(path, f"the operator {name}, with a graph inside")
    except (IndexError, ValueError) as error:
        if isinstance(error, MRCError):
            raise
        raise MRCError(f"{path} is no ONNX graph ({error}); run mrc-export again") from None


def ports(model: bytes, path: Path) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Shapes of a graph's inputs and outputs by name.

    Raises:
        MRCError: it is no ONNX file.
    """
    try:
        values = [field for graph in nested(memoryview(model), GRAPH) for field in fields(graph)]
        inputs, outputs = (dict(port(value) for number, value in values if number == side) for side in (INPUT, OUTPUT))
    except (IndexError, ValueError) as error:
        raise MRCError(f"{path} is no ONNX graph ({error}); run mrc-export again") from None
    return inputs, outputs


def port(value: memoryview) -> tuple[str, Shape]:
    name = b"".join(nested(value, NAME)).decode()
    shapes = nested(value, TYPE, TENSOR, SHAPE)
    dims = [dim for shape in shapes for dim in nested(shape, DIM)]
    return name, [next((varint(number, 0)[0] for number in nested(dim, DIM_VALUE)), None) for dim in dims]


def nested(message: memoryview, *path: int) -> list[memoryview]:
    """All that is found in a message by the numbers of fields, one inside the other."""
    found = [message]
    for wanted in path:
        found = [value for outer in found for number, value in fields(outer) if number == wanted]
    return found


def refusal(path: Path, what: str) -> MRCError:
    return MRCError(f"{path} has {what[:200]!r}, which mrc-export never writes; do not trust this folder, export again")


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field of a protobuf message; of a number the bytes of its `varint`."""
    place = 0
    while place < len(message):
        key, place = varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == LENGTH:
            length, place = varint(message, place)
            end = place + length
        elif kind == VARINT:
            _, end = varint(message, place)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            end = place = place + (8 if kind == EIGHT_BYTES else 4)
        else:
            raise ValueError(f"wire type {kind}")
        if end > len(message):
            raise ValueError("it is truncated")
        yield number, message[place:end]
        place = end


def varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of at most 64 bits, and where it ends."""
    value = 0
    for i in range(10):
        byte = message[place + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, place + i + 1
    raise ValueError("a number of more than 64 bits")
