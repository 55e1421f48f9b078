"""What the server allows: which paths can be requested, how much can be sent, what a browser may load.

gradio serves many more paths than its page needs, and some take a file path or a URL to fetch. These are closed.
"""

import json
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from segclip.web.service import MAX_BYTES, RETRY_AFTER, BusyError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

SEGMENT, UPLOAD, JOIN = "/segment", "/gradio_api/upload", "/gradio_api/queue/join"
# What the page needs, and nothing else: in particular none of gradio's paths that name a file to serve.
READABLE = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/.*"
    r"|/gradio_api/(startup-events|queue/data|upload_progress|theme\.css|heartbeat/.*)"
)
MAX_FIELDS = 256 * 1024  # bytes of what the page sends when a button is pressed: labels and numbers
MAX_LENGTHS = {
    SEGMENT: MAX_BYTES * 4 // 3 + MAX_FIELDS,
    UPLOAD: MAX_BYTES + MAX_FIELDS,
    JOIN: MAX_FIELDS,
    "/gradio_api/cancel": MAX_FIELDS,
}
MIN_FREE_DISK = 2**30  # bytes that uploads leave free
HEADERS = {
    # Nothing is loaded from other servers, even if gradio's page tries to. It needs eval for its templates.
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Middleware:
    """Refuses what the application must not see, and adds security headers to every response.

    Args:
        app: the ASGI application.
        uploads: gradio's folder of uploads; the page may name only files in it.
    """

    def __init__(self, app: App, uploads: Path) -> None:
        self.app = app
        self.uploads = uploads

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        refusal = _refusal(scope)
        if refusal is None and scope["path"] == UPLOAD and shutil.disk_usage(self.uploads).free < MIN_FREE_DISK:
            refusal = 507, "the server has no room for photos now; please try again later"
        if refusal is None and scope["path"] == JOIN:
            message = await _read_body(receive)
            if not _names_only_uploads(message["body"], self.uploads):
                refusal = 400, "the photo was not uploaded here; upload it"
            receive = _replay(message, receive)
        if refusal is not None:
            return await refuse(send, *refusal)

        refused = False

        async def send_safely(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_headers(message["status"])]
                refused = message["status"] == 503
                if refused:  # gradio's queue is full, or ours: the same message for both
                    return await refuse(send, 503, str(BusyError()))
            if not refused:
                await send(message)

        await self.app(scope, receive, send_safely)


async def refuse(send: Send, status: int, why: str) -> None:
    """Respond with {"error": why}."""
    body = json.dumps({"error": why, "detail": why}).encode()  # "detail" is what gradio's page shows
    about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*about, *_headers(status)]})
    await send({"type": "http.response.body", "body": body})


def _refusal(scope: Message) -> tuple[int, str] | None:
    path, method = scope["path"], scope["method"]
    if path not in MAX_LENGTHS:
        if not READABLE.fullmatch(path):
            return 404, "there is nothing at this path; the page is at /, the endpoint at /segment"
        return None if method in ("GET", "HEAD") else (405, "this path can only be read")
    if method != "POST":
        return 405, "this path takes a POST request"
    length = dict(scope["headers"]).get(b"content-length", b"")
    if not length.isdigit():
        return 411, "the request has no Content-Length"
    if len(length) > 12 or int(length) > MAX_LENGTHS[path]:
        return 413, f"the request is too large; a photo may have up to {MAX_BYTES // 2**20} MiB: scale it down"
    return None


def _names_only_uploads(body: bytes, uploads: Path) -> bool:
    """Whether all files that the page's request names were uploaded; gradio would fetch a URL given as a file."""
    try:
        files = list(_files(json.loads(body)))
    except (ValueError, RecursionError):
        return False
    start = str(uploads) + os.sep
    return all(isinstance(file, str) and file.startswith(start) and ".." not in Path(file).parts for file in files)


def _files(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _files(one)


async def _read_body(receive: Receive) -> Message:
    """The body of a request in one message; its length was checked."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            return {"type": "http.request", "body": bytes(body), "more_body": False}


def _replay(message: Message, receive: Receive) -> Receive:
    messages = [message]

    async def receive_first() -> Message:
        return messages.pop() if messages else await receive()

    return receive_first


def _headers(status: int) -> list[tuple[bytes, bytes]]:
    headers = HEADERS | ({"retry-after": str(RETRY_AFTER)} if status == 503 else {})
    return [(name.encode(), value.encode()) for name, value in headers.items()]
