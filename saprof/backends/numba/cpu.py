"""The Numba backend on a CPU: lookups and memory for the kernels in `kernels_numba.cpu`, in torch's threads."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib import import_module
from itertools import accumulate
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
ALIGNED = 16
"""Arrays in one allocation begin at multiples of this many elements."""


@dataclass(frozen=True)
class Places:
    """The facts and lookups of a call, without its arrays. Calls with the same places can have the same plan."""

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


places_of = lru_cache(maxsize=1024)(Places)


class CpuWork:
    """A call's facts, lookups and memory: the last argument of each kernel's entry point."""

    def __init__(self, places: Places, like: Tensor) -> None:
        """`like` is a tensor with the dtype of the call's arrays."""
        self.places, self.like = places, like
        self.footprint, self.map_size, self.threads = places.footprint, places.map_size, places.threads

    @property
    def itemsize(self) -> int:
        """The size of an element in bytes."""
        return self.like.itemsize

    @property
    def excludes(self) -> bool:
        """Whether the softmax skips taps outside the map."""
        return self.footprint.boundary == "exclude"

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

    def per_thread(self, *counts: int) -> list[np.ndarray]:
        """Arrays of (threads, count), one per count, at distances that are multiples of 64 bytes.

        They share one allocation, since an allocation takes longer than the work of a small tile.
        """
        begins = [0, *accumulate(-(-self.threads * count // ALIGNED) * ALIGNED for count in counts)]
        memory = self.empty(begins[-1])
        return [
            memory[begin : begin + self.threads * count].reshape(self.threads, count)
            for begin, count in zip(begins, counts, strict=False)
        ]

    def nothing(self, axes: int) -> np.ndarray:
        """An array without elements, which calls share."""
        return _nothing(self.like.dtype, axes)

    def double(self, *shape: int) -> np.ndarray:
        """Zeros in float64."""
        return self.like.new_zeros(shape, dtype=torch.float64).numpy()


@contextmanager
def cpu_work(footprint: Footprint, map_size: tuple[int, int], like: Tensor) -> Iterator[CpuWork]:
    """The work of a kernel that reads maps of `map_size`; the kernel runs in as many threads as torch."""
    threads = torch.get_num_threads()
    with threads_set_to(threads):
        yield CpuWork(places_of(footprint, map_size, threads), like)


@cache
def _nothing(dtype: torch.dtype, axes: int) -> np.ndarray:
    return torch.empty([0] * axes, dtype=dtype, device="cpu").numpy()


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
