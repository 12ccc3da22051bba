"""Textual inversion: the tokens and states that diffusers gives, from files of diffusers and of A1111."""

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline

from mrc_edit.core.errors import MRCError
from mrc_edit.engine import Engine
from mrc_edit.engine.backends.eager import EagerBackend
from mrc_edit.engine.shipped import MODELS
from mrc_edit.engine.text import tokenize
from mrc_edit.model import load_checkpoint, save_checkpoint
from mrc_edit.model.adapters import load_adapted
from mrc_edit.model.embeddings import add_embeddings
from mrc_edit.model.smartedit import CONFIG

TEXTS = ["a <cat> in the snow", "<cat>,<cat>.", "as <style>, not a cat_1", "nothing"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One vector as diffusers saves it, three as A1111 does."""
    folder, generator = tmp_path_factory.mktemp("embeddings"), torch.Generator().manual_seed(5)
    one, three = torch.randn(64, generator=generator), torch.randn(3, 64, generator=generator)
    safetensors.torch.save_file({"<learned>": one}, folder / "diffusers.safetensors")
    safetensors.torch.save_file({"emb_params": three}, folder / "a1111.safetensors")
    return {"<cat>": folder / "a1111.safetensors", "<style>": folder / "diffusers.safetensors"}


def encoded(backend, texts):
    ids = tokenize(backend.tokenizer, texts, backend.geometry)
    return ids, *backend.text_encoder(input_ids=ids)


def test_tokens_and_states_are_those_of_diffusers(plain, files):
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(str(plain), safety_checker=None)
    for token, path in files.items():
        pipe.load_textual_inversion(str(path), token=token)
    theirs = pipe.tokenizer(
        pipe.maybe_convert_prompt(TEXTS, pipe.tokenizer), padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    backend = Engine.from_pretrained(plain, "eager", embeddings=files).backend
    ids, states, _ = encoded(backend, TEXTS)
    np.testing.assert_array_equal(ids, theirs.numpy())
    assert len(set(ids[0]) & set(range(514, 517))) == 3  # the numbers of the three vectors
    with torch.no_grad():
        np.testing.assert_allclose(states, pipe.text_encoder(theirs).last_hidden_state.numpy(), atol=1e-5)


def test_texts_without_the_tokens_stay_as_they_were(plain, files, photo):
    arguments = {"seed": 1, "resolution": 0, "num_inference_steps": 1, "output_type": "latent"}
    before, after = (Engine.from_pretrained(plain, "eager", embeddings=each) for each in (None, files))
    for text, same in (("snow", True), ("<cat>", False)):
        one, two = (engine.edit(photo, text, **arguments).images for engine in (before, after))
        assert np.array_equal(one, two) is same


def test_old_configurations_pool_at_the_end_of_the_text(plain, files):
    """Those with eos_token_id 2 pool at the greatest token, which an added one would be."""
    states = {}
    for eos in (2, 513):
        checkpoint = load_checkpoint(plain)
        checkpoint.text_encoder.eos_token_id = checkpoint.text_encoder.config.eos_token_id = eos
        before = encoded(EagerBackend(checkpoint), ["snow"])
        add_embeddings(checkpoint, files)
        after = encoded(EagerBackend(checkpoint), ["snow", "a <cat>"])
        np.testing.assert_array_equal(before[2][0], after[2][0])
        states[eos] = after[2][1]
    np.testing.assert_array_equal(states[2], states[513])


def test_a_checkpoint_with_added_tokens_is_saved_and_loads(plain, files, tmp_path):
    checkpoint = load_checkpoint(plain)
    add_embeddings(checkpoint, files)
    save_checkpoint(checkpoint, tmp_path / "saved")
    again = EagerBackend(load_checkpoint(tmp_path / "saved"))
    for ours, theirs in zip(encoded(again, TEXTS), encoded(EagerBackend(checkpoint), TEXTS), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_long_text_is_cut_where_its_tokens_end(plain, files):
    backend = Engine.from_pretrained(plain, "eager", embeddings=files).backend
    with pytest.warns(UserWarning, match=r"81 tokens long and the model reads 77; cut: '<cat>b b b'"):
        ids, *_ = encoded(backend, ["b " * 72 + "b<cat>b b b"])
    assert list(ids[0, -4:]) == [256 + ord("b") - ord("!"), 514, 515, 513]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"<x>": torch.zeros(768)}, r"another model: <x> is \[1, 768\], and this text encoder takes vectors of 64"),
        ({"emb_params": torch.zeros(1, 2, 64)}, "for another model"),
        ({"emb_params": torch.zeros(0, 64)}, "for another model"),
        ({"clip_l": torch.zeros(1, 64), "clip_g": torch.zeros(1, 64)}, r"holds 2 tensors \(clip_g, clip_l\).*SDXL"),
        ({"<x>": torch.full((64,), float("inf"))}, "other things than finite"),
        ({}, "holds no tensors"),
    ],
)
def test_files_that_do_not_fit_are_one_error(plain, tmp_path, tensors, message):
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(MRCError, match=message):
        add_embeddings(load_checkpoint(plain), {"<cat>": tmp_path / "x.safetensors"})


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["a"], "has 'a' already"),
        (["two words"], "give a word without spaces"),
        ([""], "give a word"),
        ([3], "the token is 3"),
        (["<x>", "<x>_1"], "has '<x>' already, so '<x>_1' cannot"),
        (["<x>_1", "<x>"], "has '<x>_1' already, so '<x>' cannot"),
    ],
)
def test_tokens_that_cannot_be_added(plain, files, tokens, message):
    with pytest.raises(MRCError, match=message):
        add_embeddings(load_checkpoint(plain), dict.fromkeys(tokens, files["<style>"]))


def test_embeddings_are_a_mapping(plain):
    with pytest.raises(MRCError, match="give files by token"):
        add_embeddings(load_checkpoint(plain), ["x.safetensors"])


def test_smartedit_takes_none_since_another_model_reads_its_instructions(files, tmp_path):
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(MRCError, match="is a SmartEdit model"):
        load_adapted(tmp_path, embeddings=files)


def test_exports_say_what_to_do(files):
    with pytest.raises(MRCError, match=r"embeddings cannot be added.* mrc-export CHECKPOINT OUT --embedding '.*=.*'"):
        Engine.from_pretrained(MODELS["mini"] / "onnx", embeddings=files)
