import dataclasses
import shutil
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mrc_edit.core import cpu
from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.backends import graph_cache
from mrc_edit.engine.backends import onnxruntime as module

LATENT = {"num_inference_steps": 2, "resolution": 0, "output_type": "latent", "seed": 3}


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Every graph is large enough for the cache, which is empty."""
    monkeypatch.setenv("MRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "LARGE", 0)
    return tmp_path / "cache"


def test_optimized_graphs_are_kept_and_edit_the_same(tiny_export, engine, photo, cached, error):
    expected = engine.edit(photo, "snow", **LATENT).images
    first = Engine.from_pretrained(tiny_export).edit(photo, "snow", **LATENT).images
    written = {path: path.stat().st_mtime_ns for path in cached.rglob("*.onnx")}
    assert len(written) == 6
    second = Engine.from_pretrained(tiny_export).edit(photo, "snow", **LATENT).images
    assert {path: path.stat().st_mtime_ns for path in cached.rglob("*.onnx")} == written
    assert error(first, expected) <= 1e-6 and error(second, expected) <= 1e-6


def test_a_damaged_cache_is_made_again(tiny_export, engine, photo, cached, error):
    Engine.from_pretrained(tiny_export)
    for path in cached.rglob("*.data"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    found = Engine.from_pretrained(tiny_export).edit(photo, "snow", **LATENT).images
    assert error(found, engine.edit(photo, "snow", **LATENT).images) <= 1e-6


def test_a_changed_export_is_refused_though_its_optimized_graph_is_kept(tiny_export, tmp_path, cached):
    """The cache goes by what the manifest says the graph is; another graph has another entry."""
    shutil.copytree(tiny_export, tmp_path / "exported")
    Engine.from_pretrained(tmp_path / "exported")
    shutil.rmtree(cached)
    graph = tmp_path / "exported" / "unet" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(MRCError, match="SHA-256 differs"), warnings.catch_warnings(action="error"):
        Engine.from_pretrained(tmp_path / "exported")


def test_another_cpu_has_optimized_graphs_of_its_own(tiny_export, cached, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "INFO", tmp_path / "cpuinfo")
    for number, features in enumerate(("asimd", "asimd bf16"), start=1):  # of two Arm processors
        (tmp_path / "cpuinfo").write_text(f"Features\t: {features}\n")
        Engine.from_pretrained(tiny_export)
        assert len(list(cached.glob("onnxruntime-*"))) == 6 * number


def spoil(cached, monkeypatch, how):
    """A cache that cannot be used."""
    cached.mkdir()
    if how == "others can write":
        cached.chmod(0o777)
    elif how == "belongs to another user":
        monkeypatch.setattr(graph_cache.os, "getuid", lambda: cached.stat().st_uid + 1)
    elif how == "is a file":
        cached.rmdir()
        cached.write_text("")
    elif how == "is full":
        monkeypatch.setattr(graph_cache, "swapped_folder", full)


@contextmanager
def full(place, check):
    raise OSError(28, "No space left on device")
    yield


@pytest.mark.parametrize("how", ["others can write", "belongs to another user", "is a file", "is full"])
def test_a_cache_that_cannot_be_used_is_left_out_and_said_once(tiny_export, engine, photo, cached, monkeypatch, how):
    spoil(cached, monkeypatch, how)
    with pytest.warns(UserWarning, match="cannot be the cache") as said:
        found = Engine.from_pretrained(tiny_export)
        Engine.from_pretrained(tiny_export)
    assert len(said) == 1 and not list(cached.rglob("*"))
    assert (found.edit(photo, "snow", **LATENT).images == engine.edit(photo, "snow", **LATENT).images).all()


def test_the_cache_is_its_owners_alone(tiny_export, cached):
    Engine.from_pretrained(tiny_export)
    assert cached.stat().st_mode & 0o777 == 0o700


def test_a_cut_graph_is_not_kept(tiny_export, cached, monkeypatch):
    """As ONNX Runtime leaves it on a full disk, without an error."""
    opened = module.OnnxRuntimeBackend.open

    def cut(self, artifact, options, own=None):
        session = opened(self, artifact, options, own)
        if options.optimized_model_filepath:
            data = Path(options.optimized_model_filepath + ".data")
            data.write_bytes(data.read_bytes()[:100])
        return session

    monkeypatch.setattr(module.OnnxRuntimeBackend, "open", cut)
    with pytest.warns(UserWarning, match="cannot be the cache"):
        Engine.from_pretrained(tiny_export)
    assert not list(cached.rglob("*.onnx"))


def test_servers_that_start_together_share_the_cache(tiny_export, cached):
    engines = []
    threads = [threading.Thread(target=lambda: engines.append(Engine.from_pretrained(tiny_export))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engines) == 3 and len(list(cached.iterdir())) == 6  # one place a graph, no leftovers


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"provider": "FastProvider"}, "has no provider 'FastProvider' here, it has .*CPUExecutionProvider"),
        ({"provider_options": {"a": 1}}, "without provider"),
        ({"precision": "bfloat16"}, "--dtype bfloat16"),
        ({"layers": 3}, "no option layers"),
    ],
)
def test_what_it_cannot_do_is_refused(tiny_export, options, word):
    with pytest.raises(MRCError, match=word):
        Engine.from_pretrained(tiny_export, "onnxruntime", **options)


def test_the_cpu_by_name(tiny_export, engine, photo, error):
    named = Engine.from_pretrained(
        tiny_export, provider="CPUExecutionProvider", provider_options={"arena_extend_strategy": "kSameAsRequested"}
    )
    assert error(named.edit(photo, "snow", **LATENT).images, engine.edit(photo, "snow", **LATENT).images) <= 1e-6


def test_an_overflow_in_half_precision_changes_no_other_edit():
    """The decoder in float32 serves the images that overflow, and these alone, in a batch and afterwards."""
    backend = Engine.from_pretrained("mini").backend
    latents = np.random.RandomState(0).standard_normal((3, backend.geometry.latent_channels, 16, 16)).astype(np.float32)
    before = backend.vae_decoder(latents=latents).copy()
    backend.manifest = dataclasses.replace(backend.manifest, precision="float16")  # its decoder serves as both
    decoder = backend.sessions["vae_decoder"]

    class Half:
        """A decoder in half precision, whose second image overflows."""

        def __getattr__(self, name):
            return getattr(decoder, name)

        def run_with_iobinding(self, binding):
            decoder.run_with_iobinding(binding)
            images = binding.get_outputs()[0].numpy()
            images += 1
            images[1] = np.inf

    backend.sessions["vae_decoder"] = Half()
    for _ in range(2):
        found = backend.vae_decoder(latents=latents)
        np.testing.assert_array_equal(found[[0, 2]], before[[0, 2]] + 1)
        np.testing.assert_allclose(found[1], before[1], atol=1e-5)
    assert isinstance(backend.sessions["vae_decoder"], Half)


def test_too_little_memory_to_open_a_graph_is_told(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Exception during initialization: std::bad_alloc")

    monkeypatch.setattr(module.onnxruntime, "InferenceSession", fail)
    with pytest.raises(MRCError, match=r"not enough memory to open .*model.onnx; free some"):
        Engine.from_pretrained("mini")
