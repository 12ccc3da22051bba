"""Data from others of every kind: replies of a judge, training data, runs, rewards, answers.

Whatever a file holds, it is read or refused by an MRCError, soon, and no file outside its folder is opened.
`MRC_FUZZ=20000 pytest tests/fuzz` tries for hours; by default each test takes seconds.
"""

import copy
import io
import json
import os
import shutil
import sys
import tarfile
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mrc_edit.bench.real_edit.compare import compare
from mrc_edit.bench.real_edit.items import read_items
from mrc_edit.bench.real_edit.proxies import METRICS
from mrc_edit.core.errors import MRCError
from mrc_edit.judge import cache
from mrc_edit.judge.reply import read_answer, read_completion
from mrc_edit.judge.secret import protected_key, without_key
from mrc_edit.train.data import open_triplets
from mrc_edit.train.rewards.answers import read_answers
from mrc_edit.train.rewards.sheet import write_sheet
from mrc_edit.train.rewards.stats import statistics

fuzz = settings(
    max_examples=int(os.environ.get("MRC_FUZZ", 60)),
    deadline=timedelta(seconds=10),  # longer is a hang
    suppress_health_check=list(HealthCheck),
    derandomize="MRC_FUZZ" not in os.environ,
)
NUMBERS = st.sampled_from([0, 1, 5, -1, 6, 2**63, 10**400, 0.5, -0.0, 1e300, float("nan"), float("inf"), True])
NAMES = st.sampled_from(["../outside/a.png", "edits/a.png", "a#?%.png", "x" * 5000, "a\0b", "\ud800", ".", "/", ""])
TEXTS = NAMES | st.sampled_from(["left", "yes", "None", "a;b", "\u2028", "\x1b[2J", "[" * 900]) | st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
BROKEN = st.sampled_from(
    [b"", b"{", b"null", b"[]", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"1" * 5000, b"\0"]
)


@st.composite
def damaged(draw, document):
    """JSON of `document` with one to three values replaced or removed, or no JSON at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(BROKEN | st.binary(max_size=40))
    document = {"top": copy.deepcopy(document)}
    for _ in range(draw(st.integers(0, 3))):
        place, key = document, "top"
        while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3)):
            place = place[key]
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if draw(st.booleans()) and key != "top":
            place.pop(key)
        else:
            place[key] = draw(VALUES)
        if "top" not in document:
            break
    return json.dumps(document["top"], ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def overwritten(draw, data):
    """Bytes of a file, cut short or with a few overwritten."""
    changed = bytearray(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, min(len(changed), 600) - 1)))
        changed[at : at + 2] = draw(st.binary(min_size=2, max_size=2))
    return bytes(changed)


opened: list[str] = []


def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes) and "outside" in os.fsdecode(arguments[0]):
        opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(note)


def survives(read):
    """`read` returns, or raises an MRCError of bounded length; nothing in the folder `outside` is opened."""
    opened.clear()
    try:
        read()
    except MRCError as error:
        assert len(str(error)) < 7000  # a file name may have 5,000 characters
    assert not opened


def encoded(form="PNG", size=(24, 16)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def fresh(tmp_path):
    """A new empty folder at each call, beside a picture outside of it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.png").write_bytes(encoded())

    def make():
        shutil.rmtree(tmp_path / "inside", ignore_errors=True)
        (tmp_path / "inside").mkdir()
        return tmp_path / "inside"

    return make


ANSWER = {"failure": "the tail vanished", "verdict": "no", "score": "3-4"}
COMPLETION = {"choices": [{"message": {"content": json.dumps(ANSWER)}}], "usage": {"total_tokens": 120}}
WORDS = st.sampled_from(
    [
        "score",
        "Failure",
        "**verdict**",
        ":",
        "=",
        "4/5",
        "3 to 4",
        "yes",
        "\n",
        "*" * 900,
        " " * 900,
        "{",
        "}",
        '"',
        "\\",
    ]
)


@fuzz
@given(damaged(COMPLETION))
def test_completions(body):
    survives(lambda: read_answer(read_completion(body).text))


@fuzz
@given(damaged(ANSWER).map(lambda data: data.decode(errors="replace")) | st.lists(WORDS, max_size=22).map("".join))
def test_answers_in_replies(text):
    def read():
        answer = read_answer(text)
        assert 0 <= answer.score <= 5 and answer.text.encode() and ";" not in answer.text

    survives(read)


@fuzz
@given(damaged({"model": "m", "text": json.dumps(ANSWER), "tokens": 5}))
def test_stored_replies(fresh, data):
    path = cache.path_of(fresh(), "abcdef")
    path.parent.mkdir()
    path.write_bytes(data)
    survives(lambda: cache.load(path.parent.parent, "abcdef"))


ESCAPES = {
    "plain": lambda letter: letter, "url": lambda letter: f"%{ord(letter):02x}",
    "json": lambda letter: f"\\u{ord(letter):04X}", "html": lambda letter: f"&#x{ord(letter):x};",
    "twice": lambda letter: f"%25{ord(letter):02X}", "backslash": lambda letter: f"\\\\x{ord(letter):02x}",
    "space": lambda letter: f"{letter} ",
}  # fmt: skip


@fuzz
@given(st.lists(st.sampled_from(sorted(ESCAPES)), min_size=20, max_size=20), st.text(max_size=9), st.text(max_size=9))
def test_a_key_in_mixed_escapes(forms, before, after):
    key = "sk-proj_\"Ab'<9>+/=&z"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", key)
        protected_key()
    written = "".join(ESCAPES[form](letter) for form, letter in zip(forms, key, strict=True))
    assert "[key]" in without_key(before + " " + written + " " + after)


def read_all(path, rewards=None):
    triplets = open_triplets(path, rewards)
    for index in range(len(triplets)):
        survives(lambda index=index: triplets[index])


ROW = {"original_image": "a.png", "edited_image": "a.png", "edit_prompt": "snow", "reward_scores": [1, 2, 3],
       "reward_text": "a; b; c"}  # fmt: skip
ENTRY = [{"Score": 3, "Negative Prompt": "x"}] * 3


@fuzz
@given(st.lists(damaged(ROW), max_size=3), st.sampled_from([b"\n", b"\n\n", b"\r\n", b"\x0c", "\u2028".encode()]))
def test_metadata_lines(fresh, rows, separator):
    folder = fresh()
    (folder / "a.png").write_bytes(encoded())
    (folder / "metadata.jsonl").write_bytes(separator.join(rows))
    survives(lambda: read_all(folder))


@fuzz
@given(damaged({"edit": ["snow"]}), damaged({"0000001": ENTRY, "0000002": ENTRY}), st.booleans())
def test_triplet_folders(fresh, prompt, rewards, scored):
    folder = fresh()
    (folder / "0000001").mkdir()
    for role in "01":
        (folder / "0000001" / f"5_{role}.png").write_bytes(encoded())
    (folder / "0000001" / "prompt.json").write_bytes(prompt)
    (folder.parent / "rewards.json").write_bytes(rewards)
    survives(lambda: read_all(folder, folder.parent / "rewards.json" if scored else None))


def shard():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key in "ab":
            record = json.dumps({"edit": "snow", "scores": [1, 2, 3], "reward_text": "a; b; c"}).encode()
            for part, data in (("json", record), ("source.png", encoded()), ("edited.png", encoded())):
                info = tarfile.TarInfo(f"{key}.{part}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@fuzz
@given(overwritten(shard()))
def test_shards(fresh, data):
    path = fresh() / "a.tar"
    path.write_bytes(data)
    survives(lambda: read_all(path))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
@fuzz
@given(data=st.data())
def test_pictures(fresh, form, data):
    folder = fresh()
    (folder / "a.png").write_bytes(data.draw(overwritten(encoded(form))))
    (folder / "metadata.jsonl").write_text(json.dumps(ROW))
    survives(lambda: read_all(folder))


REWARD = {"scores": [1, None, 5], "verdicts": [False, None, True], "texts": ["x", None, "None"], "failures": [None] * 3}
ITEM = {"name": "a-1-local", "image": "a.png", "type": "local", "instruction": "red", "source": "sources/a.png",
        "edit": "edits/a.png", "reward": REWARD, "proxies": dict.fromkeys(METRICS, 1.0)}  # fmt: skip
OTHER = ITEM | {"name": "a-2-style", "type": "style"}
RESULTS = {"run": {"data": "d", "model": "m"}, "judge": {"model": "j"}, "items": [ITEM, OTHER]}


@fuzz
@given(damaged(RESULTS), st.booleans())
def test_run_folders(fresh, results, first):
    """Of what is compared, nothing but pictures of the runs is in the page's folder."""
    folder = fresh()
    for run, content in (("a", json.dumps(RESULTS).encode()), ("b", results)):
        for place in ("sources", "edits"):
            (folder / run / place).mkdir(parents=True)
            (folder / run / place / "a.png").write_bytes(encoded())
        (folder / run / "results.json").write_bytes(content)
    runs = [folder / "b", folder / "a"] if first else [folder / "a", folder / "b"]
    survives(lambda: compare(*runs, folder / "page"))
    survives(lambda: write_sheet(*runs, folder / "sheet"))
    for page in (folder / "page" / "index.html", folder / "sheet" / "sheet.html"):
        assert not page.is_file() or "\x1b[2J<" not in page.read_text()
    names = {path.name for path in folder.glob("page/**/*") if path.is_file()}
    assert names <= {"index.html", "comparison.json", "a.png"}


@fuzz
@given(damaged({"a.png": ["1. Local: red", "2. Style: ice"]}))
def test_real_edit_items(fresh, data):
    folder = fresh()
    (folder / "a.png").write_bytes(encoded())
    (folder / "x.json").write_bytes(data)
    survives(lambda: read_items(folder))


KEY = {"sheet": "s", "A": "a", "B": "b", "rows": [{"left": "A", "scores": [[1, 2, 3], None]}] * 3}


@fuzz
@given(damaged(KEY), damaged({"sheet": "s", "answers": {"0": {"following": "left"}, "2": {"quality": "equal"}}}))
def test_keys_and_answers(fresh, key, answers):
    folder = fresh()
    (folder / "key.json").write_bytes(key)
    (folder / "answers.json").write_bytes(answers)
    survives(lambda: read_answers(folder / "key.json", [folder / "answers.json"]))


@fuzz
@given(damaged({"a": ENTRY, "b": ENTRY}), damaged({"incomplete": 2, "unreadable": 1}))
def test_reward_statistics(fresh, rewards, report):
    folder = fresh()
    (folder / "RewardEdit.json").write_bytes(rewards)
    (folder / "report.json").write_bytes(report)
    survives(lambda: statistics(folder / "RewardEdit.json"))
