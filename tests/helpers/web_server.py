"""A server of `segclip web` in a thread, and what browsers and programs send to it."""

import base64
import io
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from segclip.cli import TERMINATED
from segclip.segment.segmenter import Segmenter
from segclip.web.label_studio import Studio
from segclip.web.middleware import Middleware
from segclip.web.server import make_app, make_config
from segclip.web.service import PROTOCOLS, Service

TIMEOUT = 60  # seconds for any answer


class Served:
    """A running server: its service, its application, and how to send it requests."""

    def __init__(self, service: Service, app: Middleware, address: str) -> None:
        self.service, self.app, self.address = service, app, address
        self.client = httpx.Client(base_url=address, timeout=TIMEOUT)

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    def ask(self, **question: Any) -> httpx.Response:
        return self.client.post("/segment", json=question)

    def send(self, data: bytes, **ask: str) -> httpx.Response:
        """What the page does when a photo is dropped on it."""
        return self.client.post("/photos", content=data, params=ask)


@contextmanager
def serve(
    segmenters: dict[str, dict[Any, Segmenter]], studio: Studio | None = None, hosts: Sequence[str] = ()
) -> Iterator[Served]:
    service = Service(segmenters)
    app = make_app(service, hosts, studio)
    server = uvicorn.Server(make_config(app, port=0, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(service, app, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serve_by_command(*arguments: str) -> Iterator[str]:
    """`segclip web` in a process of its own, at a port that is free; gives its address."""
    command = [sys.executable, "-m", "segclip", "web", *arguments, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            address = next((line.strip() for line in process.stderr if line.startswith("http://")), None)
            assert address, "it ended before it served"
            yield address
        finally:
            process.terminate()
        assert process.wait(TIMEOUT) == TERMINATED


def segmenters_of(model: Any) -> dict[Any, Segmenter]:
    return {protocol: Segmenter(model, protocol) for protocol in PROTOCOLS}


def assert_in_words(response: httpx.Response, status: int, words: str = "") -> None:
    """An error with this code, told with these words, without a trace or a path."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert words in error and len(error) < 400
    assert not re.search(r"Traceback|File \"|site-packages|\.py|/tmp|0x", response.text), response.text


def png(photo: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG")
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unpacked(mask_png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(mask_png))))
