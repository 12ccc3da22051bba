"""One linear sampler step and the next U-Net input, for loops whose latents stay on the device.

Call it through `kernels.ops`: `reference` on the CPU, Triton or the pack on a GPU.
"""
