"""Every layout of docs/checkpoints.md: as diffusers and transformers write it, it edits as diffusers' pipeline does."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionInstructPix2PixPipeline
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.export.exporter import export
from mrc_edit.model import load_checkpoint
from mrc_edit.model.checkpoint import checkpoint_digest

SPEC = importlib.util.spec_from_file_location("layouts", Path(__file__).with_name("layouts.py"))
layouts = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(layouts)
STEPS = {"num_inference_steps": 2, "guidance_scale": 7.5, "image_guidance_scale": 1.5}
Pipeline = StableDiffusionInstructPix2PixPipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint that most rows are made of, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("layouts") / "sd1"
    layouts.sd1().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts") / "sd2"
    layouts.sd2().save_pretrained(folder)
    return folder


def opened(folder, **options):
    return Pipeline.from_pretrained(str(folder), safety_checker=None, torch_dtype=torch.float32, **options)


def single(pipeline, folder, ema=None):
    """A file and its base."""
    path = layouts.save_state(layouts.original_state(pipeline, ema), folder / "model.safetensors")
    return path, {"base": layouts.settings_only(pipeline.config._name_or_path, folder / "base")}


def of_single_file(path, base):
    return Pipeline.from_single_file(
        str(path), config=str(base), safety_checker=None, torch_dtype=torch.float32, local_files_only=True
    )


# Each row gives a checkpoint, the options that open it, and diffusers' own pipeline of the same files
def folder_row(saved, tmp_path):
    return saved, {}, opened(saved)


def variant_row(saved, tmp_path):
    opened(saved).to(torch.float16).save_pretrained(tmp_path / "m", variant="fp16")
    plain = opened(saved)  # lies beside it, and is another model
    torch.nn.init.ones_(plain.unet.conv_out.bias)
    plain.save_pretrained(tmp_path / "m")
    return tmp_path / "m", {"variant": "fp16"}, opened(tmp_path / "m", variant="fp16")


def shards_row(saved, tmp_path):
    opened(saved).save_pretrained(tmp_path / "m", max_shard_size="500KB")
    assert len(list((tmp_path / "m" / "unet").glob("*-of-*.safetensors"))) > 2
    return tmp_path / "m", {}, opened(tmp_path / "m")


def sharded_variant_row(saved, tmp_path):
    opened(saved).to(torch.float16).save_pretrained(tmp_path / "m", variant="fp16", max_shard_size="500KB")
    return tmp_path / "m", {"variant": "fp16"}, opened(tmp_path / "m", variant="fp16")


def cache_row(saved, tmp_path):
    model = layouts.as_hub_cache(saved, tmp_path)
    return model, {}, opened(model / "snapshots" / "0123abc")


def file_row(saved, tmp_path):
    path, options = single(opened(saved), tmp_path)
    return path, options, of_single_file(path, options["base"])


def averaged_row(saved, tmp_path):
    path, options = single(opened(saved), tmp_path, ema=layouts.sd1().unet)
    return path, options, of_single_file(path, options["base"])


def vae_row(saved, tmp_path):
    layouts.other_vae().save_pretrained(tmp_path / "vae")
    return saved, {"vae": tmp_path / "vae"}, opened(saved, vae=AutoencoderKL.from_pretrained(tmp_path / "vae"))


def vae_file_row(saved, tmp_path):
    path = layouts.save_state(layouts.original_vae(layouts.other_vae()), tmp_path / "vae.safetensors", torch.float32)
    vae = AutoencoderKL.from_single_file(str(path), config=str(saved), subfolder="vae", local_files_only=True)
    return saved, {"vae": path}, opened(saved, vae=vae)


def tiny_vae_row(saved, tmp_path):
    layouts.tiny_vae().save_pretrained(tmp_path / "vae")
    theirs = AutoencoderTiny.from_pretrained(tmp_path / "vae")
    encode = theirs.encode  # of scaled latents, which their pipeline gives to the U-Net as they are
    theirs.encode = lambda images: AutoencoderTinyOutput(encode(images).latents / 0.18215)
    return saved, {"vae": tmp_path / "vae"}, opened(saved, vae=theirs)


def sd2_row(saved2, tmp_path):
    return saved2, {}, opened(saved2)


ROWS = {
    "a folder": folder_row, "a variant": variant_row, "shards": shards_row, "shards of a variant": sharded_variant_row,
    "the hub's cache": cache_row, "a single file": file_row, "a single file with averaged weights": averaged_row,
    "another VAE": vae_row, "another VAE, a file": vae_file_row, "a tiny VAE": tiny_vae_row,
    "Stable Diffusion 2": sd2_row, "Stable Diffusion 2, a single file": file_row,
}  # fmt: skip


def latents_of(pipeline, photo):
    draw = torch.Generator("cpu").manual_seed(1)
    return pipeline("snow", Image.fromarray(photo), generator=draw, output_type="latent", **STEPS).images.numpy()


def edited(engine, photo):
    return engine.edit(photo, "snow", seed=1, resolution=0, output_type="latent", **STEPS).images


@pytest.fixture(params=ROWS)
def row(request, tmp_path):
    """Checkpoint, options and diffusers' pipeline of a row."""
    name = request.param
    return ROWS[name](request.getfixturevalue("saved2" if "Diffusion 2" in name else "saved"), tmp_path)


@pytest.mark.filterwarnings("ignore:.*not used")
def test_a_layout_edits_as_diffusers_does(row, photo, error):
    model, options, pipeline = row
    expected = latents_of(pipeline, photo[:64])
    for backend in ("eager", "torch"):
        assert error(edited(Engine.from_pretrained(model, backend, **options), photo[:64]), expected) <= 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*not used")
def test_the_export_of_a_layout_edits_as_diffusers_does(row, photo, tmp_path, error, traced_once):
    """An export checks its graphs against eager itself."""
    model, options, pipeline = row
    expected = latents_of(pipeline, photo[:64])
    export(model, tmp_path / "out", **options)
    for backend, precision in (("onnxruntime", None), ("openvino", "float32")):
        engine = Engine.from_pretrained(tmp_path / "out", backend, precision=precision)
        assert error(edited(engine, photo[:64]), expected) <= 1e-4


def test_every_row_of_the_page_is_a_test():
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    named = re.findall(r"`(test_\w+)\[?([^`\]]*)\]?`", page)
    assert {row for test, row in named if test == "test_a_layout_edits_as_diffusers_does"} == ROWS.keys()
    sources = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert all(f"def {test}(" in sources for test, _ in named)


def without_base(saved, tmp_path):
    return single(opened(saved), tmp_path)[0], {}


def without_tokenizer(saved, tmp_path):
    path, options = single(opened(saved), tmp_path)
    (options["base"] / "tokenizer").rename(tmp_path / "gone")
    return path, options


def text_to_image_file(saved, tmp_path):
    state = layouts.original_state(opened(saved))
    name = "model.diffusion_model.input_blocks.0.0.weight"
    path = layouts.save_state(state | {name: state[name][:, :4]}, tmp_path / "a.safetensors")
    return path, {"base": saved}


def with_names(*names):
    def make(saved, tmp_path):
        return layouts.save_state(dict.fromkeys(names, torch.zeros(1)), tmp_path / "a.safetensors"), {"base": saved}

    return make


def truncated_file(saved, tmp_path):
    path, options = single(opened(saved), tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    return path, options


def truncated_shard(saved, tmp_path):
    model, options, _ = shards_row(saved, tmp_path)
    path = sorted((model / "unet").glob("*-of-*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-10])
    return model, options


def copied(change):
    def make(saved, tmp_path):
        folder = shutil.copytree(saved, tmp_path / "m")
        return folder, change(folder, tmp_path) or {}

    return make


def rewritten(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def of_pipeline(name):
    return copied(lambda folder, _: rewritten(folder / "model_index.json", _class_name=name))


def sizes_of_sdxl(folder, _):
    """SDXL's U-Net embeds picture sizes under the name that released rewards have."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(path)
    names = {f"add_embedding.linear_{i}.{kind}": torch.zeros(2) for i in (1, 2) for kind in ("weight", "bias")}
    layouts.save_state(state | names, path)


def linked(folder, tmp_path):
    (folder / "vae").rename(tmp_path / "vae")
    (folder / "vae").symlink_to(tmp_path / "vae")


REFUSED = {
    "no base": (without_base, "has no tokenizer.*no base was given; give base"),
    "a base without the tokenizer": (without_tokenizer, r"has no tokenizer.*base has none"),
    "a text-to-image file": (text_to_image_file, "4 input and 4 output channels.*makes images from texts"),
    "an SDXL file": (with_names("conditioner.embedders.0.a", "model.diffusion_model.input_blocks.0.0.weight"), "SDXL"),
    "a FLUX file": (with_names("double_blocks.0.img_attn.proj.weight"), "is a FLUX model"),
    "an SD3 file": (with_names("model.diffusion_model.joint_blocks.0.a"), "Stable Diffusion 3"),
    "a LoRA": (with_names("lora_unet_down_blocks_0.lora_up.weight"), "is a LoRA"),
    "a U-Net alone": (with_names("down_blocks.0.resnets.0.conv1.weight"), "the U-Net alone"),
    "a VAE alone": (with_names("first_stage_model.encoder.conv_in.weight"), "is a VAE alone"),
    "other tensors": (with_names("a"), "holds no U-Net"),
    "a truncated file": (truncated_file, "model.safetensors cannot be read.*truncated"),
    "a truncated shard": (truncated_shard, r"unet/diffusion_pytorch_model-00002-of-\d+.safetensors cannot be read"),
    "a pickle": (lambda saved, tmp_path: (shutil.copy(saved / "model_index.json", tmp_path / "a.ckpt"), {}),
                 r"a\.ckpt is a pickle.*mrc-convert checkpoint"),
    "an SDXL folder": (of_pipeline("StableDiffusionXLInstructPix2PixPipeline"), "a model of SDXL"),
    "an SD3 folder": (of_pipeline("StableDiffusion3Pipeline"), "a model of Stable Diffusion 3"),
    "a FLUX folder": (of_pipeline("FluxKontextPipeline"), "a model of FLUX"),
    "another family": (of_pipeline("KandinskyV22Pipeline"), "another family .'KandinskyV22Pipeline'"),
    "SDXL's settings": (copied(lambda folder, _: rewritten(folder / "unet/config.json",
                                                           addition_embed_type="text_time")), "U-Net of an SDXL model"),
    "SDXL's sizes": (copied(sizes_of_sdxl), "U-Net of an SDXL model"),
    "a link elsewhere": (copied(linked), "m/vae links out of"),
    "no such variant": (copied(lambda *_: {"variant": "fp16"}), "no variant 'fp16' of .*, it has the plain weights"),
    "no VAE": (copied(lambda folder, _: {"vae": folder / "scheduler"}), "scheduler', which is no VAE"),
    "a base for a folder": (copied(lambda folder, _: {"base": folder}), "is a folder; only a single file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_it_is(name, saved, tmp_path):
    make, message = REFUSED[name]
    model, options = make(saved, tmp_path)
    with pytest.raises(MRCError, match=message) as error:
        Engine.from_pretrained(model, "eager", **options)
    assert "\n" not in str(error.value)


def test_a_file_of_stable_diffusion_2_needs_more_of_its_base(saved2, tmp_path):
    path, options = single(opened(saved2), tmp_path)
    (options["base"] / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(MRCError, match=r"has no scheduler/scheduler_config\.json"):
        load_checkpoint(path, **options)


def test_the_options_of_a_checkpoint_are_not_those_of_an_export():
    with pytest.raises(MRCError, match="onnxruntime has no option variant"):
        Engine.from_pretrained("mini", "onnxruntime", variant="fp16")


def test_a_part_without_the_variant_has_its_plain_weights_with_a_warning(saved, tmp_path):
    opened(saved).to(torch.float16).save_pretrained(tmp_path / "m", variant="fp16")
    shutil.rmtree(tmp_path / "m" / "vae")
    shutil.copytree(saved / "vae", tmp_path / "m" / "vae")
    with pytest.warns(UserWarning, match=r"m/vae has no variant 'fp16'.*plain weights are used"):
        same_weights(load_checkpoint(tmp_path / "m", variant="fp16"), load_checkpoint(saved))


def extra_tensors(folder):
    path = folder / "text_encoder" / "model.safetensors"
    more = {"text_projection.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(())}
    layouts.save_state(safetensors.torch.load_file(path) | more, path, torch.float32)


def averages(folder):
    rewritten(folder / "unet" / "config.json", decay=0.9999, optimization_step=7, use_ema_warmup=False)


@pytest.mark.parametrize(("change", "named"), [
    (extra_tensors, "text_encoder: tensors that are not used: logit_scale, text_projection.weight"),
    (averages, r"unet/config\.json: settings that are not used: decay, optimization_step, use_ema_warmup"),
])  # fmt: skip
def test_what_is_not_used_is_told_once(change, named, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "m")
    change(folder)
    with pytest.warns(UserWarning, match=named) as told:
        found = load_checkpoint(folder)
    assert sum("not used" in str(each.message) for each in told) == 1
    same_weights(found, load_checkpoint(saved))


def same_weights(first, second):
    for part in layouts.PARTS:
        one, two = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_digest_is_of_all_that_is_used(saved, tmp_path):
    assert checkpoint_digest(layouts.as_hub_cache(saved, tmp_path / "cache")) == checkpoint_digest(saved)
    path, options = single(opened(saved), tmp_path)
    digests = {checkpoint_digest(saved), checkpoint_digest(path, **options)}
    rewritten(options["base"] / "unet" / "config.json", norm_eps=1e-4)
    digests.add(checkpoint_digest(path, **options))
    vae = layouts.save_state(layouts.original_vae(layouts.other_vae()), tmp_path / "vae.safetensors")
    digests |= {checkpoint_digest(saved, vae=vae), checkpoint_digest(saved, variant="fp16")}
    assert len(digests) == 5


@pytest.mark.filterwarnings("ignore:.*not used")
def test_training_starts_from_a_single_file(saved, tmp_path):
    from mrc_edit.train.config import TrainConfig
    from mrc_edit.train.setup import starting_point

    path, options = single(opened(saved), tmp_path)
    config = TrainConfig(str(path), "miniature:4", str(tmp_path / "out"), stage=1, base=str(options["base"]))
    same_weights(starting_point(config), load_checkpoint(saved))
