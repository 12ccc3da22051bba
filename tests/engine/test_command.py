import json
import sys

import numpy as np
import pytest
from PIL import Image

from mrc_edit.engine import command


@pytest.fixture
def run(monkeypatch, capsys):
    """`mrc-edit` with arguments → exit status, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mrc-edit", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_status:
            command.main()
        return exit_status.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def picture(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_command_is_the_engine(run, engine, tiny_export, picture, photo, tmp_path):
    out = tmp_path / "edited.png"
    options = ("--steps", 2, "--seed", 4, "--resolution", 0, "--reward", "5,2,5", "--scheduler", "euler", "--json")
    options += ("--reward-guidance", "1,1,0.5", "--reward-guidance-text", "blurry")
    status, stdout, _ = run(tiny_export, picture, "make it snow", "-o", out, *options)
    assert status == 0
    printed = json.loads(stdout)
    assert (printed["seed"], printed["size"]) == (4, [64, 128])
    arguments = {"num_inference_steps": 2, "seed": 4, "resolution": 0, "scheduler": "euler"}
    arguments |= {"reward_guidance": (1, 1, 0.5), "reward_guidance_text": "blurry"}
    expected = engine.edit(photo, "make it snow", reward_scores=(5, 2, 5), **arguments)
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(expected.images[0]))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"-o": "edited.txt"}, "image format"),
        ({"-o": "edited.hdf"}, "image format"),
        ({"-o": "edited.palm"}, "image format"),
        ({"-o": "."}, "image format"),
        ({"-o": "none/edited.png"}, "cannot be written"),
        ({"--reward": "5,5"}, "reward_scores"),
        ({"--reward": "best"}, "--reward"),
        ({"--reward-guidance": "worst"}, "--reward-guidance"),
        ({"--reward-guidance": "1,1,6"}, "reward_guidance"),
        ({"--steps": "0"}, "num_inference_steps"),
        ({"--guidance": "0.5"}, "guidance_scale"),
        ({"--backend": "magic"}, "choose auto"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(run, tiny_export, picture, tmp_path, change, word):
    options = {"-o": "edited.png", "--steps": "1", "--resolution": "64"} | change
    options["-o"] = str(tmp_path / options["-o"])
    status, _, stderr = run(tiny_export, picture, "x", *(part for pair in options.items() for part in pair))
    assert status == 2
    assert stderr.count("\n") == 1
    assert stderr.startswith("error: ")
    assert word in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize(
    "change",
    [
        ("-o", "none/edited.png"), ("-o", "edited.hdf"), ("--steps", "0"), ("--guidance", "0"), ("--seed", "9" * 30),
        ("--reward", "5,5,9"), ("--reward-guidance", "1,1"), ("--reward-text", "\udc80"), ("image", "none.png"),
        ("instruction", "snow \udcff"), ("--resolution", "63"), ("--resolution", "4097"), ("--resolution", "-1"),
    ],
)  # fmt: skip
def test_what_no_model_can_use_is_refused_before_one_loads(run, picture, tmp_path, monkeypatch, change):
    monkeypatch.setattr(command.Engine, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    option, value = change
    given = {"image": picture, "instruction": "x", "-o": "edited.png"} | {option: value}
    image, instruction = given.pop("image"), given.pop("instruction")
    status, _, stderr = run("model", image, instruction, *(part for pair in given.items() for part in pair))
    assert status == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1


def test_so_is_an_own_size_that_is_too_large(run, tmp_path, monkeypatch):
    monkeypatch.setattr(command.Engine, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    Image.new("RGB", (4160, 64)).save(tmp_path / "wide.png")
    for fit in ("crop", "pad", "stretch"):
        options = ("-o", tmp_path / "edited.png", "--resolution", 0, "--fit", fit)
        status, _, stderr = run("model", tmp_path / "wide.png", "snow", *options)
        assert status == 2 and "crop it, or resize it first" in stderr and stderr.count("\n") == 1


def test_help_lists_the_backends(run):
    _, stdout, _ = run("--help")
    assert "onnxruntime  available" in stdout
    assert "openvino" in stdout


@pytest.mark.parametrize(
    ("options", "size"),
    [((), (128, 80)), (("--fit", "pad"), (128, 77)), (("--fit", "stretch", "--keep-size"), (100, 60))],
)
def test_a_picture_of_any_size(run, tmp_path, options, size):
    Image.new("RGB", (100, 60), "green").save(tmp_path / "photo.png")
    out = tmp_path / "edited.png"
    assert run("mini", tmp_path / "photo.png", "make it snow", "-o", out, "--steps", 1, *options)[0] == 0
    assert Image.open(out).size == size
