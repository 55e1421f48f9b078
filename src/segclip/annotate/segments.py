"""What annotation files say of photos: a segment is what one label covers in a photo."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Segment:
    """What one label, or the background (index 0), covers in a photo.

    Attributes:
        index: its value in the label map.
        label: its name.
        area: in pixels.
        share: of the photo's area, 0-1.
        score: mean score of its pixels, 0-1.
        box: left, top, right, bottom in pixels; right and bottom are the first beyond it.
        counts: COCO's compressed run lengths; empty for the background.
        polygons: a list x, y, x, y ... in pixels for each connected component; none for the background.
    """

    index: int
    label: str
    area: int
    share: float
    score: float
    box: tuple[int, int, int, int]
    counts: str
    polygons: list[list[float]]

    @property
    def doubt(self) -> float:
        """What its score lacks to 1."""
        return round(1 - self.score, 4)


@dataclass(frozen=True)
class PhotoSegments:
    """What was found in a photo.

    Attributes:
        photo: its file name.
        stem: of its own files: masks/STEM.png and others.
        width, height: of the upright photo, in pixels.
        segments: the largest first, the background among them.
    """

    photo: str
    stem: str
    width: int
    height: int
    segments: tuple[Segment, ...]

    def foreground(self) -> list[Segment]:
        """The segments without the background."""
        return [segment for segment in self.segments if segment.index]

    def record(self) -> dict[str, Any]:
        """For JSON; `from_record` makes it whole again."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "PhotoSegments":
        """From what `record` gave."""
        segments = tuple(Segment(**{**one, "box": tuple(one["box"])}) for one in record["segments"])
        return cls(**{**record, "segments": segments})


@dataclass(frozen=True)
class Collection:
    """All that was found, as often as one asks: a stream of photos, and what is common to them.

    Attributes:
        folder: the name of the photos' folder.
        names: the labels.
        info: what was done, for the files to say.
        photos: gives the photos from the first, in the order of their names.
    """

    folder: str
    names: tuple[str, ...]
    info: dict[str, Any]
    photos: Callable[[], Iterator[PhotoSegments]]
