"""Guidance, one linear sampler step, and the next U-Net input, in one pass over the latents.

Shapes: N noise rows, B images, P U-Net inputs; trailing dimensions are `[4, h, w]` for latents and
`[8, h, w]` for U-Net inputs, whose first half is the scaled latents.
"""

import ctypes

import numpy as np

from ..native import check, library, pointer

FLOAT32 = np.dtype(np.float32)


def guided_step(
    noise: np.ndarray,
    guidance: np.ndarray,
    latents: np.ndarray,
    data: np.ndarray,
    fresh: np.ndarray | None,
    coefficients: np.ndarray,
    data_coefficients: np.ndarray,
    input_scale: float,
    item: np.ndarray,
    sample: np.ndarray,
) -> None:
    """Advance `latents`, `data` and the latent half of `sample` in place.

    With ε = guidance · noise: `latents' = a·latents + b·ε + c·data + e·fresh`,
    `data' = p·latents + q·ε`, `sample[k, :4] = input_scale · latents'[item[k]]`.

    Args:
        noise: `[N, 4, h, w]` float32; guidance: `[B, N]` float32.
        latents, data: `[B, 4, h, w]` float32; fresh: the same, or None where e is 0.
        coefficients: `[4]` a, b, c, e; data_coefficients: `[2]` p, q (see `engine.sampling`).
        item: `[P]` int64, the image each U-Net input belongs to; sample: `[P, 8, h, w]` float32.

    Raises:
        ValueError: an array of another dtype, layout or shape.
    """
    rows, batch, inputs = len(noise), len(latents), len(sample)
    size = latents[0].size
    floats = {"noise": noise, "guidance": guidance, "latents": latents, "data": data, "sample": sample}
    if fresh is not None:
        floats["fresh"] = fresh
    for name, array in floats.items():
        if array.dtype != FLOAT32 or not array.flags.c_contiguous:
            raise ValueError(f"{name} is {array.dtype} {array.shape}; give C-contiguous float32")
    expected = {
        "noise": rows * size, "guidance": batch * rows, "data": batch * size, "sample": 2 * inputs * size,
        "fresh": batch * size,
    }  # fmt: skip
    for name, count in expected.items():
        if name in floats and floats[name].size != count:
            raise ValueError(f"{name} has shape {floats[name].shape}; {count} values fit latents {latents.shape}")
    item = np.ascontiguousarray(item, dtype=np.int64)
    if item.shape != (inputs,) or (item < 0).any() or (item >= batch).any():
        raise ValueError(f"item is {item}; give {inputs} indices below {batch}")
    # held by names: an address alone does not keep its array
    weights, to_data = (np.ascontiguousarray(a, dtype=FLOAT32) for a in (coefficients, data_coefficients))
    status = library().mrc_guided_step(
        pointer(noise),
        pointer(guidance),
        ctypes.c_int64(rows),
        pointer(latents),
        pointer(data),
        pointer(fresh),
        ctypes.c_int64(batch),
        ctypes.c_int64(size),
        pointer(weights),
        pointer(to_data),
        ctypes.c_float(input_scale),
        pointer(item),
        ctypes.c_int64(inputs),
        pointer(sample),
    )
    check(status, "mrc_guided_step")
