import json
import os
import shutil
from pathlib import Path

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.core.files import file_digest
from mrc_edit.engine import Engine
from mrc_edit.engine.manifest import copy_checked, read_checked, read_manifest

MINI = Path(__file__).parents[2] / "mini" / "onnx"


@pytest.fixture
def export(tmp_path):
    """A copy of the shipped export, which needs no tracing."""
    return shutil.copytree(MINI, tmp_path / "mini")


@pytest.fixture
def copy(tiny_export, tmp_path):
    return shutil.copytree(tiny_export, tmp_path / "copy")


def test_every_file_is_listed_with_its_digest(tiny_export, tmp_path):
    manifest = read_manifest(tiny_export)
    there = {str(p.relative_to(tiny_export)) for p in tiny_export.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest.files) == there
    for name in manifest.files:
        copy_checked(tiny_export, manifest, name, tmp_path / "copied")
        expected = (tiny_export / name).read_bytes()
        assert read_checked(tiny_export, manifest, name) == (tmp_path / "copied").read_bytes() == expected


def test_a_flipped_byte_in_any_file_is_refused(copy, tmp_path):
    manifest = read_manifest(copy)
    for name in manifest.files:
        path = copy / name
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(MRCError, match=r"SHA-256 differs.*export again"):
            Engine.from_pretrained(copy)
        with pytest.raises(MRCError, match=r"SHA-256 differs.*export again"):
            copy_checked(copy, manifest, name, tmp_path / "copied")
        path.write_bytes(whole)
    Engine.from_pretrained(copy)


def test_a_missing_file_is_named(copy):
    (copy / "unet" / "model.onnx.data").unlink()
    with pytest.raises(MRCError, match=r"unet/model\.onnx\.data is missing"):
        Engine.from_pretrained(copy)


@pytest.mark.parametrize("path", ["../evil.onnx", "/etc/hostname"])
def test_a_path_out_of_the_folder_is_refused(copy, path):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["artifacts"][0]["path"] = path
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MRCError, match="leaves the export folder"):
        Engine.from_pretrained(copy)


def test_a_link_out_of_the_folder_is_refused(copy, tmp_path):
    shutil.move(copy / "unet" / "model.onnx", tmp_path / "model.onnx")
    (copy / "unet" / "model.onnx").symlink_to(tmp_path / "model.onnx")
    with pytest.raises(MRCError, match="leaves the export folder"):
        Engine.from_pretrained(copy)


BACKENDS = ("onnxruntime", "openvino")


def change_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("location", ["../../outside.data", "{outside}/outside.data", "unlisted.data", "below/x.data"])
def test_external_data_that_is_not_listed_is_refused(copy, tmp_path, backend, location):
    """A folder whose digests all fit, as an attacker would make it."""
    import onnx

    unet = copy / "unet"
    (unet / "below").mkdir()
    for place in (tmp_path / "outside.data", unet / "unlisted.data", unet / "below" / "x.data"):
        shutil.copy(unet / "model.onnx.data", place)
    model = onnx.load(unet / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location.format(outside=tmp_path)
    onnx.save(model, unet / "model.onnx")
    change_manifest(copy, lambda files: files.update({"unet/model.onnx": file_digest(unet / "model.onnx")}))
    with pytest.raises(MRCError, match=r"refuses unet/model\.onnx"):
        Engine.from_pretrained(copy, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_external_data_without_a_digest_is_refused(copy, backend):
    change_manifest(copy, lambda files: files.pop("vae_decoder/model.onnx.data"))
    with pytest.raises(MRCError, match=r"refuses vae_decoder/model\.onnx"):
        Engine.from_pretrained(copy, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_checked_is_what_edits(copy, tmp_path, backend, photo, monkeypatch):
    """Every file is spoiled as soon as it has been read; then another export takes the place of the folder."""
    from mrc_edit.engine.backends import exported

    small = {"seed": 3, "num_inference_steps": 1, "resolution": 0, "output_type": "latent"}
    precision = "float32" if backend == "openvino" else None
    expected = Engine.from_pretrained(copy, backend, precision=precision).edit(photo, "snow", **small).images
    read = Path.read_bytes

    def read_and_spoil(path):
        content = read(path)
        if path.is_relative_to(copy) and path.name != "manifest.json":
            path.write_bytes(b"spoiled")
        return content

    def copy_and_spoil(folder, manifest, name, target):
        copy_checked(folder, manifest, name, target)
        (folder / name).write_bytes(b"spoiled")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_and_spoil)
        patch.setattr(exported, "copy_checked", copy_and_spoil)
        engine = Engine.from_pretrained(copy, backend, precision=precision)
    shutil.rmtree(copy)
    assert (engine.edit(photo, "snow", **small).images == expected).all()
    assert len(engine.edit(photo[:64], "snow", **small).images) == 1  # another size, for which OpenVINO compiles anew


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_export_in_a_hugging_face_cache_opens(tiny_export, tmp_path, backend, shared):
    """Snapshots are folders of links into blobs, which may be links into those that all repositories share."""
    from mrc_edit.core.files import file_digest

    blobs, store = tmp_path / "models--a--b" / "blobs", tmp_path / "blobs" / "ab"
    blobs.mkdir(parents=True)
    store.mkdir(parents=True)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "main"
    for path in (path for path in tiny_export.rglob("*") if path.is_file()):
        blob = blobs / file_digest(path)
        link = snapshot / path.relative_to(tiny_export)
        shutil.copy(path, store / blob.name if shared else blob)
        if shared and not blob.exists():
            blob.symlink_to(os.path.relpath(store / blob.name, blobs))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    Engine.from_pretrained(snapshot, backend)
    (snapshot / "unet" / "model.onnx").unlink()
    (snapshot / "unet" / "model.onnx").symlink_to(tiny_export / "unet" / "model.onnx")
    with pytest.raises(MRCError, match="leaves the export folder"):
        Engine.from_pretrained(snapshot, backend)


def test_an_export_that_is_replaced_while_it_is_opened_opens(copy, tmp_path, monkeypatch):
    from mrc_edit.core.files import file_digest
    from mrc_edit.engine.backends import exported

    other = shutil.copytree(copy, tmp_path / "other")
    settings = other / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text() + " ")
    change_manifest(other, lambda files: files.update({"scheduler/scheduler_config.json": file_digest(settings)}))
    read = exported.read_checked

    def replace_first(folder, manifest, name):
        monkeypatch.setattr(exported, "read_checked", read)
        shutil.rmtree(copy)
        shutil.copytree(other, copy)
        return read(folder, manifest, name)

    monkeypatch.setattr(exported, "read_checked", replace_first)
    assert Engine.from_pretrained(copy).backend.manifest == read_manifest(other)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"schema": 1}', '{"schema": 99}', '{"schema": 1, "geometry": {}, "artifacts": []}']
)
def test_damaged_manifests(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(MRCError, match="mrc-export again"):
        Engine.from_pretrained(copy)


def entry(*path, value):
    """A change of one entry of a manifest."""

    def change(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entry("geometry", "multiple", value=0), "geometry: multiple is 0, not a number from 1 to 4096"),
        (entry("geometry", "multiple", value="64"), "multiple is '64', not a whole number"),
        (entry("geometry", "multiple", value=True), "multiple is True, not a whole number"),
        (entry("geometry", "resolution", value=10**9), "resolution is 1000000000, not a number from 1"),
        (entry("geometry", "text_length", value=-1), "text_length is -1"),
        (entry("geometry", "pad_token_id", value=10**30), "pad_token_id is 1000"),
        (entry("geometry", "pad_token_id", value=None), "pad_token_id is None, not a whole number"),
        (entry("geometry", "rewards", value="no"), "rewards is 'no', not true or false"),
        (entry("geometry", "colour", value=1), "geometry has 'colour'; its entries are rewards"),
        (entry("geometry", value={}), "geometry lacks eos_token_id, latent_channels"),
        (entry("files", value=None), "files is None, not an object"),
        (entry("files", "unet/model.onnx", value=7), r"files\.unet/model\.onnx is 7, not a text"),
        (entry("files", "a\0b", value="0" * 64), r"names a file 'a\\x00b'"),
        (entry("artifacts", value={"unet": 1}), "artifacts is {'unet': 1}, not a list"),
        (entry("artifacts", 0, "path", value=5), r"artifacts\[0\]: path is 5, not a text"),
        (entry("artifacts", 0, "path", value="x" * 5000), "names a file 'xxx"),
        (entry("artifacts", 0, "role", value=[]), r"role is \[\], not a text"),
        (entry("artifacts", 0, "difference", value=float("nan")), "difference is nan, not a finite number"),
        (entry("precision", value=5), "precision is 5, not a text"),
        (entry("defaults", "num_inference_steps", value=0), "num_inference_steps is 0, not a number from 1"),
    ],
)
def test_an_entry_that_cannot_be_is_named(tmp_path, change, message):
    manifest = json.loads((MINI / "manifest.json").read_text())
    change(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MRCError, match=rf"{message}.*; run mrc-export again"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"schema": ' + b"4" * 5000 + b"}", "{}".encode("utf-16")])
def test_what_json_readers_stumble_over(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(MRCError, match=r"not JSON.*run mrc-export again"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scheduler/scheduler_config.json", b"[]", "not an object"),
        ("scheduler/scheduler_config.json", b"{", "not JSON"),
        ("tokenizer/tokenizer.json", b"{", "not JSON"),
        ("tokenizer/tokenizer.json", b"{}", "is no tokenizer"),
        ("vae_encoder/model.onnx", b"", "no ONNX graph"),
        ("vae_encoder/model.onnx", b"x" * 100, "no ONNX graph"),
        ("vae_encoder/model.onnx.data", b"x", "refuses vae_encoder/model"),
    ],
)
def test_damaged_files_with_the_right_digest(export, name, content, message):
    manifest = json.loads((export / "manifest.json").read_text())
    (export / name).write_bytes(content)
    manifest["files"][name] = file_digest(export / name)
    (export / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MRCError, match=message):
        Engine.from_pretrained(export)
