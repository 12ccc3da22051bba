import numpy as np
import pytest
import torch

from mrc_edit.core.errors import MRCError
from mrc_edit.core.fidelity import relative_error
from mrc_edit.model.smartedit import language
from mrc_edit.model.smartedit.folder import load_smartedit
from mrc_edit.model.smartedit.tokens import EOS, encode, image_token_ids

NEAR = 1e-5


@pytest.fixture(scope="module")
def model(smartedit):
    return load_smartedit(smartedit)


@pytest.fixture(scope="module")
def features(golden):
    return torch.from_numpy(golden["edit_clip_features"])[0]


@torch.inference_mode()
def states(*args, **options):
    return language.image_states(*args, **options)


@torch.inference_mode()
def told(model, features, words, instruction="make it snow", template=0):
    """The states where the model is made to answer with `words`, one at a time."""
    images, left = image_token_ids(model.tokenizer), iter(words)
    prompt = encode(model.tokenizer, model.wording.prompt(template, instruction))

    def choose(logits):
        token = next(left)
        assert logits[token] > -torch.inf
        assert logits[images[1:]].max() == -torch.inf
        return token

    return language.answer(model, language.rows(model, prompt, images[0], features), images, choose)


@pytest.mark.parametrize("template", [0, 1])
def test_one_pass_gives_what_word_by_word_gives(model, features, template):
    prompt = model.wording.prompt(template, "make it snow")
    whole = encode(model.tokenizer, f"{prompt} {model.wording.answer(template)}")
    words = whole[len(encode(model.tokenizer, prompt)) :]
    by_words = told(model, features, words, template=template)
    at_once = states(model, features, "make it snow", template=template)
    assert at_once.shape == (32, 64)
    assert relative_error(at_once.numpy(), by_words.numpy()) <= NEAR


def test_image_and_instruction_count(model, features):
    one = states(model, features, "make it snow")
    assert torch.equal(states(model, features, "make it snow"), one)
    assert relative_error(states(model, features, "make it rain").numpy(), one.numpy()) > 1e-3
    assert relative_error(states(model, -features, "make it snow").numpy(), one.numpy()) > 1e-3


def test_sampling_follows_its_seed(model, features, monkeypatch):
    monkeypatch.setattr(model.llm.lm_head.weight, "data", model.llm.lm_head.weight.data.clone())
    model.llm.lm_head.weight.data[EOS] = 0  # an end is as likely as another word
    model.llm.lm_head.weight.data[image_token_ids(model.tokenizer)[0]] *= 3
    found = {}
    for seed in range(12):
        try:
            found[seed] = states(model, features, "make it snow", "sample", seed=seed)
        except MRCError:
            continue
    assert len(found) > 1
    assert all(torch.equal(states(model, features, "make it snow", "sample", seed=s), one) for s, one in found.items())
    assert len({one.numpy().tobytes() for one in found.values()}) > 1


@pytest.mark.parametrize("words", [[EOS], [5, 6, EOS], [7] * (language.MOST_TOKENS + 1)])
def test_an_answer_without_an_image_is_an_error(model, features, words):
    with pytest.raises(MRCError, match="without an image"):
        told(model, features, words)


def test_half_precision_keeps_its_positions(smartedit, model, features):
    half = load_smartedit(smartedit, torch.bfloat16)
    assert half.llm.dtype == torch.bfloat16
    assert torch.equal(half.llm.model.rotary_emb.inv_freq, model.llm.model.rotary_emb.inv_freq)
    error = relative_error(states(half, features, "a").numpy(), states(model, features, "a").numpy())
    assert 1e-5 < error < 0.1


def test_states_are_those_of_the_release(released_smartedit, released_golden):
    arrays = np.load(released_golden / "edit_tiny.npz")
    model = load_smartedit(released_smartedit)
    features = torch.from_numpy(arrays["clip_features"])[0]
    greedy = states(model, features, "make the sky look like a sunset", "greedy")
    assert relative_error(greedy.numpy(), arrays["img_hidden"][0]) <= NEAR
    images = image_token_ids(model.tokenizer)
    told_words = told(model, features, [300, 301, images[0]], "make the sky look like a sunset")
    assert relative_error(told_words.numpy(), arrays["img_hidden"][0]) <= NEAR
