"""CUDA kernels of the operators, forward and backward, for float32, float64 and float16: twins of those in `cpu`.

Arrays, all contiguous: a map is (n, c, h, w); `centres` are what is read at i, (n, c, p); `taps` are one value per tap,
(n, c, k, p). float16 is summed in float32 and rounded once, when it is written.

The twins part where `cpu` has one `_combine` with an offset and a scale: here it adds or subtracts, `_gather` copies,
and a Hadamard product is a correlation of groups of one channel.

    lookups    Where a tap reads is data: a small table per axis, −1 for what the boundary drops, and its inverse
               (`Lookups`). Tables and neighbouring rows of a map are left to the caches; nothing is staged in shared
               memory, so no footprint is too large for it.
    threads    Consecutive threads take consecutive positions: what they read and write at a tap is contiguous, but for
               the ends of rows. A thread holds up to 8 taps or channels in registers: a dot product reads φ once per
               block of taps, the aggregation reads α once per block of channels.
    traffic    Every output is written once; what is read at the centre, once per block of taps. A map is read k times,
               of which the caches are to spare the memory all but one.
    backward   A sum over all centres that read a position is a gather as well: a thread owns an element of the map and
               goes through its readers, tap by tap. No atomics, and the same bits every time.

Nothing is allocated and nothing waits, so a CUDA graph can record the kernels once they are compiled. None has been
timed on a GPU yet.

The module is not called `cuda`: numba-cuda takes over every module whose name has `numba.cuda` in it.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, int32

BLOCK = 8
"""Channels, or taps, whose sums a thread holds in registers."""
THREADS = 32 if cuda.config.ENABLE_CUDASIM else 128
"""Threads per block; the simulator starts each of them."""

# Numba warns of every grid too small to fill a GPU; small maps have no others. Not `numba.config`: the package
# numba-cuda brings its own.
cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0


class Lookups(NamedTuple):
    """Where taps read and who reads an element: int32 device arrays, and the stream that kernels are launched on.

    Tap j of the centre in row oy, column ox reads row rows[j, oy], column columns[j, ox] of the map; −1 is outside and
    reads 0. The rows of centres whose tap j reads row y are row_readers[row_starts[j, y] : row_starts[j, y + 1]]; so
    for columns.
    """

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


def _kernel(threads: Callable[..., tuple[int, int, int, int]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make of a CUDA kernel a function of its arrays and numbers and, last, `lookups`, that launches it.

    From the same arguments `threads` says along which axes there are threads: images, channels or groups, the taps or
    channels that are dealt out in blocks of at most `BLOCK` to a thread, positions. Behind its own arguments the kernel
    gets the tables that it names; `zeros`, as many as there are in a block, of the type to sum in, so that both are
    constants to the compiler; and `axes`, with blocks for the third.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        kernel: Any = cuda.jit(cache=True)(function)
        tables = [name for name in inspect.signature(function).parameters if name in Lookups._fields]

        @functools.wraps(function)
        def launch(*arguments: Any) -> None:
            *own, lookups = arguments
            images, channels, count, positions = threads(*arguments)
            blocks = -(-count // BLOCK)
            axes = images, channels, blocks, positions
            items = math.prod(axes)
            if items == 0:  # an empty grid cannot be launched
                return
            zeros = (np.result_type(own[0].dtype, np.float32).type(0),) * -(-count // blocks)
            configured = kernel[-(-items // THREADS), THREADS, lookups.stream]
            configured(*own, *(getattr(lookups, table) for table in tables), zeros, axes)

        return launch

    return decorate


@cuda.jit(device=True)
def _split(item, size):
    """item // size and item % size, at the price of one division."""
    whole = item // size
    return whole, item - whole * size


@cuda.jit(device=True)
def _place(zeros, axes):
    """Image, channel, first tap or channel of the block, and position of this thread; the image does not exist if it
    is a thread too many."""
    rest, position = _split(cuda.grid(1), axes[3])
    rest, block = _split(rest, axes[2])
    image, channel = _split(rest, axes[1])
    return image, channel, block * len(zeros), position


@cuda.jit(device=True)
def _read(map_, image, channel, y, x, zero):
    """The map there; 0 outside, but loaded from inside all the same, so that no load waits for a branch."""
    value = type(zero)(map_[image, channel, max(y, 0), max(x, 0)])
    return value if min(y, x) >= 0 else zero


@_kernel(lambda centres, taps, first, k, lookups: (*centres.shape[:2], k, centres.shape[2]))
def _repeat(centres, taps, first, k, zeros, axes):
    """taps[first + c·k + j] = centres[c], `taps` being (n, -, p)."""
    image, channel, block, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    centre = centres[image, channel, position]
    for j in range(block, min(block + len(zeros), k)):
        taps[image, first + channel * k + j, position] = centre


@_kernel(lambda map_, taps, first, lookups: (*map_.shape[:2], lookups.rows.shape[0], taps.shape[2]))
def _gather(map_, taps, first, rows, columns, zeros, axes):
    """taps[first + c·k + j] = map_[c] at j, `taps` being (n, -, p)."""
    image, channel, block, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    real = type(zeros[0])
    k = rows.shape[0]
    oy, ox = _split(position, columns.shape[1])
    values = cuda.local.array(BLOCK, real)
    for i in range(len(zeros)):
        j = min(block + i, k - 1)
        values[i] = _read(map_, image, channel, rows[j, oy], columns[j, ox], zeros[0])
    for i in range(len(zeros)):
        if block + i < k:
            taps[image, first + channel * k + block + i, position] = values[i]


@_kernel(lambda centres, map_, sign, taps, lookups: taps.shape)
def _combine(centres, map_, sign, taps, rows, columns, zeros, axes):
    """taps[j] = centres + sign · map_ at j."""
    image, channel, block, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    real = type(zeros[0])
    k = taps.shape[2]
    oy, ox = _split(position, columns.shape[1])
    centre, factor = real(centres[image, channel, position]), real(sign)
    values = cuda.local.array(BLOCK, real)
    for i in range(len(zeros)):
        j = min(block + i, k - 1)
        tap = _read(map_, image, channel, rows[j, oy], columns[j, ox], zeros[0])
        values[i] = centre + factor * tap
    for i in range(len(zeros)):
        if block + i < k:
            taps[image, channel, block + i, position] = values[i]


@_kernel(lambda centres, map_, taps, lookups: taps.shape)
def _correlate(centres, map_, taps, rows, columns, zeros, axes):
    """taps[j] = Σ centres · map_ at j, over the channels c that share c mod g."""
    image, group, block, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    real = type(zeros[0])
    g, k = taps.shape[1], taps.shape[2]
    oy, ox = _split(position, columns.shape[1])
    sums = cuda.local.array(BLOCK, real)
    ys, xs = cuda.local.array(BLOCK, int32), cuda.local.array(BLOCK, int32)
    for i in range(len(zeros)):
        j = min(block + i, k - 1)
        sums[i], ys[i], xs[i] = zeros[0], rows[j, oy], columns[j, ox]
    for s in range(map_.shape[1] // g):
        channel = group + s * g
        centre = real(centres[image, channel, position])
        for i in range(len(zeros)):
            sums[i] += centre * _read(map_, image, channel, ys[i], xs[i], zeros[0])
    for i in range(len(zeros)):
        if block + i < k:
            taps[image, group, block + i, position] = sums[i]


@_kernel(lambda taps, map_, centres, lookups: (*taps.shape[:2], map_.shape[1] // taps.shape[1], taps.shape[3]))
def _aggregate(taps, map_, centres, rows, columns, zeros, axes):
    """centres[c] = Σ_j taps[j, c mod g] · map_[c] at j."""
    image, group, block, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    real = type(zeros[0])
    g, share = taps.shape[1], map_.shape[1] // taps.shape[1]
    oy, ox = _split(position, columns.shape[1])
    sums = cuda.local.array(BLOCK, real)
    for i in range(len(zeros)):
        sums[i] = zeros[0]
    for j in range(taps.shape[2]):
        tap = real(taps[image, group, j, position])
        y, x = rows[j, oy], columns[j, ox]
        for i in range(len(zeros)):
            sums[i] += tap * _read(map_, image, group + min(block + i, share - 1) * g, y, x, zeros[0])
    for i in range(len(zeros)):
        if block + i < share:
            centres[image, group + (block + i) * g, position] = sums[i]


@_kernel(lambda taps, first, k, centres, lookups: (*centres.shape[:2], 1, centres.shape[2]))
def _total(taps, first, k, centres, zeros, axes):
    """centres[c] = Σ_j taps[first + c·k + j], `taps` being (n, -, p)."""
    image, channel, _, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    real = type(zeros[0])
    total = zeros[0]
    for row in range(first + channel * k, first + (channel + 1) * k):
        total += real(taps[image, row, position])
    centres[image, channel, position] = total


@_kernel(lambda taps, first, sign, map_, lookups: (*map_.shape[:2], 1, map_.shape[2] * map_.shape[3]))
def _scatter(
    taps, first, sign, map_, columns, row_starts, row_readers, column_starts, column_readers, zeros, axes
):  # fmt: skip
    """map_[c] = sign · Σ taps[first + c·k + j] of all centres that read it through tap j, `taps` being (n, -, p)."""
    image, channel, _, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    real = type(zeros[0])
    k, ow = row_starts.shape[0], columns.shape[1]
    y, x = _split(position, map_.shape[3])
    total = zeros[0]
    for j in range(k):
        for row in range(row_starts[j, y], row_starts[j, y + 1]):
            start = row_readers[row] * ow
            for column in range(column_starts[j, x], column_starts[j, x + 1]):
                total += real(taps[image, first + channel * k + j, start + column_readers[column]])
    map_[image, channel, y, x] = real(sign) * total


@_kernel(
    lambda taps, centres, map_, lookups: (
        *taps.shape[:2], map_.shape[1] // taps.shape[1], map_.shape[2] * map_.shape[3],
    )
)  # fmt: skip
def _distribute(
    taps, centres, map_, columns, row_starts, row_readers, column_starts, column_readers, zeros, axes
):  # fmt: skip
    """map_[c] = Σ taps[j, c mod g] · centres[c] of all centres that read it through tap j."""
    image, group, block, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    real = type(zeros[0])
    g, share, ow = taps.shape[1], map_.shape[1] // taps.shape[1], columns.shape[1]
    y, x = _split(position, map_.shape[3])
    sums = cuda.local.array(BLOCK, real)
    for i in range(len(zeros)):
        sums[i] = zeros[0]
    for j in range(taps.shape[2]):
        for row in range(row_starts[j, y], row_starts[j, y + 1]):
            start = row_readers[row] * ow
            for column in range(column_starts[j, x], column_starts[j, x + 1]):
                reader = start + column_readers[column]
                tap = real(taps[image, group, j, reader])
                for i in range(len(zeros)):
                    sums[i] += tap * real(centres[image, group + min(block + i, share - 1) * g, reader])
    for i in range(len(zeros)):
        if block + i < share:
            map_[image, group + (block + i) * g, y, x] = sums[i]


@_kernel(lambda phi, psi, taps, lookups: (taps.shape[0], lookups.rows.shape[0], lookups.rows.shape[0], taps.shape[2]))
def _cliques(phi, psi, taps, rows, columns, zeros, axes):
    """taps[j·k + l] = Σ_c phi[c] at j · psi[c] at l, `taps` being (n, -, p)."""
    image, j, block, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    real = type(zeros[0])
    k = rows.shape[0]
    oy, ox = _split(position, columns.shape[1])
    sums = cuda.local.array(BLOCK, real)
    ys, xs = cuda.local.array(BLOCK, int32), cuda.local.array(BLOCK, int32)
    for i in range(len(zeros)):
        l = min(block + i, k - 1)  # noqa: E741
        sums[i], ys[i], xs[i] = zeros[0], rows[l, oy], columns[l, ox]
    for channel in range(psi.shape[1]):
        left = _read(phi, image, channel, rows[j, oy], columns[j, ox], zeros[0])
        for i in range(len(zeros)):
            sums[i] += left * _read(psi, image, channel, ys[i], xs[i], zeros[0])
    for i in range(len(zeros)):
        if block + i < k:
            taps[image, j * k + block + i, position] = sums[i]


@_kernel(
    lambda taps, step_j, step_l, other, map_, lookups: (
        map_.shape[0], 1, map_.shape[1], map_.shape[2] * map_.shape[3],
    )
)  # fmt: skip
def _spread_cliques(
    taps, step_j, step_l, other, map_,
    rows, columns, row_starts, row_readers, column_starts, column_readers, zeros, axes,
):  # fmt: skip
    """map_[c] = Σ_j Σ_l taps[j·step_j + l·step_l] · other[c] at l, of all centres that read it through tap j, `taps`
    being (n, -, p)."""
    image, _, block, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    real = type(zeros[0])
    k, c, ow = rows.shape[0], map_.shape[1], columns.shape[1]
    y, x = _split(position, map_.shape[3])
    sums = cuda.local.array(BLOCK, real)
    for i in range(len(zeros)):
        sums[i] = zeros[0]
    for j in range(k):
        for row in range(row_starts[j, y], row_starts[j, y + 1]):
            oy = row_readers[row]
            for column in range(column_starts[j, x], column_starts[j, x + 1]):
                ox = column_readers[column]
                for l in range(k):  # noqa: E741
                    tap = real(taps[image, j * step_j + l * step_l, oy * ow + ox])
                    for i in range(len(zeros)):
                        channel = min(block + i, c - 1)
                        sums[i] += tap * _read(other, image, channel, rows[l, oy], columns[l, ox], zeros[0])
    for i in range(len(zeros)):
        if block + i < c:
            map_[image, block + i, y, x] = sums[i]


def _flat(taps: Any) -> Any:
    """(n, -, -, p) as (n, -, p)."""
    n, channels, k, p = taps.shape
    return taps.reshape(n, channels * k, p)


# The operators: inputs, outputs, and lookups. A gradient that nobody needs is None.


def pairwise_summation(phi, psi, delta, lookups):
    _combine(phi, psi, 1, delta, lookups)


def pairwise_summation_backward(gradient, phi, psi, phi_gradient, psi_gradient, lookups):
    if phi_gradient is not None:
        _total(_flat(gradient), 0, gradient.shape[2], phi_gradient, lookups)
    if psi_gradient is not None:
        _scatter(_flat(gradient), 0, 1, psi_gradient, lookups)


def pairwise_subtraction(phi, psi, delta, lookups):
    _combine(phi, psi, -1, delta, lookups)


def pairwise_subtraction_backward(gradient, phi, psi, phi_gradient, psi_gradient, lookups):
    if phi_gradient is not None:
        _total(_flat(gradient), 0, gradient.shape[2], phi_gradient, lookups)
    if psi_gradient is not None:
        _scatter(_flat(gradient), 0, -1, psi_gradient, lookups)


def pairwise_hadamard_product(phi, psi, delta, lookups):
    _correlate(phi, psi, delta, lookups)


def pairwise_hadamard_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, lookups):
    if phi_gradient is not None:
        _aggregate(gradient, psi, phi_gradient, lookups)
    if psi_gradient is not None:
        _distribute(gradient, phi, psi_gradient, lookups)


def pairwise_concatenation(phi, psi, delta, lookups):
    r, k = phi.shape[1], delta.shape[2]
    _repeat(phi, _flat(delta), 0, k, lookups)
    _gather(psi, _flat(delta), r * k, lookups)


def pairwise_concatenation_backward(gradient, phi, psi, phi_gradient, psi_gradient, lookups):
    r, k = phi.shape[1], gradient.shape[2]
    if phi_gradient is not None:
        _total(_flat(gradient), 0, k, phi_gradient, lookups)
    if psi_gradient is not None:
        _scatter(_flat(gradient), r * k, 1, psi_gradient, lookups)


def pairwise_dot_product(phi, psi, delta, lookups):
    _correlate(phi, psi, delta, lookups)


def pairwise_dot_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, lookups):
    if phi_gradient is not None:
        _aggregate(gradient, psi, phi_gradient, lookups)
    if psi_gradient is not None:
        _distribute(gradient, phi, psi_gradient, lookups)


def patchwise_star_product(phi, psi, delta, lookups):
    n, k, _, p = delta.shape
    pairwise_dot_product(phi, psi, delta.reshape(n, 1, k, p), lookups)


def patchwise_star_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, lookups):
    n, k, _, p = gradient.shape
    pairwise_dot_product_backward(gradient.reshape(n, 1, k, p), phi, psi, phi_gradient, psi_gradient, lookups)


def patchwise_clique_product(phi, psi, delta, lookups):
    _cliques(phi, psi, _flat(delta), lookups)


def patchwise_clique_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, lookups):
    k = lookups.rows.shape[0]
    if phi_gradient is not None:
        _spread_cliques(_flat(gradient), k, 1, psi, phi_gradient, lookups)
    if psi_gradient is not None:
        _spread_cliques(_flat(gradient), 1, k, phi, psi_gradient, lookups)


def patchwise_concatenation(phi, psi, delta, lookups):
    _repeat(phi, _flat(delta), 0, 1, lookups)
    _gather(psi, _flat(delta), phi.shape[1], lookups)


def patchwise_concatenation_backward(gradient, phi, psi, phi_gradient, psi_gradient, lookups):
    if phi_gradient is not None:
        _total(_flat(gradient), 0, 1, phi_gradient, lookups)
    if psi_gradient is not None:
        _scatter(_flat(gradient), phi.shape[1], 1, psi_gradient, lookups)


def aggregation(alpha, beta, y, lookups):
    _aggregate(alpha, beta, y, lookups)


def aggregation_backward(gradient, alpha, beta, alpha_gradient, beta_gradient, lookups):
    if alpha_gradient is not None:
        _correlate(gradient, beta, alpha_gradient, lookups)
    if beta_gradient is not None:
        _distribute(alpha, gradient, beta_gradient, lookups)
