"""Number formats by the names that PyTorch, numpy and the manifest use."""

PRECISIONS = ("float32", "bfloat16", "float16")
"""What weights and activations can be stored in."""

TF32 = "tf32"
"""Float32 whose products a GPU computes with ten bits of mantissa."""
