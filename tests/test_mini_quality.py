"""benchmarks/mini_quality.py: its measures on tiny arrays, and figures known beforehand."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT
from helpers.benchmark_files import write_folder
from helpers.small_model import small_model
from PIL import Image

from segclip.checkpoints.native import save_model
from segclip.segment.segmenter import Segmentation, Segmenter
from segclip.text.labels import check_labels
from segclip.visualize import OKABE_ITO

NAMES = ("background", *(f"thing {i}" for i in range(1, 15)))


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def measures() -> Any:
    return importlib.import_module("quality_measures")


def test_iou_leaves_out_what_nobody_labelled() -> None:
    truth = np.array([[1, 1, 1, 2], [0, 0, 255, 255]], np.uint8)
    found = np.array([[0, 2, 2, 1], [2, 0, 2, 2]])
    assert measures().iou_of(found == 2, truth, 1) == 2 / 4  # and one pixel of the background
    assert measures().ious_of(found, truth, [2, 1]) == [1 / 1, 2 / 4]
    assert measures().iou_of(found == 3, truth, 1) == 0


def test_the_main_thing_covers_most_and_at_least_a_twentieth() -> None:
    truth = np.zeros((10, 10), np.uint8)
    assert measures().main_thing(truth) is None
    truth[:6] = 255
    truth[6, :4] = 7
    assert measures().main_thing(truth) is None
    truth[6, 4] = 7
    assert measures().main_thing(truth) == 7
    truth[7, :6] = 3
    assert measures().main_thing(truth) == 3


def test_names_are_drawn_by_the_photos_name_from_those_that_it_lacks() -> None:
    draw = measures().draw_among
    drawn = draw("000000000025", 5, {5, 6, 7}, 81)
    assert drawn == [34, 23, 5, 9, 25, 35, 1, 55, 32, 33]  # in every run, on every machine
    for key in map(str, range(50)):
        drawn = draw(key, 5, {5, 6, 7}, 18)
        assert len(set(drawn)) == 10 and 5 in drawn and not {0, 6, 7, 18} & set(drawn)
    assert len({tuple(draw(str(key), 5, {5}, 81)) for key in range(50)}) == 50
    assert sorted(draw("a", 1, {1, 3}, 5)) == [1, 2, 4]  # a set of four things


def test_a_label_is_answered_by_a_pixel() -> None:
    assert measures().answered(np.array([[0, 3], [3, 1]]), 4) == [True, False, True, False]


@pytest.fixture
def stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of photos of 40x60, asked for n labels, a model finds each in one of n + 1 stripes, up to three.

    With the bar at 0.3 they are mirrored.
    """

    def label(
        self: Segmenter, encoded: Any, labels: Sequence[str], *, background: object = "auto", presence: object = "auto"
    ) -> Segmentation:
        labels = check_labels(labels).names
        stripes = min(len(labels), 2) + 1
        found = np.arange(60)[None].repeat(40, 0) * stripes // 60
        if background is None:
            found = np.maximum(found, 1)
        if getattr(self.protocol, "level", None) == 0.3:
            found = found[:, ::-1]
        size = found.shape
        return Segmentation(
            found.astype(np.int32),
            np.ones(size),
            tuple(labels),
            encoded.photo,
            "paper",
            None,
            np.ones(len(getattr(labels, "names", labels)), np.float32),
        )

    monkeypatch.setattr(Segmenter, "label", label)


def test_figures_known_beforehand(
    stripes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The second photo is left out by --every 2; the third has no thing.
    root = write_folder(tmp_path / "set", (0, 1, 2, 2), (3,), (0,), (3,), (4, 4, 4, 255), names=NAMES)
    save_model(small_model(), tmp_path / "small.safetensors")
    figures = run(monkeypatch, root, tmp_path, "--every", "2", "--sheet", str(tmp_path / "sheet.png"))
    # First photo: columns 0-14 background, 15-29 thing 1, 30-59 thing 2; last: 0-44 thing 4, the rest unknown.
    # Alone, columns 30-59 are found; thing 1, thing 2, and thing 4, of which 30-44 were labelled.
    assert figures["one"] == pytest.approx(np.mean([0, 1, 15 / 45]))
    assert figures["main1"] == pytest.approx(np.mean([1, 15 / 45]))
    # Together, the first is found in 20-39, the second in 40-59; alone, thing 4 as before.
    assert figures["asked"] == pytest.approx(np.mean([10 / 25, 20 / 30, 15 / 45]))
    places = [measures().draw_among(*one, len(NAMES)).index(one[1]) for one in (("0", 2, [1, 2]), ("4", 4, [4]))]
    thirds = ([10 / 40, 20 / 30], [20 / 45, 5 / 45])  # of the main thing, if it is the first or the second of the ten
    expected = [third[place] if place < 2 else 0 for third, place in zip(thirds, places, strict=True)]
    assert figures["main10"] == pytest.approx(np.mean(expected))
    assert figures["found"] == np.mean([place < 2 for place in places])
    assert figures["dropped"] == sum(8 if place < 2 else 7 for place in places) / 18
    assert figures["told_accuracy"] == pytest.approx((15 + 20 + 45) / (45 + 45))
    assert (figures["photos"], figures["set"], figures["told_voc"]) == (3, "set", None)
    shown = capsys.readouterr().out
    assert f"main1, alone, mean IoU {figures['main1']:.3f}" in shown and "3 photos of set" in shown
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.size == (2400, 266)
        check_tile(np.asarray(sheet.convert("RGB")))


def test_ceilings_known_beforehand(
    stripes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "set", (0, 1, 2, 2), (3,), (4, 4, 4, 255), names=NAMES)
    save_model(small_model(), tmp_path / "small.safetensors")
    monkeypatch.setattr(sys, "argv", ["ceilings.py", str(root), str(tmp_path / "small.safetensors"), "--every", "2"])
    importlib.import_module("ceilings").main()
    # As above, but where the bar is at 0.3 columns 0-29 are found alone; within the things, thing 1 is found in 15-39,
    # thing 2 in 40-59, thing 4 everywhere.
    expected = {
        "bars, labels alone, one for all": np.mean([0, 1, 15 / 45]),
        "bars, labels alone, the best for each": np.mean([15 / 30, 1, 30 / 45]),
        "bars, main things, one for all": np.mean([1, 15 / 45]),
        "bars, main things, the best for each": np.mean([1, 30 / 45]),
        "presence, as found": np.mean([10 / 25, 20 / 30, 15 / 45]),
        "presence, all there": np.mean([10 / 25, 20 / 30, 15 / 45]),
        "background, true": np.mean([15 / 25, 20 / 30, 1]),
        "whole, 15 classes, the photo's own labels": np.mean([15 / 50, 10 / 25, 20 / 30, 15 / 45]),
        "whole, and the true background": np.mean([1, 15 / 25, 20 / 30, 1]),
    }
    shown = [line.rsplit(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line]
    assert {name: float(value) for name, value in shown} == {name: round(one, 3) for name, one in expected.items()}


def check_tile(sheet: np.ndarray) -> None:
    """The first photo, 320x213 pixels: as it is, as found, and its truth, in the same colours, above their names."""
    photo, found, truth = (sheet[:213, left : left + 320].astype(float) for left in (0, 328, 656))
    for colour, mine, right in zip(OKABE_ITO, ((110, 210), (220, 315)), ((85, 155), (165, 315)), strict=False):
        for picture, (start, end) in ((found, mine), (truth, right)):
            tint = 0.45 * photo[5:25, start:end] + 0.55 * np.array(colour)
            np.testing.assert_allclose(picture[5:25, start:end], tint, atol=2)


def run(monkeypatch: pytest.MonkeyPatch, root: Path, folder: Path, *options: str) -> dict[str, Any]:
    out = folder / "figures.json"
    arguments = [str(root), str(folder / "small.safetensors"), "--protocol", "paper", "--json", str(out), *options]
    monkeypatch.setattr(sys, "argv", ["mini_quality.py", *arguments])
    importlib.import_module("mini_quality").main()
    return json.loads(out.read_text())


def test_a_set_without_main_things_is_measured_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "set", (0,), names=NAMES)
    save_model(small_model(), tmp_path / "small.safetensors")
    figures = run(monkeypatch, root, tmp_path)
    assert [figures[name] for name in ("asked", "one", "main1", "main10", "found", "dropped")] == [None] * 6
    assert "main1, alone, mean IoU -" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("--every", "0"), ("--sheet", "sheet.txt")])
def test_options_that_cannot_be_used(
    option: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, tmp_path, *option)
    assert f"{' '.join(option)}: expected" in capsys.readouterr().err
