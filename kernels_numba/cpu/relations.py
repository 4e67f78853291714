"""CPU kernels of the operators, forward and backward, for float32 and float64.

Arrays are contiguous: a map is (n, c, h, w); `centres` are the values of a map at the centres i, (n, c, p); `taps` are
a value per tap, (n, c, k, p).

    frame      A kernel that reads a map at its taps reads it from frames; frames.py describes them.
    traffic    Every input is read once and every output is written once; the frames never leave the cache.
    backward   The gradient of a map is a sum over all centres that read a position. Each thread owns whole maps, adds
               to their frames tap by tap, and folds the frames into the maps: the order of a sum does not depend on the
               number of threads, and no lock is needed.
"""

from __future__ import annotations

import numpy as np

from kernels_numba.compiled import compiled
from kernels_numba.cpu.frames import (
    AHEAD,
    BLOCK,
    aggregate_block,
    aggregate_channel,
    clear,
    correlate_block,
    distribute_block,
    distribute_channel,
    fill,
    fold,
    portion,
    read,
    read_factor,
    write,
)
from kernels_numba.cpu.simd import add, fma, keep_first, lanes, load, prefetch, store, zeros


@compiled
def repeat(numbers, centres, taps, first, k):
    """taps[first + c·k + j] = centres[c]; `taps` is (n, -, -, p)."""
    c, p = centres.shape[1:]
    apart = taps.shape[1] * taps.shape[2]
    for item in numbers:
        to = taps.reshape(-1)
        for j in range(k):
            at = (item // c * apart + first + item % c * k + j) * p
            for x in range(0, p, lanes(taps)):
                write(to, at + x, read(centres, item * p + x, p - x), p - x)


@compiled
def combine(numbers, offset, scale, map_, taps, first, frame):
    """taps[first + c·k + j] = offset[c] + scale[c] · map_[c] at tap j; `taps` is (n, -, -, p).

    `offset` and `scale` are centres, or constants.
    """
    n, c, h, w = map_.shape
    p, apart = taps.shape[3], taps.shape[1] * taps.shape[2]
    rows, columns, begin, end, start, _, height, width, memory = frame
    k, tiles, threads = start.shape[0], rows.shape[0], memory.shape[0]
    for thread in numbers:
        flat, plane = map_.reshape(-1), memory[thread]
        mine = portion(n * c * tiles, thread, threads)
        for item in range(mine[0], mine[1]):
            channel, tile = item // tiles, item % tiles
            fill(plane, 0, flat, channel * h * w, w, rows[tile], columns, begin, end)
            room = min(height * width, p - tile * height * width)
            centre = channel * p + tile * height * width
            for j in range(k):
                at = (channel // c * apart + first + channel % c * k + j) * p + tile * height * width
                for y in range(room // width):
                    for x in range(0, width, lanes(taps)):
                        e = y * width + x
                        tap = load(plane, start[j] + y * columns.shape[0] + x)
                        factor = read_factor(scale, centre + e, room - e)
                        term = read_factor(offset, centre + e, room - e)
                        write(taps, at + e, fma(factor, tap, term), room - e)


@compiled
def correlate(numbers, centres, map_, taps, frame):
    """taps[j] = Σ centres · map_ at tap j, over the channels c with the same c mod g."""
    n, g, k, p = taps.shape
    c, h, w = map_.shape[1:]
    rows, columns, begin, end, start, _, height, width, memory = frame
    tiles, threads, size = rows.shape[0], memory.shape[0], rows.shape[1] * columns.shape[0]
    for thread in numbers:
        step = lanes(taps)
        flat, planes = map_.reshape(-1), memory[thread]
        mine = portion(n * g * tiles, thread, threads)
        for item in range(mine[0], mine[1]):
            group, tile = item // tiles, item % tiles
            channel = group // g * c + group % g
            for s in range(c // g):
                fill(planes, s * size, flat, (channel + s * g) * h * w, w, rows[tile], columns, begin, end)
            room = min(height * width, p - tile * height * width)
            for y in range(room // width):
                for x in range(0, width, step):
                    e = y * width + x
                    correlate_block(
                        centres, channel * p + tile * height * width + e, g * p, room - e,
                        planes, y * columns.shape[0] + x, size, start, c // g,
                        taps, group * k * p + tile * height * width + e, p, room - e,
                    )  # fmt: skip


@compiled
def aggregate(numbers, taps, map_, centres, frame):
    """centres[c] = Σ_j taps[j, c mod g] · map_[c] at tap j."""
    n, g, k, p = taps.shape
    c, h, w = map_.shape[1:]
    rows, columns, begin, end, start, _, height, width, memory = frame
    tiles, threads, size = rows.shape[0], memory.shape[0], rows.shape[1] * columns.shape[0]
    blocks = -(-(c // g) // BLOCK)
    for thread in numbers:
        step = lanes(taps)
        flat, planes = map_.reshape(-1), memory[thread]
        mine = portion(n * g * blocks * tiles, thread, threads)
        for item in range(mine[0], mine[1]):
            group, block, tile = item // (blocks * tiles), item // tiles % blocks, item % tiles
            channel = group // g * c + group % g + block * BLOCK * g
            count = min(BLOCK, c // g - block * BLOCK)
            for s in range(count):
                fill(planes, s * size, flat, (channel + s * g) * h * w, w, rows[tile], columns, begin, end)
            room = min(height * width, p - tile * height * width)
            for y in range(room // width):
                for x in range(0, width, step):
                    e = y * width + x
                    a, b = group * k * p + tile * height * width + e, y * columns.shape[0] + x
                    to = channel * p + tile * height * width + e
                    if count == BLOCK:
                        for s, sums in enumerate(aggregate_block(taps, a, p, room - e, planes, b, size, start)):
                            write(centres, to + s * g * p, sums, room - e)
                    else:
                        for s in range(count):
                            sums = aggregate_channel(taps, a, p, room - e, planes, b + s * size, start)
                            write(centres, to + s * g * p, sums, room - e)


@compiled
def sum_taps(numbers, taps, first, k, centres):
    """centres[c] = Σ_j taps[first + c·k + j]; `taps` is (n, -, -, p)."""
    c, p = centres.shape[1:]
    apart = taps.shape[1] * taps.shape[2]
    for item in numbers:
        to = centres.reshape(-1)
        at = (item // c * apart + first + item % c * k) * p
        for x in range(0, p, lanes(taps)):
            sums = zeros(taps)
            for j in range(k):
                sums = add(sums, read(taps, at + j * p + x, p - x))
                prefetch(taps, at + j * p + x + AHEAD)
            write(to, item * p + x, sums, p - x)


@compiled
def scatter(numbers, taps, first, scale, map_, frame):
    """map_[c] = Σ scale[c] · taps[first + c·k + j], over all centres that read the position through tap j.

    `taps` is (n, -, -, p); `scale` are centres, or a constant.
    """
    n, c, h, w = map_.shape
    p, apart = taps.shape[3], taps.shape[1] * taps.shape[2]
    rows, columns, begin, end, start, _, height, width, memory = frame
    k, tiles, threads = start.shape[0], rows.shape[0], memory.shape[0]
    size = rows.shape[1] * columns.shape[0]
    for thread in numbers:
        flat, plane = map_.reshape(-1), memory[thread]
        mine = portion(n * c, thread, threads)
        for channel in range(mine[0], mine[1]):
            clear(flat, channel * h * w, h * w)
            for tile in range(tiles):
                clear(plane, 0, size)
                room = min(height * width, p - tile * height * width)
                for j in range(k):
                    at = (channel // c * apart + first + channel % c * k + j) * p + tile * height * width
                    for y in range(room // width):
                        for x in range(0, width, lanes(taps)):
                            e, to = y * width + x, start[j] + y * columns.shape[0] + x
                            factor = read_factor(scale, channel * p + tile * height * width + e, width - x)
                            store(plane, to, fma(factor, read(taps, at + e, width - x), load(plane, to)))
                fold(plane, 0, flat, channel * h * w, w, rows[tile], columns, begin, end)


@compiled
def distribute(numbers, taps, centres, map_, frame):
    """map_[c] = Σ taps[j, c mod g] · centres[c], over all centres that read the position through tap j."""
    n, g, k, p = taps.shape
    c, h, w = map_.shape[1:]
    rows, columns, begin, end, start, order, height, width, memory = frame
    tiles, threads, size = rows.shape[0], memory.shape[0], rows.shape[1] * columns.shape[0]
    blocks = -(-(c // g) // BLOCK)
    for thread in numbers:
        step = lanes(taps)
        flat, planes = map_.reshape(-1), memory[thread]
        mine = portion(n * g * blocks, thread, threads)
        for item in range(mine[0], mine[1]):
            group, block = item // blocks, item % blocks
            channel = group // g * c + group % g + block * BLOCK * g
            count = min(BLOCK, c // g - block * BLOCK)
            for s in range(count):
                clear(flat, (channel + s * g) * h * w, h * w)
            for tile in range(tiles):
                clear(planes, 0, count * size)
                room = min(height * width, p - tile * height * width)
                for y in range(room // width):
                    for x in range(0, width, step):
                        e, u = tile * height * width + y * width + x, y * columns.shape[0] + x
                        a, b = group * k * p + e, channel * p + e
                        if count == BLOCK:
                            distribute_block(taps, a, p, centres, b, g * p, width - x, planes, u, size, start, order)
                        else:
                            for s in range(count):
                                distribute_channel(
                                    taps, a, p, centres, b + s * g * p, width - x,
                                    planes, s * size + u, start, order,
                                )  # fmt: skip
                for s in range(count):
                    to = (channel + s * g) * h * w
                    fold(planes, s * size, flat, to, w, rows[tile], columns, begin, end)


@compiled
def cliques(numbers, phi, psi, taps, frame):
    """taps[j·k + l] = Σ_c phi[c] at tap j · psi[c] at tap l."""
    n, _, _, p = taps.shape
    c, h, w = psi.shape[1:]
    rows, columns, begin, end, start, _, height, width, memory = frame
    k, tiles, threads = start.shape[0], rows.shape[0], memory.shape[0]
    size = rows.shape[1] * columns.shape[0]
    for thread in numbers:
        step = lanes(taps)
        flat_phi, flat_psi, planes = phi.reshape(-1), psi.reshape(-1), memory[thread]
        mine = portion(n * tiles, thread, threads)
        for item in range(mine[0], mine[1]):
            image, tile = item // tiles, item % tiles
            for s in range(c):
                fill(planes, s * size, flat_phi, (image * c + s) * h * w, w, rows[tile], columns, begin, end)
            for s in range(c):
                fill(planes, (c + s) * size, flat_psi, (image * c + s) * h * w, w, rows[tile], columns, begin, end)
            room = min(height * width, p - tile * height * width)
            for y in range(room // width):
                for x in range(0, width, step):
                    e, u = y * width + x, y * columns.shape[0] + x
                    for j in range(k):
                        to = (image * k + j) * k * p + tile * height * width + e
                        correlate_block(
                            planes, u + start[j], size, step, planes, c * size + u, size, start, c,
                            taps, to, p, room - e,
                        )  # fmt: skip


@compiled
def spread_cliques(numbers, taps, step_j, step_l, other, map_, frame):
    """map_[c] = Σ_j Σ_l taps[j·step_j + l·step_l] · other[c] at tap l, over all centres that read the position through
    tap j."""
    n, _, _, p = taps.shape
    c, h, w = other.shape[1:]
    rows, columns, begin, end, start, _, height, width, memory = frame
    k, tiles, threads = start.shape[0], rows.shape[0], memory.shape[0]
    size = rows.shape[1] * columns.shape[0]
    blocks = -(-c // BLOCK)
    for thread in numbers:
        step = lanes(taps)
        flat, flat_other, planes = map_.reshape(-1), other.reshape(-1), memory[thread]
        mine = portion(n * blocks, thread, threads)
        for item in range(mine[0], mine[1]):
            image, channel = item // blocks, item // blocks * c + item % blocks * BLOCK
            count = min(BLOCK, c - item % blocks * BLOCK)
            clear(flat, channel * h * w, count * h * w)
            for tile in range(tiles):
                clear(planes, 0, count * size)
                for s in range(count):
                    at = (BLOCK + s) * size
                    fill(planes, at, flat_other, (channel + s) * h * w, w, rows[tile], columns, begin, end)
                room = min(height * width, p - tile * height * width)
                for y in range(room // width):
                    for x in range(0, width, step):
                        e, u = tile * height * width + y * width + x, y * columns.shape[0] + x
                        for j in range(k):
                            a, at = (image * k * k + j * step_j) * p + e, u + start[j]
                            for s in range(count):
                                b = (BLOCK + s) * size + u
                                sums = aggregate_channel(taps, a, step_l * p, width - x, planes, b, start)
                                kept = keep_first(sums, width - x)
                                store(planes, at + s * size, add(kept, load(planes, at + s * size)))
                for s in range(count):
                    fold(planes, s * size, flat, (channel + s) * h * w, w, rows[tile], columns, begin, end)


# The operators: inputs, outputs, and the work. `work.frames(planes, items)` makes a Frame with memory for `planes`
# frames per thread, and with enough tiles to occupy all threads if each tile has `items` independent pieces. A gradient
# that is not needed is None.


def _constant(value, like):
    return np.full(1, value, like.dtype)


def pairwise_summation(phi, psi, delta, work):
    combine(work.threads, phi, _constant(1, phi), psi, delta, 0, work.frames(1, phi.shape[0] * phi.shape[1]))


def pairwise_summation_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        sum_taps(phi_gradient.shape[0] * phi_gradient.shape[1], gradient, 0, gradient.shape[2], phi_gradient)
    if psi_gradient is not None:
        scatter(work.threads, gradient, 0, _constant(1, psi), psi_gradient, work.frames(1))


def pairwise_subtraction(phi, psi, delta, work):
    combine(work.threads, phi, _constant(-1, phi), psi, delta, 0, work.frames(1, phi.shape[0] * phi.shape[1]))


def pairwise_subtraction_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        sum_taps(phi_gradient.shape[0] * phi_gradient.shape[1], gradient, 0, gradient.shape[2], phi_gradient)
    if psi_gradient is not None:
        scatter(work.threads, gradient, 0, _constant(-1, psi), psi_gradient, work.frames(1))


def pairwise_hadamard_product(phi, psi, delta, work):
    combine(work.threads, _constant(0, phi), phi, psi, delta, 0, work.frames(1, phi.shape[0] * phi.shape[1]))


def pairwise_hadamard_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        aggregate(work.threads, gradient, psi, phi_gradient, work.frames(1, phi.shape[0] * phi.shape[1]))
    if psi_gradient is not None:
        scatter(work.threads, gradient, 0, phi, psi_gradient, work.frames(1))


def pairwise_concatenation(phi, psi, delta, work):
    r, k = phi.shape[1], delta.shape[2]
    repeat(phi.shape[0] * phi.shape[1], phi, delta, 0, k)
    combine(work.threads, _constant(0, psi), _constant(1, psi), psi, delta, r * k, work.frames(1, phi.shape[0] * r))


def pairwise_concatenation_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    r, k = phi.shape[1], gradient.shape[2]
    if phi_gradient is not None:
        sum_taps(phi_gradient.shape[0] * phi_gradient.shape[1], gradient, 0, k, phi_gradient)
    if psi_gradient is not None:
        scatter(work.threads, gradient, r * k, _constant(1, psi), psi_gradient, work.frames(1))


def pairwise_dot_product(phi, psi, delta, work):
    correlate(work.threads, phi, psi, delta, work.frames(phi.shape[1], phi.shape[0]))


def pairwise_dot_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        aggregate(work.threads, gradient, psi, phi_gradient, work.frames(min(BLOCK, phi.shape[1]), phi.shape[0]))
    if psi_gradient is not None:
        distribute(work.threads, gradient, phi, psi_gradient, work.frames(min(BLOCK, phi.shape[1])))


def patchwise_star_product(phi, psi, delta, work):
    pairwise_dot_product(phi, psi, delta.swapaxes(1, 2), work)


def patchwise_star_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    pairwise_dot_product_backward(gradient.swapaxes(1, 2), phi, psi, phi_gradient, psi_gradient, work)


def patchwise_clique_product(phi, psi, delta, work):
    cliques(work.threads, phi, psi, delta, work.frames(2 * phi.shape[1], phi.shape[0]))


def patchwise_clique_product_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    frame = work.frames(2 * BLOCK)
    k = len(frame.taps)
    if phi_gradient is not None:
        spread_cliques(work.threads, gradient, k, 1, psi, phi_gradient, frame)
    if psi_gradient is not None:
        spread_cliques(work.threads, gradient, 1, k, phi, psi_gradient, frame)


def patchwise_concatenation(phi, psi, delta, work):
    r = phi.shape[1]
    repeat(phi.shape[0] * phi.shape[1], phi, delta, 0, 1)
    combine(work.threads, _constant(0, psi), _constant(1, psi), psi, delta, r, work.frames(1, phi.shape[0] * r))


def patchwise_concatenation_backward(gradient, phi, psi, phi_gradient, psi_gradient, work):
    if phi_gradient is not None:
        sum_taps(phi_gradient.shape[0] * phi_gradient.shape[1], gradient, 0, 1, phi_gradient)
    if psi_gradient is not None:
        scatter(work.threads, gradient, phi.shape[1], _constant(1, psi), psi_gradient, work.frames(1))


def aggregation(alpha, beta, y, work):
    n, g = alpha.shape[:2]
    aggregate(work.threads, alpha, beta, y, work.frames(min(BLOCK, beta.shape[1] // g), n * g))


def aggregation_backward(gradient, alpha, beta, alpha_gradient, beta_gradient, work):
    n, g = alpha.shape[:2]
    share = beta.shape[1] // g
    if alpha_gradient is not None:
        correlate(work.threads, gradient, beta, alpha_gradient, work.frames(share, n * g))
    if beta_gradient is not None:
        distribute(work.threads, alpha, gradient, beta_gradient, work.frames(min(BLOCK, share)))
