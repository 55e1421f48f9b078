"""`segclip web` without a browser: the endpoint, the page's own requests, and what must not pass."""

import http.client
import io
import json
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import skimage.data
from helpers import ROOT
from helpers.pages import blocks
from helpers.small_model import small_model
from helpers.web_server import TIMEOUT, Served, assert_in_words, png, segmenters_of, serve, text, unpacked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segclip.cli import main
from segclip.segment.segmenter import Segmenter
from segclip.web.service import MAX_BYTES, MAX_LABELS, MAX_LETTERS, MAX_PIXELS, QUEUE_SIZE, Service, open_service

PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150
LABELS = ["cup", "potted plant"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = small_model()
    with serve({"small": segmenters_of(model), "other": segmenters_of(model)}, tmp_path_factory.mktemp("up")) as served:
        yield served


# The endpoint


@pytest.mark.parametrize(
    ("asked", "protocol", "background"),
    [
        ({}, "open", "auto"),
        ({"presence": "none"}, "open", "auto"),
        ({"presence": None, "background": "none"}, "open", None),
        ({"background": "none"}, "open", None),
        ({"background": None, "protocol": "paper"}, "paper", None),
        ({"background": 0.3, "protocol": "paper", "model": "other"}, "paper", 0.3),
    ],
)
def test_the_endpoint_gives_what_the_segmenter_gives(
    served: Served, asked: dict[str, Any], protocol: Any, background: Any
) -> None:
    answer = served.ask(photo=text(png(PHOTO)), labels=LABELS, coco=True, **asked).json()
    presence = None if "presence" in asked else "auto"
    expected = Segmenter(small_model(), protocol).segment(PHOTO, LABELS, background=background, presence=presence)
    np.testing.assert_array_equal(unpacked(answer.pop("mask_png")), expected.labels)
    assert answer.pop("model") == asked.get("model", "small")
    assert answer.pop("coco") == json.loads(json.dumps(expected.to_coco()))
    assert answer == json.loads(json.dumps(expected.record()))


def test_labels_as_one_text(served: Served) -> None:
    answer = served.ask(photo=text(png(PHOTO)), labels=" cup ,potted plant,\n\ntable\n").json()
    assert answer["labels"] == ["cup", "potted plant", "table"] and "coco" not in answer


def test_the_example_client_runs(served: Served, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(png(PHOTO))
    script = ROOT / "examples/web_client.py"
    command = [sys.executable, script, served.address, tmp_path / "photo.png", tmp_path / "mask.png", *LABELS]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    expected = Segmenter(small_model()).segment(PHOTO, LABELS)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), expected.labels)
    assert all(f.label in printed for f in expected.found())
    assert printed.count("not found") == len(expected.not_found())
    refused = subprocess.run([*command, "cup"], capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.startswith("400: ") and "repeats" in refused.stderr


def test_the_commands_of_the_docs_run(served: Served, tmp_path: Path) -> None:
    """docs/web.md: curl, and the client."""
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    root = ROOT
    (tmp_path / "photo.jpg").write_bytes(png(PHOTO))
    (tmp_path / "examples").symlink_to(root / "examples")
    _, *asking = blocks("bash", (root / "docs/web.md").read_text())
    assert len(asking) == 2
    for block in asking:
        command = block.replace("http://127.0.0.1:7860", served.address).replace("python ", f"{sys.executable} ")
        printed = subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True, capture_output=True, text=True)
        assert "cat" in printed.stdout
    assert (tmp_path / "mask.png").is_file()


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"photo": ...}, "base64"),
        ({"photo": 5}, "base64"),
        ({"photo": "*"}, "not base64"),
        ({"photo": ""}, "empty"),
        ({"photo": text(b"no image")}, "not an image"),
        ({"photo": text(png(PHOTO)[:500])}, "truncated"),
        ({"photo": "/etc/passwd/"}, "not an image"),  # which is base64 of something
        ({"photo": {"path": "/etc/passwd"}}, "base64"),
        ({"labels": []}, "no labels"),
        ({"labels": " , \n"}, "no labels"),
        ({"labels": ...}, "labels"),
        ({"labels": 5}, "labels"),
        ({"labels": ["cup", 5]}, "expected a text"),
        ({"labels": ["cup", "Cup "]}, "repeats"),
        ({"labels": ["\ud800"]}, "half a character"),
        ({"labels": [f"thing {i}" for i in range(MAX_LABELS + 1)]}, f"at most {MAX_LABELS}"),
        ({"labels": ["w" * (MAX_LETTERS + 1)]}, f"at most {MAX_LETTERS}"),
        ({"protocol": "groupvit"}, "protocol"),
        ({"protocol": ["open"]}, "protocol"),
        ({"background": 2}, "background"),
        ({"background": True}, "background"),
        ({"presence": 0.5}, "presence 0.5; give auto, or none"),
        ({"presence": ["auto"]}, "presence"),
        ({"background": float("nan")}, "background"),
        ({"model": "mini"}, "choose one of small, other"),
        ({"model": "../../mini.safetensors"}, "choose one of small, other"),
        ({"model": {}}, "choose one of small, other"),
        ({"coco": 1}, "coco"),
        ({"file": "/etc/passwd"}, "unknown field 'file'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else repr(value)[:40],
)
def test_a_bad_question_is_refused_in_words(served: Served, question: dict[str, Any], words: str) -> None:
    question = {"photo": text(png(PHOTO)), "labels": LABELS, **question}
    body = json.dumps({name: value for name, value in question.items() if value is not ...})  # NaN and \ud800, too
    response = served.client.post("/segment", content=body, headers={"content-type": "application/json"})
    assert_in_words(response, 400, words)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"\xff\xfe", b"[" * 100_000, b'{"photo":' * 50_000])
def test_a_body_that_is_no_question(served: Served, body: bytes) -> None:
    response = served.client.post("/segment", content=body, headers={"content-type": "application/json"})
    assert_in_words(response, 400, "the request is not")


def bomb(width: int, height: int) -> bytes:
    """A PNG's header alone."""
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header += b"\x08\x02\x00\x00\x00"
    return header + zlib.crc32(header[12:]).to_bytes(4, "big") + b"\x00\x00\x00\x00IEND\xaeB`\x82"


def test_too_many_pixels_or_bytes(served: Served) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    assert_in_words(served.ask(photo=text(bomb(side, side)), labels=LABELS), 400, f"at most {MAX_PIXELS // 10**6}")
    assert_in_words(served.ask(photo=text(bytes(MAX_BYTES + 1)), labels=LABELS), 400, "MiB")
    for address in ("/segment", "/gradio_api/upload", "/gradio_api/queue/join"):
        # Refused by its header: nothing of so large a body is read, nor sent here.
        connection = http.client.HTTPConnection(served.address.removeprefix("http://"), timeout=TIMEOUT)
        connection.request("POST", address, headers={"Content-Length": str(2 * MAX_BYTES)})
        answer = connection.getresponse()
        assert answer.status == 413 and b"too large" in answer.read()
        connection.close()
    assert_in_words(served.client.post("/segment", content=iter([b"{}"])), 411, "Content-Length")


def test_a_full_disk(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    response = served.client.post("/gradio_api/upload", files={"files": ("photo.png", png(PHOTO))})
    assert_in_words(response, 507, "no room")


def test_only_json_and_only_post(served: Served) -> None:
    assert_in_words(served.client.post("/segment", content=b"{}", headers={"content-type": "text/plain"}), 415, "JSON")
    assert_in_words(served.client.get("/segment"), 405, "POST")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_photos_never_end_it(served: Served, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
    file = io.BytesIO()
    Image.fromarray(PHOTO[:40, :40]).save(file, form)
    photo = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        photo[data.draw(st.integers(0, len(photo) - 1))] = data.draw(st.integers(0, 255))
    response = served.ask(photo=text(bytes(photo)), labels=LABELS)
    if response.status_code != 200:  # some damage does not show
        assert_in_words(response, 400, "the photo")


# Many at once


def test_a_full_queue_is_told_to_wait(served: Served) -> None:
    """20 at once: as many as the queue holds are served, the others are told when to retry; none is lost."""
    expected = Segmenter(small_model()).segment(PHOTO, LABELS).labels
    with ThreadPoolExecutor(20) as pool:
        with served.service.lock:  # nobody is served until all who find no slot have been told so
            asked = [pool.submit(served.ask, photo=text(png(PHOTO)), labels=LABELS) for _ in range(20)]
            deadline = time.monotonic() + 60
            while sum(a.done() for a in asked) < 20 - QUEUE_SIZE:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        answers = [a.result() for a in asked]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 20 - QUEUE_SIZE
    for answer in refused:
        assert_in_words(answer, 503, "waiting")
        assert int(answer.headers["retry-after"]) > 0
    for answer in answers:
        if answer not in refused:
            np.testing.assert_array_equal(unpacked(answer.json()["mask_png"]), expected)
    assert served.ask(photo=text(png(PHOTO)), labels=LABELS).status_code == 200


def test_a_full_queue_of_the_page(served: Served) -> None:
    values = (served.upload(png(PHOTO)), "cup", "automatic", 0.5, "open", "small")
    with ThreadPoolExecutor(20) as pool:
        with served.service.lock:
            pressed = [pool.submit(served.press, *values) for _ in range(20)]
            deadline = time.monotonic() + 60
            while not any(p.done() for p in pressed):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        answers = [p.result() for p in pressed]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    for answer in refused:
        assert_in_words(answer, 503, "waiting")
        assert int(answer.headers["retry-after"]) > 0
    assert all("seg-table" in answer.text for answer in answers if answer not in refused)


# The page


def test_the_page_shows_what_the_segmenter_finds(served: Served) -> None:
    expected = Segmenter(small_model(), "paper").segment(PHOTO, LABELS, background=0.26)
    html = served.stage(
        served.upload(png(PHOTO), "my cup.png"), "cup\npotted plant", "threshold", 0.26, "paper", "other"
    )
    for found in expected.found():
        row = html.split(f'class="seg-row-{found.index}"')[1].split("</tr>")[0]
        assert found.label in row and f"{100 * found.share:.1f}%" in row and f"{found.score:.2f}" in row
    files = dict(re.findall(r'download="([^"]+)" href="data:[^,]*;base64,([^"]+)"', html))
    assert list(files) == ["my cup.mask.png", "my cup.json", "my cup.coco.json"]
    np.testing.assert_array_equal(unpacked(files["my cup.mask.png"]), expected.labels)


def test_words_in_place_of_an_overlay(served: Served) -> None:
    good, bad = served.upload(png(PHOTO)), served.upload(b"no image", "cat.jpg")
    for values, words in [
        ((None, "cup", "automatic", 0.5, "open", "small"), "No photo yet"),
        ((bad, "cup", "automatic", 0.5, "open", "small"), "cat.jpg: not an image"),
        ((good, "", "automatic", 0.5, "open", "small"), "No labels"),
        ((good, "cup", "threshold", 7, "open", "small"), "0..1"),
        ((good, "cup", "sometimes", 0.5, "open", "small"), "Background"),
        ((good, "cup", "none", 0.5, "closed", "small"), "Protocol"),
        ((good, "cup", "none", 0.5, "open", "/etc/passwd"), "Model"),
        ((good, {"a": 1}, "none", 0.5, "open", "small"), "Labels: give"),
    ]:
        html = served.stage(*values)
        assert 'role="alert"' in html and words in html and "Traceback" not in html and str(served.uploads) not in html


def test_labels_are_text_never_markup(served: Served) -> None:
    label = '<img src=x onerror="alert(1)">'
    html = served.stage(served.upload(png(PHOTO)), label, "none", 0.5, "open", "small")
    assert "&lt;img src=x onerror=&#34;" in html and "<img src=x" not in html


# The command


def test_models_have_names_not_paths(weights: Path) -> None:
    service = open_service([str(weights)], "cpu")
    assert service.models == ["small.safetensors"]
    with pytest.raises(ValueError, match="same name"):
        open_service([str(weights), str(weights)], "cpu")
    with pytest.raises(ValueError, match="no model"):
        open_service([], "cpu")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    from segclip.checkpoints.native import save_model

    save_model(small_model(), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--port", "99999"), "0..65535"),
        (("--port", "0", "--host", "256.1.1.1"), "cannot be listened on"),
        (("--port", "0", "--model", "minni"), "did you mean mini"),
        (("--port", "0", "--device", "abacus"), "device 'abacus'"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["web", *arguments]) == 2
    err = capsys.readouterr().err
    assert why in err and err.count("\n") == 1


def test_a_port_that_is_taken(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["web", "--port", served.address.rsplit(":", 1)[1]]) == 2
    assert "another --port" in capsys.readouterr().err


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["web", "--port", "0"]) == 2
    assert 'pip install "segclip[web]"' in capsys.readouterr().err


def test_a_slot_is_given_back_whatever_happens() -> None:
    service = Service({}, queue_size=1)
    for _ in range(3):
        with pytest.raises(KeyError), service.slot():
            raise KeyError
