"""What must not pass: large bodies however they are sent, slow clients, other hosts and origins, unknown paths."""

import http.client
import re
import socket
import time
from collections.abc import Iterator

import pytest
import skimage.data
from helpers.small_model import small_model
from helpers.web_server import TIMEOUT, Served, assert_in_words, png, segmenters_of, serve, text

from segclip.web import connections, middleware
from segclip.web.service import MAX_BYTES

PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150
SECRET = "root:"  # begins /etc/passwd
POSTS = ("/segment", "/photos", "/predict", "/setup")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve({"small": segmenters_of(small_model())}, hosts=["photos.example"]) as served:
        yield served


def works(served: Served) -> bool:
    return served.ask(photo=text(png(PHOTO)), labels=["cup"]).status_code == 200


def connect(served: Served, sent: bytes) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT)
    one.sendall(sent)
    return one


def answer(one: socket.socket) -> bytes:
    """All that comes until the server closes."""
    parts = []
    try:
        while part := one.recv(65536):
            parts.append(part)
    except ConnectionResetError:  # it closed before it read everything
        pass
    one.close()
    return b"".join(parts)


# Bodies


@pytest.mark.parametrize("path", POSTS)
def test_a_large_body_is_refused_by_its_header(served: Served, path: str) -> None:
    """Nothing of it is read, nor sent here."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=TIMEOUT)
    connection.request("POST", path, headers={"Content-Length": str(2 * MAX_BYTES)})
    response = connection.getresponse()
    assert response.status == 413 and b"too large" in response.read()
    connection.close()


@pytest.mark.parametrize("length", ["-1", "1e9", "9" * 30, "0x10"])
def test_a_length_that_is_no_number(served: Served, length: str) -> None:
    sent = f"POST /photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()
    assert answer(connect(served, sent)).split()[1] in (b"400", b"413")


def test_a_chunked_body_is_counted_as_it_comes(served: Served) -> None:
    """A gigabyte in chunks: the server closes long before, and keeps nothing of it."""
    one = connect(served, b"POST /photos HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    sent = 0
    try:
        for _ in range(1024):
            one.sendall(chunk)
            sent += len(chunk)
    except OSError:
        pass
    assert MAX_BYTES / 2 < sent < 4 * MAX_BYTES  # what the sockets hold comes on top
    one.close()
    assert works(served) and buffered(served) == 0


def test_a_chunked_photo_is_taken(served: Served) -> None:
    response = served.client.post("/photos", content=iter([png(PHOTO)[:100], png(PHOTO)[100:]]))
    assert response.json()["width"] == 150


def test_a_body_that_stalls(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "STALL_TIMEOUT", 0.2)
    one = connect(served, b"POST /photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345")
    told = answer(one)
    assert b" 408 " in told and b"did not arrive in time" in told


def test_a_body_that_trickles(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_TIMEOUT", 0.5)
    one = connect(served, b"POST /photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
    start = time.monotonic()
    try:
        while time.monotonic() - start < 20:
            one.sendall(b"x")
            time.sleep(0.05)
    except OSError:
        pass
    assert time.monotonic() - start < 10
    one.close()


def test_a_client_that_leaves(served: Served) -> None:
    for _ in range(20):
        one = connect(
            served, b"POST /photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000)
        )
        one.close()
    assert works(served)
    deadline = time.monotonic() + 20
    while buffered(served):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_bodies_together_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.app, "max_buffered", 10_000)
    assert_in_words(served.send(png(PHOTO)), 503, "try again")
    assert "retry-after" in served.send(png(PHOTO)).headers
    monkeypatch.undo()
    assert served.send(png(PHOTO)).status_code == 200


def buffered(served: Served) -> int:
    return served.app.buffered


# Connections


def test_headers_that_do_not_come(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_TIMEOUT", 0.3)
    start = time.monotonic()
    for sent in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"):
        assert answer(connect(served, sent)) == b""
    assert time.monotonic() - start < 20


def test_headers_that_do_not_come_after_an_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_TIMEOUT", 0.3)
    one = connect(served, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    found = b""
    while b'"UP"' not in found:  # the body may come after its headers
        part = one.recv(65536)
        assert part
        found += part
    one.sendall(b"GET /hea")
    assert answer(one) == b""


def test_idle_connections_shut_nobody_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest one that waits for its client is closed for another."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
    idle = [
        connect(served, b"POST /photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n") for _ in range(15)
    ]
    assert works(served)
    assert answer(idle[0]) == b""
    for one in idle[1:]:
        one.close()


# Hosts and origins


@pytest.mark.parametrize(
    "host", ["localhost:7860", "127.0.0.1", "[::1]:80", "192.168.1.5:7860", "Photos.Example", "localhost."]
)
def test_hosts_that_are_known(served: Served, host: str) -> None:
    assert served.client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "a@b"]
)
def test_hosts_that_lead_here_from_elsewhere(served: Served, host: str) -> None:
    assert_in_words(served.client.get("/health", headers={"host": host}), 421, "--allow-host")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_pages_of_others_may_not_ask(served: Served, path: str, headers: dict[str, str]) -> None:
    assert_in_words(served.client.post(path, content=png(PHOTO), headers=headers), 403, "may not use this server")


def test_the_page_itself_may(served: Served) -> None:
    headers = {"origin": served.address, "sec-fetch-site": "same-origin"}
    assert served.client.post("/photos", content=png(PHOTO), headers=headers).status_code == 200
    behind_proxy = {"host": "photos.example", "origin": "https://photos.example"}
    assert served.client.post("/photos", content=png(PHOTO), headers=behind_proxy).status_code == 200


def test_other_origins_read_nothing(served: Served) -> None:
    for method in ("GET", "OPTIONS"):
        response = served.client.request(method, "/health", headers={"origin": "https://evil.example"})
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert response.headers["cross-origin-resource-policy"] == "same-origin"


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/static/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/server.py",
        "/app.js/..",
        "/examples/..%2f..%2fetc%2fpasswd.jpg",
        "/examples/dog.jpg",
        "/gradio_api/file=/etc/passwd",
        "/docs",
    ],
)
def test_no_path_gives_a_file_of_the_server(served: Served, path: str) -> None:
    sent = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    told = answer(connect(served, sent)).decode()
    assert told.split()[1] == "404" and SECRET not in told and "there is nothing at this path" in told


def test_methods(served: Served) -> None:
    for path in POSTS:
        assert_in_words(served.client.get(path), 405, "POST")
    for method in ("POST", "PUT", "DELETE"):
        assert_in_words(served.client.request(method, "/health"), 405, "read")


def test_websockets_are_closed(served: Served) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    one = connect(served, b"GET /ws HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n")
    assert b"101" not in one.recv(65536).split(b"\r\n")[0]
    one.close()


def test_nothing_comes_from_elsewhere(served: Served) -> None:
    """No script but the page's files, none inline, no eval; and nothing that the page loads names another server."""
    response = served.client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
    page = response.text
    assert not re.findall(r"<script(?![^>]*src=)|\son\w+=|style=", page)
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert "app.js" in loaded
    for name in loaded:
        text = served.client.get(f"/{name}").text
        assert not [url for url in re.findall(r"https?://[^\s\"'`]+", text) if "www.w3.org" not in url], name


def test_the_first_paint_is_small(served: Served) -> None:
    names = [
        "",
        "app.js",
        "view.js",
        "server.js",
        "png.js",
        "labels.js",
        "table.js",
        "files.js",
        "style.css",
        "icon.svg",
    ]
    names += ["config.json", *(f"examples/{name}.small.jpg" for name in ("cat", "coffee", "person"))]
    responses = [served.client.get(f"/{name}") for name in names]
    assert all(response.status_code == 200 for response in responses)
    assert sum(len(response.content) for response in responses) < 100_000
