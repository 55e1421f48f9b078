"""The open protocol's promises: edges, extent, the background, and which labels are found at all."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segclip.model.outputs import ImageOutput
from segclip.segment.background import Background
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.presence import Presence
from segclip.segment.protocols.open import OpenProtocol
from segclip.segment.protocols.protocol import EmbeddedLabels, LabelMap
from segclip.segment.windows import Windows
from segclip.text.reference_words import REFERENCE_WORDS

OPEN = OpenProtocol()
RED, BLUE, OTHER = torch.eye(4)[:3].split(1)
# Words in general: some near the photo by chance, none as near as what is in it.
WORDS = F.normalize(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * 0.2 + OTHER, dim=-1)


def two_halves(edge: int = 30, side: int = 64) -> tuple[np.ndarray, ImageOutput]:
    """A photo, red to the left of `edge` and blue to the right, and what an ideal model makes of it: patches of 16."""
    photo = np.zeros((side, side, 3), np.uint8)
    photo[:, :edge, 0], photo[:, edge:, 2] = 220, 220
    left = torch.tensor([(min(max(edge - x, 0), 16)) / 16 for x in range(0, side, 16)]).repeat(side // 16)
    soft = torch.stack([left, 1 - left])[None]
    regions = torch.eye(4)[None, :2]
    features = soft.round().mT
    return photo, ImageOutput(regions.amax(dim=1), regions, soft.round(), soft, None, features)


def label(
    photo: np.ndarray,
    output: ImageOutput,
    labels: torch.Tensor,
    background: Background = "auto",
    presence: Presence = None,
    protocol: OpenProtocol = OPEN,
) -> LabelMap:
    encoded = EncodedPhoto(photo, [Windows.cut(photo, (64, 64), (64, 64))], [output])
    found = protocol.label_photo(encoded, EmbeddedLabels(labels, WORDS), background, presence, scale=10.0)
    assert found.labels.shape == found.scores.shape == photo.shape[:2]
    assert found.scores.min() >= 0 and found.scores.max() <= 1 and found.presence.shape == (len(labels),)
    return found


@pytest.mark.parametrize("edge", [25, 27, 37])
def test_edges_follow_the_photo_not_the_patches(edge: int) -> None:
    """The assignment's edge lies on a patch border, 5 to 7 pixels off; the result's at the photo's, which is soft."""
    photo, output = two_halves(edge)
    found = label(photo, output, torch.cat([RED, BLUE]), None).labels.numpy()
    expected = np.broadcast_to(np.where(np.arange(64) < edge, 1, 2), (64, 64))
    assert (found != expected).sum(axis=1).max() <= 3
    flat = label(np.zeros_like(photo), output, torch.cat([RED, BLUE]), None).labels.numpy()
    assert (flat != expected).sum(axis=1).min() >= 5, "without edges in the photo there is nothing to follow"


def test_background_is_where_the_best_label_does_not_extend_to() -> None:
    found = label(*two_halves(), RED).labels
    assert (found[:, :28] == 1).all() and (found[:, 34:] == 0).all()


def test_no_background_gives_every_pixel_a_label() -> None:
    assert (label(*two_halves(), RED, None).labels == 1).all()


def test_a_stricter_background_leaves_fewer_pixels() -> None:
    shares = [(label(*two_halves(), RED, least).labels == 1).float().mean() for least in (0.0, 0.5, 0.95, 1.0)]
    assert shares[0] == 1 and shares[1] < 0.6 and shares[3] == 0 and shares == sorted(shares, reverse=True)
    assert torch.equal(label(*two_halves(), RED, 0.5).labels, label(*two_halves(), RED, "auto").labels)


def test_extent_is_that_of_alike_patches() -> None:
    """The label is said in one patch only; the patches like it are the left half."""
    photo, output = two_halves(edge=32)
    soft = torch.zeros(1, 2, 16)
    soft[0, 1] = 1
    soft[0, :, 0] = torch.tensor([1.0, 0.0])
    seeds = replace(output, hard=soft, soft=soft)
    found = label(photo, seeds, RED, protocol=OpenProtocol(spread=0.98)).labels
    assert (found[:, :26] == 1).all() and (found[:, 36:] == 0).all()
    alone = label(photo, seeds, RED, protocol=OpenProtocol(spread=0.0, vote=0.0)).labels
    assert (alone == 1).float().mean() < 0.2


def test_patches_have_a_say_of_their_own() -> None:
    """One region for all, but two kinds of patches."""
    photo, output = two_halves(edge=32)
    one = torch.zeros(1, 2, 16)
    one[:, 0] = 1
    grouped = replace(output, hard=one, soft=one)
    assert (label(photo, grouped, torch.cat([RED, BLUE]), None).labels == 1).all()
    assert output.features is not None
    own = replace(grouped, patches=F.pad(output.features, (0, 2)) + OTHER)
    labels = torch.cat([RED + OTHER, BLUE + OTHER])
    found = label(photo, own, labels, None).labels
    assert (found[:, :30] == 1).all() and (found[:, 34:] == 2).all()
    assert (label(photo, own, labels, None, protocol=OpenProtocol(patch_weight=0.0)).labels == 1).all()


def test_a_small_thing_does_not_vanish_in_its_superpixel() -> None:
    """One patch of another region on a plain photo: the superpixel votes, but the patch is surer."""
    soft = torch.zeros(1, 2, 16)
    soft[0, 0] = 1
    soft[0, :, 5] = torch.tensor([0.0, 1.0])
    regions = torch.stack([RED[0] * 0.6 + BLUE[0] * 0.53, BLUE[0]])[None]
    output = ImageOutput(regions.amax(dim=1), regions, soft, soft, None, soft.mT)
    found = label(
        np.full((64, 64, 3), 128, np.uint8), output, torch.cat([RED, BLUE]), None, None, OpenProtocol(everywhere=0.0)
    ).labels
    assert found[24, 24] == 2 and found[2, 60] == 1


def test_a_label_that_the_whole_photo_says_leaves_the_others_their_place() -> None:
    """A word of the scene, or one that is common, is nearer to either half than the thing in it."""
    photo, output = two_halves()
    scene = F.normalize(RED + BLUE, dim=-1)
    thing = F.normalize(RED + 1.1 * OTHER, dim=-1)
    labels = torch.cat([scene, thing])
    assert (label(photo, output, labels, None, None, OpenProtocol(everywhere=0.0)).labels == 1).all()
    found = label(photo, output, labels, None).labels
    assert (found[:, :28] == 2).all() and (found[:, 34:] == 1).all()


def test_among_very_many_labels_what_the_whole_photo_says_counts() -> None:
    """Two things are alike where they are, and the whole photo says the second; ten labels compete without that."""
    photo, output = two_halves()
    one = F.normalize(RED + 0.5 * OTHER, dim=-1)
    other = F.normalize(RED + 0.5 * torch.eye(4)[3:], dim=-1)
    said = replace(output, embedding=RED + BLUE + torch.eye(4)[3:], regions=output.regions + 0.02 * OTHER)
    few, many = (label(photo, said, torch.cat([one, other, BLUE, -WORDS[:n]]), None).labels[:, :28] for n in (7, 190))
    assert (few == 1).all() and (many == 2).all()


def test_a_label_that_is_no_nearer_than_words_in_general_is_absent() -> None:
    labels = torch.cat([RED, BLUE, -OTHER])
    found = label(*two_halves(), labels, presence="auto")
    assert (found.presence[:2] > 0.5).all() and found.presence[2] < 0.5
    assert set(found.labels.unique().tolist()) <= {0, 1, 2}
    assert (label(*two_halves(), labels).presence == 1).all(), "who knows better looks for all"


def test_where_nothing_is_found_all_is_background_unless_there_is_none() -> None:
    absent = torch.cat([-OTHER, -RED])
    found = label(*two_halves(), absent, presence="auto")
    assert (found.labels == 0).all() and (found.scores == 1).all() and (found.presence < 0.5).all()
    assert (label(*two_halves(), absent, None, "auto").labels > 0).all()


def test_a_label_far_behind_the_best_one_is_absent() -> None:
    """Alone it stands out among words in general; beside what is really there it does not."""
    near = F.normalize(0.4 * RED + 0.9 * torch.eye(4)[3:], dim=-1)
    assert label(*two_halves(), near, presence="auto").presence > 0.5
    assert label(*two_halves(), torch.cat([near, RED]), presence="auto").presence[0] < 0.5


def test_among_many_labels_each_must_stand_out_further() -> None:
    photo, output = two_halves()
    protocol = OpenProtocol(behind=10.0)  # far from what bounds the presence of the best label
    few, many = (label(photo, output, torch.cat([RED, WORDS[:n]]), "auto", "auto", protocol).presence for n in (9, 190))
    assert few[0] > many[0] > 0.5
    assert (few[1:] > many[1:10]).all()


def test_the_order_of_a_thousand_labels_changes_nothing() -> None:
    """They are drawn a few at a time, and those that win nowhere not at all."""
    photo, output = two_halves()
    others = F.normalize(WORDS.repeat(5, 1), dim=-1)[:998]
    first, last = (
        label(photo, output, torch.cat(parts), None).labels for parts in ([RED, BLUE, others], [others, RED, BLUE])
    )
    assert set(first.unique().tolist()) == {1, 2}
    assert torch.equal(first + 998, last)


def test_reference_words_are_embedded_beside_the_labels() -> None:
    asked: list[tuple[str, ...]] = []

    def embed(texts: Sequence[str], templates: tuple[str, ...]) -> torch.Tensor:
        asked.append(tuple(texts))
        return torch.eye(300)[: len(texts)]

    found = OPEN.embed_labels(("zeppelin",), embed)
    assert asked == [("zeppelin",), REFERENCE_WORDS]
    assert found.reference is not None and len(found.reference) == len(REFERENCE_WORDS)


@pytest.mark.parametrize(
    ("size", "working", "boxes"),
    [
        ((64, 64), (64, 64), 1),
        ((300, 400), (96, 128), 1),  # half as large again as the model's side, in whole patches
        ((96, 192), (96, 192), 1),  # not enlarged beyond the model's side
        ((40, 80), (64, 128), 1),
        ((100, 400), (96, 384), 2),  # too long for one pass
        ((1, 4000), (16, 512), 3),
        ((4000, 1), (512, 16), 3),
    ],
)
def test_a_photo_is_seen_whole_at_its_own_shape(size: tuple[int, int], working: tuple[int, int], boxes: int) -> None:
    (view,) = OPEN.cut_photo(np.zeros((*size, 3), np.uint8), 64, 16)
    assert view.size == working and len(view.boxes) == boxes
    assert all(max(crop.shape) <= 256 for crop in view.crops())


def test_passes_over_a_long_photo_leave_no_seam() -> None:
    """Each pass sees the same in the same place: what is drawn is as if there had been one pass."""
    photo = np.zeros((64, 384, 3), np.uint8)
    photo[:, :200, 0], photo[:, 200:, 2] = 220, 220
    (view,) = OpenProtocol(scale=1.0).cut_photo(photo, 64, 16)
    assert len(view.boxes) == 2
    left = torch.tensor([float(x < 192) for x in range(0, 384, 16)]).repeat(4)
    whole = torch.stack([left, 1 - left])[None]
    parts = torch.stack([whole[0].view(2, 4, 24)[:, :, x // 16 : x // 16 + 16].flatten(1) for _, x in view.boxes])
    regions = torch.eye(4)[None, :2]

    def found(windows: Windows, soft: torch.Tensor) -> torch.Tensor:
        each = regions.expand(len(soft), -1, -1)
        output = ImageOutput(each.amax(dim=1), each, soft, soft, None, soft.mT)
        encoded, labels = EncodedPhoto(photo, [windows], [output]), EmbeddedLabels(torch.cat([RED, BLUE]), WORDS)
        return OPEN.label_photo(encoded, labels, None, "auto", scale=10.0).labels

    one = Windows.cut(photo, (64, 384), (64, 384))
    assert torch.equal(found(view, parts), found(one, whole))


def test_superpixels_and_likeness_are_found_once_for_any_number_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, output = two_halves()
    encoded = EncodedPhoto(photo, [Windows.cut(photo, (64, 64), (64, 64))], [output])
    asked: list[str] = []
    for name in ("find_superpixels", "find_likeness"):
        find = getattr(OpenProtocol, name)
        monkeypatch.setattr(OpenProtocol, name, lambda self, photo, n=name, f=find: asked.append(n) or f(self, photo))
    for labels in (RED, BLUE):
        OPEN.label_photo(encoded, EmbeddedLabels(labels, WORDS), None, None, scale=10.0)
    assert sorted(asked) == ["find_likeness", "find_superpixels"]
