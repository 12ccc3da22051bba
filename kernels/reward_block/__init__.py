"""The reward block after `conv_in`, its attention folded by `fold`.

Call it through `kernels.ops`: `reference`, `native` on the CPU, Triton or the pack on a GPU.
"""
