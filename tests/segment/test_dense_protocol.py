"""The protocol of dense heads: label maps equal to what the authors' codes computed (tests/golden)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.pixels import random_photo
from helpers.small_model import CLIP, PLAIN, SENTENCE, small_model
from torch import Tensor

from segclip import Segmenter
from segclip.checkpoints.variants import change_grouping, change_head
from segclip.model.dense import HEADS, proxy
from segclip.model.segclip import SegCLIP
from segclip.segment.pamr import refine
from segclip.segment.protocols import dense
from segclip.segment.protocols.dense import DenseProtocol
from segclip.segment.protocols.protocol import EmbeddedLabels
from segclip.segment.windows import patch_grid, resize_map

# As the arrays were made.
GIVEN = DenseProtocol(window=96, stride=48, logit_scale=100.0, threshold=0.3)
SIZES = {"square": (80, 80), "wide": (75, 122), "photo": (60, 85)}
TAGS = {"qk": "vanilla"}


def label(model: SegCLIP, heads: dict[str, Tensor], shape: str, protocol: DenseProtocol) -> Tensor:
    """The label map of an array's photo, which is at its working size already; their class 0 is the background."""
    photo = heads[f"image.{shape}"].numpy()
    protocol = replace(protocol, short=min(photo.shape[:2]))
    (encoded,) = Segmenter(model, protocol).encode([photo])
    encoded = replace(encoded, photo=np.zeros((*SIZES[shape], 3), np.uint8))
    owners = heads["text.class_of_word"].tolist()
    count, first = max(owners), owners.count(0)
    words = torch.cat([heads["text.words"][first:], heads["text.words"][:first]])
    order = (*(owner - 1 for owner in owners[first:]), *[count] * first)
    labels = EmbeddedLabels(words, owners=order, background=True)
    found = protocol.label_photo(encoded, labels, "auto", None, 100.0).labels
    return found.masked_fill(found > count, 0)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found != expected).float().mean() <= 0.001


@pytest.mark.parametrize("head", ["naclip", "sclip", "clearclip", "maskclip", "maskclip_kept", "qk"])
def test_windows(clip: SegCLIP, heads: dict[str, Tensor], head: str) -> None:
    assert_same(label(change_head(clip, head), heads, "photo", GIVEN), heads[f"{TAGS.get(head, head)}.photo.labels"])


@pytest.mark.parametrize("shape", ["square", "wide"])
@pytest.mark.parametrize("head", ["naclip", "qk"])
def test_the_whole_photo(clip: SegCLIP, heads: dict[str, Tensor], head: str, shape: str) -> None:
    """As NACLIP's code, which has the plain block too, draws it."""
    found = label(change_head(clip, head), heads, shape, replace(GIVEN, window=None))
    assert_same(found, heads[f"{TAGS.get(head, head)}.{shape}.labels"])


@pytest.mark.parametrize("shape", ["square", "wide"])
@pytest.mark.parametrize("head", ["sclip", "clearclip", "maskclip", "maskclip_kept"])
def test_the_whole_photo_drawn_in_one_step(clip: SegCLIP, heads: dict[str, Tensor], head: str, shape: str) -> None:
    """As all but NACLIP's code do."""
    found = label(change_head(clip, head), heads, shape, replace(GIVEN, window=None, two_steps=False))
    assert torch.equal(found, heads[f"{TAGS.get(head, head)}.{shape}.labels"].long())


@pytest.mark.parametrize("shape", ["square", "wide"])
def test_labels_of_little_area_in_the_whole_photo(clip: SegCLIP, heads: dict[str, Tensor], shape: str) -> None:
    protocol = replace(GIVEN, window=None, two_steps=False, area=0.25)
    assert_same(label(change_head(clip, "sclip"), heads, shape, protocol), heads[f"sclip_area.{shape}.labels"])


def test_likeness_of_another_model(clip: SegCLIP, heads: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """ProxyCLIP, with the features that its authors' code was given in place of the embedded model's."""
    given = F.normalize(heads["dino.square"].flatten(2).mT, dim=-1)
    head = replace(HEADS["proxy"], mix=lambda q, k, v, around: proxy(q, k, v, replace(around, affinity=given)))
    monkeypatch.setitem(HEADS, "proxy", head)
    found = label(change_head(clip, "proxy"), heads, "square", replace(GIVEN, window=None, two_steps=False))
    assert_same(found, heads["proxyclip.square.labels"])


def test_windows_that_are_smaller_than_the_model_has_seen(clip: SegCLIP, heads: dict[str, Tensor]) -> None:
    assert_same(label(clip, heads, "photo", replace(GIVEN, window=64)), heads["naclip_window64.photo.labels"])


def test_labels_of_little_area_are_left_out(clip: SegCLIP, heads: dict[str, Tensor]) -> None:
    found = label(change_head(clip, "sclip"), heads, "photo", replace(GIVEN, area=0.25))
    assert_same(found, heads["sclip_area.photo.labels"])
    assert (found != heads["sclip.photo.labels"]).float().mean() > 0.01


def test_refined_by_colours(clip: SegCLIP, heads: dict[str, Tensor]) -> None:
    found = label(clip, heads, "square", replace(GIVEN, window=None, pamr=10))
    assert_same(found, heads["naclip_pamr.square.labels"])
    assert (found != heads["naclip.square.labels"]).float().mean() > 0.01


@pytest.mark.parametrize(("steps", "dilations", "name"), [(10, (8, 16), "d8_16_n10"), (3, (1, 2), "d1_2_n3")])
def test_pamr_by_itself(heads: dict[str, Tensor], steps: int, dilations: tuple[int, ...], name: str) -> None:
    found = refine(heads["pamr.mask"][0], heads["pamr.image"][0], steps, dilations)
    torch.testing.assert_close(found, heads[f"pamr.out_{name}"][0], atol=1e-5, rtol=0)


def test_of_many_words_those_that_cannot_win_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """But count: a label is as likely among all of them as if each were drawn."""
    protocol = DenseProtocol(templates=("a {}",))
    (encoded,) = Segmenter(small_model(), protocol).encode([random_photo(120, 160)])
    labels = EmbeddedLabels(torch.randn(300, 64, generator=torch.Generator().manual_seed(0)))
    few = protocol.label_photo(encoded, labels, None, None, 100.0)
    monkeypatch.setattr(dense, "DRAWN", 300)
    every = protocol.label_photo(encoded, labels, None, None, 100.0)
    assert (few.labels != every.labels).float().mean() < 0.001
    torch.testing.assert_close(few.scores, every.scores, atol=5e-3, rtol=0)
    assert every.scores.mean() < 0.5, "all 300 words share in what a pixel is"


@pytest.mark.parametrize("window", [64, None])
@pytest.mark.parametrize("count", [1, 40, 300])
def test_bands_and_matrices_are_softmax_of_resized_windows(
    window: int | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several words per label, a photo that is enlarged and cut into windows or not, and many bands."""
    monkeypatch.setattr(dense, "DRAWN", 300)
    monkeypatch.setattr(dense, "BAND", 3 * count * 130)
    protocol = DenseProtocol(short=96, window=window, stride=48, threshold=0.0, templates=("a {}",))
    (encoded,) = Segmenter(small_model(PLAIN), protocol).encode([random_photo(90, 130)])
    words = F.normalize(torch.randn(count, PLAIN.embed, generator=torch.Generator().manual_seed(count)), dim=-1)
    owners = torch.arange(count) // 3
    found = protocol.label_photo(encoded, EmbeddedLabels(words, owners=tuple(owners.tolist())), "auto", None, 100.0)

    windows, output = encoded.single(patches=True)
    assert output.patches is not None and (len(output.patches) > 1) == (window is not None)
    cosines = (F.normalize(output.patches, dim=-1) @ words.T).mT
    grid = cosines.unflatten(-1, patch_grid(cosines.shape[-1], windows.window))
    maps = windows.average(F.interpolate(grid, windows.window, mode="bilinear", align_corners=False))
    scores, winner = (40 * resize_map(maps, (90, 130))).softmax(dim=0).max(dim=0)
    torch.testing.assert_close(found.scores, scores, atol=2e-5, rtol=0)
    assert (found.labels != owners[winner] + 1).sum() <= 2, "where two are alike but for rounding"
    assert count == 1 or len(found.labels.unique()) > 3


def test_any_model_any_grouping() -> None:
    photo, plain = random_photo(90, 130), DenseProtocol(short=96, window=64, stride=48, templates=("a {}",))
    for config in (PLAIN, CLIP, SENTENCE):
        own = plain if config is not SENTENCE else replace(plain, window=56)
        result = Segmenter(small_model(config), own).segment(photo, ["cat|kitten", "dog"])
        assert result.names == ("cat", "dog") and result.labels.shape == (90, 130)
        assert result.scores[result.labels > 0].min(initial=1) >= 0.1
    clusters = Segmenter(change_grouping(small_model(PLAIN), "k-means", 3), plain).segment(photo, ["cat", "dog"])
    assert set(np.unique(clusters.labels)) <= {0, 1, 2}


def test_thresholds() -> None:
    segmenter = Segmenter(
        small_model(PLAIN), DenseProtocol(short=64, window=64, templates=("a {}",), logit_scale=900.0)
    )
    (encoded,) = segmenter.encode([random_photo(64, 64)])
    every = segmenter.label(encoded, ["cat", "dog", "sky"], background=None)
    likely = segmenter.label(encoded, ["cat", "dog", "sky"], background=0.9)
    assert (every.labels > 0).all() and 0 < (likely.labels > 0).mean() < 1
    np.testing.assert_array_equal(likely.labels, np.where(every.scores < np.float32(0.9), 0, every.labels))


def test_where_every_label_has_too_little_area_nothing_is_found() -> None:
    protocol = DenseProtocol(short=64, window=64, templates=("a {}",), area=1.0)
    result = Segmenter(small_model(PLAIN), protocol).segment(random_photo(64, 64), ["cat", "dog"], background=None)
    assert not result.labels.any()


def test_settings_of_benchmarks() -> None:
    assert DenseProtocol().for_benchmark("voc2012").window is None
    assert DenseProtocol().for_benchmark("cityscapes").short == 560
    assert DenseProtocol().for_benchmark("context60") == DenseProtocol()
    with pytest.raises(ValueError, match=r"pamr -1 with dilations \(8, 16\); give 0 or more"):
        DenseProtocol(pamr=-1)
    with pytest.raises(ValueError, match=r"area 2\.0; give a number in 0\.\.1"):
        DenseProtocol(area=2.0)


def test_templates_are_normalised_one_by_one() -> None:
    asked = []

    def embed(words: Sequence[str], templates: tuple[str, ...]) -> Tensor:
        asked.append(templates)
        return torch.nn.functional.normalize(torch.randn(len(words), 8), dim=-1)

    found = DenseProtocol().embed_labels(("cat", "dog"), embed).labels
    assert len(asked) == 80 and all(len(own) == 1 for own in asked) and found.shape == (2, 8)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2))
