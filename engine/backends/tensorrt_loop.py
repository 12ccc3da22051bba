"""The denoising loop with the latents on the device, for runtimes whose arrays are `cuda.Buffer`."""

import warnings

import numpy as np

from ...kernels import pack
from ...kernels.sampler_step.addresses import FLOAT32, sampler_step
from ..failures import computing
from ..loop import OnStep, check_latents, start, step_noise
from ..plan import Plan
from ..step_table import SamplerTable, clipping
from .base import DeviceLoop, GuidedUNet
from .cuda import Device
from .graphs import GraphUNet


def device_loop(device: Device) -> "TensorRTLoop | None":
    """The loop; None, so that the host loops, without a pack, or with a warning where it has no code for this GPU."""
    if not pack.ready():
        return None
    values, item, sample = device.zeros((16,)), device.zeros((1,), np.int64), device.zeros((32,))
    here = values.address
    try:  # loads the code too
        sampler_step(
            FLOAT32, here, here, here, None, 1, 16, here, here, here, item.address, 1, sample.address, device.stream
        )
    except pack.NotInPack as error:
        warnings.warn(f"latents go through the host at every step: {error}", stacklevel=2)
        return None
    return TensorRTLoop(device)


class TensorRTLoop(DeviceLoop):
    """The loop over the pack's `sampler_step`, which advances the latents in place."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def denoise(
        self,
        unet: GuidedUNet,
        plan: Plan,
        table: SamplerTable,
        source: np.ndarray,
        generators: list[np.random.RandomState],
        on_step: OnStep | None,
    ) -> np.ndarray:
        assert isinstance(unet, GraphUNet)
        device, steps = self.device, len(table.timesteps)
        first, visible = start(plan, table, source, generators)
        scaled = first[plan.image] * np.float32(table.input_scale[0])
        latents, denoised, guidance = device.put(first), device.zeros(first.shape), device.put(plan.guidance)
        sample, item = device.put(np.concatenate([scaled, visible], axis=1)), device.put(plan.image)
        fresh = device.empty(first.shape) if table.ancestral or table.clip is not None else None
        scale, coefficients, of_denoised = (
            device.put(values.astype(np.float32)) for values in (table.input_scale, table.coefficients, table.denoised)
        )
        for step in range(steps):
            with computing(f"unet at step {step + 1} of {steps}"):
                noise = unet.run_full(unet.feeds(step, sample, guidance))["noise"]
                drawn = step_noise(table, generators, source.shape)
                if table.clip is not None:
                    drawn = clipping(table, step, device.get(noise), device.get(latents))
                if fresh and drawn is not None:
                    device.write(fresh, drawn)
                following = min(step + 1, steps - 1)
                sampler_step(
                    FLOAT32, noise.address, latents.address, denoised.address, fresh.address if fresh else None,
                    len(first), first[0].size, coefficients.address + 16 * step, of_denoised.address + 8 * step,
                    scale.address + 4 * following, item.address, len(plan.image), sample.address, device.stream,
                )  # fmt: skip
            replaced = on_step(step, device.get(latents)) if on_step else None
            if replaced is not None:
                given = check_latents(replaced, source.shape)
                device.write(latents, given)
                scaled = given[plan.image] * np.float32(table.input_scale[following])
                device.write(sample, np.concatenate([scaled, visible], axis=1))
        return device.get(latents)
