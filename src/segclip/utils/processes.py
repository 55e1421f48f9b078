"""One process, or the many that torchrun started: which one this is, and the numbers that they exchange."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from segclip.utils.devices import pick_device

PATIENCE = timedelta(days=1)  # for a process that has much more work left than another


@dataclass(frozen=True)
class Processes:
    """Which process this is; alone, it exchanges nothing.

    Attributes:
        rank: its number.
        world: how many there are.
        device: what it computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and speaks for all."""
        return self.rank == 0

    def each(self, number: int) -> list[int]:
        """The number that each process gives, by rank."""
        if self.world == 1:
            return [number]
        found = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(found, torch.tensor([number]))
        return [int(one) for one in found]

    def sum(self, numbers: list[float]) -> list[float]:
        """Each number, summed over the processes."""
        if self.world == 1:
            return numbers
        found = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(found)
        return found.tolist()

    def wait(self) -> None:
        """Go on when every process is here."""
        self.sum([0.0])

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process makes what is missing, then the others find it there."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


def world_size() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def alone(device: str = "auto") -> Processes:
    """This process by itself."""
    return Processes(0, 1, pick_device(device))


@contextmanager
def join_processes(device: str = "auto") -> Iterator[Processes]:
    """Meet the other processes that torchrun started, and part from them when all are done.

    Args:
        device: what each computes on; auto, of several GPUs: each its own.

    Raises:
        ValueError: more processes on this machine than it has GPUs.
    """
    if world_size() == 1:
        yield alone(device)
        return
    if device == "auto":
        device = _own_gpu() if torch.cuda.is_available() else "cpu"
    processes = Processes(int(os.environ["RANK"]), world_size(), pick_device(device))
    on_cuda = processes.device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(processes.device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=PATIENCE)  # numbers go by the CPU
    try:
        yield processes
        processes.wait()  # or one takes the connections down while another still needs them
    finally:
        gc.collect()  # what trained holds the connections too, in circles: it goes first
        dist.destroy_process_group()


def _own_gpu() -> str:
    """The GPU of this process. NCCL, by which they exchange gradients, refuses two processes on one."""
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    started = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if local >= gpus:
        raise ValueError(f"{started} processes on a machine with {gpus} GPU(s); start --nproc-per-node {gpus}")
    return f"cuda:{local}"
