"""OpenAI's client for Node, unchanged, against the server."""

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).with_name("openai")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program beside its packages."""
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            pytest.skip(f"no {command}: apt-get install nodejs npm")
    folder = shutil.copytree(HERE, tmp_path_factory.mktemp("node") / "openai")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install openai here: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "edit.mjs"


def shown(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))))


def test_an_edit_a_list_of_one_a_stream_and_errors(program, server, key, mini, picture, tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(picture)  # a PNG: its content decides, not its name
    command = ["node", program, server.url, key, photo]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    def edited(**options):
        return np.asarray(mini.edit(picture, "make it sepia", **options).images[0])

    (one,) = found["one"]["data"]
    np.testing.assert_array_equal(shown(one), edited(seed=4, reward_scores=(5, 4.5, 5)))
    (listed,) = found["list"]["data"]
    assert listed["seed"] == 5 and shown(listed).shape == edited(seed=5).shape
    partial, completed = found["events"]
    assert (partial["type"], completed["type"]) == ("image_edit.partial_image", "image_edit.completed")
    np.testing.assert_array_equal(shown(completed), edited(seed=6))
    kinds = [[error[name] for name in ("kind", "status", "code", "param")] for error in found["errors"]]
    assert kinds == [
        ["BadRequestError", 400, "unsupported_parameter", "mask"],
        ["NotFoundError", 404, "model_not_found", "model"],
        ["AuthenticationError", 401, "invalid_api_key", None],
    ]
    assert all(error["id"].startswith("req_") for error in found["errors"])
