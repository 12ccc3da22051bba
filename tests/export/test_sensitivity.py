"""Which layers become int8."""

import numpy as np
import pytest

pytest.importorskip("nncf", reason="NNCF is not installed")
from mrc_edit.core import cpu
from mrc_edit.engine.backends.openvino import CORE
from mrc_edit.export import sensitivity
from mrc_edit.export.calibration import step_samples


@pytest.mark.parametrize(
    ("greatest", "expected"), [(127, [[127, -25], [0, 127]]), (64, [[64, -13], [0, 64]])], ids=["VNNI", "none"]
)
def test_weights_round_to_the_nearest_value(monkeypatch, greatest, expected):
    monkeypatch.setattr(sensitivity, "greatest_weight", lambda: greatest)
    weight = np.array([[1.0, -0.5], [0.0, 2.54]], dtype=np.float32)
    values, scale = sensitivity.int8_weight(weight, 1)
    assert values.tolist() == expected
    assert np.abs(values * scale - weight).max() <= scale.max() / 2


@pytest.mark.parametrize(
    ("text", "greatest"),
    [("flags: avx2", 64), ("flags: avx2 avx_vnni", 127), ("Features: asimd", 127), ("", 127)],
    ids=["x86", "VNNI", "Arm", "unknown"],
)
def test_the_range_of_weights_is_that_of_the_processor(monkeypatch, tmp_path, text, greatest):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "INFO", tmp_path / "cpuinfo")
    assert sensitivity.greatest_weight.__wrapped__() == greatest


def test_layers_that_spare_most_error_for_their_work_stay_out():
    def layer(name, operations, error):
        return sensitivity.Layer(name, "1", 0, 1, operations, error)

    layers = [layer("costly", 10**9, 0.04), layer("cheap", 10, 0.039), layer("good", 10**9, 0.001)]
    assert {x.name: x.int8 for x in sensitivity.choose_layers(layers)} == {
        "costly": False,
        "cheap": False,
        "good": True,
    }
    assert all(x.int8 for x in sensitivity.choose_layers([layer("a", 1, 0.02), layer("b", 1, 0.02)]))


@pytest.mark.slow
def test_groups_of_layers_give_what_all_at_once_give(tiny_export, pictures, monkeypatch):
    graph = tiny_export / "unet" / "model.onnx"
    samples = step_samples(tiny_export, pictures, (1, 64))[0][:1]
    nodes = sensitivity.layers_of(CORE.read_model(graph))
    ranges = dict.fromkeys(nodes, (-2.0, 3.0))
    at_once = sensitivity.layer_errors(graph, ranges, samples)
    assert [layer.name for layer in at_once] == list(nodes) and all(layer.error > 0 for layer in at_once)
    monkeypatch.setattr(sensitivity, "GROUP", 30_000)
    groups = sensitivity.groups(nodes, list(nodes))
    assert len(groups) > 3 and [name for group in groups for name in group] == list(nodes)
    for one, other in zip(sensitivity.layer_errors(graph, ranges, samples), at_once, strict=True):
        assert one.error == pytest.approx(other.error, rel=1e-3) and one.operations == other.operations
