"""`MRCPipeline` against the engine and against the stock pipeline."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from PIL import Image

from mrc_edit import MRCError, MRCPipeline
from mrc_edit.engine import Engine
from mrc_edit.engine.shipped import MODELS
from mrc_edit.model import MRCUNet, save_checkpoint
from mrc_edit.model.seeded import seeded_checkpoint

SPEC = importlib.util.spec_from_file_location("layouts", Path(__file__).parents[1] / "model" / "layouts.py")
layouts = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(layouts)
STEPS = {"num_inference_steps": 2}
MINI = MODELS["mini"] / "checkpoint"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


@pytest.fixture(scope="module")
def pipe(tiny):
    return quiet(MRCPipeline.from_pretrained(tiny))


@pytest.fixture(scope="module")
def picture(photo):
    return Image.fromarray(photo[:64])


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edited(pipe, image, seed=1, prompt="make it night", **options):
    generators = [torch.Generator().manual_seed(seed) for _ in image] if isinstance(image, list) else seeded(seed)
    return pipe(prompt, image, generator=generators, **{**STEPS, **options}).images


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def levels(ours, theirs):
    """Greatest difference of lists of images, in grey levels."""
    return max(
        np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reward_scores": (1, 4.5, 2), "reward_text": "wrong colour; None; blurry"},
        {"reward_guidance": {"image": (0, 1, 2)}, "reward_guidance_text": "bad; bad; bad", "guidance_scale": 3.0},
        {"guidance_scale": 1.0, "reward_scores": (2, 2, 2)},
        {"image_guidance_scale": 1.0, "negative_prompt": "a dog"},
    ],
)
def test_it_edits_as_the_engine_does(pipe, eager, picture, options):
    ours = edited(pipe, picture, **options)
    theirs = eager.edit(picture, "make it night", seed=1, resolution=0, **STEPS, **options).images
    assert levels(ours, theirs) <= 1


def test_a_tiny_vae_edits_as_in_the_engine(tiny, picture, tmp_path):
    layouts.tiny_vae().save_pretrained(tmp_path / "vae")
    pipe = quiet(MRCPipeline.from_pretrained(tiny, vae=tmp_path / "vae"))
    theirs = Engine.from_pretrained(tiny, "eager", vae=tmp_path / "vae")
    expected = theirs.edit(picture, "make it night", seed=1, resolution=0, **STEPS).images
    assert levels(edited(pipe, picture), expected) <= 1
    pipe.vae.enable_slicing()
    assert levels(edited(pipe, [picture] * 2, prompt=["make it night"] * 2), expected * 2) <= 1
    with pytest.raises(MRCError, match="from_pretrained the folder"):
        MRCPipeline.from_pretrained(tiny, vae=layouts.tiny_vae())


def test_each_image_of_a_batch_has_its_rewards(pipe, picture):
    other = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    scores, texts = [(5, 5, 5), (0, 1, 2)], ["None; None; None", "bad; bad; bad"]
    prompts = ["make it night", "add a dog"]
    both = edited(pipe, [picture, other], prompt=prompts, reward_scores=scores, reward_text=texts)
    alone = [
        edited(pipe, image, prompt=prompt, reward_scores=score, reward_text=text)[0]
        for image, prompt, score, text in zip([picture, other], prompts, scores, texts, strict=True)
    ]
    assert levels(both, alone) <= 1
    assert levels(both[1:], edited(pipe, other, prompt=prompts[1])) > 1


def test_several_edits_of_one_image(pipe, eager, picture):
    """With two prompts, which diffusers' rows have prompt by prompt."""
    scores = [(5, 5, 5), (0, 0, 0)]
    prompts = ["make it night", "add a dog"]
    generators = [seeded(n) for n in range(4)]
    options = {"num_images_per_prompt": 2, "reward_scores": scores, **STEPS}
    ours = pipe(prompts, picture, generator=generators, **options).images
    theirs = eager.edit(picture, prompts, seed=list(range(4)), resolution=0, **options).images
    assert levels(ours, theirs) <= 1


def test_mini_edits_with_its_own_defaults(picture):
    pipe = quiet(MRCPipeline.from_pretrained("mini"))
    image = picture.resize((128, 128))
    ours = pipe("make it night", image, generator=seeded(3)).images
    theirs = Engine.from_pretrained("mini", "eager").edit(image, "make it night", seed=3).images
    assert levels(ours, theirs) <= 1
    again = quiet(MRCPipeline.from_pipe(pipe))
    assert levels(again("make it night", image, generator=seeded(3)).images, ours) == 0


def test_a_plain_checkpoint_edits_as_the_stock_pipeline(plain, picture):
    stock = quiet(StableDiffusionInstructPix2PixPipeline.from_pretrained(str(plain)))
    pipe = quiet(MRCPipeline.from_pretrained(plain))
    assert levels(edited(pipe, picture), edited(stock, picture)) == 0
    with pytest.raises(MRCError, match="plain InstructPix2Pix model, which has none"):
        edited(pipe, picture, reward_scores=(1, 1, 1))


def test_the_stock_pipeline_edits_without_rewards(tiny, pipe, picture):
    """Why this one exists. Should the stock one learn them, this fails."""
    stock = quiet(StableDiffusionInstructPix2PixPipeline.from_pretrained(str(tiny)))
    assert levels(edited(stock, picture), edited(pipe, picture)) > 1
    with pytest.raises(MRCError, match="UNet2DConditionModel, which has no rewards"):
        MRCPipeline.from_pipe(stock)


def test_half_precision_and_offloading_keep_the_rewards(tiny, pipe, picture):
    half = quiet(MRCPipeline.from_pretrained(tiny, torch_dtype=torch.bfloat16))
    assert half.unet.dtype == half.vae.dtype == half.text_encoder.dtype == torch.bfloat16
    low = {"reward_scores": (0, 0, 0), "output_type": "latent"}
    best, worst = (edited(half, picture, **low | {"reward_scores": (n, n, n)}).float() for n in (5, 0))
    whole = edited(pipe, picture, **low)
    assert (worst - whole).norm() < 0.5 * (worst - best).norm()
    half.enable_group_offload("cpu", offload_type="leaf_level")
    assert torch.equal(edited(half, picture, **low).float(), worst)


def test_callbacks_see_and_replace_the_latents(pipe, picture):
    seen = []

    def note(pipeline, step, timestep, given):
        seen.append((pipeline is pipe, step, float(timestep), given["latents"].shape))
        return {}

    first = edited(pipe, picture, callback_on_step_end=note)
    assert [step for _, step, _, _ in seen] == [0, 1]
    assert all(own and shape == (1, 4, 8, 8) for own, _, _, shape in seen)
    assert seen[0][2] > seen[1][2]
    zeroed = edited(pipe, picture, callback_on_step_end=lambda *given: {"latents": 0 * given[3]["latents"]})
    assert levels(first, zeroed) > 1

    def stop(pipeline, step, timestep, given):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        edited(pipe, picture, callback_on_step_end=stop)
    assert levels(edited(pipe, picture), first) == 0
    none = torch.zeros(1, 3), torch.zeros(1, 64)
    assert isinstance(pipe.unet(torch.zeros(1, 8, 8, 8), 1, torch.zeros(1, 77, 64), *none), torch.Tensor)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_comes_back_bit_for_bit(tiny, pipe, picture, tmp_path):
    edited(pipe, picture)  # after which the tokenizer would save how it was called
    pipe.save_pretrained(tmp_path / "saved")
    assert contents(tmp_path / "saved") == contents(tiny)
    unet, unused = UNet2DConditionModel.from_pretrained(tmp_path / "saved" / "unet", output_loading_info=True)
    assert type(unet) is UNet2DConditionModel and len(unused["unexpected_keys"]) == 34
    with pytest.raises(MRCError, match="exists already"):
        pipe.save_pretrained(tmp_path / "saved")


def test_minis_sampler_is_saved_as_the_scheduler(picture, tmp_path):
    MRCPipeline.from_pretrained("mini").save_pretrained(tmp_path / "saved")
    first, second = (
        Engine.from_pretrained(model, "eager").edit(picture, "make it night", seed=1, output_type="latent").images
        for model in (MINI, tmp_path / "saved")
    )
    assert (first == second).all()


@pytest.mark.parametrize(
    "options",
    [{"safe_serialization": False}, {"variant": "fp16"}, {"push_to_hub": True}, {"max_shard_size": "1GB"}],
)
def test_other_ways_to_save_are_refused(pipe, tmp_path, options):
    with pytest.raises(MRCError, match=f"save_pretrained has no {next(iter(options))}"):
        pipe.save_pretrained(tmp_path / "saved", **options)
    assert not (tmp_path / "saved").exists()


def test_folders_variants_names_and_other_vaes_open(tiny, pipe, hub, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "variant")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    hub.push("someone/model", tiny)
    for model, options in ((folder, {"variant": "fp16"}), ("someone/model", {}), (str(tiny), {"vae": tiny / "vae"})):
        assert_same(MRCPipeline.from_pretrained(model, **options), pipe)


def test_a_single_file_opens(plain, tmp_path):
    """Numbers that float16 holds, in the original layout."""
    half = layouts.pipeline_of(**{name: part for name, part in layouts.sd1().components.items() if name in PARTS})
    half.save_pretrained(tmp_path / "folder")
    file = layouts.save_state(layouts.original_state(half), tmp_path / "model.safetensors")
    base = layouts.settings_only(tmp_path / "folder", tmp_path / "base")
    assert_same(MRCPipeline.from_single_file(file, base=base), MRCPipeline.from_pretrained(tmp_path / "folder"))
    with pytest.raises(MRCError, match=r"has no tokenizer.*give base"):
        MRCPipeline.from_single_file(file)


def assert_same(pipe, other):
    for part in ("unet", "vae", "text_encoder"):
        own, theirs = getattr(pipe, part).state_dict(), getattr(other, part).state_dict()
        assert own.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in own.items())


def test_parts_may_be_given(tiny, picture):
    scheduler = DDIMScheduler.from_config(MRCPipeline.from_pretrained(tiny).scheduler.config)
    pipe = quiet(MRCPipeline.from_pretrained(tiny, scheduler=scheduler, safety_checker=None))
    assert pipe.scheduler is scheduler
    theirs = Engine.from_pretrained(tiny, "eager").edit(
        picture, "make it night", seed=1, resolution=0, scheduler="ddim", **STEPS
    )
    assert levels(edited(pipe, picture), theirs.images) <= 1


def changed(tiny, tmp_path, change):
    """A copy of the checkpoint with other tensors in its U-Net."""
    folder = shutil.copytree(tiny, tmp_path / "changed")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(weights)
    change(state)
    safetensors.torch.save_file(state, weights)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("text_linear.weight"), "has 33 reward tensors but lacks .'text_linear.weight'"),
        (lambda state: state.update(strange=torch.zeros(1)), "unknown strange"),
        (lambda state: state.pop("conv_in.bias"), "missing conv_in.bias"),
        (lambda state: state["conv_in.bias"].fill_(torch.nan), "holds NaN or infinity"),
    ],
)
def test_what_the_stock_pipeline_takes_with_a_warning_is_refused(tiny, tmp_path, change, message):
    with pytest.raises(MRCError, match=message):
        MRCPipeline.from_pretrained(changed(tiny, tmp_path, change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "auto"}, r"has no device_map; .*\.to\(\) chooses the device"),
        ({"revision": "main"}, "OWNER/NAME@REVISION"),
        ({"torch_dtype": "float16"}, "torch_dtype is 'float16'; give one such as torch.float16"),
        ({"variant": "fp16"}, "no variant 'fp16'"),
        (
            {"unet": UNet2DConditionModel(block_out_channels=(32, 32, 32, 32))},
            "UNet2DConditionModel, which has no rewards",
        ),
    ],
)
def test_arguments_that_cannot_be_honoured_do_not_open(tiny, options, message):
    with pytest.raises(MRCError, match=message):
        MRCPipeline.from_pretrained(tiny, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_scores": (5, 5, 6)}, "reward_scores for quality is 6"),
        ({"reward_scores": [(5, 5, 5)] * 2}, "2 values of reward_scores for a batch of 1"),
        ({"reward_score": (1, 1, 1)}, "no argument reward_score"),
        ({"callback_steps": 1}, "no argument callback_steps"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5; give a number from 1"),
        ({"image_guidance_scale": 0.5}, "image_guidance_scale is 0.5"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "set_adapters"),
        ({"ip_adapter_image": "x"}, "it has no IP adapters"),
    ],
)
def test_arguments_that_cannot_be_honoured_do_not_edit(pipe, picture, options, message):
    with pytest.raises(MRCError, match=message):
        edited(pipe, picture, **options)


def test_images_that_diffusers_would_take_for_others(pipe, eager, picture):
    transparent = picture.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(picture.size))
    theirs = eager.edit(transparent, "make it night", seed=1, resolution=0, **STEPS).images
    assert levels(edited(pipe, transparent), theirs) <= 1  # not its four channels as latents
    for prompts, times in (("x", 1), (["x"] * 4, 1), (["x"] * 2, 2)):
        with pytest.raises(MRCError, match=r"2 images, . prompts and num_images_per_prompt=. cannot be paired"):
            pipe(prompts, [picture] * 2, num_images_per_prompt=times)


def test_models_for_other_things_are_refused(tmp_path):
    parts = seeded_checkpoint(rewards=False)
    config = {key: value for key, value in parts.unet.config.items() if not key.startswith("_")}
    save_checkpoint(replace(parts, unet=MRCUNet(False, **config | {"in_channels": 4})), tmp_path / "text")
    with pytest.raises(MRCError, match="it makes images from texts"):
        MRCPipeline.from_pretrained(tmp_path / "text")
    smart = MRCUNet(True, feature_bias=True, **config)
    with pytest.raises(MRCError, match=r"a SmartEdit model.*edit with Engine"):
        MRCPipeline(**{name: getattr(parts, name) for name in PARTS} | {"unet": smart}, **NO_CHECKER)
