"""Checks of gpu.sh: whether results on a GPU equal those of the CPU and of the authors' code."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from gpu_inference import draw_photo, label_maps, structured_model
from gpu_report import MINI, Figures, Report, Sizes, has_mini
from safetensors.torch import load_file
from torch import Tensor
from training import random_model, random_pairs

from segclip.checkpoints import authors
from segclip.checkpoints.clip_weights import our_name
from segclip.checkpoints.loading import load
from segclip.checkpoints.native import load_model, save_model
from segclip.data.photos import paper_size, resize_photo
from segclip.data.prepare import prepare
from segclip.data.scenes import write_scenes
from segclip.data.shards import Shards
from segclip.data.sources.open import open_source
from segclip.model.dense import HEADS
from segclip.model.segclip import Noise, SegCLIP
from segclip.segment.encoder import DType, Encoder
from segclip.segment.protocols.paper import paper_scores
from segclip.segment.segmenter import Segmenter
from segclip.train.config import CacheConfig
from segclip.train.optim import freeze
from segclip.train.photo_batches import PairBatch, PairLearner
from segclip.train.recipes import debug, mini, paper
from segclip.train.run import train
from segclip.train.step import backward
from segclip.utils.processes import alone

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
ABSOLUTE, RELATIVE = 1e-4, 1e-3  # tolerances: of arrays and losses; of gradients
STEPS, BATCH = 4, 8  # of the run that is interrupted half-way
LONGEST = 45  # seconds that the two processes may take
# Photos inside scikit-image, with what is asked of them.
LABELS = {
    "chelsea": ["cat", "dog", "car", "boat"],
    "coffee": ["cup", "saucer", "spoon", "table"],
    "astronaut": ["person", "flag", "helmet", "space shuttle"],
    "rocket": ["rocket", "tower", "sky"],
}
# Small towers: those that stay as they are, and one beside a CLIP.
FROZEN = replace(
    MINI,
    image=replace(MINI.image, width=64, trunk_layers=1, side=56, position_grid=4),
    text=replace(MINI.text, width=64, layers=1, heads=1, context=32),
    embed=64,
    centers=4,
    decoder_layers=1,
)
AFFINITY = FROZEN.image


def check(report: Report, sizes: Sizes) -> None:
    """Fill the report."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS is deterministic only if set before its first use
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report.measure("golden arrays", 10, partial(golden_arrays, sizes.device))
    report.measure("label maps", 20, partial(equal_label_maps, sizes))
    report.measure("photos", 30, partial(equal_photos, sizes))
    report.measure("heads", 10, partial(equal_heads, sizes))
    report.measure("training step", 15, partial(equal_step, sizes))
    with tempfile.TemporaryDirectory() as folder:
        report.measure("shards", 5, partial(write_shards, Path(folder)))
        report.measure("resume", 25, partial(resumes, sizes.device, Path(folder)))
        report.measure("cached features", 60, partial(equal_cached, sizes.device, Path(folder)))
        report.measure("two processes", 30, partial(two_processes, Path(folder)))


def golden_arrays(device: str) -> Figures:
    """The small model against what the authors' code computed: the largest difference of each array."""
    model, golden = load(GOLDEN / "tiny.bin", device), load_file(GOLDEN / "tiny.golden.safetensors", device)
    decode = load_file(GOLDEN / "tiny.decode.safetensors", device)
    losses = json.loads((GOLDEN / "tiny.golden.json").read_text())["losses"]
    found: Figures = {}
    with torch.no_grad():
        output, text = model.encode_image(golden["image"]), model.encode_text(golden["token_ids"])
        named = {"embedding": "image_embed", "regions": "group_embeds", "soft": "soft_assignment"}
        for ours, theirs in named.items():
            found[ours] = difference(getattr(output, ours), golden[theirs])
        found["text"] = difference(text, golden["text_embed"])
        found["hard equal"] = share(output.hard == golden["hard_assignment"])
        index = int(decode["decode_image_index"])
        scores = paper_scores(
            model.encode_image(golden["image"][index : index + 1]),
            decode["decode_class_embeds"],
            float(decode["decode_logit_scale"]),
            (96, 96),
            float(decode["decode_threshold"]),
        )
        found["scores"] = difference(scores, decode["decode_scores"])
    noise = Noise(golden["gumbel_noise_full"], golden["mask_noise"], golden["gumbel_noise_visible"])
    own = model.losses(golden["image"], golden["train_token_ids"], golden["superpixels"], noise=noise)
    own.total.backward()
    found["loss"] = abs(own.total.item() - losses["total"])
    found["gradient norms"] = norms_differ(model, losses["grad_norms"])
    stored = load_file(GOLDEN / "tiny.photo.safetensors")
    photo = skimage.data.chelsea()
    assert (
        resize_photo(photo, paper_size(photo.shape[0], photo.shape[1], 96)) == stored["photo_resized"].numpy()
    ).all()
    labels = Segmenter(model).segment_embeddings(photo, stored["photo_class_embeds"], background=0.5)
    found["photo labels equal"] = float((labels == stored["photo_labels"].numpy()).mean())
    close = all(found[name] < ABSOLUTE for name in (*named, "text", "scores", "loss"))
    found["passed"] = (
        close and found["gradient norms"] < RELATIVE and min(found["hard equal"], found["photo labels equal"]) >= 0.995
    )
    return found


def norms_differ(model: SegCLIP, expected: Mapping[str, float]) -> float:
    """The largest difference of a gradient's norm, in units of the norm."""
    parameters, worst = dict(model.named_parameters()), 0.0
    for name, norm in expected.items():
        gradient = parameters[our_name(name, authors.RULES)].grad
        own = 0.0 if gradient is None else gradient.norm().item()
        worst = max(worst, abs(own - norm) / (norm + 1e-6))
    return worst


def equal_label_maps(sizes: Sizes) -> Figures:
    """Share of pixels with the label that the CPU finds in float32; a random model with centers from k-means."""
    side = sizes.paper.image.side
    photos = np.stack([draw_photo(i, (side, side)) for i in range(sizes.checked)])
    model, windows = structured_model(sizes.paper, photos), torch.from_numpy(photos)
    embeds = torch.randn(20, model.config.embed, generator=torch.Generator().manual_seed(1))
    expected = label_maps(Encoder(model), windows, embeds)
    found: Figures = {"windows": len(windows), "labels found": int(expected.unique().numel())}
    on_device = SegCLIP(sizes.paper).eval()
    on_device.load_state_dict(model.state_dict())
    on_device.to(sizes.device)
    dtypes: tuple[DType, ...] = ("float32", "bfloat16", "int8")
    for name in dtypes:
        own = label_maps(Encoder(on_device, name), windows.to(sizes.device), embeds.to(sizes.device))
        found[f"{name} equal"] = share(own.cpu() == expected)
    found["bfloat16 of the CPU equal"] = share(label_maps(Encoder(model, "bfloat16"), windows, embeds) == expected)
    return found | {"passed": found["float32 equal"] >= 0.999, "bfloat16 within 1%": found["bfloat16 equal"] >= 0.99}


def equal_photos(sizes: Sizes) -> Figures:
    """What "open" finds in whole photos, as the CPU finds it in float32: share of equal pixels, presences."""
    name, config = sizes.models[-1]
    torch.manual_seed(0)
    trained = name == "mini" and has_mini()
    model = load("mini", "cpu") if trained else SegCLIP(config).eval()
    plain = Segmenter(model)
    photos = {photo: getattr(skimage.data, photo)() for photo in LABELS}
    expected = {photo: plain.segment(pixels, LABELS[photo]) for photo, pixels in photos.items()}
    found: Figures = {"weights": "mini" if trained else "random"}
    dtypes: tuple[DType, ...] = ("float32", "bfloat16", "int8")
    for dtype in dtypes:
        segmenter = Segmenter(model, device=sizes.device, dtype=dtype)
        own = {photo: segmenter.segment(pixels, LABELS[photo]) for photo, pixels in photos.items()}
        pairs = [(own[photo], expected[photo]) for photo in photos]
        found[dtype] = {
            "equal": float(np.mean([(ours.labels == theirs.labels).mean() for ours, theirs in pairs])),
            "presence": float(max(np.abs(ours.presence - theirs.presence).max() for ours, theirs in pairs)),
        }
    return found | {"passed": found["float32"]["equal"] >= 0.999 and found["float32"]["presence"] < RELATIVE}


def equal_heads(sizes: Sizes) -> Figures:
    """Regions of a plain CLIP by each dense head, and those of the CPU: the largest difference, as cosines."""
    config = replace(sizes.paper, image=replace(sizes.paper.image, class_token=True), grouping="patches")
    photo = torch.from_numpy(draw_photo(0, (config.image.side, config.image.side * 2)))[None]
    found: Figures = {}
    for head in HEADS:
        torch.manual_seed(0)
        model = SegCLIP(replace(config, head=head, affinity=AFFINITY if HEADS[head].affinity else None)).eval()
        expected = Encoder(model)(photo).regions
        own = Encoder(model.to(sizes.device))(photo.to(sizes.device)).regions
        found[head] = difference(F.normalize(own.cpu(), dim=-1), F.normalize(expected, dim=-1))
    return found | {"passed": max(found.values()) < ABSOLUTE}


def equal_step(sizes: Sizes) -> Figures:
    """Differences from the CPU in losses and gradients of one step with the same noise, in float32 and bfloat16."""
    batch = random_pairs(sizes.compared, model=sizes.paper)
    losses, gradients = take_step(sizes, batch, "cpu", torch.float32)
    found: Figures = {"pairs": len(batch), "loss of the CPU": losses["total"]}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        own, theirs = take_step(sizes, batch, sizes.device, dtype)
        found[name] = {term: abs(own[term] - value) for term, value in losses.items()}
        found[name]["gradients"] = float(
            sum((theirs[key] - value).square().sum() for key, value in gradients.items()).sqrt()  # pyright: ignore
            / sum(value.square().sum() for value in gradients.values()).sqrt()  # pyright: ignore
        )
    exact = found["float32"]
    found["passed"] = max(exact[term] for term in losses) < ABSOLUTE and exact["gradients"] < RELATIVE
    return found


def take_step(
    sizes: Sizes, batch: PairBatch, device: str, dtype: torch.dtype
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients, on the CPU."""
    config = replace(paper(), model=sizes.paper)
    model = random_model(sizes.paper).to(device)
    freeze(model, config)
    learner = PairLearner(model, config)
    own = PairBatch(
        batch.pixels.to(device), batch.token_ids.to(device), batch.superpixels.to(device), batch.noise.to(device)
    )

    def encode(*pairs: PairBatch, **options: bool) -> Any:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return learner(*pairs, **options)

    losses = backward(encode, own.split(max(1, len(batch) // 2)))
    values = {name: term.item() for name, term in losses.terms.items()} | {"total": losses.total.item()}
    found = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return values, found


def write_shards(folder: Path) -> Figures:
    """Training data of the runs below; written by this process alone, since others take longer to start."""
    scenes = open_source(write_scenes(folder / "scenes", STEPS * BATCH, seed=0))
    prepare(scenes, folder / "shards", map_chunks=lambda work, chunks: ((chunk, work(chunk)) for chunk in chunks))
    return {"samples": len(Shards(folder / "shards"))}


def resumes(device: str, folder: Path) -> Figures:
    """Largest differences in weights: of a run from the same run again, and from one resumed half-way.

    With torch's deterministic algorithms there must be none; without them a GPU adds up in varying order.
    """
    config = replace(
        debug(), steps=STEPS, batch=BATCH, micro_batch=BATCH // 2, precision="bf16", save_every=STEPS // 2,
        validate_every=100, trackers=(), workers=0,
    )  # fmt: skip
    found: Figures = {}
    for name, exactly in (("deterministic", True), ("plain", False)):
        with deterministic(exactly):
            run = partial(train, config, Shards(folder / "shards"), processes=alone(device))
            whole, again, broken = (folder / f"{name}-{kind}" for kind in ("whole", "again", "broken"))
            run(out=whole)
            run(out=again)
            shutil.copytree(whole, broken)
            (broken / "checkpoints" / f"{STEPS:08d}.pt").unlink()
            (broken / "model.safetensors").unlink()
            run(out=broken)
        first, second, third = (load_model(run / "model.safetensors").state_dict() for run in (whole, again, broken))
        found[name] = {
            "again": max(difference(second[key], value) for key, value in first.items()),
            "resumed": max(difference(third[key], value) for key, value in first.items()),
        }
    return found | {"passed": found["deterministic"]["resumed"] == 0}


def equal_cached(device: str, folder: Path) -> Figures:
    """A run of `mini`'s recipe over small frozen towers, on the CPU and here: the largest difference in its weights."""
    save_model(SegCLIP(FROZEN).eval(), folder / "towers.safetensors")
    config = replace(
        mini(), init_from=str(folder / "towers.safetensors"), cache=CacheConfig(folder=str(folder / "features")),
        steps=STEPS, batch=BATCH, precision="fp32", trackers=(), validate_every=100
    )  # fmt: skip
    run = partial(train, config, Shards(folder / "shards"))
    theirs, own = (
        load_model(run(folder / f"cached-{kind}", processes=alone(kind))).state_dict() for kind in ("cpu", device)
    )
    worst = max(difference(own[key], value) for key, value in theirs.items())
    return {"weights": worst, "passed": worst < RELATIVE}


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def two_processes(folder: Path) -> Figures:
    """Whether torchrun with two processes trains, or how it is refused."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--data", str(folder / "shards"), "--out", str(folder / "two"), "--steps", "2", "--batch", str(BATCH)]
    options += ["--init-centers", "random", "--trackers", "--workers", "0", "--validate-every", "100"]
    command = [*launch, "-m", "segclip", "train", "debug", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    said = [line.strip() for line in done.stderr.splitlines() if "Error" in line or line.startswith("segclip")]
    return {"code": done.returncode, "said": said[:6], "end": (done.stderr + done.stdout).splitlines()[-5:]}


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference."""
    return (found.float() - expected.float()).abs().max().item()


def share(equal: Tensor) -> float:
    return equal.float().mean().item()
