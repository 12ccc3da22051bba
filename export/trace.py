"""PyTorch graphs to ONNX, with every dynamic dimension of `engine.graphs` left open."""

import logging
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript.optimizer import fold_constants

from ..engine.graphs import DYNAMIC, GRAPHS, INTEGERS, Dims, dtype, shapes
from ..engine.manifest import Artifact
from ..model import Checkpoint
from ..model.graphs import graph_module
from ..model.layers import cross_attentions, resnets
from ..model.rewards import HEADS
from .emulate import Wider
from .notes import annotate
from .options import OPSET


def constants(checkpoint: Checkpoint) -> dict[str, int]:
    """The dimensions of `engine.graphs` that are constants of the model."""
    unet = checkpoint.unet
    layers = unet.reward_layers()
    return {
        "length": checkpoint.text_encoder.config.max_position_embeddings,
        "text_width": unet.config.cross_attention_dim,
        "latent_channels": unet.config.out_channels,
        "sample_channels": unet.config.in_channels,
        "channels": unet.config.block_out_channels[0],
        "heads": HEADS,
        "reward_channels": sum(layer.channels for layer in layers),
        "reward_layers": len(layers),
        "time_channels": sum(resnet.out_channels for resnet in resnets(unet)),
        "deep_channels": unet.up_blocks[-1].resnets[-1].in_channels - unet.config.block_out_channels[0],
        "key_channels": 2 * sum(attention.inner_dim for attention in cross_attentions(unet)),
    }


def convert(part: torch.nn.Module, name: str, dtype: torch.dtype, wider: Collection[str]) -> None:
    """Convert the parameters of a part of the checkpoint in place, but for those of layers that stay wider."""
    for key, parameter in part.named_parameters(prefix=name):
        if key.rpartition(".")[0] not in wider:
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def trace(
    checkpoint: Checkpoint,
    graph: str,
    precision: str,
    folder: Path,
    path: str,
    wider: Collection[str] = (),
    opset: int = OPSET,
) -> Artifact:
    """Write a graph to `folder / path` (with its weights beside it) and describe it.

    Args:
        wider: layers (`export.emulate`) that compute in float32 in a half-precision graph, as their parameters do.
    """
    row = GRAPHS[graph]
    constant = constants(checkpoint)
    unet = checkpoint.unet
    inputs, outputs = shapes(graph, unet.rewards, unet.feature_bias, unet.embeds_guidance)
    example = {name: example_input(name, dims, constant) for name, dims in inputs.items()}
    dynamic: Any = {
        name: {i: torch.export.Dim.DYNAMIC for i, dim in enumerate(dims) if dim in DYNAMIC}
        for name, dims in inputs.items()
    }
    module = graph_module(row.module, getattr(checkpoint, row.part)).eval()
    given: Any = {"kwargs": example}
    if wider and precision != "float32":
        module = PartlyWider(module, getattr(torch, precision), wider, list(inputs))
        given, dynamic = {"args": tuple(example.values())}, (tuple(dynamic.values()),)
    (folder / path).parent.mkdir(parents=True)
    with quiet_exporter():
        program = torch.onnx.export(
            module,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=dynamic,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
            **given,
        )
        assert program is not None
        fold_constants(program.model, output_size_limit=sys.maxsize, should_fold=slices_weight)
        strip_notes(program.model)
        if precision == "float32":
            store_halves(program.model)
        annotate(program.model, graph, inputs | outputs, {"graph": graph, "precision": precision})
        program.save(folder / path, external_data=True)
    return Artifact(graph, "onnx", precision, path, described(inputs, constant), described(outputs, constant))


class PartlyWider(torch.nn.Module):
    """A graph in half precision, some layers of which compute in float32; its inputs have `names`, in this order."""

    def __init__(
        self, module: torch.nn.Module, dtype: torch.dtype, wider: Collection[str], names: Collection[str]
    ) -> None:
        super().__init__()
        self.module, self.dtype, self.wider, self.names = module, dtype, wider, names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with Wider(self.module, self.dtype, self.wider):  # built here, where the tracer's parameters are in place
            return self.module(**dict(zip(self.names, inputs, strict=True)))


def described(side: dict[str, Dims], constant: dict[str, int]) -> dict[str, list]:
    """Inputs or outputs as the manifest has them: dtype and dimensions, constants as numbers."""
    return {name: [dtype(name), *(constant.get(str(dim), dim) for dim in dims)] for name, dims in side.items()}


def example_input(name: str, dims: Dims, constant: dict[str, int]) -> torch.Tensor:
    """A tensor of the example's shape, to trace with."""
    shape = [(DYNAMIC | constant)[dim] if isinstance(dim, str) else dim for dim in dims]
    return torch.zeros(shape, dtype=torch.int64) if name in INTEGERS else torch.rand(shape)


def slices_weight(node: ir.Node) -> bool | None:
    """Fold weights' slices and their transposes whatever their size; None leaves it to the rules."""
    return node.op_type in ("Slice", "Transpose") or None


def strip_notes(model: ir.Model) -> None:
    """Drop the exporter's notes on every node: three quarters of the file, with this machine's paths in them."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()


def store_halves(model: ir.Model) -> None:
    """Store weights whose every value is exact in float16 as that, cast back in the graph: a float16
    checkpoint's float32 graphs take half the space and compute the same. Runtimes fold the cast away."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if value.dtype != ir.DataType.FLOAT or value.const_value is None or value.const_value.size < 1024:
            continue
        whole = value.const_value.numpy()
        with np.errstate(over="ignore"):
            half = whole.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), whole):
            continue
        stored = ir.val(f"{name}_half", const_value=ir.tensor(half, name=f"{name}_half"))
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without the exporter's notes on optional packages and on its own internals."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
