"""Parameters, gradients and optimizer moments sharded over the processes (FSDP2, torch's `fully_shard`).

accelerate's own FSDP needs an accelerator; torch's also runs on CPU processes, where it is tested.
"""

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .objective import Editor

Key = TypeVar("Key")


def shard(editor: Editor, device: torch.device) -> None:
    """Shard in place: one group for each U-Net block, one for the rest of the U-Net, one for each other part."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    down, middle, up = (editor.unet.get_submodule(name) for name in ("down_blocks", "mid_block", "up_blocks"))
    for module in (*down.children(), middle, *up.children(), *editor.children()):
        # by default torch leaves the outermost group gathered after a forward pass, with weights that then go stale
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True)
        assert isinstance(sharded, FSDPModule)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no averaging reduction


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor; all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered_on_first(tensors: Iterable[tuple[Key, Tensor]], first: bool) -> dict[Key, Tensor]:
    """The whole tensors in the first process's memory, one by one; all processes must call it, and others get none.

    So a GPU holds one of them at a time.
    """
    kept = {}
    for name, tensor in tensors:
        whole = gathered(tensor)
        if first:
            kept[name] = whole.detach().cpu()
    return kept


def shared_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor on the parameter's device, sharded like the parameter."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)
