"""What people of this field change is one file and one line in a table: the files of `extending` prove it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT
from helpers.benchmark_files import write_mask, write_photo
from helpers.shard_files import FAST, map_serially
from helpers.small_model import small_model
from helpers.small_runs import metrics

from segclip import Segmenter
from segclip.annotate.formats import FORMATS
from segclip.checkpoints.native import load_model, save_model
from segclip.cli import main
from segclip.data.prepare import prepare
from segclip.data.scenes import write_scenes
from segclip.data.sources.open import open_source
from segclip.evaluate.datasets import DATASETS
from segclip.losses import LOSSES
from segclip.model.grouping import GROUPINGS
from segclip.model.towers import IMAGE_TOWERS
from segclip.segment.protocols import PROTOCOLS

TRAIN = ("train", "debug", "--batch", "4", "--steps", "2", "--workers", "0", "--trackers")


TABLES: tuple[dict[str, Any], ...] = (GROUPINGS, LOSSES, IMAGE_TOWERS, PROTOCOLS, DATASETS, FORMATS)


@pytest.fixture(scope="module", autouse=True)
def extended() -> Iterator[None]:
    """The files are imported, which adds to the tables; afterwards the tables are as they were."""
    before = [dict(table) for table in TABLES]
    for name in ("grouping", "loss", "tower", "protocol", "benchmark", "format"):
        import_module(f"extending.my_{name}")
    yield
    for table, own in zip(TABLES, before, strict=True):
        table.clear()
        table.update(own)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extending")
    scenes = open_source(write_scenes(folder / "scenes", 8, seed=0))
    prepare(scenes, folder / "shards", FAST, map_chunks=map_serially)
    return folder / "shards"


def trained(shards: Path, out: Path, *options: str) -> list[dict[str, float]]:
    assert main([*TRAIN, "--data", str(shards), "--out", str(out), *options]) == 0
    return metrics(out)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("--model.grouping", "slots", "--init-centers", "random", "--micro-batch", "2"), ("grouping", "slots")),
        (("--model.image.kind", "mixer"), ("kind", "mixer")),
    ],
)
def test_a_grouping_or_a_tower_is_trained_saved_loaded_and_segments(
    options: tuple[str, ...], kind: tuple[str, str], shards: Path, tmp_path: Path
) -> None:
    lines = trained(shards, tmp_path, *options)
    assert len(lines) == 2 and lines[-1]["loss"] > 0
    model = load_model(tmp_path / "model.safetensors")
    assert kind in {**vars(model.config.image), **vars(model.config)}.items()
    photo = np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)
    expected = Segmenter(model).segment(photo, ["a star", "a ring"])
    assert expected.labels.shape == (64, 80)
    for dtype in ("bfloat16", "int8"):
        found = Segmenter(str(tmp_path / "model.safetensors"), dtype=dtype).segment(photo, ["a star", "a ring"])
        assert (found.labels == expected.labels).mean() > 0.9


@pytest.mark.parametrize("name", ["my_grouping", "my_loss", "my_tower"])
def test_contributing_shows_it(name: str) -> None:
    assert (ROOT / "tests" / "extending" / f"{name}.py").read_text() in (ROOT / "CONTRIBUTING.md").read_text()


def test_a_file_whose_grouping_nobody_added_says_so(shards: Path, tmp_path: Path) -> None:
    trained(shards, tmp_path, "--model.grouping", "slots", "--init-centers", "random", "--steps", "1")
    file = str(tmp_path / "model.safetensors")
    result = subprocess.run(
        [sys.executable, "-m", "segclip", "convert", file, file + "2"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "grouping 'slots'" in result.stderr and "import the module that adds it" in " ".join(result.stderr.split())


def test_an_example_runs_by_itself(shards: Path, tmp_path: Path) -> None:
    """As the first line of each says."""
    file = str(Path(__file__).parent / "extending" / "my_loss.py")
    options = ["--data", str(shards), "--out", str(tmp_path), "--losses.balance", "0.5", "--losses.superpixel", "0"]
    subprocess.run([sys.executable, file, *TRAIN, *options], check=True, capture_output=True)
    recipe = json.loads((tmp_path / "recipe.json").read_text())["recipe"]
    assert recipe["losses"] == {"contrastive": 1.0, "reconstruction": 1.0, "balance": 0.5}
    for line in metrics(tmp_path):
        assert line["superpixel"] == 0 < line["balance"]
        parts = line["contrastive"] + line["reconstruction"] + 0.5 * line["balance"]
        assert line["loss"] == pytest.approx(parts)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ("--losses.blance", "0.5"),
            "loss 'blance'; known are contrastive, superpixel, reconstruction, words, multiple_instance, retrieval, "
            "presence, balance",
        ),
        (("--model.grouping", "slot"), "grouping 'slot'; known are centers, refined, k-means, patches, slots"),
        (("--model.image.kind", "vit"), "image tower 'vit'; known are clip, dinov2, mixer"),
        (("--model.image.activation", "relu"), "image.activation 'relu'; known are quick_gelu, gelu"),
        (("--model.mask-ratio", "0.99"), "mask_ratio 0.99 leaves none of 64 patches visible"),
        (("--model.grouping", "slots", "--init-centers", "k-means"), "'slots' cannot start from k-means"),
    ],
)
def test_names_that_are_in_no_table(
    options: tuple[str, ...], why: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--data", str(shards), "--out", str(tmp_path), *options]) == 2
    assert why in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(small_model(), file)
    return str(file)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_photo(tmp_path / "photos" / f"{name}.jpg")
    return tmp_path / "photos"


def test_a_protocol(weights: str, photos: Path, tmp_path: Path) -> None:
    options = ["--labels", "cat", "dog", "--model", weights, "--protocol", "squeezed"]
    assert main(["segment", str(photos / "a.jpg"), *options, "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert record["protocol"] == "squeezed" and record["found"]
    all_background = replace(PROTOCOLS["squeezed"], floor=1.0)
    assert not Segmenter(weights, all_background).segment(photos / "a.jpg", ["cat", "dog"]).labels.any()


def test_a_benchmark(weights: str, photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "sea"
    shutil.copytree(photos, root / "val" / "photos")
    for name in ("a", "b"):
        write_mask(root / "val" / "truth" / f"{name}.png", 0, 1, 2)
    result = tmp_path / "result.json"
    command = ["evaluate", "sea", "--root", str(root), "--model", weights, "--json", str(result)]
    assert main([*command, "--protocol", "squeezed", "--set", "floor=0.2"]) == 0
    found = json.loads(result.read_text())
    assert list(found["per_class"]) == ["background", "boat", "water"] and 0 <= found["miou"] <= 1
    assert found["changed"] == ["floor=0.2"]


def test_an_annotation_format(weights: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["annotate", str(photos), "--labels", "cat", "dog", "--model", weights, "--background", "none"]
    assert main([*command, "--out", str(out)]) == 0
    rows = [line.split("\t") for line in (out / "areas.tsv").read_text().splitlines()]
    assert {photo for photo, *_ in rows} == {"a.jpg", "b.jpg"}
    areas = [annotation["area"] for annotation in json.loads((out / "coco.json").read_text())["annotations"]]
    assert sorted(int(area) for *_, area in rows) == sorted(areas)


def test_an_exporter(weights: str, tmp_path: Path) -> None:
    """In a process of its own: torch cannot trace through the type checks of the tests."""
    file, out = Path(__file__).parent / "extending" / "my_exporter.py", tmp_path / "model.txt"
    subprocess.run([sys.executable, str(file), "export", str(out), "--model", weights], check=True)
    assert out.read_text().startswith("outputs: embedding, regions, soft\ngraph():")
