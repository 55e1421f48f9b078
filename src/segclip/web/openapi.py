"""The description of the endpoints at /openapi.json, which tools make clients of."""

from collections.abc import Sequence
from typing import Any

from segclip import __version__
from segclip.web.service import MAX_BYTES, MAX_LABELS, MAX_LETTERS, PROTOCOLS

BASE64 = {"type": "string", "format": "byte"}
SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
LABEL = {"type": "string", "maxLength": MAX_LETTERS}
NAMES = {"type": "array", "items": {"type": "string"}}


def describe(models: Sequence[str]) -> dict[str, Any]:
    """The description, in OpenAPI 3.1, of a server with these models."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "segclip",
            "version": __version__,
            "summary": "Segments photos by words.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/segment": {"post": _operation("Segment a photo", _json(_query(models)), _result(), 408, 410, 413, 415)},
            "/photos": {
                "post": {
                    "parameters": [
                        _parameter("model", {"enum": list(models)}, "the first if it is not given"),
                        _parameter("protocol", {"enum": list(PROTOCOLS)}, "the first if it is not given"),
                        _parameter("preview", {"type": "string"}, "any text: the response has `preview_jpeg`"),
                    ],
                    **_operation("Encode a photo, to segment it by its hash", _bytes(), _added(), 408, 413),
                }
            },
            "/health": {"get": _operation("Whether the server works, and how many wait", None, _health())},
        },
    }


def _operation(summary: str, body: Any, response: Any, *refusals: int) -> dict[str, Any]:
    why = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    refused = {str(status): {"description": "why, in words", **_json(why)} for status in (400, *refusals, 503)}
    answers = {"200": {"description": "done", **_json(response)}}
    if body is None:
        return {"summary": summary, "responses": answers}
    return {"summary": summary, "requestBody": {"required": True, **body}, "responses": answers | refused}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _bytes() -> dict[str, Any]:
    return {"content": {"*/*": {"schema": {"type": "string", "format": "binary", "maxLength": MAX_BYTES}}}}


def _parameter(name: str, schema: dict[str, Any], about: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": about}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _query(models: Sequence[str]) -> dict[str, Any]:
    return {
        **_object(
            photo={**BASE64, "description": "an image file's bytes"},
            photo_sha256={**SHA256, "description": "of a photo sent before, in place of `photo`; 410: send it again"},
            labels={
                "description": "what to look for; one text is split at commas",
                "oneOf": [{"type": "array", "items": LABEL, "minItems": 1, "maxItems": MAX_LABELS}, {"type": "string"}],
            },
            model={"enum": list(models), "default": models[0] if models else None},
            protocol={"enum": list(PROTOCOLS), "default": PROTOCOLS[0]},
            background={"oneOf": [{"enum": ["auto", "none", None]}, SHARE], "default": "auto"},
            presence={
                "description": "a list: those of the labels that are taken to be in the photo; the others are judged",
                "oneOf": [{"enum": ["auto", "none", None]}, {"type": "array", "items": LABEL}],
                "default": "auto",
            },
            scores={"type": "boolean", "default": False, "description": "whether to give `scores_png`"},
            coco={"type": "boolean", "default": False, "description": "whether to give `coco`"},
        ),
        "required": ["labels"],
        "additionalProperties": False,
    }


def _result() -> dict[str, Any]:
    number = {"type": "integer", "minimum": 0}
    found = _object(
        label={"type": "string"}, index=number, share=SHARE, score=SHARE,
        box={"type": "array", "items": number, "minItems": 4, "maxItems": 4},
    )  # fmt: skip
    return _object(
        width=number,
        height=number,
        protocol={"type": "string"},
        background={"oneOf": [{"enum": ["auto", None]}, SHARE]},
        labels=NAMES,
        presence={"type": "object", "additionalProperties": SHARE},
        found={"type": "array", "items": found},
        not_found=NAMES,
        model={"type": "string"},
        photo_sha256=SHA256,
        mask_png={**BASE64, "description": "a PNG file; pixel value = label index, 0 the background"},
        scores_png={**BASE64, "description": "a grey PNG file; 255 = a score of 1"},
        coco={"type": "object"},
    )


def _added() -> dict[str, Any]:
    number = {"type": "integer", "minimum": 1}
    return _object(photo_sha256=SHA256, width=number, height=number, preview_jpeg=BASE64)


def _health() -> dict[str, Any]:
    number = {"type": "integer", "minimum": 0}
    text = {"type": "string"}
    return _object(
        status={"const": "UP"}, model_class=text, version=text, models=NAMES, waiting=number, photos_kept=number
    )
