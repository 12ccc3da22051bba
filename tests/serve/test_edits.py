"""Edits over plain HTTP: the right picture, or an answer that names what was wrong."""

import base64
import io
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mrc_edit import Engine

STEPS = 20  # so many that a test can reach the server while it edits
EDITS = "/v1/images/edits"
GONE = f'mrc_requests_total{{route="{EDITS}",status="499"}}'
JSON = b'{"prompt": "x", "images": [{"image_url": "%s"}]}'


def shown(entry):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))))


def edited(mini, picture, prompt, **options):
    return np.asarray(mini.edit(picture, prompt, **options).images[0])


def test_an_edit_is_that_of_the_engine(server, mini, picture):
    """With every argument that the engine has, bit for bit; the reply says which part of the image it shows."""
    options = {"seed": 7, "num_inference_steps": 3, "guidance_scale": 2.5, "image_guidance_scale": 1.5}
    options |= {"scheduler": "ddim", "reward_text": "None; blurry; None", "negative_prompt": "noise", "fit": "pad"}
    status, headers, body = server.edit(
        picture, {"x-request-id": "abc-1"}, prompt="make it sepia", model="mini", reward_scores=[5, 4.5, 5],
        keep_size="true", user="somebody", **options, **{"reward_guidance[image]": [1, 1, 1]},
    )  # fmt: skip
    assert (status, headers["x-request-id"]) == (200, "abc-1")
    reward = {"reward_scores": (5, 4.5, 5), "reward_guidance": {"image": [1, 1, 1]}}
    expected = edited(mini, picture, "make it sepia", **options, **reward, keep_size=True)
    (entry,) = body["data"]
    np.testing.assert_array_equal(shown(entry), expected)
    assert (entry["seed"], entry["box"], entry["batch_size"], body["size"]) == (7, [0, 0, 96, 64], 1, "96x64")
    assert entry["timings"].keys() == {"text", "encode", "condition", "denoise", "decode"} and entry["waited"] > 0
    line = server.line("abc-1")
    assert (line["status"], line["seed"], line["n"]) == (200, 7, 1)
    assert "sepia" not in json.dumps(line) and "somebody" not in json.dumps(line)


def wide_and_empty():
    """A picture of more pixels than Pillow likes, which it warns of, and than the engine takes."""
    file = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(file, "PNG")
    return file.getvalue()


def test_warnings_are_told_the_client_and_nobody_else(server, picture, as_form):
    """They name words of the prompt, so standard error has none of them; the log has no field for them."""
    asked = {"prompt": "make the giraffe sepia", "num_inference_steps": 1}
    _, headers, body = server.edit(picture, **asked, size="64x96")
    (words,) = (text for text in body["data"][0]["warnings"] if "not learned giraffe" in text)
    assert any("56% of the image's width is cropped" in text for text in body["data"][0]["warnings"])
    assert "giraffe" not in json.dumps(server.line(headers["x-request-id"]))
    stream = server.ask("POST", EDITS, *streamed(as_form, asked, picture))[2].decode()
    assert json.loads(stream.split("data: ")[1])["warnings"] == [words]
    assert server.edit(picture, prompt="make it sepia", num_inference_steps=1)[2]["data"][0]["warnings"] == []
    assert server.edit(wide_and_empty(), **asked)[2]["error"]["code"] == "invalid_image"
    stream = server.process.stderr
    told = os.read(stream.fileno(), 65_536).decode() if select.select([stream], [], [], 0)[0] else ""
    assert "giraffe" not in told and "Image size" not in told


def streamed(as_form, fields, picture):
    """Body and headers of a form that asks for a stream."""
    body, kind = as_form(fields | {"stream": "true"}, picture)
    return body, {"Content-Type": kind}


def test_scores_in_one_text_and_a_drawn_seed(server, mini, picture):
    status, _, body = server.edit(picture, prompt="make it night", reward_scores="5,4,3", n=2)
    assert status == 200
    first, second = body["data"]
    assert second["seed"] == first["seed"] + 1
    for entry in (first, second):
        expected = edited(mini, picture, "make it night", seed=entry["seed"], reward_scores=(5, 4, 3))
        assert np.abs(shown(entry).astype(int) - expected).max() <= 1  # another batch may round otherwise


@pytest.mark.parametrize(("kind", "extra"), [("jpeg", {"output_compression": 40}), ("webp", {}), ("png", {})])
def test_formats_and_sizes(server, picture, kind, extra):
    """A size that is asked for is had, from the middle of the image."""
    status, _, body = server.edit(picture, prompt="make it sepia", size="64x64", output_format=kind, **extra)
    image = Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"])))
    assert (status, image.format, image.size, body["size"]) == (200, kind.upper(), (64, 64), "64x64")
    assert body["data"][0]["box"] == [16, 0, 80, 64]


def test_json_by_curl(server, mini, picture, key):
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    body = {
        "prompt": "make it sepia",
        "images": [{"image_url": url}],
        "seed": 3,
        "reward_scores": [5, 4, 5],
        "mask": None,
    }
    command = ["curl", "-s", "-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json"]
    command += ["-d", "@-", server.url + EDITS]
    done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=True)
    expected = edited(mini, picture, "make it sepia", seed=3, reward_scores=(5, 4, 5))
    np.testing.assert_array_equal(shown(json.loads(done.stdout)["data"][0]), expected)


def bomb():
    """A PNG of a few bytes that says it has 30,000 × 30,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0" * 9)) + chunk(b"IEND", b"")


def jpeg(picture):
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(file, "JPEG")
    return file.getvalue()


def gif(picture):
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(file, "GIF")
    return file.getvalue()


REFUSED = [  # fields, status, code, param
    ({"prompt": None}, 400, "missing_required_parameter", "prompt"),
    ({"model": "gpt-image-1"}, 404, "model_not_found", "model"),
    ({"mask": "x"}, 400, "unsupported_parameter", "mask"),
    ({"input_fidelity": "high"}, 400, "unsupported_parameter", "input_fidelity"),
    ({"background": "transparent"}, 400, "unsupported_parameter", "background"),
    ({"output_format": "gif"}, 400, "unsupported_parameter", "output_format"),
    ({"response_format": "url"}, 400, "unsupported_parameter", "response_format"),
    ({"quality": "high"}, 400, "unsupported_parameter", "quality"),
    ({"quality": "excellent"}, 400, "invalid_value", "quality"),
    ({"frame_count": 3}, 400, "unsupported_parameter", "frame_count"),
    ({"strength": 0.5}, 400, "unknown_parameter", "strength"),
    ({"n": 11}, 400, "invalid_value", "n"),
    ({"n": [1, 2]}, 400, "invalid_value", "n"),
    ({"size": "100x100"}, 400, "invalid_value", "size"),
    ({"size": "4096x4096"}, 400, "invalid_value", "size"),
    ({"size": "big"}, 400, "invalid_value", "size"),
    ({"size": "64x64", "resolution": 64}, 400, "invalid_value", "resolution"),
    ({"resolution": 4096}, 400, "invalid_value", "resolution"),
    ({"resolution": 3}, 400, "invalid_value", "resolution"),
    ({"output_compression": 50}, 400, "invalid_value", "output_compression"),
    ({"partial_images": 2}, 400, "invalid_value", "partial_images"),
    ({"reward_scores": "6,5,5"}, 400, "invalid_value", "reward_scores"),
    ({"reward_scores": [1, 2]}, 400, "invalid_value", "reward_scores"),
    ({"reward_guidance[text][]": 1}, 400, "invalid_value", "reward_guidance"),
    ({"scheduler": "heun"}, 400, "invalid_value", "scheduler"),
    ({"num_inference_steps": 0}, 400, "invalid_value", "num_inference_steps"),
    ({"guidance_scale": "nan"}, 400, "invalid_value", "guidance_scale"),
    ({"seed": 1.5}, 400, "invalid_value", "seed"),
    ({"tier": "slow"}, 400, "invalid_value", "tier"),
    ({"prompt": "a" * 12_000}, 400, "invalid_value", "prompt"),
    ({"stream": "true", "reward_scores": "6,5,5"}, 400, "invalid_value", "reward_scores"),
    ({"n": 9}, 400, "invalid_value", "n"),  # 8 may wait
]


@pytest.mark.parametrize(("fields", "status", "code", "param"), REFUSED)
def test_what_is_refused_is_named(server, picture, fields, status, code, param):
    given = {name: value for name, value in ({"prompt": "make it snow"} | fields).items() if value is not None}
    found, headers, body = server.edit(picture, **given)
    error = body["error"]
    assert (found, error["code"], error["param"]) == (status, code, param), error
    assert error["message"] and error["type"] and headers["x-request-id"].startswith("req_")
    assert "a" * 100 not in error["message"]


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (lambda png: {}, "missing_required_parameter"),
        (lambda png: {"image[]": png, "image": png}, "invalid_value"),
        (lambda png: {"photo": png}, "unknown_parameter"),
        (lambda png: {"mask": png}, "unsupported_parameter"),
        (lambda png: b"", "invalid_image"),
        (lambda png: b"hello", "invalid_image"),
        (lambda png: png[:60], "invalid_image"),
        (lambda png: jpeg(png)[:-200], "invalid_image"),
        (lambda png: gif(png), "invalid_image"),
        (lambda png: bomb(), "invalid_image"),
    ],
    ids=["none", "two", "other-name", "mask", "empty", "text", "truncated-png", "truncated-jpeg", "gif", "bomb"],
)
def test_images_that_cannot_be_edited(server, picture, image, code):
    status, _, body = server.edit(image(picture), prompt="make it snow")
    assert (status, body["error"]["code"]) == (400, code), body


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_body"),
        (b"[" * 100_000, "application/json", 400, "invalid_body"),
        (b"[1]", "application/json", 400, "invalid_body"),
        (b'{"prompt": "x"}', "application/json", 400, "missing_required_parameter"),
        (JSON % b"http://127.0.0.1/", "application/json", 400, "unsupported_parameter"),
        (b'{"prompt": "x", "images": [{"file_id": "f"}]}', "application/json", 400, "unsupported_parameter"),
        (JSON % b"data:image/png;base64,@", "application/json", 400, "invalid_image"),
        (b'{"prompt": "x", "n": "2", "images": [{"image_url": "data:,"}]}', "application/json", 400, "invalid_value"),
        (b"prompt=x", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"x", "multipart/form-data", 400, "invalid_body"),
        (b"--b\r\nnonsense", "multipart/form-data; boundary=b", 400, "missing_required_parameter"),
        (b"0" * 2_000_001, "application/json", 413, "request_too_large"),
    ],
)  # fmt: skip
def test_bodies_that_are_none(server, body, kind, status, code):
    found, _, data = server.ask("POST", EDITS, body, {"Content-Type": kind})
    assert (found, json.loads(data)["error"]["code"]) == (status, code)


def test_other_paths_and_methods(server):
    for method, path, status, code in (
        ("GET", EDITS, 405, "method_not_allowed"),
        ("GET", "/v1/files", 404, "not_found"),
    ):
        found, headers, data = server.ask(method, path)
        assert (found, json.loads(data)["error"]["code"]) == (status, code)
        assert status != 405 or headers["Allow"] == "POST"


def test_a_key_is_needed(server):
    for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
        for method, path in (("POST", EDITS), ("GET", "/v1/models"), ("GET", "/metrics")):
            status, answered, data = server.ask(method, path, headers=headers)
            assert (status, json.loads(data)["error"]["code"]) == (401, "invalid_api_key")
            assert answered["WWW-Authenticate"] == "Bearer"
        assert [server.ask("GET", path, headers=headers)[0] for path in ("/health", "/health/ready", "/")] == [200] * 3


@pytest.mark.slow
def test_forty_at_once(server, mini, picture):
    """A right answer or 429 each; the server lets 8 wait. The right ones are, bit for bit, what `Engine.edit` gives at
    one of the places of a batch of that shape."""

    def ask(seed):
        return seed, *server.edit(picture, prompt="make it sepia", seed=seed, num_inference_steps=5)

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(40)))
    done = [(seed, body["data"][0]) for seed, status, _, body in answers if status == 200]
    full = [(headers, body) for _, status, headers, body in answers if status == 429]
    assert len(done) + len(full) == 40 and len(done) >= 8 and full
    assert all(headers["Retry-After"] and body["error"]["code"] == "queue_full" for headers, body in full)
    for seed, entry in done:
        count = entry["batch_size"]
        places = mini.edit([picture] * count, "make it sepia", seed=[seed] * count, num_inference_steps=5).images
        assert any(np.array_equal(shown(entry), np.asarray(place)) for place in places), (seed, count)
    assert server.edit(picture, prompt="make it sepia")[0] == 200


def test_a_client_that_goes_stops_its_edit_and_changes_no_other(server, mini, picture):
    """Three in a batch behind one that is stopped; the second goes, too.

    The others get, bit for bit, what `Engine.edit` gives for all three in one batch.
    """
    before, gone = server.metric("mrc_steps_total"), server.metric(GONE)
    plug = server.begin(picture, num_inference_steps=1000)
    server.until("mrc_running", 1)
    options = {"num_inference_steps": STEPS, "scheduler": "euler_ancestral", "resolution": 64}
    three = []
    for seed in (1, 2, 3):
        three.append(server.begin(picture, seed=seed, **options))
        server.until("mrc_waiting", seed)
    plug.close()
    server.until("mrc_running", 3)
    three[1].close()
    bodies = [json.loads(three[i].getresponse().read()) for i in (0, 2)]
    assert server.metric("mrc_steps_total") - before < 1000  # the plug did not take its steps
    server.until("mrc_running", 0)
    together = mini.edit([picture] * 3, "make it sepia", seed=[1, 2, 3], **options).images
    for image, body in zip((together[0], together[2]), bodies, strict=True):
        assert body["data"][0]["batch_size"] == 3
        np.testing.assert_array_equal(shown(body["data"][0]), np.asarray(image))
    assert server.metric(GONE) - gone == 2


def test_a_client_that_goes_while_it_streams(server, picture):
    connection = server.begin(picture, num_inference_steps=1000, stream="true")
    response = connection.getresponse()
    assert response.readline().startswith(b": step 1 of 1000")
    response.close()
    connection.close()
    server.until("mrc_running", 0)
    assert server.edit(picture, prompt="make it sepia")[0] == 200


def test_a_stream_has_steps_partial_images_and_the_edit(server, mini, picture):
    body, kind = form_of_stream(picture)
    status, headers, data = server.ask("POST", EDITS, body, {"Content-Type": kind})
    assert status == 200 and headers["Content-Type"].startswith("text/event-stream")
    blocks = data.decode().split("\n\n")[:-1]
    assert [block for block in blocks if block.startswith(":")] == [
        f": step {i} of 4, edit 1 of 1" for i in (1, 2, 3, 4)
    ]
    events = [json.loads(block.split("data: ")[1]) for block in blocks if block.startswith("event: ")]
    kinds = [event["type"].removeprefix("image_edit.") for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert [event["partial_image_index"] for event in events[:2]] == [0, 1]
    final = shown(events[-1])
    np.testing.assert_array_equal(final, edited(mini, picture, "make it sepia", seed=5, num_inference_steps=4))
    distances = [np.abs(shown(event).astype(float) - final).mean() for event in events[:2]]
    assert shown(events[0]).shape == final.shape and distances[1] < distances[0]


def form_of_stream(picture):
    from base64 import b64encode

    url = "data:image/png;base64," + b64encode(picture).decode()
    fields = {"prompt": "make it sepia", "seed": 5, "num_inference_steps": 4, "stream": True, "partial_images": 2}
    return json.dumps(fields | {"images": [{"image_url": url}]}), "application/json"


@pytest.mark.slow
def test_a_student_is_served(start_server, student_export, picture):
    """With its own sampler and steps; a scale that it has not learned is refused."""
    student = start_server(model=student_export)
    status, _, body = student.edit(picture, prompt="snow", seed=7, guidance_scale=3, resolution=64)
    expected = edited(Engine.from_pretrained(student_export), picture, "snow", seed=7, guidance_scale=3, resolution=64)
    assert status == 200
    np.testing.assert_array_equal(shown(body["data"][0]), expected)
    status, _, body = student.edit(picture, prompt="snow", guidance_scale=11)
    assert (status, body["error"]["param"]) == (400, "guidance_scale")


@pytest.mark.slow
def test_ends_by_signal(start_server, picture):
    """What runs gets its edit, what waits and what comes 503; the process ends as told."""
    server = start_server("--max-batch", "1")
    connections = [server.begin(picture, num_inference_steps=STEPS)]
    server.until("mrc_running", 1)
    connections.append(server.begin(picture, seed=2))
    server.until("mrc_waiting", 1)
    late = server.connect()
    late.connect()
    status = []
    thread = threading.Thread(target=lambda: status.append(server.stop()))
    thread.start()
    refused = connections[1].getresponse()
    assert refused.status == 503 and json.loads(refused.read())["error"]["code"] == "shutting_down"
    late.request("GET", "/health/ready")
    assert late.getresponse().status == 503
    done = connections[0].getresponse()
    assert done.status == 200 and json.loads(done.read())["data"]
    thread.join()
    assert status == [143] and server.process.stderr.read() == "stopped by SIGTERM\n"


@pytest.mark.slow
def test_a_second_signal_refuses_what_runs(start_server, picture):
    """A thousand steps would take longer than the server waits to send answers."""
    server = start_server("--drain", "3600")
    edit = server.begin(picture, num_inference_steps=1000)
    server.until("mrc_running", 1)
    late = server.connect()
    late.connect()
    server.process.send_signal(signal.SIGTERM)
    late.request("GET", "/health/ready")
    assert late.getresponse().status == 503
    assert server.stop() == 143
    answer = edit.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (503, "shutting_down")
    assert server.process.stderr.read() == "stopped by SIGTERM\n"
