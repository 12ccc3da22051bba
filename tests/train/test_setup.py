"""What a run starts from: rewards, adapters, settings that cannot be used."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline

from mrc_edit.core.errors import MRCError
from mrc_edit.model import load_checkpoint
from mrc_edit.model.extend import add_rewards
from mrc_edit.model.lora import merge_loras
from mrc_edit.model.rewards import REWARD_KEYS
from mrc_edit.train import loop
from mrc_edit.train.loop import train
from mrc_edit.train.setup import starting_point

TRACKERS = ("comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio")


def test_what_cannot_be_trained(base, undisturbed, tmp_path):
    out = str(tmp_path / "x")
    for change, message in (
        ({"batch_size": 3, "accumulation": 2}, "multiple of 2"),
        ({"data": "miniature:many", "cache": None}, "miniature:N"),
        ({"data": str(tmp_path), "cache": None}, "looked for"),
        ({"init": str(undisturbed / "checkpoint"), "stage": 1}, "stage 1 trains without"),
        ({"shard": True}, "more than one process"),
        ({"mixed_precision": "fp16"}, "needs a GPU"),
        ({"tracker": "nonsense"}, "accelerate cannot"),
        ({"tracker": next(name for name in TRACKERS if find_spec(name) is None)}, "not installed"),
        ({"rewards": "r.json", "cache": None}, "has its own"),
    ):
        with pytest.raises(MRCError, match=message):
            train(replace(base, out=out, **change))


def test_all_reward_tensors_receive_gradients(plain):
    unet = add_rewards(load_checkpoint(plain).unet).train().requires_grad_(True)
    for parameter in unet.parameters():  # away from the zeros that training starts at
        torch.nn.init.normal_(parameter, std=0.05)
    noise = unet(torch.randn(2, 8, 8, 8), torch.tensor([3, 900]), torch.randn(2, 77, 64), torch.rand(2, 3) * 5,
                 torch.randn(2, 64))  # fmt: skip
    noise.square().mean().backward()
    rewards = {key: p.grad for key, p in unet.named_parameters() if key.startswith(REWARD_KEYS)}
    assert len(rewards) == 34
    assert [key for key, grad in rewards.items() if grad is None or not grad.abs().sum()] == []


def test_lora_trains_low_rank_updates_and_merges_them(base, tmp_path):
    trained = load_checkpoint(train(replace(base, lora_rank=2, out=str(tmp_path / "lora")))).unet.state_dict()
    start = load_checkpoint(base.init).unet.state_dict()
    ranks = {}
    fresh = starting_point(base).unet.state_dict()
    for key in fresh.keys() - start.keys():  # the reward modules train in full
        assert not torch.equal(trained[key], fresh[key]), key
    for key, value in start.items():
        difference = trained[key] - value
        if ".to_q.weight" in key:
            ranks[key] = torch.linalg.matrix_rank(difference, rtol=1e-3).item()
        elif ".to_" not in key:
            assert not difference.any(), key
    assert ranks and set(ranks.values()) <= {1, 2}
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    ours = load_checkpoint(base.init)
    merge_loras(ours, {file: 1.0})
    theirs = StableDiffusionInstructPix2PixPipeline.from_pretrained(base.init, safety_checker=None)
    theirs.load_lora_weights(file.parent)
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    for key in start:  # all but the reward modules
        torch.testing.assert_close(ours.unet.state_dict()[key], trained[key], rtol=0, atol=1e-6)
        torch.testing.assert_close(theirs.unet.state_dict()[key], trained[key], rtol=0, atol=1e-6)


def test_a_run_without_lora_leaves_none_of_the_run_that_it_replaces(base, tmp_path):
    config = replace(base, steps=1, out=str(tmp_path))
    train(replace(config, lora_rank=1))
    with pytest.raises(MRCError, match="pytorch_lora_weights"):
        train(config)
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()
    train(config, overwrite=True)
    assert not (tmp_path / "pytorch_lora_weights.safetensors").exists()


def test_rewards_after_every_block_train_and_load(base, undisturbed, tmp_path):
    for name, init in (("from stage one", base.init), ("from rewards", str(undisturbed / "checkpoint"))):
        config = replace(base, init=init, reward_injection="blocks", steps=2, out=str(tmp_path / name))
        config = replace(config, cache=str(tmp_path / "cache"))
        assert load_checkpoint(train(config)).unet.reward_injection == "blocks"


@pytest.mark.parametrize(("way", "silent"), [("latents", ("add_embedding.linear_2", "text_linear2")),
                                             ("timestep", ("proj_deal.proj_out",))])  # fmt: skip
def test_rewards_enter_by_one_way_alone(base, undisturbed, tmp_path, way, silent):
    unet = load_checkpoint(train(replace(base, reward_only=way, steps=2, out=str(tmp_path / way)))).unet
    both = load_checkpoint(undisturbed / "checkpoint").unet
    for layer in ("add_embedding.linear_2", "text_linear2", "proj_deal.proj_out"):
        for key, value in unet.get_submodule(layer).state_dict().items():
            assert bool(value.any()) == (layer not in silent), f"{layer}.{key}"
            assert both.get_submodule(layer).state_dict()[key].any()
    with pytest.raises(MRCError, match="rewards already"):
        starting_point(replace(base, reward_only=way, init=str(undisturbed / "checkpoint")))
    with pytest.raises(MRCError, match="for stage 2, not 1"):
        replace(base, reward_only=way, stage=1)


def test_a_part_of_the_reward_is_hidden(base, undisturbed, tmp_path, monkeypatch):
    """The model sees scores of 2.5, or the empty text, and else the data's own."""
    seen = {}

    def note(editor, schedule, batch, *arguments, **settings):
        seen.update(scores=batch.reward.scores, same=(batch.reward.text == batch.reward.empty_text).all(1))
        return losses(editor, schedule, batch, *arguments, **settings)

    losses = loop.sample_losses
    monkeypatch.setattr(loop, "sample_losses", note)
    for only, hidden_scores, hidden_text in (("scores", False, True), ("text", True, False), ("all", False, False)):
        train(replace(base, reward_only=only, steps=1, out=str(tmp_path / only)))
        assert bool((seen["scores"] == 2.5).all()) == hidden_scores and bool(seen["same"].any()) == hidden_text


def test_another_seed_trains_on_the_same_world(base, undisturbed, tmp_path, losses_of):
    config = replace(base, seed=1, data_seed=0, steps=1, out=str(tmp_path))
    train(config)  # with the cache of seed 0
    assert losses_of(tmp_path)[0] != losses_of(undisturbed)[0]
    assert config.world_seed == 0 and replace(config, data_seed=None).world_seed == 1
