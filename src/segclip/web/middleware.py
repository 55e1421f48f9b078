"""What reaches the application: known paths, hosts and origins, and bodies that are counted as they come."""

import asyncio
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from segclip.web.service import RETRY_AFTER

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

STALL_TIMEOUT = 10  # seconds without a byte of a body
BODY_TIMEOUT = 120  # seconds for a whole body
MAX_BUFFERED = 512 * 2**20  # bytes of all bodies together, from the first byte to the end of the answer
MIB = 2**20
HEADERS = {
    # Nothing is loaded from anywhere else, and no script runs but the page's own files.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "x-robots-tag": "noindex",
}


class Refused(Exception):
    """A request that goes no further: its status, and why, in words."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Middleware:
    """Refuses what the application must not see, and adds security headers to every response.

    Args:
        app: the ASGI application.
        max_lengths: for each path that takes a POST request, the bytes that its body may have. Bodies reach the
            application whole.
        hosts: names by which the server may be asked for, besides its own, `localhost` and numeric addresses. Any
            other name may be an attacker's that leads here ("DNS rebinding").
        max_buffered: bytes that all bodies may take together.
    """

    def __init__(
        self, app: App, max_lengths: Mapping[str, int], hosts: Iterable[str] = (), max_buffered: int = MAX_BUFFERED
    ) -> None:
        self.app, self.max_lengths, self.max_buffered = app, max_lengths, max_buffered
        own = socket.gethostname().lower()
        self.hosts = {"localhost", own, f"{own}.local", *(host.lower() for host in hosts)}
        self.buffered = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_headers(message["status"])]
            await send(message)

        body = b""
        try:
            self._check(scope)
            if scope["method"] == "POST":
                body = await self._read(receive, self.max_lengths[scope["path"]])
                receive = _replay(body, receive)
            await self.app(scope, receive, send_safely)
        except Refused as refusal:
            await refuse(send, refusal.status, str(refusal))
        except _Gone:
            pass
        finally:
            self.buffered -= len(body)

    def _check(self, scope: Message) -> None:
        """Raises Refused for what no body is needed to refuse."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if not self._knows(host):
            raise Refused(
                421, f"this server is not known as {host[:60]!r}; start it with --allow-host and that name, to allow it"
            )
        path, method = scope["path"], scope["method"]
        if path in self.max_lengths:
            if method != "POST":
                raise Refused(405, "this path takes a POST request")
            _check_origin(headers, host)
            length = headers.get(b"content-length", "0")
            if len(length) > 12 or not length.isdigit() or int(length) > self.max_lengths[path]:
                raise _too_large(self.max_lengths[path])
        elif method not in ("GET", "HEAD"):
            raise Refused(405, "this path can only be read")

    def _knows(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        except ValueError:
            return False
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    async def _read(self, receive: Receive, most: int) -> bytes:
        """The whole body, which counts as buffered until its request is answered.

        Raises:
            Refused: more than `most` bytes, too slow, or too much is buffered.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                while await self._read_part(receive, most, body):
                    pass
            return bytes(body)
        except BaseException as error:
            self.buffered -= len(body)
            if not isinstance(error, TimeoutError):
                raise
        raise Refused(
            408,
            f"the request did not arrive in time: {STALL_TIMEOUT} seconds without a byte, or {BODY_TIMEOUT} in all; "
            "try again, or scale the photo down",
        )

    async def _read_part(self, receive: Receive, most: int, body: bytearray) -> bool:
        """Add what came to the body; whether there is more."""
        async with asyncio.timeout(STALL_TIMEOUT):
            message = await receive()
        if message["type"] != "http.request":
            raise _Gone
        part = message.get("body", b"")
        if len(body) + len(part) > most:
            raise _too_large(most)
        if self.buffered + len(part) > self.max_buffered:
            raise Refused(503, f"many photos are arriving now; please try again in {RETRY_AFTER} seconds")
        body += part
        self.buffered += len(part)
        return message.get("more_body", False)


class _Gone(Exception):
    """The client left before its request was whole."""


def _check_origin(headers: Mapping[bytes, str], host: str) -> None:
    """Pages of other sites may not ask: a browser says for whom it does. Programs send no origin."""
    origin = headers.get(b"origin")
    site = headers.get(b"sec-fetch-site", "none")
    if (origin is not None and urlsplit(origin).netloc.lower() != host.lower()) or site in ("cross-site", "same-site"):
        raise Refused(403, f"a page of {(origin or 'another site')[:60]} may not use this server")


def _too_large(most: int) -> Refused:
    return Refused(413, f"the request is too large, over {most // MIB} MiB; scale the photo down")


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_first() -> Message:
        return messages.pop() if messages else await receive()

    return receive_first


async def refuse(send: Send, status: int, why: str) -> None:
    """Respond with {"error": why}, and close the connection, whatever of the request is still to come."""
    body = json.dumps({"error": why}).encode()
    about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers = [*about, (b"connection", b"close"), *_headers(status)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _headers(status: int) -> list[tuple[bytes, bytes]]:
    headers = HEADERS | ({"retry-after": str(RETRY_AFTER)} if status == 503 else {})
    return [(name.encode(), value.encode()) for name, value in headers.items()]
