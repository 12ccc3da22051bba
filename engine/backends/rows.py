"""Rows of a value, copied on the device that it lies on: a graph of one ONNX Gather, written without `onnx`."""

# Field numbers and types of onnx.proto; the opset is that of the exported graphs
FLOAT, INT64, INT_ATTRIBUTE, IR_VERSION, OPSET = 1, 7, 2, 10, 23


def gather_graph(axis: int) -> bytes:
    """A model with inputs `data` (float32) and `index` `[N]` (int64) and the output `rows`: data taken along `axis`."""
    attribute = text(1, "axis") + number(3, axis) + number(20, INT_ATTRIBUTE)
    node = text(1, "data") + text(1, "index") + text(2, "rows") + text(4, "Gather") + part(5, attribute)
    values = part(11, value("data", FLOAT)) + part(11, value("index", INT64)) + part(12, value("rows", FLOAT))
    graph = part(1, node) + text(2, "rows") + values
    return number(1, IR_VERSION) + part(7, graph) + part(8, text(1, "") + number(2, OPSET))


def value(name: str, kind: int) -> bytes:
    """An input or output of that element type and of any shape."""
    return text(1, name) + part(2, part(1, number(1, kind)))


def number(field: int, content: int) -> bytes:
    assert 0 <= content < 128
    return bytes([*varint(field << 3), content])


def text(field: int, content: str) -> bytes:
    return part(field, content.encode())


def part(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def varint(content: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    low, rest = content & 0x7F, content >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])
