"""The reward block after `conv_in`, its attention folded by `fold`.

Call it through `kernels.ops`: `reference`, `native` on the CPU, Triton or the pack on a GPU.
"""

# Channels from which libraries are faster. A tile holds all channels of its positions: at 640 the GPU's kernel spills
# registers and takes two minutes to compile; the CPU's reads all weights again for each tile
WIDEST = 320
