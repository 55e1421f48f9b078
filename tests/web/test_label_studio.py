"""The Label Studio backend, by the protocol: its configurations, tasks and addresses, and what it answers."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from helpers.small_model import small_model
from helpers.web_server import Served, assert_in_words, png, serve, text

from segclip.annotate.polygons import clean_labels
from segclip.segment.protocols.open import OpenProtocol
from segclip.segment.segmenter import Segmenter
from segclip.web.label_studio import Studio, encode_brush, parse_interface
from segclip.web.service import PROTOCOLS

PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150
BRUSH = """<View><Image name="img" value="$photo"/>
<BrushLabels name="tag" toName="img"><Label value="cup"/><Label value="potted plant" alias="pp"/></BrushLabels>
</View>"""
POLYGONS = BRUSH.replace("BrushLabels", "PolygonLabels")
KEY = "secret-key"


class Host(http.server.BaseHTTPRequestHandler):
    """A Label Studio that has a photo, for who has the key; and an address that leads elsewhere."""

    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        allowed = self.headers.get("Authorization") in (f"Token {KEY}", "Bearer short-lived")
        place = {"/data/upload/1/a%20cup.png": 200, "/moved": 302}.get(self.path, 404)
        self.send_response(place if allowed else 401)
        if place == 302:
            self.send_header("Location", "/data/upload/1/a%20cup.png")
        self.end_headers()
        self.wfile.write(png(PHOTO) if allowed and place == 200 else b"")

    def do_POST(self) -> None:
        type(self).asked.append(self.path)
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = self.path == "/api/token/refresh" and given == {"refresh": "a.b.c"}
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"access": "short-lived"}).encode())

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def hosted() -> Iterator[tuple[str, list[str]]]:
    Host.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", Host.asked
        server.shutdown()


@pytest.fixture(scope="module")
def host() -> Iterator[tuple[str, list[str]]]:
    with hosted() as host:
        yield host


@pytest.fixture(scope="module")
def served(host: tuple[str, list[str]]) -> Iterator[Served]:
    with serve({"small": segmenters()}, Studio(host[0], KEY)) as served:
        yield served


def segmenters() -> dict[Any, Segmenter]:
    """Such as find the labels, although the model knows nothing: hardly any is absent."""
    return {protocol: Segmenter(small_model(), OpenProtocol(absent=0.01, behind=100.0)) for protocol in PROTOCOLS}


def data_uri(photo: np.ndarray = PHOTO) -> str:
    return f"data:image/png;base64,{text(png(photo))}"


def predict(served: Served, config: str, *photos: Any) -> Any:
    tasks = [{"id": number, "data": {"photo": photo}} for number, photo in enumerate(photos)]
    return served.client.post("/predict", json={"tasks": tasks, "label_config": config, "project": "1.2", "params": {}})


def expected_labels() -> np.ndarray:
    """What was found, cleaned as every annotation is."""
    result = segmenters()["open"].segment(PHOTO, ["cup", "potted plant"])
    return clean_labels(result.labels, 0.0005 * result.labels.size)


def decode_brush(rle: list[int]) -> np.ndarray:
    """The bytes of the image, read bit by bit as label-studio-converter's documentation has it."""
    bits = np.unpackbits(np.array(rle, np.uint8))
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int("".join(map(str, bits[at - count : at])), 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        run, length = read(1), 0
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if run else [read(word) for _ in range(length)]
    return np.array(values, np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (37, 53), (300, 400)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_brush_strokes_are_read_back(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(0).random(shape) < share
    pixels = decode_brush(encode_brush(mask)).reshape(*shape, 4)
    np.testing.assert_array_equal(pixels, np.repeat(255 * mask[..., None], 4, axis=2))


def test_brush_strokes_of_a_task(served: Served) -> None:
    answer = predict(served, BRUSH, data_uri()).json()
    (prediction,) = answer["results"]
    assert prediction["model_version"] == answer["model_version"] != ""
    labels = expected_labels()
    assert len(prediction["result"]) == len(set(np.unique(labels)) - {0}) > 0
    for region in prediction["result"]:
        assert region["from_name"] == "tag" and region["to_name"] == "img" and region["type"] == "brushlabels"
        assert (region["original_width"], region["original_height"]) == (150, 100)
        assert 0 < prediction["score"] <= region["score"] <= 1
        index = 1 + ["cup", "pp"].index(region["value"]["brushlabels"][0])  # an alias is what it calls the label
        mask = decode_brush(region["value"]["rle"]).reshape(100, 150, 4)[..., 3] > 0
        np.testing.assert_array_equal(mask, labels == index)


def test_polygons_of_a_task(served: Served) -> None:
    (prediction,) = predict(served, POLYGONS, data_uri()).json()["results"]
    labels = expected_labels()
    drawn = np.zeros((100, 150), np.int32)
    for region in prediction["result"]:
        assert region["type"] == "polygonlabels"
        points = np.array(region["value"]["points"]) * [1.5, 1.0]
        index = 1 + ["cup", "pp"].index(region["value"]["polygonlabels"][0])
        cv2.fillPoly(drawn, [points.round().astype(np.int32)], index)
    assert (drawn == labels).mean() > 0.9


def test_photos_of_the_label_studio_that_was_named(served: Served, host: tuple[str, list[str]]) -> None:
    known = predict(served, BRUSH, data_uri()).json()["results"][0]["result"]
    for photo in ("/data/upload/1/a%20cup.png", f"{host[0]}/data/upload/1/a%20cup.png"):
        assert predict(served, BRUSH, photo).json()["results"][0]["result"] == known


@pytest.mark.parametrize(
    ("photo", "why"),
    [
        ("http://127.0.0.1:1/cat.png", "is not at"),
        ("http://169.254.169.254/latest/meta-data", "is not at"),
        ("//evil.example/cat.png", "is not at"),
        ("HOST@evil.example/cat.png", "is not at"),
        ("HOST.evil.example/cat.png", "is not at"),
        ("https://HOST/cat.png", "is not at"),
        ("file:///etc/passwd", "is not at"),
        ("ftp://127.0.0.1/cat.png", "is not at"),
        ("http://[::1", "is no address"),
        ("HOST/moved", "it is kept elsewhere"),
        ("/nothing", "(404)"),
        ("data:image/png;base64,*", "base64"),
        ("data:image/png,nothing", "not an image"),
        ("data:", "empty"),
        ("", "not an image"),
        (None, "no image"),
        (5, "no image"),
        ({"path": "/etc/passwd"}, "no image"),
    ],
)
def test_photos_from_elsewhere_are_not_fetched(
    served: Served, host: tuple[str, list[str]], photo: Any, why: str
) -> None:
    if isinstance(photo, str):
        photo = photo.replace("https://HOST", host[0].replace("http", "https")).replace("HOST", host[0])
    before = len(host[1])
    response = predict(served, BRUSH, photo)
    assert response.status_code == 400
    if photo != "":  # the front page of Label Studio itself
        assert why in response.json()["error"]
    asked = host[1][before:]
    assert len(asked) <= 1 and "/data/upload/1/a%20cup.png" not in asked


def test_a_broken_photo_stops_no_other(served: Served) -> None:
    results = predict(served, BRUSH, "/nothing", data_uri()).json()["results"]
    assert results[0]["result"] == [] and results[1]["result"]


def test_no_host_is_asked_if_none_was_named() -> None:
    with serve({"small": segmenters()}) as served:
        assert_in_words(predict(served, BRUSH, "http://127.0.0.1:8080/cat.png"), 400, "--label-studio")
        assert predict(served, BRUSH, data_uri()).status_code == 200


def test_keys_of_both_kinds(host: tuple[str, list[str]]) -> None:
    for key in (KEY, "a.b.c"):  # an old token; a JSON web token, which is exchanged
        assert Studio(host[0], key).read("/data/upload/1/a%20cup.png") == png(PHOTO)
    for key, why in (("", "LABEL_STUDIO_API_KEY"), ("wrong", "LABEL_STUDIO_API_KEY"), ("x.y.z", "does not take")):
        with pytest.raises(ValueError, match=why):
            Studio(host[0], key).read("/data/upload/1/a%20cup.png")


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="http://localhost:8080"):
        Studio(url, "")


# Configurations


def test_the_first_labels_for_masks() -> None:
    config = f"""<View><!-- Labels --><Choices name="c" toName="img"><Choice value="x"/></Choices>
    <RectangleLabels name="r" toName="img"><Label value="box"/></RectangleLabels>{POLYGONS[6:-7]}</View>"""
    interface = parse_interface(config)
    assert (interface.shape, interface.from_name, interface.to_name, interface.key) == (
        "PolygonLabels",
        "tag",
        "img",
        "photo",
    )
    assert interface.labels == ("cup", "potted plant") and interface.aliases == ("cup", "pp")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (None, "give the labelling configuration"),
        ("<View>", "not XML"),
        ("<View/>", "BrushLabels or PolygonLabels"),
        (BRUSH.replace('toName="img"', 'toName="text"'), "BrushLabels or PolygonLabels"),
        (BRUSH.replace("Label value", "Label title"), "BrushLabels or PolygonLabels"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + BRUSH, "without a DOCTYPE"),
    ],
)
def test_a_configuration_without_labels(served: Served, config: Any, why: str) -> None:
    assert_in_words(predict(served, config, data_uri()), 400, why)


def test_tasks_that_are_none(served: Served) -> None:
    for tasks in (None, [], {}, [{}] * 101):
        response = served.client.post("/predict", json={"tasks": tasks, "label_config": BRUSH})
        assert_in_words(response, 400, "tasks")
    for task in (5, {}, {"data": 5}, {"data": []}):
        response = served.client.post("/predict", json={"tasks": [task], "label_config": BRUSH})
        assert_in_words(response, 400, "no image")


# The other paths


def test_setup_and_versions(served: Served) -> None:
    setup = {
        "project": "1.2",
        "schema": BRUSH,
        "hostname": "http://evil.example",
        "access_token": "x",
        "extra_params": None,
    }
    version = served.client.post("/setup", json=setup).json()["model_version"]
    assert served.client.get("/versions").json()["versions"] == [version]
    assert served.client.get("/health").json()["status"] == "UP"
    assert_in_words(served.client.post("/setup", json={"schema": "<View/>"}), 400, "BrushLabels")
    for path in ("/train", "/webhook"):
        assert served.client.post(path, json={"action": "ANNOTATION_CREATED"}).json() == {}
