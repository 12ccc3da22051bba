"""The OpenAPI document is true: schemathesis asks by it, and every answer is one that it names; none is a 500."""

import base64
import json

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install 'mrc-edit[dev]'")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

from mrc_edit.core.errors import MRCError  # noqa: E402
from mrc_edit.engine.text import check_length  # noqa: E402
from mrc_edit.serve.fields import Fields  # noqa: E402

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
]


def affordable(body, picture):
    """A real picture in place of random bytes, and at most two edits of two steps."""
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("images"), list):
        url = "data:image/png;base64," + base64.b64encode(picture).decode()
        body["images"] = [{"image_url": url} if isinstance(image, dict) else image for image in body["images"]]
    if "image" in body:
        body["image"] = picture
    for name in ("num_inference_steps", "n"):
        if isinstance(value := body.get(name), int) and not isinstance(value, bool):
            body[name] = min(value, 2)
    body.pop("model", None)  # a random name is always another one
    return body


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_every_answer_is_documented(server, key, picture, mode):
    """To what fits the document, and to what does not."""
    document = schemathesis.openapi.from_dict(json.loads(server.ask("GET", "/openapi.json")[2]))
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) == 5

    def check(operation, examples):
        @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            case.body = affordable(case.body, picture)
            case.call_and_validate(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, checks=CHECKS)

        ask()

    for operation in operations:
        if (
            operation.method == "post" or mode == GenerationMode.POSITIVE
        ):  # what could be wrong of a GET without parameters
            check(operation, 40 if operation.method == "post" else 1)


def test_it_names_every_route_and_both_forms(server):
    document = json.loads(server.ask("GET", "/openapi.json")[2])
    assert set(document["paths"]) == {"/v1/images/edits", "/v1/models", "/health", "/health/ready", "/metrics"}
    operation = document["paths"]["/v1/images/edits"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert {"200", "400", "401", "404", "408", "413", "415", "429", "500", "503", "504"} <= set(operation["responses"])
    assert not any(name in json.dumps(document) for name in ("jsdelivr", "HTTPValidationError"))


@pytest.mark.parametrize("name", ["prompt", "reward_text", "reward_guidance_text", "negative_prompt"])
def test_a_text_may_be_as_long_as_the_engine_takes(name):
    schema = Fields.model_json_schema()["properties"][name]
    most = next(each["maxLength"] for each in (schema, *schema.get("anyOf", ())) if "maxLength" in each)
    check_length("x" * most, name)
    with pytest.raises(MRCError, match=f"{most + 1:,} characters"):
        check_length("x" * (most + 1), name)
