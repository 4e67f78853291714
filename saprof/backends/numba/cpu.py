"""The Numba backend on a CPU: lookups and memory for the kernels in `kernels_numba.cpu`, in torch's threads."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from saprof.backends.numba.lookups import Tiles, tiles_of_height, tiles_that_fit
from saprof.backends.numba.threads import threads_set_to
from saprof.operators.footprint import Footprint

if TYPE_CHECKING:
    from types import ModuleType

    from kernels_numba.cpu.frames import Frame

HUGE_BYTES = 32 << 20
"""Allocations of this size or more use huge pages.

glibc maps each of them afresh, and huge pages cause 500 times fewer page faults at the first access.
"""


@dataclass(frozen=True)
class Places:
    """The facts and lookups of a call. Two calls with equal places can have the same plan."""

    footprint: Footprint
    map_size: tuple[int, int]
    threads: int

    @cached_property
    def height(self) -> int:
        """Rows of centres."""
        return self.footprint.output_size(*self.map_size)[0]

    @cached_property
    def width(self) -> int:
        """Centres in a row."""
        return self.footprint.output_size(*self.map_size)[1]

    def lookups(self, height: int) -> Tiles:
        """Tiles of `height` rows of centres."""
        return tiles_of_height(self.footprint, *self.map_size, height)


@dataclass(frozen=True)
class CpuWork(Places):
    """A call's facts, lookups and memory: the last argument of each kernel's entry point."""

    like: Tensor
    """A tensor with the dtype of the call's arrays."""

    @property
    def places(self) -> Places:
        """What does not depend on the arrays."""
        return Places(self.footprint, self.map_size, self.threads)

    @property
    def itemsize(self) -> int:
        """The size of an element in bytes."""
        return self.like.itemsize

    @property
    def excludes(self) -> bool:
        """Whether the softmax skips taps outside the map."""
        return self.footprint.boundary == "exclude"

    def tiles(self, height: int) -> Frame:
        """Tiles of `height` rows of centres, without memory for frames."""
        return self._frame(self.lookups(height), 0, 0)

    def frames(self, planes: int, items: int = 0) -> Frame:
        """Tiles, with memory for `planes` frames per thread.

        With `items`, the independent pieces of work in a tile, there are enough tiles to occupy all threads.
        """
        least = -(-2 * self.threads // items) if items else 1
        found = tiles_that_fit(self.footprint, *self.map_size, planes * self.itemsize, least)
        size = found.rows.shape[1] * len(found.columns)
        return self._frame(found, self.threads, planes * size + _frames().SLACK)

    def _frame(self, tiles: Tiles, threads: int, elements: int) -> Frame:
        return _frames().Frame(*tiles, self.empty(threads, elements))

    def empty(self, *shape: int) -> np.ndarray:
        return empty(shape, self.like).numpy()

    def double(self, *shape: int) -> np.ndarray:
        """Zeros in float64."""
        return self.like.new_zeros(shape, dtype=torch.float64).numpy()


@contextmanager
def cpu_work(footprint: Footprint, map_size: tuple[int, int], like: Tensor) -> Iterator[CpuWork]:
    """The work of a kernel that reads maps of `map_size`; the kernel runs in as many threads as torch."""
    work = CpuWork(footprint, map_size, torch.get_num_threads(), like)
    with threads_set_to(work.threads):
        yield work


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory with the dtype and on the device of `like`; from HUGE_BYTES on, it requests huge pages from Linux."""
    output = like.new_empty(shape)
    if output.is_cpu and output.nbytes >= HUGE_BYTES and (advise := _madvise()):
        start = -(-output.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, output.data_ptr() + output.nbytes - start, mmap.MADV_HUGEPAGE)
    return output


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return madvise


@cache
def _frames() -> ModuleType:
    return import_module("kernels_numba.cpu.frames")
