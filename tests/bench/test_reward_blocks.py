import pytest

from mrc_edit.bench import reward_blocks
from mrc_edit.core.errors import MRCError
from mrc_edit.model import load_checkpoint


def test_the_other_model_is_the_same_with_layers_after_every_block(tiny, blocks, tmp_path):
    made = reward_blocks.both(tiny, tmp_path)
    assert made["time"] == tiny
    state, before = (load_checkpoint(made[name]).unet.state_dict() for name in ("blocks", "time"))
    assert all(state[key].equal(value) for key, value in before.items())
    assert state["reward_blocks.0.proj_deal.proj_out.weight"].any()
    with pytest.raises(MRCError, match="after every block already"):
        reward_blocks.both(blocks, tmp_path / "again")


def test_what_the_layers_add_is_counted(tiny, blocks):
    time, after = reward_blocks.count({"time": tiny, "blocks": blocks}, 64)
    widths = [layer.channels for layer in load_checkpoint(blocks).unet.reward_blocks]
    # of each layer: four matrices with biases, three norms; the attention is the conditioner's
    assert after["parameters"] - time["parameters"] == sum(4 * width**2 + 10 * width for width in widths)
    assert after["operations"] > time["operations"] > 1e8


def test_steps_are_timed_against_the_released_layer(tiny, blocks, tiny_export, blocks_export):
    folders, exports = {"time": tiny, "blocks": blocks}, {"time": tiny_export, "blocks": blocks_export}
    rows = reward_blocks.time_steps(folders, exports, "onnxruntime", 64, 2)
    assert [row["injection"] for row in rows] == ["time", "blocks"]
    assert rows[0]["ratio"] == 1 and all(row["seconds"] > 0 for row in rows)
