"""An export whose manifest does not fit its graphs is one error when it is opened."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine

onnx = pytest.importorskip("onnx")
MINI = Path(__file__).parents[2] / "mini" / "onnx"


@pytest.fixture
def export(tmp_path):
    return Path(shutil.copytree(MINI, tmp_path / "export"))


def change_manifest(export, change):
    """Apply `change` to the manifest and to its artifacts by role."""
    manifest = json.loads((export / "manifest.json").read_text())
    change(manifest, {artifact["role"]: artifact for artifact in manifest["artifacts"]})
    (export / "manifest.json").write_text(json.dumps(manifest))


def change_graph(export, role, change):
    """Apply `change` to an ONNX graph, and list its new digest."""
    path = export / role / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change_manifest(export, lambda manifest, _: manifest["files"].update({f"{role}/model.onnx": digest}))


def without_rewards(manifest, _):
    manifest["geometry"]["rewards"] = False


def swapped_outputs(_, artifacts):
    artifacts["unet"]["outputs"] = dict(reversed(artifacts["unet"]["outputs"].items()))


def short_shape(_, artifacts):
    artifacts["vae_encoder"]["inputs"]["images"].pop()


def other_width(_, artifacts):
    artifacts["text_encoder"]["outputs"]["pooled"][2] = 7


def geometry(name, value):
    return lambda manifest, _: manifest["geometry"].update({name: value})


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_whole_export_opens(export, backend):
    pytest.importorskip(backend)
    Engine.from_pretrained(export, backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (geometry("latent_channels", 3), r"latents has \d+ latent_channels, manifest.json 3"),
        (geometry("text_length", 70), r"text_states has \d+ length, manifest.json 70"),
        (geometry("multiple", 18), r"multiple 18 and the vae_scale \d+"),
        (without_rewards, r"has timesteps, .*a model without rewards timesteps, text_states;"),
        (swapped_outputs, r"unet/model.onnx has noise, deep, and manifest.json deep, noise"),
        (short_shape, r"images has 4 dimensions, and manifest.json 3"),
        (other_width, r"pooled has \d+ text_width, manifest.json for it 7"),
    ],
)
def test_a_manifest_that_does_not_fit(export, change, message):
    change_manifest(export, change)
    with pytest.raises(MRCError, match=message):
        Engine.from_pretrained(export, "onnxruntime")


def test_graphs_that_do_not_fit_each_other(export):
    def widen(graph):
        next(port for port in graph.input if port.name == "base").type.tensor_type.shape.dim[1].dim_value += 1

    def as_widened(_, artifacts):
        artifacts["unet"]["inputs"]["base"][2] += 1

    change_graph(export, "unet", widen)
    change_manifest(export, as_widened)
    with pytest.raises(
        MRCError, match=r"unet/model.onnx: base has \d+ reward_channels, .*conditioner/model.onnx: gate \d+"
    ):
        Engine.from_pretrained(export, "onnxruntime")


def test_a_graph_for_one_size_alone(export):
    def fix(graph):
        graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64

    change_graph(export, "vae_encoder", fix)
    with pytest.raises(MRCError, match=r"images is fixed at 64 height"):
        Engine.from_pretrained(export, "onnxruntime")
