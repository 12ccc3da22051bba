"""A model repository for Triton: its configs say what the files are, and it is written whole or not at all."""

import shutil
from dataclasses import fields, replace

import onnxruntime
import pytest
from google.protobuf import text_format

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import EditRequest, EditResult
from mrc_edit.engine.graphs import GRAPHS
from mrc_edit.engine.manifest import Artifact, Bounds, read_manifest
from mrc_edit.engine.shipped import MODELS
from mrc_edit.export import command, exporter
from mrc_edit.export.triton import INPUTS, OUTPUTS, REQUIRED, graph_config, layout, write_repository

pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="no tritonclient: pip install 'mrc-edit[dev]'")

EXPORT = MODELS["mini"] / "onnx"
LEFT_OUT = {"prompt", "generator", "output_type"}  # an alias, and what only Python has
TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_repository(EXPORT, folder)
    return folder


def parsed(text):
    """A config, by Triton's own schema, which knows every field and value."""
    return text_format.Parse(text, pb2.ModelConfig())


def ports(side):
    return {port.name: (pb2.DataType.Name(port.data_type), list(port.dims)) for port in side}


def test_a_graph_stands_there_as_its_file_is(repository):
    """Names, types and open dimensions are those that ONNX Runtime finds in the file at its place."""
    assert {path.name for path in repository.iterdir()} == {"mrc", *(f"mrc_{graph}" for graph in GRAPHS)}
    for graph in GRAPHS:
        folder = repository / f"mrc_{graph}"
        config = parsed((folder / "config.pbtxt").read_text())
        assert (config.name, config.backend, config.max_batch_size) == (folder.name, "onnxruntime", 0)
        session = onnxruntime.InferenceSession(folder / "1" / config.default_model_filename)
        for side, found in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert ports(side) == {
                port.name: (TYPES[port.type], [-1 if isinstance(dim, str) else dim for dim in port.shape])
                for port in found
            }


def test_the_model_that_edits_has_the_arguments_of_an_edit(repository):
    config = parsed((repository / "mrc" / "config.pbtxt").read_text())
    assert config.backend == "python" and config.model_transaction_policy.decoupled
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 64
    assert (repository / "mrc" / "1" / config.default_model_filename).is_file()
    assert INPUTS.keys() == {field.name for field in fields(EditRequest)} - LEFT_OUT | {"tier"}
    assert OUTPUTS.keys() < {field.name for field in fields(EditResult)}
    assert ports(config.input).keys() == INPUTS.keys()
    assert {port.name for port in config.input if not port.optional} == REQUIRED


def test_engines_of_tensorrt_and_int8_graphs_are_models_too():
    """Of TensorRT for RTX there is no backend."""
    manifest = read_manifest(EXPORT)
    unet = manifest.artifact("unet", "onnx")
    profile = {"branch": Bounds([1], [3], [3])}
    engine = replace(unet, runtime="tensorrt", path="tensorrt/unet.engine", profiles=[profile, profile])
    int8 = replace(unet, precision="int8", path="unet_int8/model.onnx")
    own = {"tensorrt/unet.engine": "", "tensorrt/report.html": "", "unet_int8/model.onnx": "", "unet_int8/a.html": ""}
    manifest = replace(
        manifest,
        artifacts=[unet, engine, int8, replace(engine, runtime="tensorrt_rtx", path="tensorrt/rtx.engine")],
        files=manifest.files | own,
    )
    models = {name.split("/", 1)[0]: [] for name in layout(manifest)}
    for name in layout(manifest):
        models[name.split("/", 1)[0]].append(name.split("/", 1)[1])
    del models["mrc"]
    assert models == {
        "mrc_unet": ["config.pbtxt", "1/model.onnx", "1/model.onnx.data"],
        "mrc_unet_float32_tensorrt": ["config.pbtxt", "1/model.plan"],
        "mrc_unet_int8": ["config.pbtxt", "1/model.onnx"],
    }
    config = parsed(graph_config(engine))
    assert config.backend == "tensorrt" and list(config.instance_group[0].profile) == ["0", "1"]
    assert ports(config.input) == ports(parsed(graph_config(unet)).input)


def test_every_type_of_a_graph_is_known():
    """A graph that gets an input of another type fails here, not at a user's."""
    for graph in GRAPHS:
        kinds = {"float32", "int64"}
        artifact = Artifact(graph, "onnx", "float32", f"{graph}/model.onnx", {k: [k, 1] for k in kinds}, {})
        assert len(parsed(graph_config(artifact)).input) == len(kinds)


def test_an_older_one_is_replaced_and_anything_else_kept(repository, tmp_path):
    folder = tmp_path / "models"
    write_repository(EXPORT, folder)
    (folder / "mrc" / "config.pbtxt").write_text("old")
    (folder / "mrc" / "1" / "__pycache__").mkdir()
    (folder / "mrc" / "1" / "__pycache__" / "model.cpython-311.pyc").write_text("Triton's")
    write_repository(EXPORT, folder)
    assert (folder / "mrc" / "config.pbtxt").read_bytes() == (repository / "mrc" / "config.pbtxt").read_bytes()
    (folder / "other").mkdir()
    (folder / "other" / "config.pbtxt").write_text("mine")
    with pytest.raises(MRCError, match=r"other/config\.pbtxt.*--overwrite"):
        write_repository(EXPORT, folder)
    assert (folder / "other" / "config.pbtxt").read_text() == "mine"
    write_repository(EXPORT, folder, overwrite=True)
    assert not (folder / "other").exists()


@pytest.mark.parametrize("place", ["", "export"])
def test_the_export_itself_is_no_place_for_it(tmp_path, place):
    export = tmp_path / "export"
    export.mkdir()
    with pytest.raises(MRCError, match="holds"):
        write_repository(export, tmp_path / place, overwrite=True)


def test_a_damaged_export_makes_none(tmp_path):
    write_repository(EXPORT, tmp_path / "models")
    export = tmp_path / "models" / "mrc" / "1" / "export"
    path = export / "unet" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(MRCError, match="SHA-256"):
        write_repository(export, tmp_path / "second")
    assert [each.name for each in tmp_path.iterdir()] == ["models"]


def run(*words):
    command.export(command.arguments().parse_args([str(word) for word in words]))


def test_the_command_with_and_without_an_export(monkeypatch, tmp_path, capsys):
    """Both write the same repository."""

    def export(source, out, **options):
        shutil.copytree(EXPORT, out)
        return read_manifest(out)

    monkeypatch.setattr(exporter, "export", export)
    run("checkpoint", tmp_path / "out", "--triton-repository", tmp_path / "one")
    run(tmp_path / "out", "--triton-repository", tmp_path / "two")
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two and len(one) > 20
    assert capsys.readouterr().out.count("unet_shallow") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "OUT is missing"),
        (("--triton-repository", "models", "--dtype", "float16", "--trt"), "--dtype, --trt"),
    ],
)
def test_flags_without_an_export_to_make(words, message):
    with pytest.raises(MRCError, match=message):
        run(EXPORT, *words)


def test_a_place_that_is_taken_is_told_before_the_export(monkeypatch, tmp_path):
    monkeypatch.setattr(exporter, "export", lambda *_, **__: pytest.fail("this is minutes of work"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").write_text("keep me")
    with pytest.raises(MRCError, match="no Triton repository"):
        run("checkpoint", tmp_path / "out", "--triton-repository", tmp_path / "models")
