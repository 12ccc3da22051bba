"""Number formats by the names that PyTorch, numpy and the manifest use."""

PRECISIONS = ("float32", "bfloat16", "float16")
