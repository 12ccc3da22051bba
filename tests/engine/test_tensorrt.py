"""The `tensorrt` backend over a stand-in of TensorRT and of the GPU, and over the real one for RTX as far as it goes
without a GPU."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.core.files import file_digest
from mrc_edit.engine import Engine
from mrc_edit.engine.backends import load_backend, tensorrt, tensorrt_engine
from mrc_edit.engine.manifest import read_manifest
from mrc_edit.engine.shipped import MODELS, shipped
from mrc_edit.export.exporter import export
from mrc_edit.export.tensorrt import build_engine, toolkit, with_targets

LATENT = {"num_inference_steps": 4, "resolution": 0, "output_type": "latent", "seed": 3}
MINI = shipped("mini", "onnxruntime")


def module(name):
    return import_module(f"mrc_edit.engine.backends.{name}")


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def flavour(request):
    return request.param


@pytest.fixture
def gpu(on_a_fake_gpu, flavour):
    return on_a_fake_gpu(flavour)


@pytest.fixture(scope="module")
def exported(engine_export, flavour):
    return engine_export(MINI, flavour)


@pytest.fixture(scope="module")
def expected():
    """The same model on ONNX Runtime."""
    return Engine.from_pretrained(MINI)


@pytest.fixture
def square():
    return np.random.RandomState(5).randint(0, 256, (128, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize(("scheduler", "loop"), [("euler_ancestral", True), ("ddim", False), ("dpmpp_2m", True)])
def test_an_edit_is_that_of_onnxruntime(gpu, exported, expected, photo, error, loop, scheduler):
    asked = LATENT | {"seed": [1, 2], "scheduler": scheduler, "reward_scores": [(5, 5, 5), (1, 4, 2)]}
    asked |= {"guidance_scale": 3.0}
    gpu.pack.status = 0 if loop else 18
    engines = (Engine.from_pretrained(exported, "tensorrt"), expected)
    gpu.pack.steps = 0
    assert error(*(engine.edit([photo, photo[::-1]], ["snow", ""], **asked).images for engine in engines)) <= 1e-5
    assert gpu.pack.steps == (4 if loop else 0)


def test_a_sampler_that_clips_does_so_on_the_device(gpu, exported, expected, photo, error):
    engine, ddim = Engine.from_pretrained(exported, "tensorrt"), LATENT | {"scheduler": "ddim"}
    free = expected.edit(photo, "snow", **ddim).images
    with pytest.MonkeyPatch.context() as patch:
        for one in (engine, expected):
            patch.setattr(one.backend, "scheduler", one.backend.scheduler | {"clip_sample": True})
        pair = [one.edit(photo, "snow", **ddim).images for one in (engine, expected)]
    assert error(*pair) <= 1e-5 < error(free, pair[1])


def test_features_are_kept_a_group_of_branches(gpu, exported, expected, photo, error):
    """Without image guidance both groups of branches have equal shapes, and take turns on one recording."""
    asked = LATENT | {"num_inference_steps": 8, "guidance_scale": 4.0, "image_guidance_scale": 1.0}
    engines = [
        Engine.from_pretrained(folder, backend, tier="turbo", precision="float32")
        for folder, backend in ((exported, "tensorrt"), (MINI, "onnxruntime"))
    ]
    assert error(*(engine.edit(photo, "snow", **asked).images for engine in engines)) <= 1e-5


def test_a_callback_changes_latents_on_the_device(gpu, exported, expected, photo, error):
    def halve(engine, step, timestep, tensors):
        return {"latents": tensors["latents"] / 2} if step == 1 else None

    engines = (Engine.from_pretrained(exported, "tensorrt"), expected)
    pair = [engine.edit(photo, "snow", callback_on_step_end=halve, **LATENT).images for engine in engines]
    assert error(*pair) <= 1e-5


def test_the_device_loop_waits_once(gpu, exported, photo):
    engine = Engine.from_pretrained(exported, "tensorrt")
    waits = []
    for steps in (2, 6):
        before = gpu.driver.calls["cuStreamSynchronize"]
        engine.edit(photo, "snow", **LATENT | {"num_inference_steps": steps})
        waits.append(gpu.driver.calls["cuStreamSynchronize"] - before)
    assert waits[0] >= waits[1]  # the first edit also compiled


def test_a_step_is_recorded_at_its_second_run_and_replayed_in_later_edits(gpu, flavour, exported, photo):
    engine = Engine.from_pretrained(exported, "tensorrt")
    counts = []
    for text in ("snow", "rain"):
        engine.edit(photo, text, **LATENT)
        counts.append((gpu.driver.calls["cuGraphInstantiate"], gpu.driver.calls["cuGraphLaunch"]))
    assert counts == ([(1, 3), (1, 7)] if flavour == "tensorrt" else [(0, 0), (0, 0)])  # RTX records by itself
    assert gpu.trt.runs["unet"] == 8
    if flavour == "tensorrt_rtx":
        strategies = [context.config.cuda_graph_strategy for context in gpu.trt.contexts]
        assert strategies.count("whole") == 1  # of the step; what runs once an edit is not recorded
        assert {context.config.dynamic_shapes_kernel_specialization_strategy for context in gpu.trt.contexts} == {
            "eager"
        }


def test_contexts_share_one_activation_buffer_that_grows(gpu, exported, expected, photo, square, error):
    """A larger image moves it; the smaller one's recording is then made anew, not replayed on freed memory."""
    engine = Engine.from_pretrained(exported, "tensorrt")
    images = [photo[:64, :64], square, photo[:64, :64]]
    for image in images:
        pair = [one.edit(image, "snow", **LATENT).images for one in (engine, expected)]
        assert error(*pair) <= 1e-5
    addresses = {context.memory[0] for context in gpu.trt.contexts if context.memory}
    assert engine.backend.scratch.buffer.address in addresses
    in_turn = [context.memory for context in gpu.trt.contexts if context.engine is engine.backend.engines["unet"]]
    assert len(in_turn) == 2 and len({address for address, _ in in_turn}) == 1


def test_the_tight_profile_is_taken_where_it_fits(gpu, exported, photo, square):
    engine = Engine.from_pretrained(exported, "tensorrt")
    chosen = []
    for image, image_guidance in ((square, 1.5), (square, 1.0), (photo, 1.5)):
        engine.edit(image, "snow", **LATENT, guidance_scale=3.0, image_guidance_scale=image_guidance)
        context = [one for one in gpu.trt.contexts if one.engine is engine.backend.engines["unet"]][-1]
        chosen.append(context.engine.content["profiles"].index(context.profile))
    assert chosen == [0, 1, 1]


def test_a_size_that_was_not_built_is_refused_before_anything_runs(gpu, exported, square):
    engine = Engine.from_pretrained(exported, "tensorrt")
    small, large = square[:32, :32], np.zeros((320, 256, 3), dtype=np.uint8)
    for image in (small, large):
        with pytest.raises(MRCError, match=r"images of 64 to 256 pixels a side\).*--max-size") as refused:
            engine.edit(image, "snow", **LATENT)
        assert f"vae_encoder got images 1×3×{len(image)}" in str(refused.value)
    assert gpu.trt.runs["vae_encoder"] == 0
    with pytest.raises(MRCError, match=r"--max-batch"):
        engine.edit([square] * 3, "snow", **LATENT | {"seed": [1, 2, 3]})


def test_memory_goes_back(gpu, exported, photo):
    """The memory of an edit is freed, and only so many sets of shapes are kept."""
    engine = Engine.from_pretrained(exported, "tensorrt")

    def used():
        gpu.driver.cuStreamSynchronize(None)
        return sum(array.size for array in gpu.driver.memory.values())

    engine.edit(photo, "snow", **LATENT)
    once = used()
    engine.edit(photo, "rain", **LATENT)
    assert used() == once
    for side in (64, 80, 96, 112, 128, 144):
        engine.edit(np.zeros((side, side, 3), dtype=np.uint8), "snow", **LATENT | {"num_inference_steps": 1})
    assert len(engine.backend.bindings["unet"].values) == tensorrt.BINDINGS
    gpu.driver.limit = used()
    with pytest.raises(MRCError, match=r"not enough memory for .*edit fewer or smaller images"):
        engine.edit(np.zeros((256, 256, 3), dtype=np.uint8), "snow", **LATENT)
    gpu.driver.limit *= 1000
    engine.edit(photo, "snow", **LATENT)  # it edits on


def test_a_tampered_engine_never_reaches_tensorrt(gpu, exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    path = copy / "tensorrt" / "unet.engine"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(MRCError, match=r"unet\.engine is not the file that was exported: its SHA-256 differs"):
        Engine.from_pretrained(copy, "tensorrt")
    assert len(gpu.trt.opened) == 4  # those of the graphs before it


def changed(folder, tmp_path, change):
    """A copy of an export with another manifest."""
    copy = shutil.copytree(folder, tmp_path / "changed")
    change(read_manifest(copy)).write(copy)
    return copy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: replace(m, tools=m.tools | dict.fromkeys(["tensorrt", "tensorrt_rtx"], "10.1.0")),
         r"was built by tensorrt\w* 10\.1\.0 and this is 11\.4\.0\.106; run mrc-export --trt again"),
        (lambda m: replace(m, artifacts=[a for a in m.artifacts if a.runtime == "onnx"]), "has no TensorRT engines"),
        (lambda m: replace(m, artifacts=[a for a in m.artifacts if a.role != "unet" or a.runtime == "onnx"]),
         "engine of 'unet'"),
    ],
)  # fmt: skip
def test_an_export_that_does_not_fit_is_refused(gpu, exported, tmp_path, change, words):
    with pytest.raises(MRCError, match=words):
        Engine.from_pretrained(changed(exported, tmp_path, change), "tensorrt")


def test_another_gpu_is_named(on_a_fake_gpu, engine_export):
    gpu = on_a_fake_gpu("tensorrt")
    gpu.driver.capability = 90
    with pytest.raises(MRCError, match=r"built for sm89 and this GPU is sm90; run mrc-export --trt again here"):
        Engine.from_pretrained(engine_export(MINI, "tensorrt"), "tensorrt")
    assert not gpu.trt.opened


@pytest.mark.parametrize("bit", range(7))
def test_what_rtx_says_of_an_engine_is_put_into_words(on_a_fake_gpu, engine_export, bit):
    gpu = on_a_fake_gpu("tensorrt_rtx")
    exported = engine_export(MINI, "tensorrt_rtx")
    words = [text.format(target="sm89", capability=89) for text in tensorrt_engine.DIAGNOSES.values()]
    gpu.trt.validity = (2, 1 << bit)
    with pytest.raises(MRCError, match=words[bit]):
        Engine.from_pretrained(exported, "tensorrt")
    assert not gpu.trt.opened
    gpu.trt.validity = (1, 1 << bit)
    with pytest.warns(UserWarning, match=f"slower than it could here: {words[bit]}"):
        Engine.from_pretrained(exported, "tensorrt")


def test_an_engine_that_tensorrt_refuses_is_an_error_in_its_words(gpu, exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "tensorrt" / "unet.engine").write_bytes(b"no engine")
    manifest = read_manifest(copy)
    manifest.files["tensorrt/unet.engine"] = file_digest(copy / "tensorrt" / "unet.engine")
    manifest.write(copy)
    with pytest.raises(MRCError, match=r"TensorRT refuses tensorrt/unet\.engine: no magic tag"):
        Engine.from_pretrained(copy, "tensorrt")


def test_a_run_that_fails_names_the_phase(gpu, exported, photo, monkeypatch):
    engine = Engine.from_pretrained(exported, "tensorrt")
    engine.edit(photo, "snow", **LATENT)
    for context in gpu.trt.contexts:
        monkeypatch.setattr(context, "execute_async_v3", lambda stream, fail=context.fail: fail("a kernel is missing"))
    with pytest.raises(MRCError, match=r"text_encoder failed .*a kernel is missing"):
        engine.edit(photo, "snow", **LATENT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int8"}, r"has no int8 tensorrt\w* engine of 'unet'; .*with --int8"),
        ({"precision": "float16"}, "mrc-export --dtype float16"),
        ({"provider": "CPU"}, "no option provider"),
    ],
)
def test_what_it_cannot_do_is_refused(gpu, exported, options, words):
    with pytest.raises(MRCError, match=words):
        Engine.from_pretrained(exported, "tensorrt", **options)


def test_int8_takes_the_int8_engines_of_the_step(gpu, exported, tmp_path, expected, photo, error):
    def with_int8(manifest):
        steps = [a for a in manifest.artifacts if a.runtime == gpu.trt.flavour and a.role.startswith("unet")]
        return replace(manifest, artifacts=[*manifest.artifacts, *(replace(a, precision="int8") for a in steps)])

    engine = Engine.from_pretrained(changed(exported, tmp_path, with_int8), "tensorrt", tier="turbo")
    precisions = {graph: engine.backend.artifact(graph).precision for graph in ("unet", "unet_shallow", "vae_decoder")}
    assert precisions == {"unet": "int8", "unet_shallow": "int8", "vae_decoder": "float32"}
    host = Engine.from_pretrained(MINI, tier="turbo", precision="float32")
    assert error(*(one.edit(photo, "snow", **LATENT).images for one in (engine, host))) <= 1e-5


def test_a_pack_without_code_for_this_gpu_is_said_and_the_host_loops(
    gpu, exported, expected, photo, error, monkeypatch
):
    monkeypatch.setattr(gpu.pack, "mrc_cuda_sampler_step", lambda *_: 16)
    with pytest.warns(UserWarning, match=r"latents go through the host at every step: .*no code for this GPU"):
        engine = Engine.from_pretrained(exported, "tensorrt")
    assert error(*(one.edit(photo, "snow", **LATENT).images for one in (engine, expected))) <= 1e-5


def test_an_image_that_overflows_in_float16_is_decoded_in_float32(
    gpu, exported, stand_ins, tmp_path, expected, monkeypatch
):
    """That one alone, in a batch; the wide decoder is opened when it is needed."""

    def as_float16(manifest):
        decoder = manifest.artifact("vae_decoder", gpu.trt.flavour)
        half = replace(decoder, precision="float16")
        others = [replace(a, precision="float16") for a in manifest.artifacts if a != decoder]
        return replace(manifest, precision="float16", artifacts=[*others, half, decoder])

    backend = load_backend(changed(exported, tmp_path, as_float16), "tensorrt")
    half, compute = backend.engines["vae_decoder"], stand_ins.tensorrt.FakeContext.compute
    latents = np.random.RandomState(0).standard_normal((2, backend.geometry.latent_channels, 32, 32)).astype(np.float32)

    def overflowing(context, address, size):
        compute(context, address, size)
        if context.engine is half:
            gpu.driver.array(context.addresses["images"], context.get_tensor_shape("images"))[1:] = np.inf

    monkeypatch.setattr(stand_ins.tensorrt.FakeContext, "compute", overflowing)
    images, runs = backend.vae_decoder(latents=latents), gpu.trt.runs["vae_decoder"]
    assert runs == 2 and np.abs(images - expected.backend.vae_decoder(latents=latents)).max() <= 1e-4
    backend.vae_decoder(latents=latents[:1])
    assert gpu.trt.runs["vae_decoder"] == 3


@pytest.fixture
def rtx(on_a_fake_gpu, engine_export, tmp_path, monkeypatch, photo):
    """`compiled(side)`: how many sets of shapes RTX compiles for an edit in a new engine; what it compiles is stored in
    the folder `cache`, by engine, version and GPU."""
    monkeypatch.setenv("MRC_CACHE", str(tmp_path / "cache"))
    gpu, exported = on_a_fake_gpu("tensorrt_rtx"), engine_export(MINI, "tensorrt_rtx")

    def compiled(side=64):
        engine = Engine.from_pretrained(exported, "tensorrt")
        engine.edit(photo[:side], "snow", **LATENT)
        return sum(cache.cache.compiled for cache in engine.backend.caches.values())

    return SimpleNamespace(gpu=gpu, compiled=compiled, cache=tmp_path / "cache")


def test_what_rtx_compiles_is_kept(rtx):
    assert rtx.compiled() == 4  # the graphs of an edit to latents
    files = {path: path.stat().st_mtime_ns for path in rtx.cache.iterdir()}
    assert len(files) == 4
    assert rtx.compiled() == 0
    assert {path: path.stat().st_mtime_ns for path in rtx.cache.iterdir()} == files
    assert rtx.compiled(128) == 2 and rtx.compiled(128) == 0 and rtx.compiled() == 0  # two graphs have the size
    assert set(rtx.cache.iterdir()) == set(files)
    module("cuda").device().name = "Other GPU"
    assert rtx.compiled() == 4


@pytest.mark.parametrize("how", ["damaged", "of another driver"])
def test_compiled_code_that_cannot_be_used_is_made_again(rtx, how):
    rtx.compiled()
    for path in rtx.cache.iterdir():
        digest, content = path.read_bytes()[:32], path.read_bytes()[32:] + b"\nmore"
        if how == "of another driver":
            content = b"driver 2\n"
            digest = hashlib.sha256(content).digest()
        path.write_bytes(digest + content)
    assert rtx.compiled() == 4 and rtx.compiled() == 0


def test_a_cache_that_cannot_be_written_is_said_once(rtx, monkeypatch):
    def full(path, data):
        raise MRCError(f"{path} cannot be written (No space left on device)")

    monkeypatch.setattr(module("tensorrt_cache"), "write_file", full)
    with pytest.warns(UserWarning, match="No space left on device") as said:
        rtx.compiled()
    assert len([warning for warning in said if "No space" in str(warning.message)]) == 1


def test_no_gpu_and_no_package_are_one_error_each(gpu, exported, monkeypatch):
    module("cuda").device.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(type(gpu.driver), "cuInit", lambda self, flags: (100,))
        with pytest.raises(MRCError, match=r"there is no GPU to be used .*install NVIDIA's driver"):
            Engine.from_pretrained(exported, "tensorrt")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cuda.bindings", None)
        with pytest.raises(MRCError, match=r"cuda-bindings .*pip install 'mrc-edit\[trt"):
            Engine.from_pretrained(exported, "tensorrt")
    with monkeypatch.context() as patch, warnings.catch_warnings(action="error"):
        patch.setattr("mrc_edit.engine.backends.find_spec", lambda name: None)
        with pytest.raises(MRCError, match=r"backend tensorrt cannot be used here.*pip install 'mrc-edit\[trt-rtx\]'"):
            load_backend(exported, "tensorrt")


needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is missing (extra trt-rtx)"
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module")
def built(engine_export):
    """An export whose first engine TensorRT for RTX built, for SM 8.6; the others are stand-ins."""
    folder = engine_export(MINI, "tensorrt_rtx")
    manifest, tools = read_manifest(folder), toolkit()
    stand_in = manifest.artifact("conditioner", "tensorrt_rtx")
    source = manifest.artifact("conditioner", "onnx")
    engine, _ = build_engine(folder, source, stand_in.profiles, with_targets(tools, ["sm86"]))
    manifest.artifacts[manifest.artifacts.index(stand_in)] = engine
    manifest.tools["tensorrt_rtx"] = tools.version
    manifest.files[engine.path] = file_digest(folder / engine.path)
    manifest.write(folder)
    return folder


def spoil(folder, tmp_path, how):
    """A copy of `built` with one fault."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    manifest = read_manifest(copy)
    path = manifest.artifact("conditioner", "tensorrt_rtx").path
    if how == "version":
        manifest.tools["tensorrt_rtx"] = "1.6.0"
    elif how != "whole":
        content = bytearray((copy / path).read_bytes())
        content[len(content) // 2 if how == "tampered" else 0] ^= 1
        (copy / path).write_bytes(content)
    if how == "malformed":
        manifest.files[path] = file_digest(copy / path)
    manifest.write(copy)
    return copy


@needs_rtx
@without_gpu
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("tampered", r"conditioner\S* is not the file that was exported: its SHA-256 differs"),
        ("malformed", "cannot run here: it is no engine of this TensorRT for RTX"),
        ("version", r"was built by tensorrt_rtx 1\.6\.0 and this is 1\."),
        ("whole", "cannot run here: .*CUDA driver"),  # all is well but for the driver
    ],
)
def test_tensorrt_rtx_itself_refuses(on_a_fake_gpu, built, tmp_path, how, words):
    on_a_fake_gpu("tensorrt_rtx", real=True)
    with pytest.raises(MRCError, match=words) as refused:
        Engine.from_pretrained(spoil(built, tmp_path, how), "tensorrt")
    assert len(str(refused.value).splitlines()) == 1


def test_a_missing_library_names_the_extra(on_a_fake_gpu, engine_export, monkeypatch):
    for flavour, extra in (("tensorrt_rtx", "trt-rtx"), ("tensorrt", "trt")):
        on_a_fake_gpu(flavour, real=True)
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
        with pytest.raises(MRCError, match=rf"{flavour} cannot be imported .*pip install 'mrc-edit\[{extra}\]'"):
            Engine.from_pretrained(engine_export(MINI, flavour), "tensorrt")


@without_gpu
@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-bindings is not installed (extra trt-rtx)")
def test_a_missing_driver_is_one_error():
    """With cuda-bindings itself."""
    code = "from mrc_edit.engine.backends import cuda; cuda.device()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MRCError: there is no GPU to be used" in done.stderr.splitlines()[-1]


@needs_rtx
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_engines_edit_on_a_gpu(tmp_path, expected, photo, square, error):
    """Two sizes, two texts, and more steps than are run before a recording; with the cache of compiled code too."""
    capability = "sm{}{}".format(*torch.cuda.get_device_capability())
    if capability not in toolkit().targets:
        pytest.skip(f"{toolkit().flavour} builds no engines for {capability}")
    export(MODELS["mini"] / "checkpoint", tmp_path / "out", trt=True, trt_targets=[capability], sizes=(64, 128, 256))
    for _ in range(2):
        engine = Engine.from_pretrained(tmp_path / "out", "tensorrt")
        for image, text in ((photo, "snow"), (square, "rain"), (photo, "snow")):
            pair = [one.edit(image, text, **LATENT).images for one in (engine, expected)]
            assert error(*pair) <= 1e-3


def test_it_imports_no_pytorch():
    code = """
import sys, json
for name in ("torch", "diffusers", "transformers", "onnx", "triton"):
    sys.modules[name] = None
from mrc_edit.engine.backends import tensorrt
from mrc_edit.export import tensorrt_build
from mrc_edit.kernels import pack
print(json.dumps(pack.problem()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "libmrc_cuda.so" in json.loads(done.stdout)
