"""One step of the released training script, number by number (`MRC_REFERENCE/train`, its README)."""

import json
import runpy
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from mrc_edit.model import rewards
from mrc_edit.train.config import PRESETS, TrainConfig
from mrc_edit.train.objective import Batch, Draws, RewardBatch, sample_losses
from mrc_edit.train.setup import new_state, starting_point, trainable_editor

NO_GRADIENT = "ca.attention.self.key.bias"  # adds the same to both keys of a softmax: only rounding is left
ATTENTION, HIDDEN = "mask_attention", ("mask_hidden1", "mask_hidden2")


@pytest.fixture(scope="session")
def plain_slim(slim, reference, tmp_path_factory):
    """The text-to-image checkpoint that stage 1 starts from: 4 input channels, no rewards."""
    folder = tmp_path_factory.mktemp("slim") / "plain"
    shutil.copytree(slim, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensor_for = runpy.run_path(str(reference / "seeded_weights.py"))["tensor_for"]
    state = {k: v for k, v in safetensors.torch.load_file(weights).items() if not k.startswith(rewards.REWARD_KEYS)}
    state["conv_in.weight"] = tensor_for("conv_in.weight", torch.Size((320, 4, 3, 3)))
    safetensors.torch.save_file(state, weights, {"format": "pt"})
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 4}))
    return folder


def released_batch(golden, checkpoint):
    """The script's batch and random numbers."""

    def ids(texts):
        return checkpoint.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids

    pixels = {name: golden[f"{name}_pixels"].float() / 127.5 - 1 for name in ("source", "edited")}
    posterior = checkpoint.vae.encode(pixels["edited"]).latent_dist
    reward = None
    if "scores" in golden:
        reward = RewardBatch(golden["scores"], golden["reward_ids"].long(), ids([""]))
    batch = Batch(
        source=checkpoint.vae.encode(pixels["source"]).latent_dist.mode(),
        edited=(posterior.mean + posterior.std * golden["posterior"]) * checkpoint.vae.config.scaling_factor,
        changed=torch.zeros(6, 8, 8), text=golden["input_ids"].long(), empty_text=ids([""]), reward=reward,
    )  # fmt: skip
    drawn = (golden[name] for name in ("noise", "posterior", "timesteps", "condition"))
    return batch, Draws(*drawn, reward=torch.ones(6), guidance=torch.ones(6, 2))


@pytest.fixture
def with_masks(monkeypatch):
    """Makes the reward layer's dropout use the given masks, in the order of the forward pass."""

    def use(attention, hidden):
        left = list(hidden)

        def attend(query, key, value, dropout_p=0.0, **options):
            if key.shape[-2] != 2 or not dropout_p:
                return real(query, key, value, **options)
            weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
            return (weights * (attention / (1 - dropout_p) if attention is not None else 1)) @ value

        def drop(x, p=0.5, training=True, inplace=False):
            return x * left.pop(0) / (1 - p) if p and left else x

        real = F.scaled_dot_product_attention
        monkeypatch.setattr(rewards.F, "scaled_dot_product_attention", attend)
        monkeypatch.setattr(rewards.F, "dropout", drop)

    return use


def mask(golden, name):
    shape = tuple(golden[f"{name.rstrip('12')}_shape"])
    return torch.from_numpy(np.unpackbits(golden[name].numpy())[: int(np.prod(shape))].reshape(shape)).float()


def sampled(gradient, like):
    """The rows and columns that the golden files keep of a gradient."""
    matrix = gradient.reshape(len(gradient), -1)
    most = zip(matrix.shape, (24, 96), strict=True)
    rows, columns = (np.unique(np.linspace(0, length - 1, count).astype(int)) for length, count in most)
    return matrix[rows][:, columns].reshape(like.shape)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "dropped"), [(1, False), (2, False), (2, True)])
def test_a_step_is_the_released_scripts(stage, dropped, reference, request, with_masks, error):
    path = reference / "train" / f"golden_stage{stage}.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    golden = {
        key: torch.from_numpy(value) if value.ndim and value.dtype.kind in "biuf" else value
        for key, value in np.load(path).items()
    }
    init = request.getfixturevalue("slim" if stage == 2 else "plain_slim")
    config = TrainConfig(**{"init": str(init), "data": "-", "out": "-", "stage": stage} | PRESETS["released"])
    checkpoint = starting_point(config)
    editor = trainable_editor(checkpoint, config).train()
    schedule = DDPMScheduler.from_config(checkpoint.scheduler.config)
    batch, draws = released_batch(golden, checkpoint)
    prefix = "dropped_" if dropped else ""
    if dropped:
        with_masks(mask(golden, ATTENTION), [mask(golden, name) for name in HIDDEN])
    else:
        with_masks(None, [])
    losses = sample_losses(
        editor, schedule, batch, draws, conditioning_dropout=config.conditioning_dropout,
        reward_dropout=config.reward_dropout, min_snr_gamma=config.min_snr_gamma, change_weight=config.change_weight,
    )  # fmt: skip
    losses.mean().backward()

    assert error(batch.edited, golden["edited"]) <= 1e-5 and error(batch.source, golden["source"]) <= 1e-5
    assert error(losses.detach(), golden[f"{prefix}loss_by_sample"]) <= 1e-6
    gradients = {name: parameter.grad for name, parameter in editor.unet.named_parameters()}
    assert sorted(gradients) == list(golden["parameter_names"])
    norms = torch.stack([gradients[name].double().norm() for name in golden["parameter_names"]])
    wanted = golden[f"{prefix}gradient_norms"]
    assert ((norms - wanted).abs() <= 1e-5 * wanted + 1e-8).all()
    parts = [key for key in golden if key.startswith(f"{prefix}gradient/") and NO_GRADIENT not in key]
    assert parts
    for key in parts:
        assert error(sampled(gradients[key.split("/", 1)[1]], golden[key]), golden[key]) <= 1e-5, key


def test_the_average_follows_the_released_schedule(plain):
    """Kept of the old average at step s: (1 + s) / (10 + s), as `EMAModel` does when it is told nothing else."""
    config = TrainConfig(**{"init": str(plain), "data": "-", "out": "-", "stage": 1} | PRESETS["released"])
    editor = trainable_editor(starting_point(config), config)
    average = new_state(editor, config).average
    weight = next(editor.unet.parameters())
    expected = average.shadow_params[0].clone()
    for step in range(4):
        torch.nn.init.constant_(weight, float(step))
        average.step([weight])
        kept = (1 + step) / (10 + step) if step else 0.0
        expected = kept * expected + (1 - kept) * step
        torch.testing.assert_close(average.shadow_params[0], expected)
