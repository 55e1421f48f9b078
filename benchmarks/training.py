"""Speed and memory of a training step: python benchmarks/training.py [--rounds N] [--memory]

The paper's ViT-B/16 with random weights on random data, all three losses, its frozen parameters and learning rates.

  (nothing)  on this machine's CPU: seconds of a step of 16 samples (forward, backward, clipping, AdamW), in float32 and
             in bfloat16, against a plain implementation of the same step in float32, the three taking turns
  --memory   on the CPU: peak memory of a step of 64 samples in micro-batches of 8 against one of 8 samples

The plain implementation materialises the two attention matrices, scores and weights, at full size, compares all pairs
of patches for the superpixel loss, and takes AdamW's step parameter by parameter. On a GPU: gpu.sh.
"""

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segclip.config import ModelConfig
from segclip.model.layers import MLP, Attention, quick_gelu
from segclip.model.reconstruction import patchify
from segclip.model.segclip import Losses, Parts, SegCLIP
from segclip.train.compilation import compile_blocks
from segclip.train.config import TrainConfig
from segclip.train.optim import freeze, make_optimiser, set_learning_rate
from segclip.train.photo_batches import PairBatch, PairLearner, draw_noise
from segclip.train.recipes import paper
from segclip.train.step import backward

BATCH = 16
SIDE, TOKENS, SUPERPIXELS = 224, 32, 12


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of a training step.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--memory", action="store_true")
    kinds.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        report_memory()
    elif options.peak_of:
        print(peak_memory(options.peak_of))
    else:
        report_cpu(options.rounds)


def report_cpu(rounds: int) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, medians of {rounds} rounds")
    batch = random_pairs(BATCH)
    ours, plain = Step(paper()), PlainStep(paper())
    check_equal(ours, plain, batch)
    names = ("plain fp32", "ours fp32", "ours bf16")
    seconds: list[list[float]] = [[] for _ in names]
    for _ in range(rounds):
        for own, run in zip(seconds, (plain, ours, partial(ours, precision=torch.bfloat16)), strict=True):
            start = time.perf_counter()
            run(batch)
            own.append(time.perf_counter() - start)
    for name, own in zip(names, seconds, strict=True):
        # A round's steps follow each other: their ratio suffers less from a slow minute of the machine than a median.
        ratios = sorted(mine / theirs for mine, theirs in zip(own, seconds[0], strict=True))
        print(
            f"{name}: {statistics.median(own):.2f} s ({min(own):.2f} to {max(own):.2f}); "
            f"of the plain step beside it {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


def check_equal(ours: "Step", plain: "PlainStep", batch: PairBatch) -> None:
    """Both steps have the same losses and gradients, from the same weights and noise."""
    (found, norm), (expected, expected_norm) = ours(batch), plain(batch)
    for name, value in vars(expected).items():
        assert math.isclose(getattr(found, name).item(), value.item(), abs_tol=1e-4), name
    assert math.isclose(norm, expected_norm, rel_tol=1e-3), (norm, expected_norm)
    print(f"same losses ({found.total.item():.4f}) and gradient norms ({norm:.3f})")


class Step:
    """Our training step, as segclip.train takes it."""

    def __init__(self, config: TrainConfig, device: str = "cpu") -> None:
        self.config, self.device = config, device
        self.model = random_model(config.model).to(device)
        freeze(self.model, config)
        self.learner = PairLearner(self.model, config)
        if config.compile:
            compile_blocks(self.learner)
        self.optimiser = make_optimiser(self.model, config)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        set_learning_rate(self.optimiser, config, 1, 1000)

    def __call__(self, batch: PairBatch, precision: torch.dtype = torch.float32) -> tuple[Losses, float]:
        def encode(*pairs: PairBatch, **options: bool) -> Parts:
            with torch.autocast(self.device, precision, enabled=precision != torch.float32):
                return self.learner(*pairs, **options)

        losses = backward(encode, batch.split(self.config.micro_batch))
        norm = nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return losses, norm.item()


class PlainStep:
    """The same step, written down without any care for speed."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.model = random_model()
        freeze(self.model, config)
        for module in self.model.modules():
            if isinstance(module, Attention):
                vars(module)["forward"] = partial(plain_attention, module)
            elif isinstance(module, MLP) and module.activation is quick_gelu:
                module.activation = plain_quick_gelu
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = make_optimiser(self.model, config)
        set_learning_rate(groups, config, 1, 1000)
        self.optimiser = torch.optim.AdamW(
            [{name: group[name] for name in ("params", "lr", "weight_decay")} for group in groups.param_groups],
            betas=config.betas,
            eps=config.eps,
            foreach=False,
            fused=False,
        )

    def __call__(self, batch: PairBatch) -> tuple[Losses, float]:
        losses = plain_losses(self.model, batch)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm, foreach=False)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return losses, norm.item()


def plain_losses(model: SegCLIP, batch: PairBatch) -> Losses:
    """The losses as the paper writes them."""
    pixels, noise, patch = model.image.normalise(batch.pixels), batch.noise, model.config.image.patch
    grouping = model.image.grouping(model.image.encode_patches(pixels), noise.gumbel)
    image = F.normalize(model.image.embed_regions(grouping.regions)[0], dim=-1)
    text = F.normalize(model.encode_text(batch.token_ids), dim=-1)
    logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
    contrastive = -(logits.log_softmax(dim=0).diagonal().mean() + logits.log_softmax(dim=1).diagonal().mean()) / 2

    assignment, ids = grouping.hard.mT, batch.superpixels.flatten(1)
    together = (ids[:, :, None] == ids[:, None, :]).to(assignment.dtype)
    u = (together @ assignment / together.sum(dim=-1, keepdim=True)).softmax(dim=-1)
    m = assignment.softmax(dim=-1)
    divergences = (u * (u.log() - m.log())).sum() + (m * (m.log() - u.log())).sum()
    superpixel = divergences / (2 * assignment.numel())

    order, count = noise.mask.argsort(dim=1), noise.gumbel_visible.shape[-1]
    visible = model.image.grouping(model.image.encode_patches(pixels, order[:, :count]), noise.gumbel_visible)
    grid = (SIDE // patch, SIDE // patch)
    assert model.reconstruction
    error = (model.reconstruction(visible, order, grid) - patchify(pixels, patch)).square().mean(dim=-1)
    reconstruction = error.take_along_dim(order[:, count:], dim=1).mean()
    terms = {"contrastive": contrastive, "superpixel": superpixel, "reconstruction": reconstruction}
    return Losses(terms, contrastive + superpixel + reconstruction)


def plain_attention(
    layer: Attention, x: Tensor, context: Tensor | None = None, *, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with both matrices at full size."""
    assert mask is None, "CLIP's text tower has none"
    context = x if context is None else context
    weights, biases = layer.in_proj.weight.chunk(3), layer.in_proj.bias.chunk(3)
    tokens = (x, context, context)
    q, k, v = (
        F.linear(t, w, b).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for t, w, b in zip(tokens, weights, biases, strict=True)
    )
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
    return layer.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


def plain_quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def report_memory() -> None:
    whole, eighth = (
        int(subprocess.run([sys.executable, __file__, "--peak-of", str(n)], check=True, capture_output=True).stdout)
        for n in (64, 8)
    )
    print(
        f"peak memory: 64 samples in micro-batches of 8: {whole / 1e9:.2f} GB; 8 samples: {eighth / 1e9:.2f} GB; "
        f"ratio {whole / eighth:.3f}"
    )


def peak_memory(samples: int) -> int:
    """Bytes that this process held at most in a step of so many samples, the optimiser's state being there already."""
    step = Step(replace(paper(), micro_batch=8))
    step(random_pairs(8))
    step(random_pairs(samples))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def random_model(config: ModelConfig | None = None) -> SegCLIP:
    torch.manual_seed(0)
    return SegCLIP(config or ModelConfig())


def random_pairs(count: int, device: str = "cpu", model: ModelConfig | None = None) -> PairBatch:
    generator = torch.Generator().manual_seed(0)
    model = model or ModelConfig()
    side, grid = model.image.side, model.image.side // model.image.patch
    draw = partial(torch.randint, generator=generator)
    token_ids = draw(1, model.text.vocabulary - 2, (count, TOKENS))
    token_ids[:, -1] = model.text.vocabulary - 1  # the end
    noise = draw_noise((0, 0), 0, count, model.centers, grid**2, torch.device("cpu"))
    return PairBatch(
        pixels=draw(256, (count, side, side, 3), dtype=torch.uint8).to(device),
        token_ids=token_ids.to(device),
        superpixels=draw(SUPERPIXELS, (count, grid, grid)).to(device),
        noise=noise.to(device),
    )


if __name__ == "__main__":
    main()
