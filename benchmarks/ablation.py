"""What each part of SegCLIP brings to `mini`: python benchmarks/ablation.py SHARDS SET OUT --init-from TOWERS

Trains the recipe `mini` anew for each variant and seed, on features that all of them share, and measures each model on
the photos with masks of SET (as `segclip evaluate folder --root` takes it, class 0 being the background) under the
protocol `paper`, the windows' patches being computed once. "no centers" is a network over each patch by itself instead
of centers and blocks, trained on the same features and captions. Prints a line a model, kept in OUT/results.jsonl: what
broke goes on. Figures, pooled over all photos:
  told     asked for the labels that a photo has, over labelled pixels: mIoU and pixel accuracy
  named    asked for all names, over labelled pixels: foreground mIoU
  regions  mIoU with the best name for each region of a window
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.progress import track
from torch import Tensor, nn

from segclip import Segmenter, load
from segclip.data.shards import Shards
from segclip.evaluate.datasets.benchmark import Mask
from segclip.evaluate.datasets.folder import open_folder
from segclip.evaluate.diagnosis import Diagnosis
from segclip.evaluate.evaluator import Evaluator, words_of
from segclip.losses import contrastive_loss
from segclip.model.segclip import INITIAL_SCALE, MAX_SCALE, ImageOutput, SegCLIP
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.windows import Windows
from segclip.train.config import TrainConfig
from segclip.train.feature_batches import CachedBatch
from segclip.train.loop import batches
from segclip.train.optim import make_optimiser, set_learning_rate
from segclip.train.recipes import TOWERS, mini
from segclip.train.resolve import resolve
from segclip.train.run import build_stream, train
from segclip.utils.processes import alone

ALL = {name: weight for name, weight in mini().losses.items() if weight}
PAPER = {"contrastive": 1.0, "superpixel": 1.0, "reconstruction": 1.0}
NO_CENTERS = "no centers"
VARIANTS: dict[str, dict] = {
    "all": {},
    **{f"without {loss}": {"losses": {name: ALL[name] for name in ALL if name != loss}} for loss in ALL},
    "with words and multiple_instance": {"losses": {**ALL, "words": 1.0, "multiple_instance": 2.0}},
    "the paper's losses, centers learn": {"losses": PAPER, "frozen": TOWERS},
    "contrastive alone": {"losses": {"contrastive": 1.0}},
    NO_CENTERS: {},
}


class PatchHead(nn.Module):
    """A patch -> its embedding, by itself; a photo's is the mean over its patches."""

    def __init__(self, width: int, embed: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, embed)
        )
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_SCALE).log())

    def forward(self, patches: Float[Tensor, "B P D"]) -> Float[Tensor, "B P E"]:
        return self.layers(patches)


@dataclass(frozen=True)
class Encoded:
    """A photo in windows, the trunk's features of each, its true classes."""

    photo: np.ndarray
    view: Windows
    patches: Tensor
    truth: Mask


def main() -> None:
    parser = argparse.ArgumentParser(description="What each part of SegCLIP brings to mini.")
    parser.add_argument("shards", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--init-from", required=True, help="the towers, as runs/mini_towers.py makes them")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results, photos, encoded = options.out / "results.jsonl", open_folder(options.set), None
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for seed in range(options.seeds):
        for name in options.only:
            if any((one["variant"], one["seed"]) == (name, seed) for one in done):
                continue
            model, head = make(name, seed, options.shards, options.out, options.init_from, options.steps)
            evaluator = Evaluator(Segmenter(model, "paper"), photos, words_of(photos))
            encoded = encoded or list(encode(evaluator))
            done.append({"variant": name, "seed": seed, **measure(evaluator, encoded, head)})
            with results.open("a") as lines:
                lines.write(json.dumps(done[-1]) + "\n")
            print(done[-1], flush=True)
    for name in options.only:
        own = [one for one in done if one["variant"] == name]
        figures = ("told", "accuracy", "named", "regions")
        cells = [_spread([one[figure] for one in own if figure in one]) for figure in figures]
        print(f"| {name} | {' | '.join(cells)} |")


def make(name: str, seed: int, shards: Path, out: Path, start: str, steps: int) -> tuple[SegCLIP, PatchHead | None]:
    """A trained model; with the head that stands for the centers, if it has none."""
    recipe = mini()
    assert recipe.cache
    cache = replace(recipe.cache, folder=str(out / "features"))
    config = replace(recipe, init_from=start, cache=cache, steps=steps, seed=seed, save_every=steps, trackers=())
    if name == NO_CENTERS:
        return load(start, "cpu"), train_head(config, Shards(shards), out)
    run = out / f"{name.replace(' ', '-')}-{seed}"
    return load(train(replace(config, **VARIANTS[name]), Shards(shards), run), "cpu"), None


def train_head(config: TrainConfig, shards: Shards, out: Path) -> PatchHead:
    """On the same batches, optimiser and schedule, by the contrastive loss alone: there is no assignment to learn."""
    config = resolve(config)
    assert config.model and config.steps
    stream = build_stream(config, shards, out, alone("cpu"))
    torch.manual_seed(config.seed)
    head = PatchHead(config.model.image.width, config.model.embed)
    optimiser = make_optimiser(head, config)
    for step, batch in cast(Iterator[tuple[int, CachedBatch]], batches(stream, 0, config.steps)):
        set_learning_rate(optimiser, config, step, config.steps)
        with torch.autocast("cpu", torch.bfloat16):
            image = head(batch.patches).mean(dim=1)
        scale = head.logit_scale.exp().clamp(max=MAX_SCALE)
        contrastive_loss(image.float(), batch.text, scale, config.soft_target_scale).backward()
        nn.utils.clip_grad_norm_(head.parameters(), config.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
    return head


@torch.inference_mode()
def encode(evaluator: Evaluator) -> Iterator[Encoded]:
    """The photos' windows through the trunk, which all models share."""
    model = evaluator.segmenter.model
    for pair in track(evaluator.benchmark.pairs, "windows"):
        photo, truth = evaluator.benchmark.load(pair)
        (view,) = evaluator.segmenter.protocol.cut_photo(photo, model.config.image.side, model.config.image.patch)
        pixels = model.image.normalise(np.stack(list(view.crops())))
        yield Encoded(photo, view, model.image.encode_patches(pixels), truth)


@torch.inference_mode()
def measure(evaluator: Evaluator, photos: list[Encoded], head: PatchHead | None) -> dict[str, float]:
    model, diagnosis = evaluator.segmenter.model, Diagnosis(evaluator)
    if head:
        model.logit_scale.copy_(head.logit_scale)
    for one in photos:
        output = per_patch(head, one.patches) if head else model.image.gather(one.patches)
        diagnosis.add(EncodedPhoto(one.photo, [one.view], [output]), one.truth)
    told = diagnosis.told
    figures = {"told": told.miou(), "accuracy": told.pixel_accuracy(), "named": diagnosis.named.miou()}
    # Regions of one patch each would be named too well.
    return figures if head else figures | {"regions": diagnosis.regions.miou()}


def per_patch(head: PatchHead, patches: Float[Tensor, "B P D"]) -> ImageOutput:
    """Each patch as a region of its own."""
    embedded = F.normalize(head(patches), dim=-1)
    own = torch.eye(patches.shape[1]).expand(len(patches), -1, -1)
    return ImageOutput(embedded.mean(dim=1), embedded, own, own)


def _spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
