"""A machine learning backend for Label Studio, which asks for predictions of tasks: brush strokes or polygons.

The protocol is that of label-studio-ml-backend (https://github.com/HumanSignal/label-studio-ml-backend).

Axes: H W pixels.
"""

import json
import logging
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from segclip import __version__
from segclip.annotate.annotator import Drawing, annotate
from segclip.annotate.formats.label_studio import least_score, polygon_regions, region_frame
from segclip.annotate.segments import PhotoSegments
from segclip.segment.result import Segmentation
from segclip.web.api import decode_base64
from segclip.web.service import MAX_BYTES, Service

VERSION = f"segclip-{__version__}"
MAX_TASKS = 100  # of a request
TIMEOUT = 30  # seconds for a photo to arrive
SHAPES = ("BrushLabels", "PolygonLabels")  # kinds of labels that are answered, the first in an interface
SIZES = (4, 8, 12, 16)  # bits of a run's length, from which each run takes the smallest that will do

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interface:
    """What a labelling configuration asks for.

    Attributes:
        shape: one of SHAPES.
        from_name: of the labels.
        to_name: of the image.
        key: of the task's data, where the image is.
        labels: what the model is asked for.
        aliases: what Label Studio calls each of them.
    """

    shape: str
    from_name: str
    to_name: str
    key: str
    labels: tuple[str, ...]
    aliases: tuple[str, ...]


class Studio:
    """The Label Studio whose photos may be fetched, and no other server's.

    Args:
        url: its address, such as http://localhost:8080; "": none.
        key: of an account there: an access token, of either kind.

    Raises:
        ValueError: no address of a server.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = url.rstrip("/") + "/", key
        self._origin = urlsplit(url)[:2]
        if url and (self._origin[0] not in ("http", "https") or not self._origin[1]):
            raise ValueError(f"label-studio {url[:80]!r}; give an address such as http://localhost:8080")
        self._open = urllib.request.build_opener(_NoRedirect).open

    def read(self, photo: object) -> bytes:
        """The bytes of a task's photo: a data URI, or an address at this Label Studio.

        Raises:
            ValueError: any other address, or a photo that cannot be fetched.
        """
        if not isinstance(photo, str):
            raise ValueError("the task has no image; its data need an address, as the labelling configuration names it")
        if photo.startswith("data:"):
            about, _, content = photo.partition(",")
            return decode_base64(content) if about.endswith(";base64") else unquote_to_bytes(content)
        if not self._origin[1]:
            raise ValueError("photos are fetched from Label Studio only if segclip web is told --label-studio ADDRESS")
        try:
            address = urljoin(self._url, photo)
            origin = urlsplit(address)[:2]
        except ValueError:
            raise ValueError(f"image {photo[:80]!r} is no address") from None
        if origin != self._origin:
            raise ValueError(
                f"image {photo[:80]!r} is not at {self._url}, the only server that is asked; import the photo there"
            )
        return self._fetch(address)

    def _fetch(self, address: str) -> bytes:
        request = urllib.request.Request(address, headers=self._authorization())
        try:
            with self._open(request, timeout=TIMEOUT) as response:
                return response.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            code = getattr(error, "code", None)
            why = {
                301: "it is kept elsewhere", 302: "it is kept elsewhere", 401: "set LABEL_STUDIO_API_KEY",
                403: "set LABEL_STUDIO_API_KEY", 404: "there is none",
            }.get(code or 0, getattr(error, "reason", None) or str(error))  # fmt: skip
            raise ValueError(f"the photo cannot be fetched from Label Studio ({code or 'no answer'}): {why}") from error

    def _authorization(self) -> dict[str, str]:
        """A key of the older kind is sent as it is; of the newer (a JSON web token) one for minutes is asked for."""
        if not self._key:
            return {}
        if self._key.count(".") != 2:
            return {"Authorization": f"Token {self._key}"}
        request = urllib.request.Request(
            urljoin(self._url, "api/token/refresh"),
            json.dumps({"refresh": self._key}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with self._open(request, timeout=TIMEOUT) as response:
                return {"Authorization": f"Bearer {json.load(response)['access']}"}
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"Label Studio does not take LABEL_STUDIO_API_KEY ({error})") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: it might lead to another server, with the key."""

    def redirect_request(self, *args: Any) -> None:
        return None


class Backend:
    """Answers Label Studio's requests with the first model, under the open protocol.

    Args:
        service: of the models.
        studio: whose photos may be fetched.
    """

    def __init__(self, service: Service, studio: Studio) -> None:
        self._service, self._studio = service, studio

    def setup(self, fields: dict[str, Any]) -> dict[str, Any]:
        """`POST /setup`: a project was connected. Raises ValueError for an interface without labels for masks."""
        if fields.get("schema"):
            parse_interface(fields["schema"])
        return {"model_version": VERSION}

    def versions(self) -> dict[str, Any]:
        """`GET /versions`."""
        return {"versions": [VERSION], "message": "segclip answers with the model that it was started with"}

    def train(self, fields: dict[str, Any]) -> dict[str, Any]:
        """`POST /train` and `/webhook`: nothing is learned from annotations."""
        return {}

    def predict(self, fields: dict[str, Any]) -> dict[str, Any]:
        """`POST /predict`: a prediction for each task.

        Raises:
            ValueError: no labels for masks in the configuration, or no photo of any task can be read.
        """
        interface = parse_interface(fields.get("label_config"))
        tasks = fields.get("tasks")
        if not isinstance(tasks, list) or not tasks or len(tasks) > MAX_TASKS:
            raise ValueError(f"tasks: give a list of 1 to {MAX_TASKS}")
        results, failures = [], []
        for task in tasks:
            try:
                results.append(self._predict(task, interface))
            except ValueError as error:  # one photo that is broken does not stop the others
                failures.append(error)
                log.warning("task %s: %s", task.get("id") if isinstance(task, dict) else "?", error)
                results.append({"result": [], "score": 0.0, "model_version": VERSION})
        if len(failures) == len(tasks):
            raise failures[0]
        return {"results": results, "model_version": VERSION}

    def _predict(self, task: object, interface: Interface) -> dict[str, Any]:
        data = task.get("data") if isinstance(task, dict) else None
        photo = self._studio.read(data.get(interface.key) if isinstance(data, dict) else None)
        query = self._service.query(list(interface.labels), None, None, "auto")
        with self._service.slot(), self._service.lock:
            known, encoded = self._service.add(photo, query.model, query.protocol)
            result = self._service.label(known, encoded, query)
        named = replace(result, names=interface.aliases)
        found = annotate(named, "photo", "photo", Drawing(), {}).segments
        make = brush_regions if interface.shape == "BrushLabels" else _polygons
        return {
            "result": make(named, found, interface),
            "score": least_score(found),
            "model_version": VERSION,
        }


def _polygons(result: Segmentation, found: PhotoSegments, interface: Interface) -> list[dict[str, Any]]:
    return polygon_regions(found, interface.from_name, interface.to_name)


def brush_regions(result: Segmentation, found: PhotoSegments, interface: Interface) -> list[dict[str, Any]]:
    """A region for each label found, its mask as Label Studio's run lengths."""
    return [
        {
            "id": f"piece-{segment.index}",
            **region_frame(found, interface.from_name, interface.to_name, "brushlabels"),
            "value": {
                "format": "rle",
                "rle": encode_brush(result.labels == segment.index),
                "brushlabels": [segment.label],
            },
            "score": segment.score,
        }
        for segment in found.foreground()
    ]


def parse_interface(config: object) -> Interface:
    """The first labels for masks of a labelling configuration, and the image that they are for.

    Raises:
        ValueError: there are none, or it is no XML.
    """
    if not isinstance(config, str) or "<!" in config.replace("<!--", ""):  # entities may grow without end
        raise ValueError("label_config: give the labelling configuration, as XML without a DOCTYPE")
    try:
        elements = list(ElementTree.fromstring(config).iter())
    except ElementTree.ParseError as error:
        raise ValueError(f"label_config is not XML: {error}") from None
    images = {element.get("name"): element.get("value", "") for element in elements if element.tag == "Image"}
    for element in elements:
        name, to_name = element.get("name"), element.get("toName")
        labels = [one for one in element.iter("Label") if one.get("value")]
        if element.tag in SHAPES and name and to_name in images and labels and images[to_name].startswith("$"):
            texts = tuple(one.attrib["value"] for one in labels)
            aliases = tuple(one.get("alias") or one.attrib["value"] for one in labels)
            return Interface(element.tag, name, str(to_name), images[to_name][1:], texts, aliases)
    raise ValueError(
        f"the labelling configuration has no {' or '.join(SHAPES)} with labels, for an Image; add one of them"
    )


def encode_brush(mask: Bool[ndarray, "H W"]) -> list[int]:
    """A mask as the bytes of Label Studio's run lengths, which its converter's `decode_rle` reads.

    They run over the bytes of an RGBA image, row by row, 255 where the mask is. A stream of bits, the highest first: 32
    for the number of bytes; 5 for the bits of a value less one; four times 4 for SIZES less one; then for each run a
    one, 2 for which of SIZES, the run's length less one in so many, and the value. Zeros fill the last byte.
    """
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = 4 * np.diff(np.append(starts, flat.size))
    longest = 2 ** SIZES[-1]
    bits = [f"{4 * flat.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for value, length in zip(flat[starts].tolist(), lengths.tolist(), strict=True):
        for done in range(0, length, longest):
            less = min(longest, length - done) - 1
            which = next(i for i, size in enumerate(SIZES) if less < 2**size)
            bits.append(f"1{which:02b}{less:0{SIZES[which]}b}{255 * value:08b}")
    stream = np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")
    return np.packbits(stream).tolist()
