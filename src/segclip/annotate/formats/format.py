"""What an annotation format is, and what several of them need."""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from PIL import Image

from segclip.annotate.segments import Collection, PhotoSegments
from segclip.data.own_pictures import save_own_png
from segclip.segment import coco
from segclip.segment.result import Segmentation
from segclip.visualize import palette


@dataclass(frozen=True)
class Format:
    """The files of an annotation format. Names are those in the output folder.

    Attributes:
        files: those about all photos: what writes each, into a text file (UTF-8). They are written at the end, from
            streams of photos, so that memory stays flat.
        photo_files: those of each photo, {} standing for its stem: what makes the bytes of each, from the photo's
            cleaned segmentation and what is said of it. They are written as soon as the photo is segmented.
        photo_link: where the format wants the photo itself, {} standing for its stem and suffix: a link to it.
        link_suffixes: those of the photos that the format's readers take, in small letters; of others a PNG is made.
            None: of all.
    """

    files: Mapping[str, Callable[[IO[str], Collection], None]] = field(default_factory=dict)
    photo_files: Mapping[str, Callable[[Segmentation, PhotoSegments], bytes]] = field(default_factory=dict)
    photo_link: str | None = None
    link_suffixes: tuple[str, ...] | None = None

    def links(self, suffix: str) -> bool:
        """Whether a photo with this suffix is linked as it is."""
        return self.photo_link is not None and (self.link_suffixes is None or suffix.lower() in self.link_suffixes)

    def photo_name(self, stem: str, suffix: str) -> str | None:
        """Where the photo itself is, a link to it or a PNG of it; None for a format that does not want it."""
        return self.photo_link and self.photo_link.format(stem + (suffix if self.links(suffix) else ".png"))


def write_object(file: IO[str], first: dict[str, Any], lists: dict[str, Iterable[Any]]) -> None:
    """A JSON object whose lists are streams."""
    file.write(to_json(first)[:-1])
    for name, items in lists.items():
        file.write(f",\n{to_json(name)}: ")
        write_list(file, items)
    file.write("}\n")


def write_list(file: IO[str], items: Iterable[Any]) -> None:
    """A JSON list that is a stream, an item a line."""
    file.write("[")
    for number, item in enumerate(items):
        file.write(("," if number else "") + "\n" + to_json(item))
    file.write("]")


def to_json(value: object) -> str:
    """JSON in a line, letters of all scripts as they are."""
    return json.dumps(value, ensure_ascii=False)


def coco_images(found: Collection) -> Iterator[dict[str, Any]]:
    """The entries of COCO's "images"."""
    for number, photo in enumerate(found.photos(), 1):
        yield coco.image(number, photo.photo, (photo.height, photo.width))


def label_colours(names: Sequence[str]) -> list[str]:
    """A colour for each label, as #rrggbb; those of its overlays."""
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette(len(names) + 1)[1:]]


def encode_png(image: Image.Image) -> bytes:
    """A PNG file that is known as this package's own."""
    buffer = io.BytesIO()
    save_own_png(image, buffer)
    return buffer.getvalue()
