"""What an ONNX file says of itself: names of open dimensions, and notes on the graph, its inputs and its outputs."""

import re
from collections.abc import Mapping

import onnx_ir as ir

from ..engine.graphs import Dims

PAGE = "docs/graphs.md of mrc-edit"
GRAPH_NOTES = {
    "text_encoder": "Texts to states; once an edit.",
    "vae_encoder": "The image to source latents; once an edit.",
    "vae_decoder": "Final latents to the edited image; once an edit.",
    "conditioner": "All that depends on texts, rewards and timesteps alone; once an edit.",
    "unet": "The guided noise; once a step.",
    "unet_shallow": "The guided noise with features of an earlier step: lossy; at some steps in place of unet.",
}
NOTES = {
    "input_ids": "tokens, filled up with the pad token",
    "states": "a state a token",
    "pooled": "the state of the end token; that of a reward text is reward_text",
    "images": "RGB in -1…1; the decoder's may be a little beyond",
    "timesteps": "the U-Net's time at each step of the sampler, 0 to 1000",
    "text_states": "states of the instruction and of the empty text",
    "reward_scores": "following, preserving, quality: 0 to 5; ask for 5, 5, 5",
    "reward_text": "pooled state of the reward text; 'None; None; None' says no faults",
    "guidance_scales": "a distilled student's alone: guidance_scale and image_guidance_scale; its plan has one branch",
    "time_bias": "what each ResNet adds for timestep and reward: of all steps, then of one step a row an input",
    "text_kv": "keys and values of all cross-attentions: a row a text, then a row a branch",
    "gate": "folded reward attention, with the next three: base + update · σ(gate · x + gate_bias)",
    "gate_bias": "see gate",
    "base": "see gate",
    "update": "see gate",
    "feature_bias": "SmartEdit's alone: added to what conv_in gives",
    "sample": "scaled latents and source latents, beside each other; zeros for an input without source",
    "branch": "the row of sample that each branch continues",
    "guidance": "weight of each branch in each image's noise",
    "noise": "the guided prediction, of the kind that prediction_type of the scheduler config says",
    "deep": "features that unet_shallow continues from",
}
LATENTS = {
    "vae_encoder": "source latents, the mode, not scaled: they go into sample as they are",
    "vae_decoder": "final latents; the graph divides them by the scaling factor",
}


def note(graph: str, name: str) -> str:
    """On an input or output."""
    return LATENTS.get(graph, name) if name == "latents" else NOTES.get(name, name)


def annotate(model: ir.Model, graph: str, sides: Mapping[str, Dims], metadata: Mapping[str, str]) -> None:
    """Name the open dimensions of a traced graph as `sides` does, and write notes into it.

    Args:
        sides: inputs and outputs by name.
        metadata: entries of the file's metadata.
    """
    model.doc_string = f"{GRAPH_NOTES.get(graph, graph)} See {PAGE}."
    model.graph.name = graph
    model.metadata_props.update(metadata)
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    names: dict[str, str] = {}  # of the tracer's symbols, such as s36
    for value in model.graph.inputs:
        for found, dim in zip(value.shape or (), sides[str(value.name)], strict=True):
            if isinstance(found, ir.SymbolicDim) and isinstance(dim, str):
                names[str(found.value)] = dim
    for value in {id(each): each for node in model.graph.all_nodes() for each in node.outputs}.values():
        value.shape = renamed(value.shape, names)
    for name, dims in sides.items():
        value = values[name]
        value.doc_string = note(graph, name)
        pairs = zip(value.shape or (), dims, strict=True)
        value.shape = ir.Shape([found if isinstance(found, int) else named for found, named in pairs])


def renamed(shape: ir.Shape | None, names: Mapping[str, str]) -> ir.Shape | None:
    """The shape with the tracer's symbols replaced, in expressions too."""
    if shape is None:
        return None

    def name(dim: int | ir.SymbolicDim) -> int | str | None:
        if isinstance(dim, int) or dim.value is None:
            return dim if isinstance(dim, int) else None
        return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.value)

    return ir.Shape([name(dim) for dim in shape])
