"""Many processes: how the model is shared, what is exchanged, and its state as one process would have it."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from segclip.model.layers import Block, PostNormBlock
from segclip.train.step import Gather, gather_nothing
from segclip.utils.processes import Processes

BLOCKS = (Block, PostNormBlock)  # what is sharded, and computed again, one by one


def check_agreement(processes: Processes, recipe: str) -> None:
    """Raise ValueError where the processes were started with different recipes."""
    number = int(hashlib.sha256(recipe.encode()).hexdigest()[:12], 16)
    if len(set(processes.each(number))) > 1:
        raise ValueError(f"the {processes.world} processes disagree on recipe or data: start all with the same command")


def share_model(learner: nn.Module, processes: Processes, shard: bool) -> nn.Module:
    """Wrap a learner so that the processes average their gradients; with `shard`, each keeps a part of all parameters.

    The logarithm of the contrastive scale is one number, which cannot be cut: each process keeps it, and finds its
    whole gradient itself.
    """
    learner.to(processes.device)
    if processes.world == 1:
        return learner
    if shard:
        scale = {parameter for name, parameter in learner.named_parameters() if name.endswith("logit_scale")}
        for module in learner.modules():
            if isinstance(module, BLOCKS):
                fully_shard(module)
        fully_shard(learner, ignored_params=scale)  # in place
        return learner
    devices = [processes.device] if processes.device.type == "cuda" else None
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


def gather_rows(processes: Processes, share: int) -> Gather:
    """Exchange of embeddings, of at most `share` rows of each process; fewer where samples were bad."""
    if processes.world == 1:
        return gather_nothing

    def gather(rows: Float[Tensor, "B E"]) -> tuple[Float[Tensor, "_ E"], int]:
        counts = processes.each(len(rows))
        padded = torch.cat([rows, rows.new_zeros(share - len(rows), rows.shape[1])])
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        everyones = torch.cat([one[:count] for one, count in zip(found, counts, strict=True)])
        return everyones, sum(counts[: processes.rank])

    return gather


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
