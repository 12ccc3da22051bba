"""Distillation: its formulas against diffusers' own, and runs as a whole."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler, StableDiffusionInstructPix2PixPipeline
from safetensors.torch import load_file, save_file

from mrc_edit import Engine
from mrc_edit.core.errors import MRCError
from mrc_edit.model import load_checkpoint
from mrc_edit.model.adapters import load_adapted
from mrc_edit.model.guidance import GUIDANCE_KEY
from mrc_edit.model.pipeline import edit_latents, encode_image, token_ids
from mrc_edit.model.rewards import REWARD_KEYS
from mrc_edit.train.config import TrainConfig
from mrc_edit.train.distill import (
    HUBER,
    consistency,
    distill_losses,
    drawn_scales,
    guided_prediction,
    huber,
    open_distillation,
    solver_step,
    solver_timesteps,
    student_of,
)
from mrc_edit.train.loop import train
from mrc_edit.train.lora import LORA_FILE, add_lora
from mrc_edit.train.objective import Batch, Editor, RewardBatch, draw
from mrc_edit.train.setup import new_state, trainable_editor
from mrc_edit.train.state import list_states

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def schedule_of(prediction):
    return DDPMScheduler(**BETAS, prediction_type=prediction)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def settings(**changes):
    return TrainConfig("a", "b", "c", **{"stage": "distill", "conditioning_dropout": 0.0, **changes})


# ---- formulas


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_solver_step_is_ddims(prediction):
    ddim = DDIMScheduler(**BETAS, prediction_type=prediction, clip_sample=False, set_alpha_to_one=False)
    ddim.set_timesteps(50)
    start, end = solver_timesteps(torch.tensor([0, 19, 20, 500, 999]), 1000)
    assert start.tolist() == [19, 19, 39, 519, 999] and end.tolist() == [0, 0, 19, 499, 979]
    noisy, guided = normal(5, 4, 2, 2), normal(5, 4, 2, 2, seed=1)
    found = solver_step(schedule_of(prediction), guided, noisy, start, end)
    for i, timestep in enumerate(start):
        expected = ddim.step(guided[i], int(timestep), noisy[i]).prev_sample
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_end_of_the_path_is_the_lcm_samplers(prediction):
    lcm = LCMScheduler(**BETAS, prediction_type=prediction)
    timesteps = torch.tensor([999, 499, 19])
    noisy, predicted = normal(3, 4, 2, 2), normal(3, 4, 2, 2, seed=1)
    found = consistency(schedule_of(prediction), predicted, noisy, timesteps)
    for i, timestep in enumerate(timesteps):
        lcm.set_timesteps(50)
        expected = lcm.step(predicted[i], timestep, noisy[i]).denoised
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_at_timestep_zero_it_is_the_identity(prediction):
    noisy, zero = normal(2, 4, 2, 2), torch.zeros(2, dtype=torch.long)
    assert torch.equal(consistency(schedule_of(prediction), 9 * normal(2, 4, 2, 2, seed=1), noisy, zero), noisy)


def test_the_loss_is_of_squares_and_magnitudes():
    small, large = torch.tensor([1e-5]), torch.tensor([-3.0])
    assert huber(small).item() == pytest.approx(1e-10 / (2 * HUBER), rel=1e-2)
    assert huber(large).item() == pytest.approx(3.0, rel=1e-3) and huber(torch.zeros(1)).item() == 0


def test_scales_fill_their_ranges():
    scales = drawn_scales(draw(0, torch.arange(500), (1,), 1000).guidance, 10.0, 2.5)
    assert scales.amin(0).tolist() == pytest.approx([1, 1], abs=0.1)
    assert scales.amax(0).tolist() == pytest.approx([10, 2.5], abs=0.1)
    assert abs(torch.corrcoef(scales.T)[0, 1]) < 0.15
    assert drawn_scales(torch.rand(3, 2), 1.0, 1.0).eq(1).all()


def editor_of(folder):
    checkpoint = load_checkpoint(folder)
    checkpoint.unet.embed_guidance()
    return checkpoint, Editor(checkpoint.unet, checkpoint.text_encoder)


def guided_by(editor, checkpoint, noisy, source, timestep, reward=(None, None), scales=(7.5, 1.5)):
    count = len(noisy)
    batch = Batch(source, noisy, noisy[:, 0], token_ids(checkpoint, ["snow"] * count), token_ids(checkpoint, [""]))
    nobody = torch.zeros(count, dtype=torch.bool)
    with torch.no_grad():
        return guided_prediction(editor, batch, noisy, source, torch.full((count,), timestep), nobody, reward,
                                 torch.tensor([scales] * count))  # fmt: skip


def test_the_teacher_is_guided_as_in_diffusers(plain, error):
    checkpoint, editor = editor_of(plain)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(plain, safety_checker=None)
    pipeline.scheduler = DDIMScheduler(**BETAS)
    seen = []
    step = pipeline.scheduler.step
    pipeline.scheduler.step = lambda noise, timestep, *rest, **more: (
        seen.append((noise, int(timestep))) or step(noise, timestep, *rest, **more)
    )
    noisy, source = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1)
    pipeline("snow", image=source, latents=noisy, num_inference_steps=1, guidance_scale=7.5, image_guidance_scale=1.5,
             output_type="latent")  # fmt: skip
    ((expected, timestep),) = seen
    assert error(guided_by(editor, checkpoint, noisy, source, timestep), expected) <= 1e-5


def test_a_teacher_with_rewards_is_guided_as_by_eager(tiny, error):
    class Spy(DDIMScheduler):
        def step(self, noise, timestep, sample, **_):
            seen.append((noise, int(timestep), sample))
            return super().step(noise, timestep, sample)

    seen, (checkpoint, editor) = [], editor_of(tiny)
    teacher, images = load_checkpoint(tiny), normal(1, 3, 64, 64).tanh()
    edit_latents(teacher, images, ["snow"], [torch.Generator().manual_seed(0)], scheduler=Spy(**BETAS),
                 num_inference_steps=1, reward_scores=(1, 2, 3), reward_text="x", guidance_scale=6.0)  # fmt: skip
    ((expected, timestep, noisy),) = seen
    pooled = checkpoint.text_encoder(token_ids(checkpoint, ["x"])).pooler_output
    reward = torch.tensor([[1.0, 2.0, 3.0]]), pooled
    found = guided_by(editor, checkpoint, noisy, encode_image(teacher, images), timestep, reward, (6.0, 1.5))
    assert error(found, expected) <= 1e-5


@pytest.mark.parametrize(("scales", "calls"), [((1.0, 1.0), 1), ((3.0, 1.0), 2), ((3.0, 1.5), 3)])
def test_branches_without_weight_are_not_computed(plain, scales, calls):
    checkpoint, editor = editor_of(plain)
    seen = []
    counting = lambda *inputs, **more: seen.append(inputs) or editor(*inputs, **more)  # noqa: E731
    guided_by(counting, checkpoint, normal(2, 4, 8, 8), normal(2, 4, 8, 8), 499, scales=scales)
    assert len(seen) == calls


def test_before_training_the_student_is_the_teachers_conditional_branch(tiny):
    teacher, student = (load_checkpoint(tiny).unet for _ in range(2))
    student.embed_guidance()
    inputs = normal(2, 8, 8, 8), torch.tensor([3, 900]), normal(2, 77, 64), torch.rand(2, 3) * 5, normal(2, 64)
    with torch.no_grad():
        expected = teacher(*inputs)
        for scales in ([[1.0, 1.0]] * 2, [[7.5, 1.5], [20.0, 3.0]]):
            assert torch.equal(student(*inputs, guidance_scales=torch.tensor(scales)), expected)
    with pytest.raises(MRCError, match="needs guidance_scales"):
        student(*inputs)
    with pytest.raises(MRCError, match="takes no guidance_scales"):
        teacher(*inputs, guidance_scales=torch.ones(2, 2))


def opened(tiny, **changes):
    """Student, distillation and a batch of eight, which all have the same noise levels."""
    config = replace(settings(**changes), init=str(tiny))
    checkpoint = student_of(load_checkpoint(tiny), config)
    editor = trainable_editor(checkpoint, config)
    scores = torch.linspace(0, 5, 24).view(8, 3)
    reward = RewardBatch(scores, token_ids(checkpoint, ["x"] * 8), token_ids(checkpoint, [""]))
    batch = Batch(normal(8, 4, 8, 8), normal(8, 4, 8, 8, seed=1), torch.ones(8, 8, 8),
                  token_ids(checkpoint, ["snow"] * 8), token_ids(checkpoint, [""]), reward)  # fmt: skip
    return config, editor, open_distillation(editor), batch


def test_teacher_and_target_learn_nothing_and_share_what_is_frozen(tiny):
    for lora in (None, 2):
        config, editor, distillation, batch = opened(tiny, lora_rank=lora)
        losses = distill_losses(editor, distillation, schedule_of("epsilon"), batch, draw(0, torch.arange(8), (4, 8, 8), 1000), config)  # fmt: skip # noqa: E501
        losses.sum().backward()
        trained = {name for name, parameter in editor.named_parameters() if parameter.requires_grad}
        assert f"unet.{GUIDANCE_KEY}" in trained and losses.shape == (8,)
        own = {id(p) for name, p in editor.named_parameters() if name in trained}
        for each in distillation.editors:
            assert not any(p.requires_grad for p in each.parameters())
            assert not own & {id(p) for p in each.parameters()}
        frozen = {id(p) for name, p in editor.named_parameters() if name not in trained}
        assert frozen <= {id(p) for p in distillation.target.parameters()}
        assert not any("lora" in name for name, _ in distillation.teacher.named_parameters())
        missing = [name for name, p in editor.named_parameters() if name in trained and p.grad is None]
        assert [name for name in missing if "lora" not in name] == []


@pytest.mark.parametrize("lora", [None, 2])
def test_the_target_follows_the_student(tiny, lora):
    """The average that a run keeps, writes and takes up again is the target's own weights."""
    config, editor, distillation, _ = opened(tiny, lora_rank=lora)
    state = new_state(editor, config, distillation)
    with torch.no_grad():
        for parameter in state.trained:
            parameter.add_(0.5)
    state.average.step(state.trained)  # the first step takes all of the student
    trained = {name: p for name, p in editor.named_parameters() if p.requires_grad}
    assert all(torch.equal(distillation.target.get_parameter(name), p) for name, p in trained.items())
    state.restore({name: torch.zeros_like(tensor) for name, tensor in state.tensors().items()},
                  {"step": 3, "curve": [], "broken": []})  # fmt: skip
    assert not any(distillation.target.get_parameter(name).any() for name in trained)


def test_scores_weigh_samples_and_hidden_rewards_change_the_target(tiny):
    schedule, draws = schedule_of("epsilon"), draw(0, torch.arange(8), (4, 8, 8), 1000)
    losses = {}
    for name, changes in {
        "plain": {},
        "weighted": {"reward_weighting": 2.0},
        "hidden": {"reward_dropout": 1.0},
    }.items():
        config, editor, distillation, batch = opened(tiny, **changes)
        with torch.no_grad():
            losses[name] = distill_losses(editor, distillation, schedule, batch, draws, config)
    weights = (batch.reward.scores.mean(1) / 5) ** 2
    torch.testing.assert_close(losses["weighted"], losses["plain"] * weights)
    assert not torch.allclose(losses["hidden"], losses["plain"])


def test_a_change_weighs_more(tiny):
    config, editor, distillation, batch = opened(tiny, change_weight=2.0)
    schedule, draws = schedule_of("v_prediction"), draw(0, torch.arange(8), (4, 8, 8), 1000)
    with torch.no_grad():
        heavy = distill_losses(editor, distillation, schedule, batch, draws, config)
        light = distill_losses(editor, distillation, schedule, batch, draws, replace(config, change_weight=0.0))
    torch.testing.assert_close(heavy, 3 * light)  # everything has changed


@pytest.mark.parametrize("prediction", PREDICTIONS[:2])
def test_the_loss_falls(tiny, prediction):
    """On eight samples, against a teacher with guidance."""
    config, editor, distillation, batch = opened(tiny, guidance_max=3.0, image_guidance_max=1.0)
    schedule, draws = schedule_of(prediction), draw(0, torch.arange(8), (4, 8, 8), 1000)
    optimizer = torch.optim.AdamW([p for p in editor.parameters() if p.requires_grad], 5e-5)
    losses = []
    for _ in range(8):
        loss = distill_losses(editor, distillation, schedule, batch, draws, config).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


# ---- settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"min_snr_gamma": 5.0}, "min_snr_gamma"), ({"train_text_encoder": True}, "train_text_encoder"),
     ({"guidance_max": 1.0}, "turns all guidance off"), ({"guidance_max": 0.5}, "guidance_max"),
     ({"stage": 2, "guidance_max": 4.0}, "for stage distill"), ({"stage": 1, "reward_weighting": 1.0}, "for stage"),
     ({"stage": "distil"}, "choose one of 1, 2, distill"), ({"reward_weighting": -1.0}, "reward_weighting")],
)  # fmt: skip
def test_settings_that_cannot_be(wrong, message):
    with pytest.raises(MRCError, match=message):
        settings(**wrong)


def test_a_student_keeps_the_betas_that_its_teacher_had_by_default(plain):
    """Those of the LCM sampler are others."""
    teacher = replace(load_checkpoint(plain), scheduler=DDIMScheduler())
    student = student_of(teacher, settings())
    assert torch.equal(student.scheduler.alphas_cumprod, teacher.scheduler.alphas_cumprod)


# ---- runs


@pytest.fixture(scope="module")
def distilling(base, tiny, tmp_path_factory):
    """Settings of a run from a teacher with rewards."""
    out = tmp_path_factory.mktemp("distilled") / "out"
    return replace(base, init=str(tiny), stage="distill", out=str(out), ema_decay=0.5, reward_dropout=0.2)


@pytest.fixture(scope="module")
def distilled(distilling):
    """A finished run."""
    return train(distilling).parent


def test_a_student_is_written_that_edits_in_four_steps_of_one_branch(distilled, tiny, photo, error):
    engine = Engine.from_pretrained(distilled / "checkpoint", "eager")
    own = engine.backend.defaults
    assert (own.scheduler, own.num_inference_steps, own.guidance_limit, own.image_guidance_limit) == ("lcm", 4, 10, 2.5)
    assert (own.guidance_scale, own.image_guidance_scale) == (7.5, 1.5)
    assert engine.backend.scheduler["_class_name"] == "LCMScheduler"
    given = {"instruction": "snow", "seed": 1, "output_type": "latent"}
    edits = [
        engine.edit(photo, **given, **more).images
        for more in ({}, {"guidance_scale": 2.0}, {"image_guidance_scale": 2.5}, {"reward_scores": (1, 1, 1)})
    ]
    assert all(error(edit, edits[0]) > 1e-6 for edit in edits[1:])  # after four steps all are conditions still


def test_resuming_goes_on_bit_for_bit(distilling, distilled, tmp_path, same_state):
    config = replace(distilling, steps=2, out=str(tmp_path / "half"))
    train(config)
    train(replace(config, steps=4), resume="latest")
    whole, halves = list_states(distilled)[-1], list_states(tmp_path / "half")[-1]
    assert whole.name == halves.name == "00000004" and same_state(whole, halves)


def test_the_average_is_the_target(distilled, tensors_of):
    """It moves towards the weights at the set rate, and is what is written."""
    tensors = tensors_of(list_states(distilled)[-1])
    written = load_file(distilled / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")
    number = [name for name, _ in load_checkpoint(distilled / "checkpoint").unet.named_parameters()].index(GUIDANCE_KEY)
    assert torch.equal(written[GUIDANCE_KEY], tensors[f"average.{number}"])
    assert not torch.equal(written[GUIDANCE_KEY], tensors[f"weights.{number}"])


def test_a_grid_is_edited_by_the_student(distilling, tmp_path):
    out = tmp_path / "grids"
    train(replace(distilling, steps=1, validate_every=1, checkpoint_every=1, out=str(out)))
    assert (out / "validation" / "00000001.png").is_file()


def test_a_plain_teacher_has_a_plain_student(distilling, plain, tmp_path, photo):
    config = replace(distilling, init=str(plain), steps=1, out=str(tmp_path / "o"), cache=None, reward_dropout=0.0)
    engine = Engine.from_pretrained(train(config), "eager")
    assert not engine.backend.geometry.rewards
    assert np.isfinite(engine.edit(photo, "snow", seed=1, output_type="latent").images).all()
    with pytest.raises(MRCError, match="has no rewards"):
        train(replace(config, reward_weighting=1.0, out=str(tmp_path / "w")))


def test_a_lora_makes_a_student_of_any_model_of_the_family(distilling, tiny, plain, tmp_path, photo, error):
    out = tmp_path / "lora"
    merged = load_checkpoint(train(replace(distilling, lora_rank=2, out=str(out))))
    file, before = out / LORA_FILE, load_checkpoint(tiny).unet.state_dict()
    assert not any("ca." in key or "text_linear" in key for key in load_file(file))
    own, adapters = load_adapted(tiny, {file: 1.0})
    assert own.defaults == merged.defaults and adapters.lora[0].file == file.name
    assert {name for name, value in merged.unet.state_dict().items() if name not in before} == {GUIDANCE_KEY}
    for name, value in merged.unet.state_dict().items():
        torch.testing.assert_close(own.unet.state_dict()[name], value, rtol=0, atol=1e-6)
        assert not name.startswith(REWARD_KEYS) or torch.equal(value, before[name])
    other = Engine.from_pretrained(plain, "eager", lora={file: 1.0})
    assert other.backend.geometry.embeds_guidance and other.backend.defaults.scheduler == "lcm"
    assert np.isfinite(other.edit(photo, "snow", seed=1, output_type="latent").images).all()
    half = load_adapted(tiny, {file: 0.5})[0].unet.get_parameter(GUIDANCE_KEY)
    torch.testing.assert_close(half, own.unet.get_parameter(GUIDANCE_KEY) / 2)
    without = tmp_path / "without.safetensors"
    save_file(load_file(file), without)
    with pytest.raises(MRCError, match="no header has mrc_defaults"):
        load_adapted(tiny, {without: 1.0})


def test_convolutions_and_products_have_adapters_and_rewards_none(tiny):
    unet = load_checkpoint(tiny).unet
    unet.embed_guidance()
    add_lora(unet, 2, 0)
    adapted = {name.partition(".lora_")[0] for name, _ in unet.named_parameters() if "lora_" in name}
    for ending in ("to_q", "conv1", "conv2", "time_emb_proj", "proj_in", "proj_out", "ff.net.2", "downsamplers.0.conv"):
        assert any(name.endswith(ending) for name in adapted), ending
    assert not any(name.startswith(REWARD_KEYS) for name in adapted)


def test_what_cannot_be_distilled(distilling, distilled, tmp_path):
    out = str(tmp_path / "x")
    for stage in (1, 2, "distill"):
        with pytest.raises(MRCError, match="is a distilled student"):
            train(replace(distilling, init=str(distilled / "checkpoint"), stage=stage, reward_dropout=0.0, out=out))


def test_no_loader_takes_a_student_for_another_model(distilled, tmp_path):
    import shutil

    folder = tmp_path / "checkpoint"
    shutil.copytree(distilled / "checkpoint", folder)
    with pytest.raises(ValueError, match="guidance does not exist"):
        StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, safety_checker=None)
    config, weights = folder / "unet" / "config.json", folder / "unet" / "diffusion_pytorch_model.safetensors"
    settings, tensors = json.loads(config.read_text()), load_file(weights)
    assert settings["time_embedding_type"] == "guidance"
    config.write_text(json.dumps(settings | {"time_embedding_type": "positional"}))
    with pytest.raises(MRCError, match=r"unknown guidance_embedding\.weight"):
        load_checkpoint(folder)
    config.write_text(json.dumps(settings))
    save_file({key: value for key, value in tensors.items() if key != GUIDANCE_KEY}, weights)
    with pytest.raises(MRCError, match=r"missing guidance_embedding\.weight"):
        load_checkpoint(folder)
    config.write_text(json.dumps(settings | {"time_embedding_type": "fourier"}))
    with pytest.raises(MRCError, match="time_embedding_type='fourier'"):
        load_checkpoint(folder)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("lora", [None, 2])
def test_two_processes_distil_as_one_with_twice_the_batch(distilling, shard, lora, train_by_two, tmp_path, losses_of):
    alone = replace(distilling, steps=6, lora_rank=lora, out=str(tmp_path / "one"))
    train(alone)
    two = replace(alone, shard=shard, out=str(tmp_path / "two"))
    if shard and not lora:
        train_by_two(replace(two, steps=2))
        train_by_two(two, "latest")
    else:
        train_by_two(two)
    losses = np.array([losses_of(Path(out)) for out in (alone.out, two.out)])
    assert losses.shape == (2, 6) and np.abs(losses[0] - losses[1]).max() <= 1e-3 * losses[0].max()
    one, other = (load_checkpoint(Path(out) / "checkpoint").unet.state_dict() for out in (alone.out, two.out))
    start = load_checkpoint(distilling.init).unet.state_dict()
    apart, moved = (
        sum((a[key] - b[key]).square().sum() for key in start) ** 0.5 for a, b in ((one, other), (one, start))
    )
    assert apart <= 0.05 * moved
