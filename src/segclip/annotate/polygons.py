"""The connected components of a label map: tiny ones cleaned away, the others outlined as polygons.

Axes: H W pixels.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.spatial import KDTree
from skimage.measure import label as number_components

Ring = Float[ndarray, "_ 2"]  # corners x, y in pixels; (0, 0) is the photo's upper left corner, (W, H) its lower right


def clean_labels(labels: Int[ndarray, "H W"], least: float | int) -> Int[ndarray, "H W"]:
    """Give every connected component under `least` pixels to the neighbour it shares the longest border with.

    Components of labels and of the background alike: small islands vanish, and small holes are filled.
    """
    while True:
        components = np.asarray(number_components(labels, background=-1, connectivity=1)) - 1
        areas = np.bincount(components.ravel())
        tiny = np.flatnonzero(areas < least)
        if not len(tiny) or len(areas) == 1:
            return labels
        own = np.zeros(len(areas), labels.dtype)
        own[components] = labels
        borders = _borders(components, tiny)
        for component in tiny[np.argsort(areas[tiny], kind="stable")]:
            neighbours, lengths = borders[component]
            # The neighbour of the last of a round changes no more, so each round leaves fewer components, and they end.
            shared = np.bincount(own[neighbours], lengths, minlength=int(own[component]) + 1)
            shared[own[component]] = -1
            own[component] = shared.argmax()
        labels = own[components]


def _borders(components: Int[ndarray, "H W"], of: Int[ndarray, "_"]) -> dict[int, tuple[ndarray, ndarray]]:
    """For each of some components: its neighbours, and how many pixel edges it shares with each."""
    sides = [(components[:, 1:], components[:, :-1]), (components[1:], components[:-1])]
    a, b = (np.concatenate([side[i][side[0] != side[1]] for side in sides]) for i in (0, 1))
    a, b = np.concatenate([a, b]), np.concatenate([b, a])
    keep = np.isin(a, of)
    pairs, lengths = np.unique(np.stack([a[keep], b[keep]]), axis=1, return_counts=True)
    starts = np.searchsorted(pairs[0], of), np.searchsorted(pairs[0], of, side="right")
    return {int(one): (pairs[1, i:j], lengths[i:j]) for one, i, j in zip(of, *starts, strict=True)}


def outlines(mask: Bool[ndarray, "H W"], tolerance: float = 0.0) -> list[Ring]:
    """A polygon for each connected component of a mask (pixels that touch at a corner are connected).

    A polygon cannot have holes: each hole is joined to the outline by a cut of no width, which is walked there and
    back. Whoever fills the polygon, by the even-odd or the non-zero rule, gets the hole.

    Args:
        mask: what to outline.
        tolerance: in pixels; how far a polygon may lie from the pixels' edges. 0: along them exactly.
    """
    if not mask.any():
        return []
    # In an image of twice the size, the outermost pixels of a component tell on which side of them its edge lies.
    twice = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, tree = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [_ring(contour.reshape(-1, 2), tolerance) for contour in contours]
    parents = tree.reshape(-1, 4)[:, 3]
    holes: dict[int, list[Ring]] = {}
    for ring, parent in zip(rings, parents, strict=True):
        if parent >= 0:
            holes.setdefault(int(parent), []).append(ring)
    return [
        _join(ring, holes.get(i, [])) for i, (ring, parent) in enumerate(zip(rings, parents, strict=True)) if parent < 0
    ]


def _ring(contour: Int[ndarray, "_ 2"], tolerance: float) -> Ring:
    """The pixel edges that a contour of the image of twice the size stands for, with no more corners than needed."""
    corners = (contour + 1) // 2
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
    before, after = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
    exact = corners[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]  # it turns here
    simple = cv2.approxPolyDP(exact.astype(np.int32), tolerance, True).reshape(-1, 2) if tolerance else exact
    # Something thinner than the tolerance would fall together.
    return (simple if len(simple) > 2 else exact).astype(np.float64)


def _join(ring: Ring, holes: list[Ring]) -> Ring:
    """An outline with its holes cut into it, the nearest corners joined."""
    for hole in sorted(holes, key=lambda h: h[:, 0].min()):
        distances, nearest = map(np.asarray, KDTree(hole).query(ring))
        i = int(distances.argmin())
        j = int(nearest[i])
        ring = np.concatenate([ring[: i + 1], np.roll(hole, -j, axis=0), hole[j : j + 1], ring[i:]])
    return ring
