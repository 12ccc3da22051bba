import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import command
from mrc_edit.engine.shipped import MODELS


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


@pytest.fixture
def two(tmp_path):
    """Two pictures of one size, beside each other."""
    for i, colour in enumerate(("green", "navy")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{i}.png")
    return [tmp_path / "0.png", tmp_path / "1.png"]


FAST = ("--steps", 1, "--resolution", 64)


def test_several_images_and_seeds_go_to_a_folder(run, two, tmp_path, monkeypatch):
    passes, edit = [], command.Engine.edit

    def counted(engine, images, *rest, **options):
        passes.append(len(images))
        return edit(engine, images, *rest, **options)

    monkeypatch.setattr(command.Engine, "edit", counted)
    out = tmp_path / "new" / "edits"
    options = ("--num-images", 2, "--seed", 7, "--batch-size", 3, "--json")
    status, stdout, _ = run("mini", *two, *FAST, *options, "make it snow", "-o", out)  # options between the images
    assert status == 0 and passes == [3, 1]
    printed = [json.loads(line) for line in stdout.splitlines()]
    assert [line["seed"] for line in printed] == [7, 8, 7, 8]
    names = ["0-edited-1.png", "0-edited-2.png", "1-edited-1.png", "1-edited-2.png"]
    assert [line["output"] for line in printed] == [str(out / name) for name in names]
    engine = command.Engine.from_pretrained("mini")
    for line, image in zip(printed, [two[0], two[0], two[1], two[1]], strict=True):
        alone = edit(engine, image, "make it snow", seed=line["seed"], num_inference_steps=1, resolution=64)
        difference = np.asarray(alone.images[0]).astype(int) - np.asarray(Image.open(line["output"]))
        assert abs(difference).max() <= 1


def test_a_pattern_is_all_that_match(run, two, tmp_path):
    assert run("mini", str(tmp_path / "*.png"), "snow", *FAST, "-o", f"{tmp_path}/out/", "--format", "jpg")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0-edited.jpg", "1-edited.jpg"]
    status, _, stderr = run("mini", str(tmp_path / "*.jpg"), "snow")
    assert status == 2 and "no file matches" in stderr


def test_standard_input_and_output(two):
    """In a process of its own, as in a pipe."""
    code = "import sys; from mrc_edit.core.console import mrc; mrc()"
    words = ["edit", "mini", "-", "make it brighter", *map(str, FAST), "--seed", "3"]
    done = subprocess.run([sys.executable, "-c", code, *words], input=two[0].read_bytes(), capture_output=True)
    assert done.returncode == 0 and done.stderr.startswith(b"standard output: seed 3"), done.stderr
    expected = command.Engine.from_pretrained("mini").edit(
        two[0], "make it brighter", seed=3, num_inference_steps=1, resolution=64
    )
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(done.stdout))), np.asarray(expected.images[0]))


def test_nothing_is_replaced_without_being_asked(run, two, tmp_path, monkeypatch):
    (tmp_path / "out.png").write_text("mine")
    with monkeypatch.context() as patched:
        patched.setattr(command.Engine, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
        for place in (("-o", tmp_path / "out.png"), ("-o", two[0])):
            status, _, stderr = run("mini", two[0], "snow", *FAST, *place)
            assert status == 2 and "--overwrite" in stderr
    assert (tmp_path / "out.png").read_text() == "mine"
    assert run("mini", two[0], "snow", *FAST, "-o", tmp_path / "out.png", "--overwrite")[0] == 0
    assert Image.open(tmp_path / "out.png").size == (64, 64)


@pytest.mark.parametrize(
    ("images", "options", "word"),
    [
        (["0.png", "1.png"], ("-o", "edited.png"), "give a folder"),
        (["0.png", "0.png"], ("-o", "out"), "both become"),
        (["0.png", "1.png"], ("-o", "-"), "one edit"),
        (["0.png"], ("-o", "-", "--num-images", 2), "one edit"),
        (["0.png"], ("-o", "-", "--json"), "standard output"),
        (["0.png"], ("-o", "edited.png", "--format", "jpg"), "leave out --format"),
        (["0.png"], ("--num-images", 0), "--num-images is 0"),
        (["0.png"], ("--batch-size", 0), "--batch-size is 0"),
        (["0.png"], ("--seed", 2**64 - 1, "--num-images", 2), "64 bits"),
        (["0.png", "broken.png"], ("-o", "out"), "broken.png"),
        (["0.png", "none.png"], ("-o", "out"), "none.png does not exist"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_loads(run, two, tmp_path, monkeypatch, images, options, word):
    monkeypatch.setattr(command.Engine, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    status, _, stderr = run("mini", *images, "snow", *options)
    assert status == 2 and word in stderr and stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "broken.png"]


def test_device_and_threads_reach_the_engine(run, two, tmp_path, monkeypatch):
    seen = {}

    def stop(*_, **options):
        seen.update(options)
        raise MRCError("seen")

    monkeypatch.setattr(command.Engine, "from_pretrained", stop)
    words = ("--device", "cuda:1", "--threads", 3, "--precision", "tf32", "-o", tmp_path / "out.png")
    assert run("mini", two[0], "snow", *words)[::2] == (2, "error: seen\n")
    assert seen.items() >= {"device": "cuda:1", "threads": 3, "precision": "tf32", "tier": "exact"}.items()


def test_quality_is_of_the_formats_that_have_one(run, two, tmp_path):
    sizes = []
    for quality in (20, 95):
        out = tmp_path / f"{quality}.jpg"
        assert run("mini", two[0], "snow", *FAST, "--seed", 1, "-o", out, "--quality", quality)[0] == 0
        sizes.append(out.stat().st_size)
    assert sizes[0] < sizes[1]
    for options, word in (
        (("-o", tmp_path / "a.png", "--quality", 90), "is PNG"),
        (("-o", tmp_path / "a.jpg", "--quality", 0), "1 to 100"),
    ):
        status, _, stderr = run("mini", two[0], "snow", *options)
        assert status == 2 and word in stderr


def test_an_edit_of_ours_is_replaced(run, two, tmp_path):
    """Of any format that carries EXIF; but not the image that is edited."""
    for name in ("out.png", "out.jpg", "out.webp"):
        for _ in range(2):
            assert run("mini", two[0], "snow", *FAST, "-o", tmp_path / name)[0] == 0
        status, _, stderr = run("mini", tmp_path / name, "snow", *FAST, "-o", tmp_path / name)
        assert status == 2 and "--overwrite" in stderr


@pytest.mark.parametrize(
    "flags",
    [
        ("--steps", 2, "--scheduler", "ddim", "--reward", "5,2,5", "--reward-text", "None; x; None", "--resolution", 0),
        ("--steps", 1, "--fit", "pad", "--keep-size", "--guidance", 3, "--reward-guidance", "1,1,0.5"),
        ("--steps", 3, "--tier", "fast", "--num-images", 2, "--threads", 1),
    ],
)
def test_again_gives_the_same_picture(run, two, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    assert run("mini", "0.png", "“snow” — make it", *flags, "-o", "first.png")[0] == 0  # the seed is drawn
    first = "first-2.png" if "--num-images" in flags else "first.png"
    status, stdout, stderr = run("--again", first)
    again = first.replace(".png", "-again.png")
    assert status == 0 and stdout.startswith(again) and "warning" not in stderr
    pictures = [Image.open(tmp_path / name) for name in (first, again)]
    np.testing.assert_array_equal(*map(np.asarray, pictures))
    records = [json.loads(picture.info["mrc-edit"]) for picture in pictures]
    assert records[0] == records[1]
    assert pictures[0].info["parameters"].startswith("“snow” — make it\nSteps: ")


def test_again_with_changes(run, two, tmp_path):
    first, out = tmp_path / "first.png", tmp_path / "out.png"
    assert run("mini", two[0], "snow", *FAST, "--seed", 1, "-o", first)[0] == 0
    status, _, stderr = run("--again", first, "--seed", 2, "-o", out)
    assert status == 0 and stderr == ""
    expected = command.Engine.from_pretrained("mini").edit(two[0], "snow", seed=2, num_inference_steps=1, resolution=64)
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(expected.images[0]))
    with pytest.warns(UserWarning, match="this image is not that of the first edit"):
        assert run("--again", first, "mini", two[1], "-o", out)[0] == 0


def test_an_adapter_given_takes_the_place_of_those_of_the_record(tmp_path):
    record = dict.fromkeys(("model", "model_digest", "image", "image_digest", "instruction"), "x")
    text = PngImagePlugin.PngInfo()
    text.add_text("mrc-edit", json.dumps(record | {"settings": {"lora": ["a:1", "b:1"], "embedding": ["<t>=c"]}}))
    Image.new("RGB", (8, 8)).save(tmp_path / "first.png", pnginfo=text)
    for words, lora, embedding in (
        ([], ["a:1", "b:1"], ["<t>=c"]),
        (["--lora", "a:0.5"], ["a:0.5"], ["<t>=c"]),
        (["--lora=d", "--lora=e", "--embedding", "<u>=f"], ["d", "e"], ["<u>=f"]),
    ):
        args, _ = command.parse(["--again", str(tmp_path / "first.png"), *words])
        assert (args.lora, args.embedding) == (lora, embedding)


def test_again_warns_of_another_model(run, two, tmp_path):
    first, other = tmp_path / "first.png", tmp_path / "other"
    assert run("mini", two[0], "make it brighter", *FAST, "-o", first)[0] == 0
    shutil.copytree(MODELS["mini"] / "onnx", other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"checkpoint": "0" * 64}))
    with pytest.warns(UserWarning, match="this model is not that of the first edit") as warned:
        assert run("--again", first, other, "-o", tmp_path / "out.png")[0] == 0
    assert len(warned) == 1


def test_again_takes_nothing_else_from_a_file(run, two, tmp_path, monkeypatch):
    """What a stranger may have written: other flags, other types, no parameters."""
    first, bad = tmp_path / "first.png", tmp_path / "bad.png"
    assert run("mini", two[0], "snow", *FAST, "-o", first)[0] == 0
    record = json.loads(Image.open(first).info["mrc-edit"])
    monkeypatch.setattr(command.Engine, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    for change, word in (
        ({"settings": {"output": "/etc/passwd"}}, "'output'"),
        ({"settings": {"overwrite": True}}, "'overwrite'"),
        ({"settings": {"steps": "many"}}, "invalid int"),
        ({"settings": []}, "settings"),
        ({"model": 3}, "model"),
        (None, "no parameters"),
    ):
        text = PngImagePlugin.PngInfo()
        if change:
            text.add_text("mrc-edit", json.dumps(record | change))
        Image.new("RGB", (8, 8)).save(bad, pnginfo=text)
        status, _, stderr = run("--again", bad)
        assert status == 2 and word in stderr and "Traceback" not in stderr
    status, _, stderr = run("--again", tmp_path / "none.png")
    assert status == 2 and "is not a file" in stderr
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    status, _, stderr = run("--again", tmp_path / "photo.jpg")
    assert status == 2 and "no parameters" in stderr
