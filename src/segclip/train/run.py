"""A run from beginning to end: `train` is the whole of it. Broken at any moment, it goes on as if nothing had been.

A run's folder: `recipe.json`, `metrics.jsonl` (a line a step), `checkpoints/`, `sheets/`, and at the end
`model.safetensors`; `best.safetensors` is the best by mIoU where there is a validation set.
"""

from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import torch

from segclip.checkpoints.loading import load
from segclip.checkpoints.native import save_model
from segclip.data.shards import Shards
from segclip.model.grouping import count_regions
from segclip.train.caption_words import words_for_losses
from segclip.train.config import TrainConfig
from segclip.train.distributed import check_agreement
from segclip.train.feature_batches import CachedStream, as_text, embed_texts, read_captions
from segclip.train.feature_cache import FeatureSettings, cache_features
from segclip.train.initialization import check_recipe, initialize_model
from segclip.train.loop import Run, Stream, batches, on_sigterm
from segclip.train.metrics import check_trackers, record_metrics
from segclip.train.optim import freeze
from segclip.train.photo_batches import PairStream
from segclip.train.resolve import resolve
from segclip.train.run_files import MODEL, keep_recipe
from segclip.train.validation import Validation
from segclip.utils.failures import Stopped
from segclip.utils.locks import only_one_run
from segclip.utils.processes import Processes, alone

# Seconds: the readers of a killed run hold its folder until they see, every 5 seconds, that it is gone.
READERS_LEAVE = 15.0


def train(config: TrainConfig, shards: Shards, out: Path, processes: Processes | None = None) -> Path:
    """Train, or go on with a run that was broken.

    Args:
        config: the recipe; recipe.json has it with the model that is trained.
        shards: photos and captions.
        out: folder of the run; where it has a checkpoint, the run goes on from there.
        processes: those that train together, each of which calls this; None: this one alone, on a GPU where there is
            one.

    Returns:
        The file of the trained model.

    Raises:
        ValueError: data or recipe that cannot be used; a run in the folder that was started with another recipe, or
            that another process trains; none of its checkpoints is whole.
        FloatingPointError: ten steps in a row had no finite loss.
        Stopped: SIGTERM came; the state is saved.
    """
    config, processes = resolve(config), processes or alone()
    check_trackers(config.trackers)
    check_recipe(config)
    data = [shard.sha256 for shard in shards.index.shards]
    check_agreement(processes, config.to_json() + repr(data))
    with only_one_run(out, wait=READERS_LEAVE) if processes.is_main else nullcontext():
        keep_recipe(out, config, shards.address, data, write=processes.is_main)

        stream = build_stream(config, shards, out, processes)
        torch.manual_seed(config.seed)
        model = initialize_model(config)
        if config.init_centers == "k-means":
            stream.initialize(model)
        freeze(model, config)
        run = Run(config, model, stream.learner(model), out, processes)

        steps = config.steps or config.epochs * stream.steps
        done = run.restore(steps)
        validation = Validation(config, shards, out)
        main = processes.is_main
        metrics = record_metrics(out, config.trackers, steps, done) if main else nullcontext(lambda _: None)
        with metrics as record, on_sigterm(run.ask_to_stop):
            for step, batch in batches(stream, done, steps):
                last = step == steps
                figures = run.step(batch, step, steps)
                if last or step % config.validate_every == 0:
                    figures |= run.validate(validation, step)
                record(figures)
                if last or step % config.save_every == 0 or run.stopping:
                    run.save(step)
                if run.stopping:
                    raise Stopped(f"stopped at step {step} of {steps}; go on with: segclip train --resume {out}")

        model = run.whole_model()
        if main:
            save_model(model, out / MODEL)
        return out / MODEL


def build_stream(config: TrainConfig, shards: Shards, out: Path, processes: Processes) -> Stream:
    """This process's batches: of photos, or of features that frozen towers give for them, which are computed here.

    Args:
        config: a recipe with its model, as `resolve` gives it.
        shards: photos and captions.
        out: folder of the run, whose features are kept in `out`/features if the recipe names no other folder.
        processes: those that train together.

    Raises:
        ValueError: data or recipe that cannot be used.
    """
    assert config.model
    where = {"rank": processes.rank, "world": processes.world, "device": processes.device}
    if config.cache is None:
        return PairStream(shards, config, config.model, **where)
    assert config.init_from
    folder = Path(config.cache.folder) if config.cache.folder else out / "features"
    captions = read_captions(shards)
    words = words_for_losses(config, captions)
    with processes.main_first():  # the others find them there
        crops = cache_features(
            config.init_from,
            shards,
            folder,
            FeatureSettings(
                config.reduction,
                config.crop_scale,
                config.model.mask_ratio,
                config.cache.reconstruction_fraction,
                config.cache.seed,
            ),
            crops=config.cache.crops,
        )
        texts = chain(*captions, map(as_text, words.vocabulary if words else ()))
        embedded = embed_texts(load(config.init_from, "cpu"), texts, folder / "texts.pt")
    return CachedStream(crops, captions, words, embedded, config, count_regions(config.model), **where)
