import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from mrc_edit.core.errors import MRCError
from mrc_edit.core.files import file_digest
from mrc_edit.core.locks import locked
from mrc_edit.engine import Engine
from mrc_edit.engine.backends.eager import EagerBackend
from mrc_edit.engine.graphs import DYNAMIC, GRAPHS, Graph, shapes
from mrc_edit.engine.manifest import read_checked, read_manifest
from mrc_edit.export import command, exporter, stages
from mrc_edit.export.exporter import export
from mrc_edit.export.validate import TOLERANCE, differences
from mrc_edit.model import load_checkpoint
from mrc_edit.model.adapters import load_adapted
from mrc_edit.model.checkpoint import checkpoint_digest

ROLES = set(GRAPHS)


def test_the_manifest_describes_what_was_written(tiny_export):
    manifest = read_manifest(tiny_export)
    assert {artifact.role for artifact in manifest.artifacts} == ROLES
    for artifact in manifest.artifacts:
        model = onnx.load(tiny_export / artifact.path, load_external_data=False)
        assert [value.name for value in model.graph.input] == list(artifact.inputs)
        assert [value.name for value in model.graph.output] == list(artifact.outputs)
        for value in model.graph.input:
            for have, dim in zip(value.type.tensor_type.shape.dim, artifact.inputs[value.name][1:], strict=True):
                assert (dim in DYNAMIC and have.dim_param) or have.dim_value == dim
        assert 0 < artifact.difference <= 1e-4
    assert manifest.geometry.rewards
    assert manifest.scheduler == "euler_ancestral"


def test_no_node_is_of_a_custom_operator(tiny_export):
    for path in tiny_export.rglob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert {node.domain for node in model.graph.node} == {""}


def test_what_depends_on_weights_alone_is_folded(tiny_export):
    for path in tiny_export.rglob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        constant = {weight.name for weight in graph.initializer}
        for node in graph.node:
            if node.input and constant.issuperset(node.input):
                assert node.op_type == "Cast", node.name  # weights stored as halves
                constant |= set(node.output)


def differ_by(manifest, least, most):
    """Whether every graph that was validated differs from eager by as much."""
    return all(least < a.difference <= most for a in manifest.artifacts if a.difference is not None)


@pytest.mark.slow
def test_float16(float16_export, photo, eager, error):
    manifest = read_manifest(float16_export)
    assert differ_by(manifest, 1e-6, 1e-2)
    half, whole = (
        next(a for a in manifest.artifacts if (a.role, a.runtime, a.precision) == ("vae_decoder", "onnx", precision))
        for precision in ("float16", "float32")
    )
    size, full = ((float16_export / f"{a.path}.data").stat().st_size for a in (half, whole))
    assert size < 0.6 * full
    arguments = {"seed": 1, "resolution": 0, "num_inference_steps": 3, "output_type": "latent"}
    expected = eager.edit(photo, "snow", **arguments).images
    for backend, tolerance in (("onnxruntime", 1e-2), ("openvino", 5e-2)):  # OpenVINO: bfloat16, where it is fast
        engine = Engine.from_pretrained(float16_export, backend)
        assert error(engine.edit(photo, "snow", **arguments).images, expected) <= tolerance


@pytest.mark.slow
def test_an_image_that_overflows_is_decoded_in_float32(float16_export, photo):
    editor = Engine.from_pretrained(float16_export)
    run, half = editor.backend.run, editor.backend.sessions["vae_decoder"]

    def overflowing(graph, **feeds):
        outputs = run(graph, **feeds)
        overflows = graph == "vae_decoder" and editor.backend.sessions[graph] is half
        return {"images": np.full_like(outputs["images"], np.inf)} if overflows else outputs

    editor.backend.run = overflowing
    image = editor.edit(photo, "snow", seed=1, resolution=0, num_inference_steps=1, output_type="np").images[0]
    assert np.isfinite(image).all()
    assert editor.backend.sessions["vae_decoder"] is half  # for other images


def test_a_graph_far_from_eager_is_an_error(tmp_path):
    want = [{role: np.ones(4) for role in ROLES}]
    for value in (1 + 2 * TOLERANCE["float32"], np.nan):
        have = [want[0] | {"unet": np.full(4, value)}]
        with pytest.raises(MRCError, match="unet differs from eager"):
            differences(want, have, "float32", tmp_path)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"dtype": "int4"}, "dtype"),
        ({"sizes": (512, 256, 768)}, "sizes"),
        ({"sizes": (100, 512, 768)}, "sizes"),
        ({"max_batch": 0}, "max_batch"),
        ({"opset": 17}, "opset is 17; choose 18 to 24"),
    ],
)
def test_bad_options(tiny, tmp_path, options, word):
    with pytest.raises(MRCError, match=word):
        export(tiny, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("during", ["load", "trace"])
def test_a_checkpoint_that_changes_under_the_export_is_an_error(tiny, tmp_path, monkeypatch, during):
    """The manifest's digest is that of the bytes that were exported, or there is no export."""
    source = shutil.copytree(tiny, tmp_path / "checkpoint")
    options = stages.Options(source, tmp_path / "out", "float32", None, "", (64, 64, 64), 1)

    def work(folder):
        (tmp_path / folder).mkdir()
        work = stages.Work(options, tmp_path / folder)
        stages.load(work)
        return work

    def another_run_writes(*_):
        (source / "defaults.json").write_text('{"num_inference_steps": 7}')
        return load_adapted(tiny)

    whole = work("whole")
    stages.write_settings(whole)
    assert whole.manifest.checkpoint == checkpoint_digest(tiny)
    if during == "load":
        monkeypatch.setattr(stages, "load_adapted", another_run_writes)
    changed = work("changed")
    if during == "trace":
        another_run_writes()
    with pytest.raises(MRCError, match="changed while it was exported"):
        stages.write_settings(changed)
    assert not (tmp_path / "changed" / "manifest.json").exists()


def test_sizes_are_refused_before_the_checkpoint_is_read(tmp_path):
    for options, word in (({"sizes": (512, 256, 768)}, "sizes"), ({"max_batch": 0}, "max_batch")):
        with pytest.raises(MRCError, match=word):
            export(tmp_path / "none", tmp_path / "out", **options)


def test_only_export_folders_are_replaced(tiny, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("keep me")
    with pytest.raises(MRCError, match="no export folder"):
        export(tiny, tmp_path / "letters")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "keep me"
    with locked(tmp_path / "busy"), pytest.raises(MRCError, match="another run is writing"):
        export(tiny, tmp_path / "busy")
    for out in (tiny, tiny.parent):
        with pytest.raises(MRCError, match="checkpoint"):
            export(tiny, out)


@pytest.mark.parametrize("stage", ["trace", "write_settings", "digests", "validate"])
def test_a_failure_at_any_stage_leaves_nothing(tiny, tmp_path, monkeypatch, stage):
    def fail(*args):
        raise OSError(28, "No space left on device")

    if stage != "trace":
        monkeypatch.setattr(stages, "trace_graph", lambda *args: None)
    monkeypatch.setattr(stages, stage, fail)
    with pytest.raises(OSError, match="No space"):
        export(tiny, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_export_leaves_the_old_folder_whole(tiny, tiny_export, tmp_path, photo):
    """SIGKILL as a graph is written; then an export cleans up."""
    out = shutil.copytree(tiny_export, tmp_path / "out")
    assert kill_at("vae_decoder", *start_with_terminal(export_command(tiny, out))) == -signal.SIGKILL
    assert list(tmp_path.glob(".out.partial-*/*/model.onnx.data"))  # the kill hit a folder half written
    for name in read_manifest(out).files:
        read_checked(out, read_manifest(out), name)
    Engine.from_pretrained(out).edit(photo, "snow", resolution=0, num_inference_steps=1)
    assert (out / "manifest.json").read_bytes() == (tiny_export / "manifest.json").read_bytes()
    export(tiny, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def export_command(checkpoint, out):
    return [sys.executable, "-m", "mrc_edit.export.command", str(checkpoint), str(out)]


def start_with_terminal(command):
    """The process, and the terminal where it shows its progress: on any other standard error it shows none."""
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 100))  # of size 0, as made, it is shown nothing
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=side)
    os.close(side)
    return process, terminal


def kill_at(stage, process, terminal):
    """Kill `process` as soon as it shows that a stage begins, and return its status."""
    shown = b""
    while f"{stage}:".encode() not in shown:
        shown += os.read(terminal, 4096)  # an OSError if it ended before
    process.kill()
    os.close(terminal)
    return process.wait()


def test_the_command_prints_a_table_or_json(tiny_export, capsys):
    from mrc_edit.export.command import table

    text = table(tiny_export, read_manifest(tiny_export))
    assert all(role in text for role in ROLES)


def test_the_command_says_what_is_wrong(tmp_path):
    done = subprocess.run(export_command(tmp_path, tmp_path / "out"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "is not a checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plain_model_has_no_reward_tensors():
    for name in GRAPHS:
        inputs, outputs = shapes(name, rewards=False)
        assert inputs and outputs
        assert not {"reward_scores", "reward_text", "gate", "update"} & {*inputs, *outputs}
        whole = shapes(name, rewards=True, feature_bias=True, embeds_guidance=True)
        assert whole == (GRAPHS[name].inputs, GRAPHS[name].outputs)


class Doubler(torch.nn.Module):
    """A graph that a test adds to `GRAPHS`."""

    def __init__(self, unet):
        super().__init__()
        self.weight = unet.conv_in.weight

    def forward(self, latents):
        return (latents * 2 + self.weight.sum(),)


def test_a_new_graph_is_one_row_and_one_module(tiny, tmp_path, monkeypatch):
    """Tracing, validation, the `torch` backend and OpenVINO take it without another line."""
    from mrc_edit.model import graphs

    latents = GRAPHS["vae_decoder"].inputs["latents"]
    monkeypatch.setattr(graphs, "Doubler", Doubler, raising=False)
    monkeypatch.setitem(GRAPHS, "doubler", Graph("Doubler", "unet", {"latents": latents}, {"doubled": latents}))
    manifest = export(tiny, tmp_path / "out")
    assert manifest.artifact("doubler", "onnx").difference <= 1e-6
    array = np.random.RandomState(0).rand(1, 4, 8, 8).astype(np.float32)
    backends = [Engine.from_pretrained(tiny, "torch").backend]
    for name in ("onnxruntime", "openvino"):
        precision = "float32" if name == "openvino" else None
        backends.append(Engine.from_pretrained(tmp_path / "out", name, precision=precision).backend)
    first, *others = [backend.run("doubler", latents=array)["doubled"] for backend in backends]
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-5)


def test_a_wrong_graph_without_a_judge_is_found(tiny, tmp_path, monkeypatch):
    from mrc_edit.export import validate as module
    from mrc_edit.model import graphs

    latents = GRAPHS["vae_decoder"].inputs["latents"]
    monkeypatch.setattr(graphs, "Doubler", Doubler, raising=False)
    monkeypatch.setitem(GRAPHS, "doubler", Graph("Doubler", "unet", {"latents": latents}, {"doubled": latents}))
    eager = EagerBackend(load_checkpoint(tiny))
    case = module.cases(eager.geometry)[0]
    expected = module.eager_outputs(eager, case)
    with pytest.raises(MRCError, match="the exported doubler differs from eager"):
        module.differences([expected], [expected | {"doubler": expected["doubler"] + 1}], "float32", tmp_path)


def test_int8_above_its_budget_is_said(tiny_export, tmp_path, monkeypatch, capsys):
    quantize = pytest.importorskip("mrc_edit.export.quantize")
    shutil.copytree(tiny_export, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    monkeypatch.setattr(quantize, "quantize_steps", lambda *_: {"unet": 0.114, "unet_shallow": 0.03})
    options = stages.Options(tmp_path, tmp_path / "out", "float32", tmp_path, "", (64, 64, 64), 1)
    work = stages.Work(options, tmp_path / "out", manifest=manifest)
    stages.add_int8(work)
    stages.write_manifest(work)
    [warning] = read_manifest(tmp_path / "out").warnings
    assert warning.startswith("unet in int8 moves the noise by 11.4%, more than the 3%")
    monkeypatch.setattr(exporter, "export", lambda *_, **__: read_manifest(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["mrc-export", "checkpoint", str(tmp_path / "out"), "--json"])
    with pytest.raises(SystemExit) as status:
        command.main()
    assert status.value.code == 0
    assert capsys.readouterr().err == f"warning: {warning}\n"


@pytest.fixture
def adapters(tmp_path):
    """A LoRA and a token of two vectors for the seeded model."""
    generator = torch.Generator().manual_seed(1)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {"down": (4, 64), "up": (64, 4)}
    factors = {f"{name}.lora_{role}.weight": torch.randn(shapes[role], generator=generator) for role in shapes}
    save_file(factors, lora := tmp_path / "style.safetensors")
    save_file({"emb_params": torch.randn(2, 64, generator=generator)}, token := tmp_path / "cat.safetensors")
    return {"lora": {str(lora): 0.8}, "embeddings": {"<cat>": str(token)}}


def test_the_flags_of_adapters_are_arguments(adapters, monkeypatch):
    given = {}

    def record(*_, **options):
        given.update(options)
        raise MRCError("enough")

    monkeypatch.setattr(exporter, "export", record)
    (lora, scale), (token, file) = (next(iter(each.items())) for each in adapters.values())
    flags = ["--lora", f"{lora}:{scale}", "--embedding", f"{token}={file}"]
    monkeypatch.setattr(sys, "argv", ["mrc-export", "a", "b", *flags])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert {name: given[name] for name in adapters} == adapters


def test_adapters_are_added_and_recorded(tiny, adapters, tmp_path):
    (tmp_path / "out").mkdir()
    work = stages.Work(
        stages.Options(tiny, tmp_path, "float32", None, None, (64,) * 3, 1, **adapters), tmp_path / "out"
    )
    stages.load(work)
    expected = load_adapted(tiny, **adapters)[0]
    for part in ("unet", "text_encoder"):
        state = getattr(work.checkpoint, part).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in getattr(expected, part).state_dict().items())
    stages.write_settings(work)
    (lora, scale), (token, file) = (next(iter(each.items())) for each in adapters.values())
    manifest = read_manifest(tmp_path / "out")
    assert asdict(manifest.adapters) == {
        "lora": [{"file": "style.safetensors", "sha256": file_digest(Path(lora)), "scale": scale}],
        "embeddings": [{"token": token, "file": "cat.safetensors", "sha256": file_digest(Path(file))}],
    }
    assert manifest.checkpoint == checkpoint_digest(tiny)
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer" / "tokenizer.json"))
    assert [tokenizer.token_to_id(each) for each in ("<cat>", "<cat>_1")] == [514, 515]


@pytest.mark.slow
def test_an_export_with_adapters_edits_as_the_checkpoint_with_them(tiny, adapters, tmp_path, photo, error):
    export(tiny, tmp_path / "out", **adapters)
    arguments = {"seed": 1, "resolution": 0, "num_inference_steps": 2, "output_type": "latent"}
    exported = Engine.from_pretrained(tmp_path / "out").edit(photo, "a <cat>", **arguments).images
    ours, without = (
        Engine.from_pretrained(tiny, "eager", **added).edit(photo, "a <cat>", **arguments).images
        for added in (adapters, {"embeddings": adapters["embeddings"]})
    )
    assert error(exported, ours) <= 1e-4 < 1e-3 < error(without, ours)
