"""Train the centers over frozen towers, on one machine, from cached features.

A run's folder: `features/` (see features.py), `state.pt` (from which a broken run goes on), `metrics.jsonl` (a line a
step) and, at the end, `model.safetensors`.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from segclip.config import TrainConfig
from segclip.data.normalise import normalise
from segclip.data.shards import SampleError, Shards
from segclip.model.grouping import sample_gumbel
from segclip.model.segclip import MAX_SCALE, Losses, Noise, SegCLIP
from segclip.model.storage import save_model
from segclip.train.features import Block, cache_features
from segclip.train.optim import learning_rate, make_optimiser
from segclip.train.start import start_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """What a step gets of its photos, from the cache: arguments of `SegCLIP.losses_from_patches`."""

    patches: Tensor
    visible: Tensor
    pixels: Tensor
    superpixels: Tensor
    text: Tensor
    photos: int
    mask: Tensor


def train(config: TrainConfig, shards: Shards, run: Path, towers: str, *, steps: int | None = None) -> Path:
    """Train, or go on with a run that was broken.

    Args:
        config: the recipe.
        shards: photos and captions.
        run: folder of the run; where it already has a state, the run goes on from there.
        towers: a model as `segclip.load` takes it; its trunk and text tower are used and stay as they are.
        steps: end after so many steps; None: as the recipe's epochs give.

    Returns:
        The file of the trained model.

    Raises:
        ValueError: the data cannot be used, or the run in the folder was started with another recipe.
        FloatingPointError: the loss is not finite.
    """
    if len(shards) < config.batch:
        raise ValueError(
            f"{shards.place}: {len(shards)} photos are less than one batch of {config.batch}; lower the batch"
        )
    run.mkdir(parents=True, exist_ok=True)
    _claim(run / "recipe.json", config, steps)
    crops = cache_features(towers, shards, run / "features", crops=config.crops, seed=config.seed)
    model = start_model(towers, config.seed, crops)
    captions = read_captions(shards)
    embedded = embed_captions(model, captions, run / "features" / "captions.pt")
    epoch_steps = sum(len(block.rows) for block in crops[0]) // config.batch
    steps = steps or config.epochs * epoch_steps
    _run_steps(config, model, lambda epoch: batches(config, crops, captions, embedded, epoch), steps, run)
    save_model(model, run / "model.safetensors")
    return run / "model.safetensors"


def read_captions(shards: Shards) -> list[list[str]]:
    """The captions of each photo; none where a sample is damaged."""
    captions = []
    for number in range(len(shards)):
        try:
            captions.append(shards[number].captions)
        except SampleError:
            captions.append([])
    return captions


@torch.inference_mode()
def embed_captions(model: SegCLIP, captions: Sequence[Sequence[str]], file: Path) -> dict[str, Tensor]:
    """The text tower's embedding of every caption, kept in `file`."""
    texts = sorted({caption for own in captions for caption in own}, key=lambda text: (len(text), text))
    if file.exists() and list(saved := torch.load(file, weights_only=True)) == texts:
        return saved
    embeddings = torch.cat([model.encode_text(model.tokenize(texts[i : i + 128])) for i in range(0, len(texts), 128)])
    embedded = dict(zip(texts, embeddings, strict=True))
    _save_aside(embedded, file)
    return embedded


def batches(
    config: TrainConfig,
    crops: Sequence[Sequence[Block]],
    captions: Sequence[Sequence[str]],
    embedded: dict[str, Tensor],
    epoch: int,
) -> Iterator[Batch]:
    """One pass over the photos, of each a random crop and caption; the draws depend on seed and epoch alone."""
    generator = np.random.default_rng((config.seed, epoch))
    places = [(b, i) for b, block in enumerate(crops[0]) for i in range(len(block.rows))]
    order = generator.permutation(len(places))
    masked = max(1, round(config.reconstructed * config.batch))
    for start in range(0, len(order) - config.batch + 1, config.batch):
        photos = int(generator.choice(config.mosaics))
        whole, mixed, texts = [], [], []
        for b, i in (places[n] for n in order[start : start + config.batch]):
            block = crops[int(generator.integers(len(crops)))][b]
            count = len(block.patches[i])
            chosen = generator.permutation(count)[: count // photos] if photos > 1 else slice(None)
            mixed.append((block.patches[i][chosen], block.superpixels[i].reshape(-1)[chosen]))
            if len(whole) < masked:
                whole.append((block.visible[i], block.pixels[i], block.mask[i]))
            own = captions[int(block.rows[i])]
            texts.append(own[int(generator.integers(len(own)))])
        patches, superpixels = _stacked(mixed)
        visible, pixels, mask = _stacked(whole)
        superpixels = superpixels + (superpixels.max() + 1) * torch.arange(config.batch)[:, None]
        yield Batch(
            patches=patches.float().unflatten(0, (-1, photos)).flatten(1, 2),
            visible=visible.float(),
            pixels=normalise(pixels),
            superpixels=superpixels.unflatten(0, (-1, photos)).flatten(1, 2),
            text=torch.stack([embedded[text] for text in texts]),
            photos=photos,
            mask=mask,
        )


def _stacked(rows: list[tuple[np.ndarray, ...]]) -> list[Tensor]:
    return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]


def step_losses(model: SegCLIP, batch: Batch, likeness: float) -> Losses:
    """The three losses of a cached batch, in bfloat16; the Gumbel noise is drawn here."""
    centers = model.config.centers
    noise = Noise(
        gumbel=sample_gumbel((len(batch.patches), centers, batch.patches.shape[1]), like=batch.patches),
        mask=batch.mask,
        gumbel_visible=sample_gumbel((len(batch.visible), centers, batch.visible.shape[1]), like=batch.patches),
    )
    arguments = {name: value for name, value in vars(batch).items() if name != "mask"}
    with torch.autocast(batch.patches.device.type, torch.bfloat16):
        return model.losses_from_patches(**arguments, noise=noise, likeness=likeness)


def _run_steps(
    config: TrainConfig, model: SegCLIP, epoch_batches: Callable[[int], Iterator[Batch]], steps: int, run: Path
) -> None:
    optimiser = make_optimiser(model, config)
    state, metrics = run / "state.pt", run / "metrics.jsonl"
    epoch, skip, step = _restore(state, model, optimiser)
    _cut_metrics(metrics, step)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with metrics.open("a") as lines, Progress(*columns) as progress:
        task = progress.add_task("training", total=steps, completed=step)
        while step < steps:
            for number, batch in enumerate(epoch_batches(epoch)):
                if number < skip:
                    continue
                step += 1
                record = _step(config, model, optimiser, batch, step, steps)
                lines.write(json.dumps(record) + "\n")
                lines.flush()
                progress.update(task, completed=step, description=f"loss {record['loss']:.3f}")
                if step % config.save_every == 0 or step == steps:
                    _save_state(state, model, optimiser, epoch, number + 1, step)
                if step == steps:
                    break
            epoch, skip = epoch + 1, 0


def _step(
    config: TrainConfig, model: SegCLIP, optimiser: torch.optim.Optimizer, batch: Batch, step: int, steps: int
) -> dict[str, float | int]:
    start = time.perf_counter()
    rate = learning_rate(step, steps, config.lr, config.warmup)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["share"]
    losses = step_losses(model, batch, config.likeness)
    if not losses.total.isfinite():
        raise FloatingPointError(f"step {step}: the loss is {losses.total.item()}; lower the learning rate")
    optimiser.zero_grad()
    losses.total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimiser.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(MAX_SCALE))
    return {
        "step": step,
        "loss": losses.total.item(),
        "contrastive": losses.contrastive.item(),
        "superpixel": losses.superpixel.item(),
        "reconstruction": losses.reconstruction.item(),
        "lr": rate,
        "samples_per_s": len(batch.text) / (time.perf_counter() - start),
    }


def _claim(file: Path, config: TrainConfig, steps: int | None) -> None:
    recipe = json.loads(json.dumps({**asdict(config), "steps": steps}))  # lists for tuples, as the file has them
    if not file.exists():
        file.write_text(json.dumps(recipe, indent=1))
    found = json.loads(file.read_text())
    changed = [f"{name} {found.get(name)} -> {value}" for name, value in recipe.items() if found.get(name) != value]
    if changed:
        raise ValueError(f"{file.parent}: a run with another recipe ({', '.join(changed)}); give another folder")


def _save_state(
    file: Path, model: SegCLIP, optimiser: torch.optim.Optimizer, epoch: int, batch: int, step: int
) -> None:
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    random = torch.get_rng_state()
    position = (epoch, batch, step)
    state = {"model": trained, "optimiser": optimiser.state_dict(), "random": random, "position": position}
    _save_aside(state, file)


def _restore(file: Path, model: SegCLIP, optimiser: torch.optim.Optimizer) -> tuple[int, int, int]:
    """Epoch, batches of it that are done, and steps that are done."""
    if not file.exists():
        return 0, 0, 0
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"], strict=False)
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    return state["position"]


def _cut_metrics(file: Path, step: int) -> None:
    """Drop the lines of steps that a broken run did after its last saved state."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    file.write_text("".join(lines[:step]))


def _save_aside(value: object, file: Path) -> None:
    aside = file.with_suffix(".part")
    torch.save(value, aside)
    os.replace(aside, file)
