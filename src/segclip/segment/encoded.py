"""A photo as the model encoded it, before any label."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxtyping import UInt8
from numpy import ndarray

from segclip.model.outputs import ImageOutput
from segclip.segment.windows import Windows

T = TypeVar("T")
# Photos in one call differ in size, so their axes have no names.
AnyPhoto = UInt8[ndarray, "_ _ 3"]


@dataclass(frozen=True)
class EncodedPhoto:
    """An encoded photo, before any label: give it to `Segmenter.label` as often as you like.

    Attributes:
        photo: RGB uint8 (H,W,3), 0-255.
        windows: the photo cut into windows, at each scale of the protocol.
        outputs: of the model, at each scale.
    """

    photo: AnyPhoto
    windows: list[Windows]
    outputs: list[ImageOutput]
    _cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photo."""
        return self.photo.shape[0], self.photo.shape[1]

    def once(self, compute: Callable[[AnyPhoto], T]) -> T:
        """`compute(photo)`, computed when first needed, then kept for the next labels."""
        if compute not in self._cache:
            self._cache[compute] = compute(self.photo)
        return self._cache[compute]
