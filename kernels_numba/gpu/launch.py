"""How CUDA kernels are compiled and launched, and the tables that they read. The CPU needs no such file.

Nothing is allocated on the host and nothing waits, so a CUDA graph can record the kernels once they are compiled. None
has been timed on a GPU yet.

The package is not called `cuda`: numba-cuda takes over every module whose name contains `numba.cuda`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from kernels_numba.compiled import announced, kept_on_disk

SIMULATED = cuda.config.ENABLE_CUDASIM
THREADS = 8 if SIMULATED else 128
"""Threads per block; the simulator starts each of them."""
SHARED_BYTES = 48 << 10
"""The shared memory that a block may use on any GPU."""
WORKERS = 512
"""At most this many workers have partial sums: a few more blocks than an H200 runs at once."""
SCRATCH = 1 << 24
"""The partial sums of all workers have at most this many elements, unless one worker alone needs more."""

# Numba warns of every grid that is too small to fill a GPU, and small maps only have such grids. This is not
# `numba.config`, since the package numba-cuda has its own.
cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

device = cuda.jit(device=True)


def kernel(function: Callable[..., None]) -> Any:
    """Compile a CUDA kernel and keep it on disk until a file of kernels_numba changes: it inlines functions of
    others."""
    dispatcher: Any = cuda.jit(function)
    return dispatcher if SIMULATED else announced(kept_on_disk(dispatcher))


class Lookups(NamedTuple):
    """Where the taps read, and which centres read an element, as int32 arrays on the device; and the stream of
    launches.

    Tap j of the centre in row oy, column ox reads row rows[j, oy], column columns[j, ox] of the map; −1 is outside and
    reads 0. Tap j reads row y for the centres in rows row_readers[row_starts[j, y] : row_starts[j, y + 1]]. Columns
    work the same way. The `work` that every entry point takes has these fields; that of a core has further ones."""

    rows: Any
    """(k, oh)"""
    columns: Any
    """(k, ow)"""
    row_starts: Any
    """(k, h + 1)"""
    row_readers: Any
    column_starts: Any
    """(k, w + 1)"""
    column_readers: Any
    stream: Any


class Block(NamedTuple):
    """What a device function needs from the block that calls it: two arrays in shared memory, and the calling thread.

    `shared` holds numbers of the arrays' dtype, and `pairs` integers. Both begin at the same address: positions in
    `shared` leave room for the integers. A pair, or a place, is four integers in rows of `pairs`: image, centre, source
    and tap, or image, centre, row and column. The image is −1 if there is none.
    """

    pairs: Any
    shared: Any
    zero: Any
    """0 of the arrays' dtype."""
    thread: int
    threads: int


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def zero_of(x: Any) -> Any:
    """0 of the array's dtype."""
    return np.dtype(x.dtype).type(0)


def lowest_of(x: Any) -> Any:
    """The lowest number of the array's dtype."""
    return np.finfo(x.dtype).min


def flat(x: Any) -> Any:
    """(n, -, h, w) as (n, -, h·w)."""
    return x if len(x.shape) == 3 else x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def line(x: Any) -> Any:
    """All elements in one axis."""
    return x.reshape(x.size)


def first_real(integers: int, itemsize: int) -> int:
    """Where the numbers begin in `Block.shared`, after this many integers."""
    return ceil_div(integers * 4, 16) * 16 // itemsize


def workers_of(size: int, tiles: int) -> int:
    """How many workers share the tiles, if the partial sums of each have `size` elements."""
    return min(max(SCRATCH // max(size, 1), 1), WORKERS, tiles)


def start(function: Any, blocks: int, elements: int, work: Any, zero: Any, *arguments: Any) -> None:
    """Launch a kernel with `blocks` blocks, each with `elements` elements of shared memory."""
    if blocks:  # an empty grid cannot be launched
        function[blocks, THREADS, work.stream, ceil_div(elements * zero.itemsize, 16) * 16](*arguments)
