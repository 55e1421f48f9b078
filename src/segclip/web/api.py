"""What programs and the page ask for, as JSON: `POST /segment` and `POST /photos`. See docs/web.md."""

import base64
import binascii
import io
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from segclip.segment.result import Segmentation
from segclip.web.service import BusyError, ForgottenError, Service

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    Endpoint = Callable[[Request], Awaitable[Response]]

FIELDS = (
    *("photo", "photo_sha256", "labels", "model", "protocol", "background", "presence"),
    *("scores", "coco"),
)
MAX_PARTS = 1_000_000  # values in a request's JSON; each takes much more memory than its letters
PREVIEW = 2048  # maximum long side of the photo that is sent back, in pixels

log = logging.getLogger(__name__)


def json_endpoint(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> "Endpoint":
    """A handler for Starlette: JSON in, JSON out, errors in words; `answer` runs in a thread."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    async def handle(request: "Request") -> "Response":
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return JSONResponse({"error": "send JSON, with Content-Type: application/json"}, 415)
        body = await request.body()
        try:
            return JSONResponse(await run_in_threadpool(lambda: answer(read_fields(body))))
        except Exception as error:
            return error_response(error)

    return handle


def photos_endpoint(service: Service) -> "Endpoint":
    """A handler for Starlette: takes a photo's bytes, encodes it, and says its hash and size."""
    from starlette.background import BackgroundTask
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    async def handle(request: "Request") -> "Response":
        body, ask = await request.body(), request.query_params
        try:
            model = service.check_model(ask.get("model"))
            added = await run_in_threadpool(_add, service, body, model, ask.get("protocol"), ask.get("preview"))
        except Exception as error:
            return error_response(error)
        return JSONResponse(added, background=BackgroundTask(service.prepare, added["photo_sha256"], model))

    return handle


def error_response(error: Exception) -> "Response":
    """Why a request failed, for its client; what is no fault of the client's goes to the log only."""
    from starlette.responses import JSONResponse

    for kind, status in ((BusyError, 503), (ForgottenError, 410), (ValueError, 400)):
        if isinstance(error, kind):
            return JSONResponse({"error": str(error)}, status)
    log.error("a request failed", exc_info=error)  # a bug, or out of memory
    return JSONResponse({"error": "this failed; the server's log says why"}, 500)


def read_fields(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        ValueError: it is none, with a message for the client.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_PARTS:
        raise ValueError(f"the request is not one that can be answered: more than {MAX_PARTS} values")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the request is not JSON") from None
    if not isinstance(fields, dict):
        raise ValueError('the request is not a JSON object; expected {"photo": ..., "labels": [...]}')
    return fields


def segment(service: Service, fields: dict[str, Any]) -> dict[str, Any]:
    """The answer to `POST /segment`, once it is its turn.

    Raises:
        ValueError: an invalid request, with a message for the client.
        BusyError: the queue is full.
        ForgottenError: a photo that is asked about by its hash only, and not kept.
    """
    if unknown := [name[:40] for name in fields if name not in FIELDS]:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    query = service.query(
        fields.get("labels"),
        fields.get("model"),
        fields.get("protocol"),
        fields.get("background", "auto"),
        fields.get("presence", "auto"),
    )
    coco, scores = (_flag(fields, name) for name in ("coco", "scores"))
    known = _hash(fields.get("photo_sha256")) if "photo" not in fields and "photo_sha256" in fields else None
    with service.slot():
        data = None if known else decode_base64(fields.pop("photo", None))
        with service.lock:
            if data is None:
                assert known
                photo, encoded = known, service.find(known, query.model, query.protocol)
            else:
                photo, encoded = service.add(data, query.model, query.protocol)
            result = service.label(photo, encoded, query)
        found = {**result.record(), "model": query.model, "photo_sha256": photo, "mask_png": mask_png(result)}
        if scores:
            found["scores_png"] = encode_png(Image.fromarray(np.rint(255 * result.scores.clip(0, 1)).astype(np.uint8)))
        return found | {"coco": result.to_coco()} if coco else found


def _add(service: Service, data: bytes, model: str, protocol: str | None, preview: str | None) -> dict[str, Any]:
    with service.slot(), service.lock:
        photo, encoded = service.add(data, model, service.check_protocol(protocol))
    height, width = encoded.size
    added: dict[str, Any] = {"photo_sha256": photo, "width": width, "height": height}
    if preview:
        image = Image.fromarray(encoded.photo)
        image.thumbnail((PREVIEW, PREVIEW))
        added["preview_jpeg"] = _encode(image, "JPEG", quality=90)
    return added


def mask_png(result: Segmentation) -> str:
    """The mask as a PNG file in base64; pixel value = label index."""
    return encode_png(result.index_image())


def encode_png(image: Image.Image) -> str:
    """An image as a PNG file in base64."""
    return _encode(image, "PNG")


def _encode(image: Image.Image, form: str, **options: int) -> str:
    file = io.BytesIO()
    image.save(file, form, **options)
    return base64.b64encode(file.getvalue()).decode()


def decode_base64(photo: object) -> bytes:
    """The bytes of a field `photo`. Raises ValueError if it is not base64."""
    if not isinstance(photo, str):
        raise ValueError("photo: give the image file's bytes in base64, as a text")
    try:
        return base64.b64decode(photo, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("photo: not base64; give the image file's bytes in base64, without line breaks") from None


def _flag(fields: dict[str, Any], name: str) -> bool:
    if not isinstance(value := fields.get(name, False), bool):
        raise ValueError(f"{name}: give true or false")
    return value


def _hash(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("photo_sha256: give the 64 hexadecimal digits of a response, or the photo itself as photo")
    return value
