"""The data of the recipe `debug`: generated scenes, their shards, and held-out ones with masks."""

import dataclasses
from pathlib import Path

from segclip.data.prepare import Settings, prepare
from segclip.data.scenes import write_scenes
from segclip.data.shards import Shards
from segclip.data.sources.open import open_source
from segclip.train.config import TrainConfig

SCENES, HELD_OUT = 1024, 64


def make_data(config: TrainConfig, out: Path) -> tuple[TrainConfig, Shards]:
    """Write the scenes into `out`/data, if they are not there; the recipe given back validates on the held-out ones."""
    data = out / "data"
    if not (data / "shards" / "index.json").exists():
        write_scenes(data / "held_out", HELD_OUT, seed=1)
        scenes = open_source(write_scenes(data / "scenes", SCENES, seed=0))
        prepare(scenes, data / "shards", Settings(superpixels="opencv"))
    return dataclasses.replace(config, validation=str(data / "held_out")), Shards(data / "shards")
