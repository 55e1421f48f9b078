"""Runs that several tests of training share: their data, a recipe over frozen towers, and runs that nobody broke."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.shard_files import FAST, map_serially
from helpers.small_model import ADAPTED, small_model
from helpers.small_runs import CACHED, PAIRS
from PIL import Image

from segclip.checkpoints.native import save_model
from segclip.data.prepare import prepare
from segclip.data.shards import Shards
from segclip.data.sources.open import open_source
from segclip.train.config import TrainConfig
from segclip.train.run import train

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (128, 128, 128)}
SHAPES = ("square", "rectangle")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of coloured squares and rectangles with their captions."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    lines = []
    for i in range(24):
        name = list(COLOURS)[i % 4]
        photo = generator.integers(0, 60, (70, 80, 3)).astype(np.uint8)
        photo[15:55, 20 : 60 + 15 * (i % 2)] = COLOURS[name]
        Image.fromarray(photo).save(folder / f"{i}.png")
        lines.append({"image": f"{i}.png", "captions": [f"a {name} {SHAPES[i % 2]}", f"a photo of something {name}"]})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="session")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Their shards, one sample of which is damaged, which fails no run."""
    folder = tmp_path_factory.mktemp("shards")
    with (source / "pairs.jsonl").open("a") as lines:
        lines.write('\n{"image": "0.png", "captions": ["nothing"]}')
    prepare(open_source(source), folder, FAST, map_chunks=map_serially)
    shards = Shards(folder)
    start = int(shards.table(0)[-2, 0])
    tar = bytearray((folder / "pairs-000000.tar").read_bytes())
    tar[start + 512 : start + 600] = bytes(88)
    (folder / "pairs-000000.tar").write_bytes(tar)
    return shards


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A recipe like mini's, over a small model's towers."""
    path = tmp_path_factory.mktemp("towers") / "towers.safetensors"
    save_model(small_model(ADAPTED), path)
    return replace(CACHED, init_from=str(path))


@pytest.fixture(scope="session")
def whole(data: Shards, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over frozen towers that was not broken."""
    run = tmp_path_factory.mktemp("whole")
    train(config, data, run)
    return run


@pytest.fixture(scope="session")
def whole_pairs(data: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on photos that was not broken."""
    run = tmp_path_factory.mktemp("pairs")
    train(PAIRS, data, run)
    return run
