import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.models import checkpoint_files, layout_folders, model_folder
from mrc_edit.engine.shipped import MODELS

MINI = MODELS["mini"]
NAME = "timbrooks/instruct-pix2pix"
SHARDS = ("diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def pushed(tmp_path):
    """A checkpoint as hubs have them: beside what is needed, pickles, code, other variants, other parts."""
    folder = shutil.copytree(MINI / "checkpoint", tmp_path / "pushed")
    for name in (
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/pytorch_model.bin", "safety_checker/model.safetensors", "feature_extractor/config.json",
        "pipeline.py", "unet/evil.py", "whole-model.safetensors", "whole-model.ckpt", "README.md",
    ):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_checkpoint_by_name_edits_as_its_folder_does(hub, pushed, photo):
    hub.push(NAME, pushed)
    small = {"num_inference_steps": 2, "seed": 1, "output_type": "latent"}
    found = Engine.from_pretrained(NAME, "eager").edit(photo, "make it night", **small).images
    assert (found == Engine.from_pretrained("mini", "eager").edit(photo, "make it night", **small).images).all()
    assert names(model_folder(NAME)) == names(MINI / "checkpoint")  # and nothing else was fetched


def test_an_export_by_name_edits_and_its_digests_are_checked(hub, photo, tmp_path):
    pushed = shutil.copytree(MINI / "onnx", tmp_path / "pushed")
    for name in ("tensorrt/unet.engine", "unet_int8/model.onnx", "evil.py"):
        (pushed / name).parent.mkdir(exist_ok=True)
        (pushed / name).write_bytes(b"x")
    hub.push("someone/exported", pushed)
    small = {"num_inference_steps": 2, "seed": 1, "output_type": "latent"}
    found = Engine.from_pretrained("someone/exported").edit(photo, "make it night", **small).images
    assert (found == Engine.from_pretrained("mini").edit(photo, "make it night", **small).images).all()
    assert names(model_folder("someone/exported")) == names(MINI / "onnx")
    (pushed / "unet" / "model.onnx").write_bytes((pushed / "unet" / "model.onnx").read_bytes() + b"x")
    with pytest.raises(MRCError, match="not the file that was exported: its SHA-256 differs"):
        Engine.from_pretrained("someone/exported")


def test_a_folder_of_a_repository_is_a_model(hub, pushed, photo, tmp_path):
    """As the released weights of MRC are laid out."""
    shutil.move(pushed, tmp_path / "all" / "stage2")
    (tmp_path / "all" / "stage1").mkdir()
    (tmp_path / "all" / "stage1" / "model_index.json").write_text("{}")
    hub.push("someone/both", tmp_path / "all")
    small = {"num_inference_steps": 2, "seed": 1, "output_type": "latent"}
    found = Engine.from_pretrained("someone/both/stage2@main", "eager").edit(photo, "make it night", **small).images
    assert (found == Engine.from_pretrained("mini", "eager").edit(photo, "make it night", **small).images).all()
    assert names(model_folder("someone/both/stage2")) == names(MINI / "checkpoint")
    assert model_folder("someone/both/stage2").name == "stage2"
    with pytest.raises(MRCError, match=r"name a folder in it \(someone/both/stage1, someone/both/stage2\)"):
        Engine.from_pretrained("someone/both")
    with pytest.raises(MRCError, match="someone/both on the hub has no folder stage3; it has stage1, stage2"):
        Engine.from_pretrained("someone/both/stage3")


def test_a_folder_goes_before_a_name(hub, pushed, tmp_path):
    hub.push(NAME, pushed)
    (tmp_path / NAME).mkdir(parents=True)
    assert model_folder(NAME) == Path(NAME)
    assert model_folder(Path("someone/else")) == Path("someone/else")  # a Path is no name
    with pytest.raises(MRCError, match="is neither a checkpoint"):
        Engine.from_pretrained(NAME)
    assert hub.log == []


@pytest.mark.parametrize("neither", ["nowhere", "./someone/model", "/tmp/none/at/all", "a/b/", "a/b/../c", "a/b@"])
def test_what_is_neither_folder_nor_name(hub, neither):
    with pytest.raises(MRCError, match=f"{neither} is neither a folder nor a name such as mini or OWNER/NAME"):
        Engine.from_pretrained(neither)
    assert hub.log == []


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("abacus", {}, "backend is 'abacus'"),
        ("onnxruntime", {}, f"reads a export folder and {NAME} is a checkpoint folder; run mrc-export first"),
        ("eager", {"colour": 1}, "has no option colour"),
    ],
)
def test_what_cannot_be_opened_is_not_fetched(hub, pushed, backend, options, message):
    hub.push(NAME, pushed)
    with pytest.raises(MRCError, match=message):
        Engine.from_pretrained(NAME, backend, **options)
    assert hub.fetched() == []


def test_a_smartedit_folder_is_not_taken_for_a_plain_model(hub, pushed):
    (pushed / "smartedit.json").write_text("{}")
    hub.push(NAME, pushed)
    with pytest.raises(MRCError, match="download it and give the folder"):
        Engine.from_pretrained(NAME)
    assert hub.fetched() == []


TEXT = "text_encoder/model.safetensors"
FORMS = {
    "": ["diffusion_pytorch_model.safetensors"],
    "fp16": ["diffusion_pytorch_model.fp16.safetensors"],
    "shards": [*SHARDS, "diffusion_pytorch_model.safetensors.index.json"],
    "fp16 shards": [
        *(name.replace("model-", "model.fp16-") for name in SHARDS),
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ],
    "non_ema": ["diffusion_pytorch_model.non_ema.safetensors"],
}


def repository(*forms: str) -> list[str]:
    """Files of a repository that has a U-Net in these forms, and a plain VAE and text encoder."""
    unet = [f"unet/{name}" for form in forms for name in FORMS[form]]
    return [*unet, "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.safetensors", TEXT]


@pytest.mark.parametrize(
    ("forms", "variant", "chosen"),
    [
        (("", "fp16", "non_ema", "shards"), None, ""),
        (("fp16 shards", "shards", "non_ema"), None, "shards"),
        (("fp16",), None, "fp16"),  # the only one
        (("fp16 shards",), None, "fp16 shards"),
        (("", "fp16"), "fp16", "fp16"),
        (("", "fp16 shards"), "fp16", "fp16 shards"),
        (("fp16 shards", "fp16"), "fp16", "fp16"),
    ],
)
def test_one_variant_is_fetched_whole_or_in_shards(forms, variant, chosen):
    found = checkpoint_files(NAME, repository(*forms), variant)
    assert sorted(found) == sorted(repository(chosen)[:-3] + repository()[1:])


def test_variants_are_not_guessed():
    with pytest.raises(MRCError, match="has the variants fp16, non_ema; choose one"):
        checkpoint_files(NAME, repository("fp16", "non_ema"), None)
    with pytest.raises(MRCError, match="has no variant bf16 of its U-Net; its variants: fp16, non_ema"):
        checkpoint_files(NAME, repository("fp16", "non_ema"), "bf16")
    with pytest.raises(MRCError, match="has no variant fp16 of its U-Net; its variants: none"):
        checkpoint_files(NAME, repository(""), "fp16")


def test_pickles_are_refused_with_what_to_do(hub, pushed):
    (pushed / "text_encoder" / "model.safetensors").unlink()
    hub.push(NAME, pushed)
    with pytest.raises(MRCError, match=r"no safetensors in text_encoder.*download it and run mrc-convert checkpoint"):
        Engine.from_pretrained(NAME)
    assert hub.fetched() == []


def test_a_repository_that_is_no_model(hub, pushed):
    (pushed / "model_index.json").unlink()
    hub.push(NAME, pushed)
    with pytest.raises(MRCError, match=r"neither model_index\.json nor manifest\.json"):
        Engine.from_pretrained(NAME)


def test_a_single_file_takes_tokenizer_settings_and_vae_of_the_hub(hub, pushed, tmp_path, photo):
    """What `--base OWNER/NAME --vae OWNER/NAME` fetches, and that the edit is that of the same folders."""
    hub.push(NAME, pushed)
    hub.push("someone/vae", pushed / "vae")
    given = {"base": NAME, "vae": "someone/vae", "variant": None, "device": "cpu"}
    found = layout_folders(given)
    settings = {name for name in names(MINI / "checkpoint") if not name.endswith(".safetensors")}
    assert names(found["base"]) == settings
    assert names(found["vae"]) == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert {**found, "base": NAME, "vae": "someone/vae"} == given
    whole = layout_folders({"vae": NAME})["vae"]  # the cache's folder of the same repository as base
    assert names(whole) == settings | {f"vae/{name}" for name in names(found["vae"])}

    small = {"num_inference_steps": 2, "seed": 1, "output_type": "latent"}
    expected, edited = (
        Engine.from_pretrained("mini", "eager", vae=vae).edit(photo, "make it night", **small).images
        for vae in (MINI / "checkpoint" / "vae", "someone/vae")
    )
    assert (expected == edited).all()


@pytest.mark.parametrize(
    ("option", "message"),
    [("vae", "has no config.json of a VAE"), ("base", "has no tokenizer"), ("vae", "hub has no model someone/vae")],
)
def test_what_lacks_a_vae_or_a_tokenizer_is_not_fetched(hub, pushed, option, message):
    if message.startswith("has"):
        hub.push("someone/vae", pushed / "scheduler")
    with pytest.raises(MRCError, match=message):
        layout_folders({option: "someone/vae"})
    assert hub.fetched() == []


def test_files_and_folders_are_no_names(hub, tmp_path):
    (tmp_path / "someone" / "vae").mkdir(parents=True)
    given = {"vae": "someone/vae.safetensors", "base": Path("a/b"), "variant": "a/b"}
    assert layout_folders(given) == given
    assert layout_folders({"vae": "someone/vae"}) == {"vae": "someone/vae"}  # the working folder is tmp_path
    assert hub.log == []


def test_the_command_edits_by_name_and_then_offline(hub, pushed, photo, tmp_path):
    """A process of its own, which reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE as users set them."""
    hub.push("someone/exported", MINI / "onnx")
    Image.fromarray(photo).save(tmp_path / "photo.png")

    def edit(output: str, **environment: str) -> dict:
        command = [sys.executable, "-m", "mrc_edit.engine.command", "someone/exported", "photo.png", "make it night"]
        options = ["-o", output, "--steps", "1", "--seed", "1", "--json"]
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")} | environment
        process = subprocess.run([*command, *options], capture_output=True, text=True, check=False, env=environment)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    edit("online.png")
    assert (tmp_path / "home" / "hub" / "models--someone--exported" / "refs" / "main").is_file()
    hub.log.clear()
    edit("offline.png", HF_HUB_OFFLINE="1")
    assert hub.log == []
    assert (tmp_path / "online.png").read_bytes() == (tmp_path / "offline.png").read_bytes()
