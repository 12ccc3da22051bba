"""Damaged models of every kind: whatever a file holds, it is read or refused by an MRCError, and soon.

`MRC_FUZZ=20000 pytest tests/fuzz` tries for hours; by default each test takes seconds.
"""

import copy
import json
import os
import shutil
import struct
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel

from mrc_edit.core.errors import MRCError
from mrc_edit.engine.backends.exported import parse_tokenizer
from mrc_edit.engine.manifest import read_manifest
from mrc_edit.engine.onnx_graph import check_graph
from mrc_edit.model import MRCUNet
from mrc_edit.model.checkpoint import built, load_scheduler, without_notes
from mrc_edit.model.tokenizer import load_tokenizer
from mrc_edit.model.weights import WEIGHTS, read_weights

MINI = Path(__file__).parents[2] / "mini" / "onnx"
fuzz = settings(
    max_examples=int(os.environ.get("MRC_FUZZ", 60)),
    deadline=timedelta(seconds=10),  # longer is a hang
    suppress_health_check=list(HealthCheck),
    derandomize="MRC_FUZZ" not in os.environ,
)
NUMBERS = st.sampled_from([0, -1, 2, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e300, float("nan"), float("inf")])
TEXTS = st.sampled_from(["", "x", "\0", "\ud800", "../x", "None", "a" * 5000]) | st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw, document):
    """JSON text of `document` with one to three entries replaced, removed or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
                case "replace":
                    place[key] = draw(VALUES)
                case "remove":
                    del place[key]
                case "add" if isinstance(place, dict):
                    place[draw(TEXTS)] = draw(VALUES)
            break
    return json.dumps(document).encode()


@st.composite
def cut(draw, content):
    """`content` with some bytes changed, removed or repeated."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 1, 8, 1 << 20])))
        content[start:end] = draw(st.binary(max_size=12)) * draw(st.sampled_from([1, 1, 1, 500]))
    return bytes(content)


def damage(content):
    """`content` of a JSON file, damaged as JSON or as bytes."""
    return damaged(json.loads(content)) | cut(content) | st.just(b"[" * 100_000)


def read_or_refuse(read):
    try:
        read()
    except MRCError as error:
        assert len(str(error)) < 100_000


@fuzz
@given(damage((MINI / "manifest.json").read_bytes()))
def test_manifests(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("export")
    (folder / "manifest.json").write_bytes(content)
    read_or_refuse(lambda: read_manifest(folder))


@fuzz
@given(cut((MINI / "conditioner" / "model.onnx").read_bytes()))
def test_graphs(content):
    read_or_refuse(lambda: check_graph(content, Path("model.onnx")))


MAKERS = {
    "unet": lambda config: MRCUNet(True, "time", **without_notes(config)),
    "vae": AutoencoderKL.from_config,
    "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
}


@pytest.mark.parametrize("part", MAKERS)
@fuzz
@given(st.data())
def test_configs(tiny, tmp_path_factory, part, data):
    folder = tmp_path_factory.mktemp(part)
    (folder / "config.json").write_bytes(data.draw(damage((tiny / part / "config.json").read_bytes())))
    read_or_refuse(lambda: built(folder, MAKERS[part]))


@fuzz
@given(st.data())
def test_schedulers(tiny, tmp_path_factory, data):
    name, folder = "scheduler_config.json", tmp_path_factory.mktemp("scheduler")
    (folder / name).write_bytes(data.draw(damage((tiny / "scheduler" / name).read_bytes())))
    read_or_refuse(lambda: load_scheduler(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"])
@fuzz
@given(st.data())
def test_tokenizers(tiny, tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("tokenizer") / "copy"
    shutil.copytree(tiny / "tokenizer", folder)
    if name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer.json").unlink()
    whole = (folder / name).read_bytes()
    content = data.draw(cut(whole) if name == "merges.txt" else damage(whole))
    (folder / name).write_bytes(content)
    read_or_refuse(lambda: load_tokenizer(folder))
    if name == "tokenizer.json":
        read_or_refuse(lambda: parse_tokenizer(content, folder / name))


@fuzz
@given(st.data())
def test_weights(tiny, tmp_path_factory, data):
    """Headers of safetensors that say other things, and files of other bytes."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "unet").mkdir()
    whole = (tiny / "unet" / WEIGHTS["unet"]).read_bytes()
    size = 8 + struct.unpack("<Q", whole[:8])[0]
    header = data.draw(damaged(json.loads(whole[8:size])) | cut(whole[8:size]))
    length = data.draw(st.sampled_from([len(header)] * 4 + [0, 2**31, 2**63]))
    (folder / "unet" / WEIGHTS["unet"]).write_bytes(struct.pack("<Q", length) + header + whole[size:])
    read_or_refuse(lambda: read_weights(folder, "unet", torch.float32))


@fuzz
@given(st.data())
def test_indexes_of_shards(tiny, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("shards")
    (folder / "unet").mkdir()
    shutil.copy(tiny / "unet" / WEIGHTS["unet"], folder / "unet" / "a.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": {"conv_in.weight": "a.safetensors"}}
    (folder / "unet" / f"{WEIGHTS['unet']}.index.json").write_bytes(data.draw(damage(json.dumps(index).encode())))
    read_or_refuse(lambda: read_weights(folder, "unet", torch.float32))
