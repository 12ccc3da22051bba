import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from mrc_edit.core.errors import MRCError
from mrc_edit.core.files import read_json
from mrc_edit.model.smartedit import tokens
from mrc_edit.model.smartedit.tokens import ADDED_TOKENS, OWN, Template, Wording

MODEL = Path(__file__).with_name("tokenizer.model")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokens.build_tokenizer(MODEL)


def cut(text: str) -> list[str]:
    """The text at its added tokens, without the blanks beside them."""
    return [piece for piece in re.split(r"\s*(<img>|<im_start>|<im_end>|<img_\d+>)\s*", text) if piece]


@pytest.mark.parametrize(
    "text",
    ["draw an <img>.", "<img>  . a cat", 'as "<im_start> <img_0> <im_end>turn it red". Now', "é 中 <img_3> <img_4> 3 x",
     OWN.prompt(0, "make it snow"), f"{OWN.prompt(0, 'a')} {OWN.answer(0)}"],
)  # fmt: skip
def test_each_piece_between_added_tokens_is_encoded_alone(tokenizer, text):
    expected = [1]
    for piece in cut(text):
        number = tokenizer.token_to_id(piece) if piece in ADDED_TOKENS else None
        expected += [number] if number is not None else tokenizer.encode(piece).ids
    assert tokens.encode(tokenizer, text) == expected


def test_a_piece_has_a_leading_blank_of_its_own(tokenizer):
    """What SentencePiece gives: "▁." after an added token is one piece or two, never a bare full stop."""
    ids = tokens.encode(tokenizer, "<img>.")
    assert ids[:2] == [1, 420]
    assert "".join(tokenizer.id_to_token(each) for each in ids[2:]) == "▁."


def test_numbers_of_the_added_tokens(tokenizer):
    assert tokens.numbers(tokenizer, ADDED_TOKENS) == list(range(420, 455))
    assert tokens.image_token_ids(tokenizer) == list(range(423, 455))


def test_ids_of_the_released_prompts(tokenizer, released_golden):
    strings = read_json(released_golden.parent / "kit" / "templates.json", "restore it")
    templates = [Template(**each) for each in strings["templates"]]
    wording = Wording(strings["system"], strings["roles"], strings["caption"], templates, "given")
    config = json.loads(str(np.load(released_golden / "edit_tiny.npz")["config"]))
    assert tokens.encode(tokenizer, wording.prompt(0, config["instruction"])) == config["prompt_ids"]
    trained = np.load(released_golden / "train_tiny.npz")
    config = json.loads(str(trained["config"]))
    for i, (template, instruction) in enumerate(zip(config["templates"], config["instructions"], strict=True)):
        text = f"{wording.prompt(template, instruction)} {wording.answer(template)}"
        expected = trained["input_ids"][i][trained["input_attention_mask"][i]].tolist()
        assert [*tokens.encode(tokenizer, text), tokens.EOS] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [({"caption": "{instruction}"}, "<im_start>"), ({"templates": []}, "0 templates"), ({"roles": ["A"]}, "1 roles"),
     ({"templates": [Template("no place", "[img]")]}, r"\[cap\]"),
     ({"templates": [Template("[cap]", "x")]}, r"\[img\]")],
)  # fmt: skip
def test_wording_without_a_place_is_refused(change, message):
    assert tokens.check_wording(OWN, "ours") == OWN
    with pytest.raises(MRCError, match=message):
        tokens.check_wording(replace(OWN, **change), "strings.json")


def test_other_tokenizers_are_refused(tmp_path):
    with pytest.raises(MRCError, match=r"is missing; put Vicuna's tokenizer\.model there"):
        tokens.build_tokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"no protobuf")
    with pytest.raises(MRCError, match="Vicuna"):
        tokens.build_tokenizer(tmp_path / "tokenizer.model")


def test_instructions_hold_no_tokens_of_the_model():
    tokens.check_instruction("turn <b>it</b> red")
    with pytest.raises(MRCError, match="<img_7>"):
        tokens.check_instruction("turn <img_7> red")
