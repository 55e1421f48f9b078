"""One process or many: who we are, how the model is shared, what is exchanged."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from segclip.model.layers import Block, PostNormBlock
from segclip.train.step import Gather, gather_nothing

BLOCKS = (Block, PostNormBlock)  # what is sharded, and computed again, piece by piece


def only_cpu() -> bool:
    """Whether this machine has nothing but its processors; accelerate must be told, or it sees one process."""
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def check_agreement(accelerator: Accelerator, recipe: str) -> None:
    """Raise ValueError where the processes were started with different recipes."""
    number = int(hashlib.sha256(recipe.encode()).hexdigest()[:12], 16)
    if len(set(_everyones(accelerator, number))) > 1:
        raise ValueError(
            f"the {accelerator.num_processes} processes disagree on recipe or data: start all with the same command"
        )


def share_model(learner: nn.Module, accelerator: Accelerator, shard: bool) -> nn.Module:
    """Wrap a learner so that the processes average their gradients; with `shard`, each keeps a part of all parameters.

    The logarithm of the contrastive scale is one number, which cannot be cut: each process keeps it, and finds its
    whole gradient itself.
    """
    learner.to(accelerator.device)
    if shard:
        scale = {parameter for name, parameter in learner.named_parameters() if name.endswith("logit_scale")}
        for module in learner.modules():
            if isinstance(module, BLOCKS):
                fully_shard(module)
        fully_shard(learner, ignored_params=scale)  # in place
        return learner
    if accelerator.num_processes == 1:
        return learner
    devices = [accelerator.device] if accelerator.device.type == "cuda" else None
    return DistributedDataParallel(learner, device_ids=devices)


def unsynced(learner: nn.Module) -> Callable[[], AbstractContextManager]:
    """What keeps a shared learner from averaging gradients."""
    if isinstance(learner, DistributedDataParallel):
        return learner.no_sync
    if isinstance(learner, FSDPModule):

        @contextmanager
        def no_sync() -> Iterator[None]:
            learner.set_requires_gradient_sync(False)
            yield
            learner.set_requires_gradient_sync(True)

        return no_sync
    return nullcontext


def gather_rows(accelerator: Accelerator, share: int) -> Gather:
    """Exchange of embeddings, of at most `share` rows of each process; fewer where samples were bad."""
    if accelerator.num_processes == 1:
        return gather_nothing

    def gather(rows: Float[Tensor, "B E"]) -> tuple[Float[Tensor, "_ E"], int]:
        counts = _everyones(accelerator, len(rows))
        padded = torch.cat([rows, rows.new_zeros(share - len(rows), rows.shape[1])])
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        everyones = torch.cat([one[:count] for one, count in zip(found, counts, strict=True)])
        return everyones, sum(counts[: accelerator.process_index])

    return gather


def _everyones(accelerator: Accelerator, number: int) -> list[int]:
    """The number of each process."""
    if accelerator.num_processes == 1:
        return [number]
    own = torch.tensor([number], device=accelerator.device)
    found = [torch.empty_like(own) for _ in range(accelerator.num_processes)]
    dist.all_gather(found, own)
    return [int(one) for one in found]


def sum_over_processes(accelerator: Accelerator, values: list[float]) -> list[float]:
    """Each number, summed over the processes."""
    if accelerator.num_processes == 1:
        return values
    found = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    dist.all_reduce(found)
    return found.tolist()


def full_state(learner: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimiser as one process would have them, on the CPU of the first; all processes must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, state = get_state_dict(learner, optimiser, options=options)
    return {"model": model, "optimiser": state}


def restore_state(learner: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Inverse of `full_state`, into a model of the same size on any number of processes."""
    options = StateDictOptions(full_state_dict=True)
    set_state_dict(
        learner, optimiser, model_state_dict=state["model"], optim_state_dict=state["optimiser"], options=options
    )
