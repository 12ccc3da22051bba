"""The graphs that the model is exported as, one row each.

Tracing, the `torch` backend, validation, TensorRT profiles, int8 and OpenVINO all read `GRAPHS`. A new graph is a
row here and a module in `model/graphs.py`.
"""

from dataclasses import dataclass

Dims = tuple[str | int, ...]

# Dimensions that vary from call to call, with their size in the traced example. All sizes differ, so that the
# tracer never takes two dimensions for one. Every other word in a shape is a constant of the model.
DYNAMIC = {
    "batch": 2, "guided": 2, "texts": 3, "rewards": 4, "steps": 5, "inputs": 4, "branches": 6,
    "height": 128, "width": 192, "rows": 16, "columns": 24,
}  # fmt: skip
INTEGERS = {"input_ids", "branch"}  # int64; all other arrays are float32, whatever the precision inside

LATENTS: Dims = ("batch", "latent_channels", "rows", "columns")
IMAGES: Dims = ("batch", 3, "height", "width")
NOISE: Dims = ("guided", "latent_channels", "rows", "columns")
FEATURES: Dims = ("branches", "deep_channels", "rows", "columns")
# The folded attention of the reward layers, beside each other (docs/mathematics.md): dimensions after the first
FOLDED: dict[str, Dims] = {
    "gate": ("heads", "reward_channels"),
    "gate_bias": ("heads", "reward_layers"),
    "base": ("reward_channels", 1),
    "update": ("reward_channels", "heads"),
}
STEP: dict[str, Dims] = {
    "sample": ("inputs", "sample_channels", "rows", "columns"),
    "branch": ("branches",),
    "guidance": ("guided", "branches"),
    "time_bias": ("inputs", "time_channels"),
    "text_kv": ("branches", "length", "key_channels"),
}
FOLDED_INPUTS: dict[str, Dims] = {name: ("inputs", *dims) for name, dims in FOLDED.items()}
# Of SmartEdit alone: added to what `conv_in` gives
FEATURE_BIAS: dict[str, Dims] = {"feature_bias": ("inputs", "channels", "rows", "columns")}


@dataclass(frozen=True)
class Graph:
    """One exported part of the model.

    Attributes:
        module: class in `model/graphs.py`; its `forward` takes the inputs by name and returns the outputs in order.
        part: what of the checkpoint the class is built from: unet, vae or text_encoder.
        inputs, outputs: name → dimensions.
        each_step: runs once a step; other graphs run once an edit.
        half: may compute in half precision.
        judged_by: the graph whose outputs validate this one, against the eager pipeline. Empty: the module itself
            in float32 is the reference.
    """

    module: str
    part: str
    inputs: dict[str, Dims]
    outputs: dict[str, Dims]
    each_step: bool = False
    half: bool = True
    judged_by: str = ""


GRAPHS: dict[str, Graph] = {
    # Traced first, since the others convert the weights that it shares to half precision
    "conditioner": Graph(
        module="Conditioner",
        part="unet",
        inputs={
            "timesteps": ("steps",),
            "text_states": ("texts", "length", "text_width"),
            "reward_scores": ("rewards", 3),
            "reward_text": ("rewards", "text_width"),
            "guidance_scales": ("rewards", 2),  # of a distilled student alone
        },
        outputs={
            "time_bias": ("steps", "rewards", "time_channels"),
            "text_kv": ("texts", "length", "key_channels"),
            **{name: ("rewards", *dims) for name, dims in FOLDED.items()},
        },
        half=False,
        judged_by="unet",
    ),
    "text_encoder": Graph(
        module="TextEncoder",
        part="text_encoder",
        inputs={"input_ids": ("texts", "length")},
        outputs={"states": ("texts", "length", "text_width"), "pooled": ("texts", "text_width")},
        judged_by="text_encoder",
    ),
    "vae_encoder": Graph("VaeEncoder", "vae", {"images": IMAGES}, {"latents": LATENTS}, judged_by="vae_encoder"),
    "vae_decoder": Graph("VaeDecoder", "vae", {"latents": LATENTS}, {"images": IMAGES}, judged_by="vae_decoder"),
    "unet": Graph(
        module="UNetStep",
        part="unet",
        inputs=STEP | FOLDED_INPUTS | FEATURE_BIAS,
        outputs={"noise": NOISE, "deep": FEATURES},
        each_step=True,
        judged_by="unet",
    ),
    "unet_shallow": Graph(  # lossy: reuses the deep features of an earlier step
        module="UNetShallow",
        part="unet",
        inputs=STEP | {"deep": FEATURES} | FOLDED_INPUTS | FEATURE_BIAS,
        outputs={"noise": NOISE},
        each_step=True,
        judged_by="unet_shallow",
    ),
}
EACH_STEP = tuple(name for name, graph in GRAPHS.items() if graph.each_step)


def shapes(
    name: str, rewards: bool, feature_bias: bool = False, embeds_guidance: bool = False
) -> tuple[dict[str, Dims], dict[str, Dims]]:
    """Inputs and outputs of a graph, without those of rewards, SmartEdit or students for a model that has none."""
    graph = GRAPHS[name]
    without = set() if feature_bias else set(FEATURE_BIAS)
    if not rewards:
        without |= {*FOLDED, "reward_scores", "reward_text"}
    if not embeds_guidance:
        without.add("guidance_scales")
    inputs, outputs = (
        {key: dims for key, dims in side.items() if key not in without} for side in (graph.inputs, graph.outputs)
    )
    if "time_bias" in outputs and not rewards and not embeds_guidance:
        outputs["time_bias"] = ("steps", 1, "time_channels")
    return inputs, outputs


def dtype(name: str) -> str:
    """Of the input or output of that name."""
    return "int64" if name in INTEGERS else "float32"
