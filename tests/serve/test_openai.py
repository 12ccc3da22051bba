"""OpenAI's own client, unchanged, against the server."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

openai = pytest.importorskip("openai", reason="openai is not installed: pip install 'mrc-edit[judge]'")


@pytest.fixture
def client(server, key):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, timeout=120) as client:
        yield client


def shown(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.b64_json))))


def count(server, status):
    """Edits that were answered so."""
    return server.metric(f'mrc_requests_total{{route="/v1/images/edits",status="{status}"}}')


def test_one_image(client, mini, picture):
    result = client.images.edit(
        image=picture, prompt="make it sepia", extra_body={"seed": 4, "reward_scores": [5, 4.5, 5]}
    )
    expected = mini.edit(picture, "make it sepia", seed=4, reward_scores=(5, 4.5, 5)).images[0]
    np.testing.assert_array_equal(shown(result.data[0]), np.asarray(expected))
    assert result.data[0].model_extra["seed"] == 4 and result.output_format == "png" and result.size == "144x96"


def test_a_list_of_one_a_file_and_options(client, picture, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(picture)  # its content decides, not its name
    extra = {"reward_guidance": {"image": [1, 1, 1]}, "keep_size": True}
    with path.open("rb") as file:
        result = client.images.edit(
            model="mini", image=[file], prompt="make it sepia", n=1, size="auto", output_format="webp", extra_body=extra
        )
    assert shown(result.data[0]).shape == (64, 96, 3)


def test_three(client, picture):
    result = client.images.edit(image=picture, prompt="make it sepia", n=3, extra_body={"seed": 2**64 - 2})
    assert [image.model_extra["seed"] for image in result.data] == [2**64 - 2, 2**64 - 1, 0]


def test_a_stream(client, picture):
    stream = client.images.edit(
        image=picture, prompt="make it sepia", stream=True, partial_images=2, extra_body={"num_inference_steps": 6}
    )
    events = list(stream)
    kinds = [event.type.removeprefix("image_edit.") for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1] and shown(events[-1]).shape == (96, 144, 3)


def test_the_async_client(server, key, picture):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, timeout=120) as client:
            edits = (
                client.images.edit(image=picture, prompt="make it sepia", extra_body={"seed": i}) for i in range(3)
            )
            results = await asyncio.gather(*edits)
            stream = await client.images.edit(image=picture, prompt="make it sepia", stream=True)
            return results, [event.type async for event in stream], [model.id async for model in client.models.list()]

    results, kinds, models = asyncio.run(ask())
    assert [result.data[0].model_extra["seed"] for result in results] == [0, 1, 2]
    assert kinds == ["image_edit.completed"] and models == ["mini"]


ERRORS = [
    (openai.BadRequestError, "invalid_image", "image", {"image": b"hello"}),
    (openai.BadRequestError, "unsupported_parameter", "mask", {"mask": b"x"}),
    (openai.BadRequestError, "unknown_parameter", "strength", {"extra_body": {"strength": 1}}),
    (openai.NotFoundError, "model_not_found", "model", {"model": "gpt-image-1"}),
    (openai.APIStatusError, "request_too_large", None, {"image": b"0" * 2_000_001}),
]


@pytest.mark.parametrize(("kind", "code", "param", "options"), ERRORS)
def test_errors_are_of_the_clients_classes(client, picture, kind, code, param, options):
    with pytest.raises(kind) as error:
        client.images.edit(**{"image": picture, "prompt": "make it sepia"} | options)
    assert (error.value.code, error.value.param) == (code, param)
    assert error.value.request_id.startswith("req_") and error.value.body["message"]


def test_a_wrong_key(server, picture):
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.images.edit(image=picture, prompt="make it sepia")


def test_a_full_queue_is_tried_again(client, server, picture):
    """Three times in all, as the client does."""
    before = count(server, 429)
    edits = [server.begin(picture, num_inference_steps=1000)]
    server.until("mrc_running", 1)
    edits += [server.begin(picture) for _ in range(8)]
    server.until("mrc_waiting", 8)
    with pytest.raises(openai.RateLimitError) as error:
        client.images.edit(image=picture, prompt="make it sepia")
    assert error.value.code == "queue_full" and count(server, 429) == before + 3
    for edit in edits:
        edit.close()
    server.until("mrc_running", 0)


@pytest.mark.slow
def test_a_time_out_is_not(start_server, key, picture):
    """It would take as long again, twice. In a stream it is an error too, not a stream cut short."""
    server = start_server("--timeout", "0.5")
    options = {"image": picture, "prompt": "make it sepia", "extra_body": {"num_inference_steps": 1000}}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key) as client:
        with pytest.raises(openai.InternalServerError) as error:
            client.images.edit(**options)
        assert (error.value.status_code, error.value.code) == (504, "timeout") and count(server, 504) == 1
        with pytest.raises(openai.APIError) as error:
            list(client.images.edit(**options, stream=True))
        assert error.value.code == "timeout" and json.dumps(error.value.body)
