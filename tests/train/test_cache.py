import copy
import json
import shutil

import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.model import load_checkpoint
from mrc_edit.train.cache import CachedBatches, build_cache, cache_key, open_cache, weights_digest
from mrc_edit.train.config import TrainConfig
from mrc_edit.train.data import open_data
from mrc_edit.train.data.writers import write_triplets

SCORES = [(5, 5, 5), (5, 4, 5), (0, 5, 5), (5, 5, 5), (4, 4, 4)]


@pytest.fixture
def cache(tmp_path):
    """Five triplets; the latents of number i hold i."""
    count = len(SCORES)
    filled = np.arange(count, dtype=np.float16)
    np.save(tmp_path / "source.npy", np.broadcast_to(filled[:, None, None, None], (count, 4, 2, 2)))
    np.save(tmp_path / "edited.npy", np.broadcast_to(filled[:, None, None, None, None], (count, 2, 4, 2, 2)))
    np.save(tmp_path / "scores.npy", np.array(SCORES, dtype=np.float32))
    texts = {name: [f"{name}{i}" for i in range(count)] for name in ("id", "instruction", "reward_text")}
    (tmp_path / "texts.json").write_text(json.dumps(texts | {"broken": []}))
    return tmp_path


@pytest.mark.parametrize(
    ("least", "kept"), [(None, {0, 1, 2, 3, 4}), (5, {0, 3}), (4, {0, 1, 3, 4}), (0, {0, 1, 2, 3, 4})]
)
def test_least_score_keeps_the_triplets_with_such_scores(cache, least, kept):
    batches = CachedBatches(cache, 2, seed=0, rank=0, world_size=1, least_score=least)
    seen = [batches[step] for step in range(10)]
    assert {name for batch in seen for name in batch["ids"]} == {f"id{i}" for i in kept}
    for batch in seen:  # latents, texts and scores belong together
        numbers = [int(value) for value in batch["source"][:, 0, 0, 0]]
        assert batch["ids"] == [f"id{i}" for i in numbers]
        assert batch["instructions"] == [f"instruction{i}" for i in numbers]
        assert [tuple(row) for row in batch["scores"].tolist()] == [SCORES[i] for i in numbers]


def test_what_cannot_be_chosen_by_score(cache):
    scores = np.load(cache / "scores.npy")
    np.save(cache / "scores.npy", np.minimum(scores, 4))
    with pytest.raises(MRCError, match="no triplet"):
        CachedBatches(cache, 2, seed=0, rank=0, world_size=1, least_score=5)
    (cache / "scores.npy").unlink()
    with pytest.raises(MRCError, match="has no rewards"):
        CachedBatches(cache, 2, seed=0, rank=0, world_size=1, least_score=5)


@pytest.mark.parametrize(("least", "folder"), [(6, "cache"), (-1, "cache"), (5, None)])
def test_settings_that_cannot_be(least, folder):
    with pytest.raises(MRCError, match="least_score"):
        TrainConfig(init="a", data="b", out="c", augment=False, least_score=least, cache=folder)


def test_a_cache_is_of_a_vae(tmp_path):
    """In which file type the weights lie does not matter, their values do."""
    torch.manual_seed(0)
    trained = torch.nn.Linear(3, 2)
    half = copy.deepcopy(trained).half()
    assert weights_digest(half) == weights_digest(copy.deepcopy(half).float()) != weights_digest(trained)
    made = cache_key("miniature:8", None, None, 64, half)
    (tmp_path / "key.json").write_text(json.dumps(made))
    assert open_cache(tmp_path, cache_key("miniature:8", None, None, 64, half.float()))
    with pytest.raises(MRCError, match="was made from"):
        open_cache(tmp_path, cache_key("miniature:8", None, None, 64, trained))


@torch.no_grad()
def test_latents_that_float16_does_not_hold_are_refused(tiny, tmp_path):
    vae = load_checkpoint(tiny).vae
    vae.quant_conv.weight *= 1e9
    with pytest.raises(MRCError, match="latents of miniature-0-0 that float16 does not hold"):
        build_cache(open_data("miniature:3"), vae, tmp_path / "cache", 64, {}, 0, None)
    assert list(tmp_path.glob("cache*")) == []


def test_a_cache_of_data_that_changed_is_refused(tmp_path):
    write_triplets(list(map(open_data("miniature:2").__getitem__, range(2))), tmp_path / "data", "folders")
    rewards = tmp_path / "data" / "RewardEdit.json"
    vae = torch.nn.Linear(1, 1)

    def key(given=None):
        return cache_key(str(tmp_path / "data"), given, None, 64, vae)

    (tmp_path / "key.json").write_text(json.dumps(key()))
    assert open_cache(tmp_path, key())
    rewards.write_text(rewards.read_text().replace('"Score": 5', '"Score": 4'))
    with pytest.raises(MRCError, match="was made from"):
        open_cache(tmp_path, key())
    other = shutil.copy(rewards, tmp_path / "other.json")
    with_other = key(str(other))
    other.write_text("{}")
    assert key(str(other)) != with_other
    rewards.unlink()
    without = key()
    shutil.rmtree(tmp_path / "data" / "0000001")
    assert key() != without
