"""The data of the recipe `debug`: generated scenes, their shards, and held-out ones with masks."""

import dataclasses
from pathlib import Path

from segclip.data.prepare import Settings, prepare
from segclip.data.scenes import LAST, write_scenes
from segclip.data.shards import Shards
from segclip.data.sources.open import open_source
from segclip.train.config import TrainConfig

SCENES, HELD_OUT = 1024, 64


def make_data(config: TrainConfig, out: Path) -> tuple[TrainConfig, Shards]:
    """Write the scenes into `out`/data, if they are not there; the recipe given back validates on the held-out ones."""
    data = out / "data"
    if not (data / "shards" / "index.json").exists():
        for name, count, seed in (("held_out", HELD_OUT, 1), ("scenes", SCENES, 0)):
            if not (data / name / LAST).exists():  # written anew, they would not be what broken shards were made of
                write_scenes(data / name, count, seed)
        prepare(open_source(data / "scenes"), data / "shards", Settings(superpixels="opencv"))
    return dataclasses.replace(config, validation=str(data / "held_out")), Shards(data / "shards")
