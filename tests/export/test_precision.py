"""The precision report, and exports that keep to it."""

import json
import math
from dataclasses import asdict

import onnxruntime
import pytest
import torch
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.core.fidelity import relative_error
from mrc_edit.engine.graphs import GRAPHS, shapes
from mrc_edit.export import precision, stages
from mrc_edit.export.emulate import FORMATS, Layer
from mrc_edit.export.precision import BOUND, Cost, GraphReport, Part, PrecisionReport, precision_report, search
from mrc_edit.export.precision_page import page
from mrc_edit.export.trace import constants, convert, example_input, trace
from mrc_edit.model.graphs import graph_module
from mrc_edit.model.seeded import seeded_checkpoint

LAYERS = [f"layer{i}" for i in range(64)]
LOUD, LAST_LOUD = "unet.down_blocks.0.resnets.0.conv1", "unet.up_blocks.1.resnets.1.conv1"  # norms follow


def independent(errors):
    """A graph whose layers err independently; those not named not at all."""
    return lambda chosen: math.hypot(*(errors.get(name, 0.0) for name in chosen))


def test_the_search_finds_the_layers_that_err_without_trying_all():
    errors = dict.fromkeys(LAYERS, 0.001) | {"layer7": 0.2, "layer40": 0.05}
    parts = []
    wider, remaining = search(LAYERS, independent(errors), independent(errors), parts)
    assert wider == ["layer7", "layer40"]
    assert remaining == pytest.approx(0.001 * math.sqrt(62))
    assert len(parts) < 30 < len(LAYERS)


def test_a_layer_that_overflows_is_found():
    parts = []
    wider, remaining = search(LAYERS, *[independent({"layer33": math.inf, "layer34": 0.01})] * 2, parts)
    assert (wider, remaining) == (["layer33"], 0.01)
    assert parts[0] == Part(64, "layer0", None)


def test_the_bound_holds_where_the_small_sample_errs_less():
    errors = dict.fromkeys(LAYERS, 0.004)
    _, remaining = search(LAYERS, independent(errors), lambda chosen: 3 * independent(errors)(chosen), [])
    assert 0.5 * BOUND < remaining <= BOUND
    assert search(LAYERS, lambda chosen: 1.0 * bool(chosen), lambda chosen: 1.0 * bool(chosen), [])[1] == 0


@pytest.fixture
def quick(monkeypatch):
    """One small edit and two formats."""
    monkeypatch.setattr(precision, "EDITS", (1, 64))
    monkeypatch.setattr(precision, "FORMATS", ("float16", "int8"))
    monkeypatch.setattr(precision, "BOUND", 0.5)


def loud(layer):
    """A checkpoint with a layer that overflows in float16; in float32 a norm takes that back, up to its eps."""
    checkpoint = seeded_checkpoint()
    checkpoint.unet.get_parameter(f"{layer.removeprefix('unet.')}.weight").mul_(1e6)
    return checkpoint


@pytest.fixture
def report(quick):
    return precision_report(loud(LOUD), precision.PHOTOGRAPHS)


def test_the_report_says_what_overflows_and_what_it_costs(report):
    assert list(report.graphs) == [name for name, graph in GRAPHS.items() if graph.half]
    unet = report.graphs["unet"]
    peaks = {layer.name: layer.peak for layer in unet.layers}
    assert peaks[LOUD] > report.largest
    assert unet.formats["float16"].error is None
    # the layer itself and the norm that takes its output
    assert unet.formats["float16"].wider == [LOUD, LOUD.replace("conv1", "norm2")]
    assert 0 < unet.formats["float16"].remaining < 0.05
    for name in ("text_encoder", "vae_encoder", "vae_decoder", "unet_shallow"):
        cost = report.graphs[name].formats["float16"]
        assert cost.wider == [] and 1e-5 < cost.error < 0.02
    content = json.loads(json.dumps(asdict(report), allow_nan=False))
    assert content["graphs"]["unet"]["formats"]["float16"]["error"] is None
    text = page(report)
    assert "not finite" in text and LOUD in text and "chelsea.jpg" in text


def test_the_page_is_one_file_and_shows_names_as_they_are():
    layers = [Layer("<b>", 70000.0), Layer("quiet", 0.0)]
    costs = dict.fromkeys(FORMATS, Cost(None, ["<b>"], 0.01, []))
    text = page(PrecisionReport("a&b", 2, 64, graphs={"unet": GraphReport(layers, costs)}))
    assert "http" not in text and "<b>" not in text
    assert text.count("<rect class=high") == 1 and "a&amp;b" in text


@pytest.mark.slow
def test_a_traced_graph_keeps_layers_wider(tmp_path):
    """In float16 it overflows, and no more once the layers compute in float32."""
    checkpoint, wider = loud(LAST_LOUD), {LAST_LOUD, LAST_LOUD.replace("conv1", "norm2")}
    dims_of, _ = shapes("unet_shallow", rewards=True)
    inputs = {name: example_input(name, dims, constants(checkpoint)) for name, dims in dims_of.items()}
    step = graph_module("UNetShallow", checkpoint.unet)
    with torch.inference_mode():
        exact = step(**inputs)[0]
    convert(checkpoint.unet, "unet", torch.float16, wider)
    trace(checkpoint, "unet_shallow", "float16", tmp_path, "graph/model.onnx", wider)
    session = onnxruntime.InferenceSession(tmp_path / "graph" / "model.onnx", providers=["CPUExecutionProvider"])
    noise = session.run(["noise"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    assert relative_error(noise, exact.numpy()) < 0.02
    convert(checkpoint.unet, "unet", torch.float16, set())
    with torch.inference_mode():
        assert not torch.isfinite(step(**inputs)[0]).all()


def test_an_export_keeps_to_its_report(tmp_path, monkeypatch):
    """The report's files are written, and both graphs of the U-Net are traced with its layers wider."""
    cost = Cost(None, [LOUD], 0.01, [])
    graph = GraphReport([Layer(LOUD, 1e6)], {"float16": cost, "bfloat16": Cost(0.01, [], 0.01, [])})
    asked = []

    def measured(checkpoint, pictures):
        asked.append(pictures)
        return PrecisionReport("x", 1, 64, graphs={"unet": graph})

    monkeypatch.setattr(precision, "precision_report", measured)
    options = stages.Options(tmp_path, tmp_path, "float16", None, "", (64, 64, 64), 1, True)
    work = stages.Work(options, tmp_path, checkpoint=seeded_checkpoint())
    stages.add_precision_report(work)
    assert asked == [precision.PHOTOGRAPHS] and work.wider == {LOUD}
    assert (
        json.loads((tmp_path / "precision.json").read_text())["graphs"]["unet"]["formats"]["float16"]["error"] is None
    )
    assert (tmp_path / "precision.html").read_text().startswith("<!doctype html>")
    traced = {}
    monkeypatch.setattr(stages, "trace", lambda *args: traced.setdefault(args[1], args[5]))
    stages.trace_graph(work, "unet")
    assert traced == {"unet": {LOUD}}
    types = {name: value.dtype for name, value in work.checkpoint.unet.named_parameters(prefix="unet")}
    assert {name for name, dtype in types.items() if dtype == torch.float32} == {f"{LOUD}.weight", f"{LOUD}.bias"}


def test_pictures_that_are_not_there_are_an_error(quick, tmp_path):
    with pytest.raises(MRCError, match="no images"):
        precision_report(seeded_checkpoint(), tmp_path)


def test_the_default_pictures_are_in_the_package():
    assert Image.open(precision.PHOTOGRAPHS / "chelsea.jpg").size[0] > 64
