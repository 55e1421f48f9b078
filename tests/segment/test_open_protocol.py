"""The open protocol's promises: edges, the background, and which contrast words compete."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from segclip.model.outputs import ImageOutput
from segclip.segment.background import Background
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.protocols.open import OpenProtocol, _region_tables
from segclip.segment.protocols.protocol import EmbeddedLabels
from segclip.segment.windows import Windows
from segclip.text.contrast_words import CONTRAST_WORDS


def two_halves(side: int = 64, edge: int = 30) -> tuple[np.ndarray, ImageOutput]:
    """A photo, red to the left of `edge` and blue to the right, and what an ideal model makes of it: patches of 16."""
    photo = np.zeros((side, side, 3), np.uint8)
    photo[:, :edge, 0], photo[:, edge:, 2] = 220, 220
    left = torch.tensor([(min(max(edge - x, 0), 16)) / 16 for x in range(0, side, 16)]).repeat(side // 16)
    soft = torch.stack([left, 1 - left])[None]
    regions = torch.eye(4)[None, :2]
    return photo, ImageOutput(regions.amax(dim=1), regions, soft.round(), soft)


def open_labels(
    photo: np.ndarray, output: ImageOutput, labels: torch.Tensor, contrast: torch.Tensor, background: Background
) -> np.ndarray:
    encoded = EncodedPhoto(photo, [Windows.cut(photo, 64, 32)], [output])
    found = OpenProtocol().label_photo(encoded, EmbeddedLabels(labels, contrast), background, "auto", scale=10.0)
    assert found.labels.shape == found.scores.shape == photo.shape[:2]
    assert found.scores.min() >= 0 and found.scores.max() <= 1
    return found.labels.numpy()


RED, BLUE, OTHER = torch.eye(4)[:3].split(1)
NOTHING = torch.zeros(0, 4)


@pytest.mark.parametrize("edge", [25, 27, 37])
def test_edges_follow_the_photo_not_the_patches(edge: int) -> None:
    """The assignment's edge lies on a patch border, 5 to 7 pixels off; the result's at the photo's, which is soft."""
    photo, output = two_halves(edge=edge)
    patches = replace(output, soft=output.soft.round())
    found = open_labels(photo, patches, torch.cat([RED, BLUE]), NOTHING, None)
    expected = np.broadcast_to(np.where(np.arange(64) < edge, 1, 2), (64, 64))
    wrong = (found != expected).sum(axis=1).max()
    assert wrong <= 3
    flat = open_labels(np.zeros_like(photo), patches, torch.cat([RED, BLUE]), NOTHING, None)
    assert (flat != expected).sum(axis=1).min() >= 5, "without edges in the photo there is nothing to follow"


def test_a_contrast_word_that_wins_is_background() -> None:
    found = open_labels(*two_halves(), RED, torch.cat([BLUE, OTHER]), "auto")
    assert (found[:, :28] == 1).all() and (found[:, 32:] == 0).all()


def test_no_background_gives_every_pixel_a_label() -> None:
    assert (open_labels(*two_halves(), RED, NOTHING, None) == 1).all()


def test_a_threshold_marks_unsure_pixels_as_background() -> None:
    photo, output = two_halves()
    labels = torch.cat([RED, (RED + OTHER) / 2**0.5])  # the blue half resembles neither
    found = open_labels(photo, output, labels, NOTHING, 0.9)
    assert (found[:, :16] == 1).all() and (found[:, 40:] == 0).all()


def test_a_small_thing_does_not_vanish_in_its_superpixel() -> None:
    """One patch of another region on a plain photo: the superpixel votes, but the patch is surer."""
    soft = torch.zeros(1, 2, 16)
    soft[0, 0] = 1
    soft[0, :, 5] = torch.tensor([0.0, 1.0])
    regions = torch.stack([RED[0] * 0.6 + BLUE[0] * 0.53, BLUE[0]])[None]
    output = ImageOutput(regions.amax(dim=1), regions, soft, soft)
    found = open_labels(np.full((64, 64, 3), 128, np.uint8), output, torch.cat([RED, BLUE]), NOTHING, None)
    assert found[24, 24] == 2 and found[2, 60] == 1


def test_the_number_of_labels_changes_no_map_but_the_winners() -> None:
    """Labels that win no region cost no map: the columns are the winners, however many labels there are."""
    _, output = two_halves()
    many = torch.cat([OTHER.expand(998, 4), RED, BLUE])
    tables, columns = _region_tables([output], EmbeddedLabels(many, NOTHING), 10.0, None)
    assert columns.tolist() == [999, 1000] and tables[0].shape == (1, 2, 2)


class Embed:
    """Texts as directions of their own, but for those that are said to be near to another."""

    def __init__(self, near: dict[str, str] | None = None) -> None:
        self.known: list[str] = [*CONTRAST_WORDS]
        self.near = near or {}

    def __call__(self, texts: Sequence[str], templates: tuple[str, ...]) -> torch.Tensor:
        self.known += [text for text in texts if text not in self.known]
        rows = torch.eye(300)[[self.known.index(text) for text in texts]]
        nearest = [self.known.index(self.near.get(text, text)) for text in texts]
        return torch.nn.functional.normalize(0.1 * rows + torch.eye(300)[nearest], dim=-1)


def dropped(names: tuple[str, ...], embed: Embed) -> set[str]:
    """The contrast words that do not compete with these labels."""
    contrast = OpenProtocol().embed_labels(names, embed).contrast
    words: set[str] = {*CONTRAST_WORDS}
    return words - {embed.known[int(row.argmax())] for row in contrast}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("dining tables",), {"table"}),
        (("Sky",), {"sky"}),
        (("zeppelin",), set()),
        (("glass of milk", "knives"), {"glasses"}),
        (("wall",), {"wall", "brick wall", "stone wall"}),
    ],
)
def test_contrast_words_that_are_labels_do_not_compete(names: tuple[str, ...], expected: set[str]) -> None:
    assert dropped(names, Embed()) == expected


def test_contrast_words_too_near_to_a_label_do_not_compete() -> None:
    assert dropped(("meadow", "zeppelin"), Embed({"meadow": "grass"})) == {"grass"}


def test_a_label_asked_for_is_likelier_than_one_of_many_words() -> None:
    """Both regions are a little nearer to a contrast word; that decides only where there are few such words."""
    photo, output = two_halves()
    label, word = torch.tensor([[0.60, 0.60, 0.5292, 0.0]]), torch.tensor([[0.65, 0.65, 0.0, 0.3937]])
    assert (open_labels(photo, output, label, word, "auto") == 0).all()
    assert (open_labels(photo, output, label, torch.cat([word, -torch.eye(4)[3:].repeat(8, 1)]), "auto") == 1).all()


@pytest.mark.parametrize(
    ("size", "sizes"), [((64, 64), [(64, 64)]), ((40, 80), [(64, 128)]), ((96, 192), [(64, 128), (96, 192)])]
)
def test_a_photo_is_seen_at_two_scales_and_not_enlarged_for_the_second(
    size: tuple[int, int], sizes: list[tuple[int, int]]
) -> None:
    views = OpenProtocol().cut_photo(np.zeros((*size, 3), np.uint8), 64)
    assert [view.size for view in views] == sizes


def test_superpixels_are_found_once_for_any_number_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, output = two_halves()
    encoded, protocol = EncodedPhoto(photo, [Windows.cut(photo, 64, 32)], [output]), OpenProtocol()
    find, asked = OpenProtocol.find_superpixels, []
    monkeypatch.setattr(OpenProtocol, "find_superpixels", lambda self, photo: asked.append(1) or find(self, photo))
    for labels in (RED, BLUE):
        protocol.label_photo(encoded, EmbeddedLabels(labels, NOTHING), None, "auto", scale=10.0)
    assert len(asked) == 1
