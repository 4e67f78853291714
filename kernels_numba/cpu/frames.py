"""Frames: maps continued beyond their border, a tile at a time, and the sums over taps that read or write them.

    frame      A kernel that reads a map at its taps first copies the map into a frame: the map continued by the
               boundary, for a tile of rows of centres, so small that it stays in the cache. Lookups (`Frame`) give the
               source of every element, so that no kernel has a branch for the boundary. For all centres of a row, a tap
               is a run of consecutive elements of the frame.
    fold       The transpose: a gradient is summed in a frame, and then added to the map that the frame continues.
    blocks     A sum over taps or channels holds 8 channels of a vector of centres in registers.

Arrays are flat. `at_x` is the index of an element in the array x, `step_x` the distance from a channel or tap to the
next. `room` is the number of elements from there to the end of a row or array; the elements behind it are neither read
nor written.

What mattered, in SAN10's second stage (56 × 56, 7 × 7 taps, one image). The aggregation on two threads: a loop per tap
over rows, vectorised by LLVM, 1.4 ms; the sums of 8 channels in registers over all taps, 0.6 ms; prefetching the
weights of later centres, 0.5 ms. Its gradients on one thread: 8 channels in registers instead of a loop over channels,
1.8 to 1.1 ms for α and 4.0 to 1.3 ms for β. Three changes gained nothing: two rows of centres at a time, to load once
what both read (LLVM runs out of registers); a shorter prefetch distance; smaller frames.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernels_numba.compiled import compiled, part
from kernels_numba.cpu.simd import (
    add,
    broadcast,
    choose_first,
    fma,
    keep_first,
    lanes,
    load,
    load_first,
    prefetch,
    store,
    store_first,
    zeros,
)

AHEAD = 64
"""The prefetch distance of the weights of an aggregation, in elements."""
BLOCK = 8
"""The channels that a sum holds in registers."""
SLACK = 16
"""Elements behind the last one of an array, because whole vectors are read and written."""


class Frame(NamedTuple):
    """The source of each element of a frame, and the memory for the frames of each thread.

    Row q of tile t holds row rows[t, q] of the map, column u holds column columns[u]; −1 is outside and reads 0. The
    columns from `begin` to `end` are consecutive in the map. Tap j of the centre in row y, column x of a tile is
    element taps[j] + y · len(columns) + x.
    """

    rows: np.ndarray
    columns: np.ndarray
    begin: int
    end: int
    taps: np.ndarray
    order: np.ndarray
    """The indices of the taps, column by column."""
    height: int
    """Rows of centres in a tile."""
    width: int
    """Centres in a row."""
    memory: np.ndarray
    """(threads, elements)"""


def row_step(count):
    """The distance between rows of `count` elements: an odd number of vectors, because rows whose distance is a power
    of 2 compete for few cache sets."""
    return (-(-count // 8) | 1) * 8


@part
def portion(items, thread, threads):
    """The first item of a thread's portion, and the one behind its last."""
    return items * thread // threads, items * (thread + 1) // threads


@part
def read(array, at, room):
    """The vector at `at`; lanes from `room` on are 0."""
    return load(array, at) if room >= lanes(array) else load_first(array, at, room)


@part
def write(array, at, vector, room):
    """Write the vector at `at`, but no lane from `room` on."""
    if room >= lanes(array):
        store(array, at, vector)
    else:
        store_first(array, at, vector, room)


@part
def rewrite(array, at, vector, old, room):
    """Write the first `room` lanes of the vector, and the other lanes of `old`."""
    store(array, at, vector if room >= lanes(array) else choose_first(vector, old, room))


@part
def keep_room(vector, room, like):
    """The first `room` lanes of the vector; the others are 0."""
    return vector if room >= lanes(like) else keep_first(vector, room)


@part
def read_factor(array, at, room):
    """A factor or offset of a vector of centres: a value per centre, or a constant (an array of one element)."""
    return broadcast(array, array[0]) if array.ndim == 1 else read(array, at, room)


@part
def clear(array, at, count):
    """Set `count` elements from `at` on to 0."""
    for i in range(at, at + count):
        array[i] = 0


@part
def copy(to, at, source, start, count):
    """Copy `count` elements of `source`, from `start` on, to `to`, from `at` on."""
    source = source.reshape(-1)
    for i in range(count):
        to[at + i] = source[start + i]


@part
def fill(frame, at, map_, start, width, rows, columns, begin, end):
    """Copy the map that begins at `start` into the frame at `at`.

    A whole vector is written at the end of a run of columns, so what lies right behind the frame must be filled later.
    """
    step = lanes(frame)
    for q in range(rows.shape[0]):
        to = at + q * columns.shape[0]
        if rows[q] < 0:
            clear(frame, to, columns.shape[0])
            continue
        row = start + rows[q] * width
        source = row + columns[begin] - begin
        u = begin
        while u + step <= end:
            store(frame, to + u, load(map_, source + u))
            u += step
        if u < end:  # writes zeros behind the run, where the next elements are written later
            store(frame, to + u, load_first(map_, source + u, end - u))
        for u in range(begin):
            frame[to + u] = map_[row + columns[u]] if columns[u] >= 0 else 0
        for u in range(end, columns.shape[0]):
            frame[to + u] = map_[row + columns[u]] if columns[u] >= 0 else 0


@part
def fold(frame, at, map_, start, width, rows, columns, begin, end):
    """The transpose of `fill`: add each element of the frame to the element of the map that `fill` copies there."""
    step = lanes(frame)
    for q in range(rows.shape[0]):
        if rows[q] < 0:
            continue
        origin = at + q * columns.shape[0]
        row = start + rows[q] * width
        target = row + columns[begin] - begin
        u = begin
        while u + step <= end:
            store(map_, target + u, add(load(map_, target + u), load(frame, origin + u)))
            u += step
        while u < end:
            map_[target + u] += frame[origin + u]
            u += 1
        for u in range(begin):
            if columns[u] >= 0:
                map_[row + columns[u]] += frame[origin + u]
        for u in range(end, columns.shape[0]):
            if columns[u] >= 0:
                map_[row + columns[u]] += frame[origin + u]


def frames_of_tiles(map_, tiles, work):
    """Memory for the gradient of a map: the frames of each tile of each image, (image · tiles + tile, elements)."""
    size = tiles.rows.shape[1] * len(tiles.columns)
    return work.empty(map_.shape[0] * len(tiles.rows), map_.shape[1] * size + SLACK)


@compiled
def fold_tiles(numbers, frames, map_, tiles):
    """Fold the frames of all tiles, (image · tiles + tile, elements), into the map, and overwrite its old values."""
    n, c, h, w = map_.shape
    rows, columns, begin, end = tiles[:4]
    threads, size = tiles.planes.shape[0], rows.shape[1] * columns.shape[0]
    for thread in numbers:
        flat = map_.reshape(-1)
        mine = portion(n * c, thread, threads)
        for plane in range(mine[0], mine[1]):
            clear(flat, plane * h * w, h * w)
            for tile in range(rows.shape[0]):
                frame = frames[plane // c * rows.shape[0] + tile]
                fold(frame, plane % c * size, flat, plane * h * w, w, rows[tile], columns, begin, end)


@part
def correlate_block(a, at_a, step_a, room_a, b, at_b, step_b, start, channels, to, at, step, room, adds=False):
    """to[j] = Σ over channels of a · b at tap j, for a vector of centres; with `adds`, the sum is added to `to`.

    8 channels of `a` stay in registers while the loop goes through the taps.
    """
    for c in range(0, channels - BLOCK + 1, BLOCK):
        o = at_a + c * step_a
        a0, a1 = read(a, o, room_a), read(a, o + step_a, room_a)
        a2, a3 = read(a, o + 2 * step_a, room_a), read(a, o + 3 * step_a, room_a)
        o += 4 * step_a
        a4, a5 = read(a, o, room_a), read(a, o + step_a, room_a)
        a6, a7 = read(a, o + 2 * step_a, room_a), read(a, o + 3 * step_a, room_a)
        for j in range(start.shape[0]):
            o = at_b + c * step_b + start[j]
            even = odd = zeros(b)
            if adds or c > 0:
                even = read(to, at + j * step, room)
            even, odd = fma(a0, load(b, o), even), fma(a1, load(b, o + step_b), odd)
            even, odd = fma(a2, load(b, o + 2 * step_b), even), fma(a3, load(b, o + 3 * step_b), odd)
            o += 4 * step_b
            even, odd = fma(a4, load(b, o), even), fma(a5, load(b, o + step_b), odd)
            even, odd = fma(a6, load(b, o + 2 * step_b), even), fma(a7, load(b, o + 3 * step_b), odd)
            write(to, at + j * step, add(even, odd), room)
    for c in range(channels // BLOCK * BLOCK, channels):
        x = read(a, at_a + c * step_a, room_a)
        for j in range(start.shape[0]):
            total = zeros(b)
            if adds or c > 0:
                total = read(to, at + j * step, room)
            write(to, at + j * step, fma(x, load(b, at_b + c * step_b + start[j]), total), room)


@part
def aggregate_block(a, at_a, step_a, room, b, at_b, step_b, start):
    """Σ_j a_j · b at tap j, for 8 channels of b and a vector of centres."""
    c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = zeros(b)
    for j in range(start.shape[0]):
        x, o = read(a, at_a + j * step_a, room), at_b + start[j]
        prefetch(a, at_a + j * step_a + AHEAD)
        c0, c1 = fma(x, load(b, o), c0), fma(x, load(b, o + step_b), c1)
        c2, c3 = fma(x, load(b, o + 2 * step_b), c2), fma(x, load(b, o + 3 * step_b), c3)
        o += 4 * step_b
        c4, c5 = fma(x, load(b, o), c4), fma(x, load(b, o + step_b), c5)
        c6, c7 = fma(x, load(b, o + 2 * step_b), c6), fma(x, load(b, o + 3 * step_b), c7)
    return c0, c1, c2, c3, c4, c5, c6, c7


@part
def aggregate_channel(a, at_a, step_a, room, b, at_b, start):
    """Σ_j a_j · b at tap j, for one channel of b and a vector of centres."""
    sums = zeros(b)
    for j in range(start.shape[0]):
        sums = fma(read(a, at_a + j * step_a, room), load(b, at_b + start[j]), sums)
    return sums


@part
def distribute_block(a, at_a, step_a, b, at_b, step_b, room, to, at, step, start, order):
    """Add a_j · b to the frames at tap j, for 8 channels of b, which stay in registers; add 0 from `room` on."""
    b0, b1, b2 = read(b, at_b, room), read(b, at_b + step_b, room), read(b, at_b + 2 * step_b, room)
    at_b += 3 * step_b
    b3, b4, b5 = read(b, at_b, room), read(b, at_b + step_b, room), read(b, at_b + 2 * step_b, room)
    at_b += 3 * step_b
    b6, b7 = read(b, at_b, room), read(b, at_b + step_b, room)
    for j in order:
        x, o = read(a, at_a + j * step_a, room), at + start[j]
        prefetch(a, at_a + j * step_a + AHEAD)
        store(to, o, fma(x, b0, load(to, o)))
        store(to, o + step, fma(x, b1, load(to, o + step)))
        store(to, o + 2 * step, fma(x, b2, load(to, o + 2 * step)))
        store(to, o + 3 * step, fma(x, b3, load(to, o + 3 * step)))
        o += 4 * step
        store(to, o, fma(x, b4, load(to, o)))
        store(to, o + step, fma(x, b5, load(to, o + step)))
        store(to, o + 2 * step, fma(x, b6, load(to, o + 2 * step)))
        store(to, o + 3 * step, fma(x, b7, load(to, o + 3 * step)))


@part
def distribute_channel(a, at_a, step_a, b, at_b, room, to, at, start, order):
    """Add a_j · b to the frame at tap j, for one channel of b; add 0 from `room` on."""
    y = read(b, at_b, room)
    for j in order:
        o = at + start[j]
        store(to, o, fma(read(a, at_a + j * step_a, room), y, load(to, o)))
