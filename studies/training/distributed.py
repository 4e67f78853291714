"""Processes that train one network together, as torchrun starts them; without it, a single one."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

_LAST: list[dist.ProcessGroup | None] = []
"""The group that was used last. Whoever frees a group waits for its threads, and these may wait for the interpreter, to
free a tensor: a DistributedDataParallel would not let go of it meanwhile, and Python does. So ours is the last
reference. (https://github.com/pytorch/pytorch/issues/56297)"""
atexit.register(_LAST.clear)


@dataclass(frozen=True)
class World:
    """This process, its place among the others, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes, in float64, which holds every count exactly."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Whether a flag is up in any process."""
        return [count > 0 for count in self.sum(flags)]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def device(name: str) -> torch.device:
    """This process' device for `auto`, `cpu` or `cuda`; ValueError where `cuda` is asked for and torch sees none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', and torch sees no CUDA device; expected 'cpu' or 'auto' here")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def world(name: str) -> Iterator[World]:
    """The processes of this run, each on the `device` of that name, connected until the end."""
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
