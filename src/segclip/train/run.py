"""From a recipe and data to a trained model."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from segclip.data.normalise import normalise
from segclip.data.shards import Shards
from segclip.model.segclip import SegCLIP
from segclip.train.caption_words import find_words
from segclip.train.config import TrainConfig
from segclip.train.distributed import check_agreement, only_cpu
from segclip.train.feature_batches import CachedLearner, CachedStream, captioned, embed_captions, read_captions
from segclip.train.feature_cache import cache_features
from segclip.train.initialization import start_centers, start_model, start_projection
from segclip.train.loop import Run
from segclip.train.optim import freeze
from segclip.train.photo_batches import CHUNK, PairLearner, PairStream
from segclip.train.resolve import resolve
from segclip.train.run_files import RECIPE, changes
from segclip.utils.files import atomic

FREE = ("workers", "save_every", "keep_checkpoints", "trackers")  # fields that may change when a run goes on


def train(config: TrainConfig, shards: Shards, out: Path) -> Path:
    """Train, or go on with a run that was broken; under torchrun or accelerate launch, over all processes.

    Args:
        config: the recipe; recipe.json has it with the model that is trained.
        shards: photos and captions.
        out: folder of the run; where it has a checkpoint, the run goes on from there.

    Returns:
        The file of the trained model.

    Raises:
        ValueError: data or recipe that cannot be used; a run in the folder that was started with another recipe.
        FloatingPointError: ten steps in a row had no finite loss.
        Stopped: SIGTERM came; the state is saved.
    """
    config = resolve(config)
    accelerator = Accelerator(
        cpu=only_cpu(),
        mixed_precision="no",  # the recipe's, which a process may change from run to run, is the loop's to apply
        log_with=list(config.trackers) or None,
        project_dir=out,
    )
    data = [shard.sha256 for shard in shards.index.shards]
    out.mkdir(parents=True, exist_ok=True)
    check_agreement(accelerator, config.to_json() + repr(data))
    _claim(out / RECIPE, config, shards.address, data, accelerator.is_main_process)
    torch.manual_seed(config.seed)
    learner, model, stream = (
        _cached(config, shards, out, accelerator) if config.cache else _pairs(config, shards, accelerator)
    )
    if accelerator.is_main_process:
        accelerator.init_trackers("segclip", json.loads(json.dumps({"recipe": config.to_json()})))
    try:
        file = Run(config, learner, model, accelerator, out).train(stream, shards)
        accelerator.wait_for_everyone()  # or one process takes the connections down while another still needs them
        return file
    finally:
        accelerator.end_training()


def read_recipe(out: Path) -> tuple[TrainConfig, str]:
    """The recipe of a run, and where its data is. Raises ValueError where there is none."""
    try:
        found = json.loads((out / RECIPE).read_text("utf-8"))
        return TrainConfig.from_json(json.dumps(found["recipe"])), found["data"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{out / RECIPE}: no recipe of a run ({error}); give the folder of a run") from error


def _pairs(config: TrainConfig, shards: Shards, accelerator: Accelerator) -> tuple[PairLearner, SegCLIP, PairStream]:
    model = start_model(config)
    if config.init_centers == "k-means":
        start_centers(model, _trunk_features(config, shards, model), config.seed)
    freeze(model, config)
    rank, world = accelerator.process_index, accelerator.num_processes
    stream = PairStream(shards, config, model.config, rank=rank, world=world, device=accelerator.device)
    return PairLearner(model, config), model, stream


@torch.no_grad()
def _trunk_features(config: TrainConfig, shards: Shards, model: SegCLIP) -> Iterator[np.ndarray]:
    """What the trunk gives for photos, on every process alike."""
    stream = PairStream(shards, config, model.config, rank=0, world=1, device=torch.device("cpu"))
    for batch in stream.epoch(0, 0):
        for pairs in batch.split(CHUNK):
            yield from model.image.encode_patches(normalise(pairs.pixels)).numpy()


def _cached(
    config: TrainConfig, shards: Shards, out: Path, accelerator: Accelerator
) -> tuple[CachedLearner, SegCLIP, CachedStream]:
    assert config.cache and config.init_from
    folder = Path(config.cache.folder) if config.cache.folder else out / "features"
    with accelerator.main_process_first():  # the others find them there
        crops = cache_features(
            config.init_from,
            shards,
            folder,
            crops=config.cache.crops,
            small=config.cache.half_size_prob > 0,
            crop_scale=config.crop_scale,
            reduction=config.reduction,
            seed=config.cache.seed,
        )
        model = start_model(config)
        captions = read_captions(shards)
        words = find_words(captions) if config.cache.caption_words else [[] for _ in captions]
        embedded = embed_captions(model, [*captions, *words], folder / "captions.pt")
        if config.init_centers == "k-means":
            start_centers(model, (patches for block in crops[0] for patches in block.patches), config.seed)
            start_projection(model, captioned(crops[0], captions, words, embedded))
    freeze(model, config)
    rank, world = accelerator.process_index, accelerator.num_processes
    stream = CachedStream(
        crops,
        captions,
        words,
        embedded,
        config,
        model.config.centers,
        rank=rank,
        world=world,
        device=accelerator.device,
    )
    return CachedLearner(model, config), model, stream


def _claim(file: Path, config: TrainConfig, place: str, data: list[str], main: bool) -> None:
    """Keep the recipe beside the run; refuse to go on with another one."""
    wanted = {"recipe": json.loads(config.to_json()), "data": place, "shards": data}
    found = None
    if file.exists():
        found, _ = read_recipe(file.parent)
        kept = json.loads(file.read_text("utf-8"))
        free = {name: getattr(config, name) for name in FREE}
        model = found.model or config.model  # 0.1 did not keep the model that it trained over weights
        old = json.loads(dataclasses.replace(found, **free, model=model).to_json())
        if differences := changes({**old, "shards": kept.get("shards")}, {**wanted["recipe"], "shards": data}):
            raise ValueError(
                f"{file.parent}: a run with another recipe or other data ({', '.join(differences)}); go on with "
                f"segclip train --resume {file.parent}, or give another folder"
            )
    if main and not (found and found.model):
        with atomic(file) as temporary:
            temporary.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8")
