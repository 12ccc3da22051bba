from mrc_edit.bench.launches import launches


def test_launches_of_the_released_step():
    counts = launches()
    assert counts["eager"] > counts["step graph"] > counts["step graph with kernels"] > 300


def test_layers_after_every_block_are_launches_too():
    time, blocks = launches(), launches(injection="blocks")
    assert all(blocks[name] > time[name] + 50 for name in time)
