"""Group norm with optional timestep bias and SiLU.

Call it through `kernels.ops`: `reference`, `native` on the CPU, Triton or the pack on a GPU.
"""

LARGE = 1024  # positions from which on a map with channels last has three Triton kernels
