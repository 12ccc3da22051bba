"""A server that writes parameters, signs and withholds: every edit passes all three before it is sent."""

import base64
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

c2pa = pytest.importorskip("c2pa", reason="Content Credentials are signed by c2pa-python")
pytest.importorskip("cryptography", reason="the chain is made by cryptography")
from mrc_edit.engine.parameters import flags_of, read_parameters  # noqa: E402

CHAIN = Path(__file__).parents[1] / "engine" / "chain.py"
# A network in its place that takes every square for unsafe
PROGRAM = """
from mrc_edit.engine import finishing
finishing.open_safety = lambda: lambda image: 0.9 if image.width == image.height else 0.1
from mrc_edit.serve.command import main
main()
"""
ASKED = {"prompt": "make it sepia", "seed": 7, "num_inference_steps": 2, "resolution": 64}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("chain", CHAIN)
    chain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chain)
    return chain.make_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def careful(start_server, pair):
    flags = ("--tier", "fast", "--metadata", "--safety", "--provenance", *map(str, pair))
    return start_server(*flags, program=("-c", PROGRAM))


def edited(answer):
    return base64.b64decode(answer["data"][0]["b64_json"])


def test_an_edit_is_signed_and_has_its_parameters(careful, server, picture, tmp_path):
    status, _, answer = careful.edit(picture, **ASKED, reward_scores=[5, 4.5, 5])
    assert status == 200, answer
    with c2pa.Reader("image/png", io.BytesIO(edited(answer))) as reader:
        assert reader.get_validation_state() == "Valid"
        assert reader.get_active_manifest()["ingredients"][0]["relationship"] == "parentOf"
    plain = edited(server.edit(picture, **ASKED, tier="fast", reward_scores=[5, 4.5, 5])[2])
    images = [Image.open(io.BytesIO(file)) for file in (edited(answer), plain)]
    np.testing.assert_array_equal(*map(np.asarray, images))
    assert not {"mrc-edit", "parameters"} & images[1].info.keys() and b"c2pa" not in plain
    (tmp_path / "edit.png").write_bytes(edited(answer))
    record = read_parameters(tmp_path / "edit.png")
    assert (record["model"], record["instruction"]) == ("mini", "make it sepia")
    known = {"steps", "scheduler", "guidance", "image_guidance", "reward", "resolution", "seed"}
    known |= {"tier", "backend", "precision"}
    flags = flags_of(record, known, tmp_path / "edit.png")
    assert {"--seed=7", "--steps=2", "--reward=5.0,4.5,5.0", "--resolution=64"} <= {*flags}
    assert {"--tier=fast", "--backend=onnxruntime", "--precision=float32"} <= {*flags}  # the server's own
    own = careful.edit(picture, **ASKED, tier="exact")[2]
    (tmp_path / "edit.png").write_bytes(edited(own))
    assert read_parameters(tmp_path / "edit.png")["settings"]["tier"] == "exact"


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_so_are_the_other_formats(careful, picture, kind):
    answer = careful.edit(picture, **ASKED, output_format=kind)[2]
    with c2pa.Reader(f"image/{kind}", io.BytesIO(edited(answer))) as reader:
        assert reader.get_validation_state() == "Valid"


def test_an_edit_that_is_withheld_is_a_400(careful, picture, as_form):
    square = {name: value for name, value in ASKED.items() if name != "resolution"} | {"size": "64x64"}
    status, headers, answer = careful.edit(picture, **square)
    assert status == 400 and "data" not in answer
    assert answer["error"]["code"] == "content_policy_violation" and "withheld" in answer["error"]["message"]
    assert careful.line(headers["x-request-id"])["error"] == "content_policy_violation"
    for partial in (0, 3):  # a partial image is looked at, too
        body, kind = as_form(square | {"stream": "true", "partial_images": partial}, picture)
        stream = careful.ask("POST", "/v1/images/edits", body, {"Content-Type": kind})[2].decode()
        last = stream.rstrip().splitlines()[-1].removeprefix("data: ")
        assert json.loads(last)["error"]["code"] == "content_policy_violation" and "b64_json" not in stream
