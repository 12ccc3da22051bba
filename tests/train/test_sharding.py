"""Sharding in a group of one process; test_loop.py and test_distill.py train in two."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from mrc_edit.model import load_checkpoint
from mrc_edit.model.smartedit.bim import BIM
from mrc_edit.model.smartedit.qformer import QFormer
from mrc_edit.train.objective import Editor
from mrc_edit.train.sharding import gathered_on_first, shard
from mrc_edit.train.smartedit import SmartEditor


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("smart", [False, True])
def test_every_part_is_shared_out(smart, group, tiny):
    """The gradients of one that is not would differ between processes."""
    checkpoint = load_checkpoint(tiny)
    editor = Editor(checkpoint.unet, checkpoint.text_encoder)
    if smart:
        more = QFormer(77, 64, 4, 128, 4, 64), BIM(48, 64, 32, 96)
        editor = SmartEditor(checkpoint.unet, checkpoint.text_encoder, *more)
    before = {name: parameter.detach().clone() for name, parameter in editor.named_parameters()}
    shard(editor, torch.device("cpu"))
    assert [name for name, parameter in editor.named_parameters() if not isinstance(parameter, DTensor)] == []
    whole = gathered_on_first(editor.named_parameters(), first=True)
    assert whole.keys() == before.keys() and all(torch.equal(whole[name], value) for name, value in before.items())
    assert gathered_on_first(editor.named_parameters(), first=False) == {}
