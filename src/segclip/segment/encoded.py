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

    def single(self, *, patches: bool) -> tuple[Windows, ImageOutput]:
        """The windows and outputs of a protocol with one scale.

        Raises ValueError for a photo that was encoded at several, or with `patches` where it was not asked for, or
        without.
        """
        if len(self.windows) != 1 or (self.outputs[0].features is not None) != patches:
            raise ValueError("a photo that was encoded for another protocol; encode it with this one")
        return self.windows[0], self.outputs[0]

    def once(self, compute: Callable[["EncodedPhoto"], T]) -> T:
        """`compute(self)`, computed when first needed, then kept for the next labels."""
        if compute not in self._cache:
            self._cache[compute] = compute(self)
        return self._cache[compute]
