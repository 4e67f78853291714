"""The relations and the aggregation on a GPU, forward and backward, for float32, float64 and float16. Twin of
kernels_numba/cpu/relations.py.

All arrays are contiguous. A map is (n, c, h, w). `centres` holds the values at i and is (n, c, p). `taps` holds one
value per tap and is (n, c, k, p). Sums of float16 are float32 and are rounded once, when they are written.

The two files differ in `combine`. The CPU has one `combine` with an offset and a scale. Here `combine` adds or
subtracts, `gather` copies, and a Hadamard product is a correlation of groups of one channel.

    lookups    Small tables per axis give where a tap reads, −1 for what the boundary drops, and which centres read an
               element (`Lookups`). The caches hold the tables and neighbouring rows of a map. Nothing is copied to
               shared memory, so no footprint is too large for it.
    threads    Consecutive threads take consecutive positions, so what they access at a tap is contiguous except at the
               ends of rows. A thread holds up to 8 taps or channels in registers: a dot product reads φ once per block
               of taps, the aggregation reads α once per block of channels.
    traffic    Each output is written once; a value at the centre is read once per block of taps. A map is read k times,
               ideally from memory only once and then from the caches.
    backward   The gradient of a map is a gather too: a thread has an element of the map and goes through its readers
               tap by tap. No atomics, and the same bits every time.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, int32

from kernels_numba.gpu.launch import THREADS, Lookups

BLOCK = 8
"""A thread holds the sums of this many channels, or taps, in registers."""


def _for_taps(
    threads: Callable[..., tuple[int, int, int, int]],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a CUDA kernel into a function that launches it; it takes the kernel's arrays and numbers and then `work`.

    `threads` takes the same arguments and returns four sizes: images, channels or groups, the taps or channels that are
    divided into blocks of at most `BLOCK` per thread, and positions. After its own arguments the kernel receives the
    tables that it names; `zeros`, one for each tap or channel of a block, in the dtype of sums, so that both are
    constants for the compiler; and `axes`, the four sizes with the number of blocks as the third."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        kernel: Any = cuda.jit(cache=True)(function)
        tables = [name for name in inspect.signature(function).parameters if name in Lookups._fields]

        @functools.wraps(function)
        def launch(*arguments: Any) -> None:
            *own, work = arguments
            images, channels, count, positions = threads(*arguments)
            blocks = -(-count // BLOCK)
            axes = images, channels, blocks, positions
            items = math.prod(axes)
            if items == 0:  # an empty grid cannot be launched
                return
            zeros = (np.result_type(own[0].dtype, np.float32).type(0),) * -(-count // blocks)
            configured = kernel[-(-items // THREADS), THREADS, work.stream]
            configured(*own, *(getattr(work, table) for table in tables), zeros, axes)

        return launch

    return decorate


@cuda.jit(device=True)
def _split(item, size):
    """item // size and item % size with one division."""
    whole = item // size
    return whole, item - whole * size


@cuda.jit(device=True)
def _place(zeros, axes):
    """The image, the channel, the first tap or channel of the block, and the position of this thread. Threads beyond
    the last item have an image that does not exist."""
    rest, position = _split(cuda.grid(1), axes[3])
    rest, block = _split(rest, axes[2])
    image, channel = _split(rest, axes[1])
    return image, channel, block * len(zeros), position


@cuda.jit(device=True)
def _read(map_, image, channel, y, x, zero):
    """The value of the map, or 0 outside. It loads a value inside in any case, so that no load waits for a branch."""
    value = type(zero)(map_[image, channel, max(y, 0), max(x, 0)])
    return value if min(y, x) >= 0 else zero


@_for_taps(lambda centres, taps, first, k, work: (*centres.shape[:2], k, centres.shape[2]))
def repeat(centres, taps, first, k, zeros, axes):
    """taps[first + c·k + j] = centres[c]; `taps` is (n, -, p)."""
    image, channel, block, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    centre = centres[image, channel, position]
    for j in range(block, min(block + len(zeros), k)):
        taps[image, first + channel * k + j, position] = centre


@_for_taps(lambda map_, taps, first, work: (*map_.shape[:2], work.rows.shape[0], taps.shape[2]))
def gather(map_, taps, first, rows, columns, zeros, axes):
    """taps[first + c·k + j] = map_[c] at j; `taps` is (n, -, p)."""
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


@_for_taps(lambda centres, map_, sign, taps, work: taps.shape)
def combine(centres, map_, sign, taps, rows, columns, zeros, axes):
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


@_for_taps(lambda centres, map_, taps, work: taps.shape)
def correlate(centres, map_, taps, rows, columns, zeros, axes):
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


@_for_taps(lambda taps, map_, centres, work: (*taps.shape[:2], map_.shape[1] // taps.shape[1], taps.shape[3]))
def aggregate(taps, map_, centres, rows, columns, zeros, axes):
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


@_for_taps(lambda taps, first, k, centres, work: (*centres.shape[:2], 1, centres.shape[2]))
def sum_taps(taps, first, k, centres, zeros, axes):
    """centres[c] = Σ_j taps[first + c·k + j]; `taps` is (n, -, p)."""
    image, channel, _, position = _place(zeros, axes)
    if image >= axes[0]:
        return
    real = type(zeros[0])
    total = zeros[0]
    for row in range(first + channel * k, first + (channel + 1) * k):
        total += real(taps[image, row, position])
    centres[image, channel, position] = total


@_for_taps(lambda taps, first, sign, map_, work: (*map_.shape[:2], 1, map_.shape[2] * map_.shape[3]))
def scatter(
    taps, first, sign, map_, columns, row_starts, row_readers, column_starts, column_readers, zeros, axes
):  # fmt: skip
    """map_[c] = sign · Σ taps[first + c·k + j] over all centres that read it through tap j; `taps` is (n, -, p)."""
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


@_for_taps(
    lambda taps, centres, map_, work: (
        *taps.shape[:2], map_.shape[1] // taps.shape[1], map_.shape[2] * map_.shape[3],
    )
)  # fmt: skip
def distribute(
    taps, centres, map_, columns, row_starts, row_readers, column_starts, column_readers, zeros, axes
):  # fmt: skip
    """map_[c] = Σ taps[j, c mod g] · centres[c] over all centres that read it through tap j."""
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


@_for_taps(lambda phi, psi, taps, work: (taps.shape[0], work.rows.shape[0], work.rows.shape[0], taps.shape[2]))
def cliques(phi, psi, taps, rows, columns, zeros, axes):
    """taps[j·k + l] = Σ_c phi[c] at j · psi[c] at l; `taps` is (n, -, p)."""
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


@_for_taps(
    lambda taps, step_j, step_l, other, map_, work: (
        map_.shape[0], 1, map_.shape[1], map_.shape[2] * map_.shape[3],
    )
)  # fmt: skip
def spread_cliques(
    taps, step_j, step_l, other, map_,
    rows, columns, row_starts, row_readers, column_starts, column_readers, zeros, axes,
):  # fmt: skip
    """map_[c] = Σ_j Σ_l taps[j·step_j + l·step_l] · other[c] at l, over all centres that read it through tap j; `taps`
    is (n, -, p)."""
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


# The operators take inputs, outputs and work. A gradient that is not needed is None.


def pairwise_summation(phi, psi, delta, work):
    combine(phi, psi, 1, delta, work)


def pairwise_summation_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        sum_taps(_flat(gradient), 0, gradient.shape[2], phi_gradient, work)
    if psi_gradient is not None:
        scatter(_flat(gradient), 0, 1, psi_gradient, work)


def pairwise_subtraction(phi, psi, delta, work):
    combine(phi, psi, -1, delta, work)


def pairwise_subtraction_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        sum_taps(_flat(gradient), 0, gradient.shape[2], phi_gradient, work)
    if psi_gradient is not None:
        scatter(_flat(gradient), 0, -1, psi_gradient, work)


def pairwise_hadamard_product(phi, psi, delta, work):
    correlate(phi, psi, delta, work)


def pairwise_hadamard_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        aggregate(gradient, psi, phi_gradient, work)
    if psi_gradient is not None:
        distribute(gradient, phi, psi_gradient, work)


def pairwise_concatenation(phi, psi, delta, work):
    r, k = phi.shape[1], delta.shape[2]
    repeat(phi, _flat(delta), 0, k, work)
    gather(psi, _flat(delta), r * k, work)


def pairwise_concatenation_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    r, k = phi.shape[1], gradient.shape[2]
    if phi_gradient is not None:
        sum_taps(_flat(gradient), 0, k, phi_gradient, work)
    if psi_gradient is not None:
        scatter(_flat(gradient), r * k, 1, psi_gradient, work)


def pairwise_dot_product(phi, psi, delta, work):
    correlate(phi, psi, delta, work)


def pairwise_dot_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        aggregate(gradient, psi, phi_gradient, work)
    if psi_gradient is not None:
        distribute(gradient, phi, psi_gradient, work)


def patchwise_star_product(phi, psi, delta, work):
    n, k, _, p = delta.shape
    pairwise_dot_product(phi, psi, delta.reshape(n, 1, k, p), work)


def patchwise_star_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    n, k, _, p = gradient.shape
    pairwise_dot_product_backward(gradient.reshape(n, 1, k, p), phi, psi, phi_gradient, psi_gradient, work)


def patchwise_clique_product(phi, psi, delta, work):
    cliques(phi, psi, _flat(delta), work)


def patchwise_clique_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    k = work.rows.shape[0]
    if phi_gradient is not None:
        spread_cliques(_flat(gradient), k, 1, psi, phi_gradient, work)
    if psi_gradient is not None:
        spread_cliques(_flat(gradient), 1, k, phi, psi_gradient, work)


def patchwise_concatenation(phi, psi, delta, work):
    repeat(phi, _flat(delta), 0, 1, work)
    gather(psi, _flat(delta), phi.shape[1], work)


def patchwise_concatenation_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        sum_taps(_flat(gradient), 0, 1, phi_gradient, work)
    if psi_gradient is not None:
        scatter(_flat(gradient), phi.shape[1], 1, psi_gradient, work)


def aggregation(alpha, beta, y, work):
    aggregate(alpha, beta, y, work)


def aggregation_backward(gradient, alpha, beta, alpha_gradient, beta_gradient, work):
    if alpha_gradient is not None:
        correlate(gradient, beta, alpha_gradient, work)
    if beta_gradient is not None:
        distribute(alpha, gradient, beta_gradient, work)
