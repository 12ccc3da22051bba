"""The OpenAPI document: FastAPI's, with the two forms of an edit and every answer it has."""

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from .errors import KINDS
from .fields import Fields, JsonBody

SCHEMAS = "#/components/schemas/"
TEXT = {"type": "string"}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"enum": list(KINDS)},
            },
        }
    },
}
EDITED = {
    "type": "object",
    "required": ["created", "data", "size", "output_format", "background"],
    "properties": {
        "created": {"type": "integer"},
        "background": TEXT,
        "output_format": TEXT,
        "size": TEXT,
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["b64_json", "seed", "box", "timings", "waited", "batch_size", "warnings"],
                "properties": {
                    "b64_json": TEXT,
                    "seed": {"type": "integer"},
                    "box": {"type": "array", "items": {"type": "number"}, "description": "What the edit shows."},
                    "timings": {"type": "object", "additionalProperties": {"type": "number"}},
                    "waited": {"type": "number", "description": "Seconds in the queue."},
                    "batch_size": {"type": "integer"},
                    "warnings": {"type": "array", "items": TEXT, "description": "What the model did not get."},
                },
            },
        },
    },
}


def reference(name: str) -> dict:
    return {"schema": {"$ref": SCHEMAS + name}}


def edit_operation() -> dict:
    """What FastAPI cannot read from the function of the route."""
    file = {"type": "object", "required": ["image"], "properties": {"image": {"type": "string", "format": "binary"}}}
    form = {"schema": {"allOf": [{"$ref": SCHEMAS + "Fields"}, file]}}
    own = sorted({kind.status for kind in KINDS.values()} - {405})
    failures = {str(status): {"description": codes(status), "content": errors()} for status in own}
    fields = {
        "event": {"type": "string", "description": "image_edit.partial_image, image_edit.completed, error"},
        "data": {"type": "string", "description": "JSON of the event"},
    }
    stream = {"schema": {"type": "object", "description": "one event", "properties": fields, "required": ["data"]}}
    edited = {
        "description": "The edits; with stream, server-sent events.",
        "content": {"application/json": reference("Edited"), "text/event-stream": stream},
    }
    return {
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": form, "application/json": reference("JsonBody")},
        },
        "responses": {"200": edited, **failures},
    }


def codes(status: int) -> str:
    return ", ".join(code for code, kind in KINDS.items() if kind.status == status)


def errors() -> dict:
    return {"application/json": reference("Error")}


def document_of(app: FastAPI) -> dict:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, bodies = models_json_schema(
            [(Fields, "validation"), (JsonBody, "validation")], ref_template=SCHEMAS + "{model}"
        )
        own = bodies["$defs"] | {"Error": ERROR, "Edited": EDITED}
        document.setdefault("components", {}).setdefault("schemas", {}).update(own)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].setdefault("403", {"description": codes(403), "content": errors()})
                operation["responses"].setdefault("401", {"description": codes(401), "content": errors()})
        form = document["components"]["schemas"]["Fields"]
        form["additionalProperties"] = True  # else no schema could add the image to it
        app.openapi_schema = document
    return app.openapi_schema
