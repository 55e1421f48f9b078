"""Twenty steps of a small model in float64 with given noise: python steps_script.py OUT MICRO_BATCH SHARD; or torchrun.

The first process writes the losses and the gradients of every step to OUT.
"""

import sys
from contextlib import nullcontext

import pytest
import torch
from torch.distributed.tensor import DTensor

from helpers.small_model import CLIP, small_model
from segclip.model.segclip import Noise
from segclip.train.config import TrainConfig
from segclip.train.distributed import check_agreement, full_state, gather_rows, share_model, unsynced
from segclip.train.optim import freeze, make_optimiser
from segclip.train.photo_batches import PairBatch, PairLearner, draw_noise
from segclip.train.step import backward
from segclip.utils.processes import Processes, join_processes

STEPS, BATCH = 20, 8


def main(out: str, micro_batch: int, shard: bool) -> None:
    with join_processes("cpu") as processes:
        run(out, micro_batch, shard, processes)
        must_agree(processes)


def run(out: str, micro_batch: int, shard: bool, processes: Processes) -> None:
    rank, world = processes.rank, processes.world
    torch.manual_seed(0)
    model = small_model(CLIP).double()
    config = TrainConfig(batch=BATCH, lr=1e-3, slow_lr=1e-3, frozen=("image.tower.patch_embed",))
    freeze(model, config)
    learner = share_model(PairLearner(model, config), processes, shard)
    optimiser = make_optimiser(model, config)
    share = BATCH // world
    records = []
    for step in range(STEPS):
        whole = batch(step, model.config.centers)
        own = whole.split(share)[rank]
        losses = backward(
            learner,
            own.split(micro_batch or None),
            gather=gather_rows(processes, share),
            world=world,
            no_sync=unsynced(learner),
        )
        parts = processes.sum([losses.superpixel.item(), losses.reconstruction.item()])
        gradients = {
            name: full(parameter.grad) for name, parameter in learner.named_parameters() if parameter.requires_grad
        }
        gradients = {name.removeprefix("module.").removeprefix("model."): value for name, value in gradients.items()}
        records.append(([losses.contrastive.item(), *(part / world for part in parts)], gradients))
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimiser.step()
        optimiser.zero_grad()
    state = full_state(learner, optimiser)["model"]
    if processes.is_main:
        torch.save((records, {name.removeprefix("model."): value for name, value in state.items()}), out)


def must_agree(processes: Processes) -> None:
    """Processes with one recipe go on, with several they do not."""
    check_agreement(processes, "recipe")
    with pytest.raises(ValueError, match="start all with the same command") if processes.world > 1 else nullcontext():
        check_agreement(processes, f"recipe {processes.rank}")


def full(gradient: torch.Tensor | None) -> torch.Tensor:
    assert gradient is not None
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()


def batch(step: int, centers: int) -> PairBatch:
    generator = torch.Generator().manual_seed(step)
    noise = draw_noise((0, step), 0, BATCH, centers, 16, torch.device("cpu"))
    return PairBatch(
        pixels=torch.randint(0, 256, (BATCH, 64, 64, 3), generator=generator).byte(),
        token_ids=torch.randint(1, 90, (BATCH, 8), generator=generator),
        superpixels=torch.randint(0, 4, (BATCH, 4, 4), generator=generator),
        noise=Noise(*(one.double() for one in vars(noise).values())),
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "shard")
