"""From a checkpoint folder to an export folder: ONNX graphs, TensorRT engines, a manifest that proves itself."""
