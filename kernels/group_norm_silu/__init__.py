"""Group norm with optional timestep bias and SiLU: `reference`, `native` and Triton; call it through `kernels.ops`."""
