"""The authors' file is downloaded once and resumed where it broke."""

import hashlib
import http.server
import re
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch

from segclip.checkpoints import download
from segclip.checkpoints import loading as checkpoints
from segclip.checkpoints.download import DownloadError
from segclip.checkpoints.loading import load
from segclip.checkpoints.native import CheckpointError
from segclip.model.segclip import SegCLIP
from segclip.utils.files import cache_folder

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, well or badly."""

    content = CONTENT
    etag: str | None = '"one"'
    ranges = True  # answers Range requests
    announced = 0  # bytes promised beyond those there are
    length: str | None = "right"  # Content-Length; None: there is none
    moved: str | None = None  # to where the first request is led
    breaks: list[int]  # after how many bytes the next connections break
    status = 200
    seen: list[dict[str, str]]  # headers of the requests

    def handle_error(self, *_: Any) -> None:
        """A client that takes no more is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, start = self.server, 0
        server.seen.append(dict(self.headers))
        if server.status != 200:
            self.send_error(server.status)
            return
        if server.moved is not None:
            self.send_response(302)
            self.send_header("Location", server.moved)
            self.send_header("Content-Length", "0")
            self.end_headers()
            server.moved = None
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(wanted[1])
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                self.end_headers()
                return
            self.send_response(206)
            size = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        body = server.content[start:]
        if server.length is not None:
            right = str(len(body) + server.announced)
            self.send_header("Content-Length", right if server.length == "right" else server.length)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.breaks, server.seen = [], []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def url(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return f"http://127.0.0.1:{server.server_port}/release/segclip.bin"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "segclip.bin"


def assert_whole(target: Path, content: bytes = CONTENT) -> None:
    assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_download(server: Server, url: str, target: Path) -> None:
    download.download(url, target)
    assert_whole(target)
    assert len(server.seen) == 1


def test_a_broken_download_is_resumed_at_once(server: Server, url: str, target: Path) -> None:
    server.breaks = [300_000, 500_000]
    download.download(url, target)
    assert_whole(target)
    assert [seen.get("Range") for seen in server.seen] == [None, "bytes=300000-", "bytes=800000-"]
    assert server.seen[1]["If-Range"] == '"one"'


def test_a_broken_download_is_resumed_by_a_later_call(server: Server, url: str, target: Path) -> None:
    server.breaks = [100_000] * download.ATTEMPTS
    with pytest.raises(DownloadError, match=r"broke at 400,000 bytes: 1,048,576 were announced; run again to continue"):
        download.download(url, target)
    assert not target.exists()
    download.download(url, target)
    assert_whole(target)
    assert server.seen[-1]["Range"] == "bytes=400000-"


def test_without_an_etag_it_is_resumed_too(server: Server, url: str, target: Path) -> None:
    server.etag, server.breaks = None, [300_000]
    download.download(url, target)
    assert_whole(target)
    assert "If-Range" not in server.seen[1]


def test_a_file_that_changed_meanwhile_is_downloaded_from_its_start(server: Server, url: str, target: Path) -> None:
    server.breaks = [100_000] * download.ATTEMPTS
    with pytest.raises(DownloadError):
        download.download(url, target)
    server.etag, server.content = '"two"', CONTENT[::-1]
    download.download(url, target)
    assert_whole(target, CONTENT[::-1])


def test_a_server_without_ranges(server: Server, url: str, target: Path) -> None:
    server.ranges, server.breaks = False, [300_000]
    download.download(url, target)
    assert_whole(target)


def test_a_whole_part_that_was_not_renamed(server: Server, url: str, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("segclip.bin.part").write_bytes(CONTENT)
    download.download(url, target)
    assert_whole(target)


def test_a_part_longer_than_the_file(server: Server, url: str, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("segclip.bin.part").write_bytes(CONTENT * 2)
    download.download(url, target)
    assert_whole(target)


def test_a_server_that_promises_more_than_it_sends(server: Server, url: str, target: Path) -> None:
    server.announced, server.ranges = 1000, False
    with pytest.raises(DownloadError, match="1,049,576 were announced"):
        download.download(url, target)
    assert not target.exists()


def test_a_file_that_is_announced_as_too_large(server: Server, url: str, target: Path) -> None:
    with pytest.raises(DownloadError, match="1,048,576 bytes were announced; expected at most 1,000,000"):
        download.download(url, target, largest=1_000_000)
    assert not any(target.parent.iterdir()) and len(server.seen) == 1


def test_a_body_without_an_end(server: Server, url: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.length = None
    monkeypatch.setattr(download, "CHUNK", 1000)
    with pytest.raises(DownloadError, match="the server sent more than 100,000 bytes"):
        download.download(url, target, largest=100_000)
    assert [path.name for path in target.parent.iterdir()] in ([], ["segclip.bin.part.validator"])
    download.download(url, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("length", ["\xb2", "1_000", "-1", "1e3", "0x10", "", "9" * 5000])
def test_a_length_that_is_no_number(server: Server, url: str, target: Path, length: str) -> None:
    server.length = length
    with pytest.raises(DownloadError, match=r"the server announced '.*' bytes") as caught:
        download.download(url, target)
    assert not target.exists() and len(str(caught.value)) < 600


@pytest.mark.parametrize("moved", ["/elsewhere", "http://127.0.0.1:{port}/elsewhere"])
def test_a_way_from_http_to_http(server: Server, url: str, target: Path, moved: str) -> None:
    server.moved = moved.format(port=server.server_port)
    download.download(url, target)
    assert_whole(target)


@pytest.mark.parametrize("moved", ["ftp://127.0.0.1/x", "file:///etc/hostname", "http://["])
def test_a_way_that_is_not_gone(server: Server, url: str, target: Path, moved: str) -> None:
    server.moved = moved
    with pytest.raises(DownloadError, match="cannot download"):
        download.download(url, target)
    assert len(server.seen) == 1 and not target.exists()


@pytest.mark.parametrize("moved", ["http://example.org/x", "ftp://example.org/x"])
def test_https_stays_https(moved: str) -> None:
    redirects, asked = download._Redirects(), urllib.request.Request("https://example.org/x")
    with pytest.raises(download._Refused, match=f"it leads from https to {moved}"):
        redirects.redirect_request(asked, None, 302, "Found", Message(), moved)
    followed = redirects.redirect_request(asked, None, 302, "Found", Message(), "https://example.com/y")
    assert followed is not None and followed.full_url == "https://example.com/y"


def test_another_sha256(server: Server, url: str, target: Path) -> None:
    right = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(DownloadError, match=rf"its sha256 is {right}, expected 0000"):
        download.download(url, target, sha256="0" * 64)
    assert not target.exists()
    download.download(url, target, sha256=right)
    assert_whole(target)


def test_not_found(server: Server, url: str, target: Path) -> None:
    server.status = 404
    with pytest.raises(DownloadError, match=rf"{url} \(the server answered 404 .*put it at {target}"):
        download.download(url, target)
    assert len(server.seen) == 1


def test_no_network(target: Path, server: Server, url: str) -> None:
    server.server_close()
    with pytest.raises(DownloadError, match=rf"{url} \(no connection: .*download it by hand and put it at {target}"):
        download.download(url, target)


def test_a_folder_that_cannot_be_made(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot download"):
        download.download(url, tmp_path / "file" / "segclip.bin")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SEGCLIP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "segclip"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "segclip"
    monkeypatch.setenv("SEGCLIP_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.fixture
def cache(server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bin: Path) -> Path:
    """The release holds the small model."""
    server.content = tiny_bin.read_bytes()
    monkeypatch.setattr(checkpoints, "AUTHORS_URL", url)
    monkeypatch.setenv("SEGCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_vit_b16_is_downloaded_once_and_converted(
    server: Server, cache: Path, tiny: SegCLIP, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = load("vit-b16", "cpu"), load("vit-b16", "cpu")
    assert len(server.seen) == 1
    assert "without a licence" in caplog.text
    assert first.config == second.config == tiny.config
    found = second.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tiny.state_dict().items())
    assert {path.name for path in cache.iterdir()} - {"vit-b16.lock"} == {
        "vit-b16.safetensors",
        "vit-b16.safetensors.sha256",
    }


def test_the_licence_is_told_before_the_download(server: Server, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.status = 503
    with pytest.raises(DownloadError, match=r"503 .*put it at .*segclip\.bin"):
        load("vit-b16")
    assert "without a licence" in caplog.text


def test_a_file_put_there_by_hand(server: Server, cache: Path, tiny: SegCLIP, tiny_bin: Path) -> None:
    cache.mkdir()
    shutil.copy(tiny_bin, cache / "segclip.bin")
    assert load("vit-b16").config == tiny.config
    assert not server.seen


def test_a_wrong_file_is_not_kept(server: Server, cache: Path, tiny: SegCLIP) -> None:
    right, server.content = server.content, b"<html>not what you wanted</html>"
    with pytest.raises(CheckpointError, match="looks like a web page"):
        load("vit-b16")
    server.content = right
    assert load("vit-b16").config == tiny.config


def test_two_at_a_time_download_once(server: Server, cache: Path) -> None:
    threads = [threading.Thread(target=load, args=("vit-b16",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.seen) == 1
    assert (cache / "vit-b16.safetensors").exists()


def test_cached_weights_are_what_they_were(server: Server, cache: Path, tiny: SegCLIP) -> None:
    load("vit-b16")
    ours, checksum = cache / "vit-b16.safetensors", cache / "vit-b16.safetensors.sha256"
    assert checksum.read_text() == f"{hashlib.sha256(ours.read_bytes()).hexdigest()}  vit-b16.safetensors\n"
    checksum.unlink()  # as earlier versions left it
    load("vit-b16")
    whole = bytearray(ours.read_bytes())
    whole[-1] ^= 1
    ours.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"vit-b16\.safetensors: changed since it was made: .* delete both"):
        load("vit-b16")
    ours.unlink()  # its checksum stays, of a file that is no more
    assert load("vit-b16").config == tiny.config
    assert load("vit-b16").config == tiny.config
    assert len(server.seen) == 2


def test_the_released_file_is_checked(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as its sha256 is known."""
    monkeypatch.setattr(checkpoints, "AUTHORS_SHA256", "0" * 64)
    with pytest.raises(DownloadError, match="expected 0000"):
        load("vit-b16")
