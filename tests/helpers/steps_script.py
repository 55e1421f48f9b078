"""Twenty steps of a small model in float64 with given noise: python steps_script.py OUT MICRO_BATCH SHARD; or torchrun.

The first process writes the losses and the gradients of every step to OUT.
"""

import sys

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from helpers.small_model import CLIP, small_model
from segclip.model.segclip import Noise
from segclip.train.config import TrainConfig
from segclip.train.distributed import full_state, gather_rows, share_model, sum_over_processes, unsynced
from segclip.train.optim import freeze, make_optimiser
from segclip.train.photo_batches import PairBatch, PairLearner, draw_noise
from segclip.train.step import backward

STEPS, BATCH = 20, 8


def main(out: str, micro_batch: int, shard: bool) -> None:
    accelerator = Accelerator(cpu=True)
    rank, world = accelerator.process_index, accelerator.num_processes
    torch.manual_seed(0)
    model = small_model(CLIP).double()
    config = TrainConfig(batch=BATCH, lr=1e-3, slow_lr=1e-3, frozen=("image.patch_embed",))
    freeze(model, config)
    learner = share_model(PairLearner(model, config), accelerator, shard)
    optimiser = make_optimiser(model, config)
    share = BATCH // world
    records = []
    for step in range(STEPS):
        whole = batch(step, model.config.centers)
        own = whole._rows(slice(rank * share, (rank + 1) * share))
        losses = backward(
            learner,
            own.split(micro_batch or None),
            gather=gather_rows(accelerator, share),
            world=world,
            no_sync=unsynced(learner),
        )
        parts = sum_over_processes(accelerator, [losses.superpixel.item(), losses.reconstruction.item()])
        gradients = {
            name: full(parameter.grad) for name, parameter in learner.named_parameters() if parameter.requires_grad
        }
        gradients = {name.removeprefix("module.").removeprefix("model."): value for name, value in gradients.items()}
        records.append(([losses.contrastive.item(), *(part / world for part in parts)], gradients))
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimiser.step()
        optimiser.zero_grad()
    state = full_state(learner, optimiser)["model"]
    if accelerator.is_main_process:
        torch.save((records, {name.removeprefix("model."): value for name, value in state.items()}), out)
    accelerator.wait_for_everyone()
    accelerator.end_training()


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
