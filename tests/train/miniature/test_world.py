import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.train.data import open_triplets
from mrc_edit.train.miniature import triplets
from mrc_edit.train.miniature.edits import FILM_SHARES, KINDS, artifacts, damage, random_edit, under_film
from mrc_edit.train.miniature.model import vocabulary, word_tokenizer
from mrc_edit.train.miniature.oracle import PASS, score
from mrc_edit.train.miniature.photographs import load_photographs
from mrc_edit.train.miniature.scene import (
    BACKGROUNDS,
    SIZE,
    STYLES,
    TONES,
    mask,
    named_background,
    paint,
    render,
    stylize,
    tone,
)
from mrc_edit.train.miniature.triplets import MiniatureTriplets, held_out


@pytest.fixture(scope="module")
def photographs():
    return load_photographs()


@pytest.fixture(scope="module")
def edits(photographs):
    return held_out(photographs, 70)


def test_photographs(photographs, tmp_path):
    assert len(photographs) == 6 and all(min(p.shape[:2]) >= SIZE and p.dtype == np.uint8 for p in photographs)
    with pytest.raises(MRCError, match="holds no"):
        load_photographs(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(MRCError, match=r"a\.jpg"):
        load_photographs(tmp_path)


@pytest.mark.parametrize("look", [*TONES, *STYLES])
def test_pictures_are_float32(edits, photographs, look):
    for edit in edits[:2]:
        picture = render(replace(edit.source, **{"tone" if look in TONES else "style": look}), photographs)
        assert picture.dtype == np.float32 and picture.shape == (SIZE, SIZE, 3)
        assert picture.min() >= 0 and picture.max() <= 255


def test_all_seven_kinds_are_asked(edits):
    assert {edit.kind for edit in edits} == set(KINDS)
    assert len({edit.instruction for edit in edits}) > 50


def test_the_right_edit_scores_full(edits, photographs):
    for edit in edits:
        assert score(edit, render(edit.target, photographs), photographs) == ((5, 5, 5), "None; None; None"), edit


@pytest.mark.parametrize("look", ["mosaic", "poster", "snow"])
def test_looks_can_be_made_from_what_a_vae_keeps(edits, photographs, look):
    """Else no model passes. A VAE keeps about as much as averages over 4×4 pixels."""
    passed = []
    for edit in (edit for edit in edits if edit.whole):
        kind = "style" if look in STYLES else "global"
        asked = replace(edit, kind=kind, target=replace(edit.source, **{"style" if look in STYLES else "tone": look}))
        small = Image.fromarray(render(edit.source, photographs).round().astype(np.uint8)).reduce(4)
        blurred = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32)
        passed.append(score(asked, stylize(tone(blurred, asked.target.tone), asked.target.style), photographs)[0])
    assert len(passed) == 20 and (np.array(passed) >= PASS).mean() >= 0.95


def test_no_edit_does_not_follow(edits, photographs):
    for edit in edits:
        (following, _, quality), text = score(edit, render(edit.source, photographs), photographs)
        assert following <= 1 and quality == 5, edit
        assert text.split("; ")[0] != "None"


def test_one_colour_is_no_pattern(photographs):
    """A plain object that took the pattern's second colour everywhere, or its colours' mean, does not follow."""
    asked = [random_edit(np.random.default_rng(seed), photographs, "texture") for seed in range(12)]
    for edit in (edit for edit in asked if edit.source.things[edit.touched[0]].pattern is None):
        thing = edit.target.things[edit.touched[0]]
        others = tuple(t for t in edit.target.things if t != thing)
        cover = mask(thing)[..., None]
        for colour in (
            np.full(3, 60.0 if thing.colour == "white" else 240.0),
            (paint(thing) * cover).sum((0, 1)) / cover.sum(),
        ):
            picture = render(replace(edit.target, things=others), photographs) * (1 - cover) + colour * cover
            assert score(edit, picture, photographs)[0][0] < PASS, edit


def test_damage_costs_preserving(edits, photographs):
    rng = np.random.default_rng(0)
    drops = []
    for edit in edits:
        if (result := damage(rng, edit, edit.target)) == edit.target:
            continue
        (following, preserving, quality), text = score(edit, render(result, photographs), photographs)
        drops.append((5 - following, 5 - preserving, 5 - quality))
        assert preserving == 5 or text.split("; ")[1] != "None"
    following, preserving, quality = np.mean(drops, axis=0)
    assert preserving > 2.5 and preserving > 4 * following and preserving > 10 * quality


def test_a_dark_background_is_named_and_clean(edits, photographs):
    light = [edit for edit in edits if edit.kind == "add" and render(edit.source, photographs).mean() > 80]
    for edit in light:
        (_, preserving, quality), text = score(edit, render(replace(edit.target, shade=0.5), photographs), photographs)
        assert preserving <= 2 and quality >= PASS, edit
        assert text.split("; ")[1] == "the background became dark"
    assert len(light) >= 5


def test_whole_picture_edits_are_not_damaged(edits):
    rng = np.random.default_rng(0)
    assert all(damage(rng, edit, edit.target) == edit.target for edit in edits if edit.whole)


def test_artifacts_cost_quality(edits, photographs):
    rng = np.random.default_rng(0)
    scores = [score(edit, artifacts(rng, render(edit.target, photographs)), photographs)[0] for edit in edits]
    assert np.mean([quality for _, _, quality in scores]) < 2.5


@pytest.mark.parametrize("share", FILM_SHARES)
def test_a_film_costs_quality_alone(edits, photographs, share):
    passed = 0
    for edit in edits:
        scores, text = score(edit, under_film(render(edit.target, photographs), share), photographs)
        named = "None" if scores[2] == 5 else "the picture became purple"
        assert scores[:2] == (5, 5) and text == f"None; None; {named}", edit
        # what has that colour itself: a night sky, or another look of the whole picture
        assert scores[2] < PASS or edit.whole or edit.instruction.endswith("night sky"), edit
        passed += scores[2] >= PASS
    assert passed <= len(edits) // 20


def test_a_film_does_not_hide_that_nothing_was_done(edits, photographs):
    for edit in (edit for edit in edits if not edit.whole):
        (following, preserving, _), _ = score(edit, under_film(render(edit.source, photographs), 0.3), photographs)
        assert following <= 1 and preserving == 5, edit


def test_the_failure_is_named(photographs):
    edit = random_edit(np.random.default_rng(3), photographs, "remove")
    _, text = score(edit, render(edit.source, photographs), photographs)
    shape = edit.source.things[edit.touched[0]].shape
    assert text == f"the {shape} did not change; None; None"


def test_triplets_are_a_function_of_seed_and_number(photographs):
    first, again, other = (MiniatureTriplets(photographs, 3, seed) for seed in (0, 0, 1))
    assert first[2].source.tobytes() == again[2].source.tobytes() and first[2].scores == again[2].scores
    assert first[2].source.tobytes() != other[2].source.tobytes()
    with pytest.raises(IndexError):
        first[3]


@pytest.mark.parametrize("form", ["folders", "parquet", "shards"])
def test_the_world_can_be_written(photographs, form, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["triplets", str(tmp_path / "o"), "--format", form, "--count", "3", "--seed", "5"])
    with pytest.raises(SystemExit) as stop:
        triplets.main()
    assert stop.value.code == 0
    found, expected = open_triplets(tmp_path / "o"), MiniatureTriplets(photographs, 3, 5)
    assert len(found) == 3
    for i in range(3):
        assert found[i].instruction == expected[i].instruction
        assert found[i].scores == expected[i].scores and found[i].reward_text == expected[i].reward_text
        difference = np.asarray(found[i].edited, int) - np.asarray(expected[i].edited, int)
        assert np.abs(difference).mean() < (6 if form == "folders" else 0.01)  # JPEG, PNG


@pytest.mark.parametrize(("name", "value"), [("--count", "0"), ("--seed", "-1")])
def test_a_world_that_cannot_be_is_refused(name, value, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["triplets", str(tmp_path / "o"), name, value])
    with pytest.raises(SystemExit) as stop:
        triplets.main()
    assert stop.value.code == 2 and f"{name} is {value}" in capsys.readouterr().err


def test_every_word_is_one_token(photographs):
    tokenizer = word_tokenizer()
    for i in range(60):
        triplet = MiniatureTriplets(photographs, 60)[i]
        for text in (triplet.instruction, triplet.reward_text):
            ids = tokenizer(text).input_ids
            assert len(ids) <= 40
            assert len(ids) - 2 == len(text.replace(";", " ;").split()), tokenizer.tokenize(text)
    assert "circle" in vocabulary() and tokenizer.decode(tokenizer("zebra", add_special_tokens=False).input_ids)


def test_backgrounds_differ():
    means = np.array([named_background(name).mean((0, 1)) for name in BACKGROUNDS])
    distances = np.linalg.norm(means[:, None] - means, axis=-1) + 1e3 * np.eye(len(means))
    assert distances.min() > 20


def test_the_vocabulary_is_the_same_in_every_run():
    first, *others = (word_tokenizer().get_vocab() for _ in range(4))
    assert all(each == first for each in others)
