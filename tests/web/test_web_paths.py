"""`segclip web` opens no path that a client names, gives out no file, and fetches nothing from elsewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import skimage.data
from helpers.small_model import small_model
from helpers.web_server import Served, as_file, assert_in_words, png, segmenters_of, serve

from segclip.web.page import read_upload

PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150
SECRET = "root:"  # begins /etc/passwd
PATHS = [
    "/etc/passwd",
    "../../../../etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:1/cat.png",
    "https://example.com/cat.png",
    f"/etc/{'0' * 64}/../passwd",
    "UPLOADS/../../etc/passwd",
    f"UPLOADS/{'0' * 64}/cat.png",
    f"UPLOADS/{'0' * 64}/..",
    "UPLOADS",
    "UPLOADS/\0",
    "",
    5,
    None,
    ["/etc/passwd"],
    {"path": "/etc/passwd"},
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve({"small": segmenters_of(small_model())}, tmp_path_factory.mktemp("uploads")) as served:
        yield served


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_no_path_of_a_client_is_opened(served: Served, path: object) -> None:
    path = path.replace("UPLOADS", str(served.uploads)) if isinstance(path, str) else path
    with pytest.raises(ValueError, match="upload it"):
        read_upload(as_file(path), served.uploads)
    response = served.press(as_file(path), "cup", "automatic", 0.5, "open", "small")
    assert SECRET not in response.text and "Traceback" not in response.text
    if response.status_code == 200:  # a place for uploads, with nothing there
        assert "process_completed" in response.text and "seg-table" not in response.text
    else:
        assert_in_words(response, 400, "upload")


def test_files_hidden_in_other_fields(served: Served) -> None:
    for values in (
        (None, as_file("/etc/passwd"), "automatic", 0.5, "open", "small"),
        (None, "cup", "automatic", 0.5, "open", [[as_file("http://127.0.0.1:1/x")]]),
    ):
        assert_in_words(served.press(*values), 400, "upload")


@pytest.mark.parametrize(
    "address",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/info",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/static/../../../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets//etc/passwd",
    ],
)
def test_no_address_gives_a_file_of_the_server(served: Served, address: str) -> None:
    response = served.client.get(address)
    assert response.status_code in (400, 403, 404) and SECRET not in response.text


def test_an_upload_is_not_given_out(served: Served) -> None:
    path = served.upload(png(PHOTO))["path"]
    assert Path(path).is_file()
    assert served.client.get(f"/gradio_api/file={path}").status_code == 404


def test_other_functions_of_gradio_are_closed(served: Served) -> None:
    for address in ("/gradio_api/run/segment", "/gradio_api/api/predict", "/gradio_api/call/segment", "/login"):
        assert_in_words(served.client.post(address, json={"data": []}), 404)


def test_nothing_comes_from_elsewhere(served: Served) -> None:
    response = served.client.get("/")
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//[^"'\s>]+""", response.text)
    assert '"analytics_enabled":false' in response.text.replace(" ", "")
