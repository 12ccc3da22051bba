"""One bad sample is named and replaced, whatever is wrong with it; the others are read."""

import io
import json
import os
import shutil
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.train.cache import Samples
from mrc_edit.train.data import open_triplets
from mrc_edit.train.data.batches import StepBatches

BAD = 1  # number of the bad sample, of three


def encoded(form, size=(48, 32), seed=0):
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def damaged(form):
    """Files cut short and with overwritten bytes."""
    whole = encoded(form)
    return [whole[: len(whole) // 2], whole[:40], whole[:20] + b"\xff" * 24 + whole[44:], whole[:-200] + bytes(200)]


def png_of(width, height):
    """A PNG of one colour, a few KB for any size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer, rows = zlib.compressobj(9), b""
    for _ in range(height):
        rows += packer.compress(bytes(1 + width))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows + packer.flush()) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 32\n%%EndComments\n(x) run\n"
PICTURES = [EPS, b"", b"no picture", png_of(1, 6000), png_of(9000, 8000)]
DAMAGED = [data for form in ("AVIF", "DDS", "TIFF", "PNG", "GIF") for data in damaged(form)]
DEEP = b"[" * 100_000
RECORDS = [
    DEEP,
    b'{"edit":' * 50_000,
    b"",
    b"[]",
    b"null",
    b"{}",
    b'{"edit": 5}',
    b'{"edit": ""}',
    b"\xff\xfe\x00",
    b"{",
]
TEXTS = ["a face \ud83d", "", None, 5, ["x"], {"a": 1}, "x" * 20_000]
SCORES = [[1, 2], "555", [1, 2, None], [1, 2, 10**400], [1, 2, 6], {"a": 1}, [[]] * 3, [True, 1, 2]]
NAMES = ["a\0b", "\ud800.png", "x" * 5000, "../out.png", "", "none.png", None, 5, ["a"], "pipe"]


def write_folders(root, pictures, records):
    for number, (pair, record) in enumerate(zip(pictures, records, strict=True)):
        folder = root / f"{number:07d}"
        folder.mkdir(parents=True)
        for role, data in enumerate(pair):
            (folder / f"0_{role}.png").write_bytes(data)
        (folder / "prompt.json").write_bytes(record)


def write_lines(root, pictures, records):
    root.mkdir()
    lines = []
    for number, (pair, record) in enumerate(zip(pictures, records, strict=True)):
        for role, data in enumerate(pair):
            (root / f"{number}_{role}.png").write_bytes(data)
        try:
            row = {"edit_prompt": json.loads(record)["edit"]}
        except (ValueError, RecursionError, TypeError, KeyError):
            lines.append(record or b"x")  # an empty line is none
            continue
        files = {"original_image": f"{number}_0.png", "edited_image": f"{number}_1.png"}
        lines.append(json.dumps(files | row, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    (root / "metadata.jsonl").write_bytes(b"\n".join(lines))


def write_shard(root, pictures, records):
    root.mkdir()
    with tarfile.open(root / "a.tar", "w") as tar:
        for number, (pair, record) in enumerate(zip(pictures, records, strict=True)):
            for part, data in (("source.png", pair[0]), ("edited.png", pair[1]), ("json", record)):
                info = tarfile.TarInfo(f"{number}.{part}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_table(root, pictures, records):
    import datasets

    root.mkdir()
    rows = []
    for pair, record in zip(pictures, records, strict=True):
        source, edited = ({"bytes": data, "path": None} for data in pair)
        rows.append({"original_image": source, "edit_prompt": json.loads(record)["edit"], "edited_image": edited})
    datasets.Dataset.from_list(rows).to_parquet(str(root / "t.parquet"))


WRITERS = {"folders": write_folders, "lines": write_lines, "shard": write_shard, "table": write_table}


def check(path, rewards=None):
    """The bad sample is named, everywhere where samples are read, and is the only one."""
    triplets = open_triplets(path, rewards)
    assert len(triplets) == 3
    with pytest.raises(MRCError, match=r"^sample ") as error:
        triplets[BAD]
    assert len(str(error.value)) < 1000
    assert all(triplets[index].instruction for index in range(3) if index != BAD)
    assert Samples(triplets, 32)[BAD] == str(error.value)
    batch = StepBatches(triplets, 3, 32, seed=0)[0]
    assert set(batch["broken"]) == {str(error.value)} and len(batch["ids"]) == 3


def three(bad, good):
    return [bad if index == BAD else good for index in range(3)]


@pytest.fixture(scope="module")
def pair():
    return encoded("PNG"), encoded("PNG", seed=1)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("number", range(len(PICTURES)))
def test_pictures(form, number, pair, tmp_path):
    bad = (PICTURES[number], pair[1])
    WRITERS[form](tmp_path / "data", three(bad, pair), three(b'{"edit": "snow"}', b'{"edit": "snow"}'))
    check(tmp_path / "data")


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("number", range(len(DAMAGED)))
def test_damaged_pictures(form, number, pair, tmp_path):
    """Some can still be decoded."""
    bad = (pair[0], DAMAGED[number])
    WRITERS[form](tmp_path / "data", three(bad, pair), three(b'{"edit": "snow"}', b'{"edit": "snow"}'))
    try:
        open_triplets(tmp_path / "data")[BAD]
    except MRCError:
        check(tmp_path / "data")


@pytest.mark.parametrize("form", ["folders", "lines", "shard"])
@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_records(form, number, pair, tmp_path):
    WRITERS[form](tmp_path / "data", [pair] * 3, three(RECORDS[number], b'{"edit": "snow"}'))
    check(tmp_path / "data")


@pytest.mark.parametrize("form", ["folders", "lines", "shard"])
@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_instructions(form, text, pair, tmp_path):
    if form == "folders" and text == ["x"]:
        pytest.skip("InstructPix2Pix's own form")
    records = three(json.dumps({"edit": text}).encode(), b'{"edit": "snow"}')
    WRITERS[form](tmp_path / "data", [pair] * 3, records)
    check(tmp_path / "data")


@pytest.mark.parametrize("number", range(len(SCORES)))
def test_scores(number, pair, tmp_path):
    good = {"edit": "snow", "scores": [1, 2, 3], "reward_text": "a; b; c"}
    records = three(json.dumps(good | {"scores": SCORES[number]}).encode(), json.dumps(good).encode())
    write_shard(tmp_path / "data", [pair] * 3, records)
    check(tmp_path / "data")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:12])
def test_file_names(name, pair, tmp_path):
    write_lines(tmp_path / "data", [pair] * 3, [b'{"edit": "snow"}'] * 3)
    (tmp_path / "out.png").write_bytes(pair[0])
    os.mkfifo(tmp_path / "data" / "pipe")
    rows = [json.loads(line) for line in (tmp_path / "data" / "metadata.jsonl").read_text().split("\n")]
    rows[BAD]["original_image"] = name
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "entry"),
    [("0000001", 5), ("0000001", "abc"), ("0000001", [{"Score": 1}] * 3), ("0000001", [{}]), ("0000001", None),
     ("0000001\0", None), ("0000001\ud800", None), ("0000001x" * 700, None), ("0000000/../../out", None),
     ("0000001", [{"Score": 1, "Negative Prompt": 5}] * 3), ("0000001", [{"Score": None, "Negative Prompt": "x"}] * 3),
     ("0000001", [[[[[[[[[["x"]]]]]]]]]] * 3)],
)  # fmt: skip
def test_rewards(name, entry, pair, tmp_path):
    write_folders(tmp_path / "data", [pair] * 3, [b'{"edit": "snow"}'] * 3)
    shutil.copytree(tmp_path / "data" / "0000001", tmp_path / "out")
    good = [{"Score": 3, "Negative Prompt": "x"}] * 3
    names = ["0000000", name, "0000002"]
    (tmp_path / "r.json").write_text(json.dumps(dict(zip(names, three(entry or good, good), strict=True))))
    if entry is None and name == "0000001":
        (tmp_path / "r.json").write_text(json.dumps(dict(zip(names, [good, None, good], strict=True))))
    check(tmp_path / "data", tmp_path / "r.json")


def test_lines_end_at_newlines_alone(pair, tmp_path):
    """JSON may hold U+2028, U+0085 and the like as they are."""
    text = "snow\u2028and\u0085ice\u2029"
    write_lines(tmp_path / "data", [pair] * 2, [json.dumps({"edit": text}).encode()] * 2)
    found = open_triplets(tmp_path / "data")
    assert len(found) == 2 and found[1].instruction == text


def pax(name, **headers):
    info = tarfile.TarInfo(name)
    info.pax_headers = headers
    return info


@pytest.mark.parametrize("kind", ["sparse", "twice", "size", "negative"])
def test_members_that_cannot_be_read_by_offset(kind, pair, tmp_path):
    write_shard(tmp_path / "data", [pair] * 3, [b'{"edit": "snow"}'] * 3)
    path = tmp_path / "data" / "a.tar"
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            headers = {}
            if kind == "sparse" and name == f"{BAD}.source.png":
                headers = {"GNU.sparse.map": f"0,{len(data)}", "GNU.sparse.size": str(len(data))}
            for _ in range(2 if kind == "twice" and name == f"{BAD}.json" else 1):
                info = pax(name, **headers)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        if kind in ("size", "negative"):
            tar.addfile(pax("3.json", size=str(1 << 40) if kind == "size" else "-1536"), io.BytesIO(b""))
    if kind in ("sparse", "twice"):
        return check(tmp_path / "data")
    found = open_triplets(tmp_path / "data")
    assert len(found) >= 4 and all(found[index].instruction == "snow" for index in range(3))
    for index in range(3, len(found)):
        with pytest.raises(MRCError, match=r"^sample "):
            found[index]


@pytest.mark.parametrize("where", [0.4, 0.55, 0.7, 0.9])
@pytest.mark.parametrize("cut", [False, True])
def test_a_shard_that_is_damaged_in_the_middle_says_so(cut, where, pair, tmp_path):
    """tarfile itself takes a damaged header for the end: the samples behind it would be missing without a word."""
    write_shard(tmp_path / "data", [pair] * 9, [b'{"edit": "snow"}'] * 9)
    path = tmp_path / "data" / "a.tar"
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        offsets = [member.offset for member in tar]
    at = offsets[round(where * len(offsets))]
    path.write_bytes(data[: at + 100] if cut else data[:at] + b"\xff" * 512 + data[at + 512 :])
    found = open_triplets(tmp_path / "data")
    faults = []
    for index in range(len(found)):
        try:
            assert found[index].instruction == "snow"
        except MRCError as error:
            faults.append(str(error))
    assert any("fetch it again" in fault for fault in faults) and len(faults) < len(found)


def test_very_narrow_pictures_are_refused(tmp_path):
    """Training enlarges the shorter side to its resolution: at 512 this pair would take 4.7 GB each."""
    narrow, whole = png_of(1, 6000), encoded("PNG")
    pairs = [(narrow, narrow), (whole, narrow), (whole, whole)]
    write_folders(tmp_path / "data", pairs, [b'{"edit": "snow"}'] * 3)
    found = open_triplets(tmp_path / "data")
    for index in (0, 1):
        with pytest.raises(MRCError, match="too narrow"):
            found[index]
    assert found[2].source.size == (48, 32)


@pytest.mark.parametrize("error", [struct.error, MemoryError, RecursionError, RuntimeError, KeyError, SystemError])
def test_whatever_a_decoder_raises_names_the_sample(error, pair, tmp_path, monkeypatch):
    def decode(image):
        raise error("at the decoder")

    write_folders(tmp_path / "data", [pair], [b'{"edit": "snow"}'])
    monkeypatch.setattr("mrc_edit.train.data.triplet.load_image", decode)
    with pytest.raises(MRCError, match=r"^sample 0000000/0 cannot be read .*at the decoder"):
        open_triplets(tmp_path / "data")[0]
