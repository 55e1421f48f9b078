"""Where a run starts: centers, regions, and what is kept of weights."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from helpers.small_model import CLIP, SENTENCE, small_model

from segclip.checkpoints.native import load_model, save_model
from segclip.train.config import TrainConfig
from segclip.train.initialization import initialize_centers, initialize_model, initialize_projection
from segclip.train.resolve import resolve


def test_centers_start_where_alike_patches_meet() -> None:
    """Photos of patches around two of four directions: each center holds patches of one direction only."""
    torch.manual_seed(0)
    directions = torch.randn(4, 64)
    kind = torch.stack([torch.randperm(4)[:2].repeat(8) for _ in range(50)])  # photo, patch
    patches = directions[kind] + 0.3 * torch.randn(50, 16, 64)
    purity = []
    for started in (False, True):
        model = small_model(SENTENCE)
        if started:
            initialize_centers(model, patches.numpy(), 0)
        hard = model.image.grouping(patches).hard
        alike = torch.einsum("bcp,bpk->bck", hard, F.one_hot(kind, 4).float())
        purity.append(float(alike.amax(dim=-1).sum() / alike.sum()))
    assert purity[0] < 0.9 < 0.99 < purity[1]


def test_regions_start_pointing_to_the_captions_of_their_photo() -> None:
    """Photos of two kinds of patches, and a caption for each kind."""
    torch.manual_seed(0)
    directions, captions = torch.randn(2, 64), F.normalize(torch.randn(2, 64), dim=-1)
    kind = torch.arange(80) % 2
    patches = directions[kind][:, None] + 0.3 * torch.randn(80, 16, 64)
    model = small_model(SENTENCE)
    initialize_centers(model, patches.numpy(), 0)
    initialize_projection(model, zip(patches[:40].numpy(), captions[kind[:40]], strict=True))
    grouping = model.image.grouping(patches[40:])
    _, embedded = model.image.embed_regions(grouping.regions)
    similarity = F.normalize(embedded, dim=-1) @ F.normalize(captions - captions.mean(dim=0), dim=-1).T
    full = grouping.hard.sum(dim=-1) > 0  # regions that have patches
    assert similarity[full][:, 0].max() > 0.9
    assert (similarity.argmax(dim=-1) == kind[40:, None])[full].float().mean() > 0.95


def test_another_number_of_centers_keeps_all_else_of_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_model(small_model(CLIP), path)
    config = resolve(TrainConfig(init_from=str(path), model=replace(CLIP, centers=6)))
    before, after = load_model(path).state_dict(), initialize_model(config).state_dict()
    anew = {name for name in before if not torch.equal(before[name], after[name])}
    assert anew == {"image.grouping.centers", "reconstruction.unpool.weight", "reconstruction.unpool.bias"}
    assert after["image.grouping.centers"].shape == (6, 64) and after["reconstruction.unpool.weight"].shape == (6, 6)
