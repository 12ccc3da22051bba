"""A look into an ONNX file without the `onnx` package: does each operator run once?

A graph from others could loop for ever inside the runtime, where nothing can stop it. The graphs that `mrc-export`
writes are plain lists of operators: no loops, branches or functions.
"""

from collections.abc import Iterator
from pathlib import Path

from ..core.errors import MRCError

DOMAINS = (b"", b"ai.onnx", b"com.microsoft")  # of operators that the runtimes have themselves
# Field numbers of onnx.proto
GRAPH, FUNCTIONS = 7, 25  # of a ModelProto
NODE = 1  # of a GraphProto
OPERATOR, ATTRIBUTE, DOMAIN = 4, 5, 7  # of a NodeProto
INNER = (6, 11)  # of an AttributeProto: a graph, several graphs
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


def refusal(path: Path, what: str) -> MRCError:
    return MRCError(f"{path} has {what[:200]!r}, which mrc-export never writes; do not trust this folder, export again")


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field of a protobuf message; the content of numbers is left out."""
    place = 0
    while place < len(message):
        key, place = varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == LENGTH:
            length, place = varint(message, place)
            end = place + length
        elif kind == VARINT:
            _, end = varint(message, place)
            place = end
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
