"""The wall around the server: which addresses there are, how much may be sent, what a browser may fetch.

gradio serves many more addresses than its page needs, some of which take a path or an address to fetch. They are not
there for clients of ours.
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
# What the page asks for, and nothing else: in particular none of gradio's addresses that name a file to be served.
READ = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/.*"
    r"|/gradio_api/(startup-events|queue/data|upload_progress|theme\.css|heartbeat/.*)"
)
SMALL = 256 * 1024  # what the page sends when a button is pressed: labels and numbers
MOST = {SEGMENT: MAX_BYTES * 4 // 3 + SMALL, UPLOAD: MAX_BYTES + SMALL, JOIN: SMALL, "/gradio_api/cancel": SMALL}
ROOM = 2**30  # bytes of the disk that uploads leave free
HEADERS = {
    # Nothing is fetched from elsewhere, whatever a page of gradio's would like to. It needs eval for its templates.
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """An ASGI application before another.

    Args:
        app: which gets what may pass.
        uploads: gradio's folder of uploads: a file that the page names is in it.
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
        if refusal is None and scope["path"] == UPLOAD and shutil.disk_usage(self.uploads).free < ROOM:
            refusal = 507, "there is no room for photos on the server now; please try again later"
        if refusal is None and scope["path"] == JOIN:
            message = await _whole(receive)
            if not _names_uploads(message["body"], self.uploads):
                refusal = 400, "the photo is none that was uploaded here; upload it"
            receive = _again(message, receive)
        if refusal is not None:
            return await refuse(send, *refusal)

        refused = False

        async def send_safely(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_headers(message["status"])]
                refused = message["status"] == 503
                if refused:  # gradio's line is full, or ours: in the same words
                    return await refuse(send, 503, str(BusyError()))
            if not refused:
                await send(message)

        await self.app(scope, receive, send_safely)


async def refuse(send: Send, status: int, why: str) -> None:
    """An answer in words: {"error": why}."""
    body = json.dumps({"error": why, "detail": why}).encode()  # "detail" is what gradio's page shows
    about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*about, *_headers(status)]})
    await send({"type": "http.response.body", "body": body})


def _refusal(scope: Message) -> tuple[int, str] | None:
    path, method = scope["path"], scope["method"]
    if path not in MOST:
        if not READ.fullmatch(path):
            return 404, "there is no such address; the page is at /, the endpoint at /segment"
        return None if method in ("GET", "HEAD") else (405, "this address can only be read")
    if method != "POST":
        return 405, "this address takes a POST request"
    length = dict(scope["headers"]).get(b"content-length", b"")
    if not length.isdigit():
        return 411, "the request has no Content-Length"
    if len(length) > 12 or int(length) > MOST[path]:
        return 413, f"the request is too large; a photo may have {MAX_BYTES // 2**20} MiB: scale it down"
    return None


def _names_uploads(body: bytes, uploads: Path) -> bool:
    """Whether all files that a page's request names were uploaded; gradio would fetch an address named as a file."""
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


async def _whole(receive: Receive) -> Message:
    """A request's body in one message; its length was checked."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            return {"type": "http.request", "body": bytes(body), "more_body": False}


def _again(message: Message, receive: Receive) -> Receive:
    messages = [message]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _headers(status: int) -> list[tuple[bytes, bytes]]:
    headers = HEADERS | ({"retry-after": str(RETRY_AFTER)} if status == 503 else {})
    return [(name.encode(), value.encode()) for name, value in headers.items()]
