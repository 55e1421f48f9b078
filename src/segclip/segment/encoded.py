"""A photo as the model saw it, before any label."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxtyping import UInt8
from numpy import ndarray

from segclip.model.outputs import ImageOutput
from segclip.segment.windows import Windows

T = TypeVar("T")
# Photos of one call differ in size: their axes have no common names.
AnyPhoto = UInt8[ndarray, "_ _ 3"]


@dataclass(frozen=True)
class EncodedPhoto:
    """A photo and what the model made of it, before any label: `Segmenter.label` takes it as often as one likes.

    Attributes:
        photo: RGB uint8 (H,W,3), 0-255.
        views: the photo in windows, at each scale of the protocol.
        outputs: of the model, for each view.
    """

    photo: AnyPhoto
    views: list[Windows]
    outputs: list[ImageOutput]
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photo."""
        return self.photo.shape[0], self.photo.shape[1]

    def once(self, compute: Callable[[AnyPhoto], T]) -> T:
        """What `compute` makes of the photo: computed when first asked for, then kept for the next labels."""
        if compute not in self._known:
            self._known[compute] = compute(self.photo)
        return self._known[compute]
