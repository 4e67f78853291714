"""CPU kernels of the operators, forward and backward, for float32 and float64.

Arrays, all contiguous: a map is (n, c, h, w); `centres` are what is read at i, (n, c, p); `taps` are one
value per tap, (n, c, k, p).

    frame      A kernel that reads a map at its taps first copies it into a frame: the map continued beyond its border,
               a tile of rows at a time, so small that it stays in the cache. Where the boundary takes a value from is
               data (`Frame`), and a tap of all centres of a row is a run of consecutive elements of the frame.
    traffic    Every input is read once and every output written once; the frames never leave the cache.
    backward   A sum over all centres that read a position. Each thread owns whole maps, adds into their frames tap by
               tap and folds these into the maps: the same order whatever the threads, and nothing to lock.

What mattered, in SAN10's second stage (56 × 56, 7 × 7 taps, one image). The aggregation on two threads: a loop per tap
over rows, left to LLVM to vectorise, 1.4 ms; the sums of 8 channels in registers over all taps, 0.6 ms; asking for the
weights of later centres ahead of time, 0.5 ms. Its gradients on one thread: 8 channels in registers instead of a loop
over channels, 1.8 to 1.1 ms for α and 4.0 to 1.3 ms for β. What did not: two rows of centres at a time, which load what
both read once (LLVM runs out of registers); fewer weights asked for ahead; smaller frames.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from kernels_numba.compiled import compiled, part
from kernels_numba.cpu.simd import (
    add,
    broadcast,
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
"""How many elements ahead the weights of an aggregation are asked for."""
BLOCK = 8
"""Channels that are held in registers at a time."""
SLACK = 16
"""Elements behind an array's last, since whole vectors are read and written."""


class Frame(NamedTuple):
    """Where a frame's elements come from, and the memory for one frame per thread and channel that it holds at once.

    Row q of tile t holds row rows[t, q] of the map, column u column columns[u]; −1 is outside and reads 0. From
    `begin` to `end` the columns are consecutive. Tap j of the centre in row y, column x of a tile lies at
    taps[j] + y · len(columns) + x.
    """

    rows: np.ndarray
    columns: np.ndarray
    begin: int
    end: int
    taps: np.ndarray
    order: np.ndarray
    """The taps column by column."""
    height: int
    """Rows of centres in a tile."""
    width: int
    """Centres in a row."""
    memory: np.ndarray
    """(threads, elements)"""


def _apart(count):
    """From a row of `count` elements to the next: an odd number of vectors, for rows that lie a power of 2 apart share
    few places in a cache."""
    return (-(-count // 8) | 1) * 8


@part
def _share(items, thread, threads):
    """The items that are a thread's own."""
    return items * thread // threads, items * (thread + 1) // threads


@part
def _read(array, at, room):
    """The vector at `at`, of which only the first `room` elements exist."""
    return load(array, at) if room >= lanes(array) else load_first(array, at, room)


@part
def _write(array, at, vector, room):
    """Write the vector; beyond a row's end too, since the next row comes later, but never beyond `room` elements."""
    if room >= lanes(array):
        store(array, at, vector)
    else:
        store_first(array, at, vector, room)


@part
def _factor(array, at, room):
    """What multiplies or is added to a vector: one value per centre, or the constant that is all of the array."""
    return broadcast(array, array[0]) if array.ndim == 1 else _read(array, at, room)


@part
def _clear(array, at, count):
    for i in range(at, at + count):
        array[i] = 0


@part
def _fill(frame, at, map_, start, width, rows, columns, begin, end):
    """Copy a map, which starts at `start`, into the frame at `at`; what comes right behind it is filled later."""
    step = lanes(frame)
    for q in range(rows.shape[0]):
        to = at + q * columns.shape[0]
        if rows[q] < 0:
            _clear(frame, to, columns.shape[0])
            continue
        row = start + rows[q] * width
        source = row + columns[begin] - begin
        u = begin
        while u + step <= end:
            store(frame, to + u, load(map_, source + u))
            u += step
        if u < end:  # writes zeros beyond, where the next elements come
            store(frame, to + u, load_first(map_, source + u, end - u))
        for u in range(begin):
            frame[to + u] = map_[row + columns[u]] if columns[u] >= 0 else 0
        for u in range(end, columns.shape[0]):
            frame[to + u] = map_[row + columns[u]] if columns[u] >= 0 else 0


@part
def _fold(frame, at, map_, start, width, rows, columns, begin, end):
    """The transpose of `_fill`: add every element of the frame to the one it would be copied from."""
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


@compiled
def _repeat(centres, taps, first, k):
    """taps[first + c·k + j] = centres[c], `taps` being (n, -, -, p)."""
    n, c, p = centres.shape
    apart = taps.shape[1] * taps.shape[2]
    for item in prange(n * c):
        to = taps.reshape(-1)
        for j in range(k):
            at = (item // c * apart + first + item % c * k + j) * p
            for x in range(0, p, lanes(taps)):
                _write(to, at + x, _read(centres, item * p + x, p - x), p - x)


@compiled
def _combine(offset, scale, map_, taps, first, frame):
    """taps[first + c·k + j] = offset[c] + scale[c] · map_[c] at j, `taps` being (n, -, -, p); `offset` and `scale` are
    centres, or constants."""
    n, c, h, w = map_.shape
    p, apart = taps.shape[3], taps.shape[1] * taps.shape[2]
    rows, columns, begin, end, start, _, height, width, memory = frame
    k, tiles, threads = start.shape[0], rows.shape[0], memory.shape[0]
    for thread in prange(threads):
        flat, plane = map_.reshape(-1), memory[thread]
        mine = _share(n * c * tiles, thread, threads)
        for item in range(mine[0], mine[1]):
            channel, tile = item // tiles, item % tiles
            _fill(plane, 0, flat, channel * h * w, w, rows[tile], columns, begin, end)
            room = min(height * width, p - tile * height * width)
            centre = channel * p + tile * height * width
            for j in range(k):
                at = (channel // c * apart + first + channel % c * k + j) * p + tile * height * width
                for y in range(room // width):
                    for x in range(0, width, lanes(taps)):
                        e = y * width + x
                        tap = load(plane, start[j] + y * columns.shape[0] + x)
                        value = fma(_factor(scale, centre + e, room - e), tap, _factor(offset, centre + e, room - e))
                        _write(taps, at + e, value, room - e)


@part
def _dots(a, at_a, step_a, room_a, b, at_b, step_b, start, channels, to, at, step, room, adds=False):
    """For every tap, the sum over channels of a · b at the tap: 8 channels at a time, whose `a` stay in registers; if
    it adds, beside what is there."""
    for c in range(0, channels - BLOCK + 1, BLOCK):
        o = at_a + c * step_a
        a0, a1 = _read(a, o, room_a), _read(a, o + step_a, room_a)
        a2, a3 = _read(a, o + 2 * step_a, room_a), _read(a, o + 3 * step_a, room_a)
        o += 4 * step_a
        a4, a5 = _read(a, o, room_a), _read(a, o + step_a, room_a)
        a6, a7 = _read(a, o + 2 * step_a, room_a), _read(a, o + 3 * step_a, room_a)
        for j in range(start.shape[0]):
            o = at_b + c * step_b + start[j]
            even = odd = zeros(b)
            if adds or c > 0:
                even = _read(to, at + j * step, room)
            even, odd = fma(a0, load(b, o), even), fma(a1, load(b, o + step_b), odd)
            even, odd = fma(a2, load(b, o + 2 * step_b), even), fma(a3, load(b, o + 3 * step_b), odd)
            o += 4 * step_b
            even, odd = fma(a4, load(b, o), even), fma(a5, load(b, o + step_b), odd)
            even, odd = fma(a6, load(b, o + 2 * step_b), even), fma(a7, load(b, o + 3 * step_b), odd)
            _write(to, at + j * step, add(even, odd), room)
    for c in range(channels // BLOCK * BLOCK, channels):
        x = _read(a, at_a + c * step_a, room_a)
        for j in range(start.shape[0]):
            total = zeros(b)
            if adds or c > 0:
                total = _read(to, at + j * step, room)
            _write(to, at + j * step, fma(x, load(b, at_b + c * step_b + start[j]), total), room)


@compiled
def _correlate(centres, map_, taps, frame):
    """taps[j] = Σ centres · map_ at j, over the channels c that share c mod g."""
    n, g, k, p = taps.shape
    c, h, w = map_.shape[1:]
    rows, columns, begin, end, start, _, height, width, memory = frame
    tiles, threads, size = rows.shape[0], memory.shape[0], rows.shape[1] * columns.shape[0]
    for thread in prange(threads):
        step = lanes(taps)
        flat, planes = map_.reshape(-1), memory[thread]
        mine = _share(n * g * tiles, thread, threads)
        for item in range(mine[0], mine[1]):
            group, tile = item // tiles, item % tiles
            channel = group // g * c + group % g
            for s in range(c // g):
                _fill(planes, s * size, flat, (channel + s * g) * h * w, w, rows[tile], columns, begin, end)
            room = min(height * width, p - tile * height * width)
            for y in range(room // width):
                for x in range(0, width, step):
                    e = y * width + x
                    _dots(
                        centres, channel * p + tile * height * width + e, g * p, room - e,
                        planes, y * columns.shape[0] + x, size, start, c // g,
                        taps, group * k * p + tile * height * width + e, p, room - e,
                    )  # fmt: skip


@part
def _sums(a, at_a, step_a, room, b, at_b, step_b, start):
    """Σ_j a_j · b at j, for 8 channels of b."""
    c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = zeros(b)
    for j in range(start.shape[0]):
        x, o = _read(a, at_a + j * step_a, room), at_b + start[j]
        prefetch(a, at_a + j * step_a + AHEAD)
        c0, c1 = fma(x, load(b, o), c0), fma(x, load(b, o + step_b), c1)
        c2, c3 = fma(x, load(b, o + 2 * step_b), c2), fma(x, load(b, o + 3 * step_b), c3)
        o += 4 * step_b
        c4, c5 = fma(x, load(b, o), c4), fma(x, load(b, o + step_b), c5)
        c6, c7 = fma(x, load(b, o + 2 * step_b), c6), fma(x, load(b, o + 3 * step_b), c7)
    return c0, c1, c2, c3, c4, c5, c6, c7


@part
def _sum(a, at_a, step_a, room, b, at_b, start):
    """Σ_j a_j · b at j, for one channel of b."""
    sums = zeros(b)
    for j in range(start.shape[0]):
        sums = fma(_read(a, at_a + j * step_a, room), load(b, at_b + start[j]), sums)
    return sums


@compiled
def _aggregate(taps, map_, centres, frame):
    """centres[c] = Σ_j taps[j, c mod g] · map_[c] at j."""
    n, g, k, p = taps.shape
    c, h, w = map_.shape[1:]
    rows, columns, begin, end, start, _, height, width, memory = frame
    tiles, threads, size = rows.shape[0], memory.shape[0], rows.shape[1] * columns.shape[0]
    blocks = -(-(c // g) // BLOCK)
    for thread in prange(threads):
        step = lanes(taps)
        flat, planes = map_.reshape(-1), memory[thread]
        mine = _share(n * g * blocks * tiles, thread, threads)
        for item in range(mine[0], mine[1]):
            group, block, tile = item // (blocks * tiles), item // tiles % blocks, item % tiles
            channel = group // g * c + group % g + block * BLOCK * g
            count = min(BLOCK, c // g - block * BLOCK)
            for s in range(count):
                _fill(planes, s * size, flat, (channel + s * g) * h * w, w, rows[tile], columns, begin, end)
            room = min(height * width, p - tile * height * width)
            for y in range(room // width):
                for x in range(0, width, step):
                    e = y * width + x
                    a, b = group * k * p + tile * height * width + e, y * columns.shape[0] + x
                    to = channel * p + tile * height * width + e
                    if count == BLOCK:
                        for s, sums in enumerate(_sums(taps, a, p, room - e, planes, b, size, start)):
                            _write(centres, to + s * g * p, sums, room - e)
                    else:
                        for s in range(count):
                            sums = _sum(taps, a, p, room - e, planes, b + s * size, start)
                            _write(centres, to + s * g * p, sums, room - e)


@compiled
def _total(taps, first, k, centres):
    """centres[c] = Σ_j taps[first + c·k + j], `taps` being (n, -, -, p)."""
    n, c, p = centres.shape
    apart = taps.shape[1] * taps.shape[2]
    for item in prange(n * c):
        to = centres.reshape(-1)
        at = (item // c * apart + first + item % c * k) * p
        for x in range(0, p, lanes(taps)):
            sums = zeros(taps)
            for j in range(k):
                sums = add(sums, _read(taps, at + j * p + x, p - x))
                prefetch(taps, at + j * p + x + AHEAD)
            _write(to, item * p + x, sums, p - x)


@compiled
def _scatter(taps, first, scale, map_, frame):
    """map_[c] = Σ scale[c] · taps[first + c·k + j] of all centres that read it through tap j, `taps` being
    (n, -, -, p); `scale` are centres, or a constant."""
    n, c, h, w = map_.shape
    p, apart = taps.shape[3], taps.shape[1] * taps.shape[2]
    rows, columns, begin, end, start, _, height, width, memory = frame
    k, tiles, threads = start.shape[0], rows.shape[0], memory.shape[0]
    size = rows.shape[1] * columns.shape[0]
    for thread in prange(threads):
        flat, plane = map_.reshape(-1), memory[thread]
        mine = _share(n * c, thread, threads)
        for channel in range(mine[0], mine[1]):
            _clear(flat, channel * h * w, h * w)
            for tile in range(tiles):
                _clear(plane, 0, size)
                room = min(height * width, p - tile * height * width)
                for j in range(k):
                    at = (channel // c * apart + first + channel % c * k + j) * p + tile * height * width
                    for y in range(room // width):
                        for x in range(0, width, lanes(taps)):
                            e, to = y * width + x, start[j] + y * columns.shape[0] + x
                            factor = _factor(scale, channel * p + tile * height * width + e, width - x)
                            store(plane, to, fma(factor, _read(taps, at + e, width - x), load(plane, to)))
                _fold(plane, 0, flat, channel * h * w, w, rows[tile], columns, begin, end)


@part
def _spread(a, at_a, step_a, b, at_b, step_b, room, to, at, step, start, order):
    """Add a_j · b to the frame at tap j, for 8 channels of b, which stay in registers; beyond `room` add 0."""
    b0, b1, b2 = _read(b, at_b, room), _read(b, at_b + step_b, room), _read(b, at_b + 2 * step_b, room)
    at_b += 3 * step_b
    b3, b4, b5 = _read(b, at_b, room), _read(b, at_b + step_b, room), _read(b, at_b + 2 * step_b, room)
    at_b += 3 * step_b
    b6, b7 = _read(b, at_b, room), _read(b, at_b + step_b, room)
    for j in order:
        x, o = _read(a, at_a + j * step_a, room), at + start[j]
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
def _spread_one(a, at_a, step_a, b, at_b, room, to, at, start, order):
    """Add a_j · b to the frame at tap j, for one channel of b; beyond `room` add 0."""
    y = _read(b, at_b, room)
    for j in order:
        o = at + start[j]
        store(to, o, fma(_read(a, at_a + j * step_a, room), y, load(to, o)))


@compiled
def _distribute(taps, centres, map_, frame):
    """map_[c] = Σ taps[j, c mod g] · centres[c] of all centres that read it through tap j."""
    n, g, k, p = taps.shape
    c, h, w = map_.shape[1:]
    rows, columns, begin, end, start, order, height, width, memory = frame
    tiles, threads, size = rows.shape[0], memory.shape[0], rows.shape[1] * columns.shape[0]
    blocks = -(-(c // g) // BLOCK)
    for thread in prange(threads):
        step = lanes(taps)
        flat, planes = map_.reshape(-1), memory[thread]
        mine = _share(n * g * blocks, thread, threads)
        for item in range(mine[0], mine[1]):
            group, block = item // blocks, item % blocks
            channel = group // g * c + group % g + block * BLOCK * g
            count = min(BLOCK, c // g - block * BLOCK)
            for s in range(count):
                _clear(flat, (channel + s * g) * h * w, h * w)
            for tile in range(tiles):
                _clear(planes, 0, count * size)
                room = min(height * width, p - tile * height * width)
                for y in range(room // width):
                    for x in range(0, width, step):
                        e, u = tile * height * width + y * width + x, y * columns.shape[0] + x
                        a, b = group * k * p + e, channel * p + e
                        if count == BLOCK:
                            _spread(taps, a, p, centres, b, g * p, width - x, planes, u, size, start, order)
                        else:
                            for s in range(count):
                                _spread_one(
                                    taps, a, p, centres, b + s * g * p, width - x,
                                    planes, s * size + u, start, order,
                                )  # fmt: skip
                for s in range(count):
                    to = (channel + s * g) * h * w
                    _fold(planes, s * size, flat, to, w, rows[tile], columns, begin, end)


@compiled
def _cliques(phi, psi, taps, frame):
    """taps[j·k + l] = Σ_c phi[c] at j · psi[c] at l."""
    n, _, _, p = taps.shape
    c, h, w = psi.shape[1:]
    rows, columns, begin, end, start, _, height, width, memory = frame
    k, tiles, threads = start.shape[0], rows.shape[0], memory.shape[0]
    size = rows.shape[1] * columns.shape[0]
    for thread in prange(threads):
        step = lanes(taps)
        flat_phi, flat_psi, planes = phi.reshape(-1), psi.reshape(-1), memory[thread]
        mine = _share(n * tiles, thread, threads)
        for item in range(mine[0], mine[1]):
            image, tile = item // tiles, item % tiles
            for s in range(c):
                _fill(planes, s * size, flat_phi, (image * c + s) * h * w, w, rows[tile], columns, begin, end)
            for s in range(c):
                _fill(planes, (c + s) * size, flat_psi, (image * c + s) * h * w, w, rows[tile], columns, begin, end)
            room = min(height * width, p - tile * height * width)
            for y in range(room // width):
                for x in range(0, width, step):
                    e, u = y * width + x, y * columns.shape[0] + x
                    for j in range(k):
                        to = (image * k + j) * k * p + tile * height * width + e
                        _dots(
                            planes, u + start[j], size, step, planes, c * size + u, size, start, c,
                            taps, to, p, room - e,
                        )  # fmt: skip


@compiled
def _spread_cliques(taps, step_j, step_l, other, map_, frame):
    """map_[c] = Σ_j Σ_l taps[j·step_j + l·step_l] · other[c] at l, of all centres that read it through tap j."""
    n, _, _, p = taps.shape
    c, h, w = other.shape[1:]
    rows, columns, begin, end, start, _, height, width, memory = frame
    k, tiles, threads = start.shape[0], rows.shape[0], memory.shape[0]
    size = rows.shape[1] * columns.shape[0]
    blocks = -(-c // BLOCK)
    for thread in prange(threads):
        step = lanes(taps)
        flat, flat_other, planes = map_.reshape(-1), other.reshape(-1), memory[thread]
        mine = _share(n * blocks, thread, threads)
        for item in range(mine[0], mine[1]):
            image, channel = item // blocks, item // blocks * c + item % blocks * BLOCK
            count = min(BLOCK, c - item % blocks * BLOCK)
            _clear(flat, channel * h * w, count * h * w)
            for tile in range(tiles):
                _clear(planes, 0, count * size)
                for s in range(count):
                    at = (BLOCK + s) * size
                    _fill(planes, at, flat_other, (channel + s) * h * w, w, rows[tile], columns, begin, end)
                room = min(height * width, p - tile * height * width)
                for y in range(room // width):
                    for x in range(0, width, step):
                        e, u = tile * height * width + y * width + x, y * columns.shape[0] + x
                        for j in range(k):
                            a, at = (image * k * k + j * step_j) * p + e, u + start[j]
                            for s in range(count):
                                b = (BLOCK + s) * size + u
                                sums = _sum(taps, a, step_l * p, width - x, planes, b, start)
                                kept = keep_first(sums, width - x)
                                store(planes, at + s * size, add(kept, load(planes, at + s * size)))
                for s in range(count):
                    _fold(planes, s * size, flat, (channel + s) * h * w, w, rows[tile], columns, begin, end)


# The operators: inputs, outputs, and the work. `work.frames(planes, items)` makes a Frame with memory for so many
# frames per thread, and with enough tiles to occupy all threads if each tile has `items` independent pieces. A gradient
# that is not needed is None.


def _constant(value, like):
    return np.full(1, value, like.dtype)


def pairwise_summation(phi, psi, delta, work):
    _combine(phi, _constant(1, phi), psi, delta, 0, work.frames(1, phi.shape[0] * phi.shape[1]))


def pairwise_summation_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        _total(gradient, 0, gradient.shape[2], phi_gradient)
    if psi_gradient is not None:
        _scatter(gradient, 0, _constant(1, psi), psi_gradient, work.frames(1))


def pairwise_subtraction(phi, psi, delta, work):
    _combine(phi, _constant(-1, phi), psi, delta, 0, work.frames(1, phi.shape[0] * phi.shape[1]))


def pairwise_subtraction_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        _total(gradient, 0, gradient.shape[2], phi_gradient)
    if psi_gradient is not None:
        _scatter(gradient, 0, _constant(-1, psi), psi_gradient, work.frames(1))


def pairwise_hadamard_product(phi, psi, delta, work):
    _combine(_constant(0, phi), phi, psi, delta, 0, work.frames(1, phi.shape[0] * phi.shape[1]))


def pairwise_hadamard_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        _aggregate(gradient, psi, phi_gradient, work.frames(1, phi.shape[0] * phi.shape[1]))
    if psi_gradient is not None:
        _scatter(gradient, 0, phi, psi_gradient, work.frames(1))


def pairwise_concatenation(phi, psi, delta, work):
    r, k = phi.shape[1], delta.shape[2]
    _repeat(phi, delta, 0, k)
    _combine(_constant(0, psi), _constant(1, psi), psi, delta, r * k, work.frames(1, phi.shape[0] * r))


def pairwise_concatenation_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    r, k = phi.shape[1], gradient.shape[2]
    if phi_gradient is not None:
        _total(gradient, 0, k, phi_gradient)
    if psi_gradient is not None:
        _scatter(gradient, r * k, _constant(1, psi), psi_gradient, work.frames(1))


def pairwise_dot_product(phi, psi, delta, work):
    _correlate(phi, psi, delta, work.frames(phi.shape[1], phi.shape[0]))


def pairwise_dot_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        _aggregate(gradient, psi, phi_gradient, work.frames(min(BLOCK, phi.shape[1]), phi.shape[0]))
    if psi_gradient is not None:
        _distribute(gradient, phi, psi_gradient, work.frames(min(BLOCK, phi.shape[1])))


def patchwise_star_product(phi, psi, delta, work):
    pairwise_dot_product(phi, psi, delta.swapaxes(1, 2), work)


def patchwise_star_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    pairwise_dot_product_backward(gradient.swapaxes(1, 2), phi, psi, phi_gradient, psi_gradient, work)


def patchwise_clique_product(phi, psi, delta, work):
    _cliques(phi, psi, delta, work.frames(2 * phi.shape[1], phi.shape[0]))


def patchwise_clique_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    frame = work.frames(2 * BLOCK)
    k = len(frame.taps)
    if phi_gradient is not None:
        _spread_cliques(gradient, k, 1, psi, phi_gradient, frame)
    if psi_gradient is not None:
        _spread_cliques(gradient, 1, k, phi, psi_gradient, frame)


def patchwise_concatenation(phi, psi, delta, work):
    r = phi.shape[1]
    _repeat(phi, delta, 0, 1)
    _combine(_constant(0, psi), _constant(1, psi), psi, delta, r, work.frames(1, phi.shape[0] * r))


def patchwise_concatenation_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        _total(gradient, 0, 1, phi_gradient)
    if psi_gradient is not None:
        _scatter(gradient, phi.shape[1], _constant(1, psi), psi_gradient, work.frames(1))


def aggregation(alpha, beta, y, work):
    n, g = alpha.shape[:2]
    _aggregate(alpha, beta, y, work.frames(min(BLOCK, beta.shape[1] // g), n * g))


def aggregation_backward(gradient, alpha, beta, alpha_gradient, beta_gradient, work):
    n, g = alpha.shape[:2]
    share = beta.shape[1] // g
    if alpha_gradient is not None:
        _correlate(gradient, beta, alpha_gradient, work.frames(share, n * g))
    if beta_gradient is not None:
        _distribute(alpha, gradient, beta_gradient, work.frames(min(BLOCK, share)))
