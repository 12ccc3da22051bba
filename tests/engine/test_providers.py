"""Without a card: a stand-in records what sessions are opened with (conftest.py)."""

import ctypes
import sys

import onnx
import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.backends import providers
from mrc_edit.engine.backends.providers import CPU, CUDA, RTX, TENSORRT
from mrc_edit.engine.graphs import GRAPHS, shapes
from mrc_edit.engine.profiles import profile


def by_graph(card) -> dict[str, dict]:
    """The providers of the last session that was opened from the content of each graph."""
    named = {}
    for session in card.opened:
        if isinstance(session.graph, bytes):
            inputs = {value.name for value in onnx.ModelProto.FromString(session.graph).graph.input}
            named |= {name: session.providers for name in GRAPHS if inputs == set(shapes(name, rewards=True)[0])}
    assert named.keys() == GRAPHS.keys()
    return named


def test_each_graph_gets_the_shapes_of_its_own_inputs(card):
    engine = Engine.from_pretrained("mini", provider=TENSORRT, sizes=(64, 128, 256), max_batch=2)
    for graph, listed in by_graph(card).items():
        artifact = engine.backend.artifact(graph)
        bounds = profile(artifact, (64, 128, 256), engine.backend.geometry.vae_scale, 2)
        for bound in ("min", "opt", "max"):
            given = dict(one.split(":") for one in listed[TENSORRT][f"trt_profile_{bound}_shapes"].split(","))
            assert {k: [int(n) for n in v.split("x")] for k, v in given.items()} == {
                name: shapes[bound] for name, shapes in bounds.items()
            }
    assert by_graph(card)["unet"][TENSORRT]["trt_profile_max_shapes"].startswith("sample:6x8x64x64,branch:6,")


def test_by_default_the_shapes_are_for_the_models_own_size(card):
    assert Engine.from_pretrained("mini", provider=TENSORRT).backend.sizes == (64, 128, 192)


def test_cuda_stands_between_tensorrt_and_the_cpu(card):
    Engine.from_pretrained("mini", provider=TENSORRT, provider_options={"device_id": 1, "trt_max_workspace_size": 9})
    for listed in by_graph(card).values():
        assert list(listed) == [TENSORRT, CUDA, CPU]
        assert listed[CUDA] == {"use_tf32": "0", "device_id": "1"}  # float32 means IEEE products
        assert listed[TENSORRT]["device_id"] == "1" and listed[TENSORRT]["trt_max_workspace_size"] == "9"


def test_no_session_falls_back(card):
    """Neither while it is opened nor in a run, where ONNX Runtime would go on with fewer providers."""
    Engine.from_pretrained("mini", provider=CUDA)
    assert card.opened and not any(session.falls_back for session in card.opened)


def test_cuda_is_the_default_where_the_package_has_it(card, capsys):
    """Its libraries are loaded first; what they print does not reach standard output, which machines read."""
    assert Engine.from_pretrained("mini").backend.provider == CUDA
    printed = capsys.readouterr()
    assert "libcufft" in printed.err and not printed.out
    assert all(list(listed) == [CUDA, CPU] for listed in by_graph(card).values())


def missing(path, *_):
    raise OSError("libcublasLt.so.13: cannot open shared object file")


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_a_provider_that_got_lost_is_an_error_with_the_reason(card, monkeypatch, provider):
    """ONNX Runtime logs it and goes on."""
    card.lost.add(provider)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(MRCError, match=rf"could not load {provider} for .*libcublasLt.so.13.*mrc-edit\[gpu\]"):
        Engine.from_pretrained("mini", provider=provider)


def test_a_lost_provider_whose_library_loads_points_to_the_driver(card, monkeypatch):
    card.lost.add(CUDA)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: None)
    with pytest.raises(MRCError, match="its library loads, so the GPU or its driver is missing"):
        Engine.from_pretrained("mini")


def test_work_that_is_left_to_the_cpu_is_an_error(card):
    card.left = {"Sigmoid", "MatMul", "Shape"}
    with pytest.raises(MRCError, match=f"{CUDA} leaves MatMul, Sigmoid of conditioner/model.onnx to the CPU"):
        Engine.from_pretrained("mini", provider=CUDA)


def test_shapes_may_be_left_to_the_cpu(card):
    card.left = {"Shape", "Gather", "Concat", "Reshape"}
    Engine.from_pretrained("mini", provider=CUDA)


def test_providers_that_share_a_graph_with_the_cpu_may(card, monkeypatch):
    monkeypatch.setattr(providers.onnxruntime, "get_available_providers", lambda: ["CoreMLExecutionProvider", CPU])
    card.left = {"Sigmoid"}
    Engine.from_pretrained("mini", provider="CoreMLExecutionProvider")
    assert all(list(listed) == ["CoreMLExecutionProvider", CPU] for listed in by_graph(card).values())


def test_a_provider_that_takes_nothing_is_an_error(card):
    card.takes_nothing = True
    with pytest.raises(MRCError, match=f"{CUDA} took no operator of"):
        Engine.from_pretrained("mini", provider=CUDA)


def test_what_the_provider_refuses_is_told_in_its_words_and_the_systems(card, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("CUDNN_STATUS_NOT_INITIALIZED\nat line 7")

    monkeypatch.setattr(providers.onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    words = f"{CUDA} refuses .*CUDNN_STATUS_NOT_INITIALIZED; libcublasLt.so.13: .*give provider='{CPU}'"
    with pytest.raises(MRCError, match=words):
        Engine.from_pretrained("mini", provider=CUDA)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"provider_options": {"trt_profile_min_shapes": "sample:1x8x8x8"}}, "give sizes and max_batch"),
        ({"provider_options": {"trt_engine_cache_path": "/tmp"}}, "by the digest of their graph"),
        ({"provider_options": {"trt_timing_cache_enable": True}}, "MRC_CACHE"),
        ({"provider_options": {"trt_cuda_graph_enable": 1}}, "inputs of the first step"),
        ({"provider_options": {"device_id": "cuda:0"}}, "device_id 'cuda:0'; give a number"),
        ({"sizes": (64, 32, 128)}, "least ≤ best ≤ greatest"),
        ({"sizes": (60, 128, 192)}, "multiples of 16"),
        ({"sizes": (64, 128)}, "sizes are"),
        ({"max_batch": 0}, "max_batch is 0"),
    ],
)
def test_options_that_are_refused(card, options, word):
    with pytest.raises(MRCError, match=word):
        Engine.from_pretrained("mini", provider=TENSORRT, **options)
    assert not card.opened


def test_a_provider_that_takes_all_sizes_refuses_sizes(card):
    for options in ({"sizes": (64, 128, 192)}, {"max_batch": 2}):
        with pytest.raises(MRCError, match="takes all sizes"):
            Engine.from_pretrained("mini", provider=CUDA, **options)


def test_an_edit_of_a_size_that_was_not_built_for(computing_card, photo):
    engine = Engine.from_pretrained("mini", provider=TENSORRT, sizes=(64, 64, 64))
    with pytest.raises(MRCError, match=r"vae_encoder was built for images from .* and gets \[1, 3, 128, 64\].*sizes="):
        engine.edit(photo, "snow", resolution=0, num_inference_steps=1)


def test_the_plug_in_runs_beside_a_package_for_cpus(plugged, card):
    engine = Engine.from_pretrained("mini", provider=RTX)
    assert engine.backend.device == "cuda"
    for listed in by_graph(card).values():
        assert list(listed) == [RTX]
        assert "nv_profile_opt_shapes" in listed[RTX]
    assert not any(session.falls_back for session in card.opened)


def test_the_plug_in_beside_a_package_with_cuda_leaves_the_rest_to_that(plugged, card, monkeypatch):
    monkeypatch.setattr(providers.onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    Engine.from_pretrained("mini", provider=RTX)
    assert all(list(listed) == [RTX, CUDA] for listed in by_graph(card).values())


@pytest.mark.parametrize("change", ["no memory", "another vendor"])
def test_a_plug_in_without_memory_of_its_own_takes_values_from_the_host(plugged, card, change):
    if change == "no memory":
        plugged.memory_info = lambda kind: None
    else:
        plugged.device.vendor_id = 0x8086
    assert Engine.from_pretrained("mini", provider=RTX).backend.device == "cpu"


def test_the_plug_in_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(MRCError, match=rf"{RTX} cannot be loaded .*pip install 'mrc-edit\[cpu,trt-rtx\]'"):
        Engine.from_pretrained("mini", provider=RTX)


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_a_package_without_the_provider_says_what_to_install(provider):
    with pytest.raises(MRCError, match=rf"has no provider '{provider}' here, it has .*{CPU}; .*mrc-edit\[gpu\]"):
        Engine.from_pretrained("mini", provider=provider)
