"""Photos of noise, and as the towers of this package take them, for tests that have no tower at hand."""

from functools import partial

import numpy as np
from jaxtyping import UInt8

from segclip.data.normalise import normalise as by_statistics
from segclip.model.towers.clip import DEVIATION, MEAN

normalise = partial(by_statistics, mean=MEAN, deviation=DEVIATION)


def random_photo(height: int, width: int, seed: int = 0) -> UInt8[np.ndarray, "H W 3"]:
    """Noise, RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
