"""`POST /segment`: takes a photo and labels, returns what was found and the mask, all as JSON. See docs/web.md."""

import asyncio
import base64
import binascii
import io
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from segclip.web.service import BusyError, Service, read_photo

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

FIELDS = ("photo", "labels", "model", "protocol", "background", "presence", "coco")
TIMEOUT = 60  # seconds for a request to arrive, while it holds a queue slot

log = logging.getLogger(__name__)


def make_endpoint(service: Service) -> "Callable[[Request], Awaitable[Response]]":
    """A handler for Starlette; the middleware has checked the length of the body."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse

    async def segment(request: "Request") -> "Response":
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return JSONResponse({"error": "send JSON, with Content-Type: application/json"}, 415)
        try:
            with service.slot():
                async with asyncio.timeout(TIMEOUT):
                    body = await request.body()
                return JSONResponse(await run_in_threadpool(answer, service, body))
        except BusyError as busy:
            return JSONResponse({"error": str(busy)}, 503)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        except (TimeoutError, ClientDisconnect):
            return JSONResponse({"error": f"the request did not arrive within {TIMEOUT} seconds"}, 408)
        except Exception:  # a bug, or out of memory: the traceback goes only to the log
            log.exception("a request failed")
            return JSONResponse({"error": "this failed; the server's log says why"}, 500)

    return segment


def answer(service: Service, body: bytes) -> dict[str, Any]:
    """The response to a request's body, once it is its turn.

    Raises:
        ValueError: an invalid request, with a message for the client.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the request is not JSON") from None
    if not isinstance(fields, dict):
        raise ValueError('the request is not a JSON object; expected {"photo": ..., "labels": [...]}')
    if unknown := [name[:40] for name in fields if name not in FIELDS]:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    query = service.query(
        fields.get("labels"),
        fields.get("model"),
        fields.get("protocol"),
        fields.get("background", "auto"),
        fields.get("presence", "auto"),
    )
    coco = fields.get("coco", False)
    if not isinstance(coco, bool):
        raise ValueError("coco: give true or false")
    data = _decode(fields.get("photo"))
    with service.lock:
        result = service.segment(read_photo(data), query)
        mask = io.BytesIO()
        result.index_image().save(mask, "PNG")
        found = {**result.record(), "model": query.model, "mask_png": base64.b64encode(mask.getvalue()).decode()}
        return found | {"coco": result.to_coco()} if coco else found


def _decode(photo: object) -> bytes:
    if not isinstance(photo, str):
        raise ValueError("photo: give the image file's bytes in base64, as a text")
    try:
        return base64.b64decode(photo, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("photo: not base64; give the image file's bytes in base64, without line breaks") from None
