"""TensorRT for RTX builds without a GPU; running its engines needs one."""

import html.parser
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mrc_edit.core import child
from mrc_edit.core.errors import MRCError
from mrc_edit.core.locks import locked
from mrc_edit.engine.graphs import GRAPHS
from mrc_edit.engine.manifest import read_checked, read_manifest
from mrc_edit.engine.shipped import MODELS
from mrc_edit.export import command, exporter, stages
from mrc_edit.export.exporter import export
from mrc_edit.export.tensorrt import Toolkit, engine_profiles, engine_sides, with_targets

ONNX, CHECKPOINT = MODELS["mini"] / "onnx", MODELS["mini"] / "checkpoint"
RTX = Toolkit("tensorrt_rtx", "1.7.1", ("sm75", "sm80", "sm86", "sm120"))
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is missing (extra trt-rtx)"
)


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["full_export", "float16_export"])
def test_every_graph_gets_an_engine(name, request):
    out = request.getfixturevalue(name)
    manifest = read_manifest(out)
    engines = [artifact for artifact in manifest.artifacts if artifact.runtime == "tensorrt_rtx"]
    assert {engine.role for engine in engines} == set(GRAPHS)
    for name in manifest.files:
        read_checked(out, manifest, name)
    for engine in engines:
        assert (out / engine.path).stat().st_size > 10_000
        assert all(profile.keys() == engine.inputs.keys() for profile in engine.profiles)
    unet = next(engine for engine in engines if engine.role == "unet")
    tight, wide = (vars(profile["sample"]) for profile in unet.profiles)
    assert all(shape == [2, 8, 16, 16] for shape in tight.values())
    assert wide == {"min": [1, 8, 8, 8], "opt": [2, 8, 16, 16], "max": [6, 8, 32, 32]}
    report = json.loads((out / "tensorrt" / "report.json").read_text())
    assert {engine["graph"] for engine in report["engines"]} == set(GRAPHS)


def test_the_tight_profile_is_the_best_of_the_wide_one():
    manifest = read_manifest(ONNX)
    for graph in GRAPHS:
        *tight, wide = engine_profiles(manifest.artifact(graph, "onnx"), (64, 128, 192), manifest.geometry, 2)
        assert len(tight) == (graph not in ("conditioner", "text_encoder"))
        for profile in tight:
            for name, bounds in profile.items():
                assert bounds.min == bounds.opt == bounds.max == wide[name].opt
    channels = 2 * manifest.geometry.latent_channels
    assert tight[0]["sample"].opt == [2, channels, 32, 32]  # one image, with and without the source
    assert tight[0]["guidance"].opt == [1, 3]


@pytest.mark.parametrize(
    ("asked", "found"),
    [(None, ("sm80", "sm86", "sm120")), (["sm86"], ("sm86",)), (["sm120", "sm75"], ("sm75", "sm120"))],
)
def test_targets(asked, found):
    assert with_targets(RTX, asked).targets == found


@pytest.mark.parametrize(("asked", "words"), [(["sm80", "sm90"], "trt_targets are sm90; .*sm75, sm80"), ([], "none")])
def test_targets_that_are_not_built_for(asked, words):
    with pytest.raises(MRCError, match=words):
        with_targets(RTX, asked)


def test_targets_without_engines_are_refused(tmp_path):
    with pytest.raises(MRCError, match="trt_targets were given without trt"):
        export(CHECKPOINT, tmp_path / "out", trt_targets=["sm86"])


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ((None, None, None), (64, 128, 192)),
        ((32, None, None), (32, 128, 192)),
        ((None, 160, 256), (64, 160, 256)),
    ],
)
def test_sizes_are_those_of_the_model_unless_given(asked, found):
    geometry = read_manifest(ONNX).geometry
    assert engine_sides(geometry, asked, 1) == found


@pytest.fixture
def quick(monkeypatch):
    """Exports of `mini` that take its graphs as they are, with the engine of one graph for one GPU."""

    def take(work):
        shutil.copytree(ONNX, work.folder, dirs_exist_ok=True)
        work.manifest = read_manifest(work.folder)

    steps = [
        ("take", take),
        ("engine", lambda work: stages.add_engine(work, "conditioner", "float32")),
        ("report", stages.report_engines),
        ("write manifest", stages.write_manifest),
    ]
    monkeypatch.setattr(exporter, "stages_of", lambda options: steps)
    return lambda out: export(CHECKPOINT, out, trt=True, trt_targets=["sm86"])


@needs_rtx
def test_the_report_says_what_was_built(quick, tmp_path):
    np.ones(1 << 30, dtype=np.uint8)  # memory of this process, which is not the build's
    quick(tmp_path / "out")
    folder, manifest = tmp_path / "out", read_manifest(tmp_path / "out")
    report = json.loads(read_checked(folder, manifest, "tensorrt/report.json"))
    (engine,) = report["engines"]
    assert report["targets"] == ["sm86"] and report["versions"]["tensorrt_rtx"] == report["version"]
    assert engine["engine_bytes"] == (folder / engine["path"]).stat().st_size
    assert engine["layers"]["matrix_multiply"] > 5 and engine["build_seconds"] > 0
    assert 1e8 < engine["peak_memory_bytes"] < 1 << 30
    assert engine["profiles"][0]["timesteps"] == {"min": [1], "opt": [30], "max": [1000]}
    page = read_checked(folder, manifest, "tensorrt/report.html").decode()
    assert "sm86" in page and "conditioner" in page and "1 … 30 … 1000" in page
    links = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: links.extend(v for k, v in attributes if k in ("src", "href"))
    parser.feed(page)
    assert not links  # it loads nothing


@needs_rtx
@pytest.mark.parametrize("fault", ["full disk", "killed", "refused"])
def test_a_build_that_fails_is_one_error_and_leaves_the_old_export(quick, tmp_path, monkeypatch, fault):
    out = shutil.copytree(ONNX, tmp_path / "out")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    run = subprocess.run

    def killed(command, **options):
        if '"build"' not in options["input"]:
            return run(command, **options)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.kill()
        return subprocess.CompletedProcess(command, process.wait(), "", "")

    def spoiled(command, **options):
        request = json.loads(options["input"])
        if request["do"] == "build" and fault == "full disk":
            Path(request["engine"]).symlink_to("/dev/full")
        elif request["do"] == "build":
            Path(request["onnx"]).write_bytes(b"no model")
        return run(command, **options)

    monkeypatch.setattr(child.subprocess, "run", killed if fault == "killed" else spoiled)
    words = {"full disk": "No space left on device", "killed": "ended by SIGKILL; .*memory", "refused": "[Pp]ars"}
    with pytest.raises(MRCError, match=f"TensorRT could not build conditioner: .*{words[fault]}") as failed:
        quick(out)
    assert len(str(failed.value).splitlines()) == 1 and 'File "' not in str(failed.value)  # no traceback
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@needs_rtx
def test_two_exports_into_one_folder_are_one_error(quick, tmp_path):
    with locked(tmp_path / "out"), pytest.raises(MRCError, match="another run is writing"):
        quick(tmp_path / "out")


def test_the_building_process_ends_with_its_parent():
    """It waits for its request, which this test could still send, as the process in between is killed."""
    code = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "from mrc_edit.export import tensorrt_build; import os; print(os.getpid(), "
                "flush=True); tensorrt_build.main()"])
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    waiting = Path(f"/proc/{child}/wchan")
    while "pipe" not in waiting.read_text():  # it reads its request
        time.sleep(0.01)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    ended, _, _ = select.select([parent.stdout], [], [], 60)
    assert ended and parent.stdout.read() == ""  # nobody holds the pipe any more
    parent.stdin.close()


def test_no_tensorrt_says_what_to_install(monkeypatch):
    from mrc_edit.export import tensorrt_build

    for name in ("tensorrt", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MRCError, match=r"pip install 'mrc-edit\[trt-rtx\]'"):
        tensorrt_build.describe()


def test_data_centre_tensorrt_builds_for_this_gpu(monkeypatch):
    from types import SimpleNamespace

    from mrc_edit.export import tensorrt_build

    monkeypatch.setattr(tensorrt_build, "load_tensorrt", lambda flavour: SimpleNamespace(__version__="11.4"))
    monkeypatch.setattr(tensorrt_build.cuda, "device", lambda: SimpleNamespace(capability=90))
    assert tensorrt_build.describe() == {"flavour": "tensorrt", "version": "11.4", "targets": ["sm90"]}


def test_the_command_passes_on_what_it_is_given(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(exporter, "export", lambda *folders, **options: given.update(options) or read_manifest(ONNX))
    monkeypatch.setattr(command, "table", lambda *_: "")
    asked = ["c", "o", "--trt", "--trt-target", "sm86,sm89", "--opt-size", "256", "--max-batch", "4"]
    command.export(command.arguments().parse_args(asked))
    assert given["trt_targets"] == ["sm86", "sm89"] and given["sizes"] == (None, 256, None) and given["max_batch"] == 4
