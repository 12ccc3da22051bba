"""Names and dimensions of the graphs, used to trace them, to feed them and to validate them.

A dimension given by a word in DYNAMIC varies from call to call; other words are constants of the
model. Everything is float32, but for the names in INTEGERS.
"""

DYNAMIC = {"batch", "texts", "guided", "rewards", "steps", "inputs", "branches", "height", "width", "rows", "columns"}
INTEGERS = {"input_ids", "branch", "item"}
STEP_ROLES = ("unet", "unet_shallow")  # once a step, all others once an edit

Dims = tuple[str | int, ...]

REWARD_INPUTS: dict[str, Dims] = {"reward_scores": ("rewards", 3), "reward_text": ("rewards", "text_width")}
FOLDED: dict[str, Dims] = {  # the reward attention, see docs/mathematics.md
    "gate": ("rewards", "heads", "channels"),
    "gate_bias": ("rewards", "heads", 1),
    "base": ("rewards", "channels", 1),
    "update": ("rewards", "channels", "heads"),
}

STEP: dict[str, Dims] = {
    "sample": ("inputs", "sample_channels", "rows", "columns"),
    "branch": ("branches",),
    "guidance": ("guided", "branches"),
    "time_bias": ("inputs", "time_channels"),
    "text_kv": ("branches", "length", "key_channels"),
}
DEEP: dict[str, Dims] = {"deep": ("branches", "deep_channels", "rows", "columns")}
FOLDED_INPUTS: dict[str, Dims] = {name: ("inputs", *dims[1:]) for name, dims in FOLDED.items()}

LATENTS: Dims = ("batch", "latent_channels", "rows", "columns")
LOOP: dict[str, Dims] = {  # what `unet_loop` takes in place of these inputs of a step, and besides
    "latents": LATENTS,
    "source": ("inputs", *LATENTS[1:]),
    "item": ("inputs",),
    "guidance": ("batch", "branches"),
    "time_bias": ("steps", "inputs", "time_channels"),
    "table": ("steps", 7),  # input scale, four coefficients, two of the data
    "fresh": ("steps", *LATENTS),
}

INPUTS: dict[str, dict[str, Dims]] = {
    "text_encoder": {"input_ids": ("texts", "length")},
    "vae_encoder": {"images": ("batch", 3, "height", "width")},
    "vae_decoder": {"latents": ("batch", "latent_channels", "rows", "columns")},
    "conditioner": {
        "timesteps": ("steps",),
        "text_states": ("texts", "length", "text_width"),
        **REWARD_INPUTS,
    },
    "unet": STEP | FOLDED_INPUTS,
    "unet_shallow": STEP | DEEP | FOLDED_INPUTS,  # lossy, see model.graphs
}

OUTPUTS: dict[str, dict[str, Dims]] = {
    "text_encoder": {"states": ("texts", "length", "text_width"), "pooled": ("texts", "text_width")},
    "vae_encoder": {"latents": ("batch", "latent_channels", "rows", "columns")},
    "vae_decoder": {"images": ("batch", 3, "height", "width")},
    "conditioner": {
        "time_bias": ("steps", "rewards", "time_channels"),
        "text_kv": ("texts", "length", "key_channels"),
        **FOLDED,
    },
    "unet": {"noise": ("guided", "latent_channels", "rows", "columns"), **DEEP},
    "unet_shallow": {"noise": ("guided", "latent_channels", "rows", "columns")},
}


def io(role: str, rewards: bool) -> tuple[dict[str, Dims], dict[str, Dims]]:
    """Inputs and outputs of graph `role`, without the reward tensors for a plain model."""
    hidden = () if rewards else (*REWARD_INPUTS, *FOLDED)
    inputs, outputs = (
        {name: dims for name, dims in side[role].items() if name not in hidden} for side in (INPUTS, OUTPUTS)
    )
    if role == "conditioner" and not rewards:
        outputs["time_bias"] = ("steps", 1, "time_channels")
    return inputs, outputs
