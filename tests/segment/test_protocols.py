"""The table of protocols, what can be changed of one, and one of somebody's own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import skimage.data
import torch
from helpers.benchmark_files import write_folder
from helpers.small_model import small_model
from PIL import Image

from segclip.checkpoints.native import save_model
from segclip.cli import main
from segclip.segment.background import Background
from segclip.segment.encoded import AnyPhoto, EncodedPhoto
from segclip.segment.presence import Presence
from segclip.segment.protocols import PROTOCOLS, find_protocol, name_of
from segclip.segment.protocols.open import OpenProtocol
from segclip.segment.protocols.paper import PaperProtocol
from segclip.segment.protocols.protocol import EmbeddedLabels, EmbedTexts, LabelMap, Protocol
from segclip.segment.protocols.settings import change_settings, settings_of
from segclip.segment.segmenter import Segmenter
from segclip.segment.windows import Windows

PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150


@dataclass(frozen=True)
class Bands:
    """Labels one after the other, in bands down the photo, whatever is in it."""

    first: int = 0
    words: tuple[str, ...] = ("a {}",)

    needs_patches: ClassVar[bool] = False

    def cut_photo(self, photo: AnyPhoto, side: int, patch: int) -> list[Windows]:
        return [Windows.cut(photo, (side, side), (side, side))]

    def embed_labels(self, names: tuple[str, ...], embed: EmbedTexts) -> EmbeddedLabels:
        return EmbeddedLabels(embed(names, self.words))

    def label_photo(
        self, photo: EncodedPhoto, labels: EmbeddedLabels, background: Background, presence: Presence, scale: float
    ) -> LabelMap:
        row = (torch.arange(photo.size[1]) + self.first) % len(labels.labels) + 1
        found = row.expand(photo.size)
        return LabelMap(found, torch.ones(photo.size), torch.ones(len(labels.labels)))

    def for_benchmark(self, name: str) -> "Bands":
        return self


@pytest.fixture
def bands(monkeypatch: pytest.MonkeyPatch) -> Bands:
    monkeypatch.setitem(PROTOCOLS, "bands", Bands())
    return Bands()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(small_model(), file)
    return file


@pytest.mark.parametrize("protocol", ["bands", Bands()])
def test_a_protocol_of_ones_own_segments(bands: Bands, protocol: str | Protocol) -> None:
    result = Segmenter(small_model(), protocol).segment(PHOTO, ["cup", "table"])
    assert (result.labels == np.arange(150) % 2 + 1).all() and result.protocol == "bands"
    embeds = torch.randn(3, small_model().config.embed)
    found = Segmenter(small_model(), protocol).segment_embeddings(PHOTO, embeds)
    assert (found == np.arange(150) % 3 + 1).all()


def test_a_protocol_that_is_in_no_table_goes_by_its_class() -> None:
    result = Segmenter(small_model(), Bands(first=1)).segment(PHOTO, ["cup", "table"])
    assert result.labels[0, 0] == 2 and result.protocol == "Bands"


def test_the_commands_know_it(bands: Bands, weights: Path, tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "cup.png")
    options = ["--labels", "cup", "table", "--model", weights, "--protocol", "bands", "--out", tmp_path / "out"]
    assert main([str(one) for one in ("segment", tmp_path / "cup.png", *options)]) == 0
    assert (np.asarray(Image.open(tmp_path / "out/cup.mask.png")) == np.arange(150) % 2 + 1).all()
    assert json.loads((tmp_path / "out/cup.json").read_text())["protocol"] == "bands"

    root = write_folder(tmp_path / "set", (1, 2), names=("sky", "cat", "dog"))
    options = ["--model", weights, "--protocol", "bands", "--set", "first=2", "--json", tmp_path / "result.json"]
    assert main([str(one) for one in ("evaluate", "folder", "--root", root, *options)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["protocol"], result["settings"]) == ("bands", {"first": 2, "words": ["a {}"]})


def test_a_protocol_that_there_is_not(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "cup.png")
    options = ["--labels", "cup", "--model", weights, "--protocol", "closed", "--out", tmp_path / "out"]
    assert main([str(one) for one in ("segment", tmp_path / "cup.png", *options)]) == 2
    error = capsys.readouterr().err
    assert "'closed'" in error and ", ".join(PROTOCOLS) in error and error.count("\n") == 1


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_tables_protocols(name: str) -> None:
    protocol = find_protocol(name)
    assert isinstance(protocol, Protocol) and name_of(protocol) == name and hash(protocol) is not None
    assert change_settings(protocol, ()) == protocol


def test_published_thresholds() -> None:
    assert all(PROTOCOLS["open"].for_benchmark(name) == PROTOCOLS["open"] for name in ("voc2012", "folder"))
    sets = ("voc2012", "context60", "coco-object", "folder")
    found = {
        name: [settings_of(PROTOCOLS[name].for_benchmark(one))["threshold"] for one in sets]
        for name in ("paper", "groupvit")
    }
    assert found == {
        "paper": [0.80, 0.25, 0.65, 0.65],
        "groupvit": [0.95, 0.35, 0.95, 0.95],
    }


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ("level=0.25", "level", 0.25),
        ("scale=2", "scale", 2.0),
        ("templates=a photo of a {}.", "templates", ("a photo of a {}.",)),
        ('templates=["a {}", "the {}"]', "templates", ("a {}", "the {}")),
        ("superpixel_side=200", "superpixel_side", 200),
    ],
)
def test_settings_change(change: str, field: str, value: object) -> None:
    assert getattr(change_settings(OpenProtocol(), (change,)), field) == value


@pytest.mark.parametrize(("text", "value"), [("null", None), ("448", 448)])
def test_a_setting_that_may_be_nothing(text: str, value: int | None) -> None:
    assert change_settings(PaperProtocol(), (f"short={text}",)).short == value


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("colour=3", "'colour=3'.*FIELD=VALUE.* scale, longest"),
        ("scale", "scale=; expected a number"),
        ("level=2", r"level 2.*0\.\.1"),
        ("patch_weight=1.5", r"patch_weight 1\.5.*0\.\.1"),
        ("scale=0", "scale 0.*above 0"),
        ("scale=NaN", "scale nan.*above 0"),
        ("templates=[]", r"templates \[\]"),
        ("templates=cat", r"templates .*'cat'.*one \{\} each"),
        ("superpixel_side=1.5", r"superpixel_side=1\.5; expected a whole number"),
        ("vote=true", "vote=true; expected a number"),
    ],
)
def test_settings_that_cannot_be(change: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        change_settings(OpenProtocol(), (change,))


def test_a_setting_that_is_no_number_nor_nothing() -> None:
    with pytest.raises(ValueError, match="short=none; expected a whole number or null"):
        change_settings(PaperProtocol(), ("short=none",))


@pytest.mark.parametrize("settings", [{"threshold": 1.5}, {"kept": 0}, {"templates": ()}, {"stride": -1}])
def test_objects_that_cannot_be(settings: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} .*; give"):
        PaperProtocol(**settings)


def test_larger_windows_are_larger_windows() -> None:
    segmenter = Segmenter(small_model(), PaperProtocol(short=128, window=128, stride=64))
    (encoded,) = segmenter.encode([skimage.data.chelsea()])
    assert encoded.windows[0].boxes == [(0, 0), (0, 64)] and encoded.outputs[0].soft.shape == (2, 4, 64)
    with pytest.raises(ValueError, match="not a multiple of the patch"):
        Segmenter(small_model(), PaperProtocol(window=100)).encode([skimage.data.chelsea()])


@pytest.mark.parametrize(("first", "second"), [("open", "paper"), ("groupvit", "open")])
def test_a_photo_that_another_protocol_cut(first: str, second: str) -> None:
    (encoded,) = Segmenter(small_model(), first).encode([skimage.data.chelsea()])
    with pytest.raises(ValueError, match=r"another protocol.*with this one"):
        Segmenter(small_model(), second).label(encoded, ["cat"])
