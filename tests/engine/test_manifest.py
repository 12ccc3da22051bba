import json
import shutil
from pathlib import Path

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.core.files import file_digest
from mrc_edit.engine import Engine
from mrc_edit.engine.manifest import check_digests, read_manifest

MINI = Path(__file__).parents[2] / "mini" / "onnx"


@pytest.fixture
def export(tmp_path):
    """A copy of the shipped export, which needs no tracing."""
    return shutil.copytree(MINI, tmp_path / "mini")


@pytest.fixture
def copy(tiny_export, tmp_path):
    return shutil.copytree(tiny_export, tmp_path / "copy")


def test_every_file_is_listed_and_check_digests(tiny_export):
    manifest = read_manifest(tiny_export)
    there = {str(p.relative_to(tiny_export)) for p in tiny_export.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest.files) == there
    check_digests(tiny_export, manifest, manifest.files)


def test_a_flipped_byte_in_any_file_is_refused(copy):
    manifest = read_manifest(copy)
    for name in manifest.files:
        path = copy / name
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(MRCError, match=r"SHA-256 differs.*export again"):
            Engine.from_pretrained(copy)
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


def test_external_data_out_of_the_folder_is_refused(copy, tmp_path):
    """A folder whose digests all fit, as an attacker would make it."""
    import onnx

    shutil.copy(copy / "unet" / "model.onnx.data", tmp_path / "outside.data")
    model = onnx.load(copy / "unet" / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../outside.data"
    onnx.save(model, copy / "unet" / "model.onnx")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["unet/model.onnx"] = file_digest(copy / "unet" / "model.onnx")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MRCError, match=r"refuses unet/model\.onnx"):
        Engine.from_pretrained(copy)


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
