"""Processes that train one network together, as torchrun starts them; without it, a single one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


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
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Whether a flag is up in any process."""
        return [bool(flag) for flag in self._reduced(flags, dist.ReduceOp.MAX)]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def _reduced(self, numbers: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total, how)
        return total.tolist()


@contextmanager
def world(device: str) -> Iterator[World]:
    """The processes of this run, connected until the end; `device` is auto, cpu or cuda.

    ValueError where `cuda` is asked for and torch sees none.
    """
    gpu = torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise ValueError("device is 'cuda', and torch sees no CUDA device; expected 'cpu' or 'auto' here")
    gpu = gpu and device != "cpu"
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(place)
    if size == 1:
        yield World(0, 1, place)
        return
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield World(rank, size, place)
    finally:
        dist.destroy_process_group()
