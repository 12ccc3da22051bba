"""bfloat16 graphs upcast to float32, so that ONNX Runtime's CPU can check them.

The weights keep their rounding to bfloat16, which is most of what the precision costs.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..core.files import file_digest
from ..engine.manifest import Manifest


def upcast_export(folder: Path, out: Path, manifest: Manifest) -> None:
    """Write a float32 copy of the export `folder` to `out`, runnable like any other."""
    artifacts = [replace(artifact, precision="float32") for artifact in manifest.artifacts]
    for name in manifest.files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".onnx", ".onnx.data")):
            continue
        (out / name).write_bytes((folder / name).read_bytes())
    for artifact in artifacts:
        model = onnx.load(folder / artifact.path)
        upcast(model.graph)
        onnx.save(model, out / artifact.path, save_as_external_data=True, location=Path(artifact.path).name + ".data")
    files = {name: file_digest(out / name) for name in manifest.files}
    replace(manifest, artifacts=artifacts, files=files, precision="float32").write(out)


def upcast(graph: onnx.GraphProto) -> None:
    """Turn every bfloat16 constant, cast and declared type of `graph` into float32, in place."""
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                upcast(attribute.g)
            if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.type == onnx.AttributeProto.TENSOR:
                tensors.append(attribute.t)
    for tensor in tensors:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
