"""The paper's protocol against what the authors' code computes, and against a plain, dense version of itself."""

import pytest
import skimage.data
import torch
import torch.nn.functional as F
from helpers import GOLDEN
from helpers.pixels import normalise
from safetensors.torch import load_file
from torch import Tensor

from segclip.data.photos import paper_size, resize_photo
from segclip.model.segclip import ImageOutput, SegCLIP
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.encoder import Encoder
from segclip.segment.protocols.paper import PaperProtocol, paper_scores, region_scores
from segclip.segment.protocols.protocol import EmbeddedLabels
from segclip.segment.segmenter import Segmenter
from segclip.segment.windows import Windows, encode_windows

SCALE = 100.0


@pytest.fixture(scope="module")
def decode() -> dict[str, Tensor]:
    return load_file(GOLDEN / "tiny.decode.safetensors")


@torch.inference_mode()
def encode(model: SegCLIP, pixels: Tensor) -> ImageOutput:
    return model.encode_image(pixels)


@pytest.mark.parametrize(
    ("image", "name", "background"),
    [
        ("image", "pixel_scores_bg1_t0.4", 0.4),
        ("image", "pixel_scores_bg0_t0.05", None),
        ("image_2x", "pixel_scores_2x_bg1_t0.05", 0.05),
    ],
)
def test_scores_are_the_authors(
    tiny: SegCLIP, golden: dict[str, Tensor], image: str, name: str, background: float | None
) -> None:
    pixels = golden[image][:1]
    size = (pixels.shape[2], pixels.shape[3])
    scores = paper_scores(encode(tiny, pixels), golden["class_embeds"], SCALE, size, background)
    torch.testing.assert_close(scores, golden[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "threshold"), [("decode_scores", None), ("decode_scores_t09", 0.9)])
def test_scores_are_the_authors_where_it_bites(
    tiny: SegCLIP, golden: dict[str, Tensor], decode: dict[str, Tensor], name: str, threshold: float | None
) -> None:
    index = int(decode["decode_image_index"])
    background = float(decode["decode_threshold"]) if threshold is None else threshold
    output = encode(tiny, golden["image"][index : index + 1])
    scores = paper_scores(
        output, decode["decode_class_embeds"], float(decode["decode_logit_scale"]), (96, 96), background
    )
    torch.testing.assert_close(scores, decode[name], atol=1e-4, rtol=0)
    assert 0 < (scores[:, 0] == 1).float().mean() < 1, "the case must have background and other pixels"


def test_photo_labels_are_the_authors(tiny: SegCLIP) -> None:
    stored = load_file(GOLDEN / "tiny.photo.safetensors")
    photo = skimage.data.chelsea()
    assert (
        resize_photo(photo, paper_size(photo.shape[0], photo.shape[1], 96)) == stored["photo_resized"].numpy()
    ).all()
    labels = Segmenter(tiny).segment_embeddings(photo, stored["photo_class_embeds"], background=0.5)
    assert labels.shape == photo.shape[:2]
    assert (labels == stored["photo_labels"].numpy()).mean() >= 0.995


@pytest.mark.parametrize("background", [None, 0.05])
@pytest.mark.parametrize("classes", [1, 3, 40])
def test_whole_photo_equals_the_dense_protocol(tiny: SegCLIP, classes: int, background: float | None) -> None:
    """Overlapping windows, with a score map for each class at the photo's size, as section 6 of the paper reads."""
    photo = skimage.data.coffee()[::2, :330:2]  # 200x165: windows overlap along both axes
    embeds = torch.randn(classes, 64, generator=torch.Generator().manual_seed(classes))
    small = resize_photo(photo, paper_size(photo.shape[0], photo.shape[1], 96))
    total, count = 0, torch.zeros(small.shape[:2])
    for y in (0, small.shape[0] - 96):
        output = encode(tiny, normalise(small[y : y + 96])[None])
        window = torch.zeros(classes + (background is not None), *small.shape[:2])
        window[:, y : y + 96] = paper_scores(output, embeds, SCALE, (96, 96), background)[0]
        total, count[y : y + 96] = total + window, count[y : y + 96] + 1
    dense = F.interpolate((total / count)[None], photo.shape[:2], mode="bilinear")[0]
    expected = dense.argmax(dim=0) + (background is None)
    labels = Segmenter(tiny).segment_embeddings(photo, embeds, background)
    assert (labels == expected.numpy()).mean() > 0.9999


def test_label_score_is_the_dense_maximum(tiny: SegCLIP) -> None:
    photo = skimage.data.chelsea()[:96, :130]
    embeds = torch.randn(30, 64, generator=torch.Generator().manual_seed(1))
    windows = Windows.cut(photo, (96, 96), (96, 96))
    (output,) = encode_windows(Encoder(tiny), [windows])
    dense = windows.average(paper_scores(output, embeds, SCALE, (96, 96)))
    encoded, labels = EncodedPhoto(photo, [windows], [output]), EmbeddedLabels(embeds)
    found = PaperProtocol().label_photo(encoded, labels, None, "auto", SCALE)
    torch.testing.assert_close(found.scores, dense.amax(dim=0))
    torch.testing.assert_close(dense.gather(0, found.labels[None] - 1)[0], found.scores)
    assert found.presence.tolist() == [1] * 30


def test_only_five_classes_of_a_window_score(tiny: SegCLIP, golden: dict[str, Tensor]) -> None:
    output = encode(tiny, golden["image"])
    scores = region_scores(output, golden["class_embeds"], 1.0)
    assert ((scores > 0).any(dim=1).sum(dim=-1) == 5).all()


def test_one_label_knows_no_background(tiny: SegCLIP, golden: dict[str, Tensor]) -> None:
    scores = paper_scores(encode(tiny, golden["image"]), golden["class_embeds"][:1], SCALE, (96, 96), 0.99)
    assert (scores[:, 0] == 0).all() and (scores[:, 1] == 1).all()


@pytest.mark.parametrize("shape", [(0, 64), (3, 63)])
def test_class_embeddings_of_another_width(tiny: SegCLIP, golden: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    output = encode(tiny, golden["image"])
    with pytest.raises(ValueError, match="embed the names with this same model"):
        region_scores(output, torch.zeros(shape), SCALE)


def test_size_that_was_not_encoded(tiny: SegCLIP, golden: dict[str, Tensor]) -> None:
    output = encode(tiny, golden["image"])
    with pytest.raises(ValueError, match="36 patches do not tile a window of 96x80"):
        paper_scores(output, golden["class_embeds"], SCALE, (96, 80))
