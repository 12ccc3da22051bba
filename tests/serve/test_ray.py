"""Two replicas on Ray behind the server, one cluster for all tests."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mrc_edit.core.errors import MRCError
from mrc_edit.serve import command

psutil = pytest.importorskip("psutil", reason="psutil finds the replicas' processes")
pytest.importorskip("ray.serve", reason="--ray is tested where Ray Serve is installed: pip install 'mrc-edit[ray]'")

from mrc_edit.serve.ray import share  # noqa: E402

EDITS = "/v1/images/edits"
BATCH, WAITING = 4, 16


@pytest.fixture(scope="module")
def fleet(start_server):
    return start_server("--ray", "--replicas", "2", "--max-batch", str(BATCH), "--max-waiting", str(WAITING))


@pytest.fixture(scope="module")
def engine():
    """With the threads of a replica."""
    from mrc_edit.engine import Engine

    return Engine.from_pretrained("mini", threads=max(1, os.cpu_count() // 2))


def replicas(server):
    """The processes of the replicas."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in children if child.is_running() and "ray::ServeReplica" in " ".join(child.cmdline())]


def shown(entry):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))))


def check_is_the_engines(engine, picture, entry, **options):
    """Bit for bit, in a batch of the same size; its place there is not known."""
    count = entry["batch_size"]
    same = [picture] * count, ["make it sepia"] * count
    images = engine.edit(*same, seed=[entry["seed"]] * count, resolution=64, **options).images
    assert any(np.array_equal(shown(entry), np.asarray(image)) for image in images)


@pytest.mark.slow
def test_a_replica_that_is_killed_loses_nothing(fleet, engine, picture):
    """16 edits, 8 in each replica, one of which is killed under them."""
    options = {"num_inference_steps": 20, "resolution": 64}

    def ask(seed):
        return fleet.edit(picture, prompt="make it sepia", seed=seed, **options)

    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(ask, seed) for seed in range(16)]
        fleet.until("mrc_running", 16)
        victim = replicas(fleet)[0]
        victim.send_signal(signal.SIGKILL)
        statuses, _, bodies = zip(*(answer.result() for answer in answers), strict=True)
    assert statuses == (200,) * 16 and not victim.is_running()
    for seed, body in enumerate(bodies):
        (entry,) = body["data"]
        assert entry["seed"] == seed
        check_is_the_engines(engine, picture, entry, num_inference_steps=20)
    assert max(body["data"][0]["batch_size"] for body in bodies) == BATCH


@pytest.mark.slow
def test_another_replica_takes_its_place(fleet):
    end = time.monotonic() + 120
    while len(replicas(fleet)) < 2:
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_what_is_refused_is_what_is_refused_without_ray(fleet, server, picture):
    for image, fields in (
        (picture, {"prompt": "x", "reward_scores": "6,5,5"}),
        (picture, {"prompt": "x", "stream": "true", "scheduler": "heun"}),
        (picture, {"prompt": "a" * 12_000, "stream": "true"}),
        (picture, {"prompt": "x", "num_inference_steps": 0}),
        (picture, {"prompt": "x", "mask": "y"}),
        (picture, {"prompt": "x", "model": "other"}),
        (picture, {"prompt": "x", "size": "100x100"}),
        (picture[:60], {"prompt": "x"}),
        (b"hello", {"prompt": "x"}),
        (picture[:-100], {"prompt": "x"}),
    ):
        (status, _, body), (expected, _, same) = (each.edit(image, **fields) for each in (fleet, server))
        assert (status, body) == (expected, same) and 400 <= status < 500


@pytest.mark.slow
def test_pressure_is_told_so(fleet, picture):
    """Of 60 at once, 16 are in the replicas and 16 may wait. All others get 429, and the replicas go on."""

    def ask(seed):
        return fleet.edit(picture, prompt="make it sepia", seed=seed, num_inference_steps=10, resolution=64)

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(ask, range(60)))
    full = [(headers, body) for status, headers, body in answers if status == 429]
    assert full and len(full) + sum(status == 200 for status, _, _ in answers) == 60
    assert all(headers["Retry-After"] and body["error"]["code"] == "queue_full" for headers, body in full)
    assert ask(0)[0] == 200


@pytest.mark.slow
def test_a_client_that_goes_stops_its_edit(fleet, picture, key, as_form):
    """Whether it waits for a stream or for the whole; the steps end, and the replica is free for others."""
    for fields in ({}, {"stream": "true"}):
        body, kind = as_form({"prompt": "make it sepia", "num_inference_steps": 1000} | fields, picture)
        connection = fleet.connect()
        before = fleet.metric("mrc_steps_total")
        connection.request("POST", EDITS, body, {"Authorization": f"Bearer {key}", "Content-Type": kind})
        while fleet.metric("mrc_steps_total") == before:
            time.sleep(0.01)
        connection.sock.close()
        connection.close()
        fleet.until("mrc_running", 0)
        time.sleep(1)  # for the replica; what it would still compute is seen as processor time below
        used = [sum(child.cpu_times()[:2]) for child in replicas(fleet)]
        time.sleep(1)
        after = [sum(child.cpu_times()[:2]) for child in replicas(fleet)]
        assert all(later - earlier < 0.5 for earlier, later in zip(used, after, strict=True))


@pytest.mark.slow
def test_a_stream_passes_steps_and_partial_images(fleet, engine, picture):
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    fields = {"prompt": "make it sepia", "seed": 5, "num_inference_steps": 4, "stream": True, "partial_images": 2}
    body = json.dumps(fields | {"images": [{"image_url": url}], "resolution": 64})
    status, _, data = fleet.ask("POST", EDITS, body, {"Content-Type": "application/json"})
    blocks = data.decode().split("\n\n")[:-1]
    assert status == 200
    assert [block for block in blocks if block.startswith(":")] == [
        f": step {i} of 4, edit 1 of 1" for i in (1, 2, 3, 4)
    ]
    events = [json.loads(block.split("data: ")[1]) for block in blocks if block.startswith("event: ")]
    kinds = [event["type"].removeprefix("image_edit.") for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    check_is_the_engines(engine, picture, events[-1], num_inference_steps=4)


@pytest.mark.slow
def test_the_model_is_described_as_without_ray(fleet, server):
    (own,), (same,) = (json.loads(each.ask("GET", "/v1/models")[2])["data"] for each in (fleet, server))
    for model in (own, same):
        del model["created"], model["max_bytes"]
    assert own == same


@pytest.mark.slow
def test_the_cluster_answers_nobody_without_its_token(fleet):
    children = psutil.Process(fleet.process.pid).children(recursive=True)
    store = next(child for child in children if child.name() == "gcs_server")
    port = next(each.laddr.port for each in store.net_connections() if each.status == psutil.CONN_LISTEN)
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    code = f"import ray; ray.init('127.0.0.1:{port}')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=own)
    assert done.returncode and "AuthenticationError" in done.stderr


@pytest.mark.slow
def test_ends_by_signal(start_server, picture, key, as_form):
    """What a replica has is finished, what comes gets 503, and nothing of Ray is left."""
    server = start_server("--ray", "--max-batch", "1")
    body, kind = as_form({"prompt": "make it sepia", "num_inference_steps": 40}, picture)
    connection = server.connect()
    connection.request("POST", EDITS, body, {"Authorization": f"Bearer {key}", "Content-Type": kind})
    server.until("mrc_running", 1)
    children = psutil.Process(server.process.pid).children(recursive=True)
    status = server.stop()
    assert connection.getresponse().status == 200
    assert status == 143
    assert psutil.wait_procs(children, timeout=60)[1] == []


@pytest.mark.slow
def test_more_replicas_come_under_load(start_server, picture):
    server = start_server("--ray", "--replicas", "1-2", "--max-batch", "1")
    assert len(replicas(server)) == 1
    end = time.monotonic() + 120

    def ask(seed):
        while len(replicas(server)) < 2 and time.monotonic() < end:
            assert server.edit(picture, prompt="make it sepia", seed=seed, num_inference_steps=5)[0] == 200

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    assert len(replicas(server)) == 2


@pytest.mark.slow
def test_a_model_that_cannot_be_opened_is_named(tmp_path):
    run = [sys.executable, "-m", "mrc_edit.serve.command", str(tmp_path), "--ray", "--port", "0"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and str(tmp_path) in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("amounts", "replicas", "each"),
    [([8], 2, 4), ([2], 4, 0.5), ([8, 8], 3, 4), ([8, 2], 2, 4), ([1, 1, 1], 2, 1), ([3], 7, 0.4285), ([], 2, 0)],
)
def test_the_share_of_a_replica(amounts, replicas, each):
    """As much as all of them can have at once."""
    assert share(amounts, replicas) == each
    if each:
        assert sum(int(have / each + 1e-3) for have in amounts) >= replicas


@pytest.mark.parametrize("text", ["0", "2-1", "0-3", "a", "1-", "-2", "1-2-3", "1.5", ""])
def test_replicas_that_are_none(text):
    with pytest.raises(MRCError, match="--replicas"):
        command.replica_range(text)
    assert command.replica_range("2") == (2, 2) and command.replica_range("1-4") == (1, 4)


def test_replicas_need_ray():
    with pytest.raises(MRCError, match="--ray"):
        command.check_options(command.arguments().parse_args(["mini", "--replicas", "2"]))
