import json

import pytest

from mrc_edit.core.errors import MRCError
from mrc_edit.core.files import replace_folder
from mrc_edit.export.target import check_export, check_target


@pytest.fixture
def export(tmp_path):
    """An export of an older version, as far as `check_export` reads it."""
    folder = tmp_path / "export"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.onnx").write_text("graph")
    manifest = {"schema": 1, "artifacts": [{"path": "unet/model.onnx"}], "files": {"unet/model.onnx": "0"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_export_of_any_version_is_replaced(export):
    check_export(export)
    (export / "unet" / "model.onnx").unlink()  # an incomplete one too
    check_export(export)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", "keep me"),
        ("unet/mine/weights", "keep me"),
        ("manifest.json", '{"name": "My web app", "icons": []}'),
        ("manifest.json", '{"schema": 1, "files": {}, "artifacts": []}'),
        ("manifest.json", "[]"),
        ("manifest.json", "{"),
    ],
)
def test_anything_else_is_kept(export, name, content):
    (export / name).parent.mkdir(exist_ok=True)
    (export / name).write_text(content)
    with pytest.raises(MRCError, match="--overwrite"), replace_folder(export, check_export):
        pytest.fail("this is minutes of work")
    assert (export / name).read_text() == content


def test_a_folder_without_a_manifest_is_kept(export):
    (export / "manifest.json").unlink()
    with pytest.raises(MRCError, match="no export folder"):
        check_export(export)


def test_the_checkpoint_itself_is_no_target(tmp_path):
    for out in (tmp_path, tmp_path / "checkpoint"):
        with pytest.raises(MRCError, match="holds the checkpoint itself"):
            check_target(tmp_path / "checkpoint", out)
    check_target(tmp_path / "checkpoint", tmp_path / "checkpoint" / "export")
