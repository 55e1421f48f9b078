"""`POST /segment`: a photo and labels as JSON, what was found and the mask as JSON. docs/web.md describes it."""

import asyncio
import base64
import binascii
import io
import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from segclip.web.service import BusyError, Desk, read_photo

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

FIELDS = ("photo", "labels", "model", "protocol", "background", "coco")
PATIENCE = 60  # seconds for a request to arrive, while it holds a place in the line

log = logging.getLogger(__name__)


def make_endpoint(desk: Desk) -> "Callable[[Request], Awaitable[Response]]":
    """A handler for Starlette; who calls it has checked the body's length."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse

    async def segment(request: "Request") -> "Response":
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return JSONResponse({"error": "send JSON, with Content-Type: application/json"}, 415)
        try:
            with desk.place():
                async with asyncio.timeout(PATIENCE):
                    body = await request.body()
                return JSONResponse(await run_in_threadpool(answer, desk, body))
        except BusyError as busy:
            return JSONResponse({"error": str(busy)}, 503)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        except (TimeoutError, ClientDisconnect):
            return JSONResponse({"error": f"the request did not arrive within {PATIENCE} seconds"}, 408)
        except Exception:  # a bug, or no memory: the traceback is for the log alone
            log.exception("a request failed")
            return JSONResponse({"error": "this could not be done; the server's log says why"}, 500)

    return segment


def answer(desk: Desk, body: bytes) -> dict[str, Any]:
    """The answer to a request's body; waits for its turn.

    Raises:
        ValueError: what was asked for cannot be done, in words.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the request is no JSON") from None
    if not isinstance(asked, dict):
        raise ValueError('the request is no JSON object; expected {"photo": ..., "labels": [...]}')
    if unknown := [name[:40] for name in asked if name not in FIELDS]:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    question = desk.question(
        asked.get("labels"), asked.get("model"), asked.get("protocol"), asked.get("background", "auto")
    )
    coco = asked.get("coco", False)
    if not isinstance(coco, bool):
        raise ValueError("coco: give true or false")
    data = _decode(asked.get("photo"))
    with desk.working:
        result = desk.segment(read_photo(data), question)
        mask = io.BytesIO()
        result.index_image().save(mask, "PNG")
        found = {**result.record(), "model": question.model, "mask_png": base64.b64encode(mask.getvalue()).decode()}
        return found | {"coco": result.to_coco()} if coco else found


def _decode(photo: object) -> bytes:
    if not isinstance(photo, str):
        raise ValueError("photo: give the image file's bytes in base64, as a text")
    try:
        return base64.b64decode(photo, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("photo: is no base64; give the image file's bytes in base64, without line ends") from None
