"""CPU kernels of the fused pairwise attentions, forward and backward, for float32 and float64.

    z_ij = ρ(factor_i ⊙ map_j + offset_i)      u_ij = W_L·ReLU(… W_1·z_ij + b_1 …) + b_L
    α_i = softmax of u_i over the taps j       y_i[c] = Σ_j α_ij[c mod g] · β_j[c]

Arrays are contiguous: `offset` and `factor` are (n, e, p), `map` is (n, e, h, w), β is (n, v, h, w). mapping.py
describes the parameters and widths, frames.py the frames.

    tiles      A thread takes a few rows of an image's centres, reads the map and β from frames, and holds the logits of
               all taps.
    strips     The layers run for a few hundred pairs at a time: several taps of one row of centres, or of a few short
               rows. So the gradient of an offset is summed over several taps in a register.
    traffic    Every input is read once per tile, including the borders that tiles share, and every output is written
               once. The rows of pairs never leave the second-level cache.
    backward   The rows of a tile are computed again. The gradients of the map and β are added to the tile's own frames,
               and the frames are then folded into the maps: no lock is needed. The order of a sum depends on the number
               of threads, since the tiles do, but not on their timing.

What mattered, in SAN10's second stage (56 × 56, 7 × 7 taps, one image), in CPU time of one thread. Masks only where a
row ends, instead of at every vector: 5.0 to 4.0 ms for the attention, of which the layers take 1.8, near the rate of a
sgemm, and 17 to 14 ms for the gradients of the statistics. The mask of ρ in the loop that adds up these gradients,
instead of in a loop of its own: 14 to 11 ms. On a slower machine: strips of four taps instead of one tap of four rows,
and no multiplications by a missing factor, 7.8 to 6.3 ms for the gradients of the statistics and 13.6 to 12.4 ms for
those of the attention; up to 512 pairs at a time where there are few rows, instead of 256, 6 % of all.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels_numba.compiled import compiled, or_empty, part
from kernels_numba.cpu.frames import (
    BLOCK,
    SLACK,
    clear,
    copy,
    correlate_block,
    distribute_block,
    distribute_channel,
    fill,
    fold_tiles,
    frames_of_tiles,
    keep_room,
    portion,
    read,
    rewrite,
    row_step,
)
from kernels_numba.cpu.mapping import (
    gather_moments,
    layers,
    layers_gradient,
    mean_and_variance,
    moments_gradient,
    transpose,
)
from kernels_numba.cpu.simd import (
    add,
    broadcast,
    div,
    fma,
    lanes,
    load,
    maximum,
    mul,
    store,
    total,
    where_positive,
    zeros,
)
from kernels_numba.cpu.softmax import (
    average,
    clear_unreached,
    drop_outside,
    log_sum,
    lowest_of,
    softmax,
    softmax_gradient,
)

CENTRES = 256
"""The most centres in a tile; one row of centres may have more."""
STRIP = 64
"""The most centres in a strip; one row of centres may have more."""
COLUMNS = 256, 512
"""The most pairs that the layers take at a time: between these, depending on the rows; one row of centres may have
more."""
ELEMENTS = 1 << 15
"""The elements of all rows of these pairs."""
LOGITS = 1 << 18
"""The most logits in a tile; a tile of one row may have more."""


class Inputs(NamedTuple):
    """The arrays that the attention reads, and the facts of its layers."""

    offset: np.ndarray
    factor: np.ndarray
    """Empty if all factors are 1."""
    map: np.ndarray
    beta: np.ndarray
    """Empty for the statistics."""
    parameters: np.ndarray
    widths: np.ndarray
    floor: float
    """The least value of a row: 0 if ρ is a ReLU, else −∞."""
    lowest: float
    """The lowest number of the dtype."""


class Upstream(NamedTuple):
    """The gradient of y, and the outputs y and lse = log Σ_j exp(u_j) that the forward saved."""

    gradient: np.ndarray
    y: np.ndarray
    lse: np.ndarray


class MomentsUpstream(NamedTuple):
    """The gradients of the mean and variance, and the mean."""

    mean_gradient: np.ndarray
    variance_gradient: np.ndarray
    mean: np.ndarray


class Gradients(NamedTuple):
    """The arrays that the gradients are written to; empty where a gradient is not needed."""

    offset: np.ndarray
    factor: np.ndarray
    map_frames: np.ndarray
    beta_frames: np.ndarray
    parameters: np.ndarray
    """The sum of each thread."""


class Tiles(NamedTuple):
    """The lookups of a Frame, and the memory for a tile, (threads, elements) each."""

    rows: np.ndarray
    columns: np.ndarray
    begin: int
    end: int
    taps: np.ndarray
    order: np.ndarray
    height: int
    width: int
    lines: int
    """Rows of centres in a strip."""
    at_once: int
    """Taps at a time."""
    step: int
    """The distance between rows of z."""
    planes: np.ndarray
    """Frames of the map or of β."""
    offset: np.ndarray
    """The offsets of the tile's centres."""
    factor: np.ndarray
    """The factors of the tile's centres; empty if the attention has no factor."""
    z: np.ndarray
    """The rows of the pairs, and behind them the rows of every layer."""
    ones: np.ndarray
    """A map of ones if the softmax skips taps outside the map, else empty."""


class TileGradients(NamedTuple):
    """The gradients of the arrays with the same names in `Tiles`."""

    z: np.ndarray
    offset: np.ndarray
    factor: np.ndarray


class Softmax(NamedTuple):
    """Memory of each thread for the softmax: the logits of all groups, and values per centre."""

    logits: np.ndarray
    sums: np.ndarray
    peaks: np.ndarray


class SoftmaxGradient(NamedTuple):
    """Memory of each thread for the gradient of the softmax: α of all groups, and values per group and centre."""

    alpha: np.ndarray
    """The gradient of α, until α replaces it."""
    lse: np.ndarray
    means: np.ndarray
    """Σ_j α_j · the gradient of α_j."""


@part
def _prepare(thread, image, tile, inputs, tiles):
    """Fill the frames of the map, and behind them the frame of ones; copy the offsets and factors of the centres."""
    offset, factor, map_ = inputs.offset, inputs.factor, inputs.map
    rows, columns, begin, end, _, _, height, width = tiles[:8]
    (e, p), (h, w) = offset.shape[1:], map_.shape[2:]
    size, planes, most = rows.shape[1] * columns.shape[0], tiles.planes[thread], height * width
    count = min(most, p - tile * most)
    for row in range(e):
        plane, start = image * e + row, (image * e + row) * p + tile * most
        fill(planes, row * size, map_.reshape(-1), plane * h * w, w, rows[tile], columns, begin, end)
        copy(tiles.offset[thread], row * most, offset, start, count)
        if factor.shape[0] > 0:
            copy(tiles.factor[thread], row * most, factor, start, count)
    if tiles.ones.shape[0] > 0:
        fill(planes, e * size, tiles.ones, 0, w, rows[tile], columns, begin, end)


@part
def _strip(first, height, tiles):
    """The first row of a strip, its rows, and its centres, for a tile of `height` rows of centres."""
    lines = min(tiles.lines, height - first)
    return first, lines, lines * tiles.width


@part
def _place(row, height, tiles):
    """Where the logits of a row of centres begin, and the distance from a tap to the next."""
    first, _, count = _strip(row - row % tiles.lines, height, tiles)
    return first * tiles.width * tiles.taps.shape[0] + (row - first) * tiles.width, count


@part
def _relate(thread, tiles, e, taps, strip, floor):
    """z = max(offset + factor · map at the taps, floor), tap after tap; the rest of the last vector is 0.

    Vectors may run over the end of a row of centres or of z: the elements there are written later.
    """
    z, offset, factor, planes = tiles.z[thread], tiles.offset[thread], tiles.factor[thread], tiles.planes[thread]
    first, lines, count = strip
    width, across = tiles.width, tiles.columns.shape[0]
    most, size = tiles.height * width, tiles.rows.shape[1] * across
    least = broadcast(z, floor)
    for row in range(e):
        for j in range(taps.shape[0]):
            for y in range(lines):
                at, i = row * tiles.step + j * count + y * width, row * most + (first + y) * width
                tap = row * size + taps[j] + (first + y) * across
                for x in range(0, width, lanes(z)):
                    if factor.shape[0] > 0:
                        value = fma(load(factor, i + x), load(planes, tap + x), load(offset, i + x))
                    else:
                        value = add(load(planes, tap + x), load(offset, i + x))
                    store(z, at + x, maximum(least, value))
    for row in range(e):
        _pad(z, row * tiles.step, taps.shape[0] * count)


@part
def _pad(array, at, count):
    """Set the rest of the last vector to 0, behind `count` elements."""
    clear(array, at + count, -count % lanes(array))


@part
def _drop(thread, tiles, e, taps, strip, values, at, step, rows, out):
    """Replace the values of taps outside the map by `out`, in some rows of pairs."""
    planes, width, by = tiles.planes[thread], tiles.width, broadcast(values, out)
    across, (first, lines, count) = tiles.columns.shape[0], strip
    for j in range(taps.shape[0]):
        tap = (e * tiles.rows.shape[1] + first) * across + taps[j]
        for y in range(lines):
            for x in range(0, width, lanes(values)):
                inside = load(planes, tap + y * across + x)
                if width - x < lanes(values) or total(inside) < lanes(values):
                    for row in range(rows):
                        here = at + row * step + j * count + y * width + x
                        drop_outside(values, here, inside, by, width - x)


@part
def _softmax(logits, at, height, tiles, sums, peaks, lowest):
    """The softmax of `height` rows of centres without its division; the sums of the weights and the largest logits go
    to `sums` and `peaks`."""
    k = tiles.taps.shape[0]
    for first in range(0, height, tiles.lines):
        _, _, count = _strip(first, height, tiles)
        begin = first * tiles.width
        for x in range(0, count, lanes(logits)):
            weights, peak = softmax(logits, at + begin * k + x, k, count, count - x, lowest)
            store(sums, begin + x, weights)
            store(peaks, begin + x, peak)


@part
def _average(weights, at, sums, planes, tiles, channels, height, y, to, step):
    """y = Σ_j weight · β at tap j / the sum of the weights, for `channels` frames; BLOCK at most."""
    across, width, one = tiles.columns.shape[0], tiles.width, broadcast(weights, 1)
    size = tiles.rows.shape[1] * across
    for row in range(height):
        begin, apart = _place(row, height, tiles)
        for x in range(0, width, lanes(weights)):
            i, u = row * width + x, row * across + x
            scale = div(one, load(sums, i))
            average(
                weights, at + begin + x, apart, scale, planes, u, size, tiles.taps, channels, y, to + i, step,
                height * width - i,
            )  # fmt: skip


@compiled
def _attention(numbers, inputs, y, lse, tiles, scratch):
    offset, _, _, beta, parameters, widths, floor, lowest = inputs
    n, e, p = offset.shape
    v, h, w = beta.shape[1:]
    rows, columns, begin, end, taps, _, height, width = tiles[:8]
    logits, sums, peaks = scratch
    g, k, most, across = widths[-1], taps.shape[0], height * width, columns.shape[0]
    threads, size, step = logits.shape[0], rows.shape[1] * across, logits.shape[1] // g
    for thread in numbers:
        planes, flat, lse_flat = tiles.planes[thread], beta.reshape(-1), lse.reshape(-1)
        mine = portion(n * rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            image, tile = item // rows.shape[0], item % rows.shape[0]
            count = min(most, p - tile * most)
            _prepare(thread, image, tile, inputs, tiles)
            for row in range(0, count // width, tiles.lines):
                strip = _strip(row, count // width, tiles)
                for first in range(0, k, tiles.at_once):
                    now = taps[first : first + tiles.at_once]
                    pairs, at = now.shape[0] * strip[2], row * width * k + first * strip[2]
                    _relate(thread, tiles, e, now, strip, floor)
                    layers(parameters, 0, widths, tiles.z[thread], tiles.step, logits[thread], at, step, pairs)
                    if tiles.ones.shape[0] > 0:
                        _drop(thread, tiles, e, now, strip, logits[thread], at, step, g, -np.inf)
            for group in range(g):
                _softmax(logits[thread], group * step, count // width, tiles, sums[thread], peaks[thread], lowest)
                if lse.shape[0] > 0:
                    for i in range(count):
                        to = (image * g + group) * p + tile * most + i
                        lse_flat[to] = log_sum(peaks[thread, i], sums[thread, i])
                for c in range(group, v, g * BLOCK):
                    channels = min(BLOCK, (v - c + g - 1) // g)
                    for s in range(channels):
                        plane = image * v + c + s * g
                        fill(planes, s * size, flat, plane * h * w, w, rows[tile], columns, begin, end)
                    _average(
                        logits[thread], group * step, sums[thread], planes, tiles, channels, count // width,
                        y, (image * v + c) * p + tile * most, g * p,
                    )  # fmt: skip


@part
def _alpha_gradient(upstream, at, step, planes, tiles, share, height, alpha, to, means, at_means):
    """The gradient of α_j, Σ gradient · β at tap j over the channels of a group, and its mean with the weights α, which
    is Σ gradient · y."""
    gradient, y, across, width = upstream.gradient, upstream.y, tiles.columns.shape[0], tiles.width
    vector, count, size = lanes(gradient), height * width, tiles.rows.shape[1] * across
    for row in range(height):
        begin, apart = _place(row, height, tiles)
        for x in range(0, width, vector):
            i, room = row * width + x, apart - row % tiles.lines * width - x
            correlate_block(
                gradient, at + i, step, count - i, planes, row * across + x, size, tiles.taps, share,
                alpha, to + begin + x, apart, room,
            )  # fmt: skip
    for x in range(0, count, vector):
        mean = zeros(gradient)
        for c in range(share):
            o = at + c * step + x
            mean = fma(read(gradient, o, count - x), read(y, o, count - x), mean)
        store(means, at_means + x, mean)


@part
def _logit_gradient(u, gradient, at, taps, count, lse, means, own, alphas, at_alphas):
    """The gradient of the logits u of some taps, and α in place of its gradient."""
    for j in range(taps):
        for x in range(0, count, lanes(u)):
            o = j * count + x
            old = load(alphas, at_alphas + o)
            alpha, flow = softmax_gradient(load(u, at + o), load(lse, own + x), old, load(means, own + x))
            store(gradient, at + o, flow)
            rewrite(alphas, at_alphas + o, alpha, old, count - x)
    _pad(gradient, at, taps * count)


@part
def _relate_gradient(thread, tiles, e, taps, strip, floor, own, frames):
    """Add to the gradients of the offsets, factors and the map, from the gradient of z in `own`."""
    z, factor, planes = tiles.z[thread], tiles.factor[thread], tiles.planes[thread]
    gradient, offset_gradient, factor_gradient = own.z[thread], own.offset[thread], own.factor[thread]
    (first, lines, count), width, across = strip, tiles.width, tiles.columns.shape[0]
    most, size = tiles.height * width, tiles.rows.shape[1] * across
    for row in range(e):
        for y in range(lines):
            for x in range(0, width, lanes(gradient)):
                i, u = row * most + (first + y) * width + x, row * size + (first + y) * across + x
                pair, room = row * tiles.step + y * width + x, width - x
                plain = weighted = zeros(gradient)
                for j in range(taps.shape[0]):
                    o, here = u + taps[j], load(gradient, pair + j * count)
                    if floor == 0:
                        here = where_positive(load(z, pair + j * count), here, zeros(gradient))
                    plain = add(plain, here)
                    if factor.shape[0] > 0:
                        weighted, here = fma(here, load(planes, o), weighted), mul(here, load(factor, i))
                    store(frames, o, add(keep_room(here, room, gradient), load(frames, o)))
                store(offset_gradient, i, add(keep_room(plain, room, gradient), load(offset_gradient, i)))
                if factor.shape[0] > 0:
                    store(factor_gradient, i, add(keep_room(weighted, room, gradient), load(factor_gradient, i)))


@part
def _chunk_gradient(thread, tiles, e, taps, strip, inputs, transposed, own, frames, parameters_gradient):
    """Add to all gradients, from the gradient of the last layer's outputs for a chunk of pairs, in `own`."""
    z, gradient, pairs = tiles.z[thread], own.z[thread], taps.shape[0] * strip[2]
    layers_gradient(transposed, inputs.widths, z, gradient, tiles.step, pairs, parameters_gradient[thread], 0)
    _relate_gradient(thread, tiles, e, taps, strip, inputs.floor, own, frames)


@part
def _distribute(alpha, at, gradient, start, apart, to, at_to, step, channels, height, tiles):
    """Add α_j · gradient to frames, `step` apart, at tap j, for `channels` frames; BLOCK at most."""
    width, across, taps, order = tiles.width, tiles.columns.shape[0], tiles.taps, tiles.order
    for row in range(height):
        begin, count = _place(row, height, tiles)
        for x in range(0, width, lanes(gradient)):
            a, b, o = at + begin + x, start + row * width + x, at_to + row * across + x
            if channels == BLOCK:
                distribute_block(alpha, a, count, gradient, b, apart, width - x, to, o, step, taps, order)
            else:
                for c in range(channels):
                    distribute_channel(
                        alpha, a, count, gradient, b + c * apart, width - x, to, o + c * step, taps, order
                    )  # fmt: skip


@part
def _clear_gradients(thread, own, frames):
    """Set the gradients of a tile to 0."""
    for array in (own.offset[thread], own.factor[thread], frames):
        clear(array, 0, array.shape[0])


@part
def _deliver(own, most, count, to, at, apart):
    """Write the gradients of the tile's offsets or factors to `to`, unless it is empty."""
    flat = to.reshape(-1)
    for row in range(to.shape[1]):
        for i in range(count):
            flat[at + row * apart + i] = own[row * most + i]


@compiled
def _attention_backward(numbers, upstream, inputs, transposed, gradients, tiles, own, scratch):
    gradient, _, lse = upstream
    offset, _, _, beta, parameters, widths, floor, _ = inputs
    offset_gradient, factor_gradient, map_frames, beta_frames, parameters_gradient = gradients
    n, e, p = offset.shape
    v, h, w = beta.shape[1:]
    rows, columns, begin, end, taps, _, height, width = tiles[:8]
    alphas, normals, means = scratch
    g, k, most, across = widths[-1], taps.shape[0], height * width, columns.shape[0]
    threads, size, step = alphas.shape[0], rows.shape[1] * across, alphas.shape[1] // g
    last = (widths.sum() - g) * tiles.step
    for thread in numbers:
        planes, flat, alpha = tiles.planes[thread], beta.reshape(-1), alphas[thread]
        z, z_gradient = tiles.z[thread], own.z[thread]
        mine = portion(n * rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            image, tile = item // rows.shape[0], item % rows.shape[0]
            count, centre = min(most, p - tile * most), tile * most
            high = count // width
            for group in range(g):
                channel = image * v + group
                for s in range(v // g):
                    start = (channel + s * g) * h * w
                    fill(planes, s * size, flat, start, w, rows[tile], columns, begin, end)
                _alpha_gradient(
                    upstream, channel * p + centre, g * p, planes, tiles, v // g, high,
                    alpha, group * step, means[thread], group * most,
                )  # fmt: skip
                copy(normals[thread], group * most, lse, (image * g + group) * p + centre, count)
            _prepare(thread, image, tile, inputs, tiles)
            _clear_gradients(thread, own, map_frames[item])
            for row in range(0, high, tiles.lines):
                strip = _strip(row, high, tiles)
                for first in range(0, k, tiles.at_once):
                    now = taps[first : first + tiles.at_once]
                    _relate(thread, tiles, e, now, strip, floor)
                    layers(parameters, 0, widths, z, tiles.step, z, last, tiles.step, now.shape[0] * strip[2])
                    for group in range(g):
                        at = group * step + row * width * k + first * strip[2]
                        _logit_gradient(
                            z, z_gradient, last + group * tiles.step, now.shape[0], strip[2], normals[thread],
                            means[thread], group * most + row * width, alpha, at,
                        )  # fmt: skip
                    if tiles.ones.shape[0] > 0:
                        _drop(thread, tiles, e, now, strip, z, 0, tiles.step, widths.sum() - g, 0.0)
                        _drop(thread, tiles, e, now, strip, z_gradient, last, tiles.step, g, 0.0)
                    _chunk_gradient(
                        thread, tiles, e, now, strip, inputs, transposed, own, map_frames[item], parameters_gradient
                    )
            _deliver(own.offset[thread], most, count, offset_gradient, image * e * p + centre, p)
            _deliver(own.factor[thread], most, count, factor_gradient, image * e * p + centre, p)
            clear(beta_frames[item], 0, beta_frames.shape[1])
            for group in range(g):
                for c in range(group, v, g * BLOCK):
                    _distribute(
                        alpha, group * step, gradient, (image * v + c) * p + centre, g * p,
                        beta_frames[item], c * size, g * size, min(BLOCK, (v - c + g - 1) // g), high, tiles,
                    )  # fmt: skip


@compiled
def _statistics(numbers, inputs, moments, tiles):
    offset, _, _, _, parameters, widths, floor, _ = inputs
    n, e, p = offset.shape
    rows, taps, height, width = tiles.rows, tiles.taps, tiles.height, tiles.width
    most, threads, last = height * width, moments.shape[0], (widths.sum() - widths[-1]) * tiles.step
    for thread in numbers:
        z = tiles.z[thread]
        mine = portion(n * rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            tile = item % rows.shape[0]
            count = min(most, p - tile * most)
            _prepare(thread, item // rows.shape[0], tile, inputs, tiles)
            for row in range(0, count // width, tiles.lines):
                strip = _strip(row, count // width, tiles)
                for first in range(0, taps.shape[0], tiles.at_once):
                    now = taps[first : first + tiles.at_once]
                    pairs = now.shape[0] * strip[2]
                    _relate(thread, tiles, e, now, strip, floor)
                    layers(parameters, 0, widths, z, tiles.step, z, last, tiles.step, pairs)
                    gather_moments(z, last, tiles.step, widths[-1], pairs, moments[thread])


@compiled
def _statistics_backward(numbers, upstream, inputs, transposed, gradients, tiles, own):
    mean_gradient, variance_gradient, mean = upstream
    offset, _, _, _, parameters, widths, floor, _ = inputs
    offset_gradient, factor_gradient, map_frames, _, parameters_gradient = gradients
    n, e, p = offset.shape
    rows, taps, height, width = tiles.rows, tiles.taps, tiles.height, tiles.width
    most, threads, last = height * width, parameters_gradient.shape[0], (widths.sum() - widths[-1]) * tiles.step
    every = n * p * taps.shape[0]
    for thread in numbers:
        z, z_gradient = tiles.z[thread], own.z[thread]
        mine = portion(n * rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            image, tile = item // rows.shape[0], item % rows.shape[0]
            count = min(most, p - tile * most)
            _prepare(thread, image, tile, inputs, tiles)
            _clear_gradients(thread, own, map_frames[item])
            for row in range(0, count // width, tiles.lines):
                strip = _strip(row, count // width, tiles)
                for first in range(0, taps.shape[0], tiles.at_once):
                    now = taps[first : first + tiles.at_once]
                    pairs = now.shape[0] * strip[2]
                    _relate(thread, tiles, e, now, strip, floor)
                    layers(parameters, 0, widths, z, tiles.step, z, last, tiles.step, pairs)
                    moments_gradient(
                        z, last, tiles.step, widths[-1], pairs, z_gradient, last, tiles.step,
                        mean, mean_gradient, variance_gradient, every,
                    )  # fmt: skip
                    _chunk_gradient(
                        thread, tiles, e, now, strip, inputs, transposed, own, map_frames[item], parameters_gradient
                    )
            _deliver(own.offset[thread], most, count, offset_gradient, image * e * p + tile * most, p)
            _deliver(own.factor[thread], most, count, factor_gradient, image * e * p + tile * most, p)


# The entry points: arrays, then the widths of the layers, whether ρ is a ReLU, and the work (facts, lookups, memory). A
# gradient that is not needed is None.


def pairwise_attention(offset, factor, map_, beta, parameters, y, lse, widths, rectified, work):
    inputs = _inputs(offset, factor, map_, beta, parameters, widths, rectified, work)
    tiles = _tiles(inputs, BLOCK, widths, work)
    most = tiles.height * tiles.width
    memory = Softmax(*work.per_thread(_logits(tiles, widths), most + SLACK, most + SLACK))
    _attention(work.threads, inputs, y, or_empty(lse, 3, work), tiles, memory)
    clear_unreached(y, lse, work)


def pairwise_attention_backward(
    gradient, y, lse, offset, factor, map_, beta, parameters,
    offset_gradient, factor_gradient, map_gradient, beta_gradient, parameters_gradient, widths, rectified, work,
):  # fmt: skip
    inputs = _inputs(offset, factor, map_, beta, parameters, widths, rectified, work)
    tiles = _by_columns(_tiles(inputs, beta.shape[1] // widths[-1], widths, work))
    gradients = _gradients(offset_gradient, factor_gradient, inputs, tiles, work)
    per_group = widths[-1] * tiles.height * tiles.width + SLACK
    _attention_backward(work.threads,
        Upstream(gradient, y, lse), inputs, transpose(parameters, widths, work.empty), gradients, tiles,
        _tile_gradients(tiles, work), SoftmaxGradient(*work.per_thread(_logits(tiles, widths), per_group, per_group)),
    )  # fmt: skip
    _finish(gradients, map_gradient, beta_gradient, parameters_gradient, tiles)


def pairwise_statistics(offset, factor, map_, parameters, mean, variance, widths, rectified, work):
    inputs = _inputs(offset, factor, map_, None, parameters, widths, rectified, work)
    moments = work.double(work.threads, 3, widths[-1])
    _statistics(work.threads, inputs, moments, _tiles(inputs, 0, widths, work))
    mean_and_variance(moments, mean, variance)


def pairwise_statistics_backward(
    mean_gradient, variance_gradient, mean, offset, factor, map_, parameters,
    offset_gradient, factor_gradient, map_gradient, parameters_gradient, widths, rectified, work,
):  # fmt: skip
    inputs = _inputs(offset, factor, map_, None, parameters, widths, rectified, work)
    tiles = _by_columns(_tiles(inputs, 0, widths, work))
    gradients = _gradients(offset_gradient, factor_gradient, inputs, tiles, work)
    _statistics_backward(work.threads,
        MomentsUpstream(mean_gradient, variance_gradient, mean), inputs, transpose(parameters, widths, work.empty),
        gradients, tiles, _tile_gradients(tiles, work),
    )  # fmt: skip
    _finish(gradients, map_gradient, None, parameters_gradient, tiles)


def _inputs(offset, factor, map_, beta, parameters, widths, rectified, work):
    """The statistics of the rows themselves, which have no layer, are those before ρ."""
    floor = 0.0 if rectified and len(widths) > 1 else -np.inf
    return Inputs(
        offset, or_empty(factor, 3, work), map_, or_empty(beta, 4, work), parameters, _array(tuple(widths)), floor,
        lowest_of(offset),
    )  # fmt: skip


_array = lru_cache(maxsize=256)(np.array)


def _gradients(offset_gradient, factor_gradient, inputs, tiles, work):
    """Arrays for the gradients; each thread's sum of the parameters' gradients begins with 0."""
    partial = work.empty(work.threads, inputs.parameters.size)
    partial[...] = 0
    return Gradients(
        or_empty(offset_gradient, 3, work), or_empty(factor_gradient, 3, work),
        frames_of_tiles(inputs.map, tiles, work), frames_of_tiles(inputs.beta, tiles, work), partial,
    )  # fmt: skip


def _finish(gradients, map_gradient, beta_gradient, parameters_gradient, tiles):
    """Add up the gradients of threads and tiles."""
    if parameters_gradient is not None:
        gradients.parameters.sum(0, out=parameters_gradient)
    for frames, to in (gradients.map_frames, map_gradient), (gradients.beta_frames, beta_gradient):
        if to is not None:
            fold_tiles(tiles.planes.shape[0], frames, to, tiles)


def _logits(tiles, widths):
    """The elements of memory for a value per group, tap and centre of a tile."""
    return widths[-1] * row_step(len(tiles.taps) * tiles.height * tiles.width + SLACK)


def _tile_gradients(tiles, work):
    return TileGradients(*work.per_thread(*(x.shape[1] for x in (tiles.z, tiles.offset, tiles.factor))))


def _tiles(inputs, channels, widths, work):
    """Tiles with room for the frames of the map, or for `channels` frames of β."""
    n, e, _ = inputs.offset.shape
    frame, lines, at_once, step = _tiling(n, tuple(widths), work.places)
    most, size = frame.height * frame.width, frame.rows.shape[1] * len(frame.columns)
    ones = work.nothing(1)
    if work.excludes:
        ones = work.empty(inputs.map[0, 0].size)
        ones[...] = 1
    planes, centres = max(e + work.excludes, channels), e * most + SLACK
    memory = work.per_thread(
        planes * size + SLACK, centres, centres if inputs.factor.size else 0, sum(widths) * step + SLACK
    )  # fmt: skip
    return Tiles(*frame, lines, at_once, step, *memory, ones)


@lru_cache(maxsize=256)
def _tiling(n, widths, places):
    """The lookups of a call's tiles, the rows of a strip, the taps at a time, and the distance between rows of z."""
    k = len(places.lookups(1).taps)
    frame = places.lookups(_height(n, widths[-1] * k, places))
    lines = max(1, min(frame.height, STRIP // frame.width))
    columns = min(max(ELEMENTS // sum(widths), COLUMNS[0]), COLUMNS[1])
    at_once = -(-k // -(-k // max(1, columns // (lines * frame.width))))
    return frame, lines, at_once, row_step(at_once * lines * frame.width)


def _by_columns(tiles):
    """Tiles with the taps column by column.

    Vectors at neighbouring taps of a row overlap, and a load from one waits until the store to the other is in the
    cache.
    """
    return tiles._replace(taps=tiles.taps[tiles.order], order=np.arange(len(tiles.order)))


def _height(n, logits, places):
    """The height of a tile that gives the busiest thread the least work; a tile counts half a row more, for the borders
    that it shares."""
    most = max(1, min(places.height, CENTRES // places.width, LOGITS // (logits * places.width)))

    def load_of(height):
        return -(-n * -(-places.height // height) // places.threads) * (2 * height + 1)

    return min(range(most, 0, -1), key=load_of)
