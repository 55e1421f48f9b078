"""`segclip web` without a browser: the endpoint, the page's own requests, and the command."""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from helpers import ROOT
from helpers.pages import blocks
from helpers.small_model import small_model
from helpers.web_server import Served, assert_in_words, png, segmenters_of, serve, text, unpacked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segclip.cli import main
from segclip.segment.protocols.open import OpenProtocol
from segclip.segment.segmenter import Segmenter
from segclip.web.api import FIELDS
from segclip.web.service import MAX_BYTES, MAX_LABELS, MAX_LETTERS, MAX_PIXELS, QUEUE_SIZE, Service, open_service

PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150
LABELS = ["cup", "potted plant"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    model = small_model()
    with serve({"small": segmenters_of(model), "other": segmenters_of(model)}) as served:
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
    assert answer.pop("photo_sha256") == hashlib.sha256(png(PHOTO)).hexdigest()
    assert answer == json.loads(json.dumps(expected.record()))


def test_one_label_is_looked_for_although_it_seems_absent(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are judged as before: the result is that of the labels that are left, each with its own number."""
    absent = torch.tensor([0.1, 0.2, 0.9])
    monkeypatch.setattr(OpenProtocol, "_presence", lambda self, whole, general: absent[: len(whole)])
    names = ["dog", "cup|mug", "table"]
    segmenter = Segmenter(small_model())
    question = {"photo": text(png(PHOTO)), "labels": names}

    answer = served.ask(**question, presence=["cup"]).json()
    expected = segmenter.segment(PHOTO, names[1:], presence=None)
    assert set(np.unique(expected.labels)) == {0, 1}  # the cup, which is the second of all
    np.testing.assert_array_equal(unpacked(answer["mask_png"]), 2 * expected.labels)
    assert answer["labels"] == ["dog", "cup", "table"] and answer["not_found"] == ["dog", "table"]
    assert answer["presence"] == {"dog": 0.1, "cup": 0.2, "table": 0.9}
    assert [one["label"] for one in answer["found"]] == [one.label for one in expected.found()]
    scores = [one.score for one in expected.found()]
    np.testing.assert_allclose([one["score"] for one in answer["found"]], scores, rtol=1e-5)

    judged = served.ask(**question).json()
    assert judged["not_found"] == ["dog", "cup"]
    for same in (["table"], []):  # it is there by itself
        assert served.ask(**question, presence=same).json() == judged
    every = served.ask(**question, background="none").json()  # which leaves no label out
    assert served.ask(**question, background="none", presence=["cup"]).json() == every


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
    asking = [block for block in blocks("bash", (root / "docs/web.md").read_text()) if "http://127.0.0.1:7860" in block]
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
        ({"presence": ["auto"]}, "presence: 'auto' is none of the labels; give auto, none, or some of them"),
        ({"presence": ["cup", {}]}, "presence: {} is none of the labels"),
        ({"presence": ["cup"] * 3}, "presence: 3 labels, more than the 2 of labels"),
        ({"background": float("nan")}, "background"),
        ({"model": "mini"}, "choose one of small, other"),
        ({"model": "../../mini.safetensors"}, "choose one of small, other"),
        ({"model": {}}, "choose one of small, other"),
        ({"coco": 1}, "coco"),
        ({"scores": "yes"}, "scores"),
        ({"photo": ..., "photo_sha256": "../../etc/passwd"}, "64 hexadecimal digits"),
        ({"photo": ..., "photo_sha256": ["0" * 64]}, "64 hexadecimal digits"),
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
    for photo, words in ((bomb(side, side), f"at most {MAX_PIXELS // 10**6}"), (bytes(MAX_BYTES + 1), "MiB")):
        assert_in_words(served.ask(photo=text(photo), labels=LABELS), 400, words)
    assert_in_words(served.send(bomb(side, side)), 400, f"at most {MAX_PIXELS // 10**6}")


def test_json_that_would_fill_the_memory(served: Served) -> None:
    body = b'{"labels": [' + b"{}," * 1_000_000 + b"{}]}"
    response = served.client.post("/segment", content=body, headers={"content-type": "application/json"})
    assert_in_words(response, 400, "more than")


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


def test_twenty_at_once_are_all_served(served: Served) -> None:
    expected = Segmenter(small_model()).segment(PHOTO, LABELS).labels
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: served.ask(photo=text(png(PHOTO)), labels=LABELS), range(20)))
    for answer in answers:
        np.testing.assert_array_equal(unpacked(answer.json()["mask_png"]), expected)


def test_a_full_queue_is_told_to_wait(served: Served) -> None:
    """More than the queue holds: as many are served, the others are told when to retry; none is lost."""
    over = 3
    with ThreadPoolExecutor(QUEUE_SIZE + over) as pool:
        with served.service.lock:  # nobody is served until all who find no slot have been told so
            asked = [
                pool.submit(served.ask, photo=text(png(PHOTO)), labels=LABELS) for _ in range(QUEUE_SIZE + over - 1)
            ] + [pool.submit(served.send, png(PHOTO))]
            deadline = time.monotonic() + 60
            while sum(a.done() for a in asked) < over:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        answers = [a.result() for a in asked]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == over
    for answer in refused:
        assert_in_words(answer, 503, "waiting")
        assert int(answer.headers["retry-after"]) > 0
    assert all(answer.status_code == 200 for answer in answers if answer not in refused)
    assert served.ask(photo=text(png(PHOTO)), labels=LABELS).status_code == 200


# A photo that is sent once


def test_a_photo_is_encoded_once_and_asked_about_by_its_hash(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(PHOTO[:60])
    sent = served.send(data, preview="true").json()
    assert (sent["width"], sent["height"]) == (150, 60)
    assert Image.open(io.BytesIO(base64.b64decode(sent["preview_jpeg"]))).size == (150, 60)
    for _ in range(600):  # the other protocols follow while nobody waits
        if served.service.encodings.get((sent["photo_sha256"], "small", "paper")):
            break
        time.sleep(0.05)
    monkeypatch.setattr(Segmenter, "_encode", lambda *_: pytest.fail("it was encoded again"))
    for asked, protocol, labels in [({}, "open", LABELS), ({"protocol": "paper"}, "paper", ["dog"])]:
        answer = served.ask(photo_sha256=sent["photo_sha256"], labels=labels, scores=True, **asked).json()
        monkeypatch.undo()
        expected = Segmenter(small_model(), protocol).segment(PHOTO[:60], labels)
        np.testing.assert_array_equal(unpacked(answer["mask_png"]), expected.labels)
        np.testing.assert_allclose(unpacked(answer["scores_png"]) / 255, expected.scores, atol=0.5 / 255 + 1e-6)
        monkeypatch.setattr(Segmenter, "_encode", lambda *_: pytest.fail("it was encoded again"))


def test_another_model_needs_no_second_sending(served: Served) -> None:
    photo = served.send(png(PHOTO[:50])).json()["photo_sha256"]
    answer = served.ask(photo_sha256=photo, labels=LABELS, model="other", protocol="paper").json()
    expected = Segmenter(small_model(), "paper").segment(PHOTO[:50], LABELS)
    np.testing.assert_array_equal(unpacked(answer["mask_png"]), expected.labels)


def test_a_photo_that_was_forgotten(served: Served) -> None:
    assert_in_words(served.ask(photo_sha256="0" * 64, labels=LABELS), 410, "send it again")


@pytest.mark.parametrize(
    ("data", "asked", "words"),
    [
        (b"", {}, "empty"),
        (b"no image", {}, "not an image"),
        (png(PHOTO), {"model": "../mini"}, "choose one of small, other"),
        (png(PHOTO), {"protocol": "groupvit"}, "choose one of open, paper"),
    ],
)
def test_a_photo_that_cannot_be_sent(served: Served, data: bytes, asked: dict[str, str], words: str) -> None:
    assert_in_words(served.send(data, **asked), 400, words)


# What is told of the server


def test_health(served: Served) -> None:
    health = served.client.get("/health").json()
    assert health["status"] == "UP" and health["models"] == ["small", "other"] and health["waiting"] == 0


def test_the_description_names_every_field_and_path(served: Served) -> None:
    about = served.client.get("/openapi.json").json()
    query = about["paths"]["/segment"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(query["properties"]) == set(FIELDS)
    answer = about["paths"]["/segment"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    told = served.ask(photo=text(png(PHOTO)), labels=LABELS, coco=True, scores=True).json()
    assert set(answer["properties"]) == set(told)
    found = answer["properties"]["found"]["items"]["properties"]
    assert all(set(one) == set(found) for one in told["found"])
    added = about["paths"]["/photos"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(added["properties"]) == set(served.send(png(PHOTO), preview="true").json())
    health = about["paths"]["/health"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(health["properties"]) == set(served.client.get("/health").json())


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
        (("--port", "0", "--label-studio", "localhost:8080"), "http://localhost:8080"),
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
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert main(["web", "--port", "0"]) == 2
    assert 'pip install "segclip[web]"' in capsys.readouterr().err


def test_a_slot_is_given_back_whatever_happens() -> None:
    service = Service({}, queue_size=1)
    for _ in range(3):
        with pytest.raises(KeyError), service.slot():
            raise KeyError
