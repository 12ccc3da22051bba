import copy
import json

import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.train.cache import CachedBatches, cache_key, open_cache, weights_digest
from mrc_edit.train.config import TrainConfig

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


def test_a_cache_is_of_a_vae_and_a_precision(tmp_path):
    """In which file type the weights lie does not matter, their values do."""
    torch.manual_seed(0)
    trained = torch.nn.Linear(3, 2)
    half = copy.deepcopy(trained).half()
    assert weights_digest(half) == weights_digest(copy.deepcopy(half).float()) != weights_digest(trained)
    made = cache_key("data", None, None, 64, half, "bf16")
    (tmp_path / "key.json").write_text(json.dumps(made))
    assert open_cache(tmp_path, cache_key("data", None, None, 64, half.float(), "bf16"))
    for other in (cache_key("data", None, None, 64, trained, "bf16"), cache_key("data", None, None, 64, half, "no")):
        with pytest.raises(MRCError, match="was made from"):
            open_cache(tmp_path, other)
