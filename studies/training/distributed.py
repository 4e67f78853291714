"""Processes that train one network together, started by torchrun; without torchrun there is a single process."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from studies.failures import Preempted

_LAST: list[dist.ProcessGroup | None] = []
"""The process group that was used last. Freeing a group joins its threads, and a thread may need the interpreter lock
to free a tensor. Python releases the lock while it frees the group; a DistributedDataParallel that holds the last
reference does not, and the program hangs. This list keeps the last reference in Python.
(https://github.com/pytorch/pytorch/issues/56297)"""
atexit.register(_LAST.clear)


@dataclass(frozen=True)
class World:
    """The rank of this process, the number of processes, and the device of this process."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes, in float64, which represents every count exactly."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is true in any process."""
        return [count > 0 for count in self.sum(flags)]

    def rounds(self, batches: Iterator[Any], count: int, stop: Callable[[], bool]) -> Iterator[Any]:
        """A batch per round, if this process has one left; every process has `count` rounds. Raises Preempted when any
        process is asked to stop."""
        for _ in range(count):
            if self.any([stop()])[0]:
                raise Preempted
            yield from islice(batches, 1)  # empty when only other processes have another batch

    def wait(self) -> None:
        """Wait until all processes have called this method."""
        if self.size > 1:
            dist.barrier()


def device(name: str) -> torch.device:
    """The device of this process for `auto`, `cpu` or `cuda`. Raises ValueError for `cuda` if torch sees no CUDA
    device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', and torch sees no CUDA device; expected 'cpu' or 'auto' here")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def world(name: str) -> Iterator[World]:
    """The connected processes of this run, each on the `device` of that name."""
    place = device(name)
    gpu = place.type == "cuda"
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if gpu:
        torch.cuda.set_device(place)
    if size == 1:
        yield World(0, 1, place)
        return
    dist.init_process_group("nccl" if gpu else "gloo")
    _LAST[:] = [dist.group.WORLD]
    try:
        yield World(rank, size, place)
    finally:
        dist.destroy_process_group()
