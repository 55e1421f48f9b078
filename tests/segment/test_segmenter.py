"""Segmenter and its results: any photo, any number of labels, and the open protocol's promises."""

import inspect
import logging
import pickle
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from helpers.small_model import SENTENCE, small_model
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from segclip.checkpoints.native import save_model
from segclip.data.photos import PhotoError
from segclip.model.segclip import SegCLIP
from segclip.segment.encoder import DTYPES, DType, Encoder
from segclip.segment.protocols import PROTOCOLS
from segclip.segment.protocols.open import OpenProtocol
from segclip.segment.result import Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.segment.windows import encode_windows
from segclip.text.labels import check_labels
from segclip.text.reference_words import REFERENCE_WORDS
from segclip.utils.devices import pick_device

PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150


@pytest.fixture(scope="module")
def model() -> SegCLIP:
    return small_model()


@pytest.fixture(scope="module")
def segmenter(model: SegCLIP) -> Segmenter:
    return Segmenter(model)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (2, 3), (37, 501), (64, 64), (1500, 2000)])
def test_any_size_and_shape(model: SegCLIP, protocol: str, shape: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    result = Segmenter(model, protocol).segment(photo, ["cat", "dog"])
    assert result.labels.shape == result.scores.shape == shape
    assert set(np.unique(result.labels)) <= {0, 1, 2}
    assert result.scores.dtype == np.float32 and result.scores.min() >= 0 and result.scores.max() <= 1
    overlay = result.overlay()
    assert overlay.width >= shape[1] and overlay.height > shape[0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("labels", [["cat"], ["cat", "猫", "собака", "قطة", "🐈"]])
def test_without_background_every_pixel_has_a_label(segmenter: Segmenter, protocol: str, labels: list[str]) -> None:
    result = Segmenter(segmenter.model, protocol).segment(PHOTO, labels, background=None)
    assert result.labels.min() >= 1 and result.labels.max() <= len(labels)
    assert len(result.overlay().getcolors(2**20) or []) > 10


def test_a_dinov2_and_sentence_model_segments_too() -> None:
    result = Segmenter(small_model(SENTENCE)).segment(PHOTO, ["cat", "a very small potted plant"])
    assert result.labels.shape == PHOTO.shape[:2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_batch_gives_what_each_photo_gives_alone(model: SegCLIP, protocol: str) -> None:
    segmenter = Segmenter(model, protocol)
    photos = [PHOTO, skimage.data.chelsea()[::3, ::3], PHOTO[:50, :20]]
    for photo, together in zip(photos, segmenter.segment_batch(photos, ["cat", "cup", "wall"]), strict=True):
        alone = segmenter.segment(photo, ["cat", "cup", "wall"])
        assert (alone.labels == together.labels).mean() > 0.999
        np.testing.assert_allclose(alone.scores, together.scores, atol=1e-4)


def test_each_window_is_encoded_once_and_in_batches_of_one_shape(
    model: SegCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    encode = model.image.encode_patches
    monkeypatch.setattr(
        model.image, "encode_patches", lambda pixels, **_: seen.append(tuple(pixels.shape)) or encode(pixels)
    )
    views = [view for photo in (PHOTO, PHOTO[:80], PHOTO) for view in OpenProtocol().cut_photo(photo, 64, 16)]
    outputs = encode_windows(Encoder(model), views, each=True)
    assert [len(output.regions) for output in outputs] == [len(view.boxes) for view in views]
    assert sorted(seen) == sorted({(2, 3, *views[0].size), (1, 3, *views[1].size)})
    for view, output in zip(views, outputs, strict=True):
        (alone,) = encode_windows(Encoder(model), [view], each=True)
        torch.testing.assert_close(alone.features, output.features, atol=1e-4, rtol=0)


def test_text_is_embedded_once(model: SegCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = Segmenter(model)
    texts: list[int] = []
    encode = segmenter.model.encode_text
    monkeypatch.setattr(segmenter.model, "encode_text", lambda ids: texts.append(len(ids)) or encode(ids))
    labels = [f"thing {i}" for i in range(500)]
    segmenter.segment(PHOTO, labels)
    before = sum(texts)
    segmenter.segment(PHOTO, labels[::-1])
    assert before >= 500 + len(REFERENCE_WORDS) and sum(texts) == before


def test_remembered_embeddings_are_those_of_each_label(model: SegCLIP) -> None:
    embed = Segmenter(model)._embed
    labels = [f"thing {i}" for i in range(150)]
    first = embed(labels, ("a photo of a {}.",))
    shuffled = random.Random(0).sample(labels, 20)
    again = embed(shuffled, ("a photo of a {}.",))
    torch.testing.assert_close(again, first[[labels.index(label) for label in shuffled]])
    alone = model.encode_text(model.tokenize([f"a photo of a {labels[7]}."]))
    torch.testing.assert_close(first[7], torch.nn.functional.normalize(alone, dim=-1)[0].detach(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_rivals_of_a_label_set_are_found_once_and_do_not_depend_on_what_came_before(
    model: SegCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    embed = OpenProtocol.embed_labels
    monkeypatch.setattr(OpenProtocol, "embed_labels", lambda *given: asked.append([*given[1]]) or embed(*given))
    sets, segmenter = (["cat", "dog"], ["dog"], ["cat", "dog"], ["dog", "cat"]), Segmenter(model)
    found = [segmenter.segment(PHOTO, labels).labels for labels in sets]
    assert asked == [["cat", "dog"], ["dog"], ["dog", "cat"]]
    for labels, maps in zip(sets, found, strict=True):
        np.testing.assert_array_equal(maps, Segmenter(model).segment(PHOTO, labels).labels)


def test_five_thousand_labels(segmenter: Segmenter) -> None:
    result = segmenter.segment(PHOTO, [f"thing {i}" for i in range(5000)])
    assert result.labels.max() <= 5000
    assert result.index_image().mode == "I;16"


def test_a_label_longer_than_the_context_is_cut_with_a_warning(
    segmenter: Segmenter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = segmenter.segment(PHOTO, ["cat", "very " * 100 + "small dog"])
    assert "longer than the model's 32 tokens" in caplog.text and caplog.text.count("longer") == 1
    assert result.names[1].endswith("small dog")
    result.overlay()


@pytest.mark.parametrize("labels", [[], ["cat", ""], ["cat", "cat"], ["cat", "  "]])
def test_labels_that_cannot_be_used(segmenter: Segmenter, labels: list[str]) -> None:
    with pytest.raises(ValueError, match="label"):
        segmenter.segment(PHOTO, labels)


def test_background_is_checked_before_the_model_works(segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match=r"background 1\.5; give .* 0\.\.1"):
        segmenter.segment("missing.jpg", ["cat"], background=1.5)


def test_photo_kinds_agree(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "cup.png"
    Image.fromarray(PHOTO).save(path)
    opaque = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    kinds = (PHOTO, Image.fromarray(PHOTO), path, str(path), path.read_bytes(), opaque)
    results = [segmenter.segment(photo, ["cup", "table"]) for photo in kinds]
    assert all((r.labels == results[0].labels).all() for r in results)
    grey = PHOTO[..., 0]
    found = segmenter.segment(grey, ["cup", "table"])
    assert (found.labels == segmenter.segment(np.dstack([grey] * 3), ["cup", "table"]).labels).all()


def test_a_photo_that_cannot_be_read(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"missing\.jpg"):
        segmenter.segment(tmp_path / "missing.jpg", ["cat"])


def test_unknown_protocol_and_model(model: SegCLIP) -> None:
    with pytest.raises(ValueError, match=r"'closed'.* open, paper, groupvit"):
        Segmenter(model, "closed")
    with pytest.raises(ValueError, match="unknown model 'minni'"):
        Segmenter("minni")
    with pytest.raises(ValueError, match="no such file"):
        Segmenter("nowhere/model.safetensors")


def test_public_face() -> None:
    import segclip

    assert segclip.Segmenter is Segmenter and segclip.Segmentation is Segmentation and segclip.SegCLIP is SegCLIP
    assert set(segclip.__all__) <= set(dir(segclip))
    assert all(getattr(segclip, name) for name in segclip.__all__)
    with pytest.raises(AttributeError, match="Segmentor"):
        segclip.Segmentor  # noqa: B018


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_segmenter_is_a_snapshot_of_its_model(dtype: DType) -> None:
    """What becomes of the model afterwards, before the first photo or between two, changes nothing in it."""
    model, labels, later = small_model(), ["cat", "cup"], ["cat", "cup", "wall"]
    kept = Segmenter(small_model(), dtype=dtype)
    segmenter = Segmenter(model, dtype=dtype)
    for count, names in enumerate([labels, later, labels]):
        torch.manual_seed(count)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        found, expected = segmenter.segment(PHOTO, names), kept.segment(PHOTO, names)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.scores, expected.scores)
        for template in (("{}",), ("a {}.",)):
            assert torch.equal(segmenter._embed(names, template), kept._embed(names, template))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_segmenter_leaves_the_model_as_it_was(dtype: DType) -> None:
    model = small_model().train()
    model.text.eval()
    model.image.tower.trunk.requires_grad_(False)
    before = {name: (id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    segmenter = Segmenter(model, dtype=dtype)
    segmenter.segment(PHOTO, ["cat", "cup"])
    assert not any(module.training for module in segmenter.model.modules())
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, parameter in model.named_parameters():
        number, trainable, value = before[name]
        assert (id(parameter), parameter.requires_grad) == (number, trainable) and torch.equal(parameter, value)


def test_another_protocol_shares_the_weights(model: SegCLIP) -> None:
    segmenter = Segmenter(model, dtype="bfloat16")
    other = segmenter.with_protocol("paper")
    assert other.model is segmenter.model and other.encoder is segmenter.encoder
    expected = Segmenter(model, "paper", dtype="bfloat16").segment(PHOTO, ["cat", "cup"])
    open_labels = segmenter.segment(PHOTO, ["cat", "cup"]).labels
    np.testing.assert_array_equal(other.segment(PHOTO, ["cat", "cup"]).labels, expected.labels)
    assert (segmenter.protocol_name, other.protocol_name) == ("open", "paper")
    np.testing.assert_array_equal(segmenter.segment(PHOTO, ["cat", "cup"]).labels, open_labels)
    with pytest.raises(ValueError, match=r"'closed'.* open, paper, groupvit"):
        segmenter.with_protocol("closed")


@pytest.mark.parametrize(("protocol", "dtype"), [*(("open", dtype) for dtype in DTYPES), ("paper", "float32")])
def test_a_pickled_segmenter_gives_the_same(model: SegCLIP, protocol: str, dtype: DType) -> None:
    """Pickled before it knows any label, and after."""
    segmenter = Segmenter(model, protocol, dtype=dtype)
    fresh = pickle.loads(pickle.dumps(segmenter))
    expected = segmenter.segment(PHOTO, ["cat", "cup"])
    for one in (fresh, pickle.loads(pickle.dumps(segmenter))):
        found = one.segment(PHOTO, ["cat", "cup"])
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert (one.protocol_name, one.protocol) == (protocol, segmenter.protocol) and not one.model.training


def test_a_compiled_segmenter_can_be_pickled(model: SegCLIP) -> None:
    """The program is made anew where it is loaded, when the first photo comes."""
    segmenter = pickle.loads(pickle.dumps(Segmenter(model, dtype="int8", compile=True)))
    assert segmenter.encoder._made_of == (segmenter.model, "int8", True)


@pytest.mark.parametrize("background", ["auto", None, 0.3])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_soft_maps_agree_with_the_label_map(model: SegCLIP, protocol: str, background: float | None) -> None:
    names = ["cat", "cup", "a wall", "猫"]
    result = Segmenter(model, protocol).segment(PHOTO, names, background=background, presence=None)
    soft = dict(result.probabilities())
    assert list(soft) == ["background", *names] and {one.shape for one in soft.values()} == {PHOTO.shape[:2]}
    stack = np.stack([*soft.values()])
    assert stack.dtype == np.float32 and stack.min() >= 0 and stack.max() <= 1
    own = np.take_along_axis(stack, result.labels[None].astype(np.int64), axis=0)[0]
    expected = result.scores if protocol != "dense" else np.where(result.labels, result.scores, 1 - result.scores)
    np.testing.assert_allclose(own, expected, atol=1e-4)
    np.testing.assert_array_equal(result.probability("cup"), soft["cup"])
    assert soft["background"].any() == (background is not None)
    assert len(np.unique(soft["cup"])) > 1, "it is a map, not a number"
    if protocol in ("paper", "groupvit"):
        first = stack.argmax(axis=0)
        assert (stack.max(axis=0) - own).max() < 1e-4 and (first == result.labels).mean() > 0.99


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_soft_maps_of_labels_of_several_words(model: SegCLIP, protocol: str) -> None:
    """A label is as likely as its best word, and what words say is the background is named so."""
    labels = ["cat|kitten", "cup", "background|wall|sky"]
    result = Segmenter(model, protocol).segment(PHOTO, labels, background=None, presence=None)
    soft = dict(result.probabilities())
    assert list(soft) == ["background", "cat", "cup"]
    own = np.take_along_axis(np.stack([*soft.values()]), result.labels[None].astype(np.int64), axis=0)[0]
    np.testing.assert_allclose(own, result.scores, atol=1e-4)


def test_the_soft_map_of_a_label_that_is_absent(model: SegCLIP) -> None:
    """It is nowhere, unless every label is taken to be in the photo."""
    names = [f"thing {i}" for i in range(12)]
    segmenter = Segmenter(model)
    result = segmenter.segment(PHOTO, names)
    absent = [name for name, there in zip(names, result.presence, strict=True) if there < 0.5]
    assert absent and not any(result.probability(name).any() for name in absent)
    assert segmenter.segment(PHOTO, names, presence=None).probability(absent[0]).any()
    with pytest.raises(ValueError, match=r"'cow' was not given"):
        result.probability("cow")


def test_soft_maps_of_five_hundred_labels_are_drawn_one_at_a_time(segmenter: Segmenter) -> None:
    names = [f"thing {i}" for i in range(500)]
    drawn: list[int] = []
    result = segmenter.segment(PHOTO, names, presence=None)
    draw = result.draw
    assert draw is not None
    object.__setattr__(result, "draw", lambda index: drawn.append(index) or draw(index))
    maps = result.probabilities()
    assert isinstance(maps, Iterator) and not drawn
    assert [next(maps)[0] for _ in range(3)] == ["background", "thing 0", "thing 1"] and drawn == [0, 1, 2]


def test_a_result_goes_without_the_model(segmenter: Segmenter) -> None:
    result = segmenter.segment(PHOTO, ["cup", "table"])
    sent = pickle.dumps(result)
    assert len(sent) < 2 * (result.labels.nbytes + result.scores.nbytes + result.photo.nbytes)
    again = pickle.loads(sent)
    assert (again.labels == result.labels).all() and result.draw is not None
    with pytest.raises(ValueError, match="segment the photo again"):
        again.probability("cup")


def test_embeddings_of_labels(model: SegCLIP) -> None:
    segmenter = Segmenter(model, "paper")
    embeds = segmenter.embed_labels(["cup", "table"])
    assert embeds.shape == (2, 64)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(embeds.flip(0), segmenter.embed_labels(["table", "cup"]))
    expected = segmenter.segment(PHOTO, ["cup", "table"], background=None).labels
    np.testing.assert_array_equal(segmenter.segment_embeddings(PHOTO, embeds), expected)
    embeds.zero_()
    assert segmenter.embed_labels(["cup", "table"]).norm() > 1, "they are the caller's own"
    with pytest.raises(ValueError, match="repeats"):
        segmenter.embed_labels(["cup", "cup"])
    with pytest.raises(ValueError, match=r"several words, \['cup\|mug'\]; give each word"):
        segmenter.embed_labels(["cup|mug"])


def test_texts_in_place_of_token_ids(model: SegCLIP) -> None:
    encode = inspect.unwrap(SegCLIP.encode_text)  # the tests' own type check would answer first
    with pytest.raises(ValueError, match=r"encode_text\(\['dog'\]\): expected token ids .* model\.tokenize"):
        encode(model, ["dog"])


def test_a_model_and_a_segmenter_show_themselves_in_a_line(model: SegCLIP) -> None:
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert repr(model) == f"<SegCLIP clip + clip, 4 centers, {size:.1f} M parameters, cpu>"
    segmenter = Segmenter(model, "paper", dtype="bfloat16")
    assert repr(segmenter) == f"<Segmenter of {model!r}: protocol paper, bfloat16, cpu>" and len(repr(segmenter)) < 120
    assert "Linear" in repr(model.image), "the layers can still be listed"


class Maps(Dataset):
    """Label maps, as the workers of a DataLoader make them."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> np.ndarray:
        return self.segmenter.segment(PHOTO[: 80 + index], ["cat", "cup"]).labels


@pytest.mark.slow
def test_a_spawned_worker_segments(model: SegCLIP) -> None:
    maps = Maps(Segmenter(model, dtype="bfloat16"))
    loader = DataLoader(maps, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for index, found in enumerate(loader):
        np.testing.assert_array_equal(found, maps[index])


@pytest.mark.parametrize("given", ["model", "file"])
def test_where_a_segmenter_works(given: str, tmp_path: Path) -> None:
    """A name or file goes to the best device there is, a model's copy stays where the model is; or where it is told."""
    model = small_model()
    save_model(model, tmp_path / "model.safetensors")
    source = model if given == "model" else tmp_path / "model.safetensors"
    best = "cpu" if given == "model" else pick_device("auto")
    assert Segmenter(source).encoder.device.type == torch.device(best).type
    assert Segmenter(source, device="cpu").encoder.device.type == "cpu"
    with pytest.raises(ValueError, match=r"device 'gpu' cannot be used .*; give auto, cpu, cuda or mps"):
        Segmenter(source, device="gpu")
    elsewhere = Segmenter(source, device="meta")  # a device that every machine has
    assert {p.device.type for p in elsewhere.model.parameters()} == {"meta"} == {elsewhere.encoder.device.type}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_many_threads_label_at_once(model: SegCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a GPU; only the first thread embeds the labels."""
    expected = Segmenter(model).segment(PHOTO, ["cat", "dog"])
    calls, embed = [], OpenProtocol.embed_labels
    monkeypatch.setattr(OpenProtocol, "embed_labels", lambda *given: (calls.append(given), embed(*given))[1])
    segmenter = Segmenter(model)
    photos = segmenter.encode([PHOTO] * 8)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda photo: segmenter.label(photo, ["cat", "dog"]), photos):
            np.testing.assert_array_equal(found.labels, expected.labels)
    assert len(calls) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_label_of_several_words(protocol: str) -> None:
    """Its best word says where it is: as if each word were a label, and these were then one."""
    segmenter = Segmenter(small_model(), protocol)
    (encoded,) = segmenter.encode([np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)])
    settings = {"background": None, "presence": None}
    words = ["dog", "kitten", "cat", "sky", "wall"]
    apart = segmenter.label(encoded, words, **settings)
    best = words[apart.labels[0, 0] - 1]
    a, b, c, d = (word for word in words if word != best)
    for labels in ([f"{a}|{best}", (b,), f"background|{c}|{d}"], [f"{a}|{b}", (c,), f"background|{d}|{best}"]):
        joined = segmenter.label(encoded, labels, **settings)
        assert len(joined.names) == len(joined.presence) == 2 and joined.names[0] == a
        meaning = {word: i for i, own in enumerate(check_labels(labels).words, 1) for word in own}
        expected = np.array([0, *(meaning.get(word, 0) for word in words)])[apart.labels]
        np.testing.assert_array_equal(joined.labels, expected)
