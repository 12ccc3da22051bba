"""All between `conv_in` and the first down block: `reference`, `native` and Triton, and the reward's `fold`.

Call it through `kernels.ops`.
"""
