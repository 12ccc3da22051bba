import json
import shutil

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.manifest import check_digests, read_manifest


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

    from mrc_edit.core.files import file_digest

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
