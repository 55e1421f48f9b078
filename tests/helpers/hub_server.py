"""A local server that plays the Hugging Face hub, and a process that uses it."""

import base64
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class HubServer(http.server.ThreadingHTTPServer):
    """The server.

    Attributes:
        folder: with the models, ORG/NAME/FILE.
        cuts: by ORG/NAME/FILE, the bytes that each next download of it ends after, as if they were all.
        seen: method, ORG/NAME/FILE and Range of each request for a file that is there.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.folder = folder
        self.cuts: dict[str, list[int]] = {}
        self.seen: list[tuple[str, str, str]] = []

    def downloads(self, repo: str) -> list[str]:
        """Files of a repository that were downloaded, in order."""
        names = [name for method, name, _ in self.seen if method == "GET" and name.startswith(f"{repo}/")]
        return [name.removeprefix(f"{repo}/") for name in names]


class Hub(http.server.SimpleHTTPRequestHandler):
    """What the hub answers for files of models, kept in a folder ORG/NAME/FILE, and for commits."""

    server: "HubServer"

    def __init__(self, request: Any, address: Any, server: "HubServer") -> None:
        super().__init__(request, address, server, directory=str(server.folder))

    def send_head(self) -> Any:
        found = re.fullmatch(r"/(\w+/\w+)/resolve/\w+/([\w.-]+)", self.path)
        path = Path(self.directory, *found.groups()) if found else Path("nothing")
        if self.path.startswith("/api/models/org/pushed/revision/main?"):  # huggingface-hub before 1.0 asks first
            answer = b'{"id": "org/pushed", "siblings": []}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            return io.BytesIO(answer)
        if not path.is_file():
            known = path.parent.is_dir() and found
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        content, start = path.read_bytes(), 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
        sent = content[start:]
        name = "/".join(found.groups()) if found else ""
        cut = self.server.cuts.get(name, []) if self.command == "GET" else []
        self.server.seen.append((self.command, name, self.headers.get("Range", "")))
        if cut and (limit := cut.pop(0)) >= 0:
            sent = sent[:limit]  # by a proxy, which says that this is all
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{found[2] if found else ""}"')
        self.send_header("Content-Length", str(len(sent)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        return io.BytesIO(sent)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_secret":
            self.send_error(401)
            return
        answer = json.dumps(self.answer(body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, body: bytes) -> dict[str, Any]:
        address = f"http://{self.headers['Host']}/org/pushed"
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            assert (asked["organization"], asked["name"]) == ("org", "pushed")
            assert asked.get("private") or asked.get("visibility") == "private"  # by the version of huggingface-hub
            return {"url": address}
        if self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    file = Path(self.directory, "org", "pushed", line["value"]["path"])
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(line["value"]["content"]))
            return {"commitUrl": f"{address}/commit/1", "commitOid": "1", "hookOutput": ""}
        return {"errors": [], "warnings": []}  # of the model card

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[HubServer]:
    """A server of the models in a folder."""
    with HubServer(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def run_with_hub(program: str, endpoint: str, home: Path, **more: str) -> list[str]:
    """The lines that a Python program prints whose hub is at an address; huggingface-hub reads it when imported."""
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "SEGCLIP_CACHE": str(home / "segclip"),
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()
