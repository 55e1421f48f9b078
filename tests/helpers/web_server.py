"""A server of `segclip web` in a thread, and what browsers and programs send to it."""

import base64
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from segclip.cli import TERMINATED
from segclip.segment.segmenter import Segmenter
from segclip.web.server import make_app
from segclip.web.service import PROTOCOLS, QUEUE_SIZE, Service

TIMEOUT = 60  # seconds for any answer


class Served:
    """A running server: its service, and how to send it requests."""

    def __init__(self, service: Service, address: str, uploads: Path) -> None:
        self.service, self.address, self.uploads = service, address, uploads
        self.client = httpx.Client(base_url=address, timeout=TIMEOUT)

    def ask(self, **question: Any) -> httpx.Response:
        return self.client.post("/segment", json=question)

    def upload(self, data: bytes, name: str = "photo.png") -> dict[str, Any]:
        """What the page has after a photo was dropped on it."""
        response = self.client.post("/gradio_api/upload", files={"files": (name, data)})
        response.raise_for_status()
        return as_file(response.json()[0])

    def press(self, *values: Any) -> httpx.Response:
        """Press "Segment" with these values: photo, labels, background, threshold, protocol, model."""
        (button,) = [d["id"] for d in self.client.get("/config").json()["dependencies"] if len(d["inputs"]) == 6]
        message = {"data": values, "fn_index": button, "session_hash": f"s{time.monotonic_ns()}"}
        joined = self.client.post("/gradio_api/queue/join", json=message)
        if joined.status_code != 200:
            return joined
        return self.client.get("/gradio_api/queue/data", params={"session_hash": message["session_hash"]})

    def stage(self, *values: Any) -> str:
        """What the page shows after "Segment" was pressed."""
        events = [json.loads(line[6:]) for line in self.press(*values).text.splitlines() if line.startswith("data: ")]
        (done,) = [event for event in events if event["msg"] == "process_completed"]
        assert done["success"], done
        return done["output"]["data"][0]


@contextmanager
def serve(segmenters: dict[str, dict[Any, Segmenter]], uploads: Path, queue_size: int = QUEUE_SIZE) -> Iterator[Served]:
    service = Service(segmenters, queue_size)
    config = uvicorn.Config(
        make_app(service, uploads), port=0, log_level="error", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(service, f"http://127.0.0.1:{port}", uploads)
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


def as_file(path: object) -> dict[str, Any]:
    """How a page names a file."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def png(photo: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG")
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unpacked(mask_png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(mask_png))))
