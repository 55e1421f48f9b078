"""segclip evaluate: figures known beforehand, broken runs, several processes, settings, the page."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import skimage.data
import torch
from helpers.benchmark_files import write_coco_instances, write_context, write_folder, write_mask, write_voc
from helpers.small_model import small_model
from helpers.small_runs import run_script
from PIL import Image

from segclip.checkpoints.native import save_model
from segclip.cli import main
from segclip.data.scenes import write_scenes
from segclip.evaluate.datasets import open_benchmark
from segclip.evaluate.datasets.benchmark import Benchmark
from segclip.evaluate.datasets.folder import open_folder
from segclip.evaluate.datasets.voc2012 import SCLIP_BACKGROUND
from segclip.evaluate.diagnosis import Diagnosis
from segclip.evaluate.evaluator import Evaluator, PhotoCounts, cut_batches, words_of
from segclip.evaluate.metrics import Confusion, count_pairs
from segclip.evaluate.records import Records
from segclip.segment.protocols.dense import DenseProtocol
from segclip.segment.protocols.paper import PaperProtocol
from segclip.segment.protocols.settings import settings_of
from segclip.segment.segmenter import Segmentation, Segmenter
from segclip.text.labels import Labels
from segclip.utils.failures import Failed
from segclip.utils.locks import only_one_writer


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(small_model(), file)
    return file


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten generated photos, of which a background was made."""
    root = write_scenes(tmp_path_factory.mktemp("scenes"), 10, seed=3)
    file = root / "classes.json"
    classes = json.loads(file.read_text())["classes"]
    classes["0"] = "background"
    file.write_text(json.dumps({"classes": classes}))
    return root


def evaluate(root: Path, weights: Path, out: Path, *options: str, name: str = "folder") -> dict[str, Any]:
    command = ["evaluate", name, "--root", str(root), "--model", str(weights), "--json", str(out), *options]
    assert main(command) == 0
    return json.loads(out.read_text())


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """All but what says where and how."""
    return {name: result[name] for name in ("miou", "miou_interval", "per_class", "region_miou", "confusion")}


def test_a_label_map_computed_by_hand(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Halves that are found as thirds, in both orders of classes; the middle of 20 columns is wrong in each photo."""

    def label(self: Segmenter, encoded: Any, labels: Labels, *, background: object, presence: object) -> Segmentation:
        assert labels.names == ("cat", "dog") and background == presence == "auto"
        found = np.arange(60)[None].repeat(40, 0) // 20  # 0, 1, 2
        scores, there = np.ones(found.shape), np.ones(2)
        return Segmentation(
            found.astype(np.int32), scores, ("cat", "dog"), encoded.photo, self.protocol_name, "auto", there
        )

    monkeypatch.setattr(Segmenter, "label", label)
    root = write_folder(tmp_path, (0, 2), (0, 1, 255))
    result = evaluate(root, weights, tmp_path / "result.json", "--protocol", "paper")
    # Columns of class 0, 1, 2: the truth has 30 + 20, 20, 30; found are 40, 40, 20; right are 40, 20, 20.
    assert result["per_class"] == pytest.approx({"background": 40 / 50, "cat": 20 / 40, "dog": 20 / 30})
    assert result["miou"] == pytest.approx((40 / 50 + 20 / 40 + 20 / 30) / 3)
    assert result["pixel_accuracy"] == pytest.approx(80 / 100)
    assert result["mean_class_accuracy"] == pytest.approx((40 / 50 + 1 + 20 / 30) / 3)
    assert np.sum(result["confusion"]) == 40 * 100
    assert (result["protocol"], result["photos"], result["left_out"]) == ("paper", 2, {})
    low, high = result["miou_interval"]
    assert low < result["miou"] < high
    shown = capsys.readouterr().out
    assert "protocol paper, threshold 0.65; names own" in shown and "mIoU 0.6556" in shown


def test_the_result_tells_how_to_repeat_it(tmp_path: Path, weights: Path) -> None:
    write_voc(tmp_path)
    result = evaluate(tmp_path, weights, tmp_path / "r.json", "--protocol", "paper", "--set", "kept=3", name="voc2012")
    sha256 = subprocess.run(["sha256sum", weights], capture_output=True, text=True, check=True).stdout.split()[0]
    assert result["weights_sha256"] == sha256
    assert result["settings"] == json.loads(json.dumps(settings_of(PaperProtocol(threshold=0.8, kept=3))))
    assert result["versions"]["torch"] == torch.__version__ and result["split"] == "val"
    assert result["words"][1] == ["aeroplane"] and result["words"][0] == []


def test_presence_is_passed_on_and_recorded(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    label, asked = Segmenter.label, []
    monkeypatch.setattr(
        Segmenter, "label", lambda *given, **options: asked.append(options["presence"]) or label(*given, **options)
    )
    root, out, options = write_folder(tmp_path, (0, 2)), tmp_path / "r.json", ("--protocol", "paper")
    judged = evaluate(root, weights, out, *options)
    assert judged["presence"] == "auto" == asked.pop() and "presence" not in capsys.readouterr().out
    command = ["evaluate", "folder", "--root", str(root), "--model", str(weights), "--json", str(out), *options]
    assert main([*command, "--presence", "none"]) == 2
    assert "(other presence)" in capsys.readouterr().err
    out = tmp_path / "none.json"
    told = evaluate(root, weights, out, *options, "--presence", "none")
    assert told["presence"] is None is asked.pop() and "presence none; names own" in capsys.readouterr().out
    assert figures(told) == figures(judged), "the paper's protocol never judges"


def test_labels_become_the_classes_they_stand_for(tmp_path: Path) -> None:
    write_voc(tmp_path)
    benchmark = open_benchmark("voc2012", tmp_path)
    evaluator = Evaluator(Segmenter(small_model(), "paper"), benchmark, words_of(benchmark, "sclip"))
    assert not evaluator.threshold
    (batch,) = evaluator.encode(cut_batches(benchmark.pairs))
    ((_, encoded, truth),) = batch
    result = evaluator.segmenter.label(encoded, evaluator.labels, background=None)
    classes = evaluator.label(encoded)
    assert evaluator.labels.background == SCLIP_BACKGROUND
    for label, found in {(int(a), int(b)) for a, b in zip(result.labels.flat, classes.flat, strict=True)}:
        assert label == found == 0 or result.names[label - 1] == words_of(benchmark, "sclip")[found][0]
    assert classes.shape == truth.shape


def test_the_word_background_as_context_has_it(tmp_path: Path) -> None:
    """It competes with the classes, and what it wins is class 0, as what the threshold of `dense` leaves is."""
    write_context(tmp_path, "converted")
    benchmark = open_benchmark("context60", tmp_path)
    (word, one) = (evaluator_of(benchmark, names) for names in ("sclip", "own"))
    assert word.labels.background == ("background",) and one.labels.background == ()
    assert word.labels.words == one.labels.words and len(word.labels.names) == 59
    ((_, encoded, _),) = next(word.encode(cut_batches(benchmark.pairs)))
    every, many = (own.segmenter.label(encoded, own.labels, background=None).labels for own in (one, word))
    assert (every > 0).all() and set(np.unique(many[many != every])) <= {0}
    likely = word.segmenter.label(encoded, word.labels, background=0.5)
    np.testing.assert_array_equal(word.label(encoded, 0.5), likely.labels)
    assert word.threshold and one.threshold
    paper = Evaluator(Segmenter(small_model(), "paper"), benchmark, words_of(benchmark, "sclip"))
    assert not paper.threshold


def evaluator_of(benchmark: Benchmark, names: Literal["own", "sclip"]) -> Evaluator:
    protocol = DenseProtocol(short=64, window=64, templates=("a {}",))
    return Evaluator(Segmenter(small_model(), protocol), benchmark, words_of(benchmark, names))


def test_it_goes_on_where_it_was_killed(tmp_path: Path, weights: Path, scenes: Path) -> None:
    whole = evaluate(scenes, weights, tmp_path / "whole.json")
    command = ["-m", "segclip", "evaluate", "folder", "--root", str(scenes), "--model", str(weights)]
    command += ["--json", str(tmp_path / "killed.json")]
    lines = tmp_path / "killed.photos.jsonl"
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") > 1):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.json").exists()
    known = lines.read_bytes()
    lines.write_bytes(known + b'{"photo": "half a li')
    resumed = evaluate(scenes, weights, tmp_path / "killed.json")
    assert figures(resumed) == figures(whole)
    assert lines.read_bytes().startswith(known[: known.index(b"\n")])
    with pytest.raises(AssertionError):
        evaluate(scenes, weights, tmp_path / "killed.json", "--protocol", "paper")


def test_what_is_known_is_not_encoded_again(
    tmp_path: Path, weights: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = evaluate(scenes, weights, tmp_path / "result.json")
    monkeypatch.setattr(Segmenter, "encode", None)
    assert figures(evaluate(scenes, weights, tmp_path / "result.json")) == figures(whole)
    other = ["evaluate", "folder", "--root", str(scenes), "--model", str(weights), "--set", "level=0.25"]
    assert main([*other, "--json", str(tmp_path / "result.json")]) == 2
    error = capsys.readouterr().err
    assert "result.photos.jsonl: holds photos of another evaluation (other changed, settings)" in error


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path, weights: Path, scenes: Path) -> None:
    whole = evaluate(scenes, weights, tmp_path / "one.json")
    command = ["evaluate", "folder", "--root", str(scenes), "--model", str(weights)]
    run_script("-m", "segclip", *command, "--json", str(tmp_path / "two.json"), processes=2)
    assert figures(json.loads((tmp_path / "two.json").read_text())) == figures(whole)
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two.json", "two.photos.jsonl"]
    one, two = ((tmp_path / f"{name}.photos.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two


def test_processes_need_a_file_to_share(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", "folder", "--root", str(scenes)]) == 2
    assert "several processes: give --json FILE" in capsys.readouterr().err


def test_files_that_cannot_be_written(tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for options, why in (
        (("--json", str(tmp_path)), "is a folder; --json names the file of the result"),
        (("--json", str(tmp_path / "file" / "r.json")), "cannot be written"),
        (("--report", str(tmp_path / "file")), "cannot be written"),
    ):
        assert main(["evaluate", "folder", "--root", str(scenes), *options]) == 2
        assert why in capsys.readouterr().err


def test_bad_photos_are_left_out_and_named(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "set", (0, 1), (0, 2), (1, 2), (0, 0), (1, 1))
    write_mask(root / "masks/1.png", 0, 7)
    command = ["evaluate", "folder", "--root", str(root), "--model", str(weights), "--json", str(tmp_path / "r.json")]
    assert main(command) == 2
    assert "masks/1.png: has the values 7, which are no class" in capsys.readouterr().err
    assert main([*command, "--skip-bad"]) == 1
    result = json.loads((tmp_path / "r.json").read_text())
    assert list(result["left_out"]) == ["1"] and "values 7" in result["left_out"]["1"]
    assert np.sum(result["confusion"]) == 4 * 40 * 60
    assert "left out: 1: " in capsys.readouterr().err
    for name in "0123":  # a whole batch of them
        (root / f"masks/{name}.png").rename(root / f"masks/{name}.kept")
    command[-1] = str(tmp_path / "batch.json")
    assert main([*command, "--skip-bad"]) == 1
    assert list(json.loads((tmp_path / "batch.json").read_text())["left_out"]) == ["0", "1", "2", "3"]
    for name in "0123":
        (root / f"masks/{name}.kept").rename(root / f"masks/{name}.png")
    command[-1] = str(tmp_path / "r.json")
    write_mask(root / "masks/1.png", 0, 2)  # mended
    assert main(command) == 0
    assert np.sum(json.loads((tmp_path / "r.json").read_text())["confusion"]) == 5 * 40 * 60


@pytest.mark.slow
def test_a_calibration_tries_thresholds_on_training_photos(
    tmp_path: Path, weights: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "curve.json"
    command = ["evaluate", "folder", "--root", str(scenes), "--model", str(weights), "--protocol", "paper"]
    assert main([*command, "--calibrate", "--json", str(file)]) == 0
    curve = json.loads(file.read_text())
    assert len(curve["calibration"]) == 19 and "miou" not in curve
    best = max(curve["calibration"], key=lambda point: point[1])
    assert curve["best_threshold"] == best[0] and f"--set threshold={best[0]:g}" in capsys.readouterr().out
    result = evaluate(scenes, weights, tmp_path / "r.json", "--protocol", "paper", "--set", f"threshold={best[0]}")
    assert result["miou"] == pytest.approx(best[1], abs=1e-12)

    assert main(["evaluate", "voc2012", "--root", str(scenes), "--calibrate", "--split", "val"]) == 2
    assert "the split that is reported" in capsys.readouterr().err
    no_background = write_folder(tmp_path / "none", (0, 1), names=("sky", "sea"))
    assert main(["evaluate", "folder", "--root", str(no_background), "--model", str(weights), "--calibrate"]) == 2
    assert "nothing is found by a threshold here" in capsys.readouterr().err


def test_a_part_of_a_set_is_spread_over_it(tmp_path: Path, weights: Path, scenes: Path) -> None:
    result = evaluate(scenes, weights, tmp_path / "r.json", "--limit", "3")
    assert (result["photos"], result["of"]) == (3, 10)
    keys = [json.loads(line)["photo"] for line in (tmp_path / "r.photos.jsonl").read_text().splitlines()[1:]]
    stems = sorted(path.stem for path in (scenes / "images").iterdir())
    assert keys == [stems[0], stems[3], stems[6]]
    assert main(["evaluate", "folder", "--root", str(scenes), "--limit", "0"]) == 2


@torch.inference_mode()
def test_regions_are_judged_without_names(tmp_path: Path) -> None:
    """A model whose two regions are the halves of a photo, as the truth is; its names are all wrong."""
    root = tmp_path
    photo = skimage.data.chelsea()[:64, :64]
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    Image.fromarray(photo).save(root / "images/a.png")
    truth = np.where(np.arange(64) < 32, 1, 2)[None].repeat(64, 0).astype(np.uint8)
    Image.fromarray(truth).save(root / "masks/a.png")
    (root / "classes.json").write_text(json.dumps({"classes": {"0": "sky", "1": "cat", "2": "dog"}}))
    benchmark = open_folder(root)
    evaluator = Evaluator(Segmenter(small_model(), "paper"), benchmark, words_of(benchmark))
    (((key, encoded, mask),),) = evaluator.encode(cut_batches(benchmark.pairs))
    (output,) = encoded.outputs
    output.soft[:] = 0
    output.soft.unflatten(-1, (4, 4))[:, 0, :, :2] = 1
    output.soft.unflatten(-1, (4, 4))[:, 1, :, 2:] = 1
    counts = evaluator.count(key, encoded, mask)
    assert sorted(counts.regions.tolist()) == [[1, 1, 64 * 32], [2, 2, 64 * 32]]
    found = Confusion(3)
    found.add_counts(counts.found)
    np.testing.assert_array_equal(count_pairs(mask, evaluator.label(encoded), 3), counts.found)
    assert found.miou() < 0.5


def test_a_diagnosis_counts_things_told_named_and_grouped(tmp_path: Path) -> None:
    """A photo of one thing and background: told its only label, a model is always right."""
    benchmark = open_folder(write_folder(tmp_path, (0, 1), (0,)))
    evaluator = Evaluator(Segmenter(small_model(), "paper"), benchmark, words_of(benchmark))
    diagnosis = Diagnosis(evaluator)
    for batch in evaluator.encode(cut_batches(benchmark.pairs)):
        for _, encoded, truth in batch:
            diagnosis.add(encoded, truth)
    assert diagnosis.told.pixels.tolist() == [[0, 0, 0], [0, 40 * 30, 0], [0, 0, 0]]
    named = diagnosis.named.pixels
    assert named[1, 1:].sum() == named.sum() == 40 * 30
    assert not diagnosis.regions.pixels[2].any() and diagnosis.regions.pixels[:2].any(axis=1).all()


def test_the_page(tmp_path: Path, weights: Path, scenes: Path) -> None:
    root = tmp_path / "set"
    write_folder(root, (0, 1), (0, 2), (1, 2), (0, 0), (1, 1), names=("background", "<b>cat", "dog"))
    evaluate(root, weights, tmp_path / "r.json", "--report", str(tmp_path / "page"))
    page = (tmp_path / "page/index.html").read_text()
    assert page.count("<figure>") == 4 and page.count("data:image/jpeg;base64,") == 12  # two best and two worst
    assert "&lt;b&gt;cat" in page and "<b>cat" not in page
    assert "protocol open" in page and re.search(r"sha256 [0-9a-f]{64}", page)
    assert not re.search(r"(src|href)='http", page)


def test_counts_are_merged_whatever_wrote_them(tmp_path: Path) -> None:
    def counts(key: str, pixels: int) -> PhotoCounts:
        return PhotoCounts(key, f"stamp of {key}", np.array([[0, 1, pixels]]), np.zeros((0, 3), np.int64))

    def records(rank: int, name: str = "a") -> Records:
        return Records(tmp_path / "r.json", {"set": name}, 2, rank)

    first, second = records(0), records(1)
    assert first.counted() == second.counted() == {}
    first.start([counts("b", 1)])
    second.start([])
    first.add([counts("c", 2)])
    second.add_failed([Failed("a", "broken")])
    second.add([counts("d", 3)])
    found = records(0).counted()
    assert {key: (photo.stamp, photo.found.tolist()) for key, photo in found.items()} == {
        key: (f"stamp of {key}", [[0, 1, pixels]]) for key, pixels in (("b", 1), ("c", 2), ("d", 3))
    }
    first.merge(2)
    assert [photo.key for photo in first.photos()] == ["b", "c", "d"] and first.failed() == [Failed("a", "broken")]
    assert [path.name for path in tmp_path.iterdir()] == ["r.photos.jsonl"]
    with pytest.raises(ValueError, match=r"of another evaluation \(other set\)"):
        records(0, "b").counted()


@pytest.mark.parametrize(
    "spoil",
    [b"{", b"\xff", b"[]", b"{}", b'{"photo": "b"}', b'{"photo":"b","stamp":"s","found":[[0,9,1]],"regions":[]}'],
)
def test_a_damaged_line_is_a_photo_that_is_not_counted(spoil: bytes, tmp_path: Path) -> None:
    records = Records(tmp_path / "r.json", {}, 2, 0)
    records.start([PhotoCounts(key, "s", np.array([[0, 1, 5]]), np.zeros((0, 3), np.int64)) for key in "abc"])
    job, a, _, c = records.main.read_bytes().splitlines()
    records.main.write_bytes(b"\n".join((job, a, spoil, c, b"")))
    assert list(records.counted()) == ["a", "c"]
    records.main.write_bytes(b"\n".join((spoil, a, b"")))
    with pytest.raises(
        ValueError, match=r"r\.photos\.jsonl: its first line does not say of which evaluation it is; give"
    ):
        records.counted()


def write_noise(file: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3)).astype(np.uint8)).save(file)


def invert(root: Path) -> None:
    for file in (root / "masks").iterdir():
        values = np.asarray(Image.open(file))
        Image.fromarray(np.where(values == 255, 255, 1 - values).astype(np.uint8)).save(file)


def exchange(root: Path) -> None:
    """Also with the size and the time of the photo before: an archive may give every file the same."""
    before = (root / "images/2.bmp").stat()
    write_noise(root / "images/2.bmp", 99)
    os.utime(root / "images/2.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))


def rename(root: Path) -> None:
    for folder, suffix in (("images", "bmp"), ("masks", "png")):
        (root / folder / f"1.{suffix}").rename(root / folder / f"9.{suffix}")


def remove(root: Path) -> None:
    for folder, suffix in (("images", "bmp"), ("masks", "png")):
        (root / folder / f"8.{suffix}").unlink()


def add(root: Path) -> None:
    for folder, suffix in (("images", "bmp"), ("masks", "png")):
        shutil.copy(root / folder / f"3.{suffix}", root / folder / f"99.{suffix}")


@pytest.mark.parametrize(
    ("change", "encoded"), [(invert, 9), (exchange, 4), (rename, 1), (remove, 0), (add, 2), (lambda root: None, 0)]
)
def test_figures_of_an_older_input_are_never_given(
    change: Callable[[Path], None], encoded: int, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changed is counted again, with its batch of four, and nothing else is."""
    root = write_folder(tmp_path / "set", *((0, 0, 1), (0, 1, 255), (1, 0, 0)) * 3, names=("sky", "sea"))
    for seed, file in enumerate(list((root / "images").iterdir())):
        write_noise(file.with_suffix(".bmp"), seed)
        file.unlink()
    options = ("--protocol", "paper", "--report", str(tmp_path / "page"))
    before = evaluate(root, weights, tmp_path / "r.json", *options)
    change(root)
    real, seen = Segmenter.encode, []
    monkeypatch.setattr(Segmenter, "encode", lambda self, photos: seen.extend(photos) or real(self, photos))
    after = evaluate(root, weights, tmp_path / "r.json", *options[:2])
    assert len(seen) == encoded
    afresh = evaluate(root, weights, tmp_path / "afresh.json", *options)
    assert figures(after) == figures(afresh) and after["photos"] == afresh["photos"]
    if change is invert:
        assert after["miou"] != before["miou"]
    (lines,), (expected,) = (list(tmp_path.glob(f"{name}.photos*")) for name in ("r", "afresh"))
    assert lines.read_bytes() == expected.read_bytes()


def test_instances_that_were_edited_are_counted_again(tmp_path: Path, weights: Path) -> None:
    write_coco_instances(tmp_path)
    file = tmp_path / "annotations/instances_val2017.json"
    before = evaluate(tmp_path, weights, tmp_path / "r.json", "--protocol", "paper", name="coco-object")
    file.write_text(file.read_text().replace('"category_id": 17', '"category_id": 18'))
    after = evaluate(tmp_path, weights, tmp_path / "r.json", "--protocol", "paper", name="coco-object")
    assert before["per_class"]["cat"] is not None and after["per_class"]["dog"] is not None
    assert figures(after) == figures(
        evaluate(tmp_path, weights, tmp_path / "2.json", "--protocol", "paper", name="coco-object")
    )


def test_a_second_evaluation_of_one_result_is_refused(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_folder(tmp_path / "set", (0, 1)), tmp_path / "r.json"
    with only_one_writer(out):
        assert main(["evaluate", "folder", "--root", str(root), "--model", str(weights), "--json", str(out)]) == 2
        assert "r.json: another run is writing it; give another file" in capsys.readouterr().err
        evaluate(root, weights, tmp_path / "other.json", "--protocol", "paper")


def test_masks_that_can_hardly_be_meant(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out, options = tmp_path / "r.json", ("--protocol", "paper")
    evaluate(write_folder(tmp_path / "a", (0, 255), (255, 0)), weights, out, *options)
    assert "every labelled pixel of the masks is 'background'; 255 is 'not labelled'" in caplog.text
    root = write_folder(tmp_path / "b", (255,), (255,))
    out = tmp_path / "none.json"
    assert main(["evaluate", "folder", "--root", str(root), "--model", str(weights), "--json", str(out), *options]) == 2
    assert "no pixel of the masks has a class; 255" in capsys.readouterr().err and not out.exists()
    write_mask(root / "masks/0.png", 9)
    write_mask(root / "masks/1.png", 9)
    assert main(["evaluate", "folder", "--root", str(root), "--model", str(weights), "--skip-bad"]) == 2
    assert "none of the photos and masks can be read, such as 1 " in capsys.readouterr().err
