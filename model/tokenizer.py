"""A checkpoint's CLIP tokenizer, as any version of transformers saved it.

transformers 5 writes `tokenizer.json` alone, earlier ones `vocab.json` and `merges.txt` (or all three; then
`tokenizer.json` counts, as in transformers). Its settings are read by name, since transformers opens files that a
`tokenizer_config.json` names, wherever they are.
"""

from pathlib import Path

from tokenizers import AddedToken
from transformers import CLIPTokenizer

from ..core.errors import MRCError, reason
from ..core.files import read_json
from ..core.schema import JsonObject

WHOLE, PAIR = "tokenizer.json", ("vocab.json", "merges.txt")
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
REMEDY = "restore the original file"


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer that transformers makes of the folder, without the truncation and padding that were saved in it.

    Raises:
        MRCError: a file that is missing or damaged, or that holds another kind of tokenizer.
    """
    there = [name for name in PAIR if (folder / name).is_file()]
    if len(there) == 1:
        other = next(name for name in PAIR if name not in there)
        raise MRCError(f"{folder / other} is missing beside {there[0]}; {REMEDY}")
    if not there and not (folder / WHOLE).is_file():
        raise MRCError(
            f"{folder / WHOLE} is missing, and {' and '.join(PAIR)} too; the checkpoint folder is incomplete"
        )
    try:
        content = read_json(folder / WHOLE, REMEDY) if (folder / WHOLE).is_file() else read_pair(folder)
        settings, added = read_settings(folder, content)
        return CLIPTokenizer(
            vocab=content["model"]["vocab"],
            merges=[
                tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in content["model"]["merges"]
            ],
            added_tokens_decoder=added,
            **settings,
        )
    except MRCError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise MRCError(f"{folder} holds no CLIP tokenizer ({reason(error)}); restore the original files") from None


def read_pair(folder: Path) -> JsonObject:
    """`vocab.json` and `merges.txt` as the entry `model` of a `tokenizer.json`."""
    lines = (folder / PAIR[1]).read_text(encoding="utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return {"model": {"vocab": read_json(folder / PAIR[0], REMEDY), "merges": merges}}


def read_settings(folder: Path, content: JsonObject) -> tuple[JsonObject, dict[int, AddedToken]]:
    """Special tokens and text length; all added tokens by number."""
    config, special, more = (
        read_json(path, REMEDY) if (path := folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    saved = config.get("added_tokens_decoder")
    if saved is None:
        config |= special
        saved = {number: {"content": text} for text, number in more.items()}
        saved |= {each["id"]: each for each in content.get("added_tokens", [])}
    added = {int(number): token(value) for number, value in saved.items()}
    named = {each.content: each for each in added.values()}
    settings = {name: token(config[name]) for name in SPECIAL if config.get(name) is not None}
    settings = {name: named.get(value.content, value) for name, value in settings.items()}
    length = config.get("model_max_length", 77)
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 2:
        raise MRCError(f"{folder}/tokenizer_config.json: model_max_length is {length!r}, not a number from 2; {REMEDY}")
    return {**settings, "model_max_length": int(length)}, added


def token(value: str | JsonObject) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, normalized=False, special=True)
    return AddedToken(value["content"], **{name: bool(value[name]) for name in FLAGS if name in value})
