"""Group norm with optional timestep bias and SiLU.

Call it through `kernels.ops`: `reference`, `native` on the CPU, Triton or the pack on a GPU.
"""
