"""CPU kernels of the fused pairwise attentions, forward and backward, for float32 and float64.

    z_ij = ρ(factor_i ⊙ map_j + offset_i)      u_ij = W_L·ReLU(… W_1·z_ij + b_1 …) + b_L
    α_i = softmax of u_i over the taps j       y_i[c] = Σ_j α_ij[c mod g] · β_j[c]

Arrays, all contiguous: `offset` and `factor` are (n, e, p), `map` is (n, e, h, w), β (n, v, h, w); mapping.py says what
parameters and widths are, cpu.py what a frame is.

    tiles      A thread takes a few rows of an image's centres, reads the map and β from frames, and holds the logits of
               all taps. It computes some hundred pairs at a time, tap after tap.
    traffic    Every input is read once per tile, with the borders that tiles share, and every output written once. What
               there is of a pair never leaves the second-level cache.
    backward   A tile is computed again, and what flows to the map and β is added into frames of its own; then the
               frames are folded into the maps: the same order whatever the threads, and nothing to lock.

What mattered, in SAN10's second stage (56 × 56, 7 × 7 taps, one image), in CPU time of one thread: masks only where a
row ends, not at every vector, 5.0 to 4.0 ms for the attention, of which the layers take 1.8, near the rate of a sgemm,
and 17 to 14 ms for the gradients of the statistics; the mask of ρ where these gradients are added up, not in a pass of
its own, 14 to 11 ms.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from kernels_numba.compiled import compiled, part
from kernels_numba.cpu.mapping import gather, layers, layers_backward, moments_of, spread, transpose
from kernels_numba.cpu.relations import (
    BLOCK,
    SLACK,
    _apart,
    _clear,
    _dots,
    _fill,
    _fold,
    _read,
    _share,
    _spread,
    _spread_one,
    _sum,
    _sums,
    _write,
)
from kernels_numba.cpu.simd import (
    add,
    broadcast,
    choose_first,
    div,
    exp,
    fma,
    keep_first,
    lanes,
    load,
    maximum,
    mul,
    store,
    sub,
    where_positive,
    zeros,
)

COLUMNS = 256
"""Pairs that the layers take at a time, at most, unless a row of centres is longer."""
LOGITS = 1 << 18
"""Logits of a tile, at most, unless it is of one row."""


class Tiles(NamedTuple):
    """A frame, of which cpu.py says what it is, and the memory for a tile, (threads, elements) each."""

    rows: np.ndarray
    columns: np.ndarray
    begin: int
    end: int
    taps: np.ndarray
    order: np.ndarray
    height: int
    width: int
    at_once: int
    """Taps at a time."""
    step: int
    """From a row of z to the next."""
    planes: np.ndarray
    """Frames of the map or of β."""
    offset: np.ndarray
    factor: np.ndarray
    """Of the tile's centres; one row of ones for all if there is none."""
    z: np.ndarray
    """The rows of the pairs, and behind them those of every layer."""
    ones: np.ndarray
    """A map of ones if taps outside are dropped, else nothing."""


class Gradients(NamedTuple):
    """Those of what is called so in `Tiles`."""

    z: np.ndarray
    offset: np.ndarray
    factor: np.ndarray


@part
def _prepare(thread, image, tile, offset, factor, map_, tiles):
    """Fill the frames of the map, and behind them that of the ones, and copy what belongs to the tile's centres."""
    rows, columns, begin, end, _, _, height, width = tiles[:8]
    (e, p), (h, w) = offset.shape[1:], map_.shape[2:]
    size, planes, most = rows.shape[1] * columns.shape[0], tiles.planes[thread], height * width
    count = min(most, p - tile * most)
    for row in range(e):
        plane, start = image * e + row, (image * e + row) * p + tile * most
        _fill(planes, row * size, map_.reshape(-1), plane * h * w, w, rows[tile], columns, begin, end)
        _copy(tiles.offset[thread], row * most, offset, start, count)
        if factor.shape[0] > 0:
            _copy(tiles.factor[thread], row * most, factor, start, count)
    if factor.shape[0] == 0:
        tiles.factor[thread][:] = 1
    if tiles.ones.shape[0] > 0:
        _fill(planes, e * size, tiles.ones, 0, w, rows[tile], columns, begin, end)


@part
def _copy(to, at, source, start, count):
    source = source.reshape(-1)
    for i in range(count):
        to[at + i] = source[start + i]


@part
def _relate(thread, tiles, e, step, taps, height, floor):
    """z = max(offset + factor · map at the taps, floor), tap after tap; 0 in what is left of the last vector.

    Vectors run over the end of a row of centres, and of z, to where the next one comes later. `step` is from a row of
    `factor` to the next.
    """
    z, offset, factor, planes = tiles.z[thread], tiles.offset[thread], tiles.factor[thread], tiles.planes[thread]
    rows, columns, width = tiles.rows, tiles.columns, tiles.width
    across, most, count = columns.shape[0], tiles.height * width, height * width
    least = broadcast(z, floor)
    for row in range(e):
        at = row * tiles.step
        for j in range(taps.shape[0]):
            tap = row * rows.shape[1] * across + taps[j]
            for y in range(height):
                for x in range(0, width, lanes(z)):
                    i = y * width + x
                    scale, term = load(factor, row * step + i), load(offset, row * most + i)
                    value = fma(scale, load(planes, tap + y * across + x), term)
                    store(z, at + j * count + i, maximum(least, value))
    for row in range(e):
        _pad(z, row * tiles.step, taps.shape[0] * count)


@part
def _pad(array, at, count):
    """Set to 0 what is left of the last vector behind `count` elements."""
    _clear(array, at + count, -count % lanes(array))


@part
def _first(vector, room, like):
    """The first `room` lanes; 0 in the others."""
    return vector if room >= lanes(like) else keep_first(vector, room)


@part
def _rewrite(array, at, vector, old, room):
    """Write the first `room` lanes, and in the others what was there."""
    store(array, at, vector if room >= lanes(array) else choose_first(vector, old, room))


@part
def _drop(thread, tiles, e, taps, height, logits, at, step, g, lowest):
    """The lowest of all numbers in place of the logits of taps outside of the map."""
    planes, out, width = tiles.planes[thread], broadcast(logits, lowest), tiles.width
    across = tiles.columns.shape[0]
    for j in range(taps.shape[0]):
        tap = e * tiles.rows.shape[1] * across + taps[j]
        for y in range(height):
            for x in range(0, width, lanes(logits)):
                inside = load(planes, tap + y * across + x)
                for group in range(g):
                    here = at + group * step + (j * height + y) * width + x
                    logit = load(logits, here)
                    _rewrite(logits, here, where_positive(inside, logit, out), logit, width - x)


@part
def _softmax(logits, at, k, count, sums, peaks):
    """exp(logit − peak) in place of the logits of `count` centres, their sums, and the peaks, the largest logits."""
    for x in range(0, count, lanes(logits)):
        peak, normal = load(logits, at + x), zeros(logits)
        for j in range(1, k):
            peak = maximum(peak, load(logits, at + j * count + x))
        for j in range(k):
            here = at + j * count + x
            logit = load(logits, here)
            weight = exp(sub(logit, peak))
            normal = add(normal, weight)
            _rewrite(logits, here, weight, logit, count - x)
        store(sums, x, normal)
        store(peaks, x, peak)


@part
def _average(weights, at, sums, planes, size, across, taps, channels, height, width, y, to, step):
    """y = Σ_j weight · β at j / the sum of weights, for as many channels as there are planes, 8 at most."""
    room, count, one = lanes(weights), height * width, broadcast(weights, 1)
    for row in range(height):
        for x in range(0, width, room):
            i, u = row * width + x, row * across + x
            scale, o, left = div(one, load(sums, i)), to + i, count - i
            if channels == BLOCK:
                y0, y1, y2, y3, y4, y5, y6, y7 = _sums(weights, at + i, count, room, planes, u, size, taps)
                _write(y, o, mul(y0, scale), left)
                _write(y, o + step, mul(y1, scale), left)
                _write(y, o + 2 * step, mul(y2, scale), left)
                _write(y, o + 3 * step, mul(y3, scale), left)
                o += 4 * step
                _write(y, o, mul(y4, scale), left)
                _write(y, o + step, mul(y5, scale), left)
                _write(y, o + 2 * step, mul(y6, scale), left)
                _write(y, o + 3 * step, mul(y7, scale), left)
            else:
                for c in range(channels):
                    value = _sum(weights, at + i, count, room, planes, u + c * size, taps)
                    _write(y, o + c * step, mul(value, scale), left)


@compiled
def _attention(offset, factor, map_, beta, parameters, y, lse, widths, floor, lowest, tiles, logits, sums, peaks):
    n, e, p = offset.shape
    v, h, w = beta.shape[1:]
    rows, columns, begin, end, taps, _, height, width = tiles[:8]
    g, k, most, across = widths[-1], taps.shape[0], height * width, columns.shape[0]
    threads, size, step = logits.shape[0], rows.shape[1] * across, logits.shape[1] // g
    for thread in prange(threads):
        planes, flat = tiles.planes[thread], beta.reshape(-1)
        mine = _share(n * rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            image, tile = item // rows.shape[0], item % rows.shape[0]
            count = min(most, p - tile * most)
            _prepare(thread, image, tile, offset, factor, map_, tiles)
            for first in range(0, k, tiles.at_once):
                now = taps[first : first + tiles.at_once]
                pairs, at = now.shape[0] * count, first * count
                _relate(thread, tiles, e, most * factor.shape[0] // n, now, count // width, floor)
                layers(parameters, 0, widths, tiles.z[thread], tiles.step, logits[thread], at, step, pairs)
                if tiles.ones.shape[0] > 0:
                    _drop(thread, tiles, e, now, count // width, logits[thread], at, step, g, lowest)
            for group in range(g):
                _softmax(logits[thread], group * step, k, count, sums[thread], peaks[thread])
                if lse.shape[0] > 0:
                    for i in range(count):
                        peak = peaks[thread, i]
                        to = (image * g + group) * p + tile * most + i
                        lse.reshape(-1)[to] = 0 if peak == lowest else peak + np.log(sums[thread, i])
                for c in range(group, v, g * BLOCK):
                    channels = min(BLOCK, (v - c + g - 1) // g)
                    for s in range(channels):
                        plane = image * v + c + s * g
                        _fill(planes, s * size, flat, plane * h * w, w, rows[tile], columns, begin, end)
                    _average(
                        logits[thread], group * step, sums[thread], planes, size, across, taps, channels,
                        count // width, width, y, (image * v + c) * p + tile * most, g * p,
                    )  # fmt: skip


@part
def _weigh(gradient, at, step, y, planes, size, across, taps, share, height, width, d_alpha, to, means, at_means):
    """d_alpha_j = Σ gradient · β at j over the channels of a group, which have a plane each, and its mean over the
    taps, weighted with α, which is Σ gradient · y."""
    room, count = lanes(gradient), height * width
    for row in range(height):
        for x in range(0, width, room):
            i, u = row * width + x, row * across + x
            _dots(
                gradient, at + i, step, count - i, planes, u, size, taps, share, d_alpha, to + i, count, count - i
            )  # fmt: skip
    for x in range(0, count, room):
        mean = zeros(gradient)
        for c in range(share):
            o = at + c * step + x
            mean = fma(_read(gradient, o, count - x), _read(y, o, count - x), mean)
        store(means, at_means + x, mean)


@part
def _softmax_backward(u, at, d, at_d, taps, count, lse, means, own, alphas, at_alphas):
    """d = α · (d_alpha − mean) of the taps that u is of, and α = exp(u − lse) in place of d_alpha."""
    for j in range(taps):
        for x in range(0, count, lanes(u)):
            o = j * count + x
            gradient, alpha = load(alphas, at_alphas + o), exp(sub(load(u, at + o), load(lse, own + x)))
            store(d, at_d + o, mul(alpha, sub(gradient, load(means, own + x))))
            _rewrite(alphas, at_alphas + o, alpha, gradient, count - x)
    _pad(d, at_d, taps * count)


@part
def _relate_backward(thread, tiles, e, step, taps, height, floor, d, d_offset, d_factor, d_planes):
    """Add the gradients d of what `_relate` gave, and left, to those of what it was given."""
    z, factor, planes = tiles.z[thread], tiles.factor[thread], tiles.planes[thread]
    width, across = tiles.width, tiles.columns.shape[0]
    most, count, size = tiles.height * width, height * width, tiles.rows.shape[1] * across
    for row in range(e):
        for y in range(height):
            for x in range(0, width, lanes(d)):
                i, u = y * width + x, row * size + y * across + x
                scale, to, room = load(factor, row * step + i), row * most + i, width - x
                plain = weighted = zeros(d)
                for j in range(taps.shape[0]):
                    o, pair = u + taps[j], row * tiles.step + j * count + i
                    here = load(d, pair)
                    if floor == 0:
                        here = where_positive(load(z, pair), here, zeros(d))
                    plain, weighted = add(plain, here), fma(here, load(planes, o), weighted)
                    store(d_planes, o, add(_first(mul(here, scale), room, d), load(d_planes, o)))
                store(d_offset, to, add(_first(plain, room, d), load(d_offset, to)))
                store(d_factor, to, add(_first(weighted, room, d), load(d_factor, to)))


@part
def _chunk_backward(thread, tiles, e, step, taps, height, widths, floor, transposed, own, d_planes, d_parameters):
    """From the gradients of the last layer's outputs to those of all that a chunk of pairs was made of."""
    z, d, pairs = tiles.z[thread], own.z[thread], taps.shape[0] * height * tiles.width
    layers_backward(transposed, widths, z, d, tiles.step, pairs, d_parameters[thread], 0)
    _relate_backward(thread, tiles, e, step, taps, height, floor, d, own.offset[thread], own.factor[thread], d_planes)


@part
def _distribute(alpha, at, gradient, start, apart, to, at_to, step, channels, taps, order, height, width, across):
    """Add α_j · gradient to frames, `step` apart, at the taps j, for as many channels, 8 at most."""
    count = height * width
    for row in range(height):
        for x in range(0, width, lanes(gradient)):
            a, b, o = at + row * width + x, start + row * width + x, at_to + row * across + x
            if channels == BLOCK:
                _spread(alpha, a, count, gradient, b, apart, width - x, to, o, step, taps, order)
            else:
                for c in range(channels):
                    _spread_one(alpha, a, count, gradient, b + c * apart, width - x, to, o + c * step, taps, order)


@part
def _begin(thread, own, d_planes):
    """Set to 0 what the gradients of a tile are added to."""
    for array in (own.offset[thread], own.factor[thread], d_planes):
        _clear(array, 0, array.shape[0])


@part
def _deliver(own, most, count, to, at, apart):
    """Write the gradients of what belongs to the tile's centres, if anybody needs them."""
    for row in range(to.shape[1]):
        for i in range(count):
            to.reshape(-1)[at + row * apart + i] = own[row * most + i]


@compiled
def _fold_tiles(frames, map_, tiles):
    """map_ = the sum of the frames of all tiles, (image · tiles + tile, elements)."""
    n, c, h, w = map_.shape
    rows, columns, begin, end = tiles[:4]
    threads, size = tiles.planes.shape[0], rows.shape[1] * columns.shape[0]
    for thread in prange(threads):
        flat = map_.reshape(-1)
        mine = _share(n * c, thread, threads)
        for plane in range(mine[0], mine[1]):
            _clear(flat, plane * h * w, h * w)
            for tile in range(rows.shape[0]):
                frame = frames[plane // c * rows.shape[0] + tile]
                _fold(frame, plane % c * size, flat, plane * h * w, w, rows[tile], columns, begin, end)


@compiled
def _attention_backward(
    gradient, y, lse, offset, factor, map_, beta, parameters, transposed, d_offset, d_factor, d_planes, d_beta,
    d_parameters, widths, floor, lowest, tiles, own, alphas, normals, means,
):  # fmt: skip
    n, e, p = offset.shape
    v, h, w = beta.shape[1:]
    rows, columns, begin, end, taps, order, height, width = tiles[:8]
    g, k, most, across = widths[-1], taps.shape[0], height * width, columns.shape[0]
    threads, size, step = alphas.shape[0], rows.shape[1] * across, alphas.shape[1] // g
    step_factor, last = most * factor.shape[0] // n, (widths.sum() - g) * tiles.step
    for thread in prange(threads):
        planes, flat, alpha = tiles.planes[thread], beta.reshape(-1), alphas[thread]
        z, d = tiles.z[thread], own.z[thread]
        mine = _share(n * rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            image, tile = item // rows.shape[0], item % rows.shape[0]
            count, centre = min(most, p - tile * most), tile * most
            high = count // width
            for group in range(g):
                channel = image * v + group
                for s in range(v // g):
                    start = (channel + s * g) * h * w
                    _fill(planes, s * size, flat, start, w, rows[tile], columns, begin, end)
                _weigh(
                    gradient, channel * p + centre, g * p, y, planes, size, across, taps, v // g, high, width,
                    alpha, group * step, means[thread], group * most,
                )  # fmt: skip
                _copy(normals[thread], group * most, lse, (image * g + group) * p + centre, count)
            _prepare(thread, image, tile, offset, factor, map_, tiles)
            _begin(thread, own, d_planes[item])
            for first in range(0, k, tiles.at_once):
                now = taps[first : first + tiles.at_once]
                pairs = now.shape[0] * count
                _relate(thread, tiles, e, step_factor, now, high, floor)
                layers(parameters, 0, widths, z, tiles.step, z, last, tiles.step, pairs)
                if tiles.ones.shape[0] > 0:
                    _drop(thread, tiles, e, now, high, z, last, tiles.step, g, lowest)
                for group in range(g):
                    row = last + group * tiles.step
                    _softmax_backward(
                        z, row, d, row, now.shape[0], count, normals[thread], means[thread], group * most,
                        alpha, group * step + first * count,
                    )  # fmt: skip
                _chunk_backward(
                    thread, tiles, e, step_factor, now, high, widths, floor, transposed, own, d_planes[item],
                    d_parameters,
                )  # fmt: skip
            _deliver(own.offset[thread], most, count, d_offset, image * e * p + centre, p)
            _deliver(own.factor[thread], most, count, d_factor, image * e * p + centre, p)
            _clear(d_beta[item], 0, d_beta.shape[1])
            for group in range(g):
                for c in range(group, v, g * BLOCK):
                    _distribute(
                        alpha, group * step, gradient, (image * v + c) * p + centre, g * p, d_beta[item], c * size,
                        g * size, min(BLOCK, (v - c + g - 1) // g), taps, order, high, width, across,
                    )  # fmt: skip


@compiled
def _statistics(offset, factor, map_, parameters, moments, widths, floor, tiles):
    n, e, p = offset.shape
    rows, taps, height, width = tiles.rows, tiles.taps, tiles.height, tiles.width
    most, threads, last = height * width, moments.shape[0], (widths.sum() - widths[-1]) * tiles.step
    for thread in prange(threads):
        z = tiles.z[thread]
        mine = _share(n * rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            tile = item % rows.shape[0]
            count = min(most, p - tile * most)
            _prepare(thread, item // rows.shape[0], tile, offset, factor, map_, tiles)
            for first in range(0, taps.shape[0], tiles.at_once):
                now = taps[first : first + tiles.at_once]
                pairs = now.shape[0] * count
                _relate(thread, tiles, e, most * factor.shape[0] // n, now, count // width, floor)
                layers(parameters, 0, widths, z, tiles.step, z, last, tiles.step, pairs)
                gather(z, last, tiles.step, widths[-1], pairs, moments[thread])


@compiled
def _statistics_backward(
    d_mean, d_variance, mean, offset, factor, map_, parameters, transposed, d_offset, d_factor, d_planes,
    d_parameters, widths, floor, tiles, own,
):  # fmt: skip
    n, e, p = offset.shape
    rows, taps, height, width = tiles.rows, tiles.taps, tiles.height, tiles.width
    most, threads, last = height * width, d_parameters.shape[0], (widths.sum() - widths[-1]) * tiles.step
    step_factor, every = most * factor.shape[0] // n, n * p * taps.shape[0]
    for thread in prange(threads):
        z, d = tiles.z[thread], own.z[thread]
        mine = _share(n * rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            image, tile = item // rows.shape[0], item % rows.shape[0]
            count = min(most, p - tile * most)
            _prepare(thread, image, tile, offset, factor, map_, tiles)
            _begin(thread, own, d_planes[item])
            for first in range(0, taps.shape[0], tiles.at_once):
                now = taps[first : first + tiles.at_once]
                pairs = now.shape[0] * count
                _relate(thread, tiles, e, step_factor, now, count // width, floor)
                layers(parameters, 0, widths, z, tiles.step, z, last, tiles.step, pairs)
                spread(
                    z, last, tiles.step, widths[-1], pairs, d, last, tiles.step, mean, d_mean, d_variance, every
                )  # fmt: skip
                _chunk_backward(
                    thread, tiles, e, step_factor, now, count // width, widths, floor, transposed, own,
                    d_planes[item], d_parameters,
                )  # fmt: skip
            _deliver(own.offset[thread], most, count, d_offset, image * e * p + tile * most, p)
            _deliver(own.factor[thread], most, count, d_factor, image * e * p + tile * most, p)


# The cores: arrays, then the widths of the layers, whether ρ is a ReLU, and the work: threads, lookups, memory.


def pairwise_attention(offset, factor, map_, beta, parameters, y, lse, widths, rectified, work):
    tiles = _tiles(offset, factor, map_, BLOCK, widths, work)
    most = tiles.height * tiles.width
    sums, peaks = (work.empty(work.threads, most + SLACK) for _ in range(2))
    _attention(
        offset, _or_nothing(factor, work), map_, beta, parameters, y, _or_nothing(lse, work), np.array(widths),
        _floor(rectified, widths), _lowest(offset), tiles, _logits(tiles, widths, work), sums, peaks,
    )  # fmt: skip


def pairwise_attention_backward(
    gradient, y, lse, offset, factor, map_, beta, parameters, d_offset, d_factor, d_map, d_beta, d_parameters,
    widths, rectified, work,
):  # fmt: skip
    tiles = _by_columns(_tiles(offset, factor, map_, beta.shape[1] // widths[-1], widths, work))
    own = _gradients(tiles, work)
    map_planes, beta_planes = _planes(map_, tiles, work), _planes(beta, tiles, work)
    partial = _partial(parameters, work)
    most = tiles.height * tiles.width
    normals, means = (work.empty(work.threads, widths[-1] * most + SLACK) for _ in range(2))
    _attention_backward(
        gradient, y, lse, offset, _or_nothing(factor, work), map_, beta, parameters,
        transpose(parameters, widths, work.empty), _or_nothing(d_offset, work), _or_nothing(d_factor, work),
        map_planes, beta_planes, partial, np.array(widths), _floor(rectified, widths), _lowest(offset), tiles, own,
        _logits(tiles, widths, work), normals, means,
    )  # fmt: skip
    _finish(tiles, partial, d_parameters, (map_planes, d_map), (beta_planes, d_beta))


def pairwise_statistics(offset, factor, map_, parameters, mean, variance, widths, rectified, work):
    moments = work.double(work.threads, 3, widths[-1])
    _statistics(
        offset, _or_nothing(factor, work), map_, parameters, moments, np.array(widths), _floor(rectified, widths),
        _tiles(offset, factor, map_, 0, widths, work),
    )  # fmt: skip
    moments_of(moments, mean, variance)


def pairwise_statistics_backward(
    d_mean, d_variance, mean, offset, factor, map_, parameters, d_offset, d_factor, d_map, d_parameters,
    widths, rectified, work,
):  # fmt: skip
    tiles = _by_columns(_tiles(offset, factor, map_, 0, widths, work))
    planes, partial = _planes(map_, tiles, work), _partial(parameters, work)
    _statistics_backward(
        d_mean, d_variance, mean, offset, _or_nothing(factor, work), map_, parameters,
        transpose(parameters, widths, work.empty), _or_nothing(d_offset, work), _or_nothing(d_factor, work), planes,
        partial, np.array(widths), _floor(rectified, widths), tiles, _gradients(tiles, work),
    )  # fmt: skip
    _finish(tiles, partial, d_parameters, (planes, d_map))


def _finish(tiles, partial, d_parameters, *planes):
    if d_parameters is not None:
        partial.sum(0, out=d_parameters)
    for frames, map_ in planes:
        if map_ is not None:
            _fold_tiles(frames, map_, tiles)


def _or_nothing(array, work):
    return work.empty(0, 0, 0) if array is None else array


def _floor(rectified, widths):
    """What ρ raises rows to; the statistics of rows themselves are those before it."""
    return 0.0 if rectified and len(widths) > 1 else -np.inf


def _lowest(like):
    return float(np.finfo(like.dtype).min)


def _logits(tiles, widths, work):
    """Memory for one value per group, tap and centre of a tile."""
    count = len(tiles.taps) * tiles.height * tiles.width
    return work.empty(work.threads, widths[-1] * _apart(count + SLACK))


def _gradients(tiles, work):
    z, offset = tiles.z.shape[1], tiles.offset.shape[1]
    return Gradients(work.empty(work.threads, z), *(work.empty(work.threads, offset) for _ in range(2)))


def _planes(map_, tiles, work):
    """Frames of every tile of every image, for what flows to a map."""
    size = tiles.rows.shape[1] * len(tiles.columns)
    return work.empty(map_.shape[0] * len(tiles.rows), map_.shape[1] * size + SLACK)


def _partial(parameters, work):
    """Every thread's sum of the gradients of the parameters."""
    partial = work.empty(work.threads, parameters.size)
    partial[...] = 0
    return partial


def _tiles(offset, factor, map_, channels, widths, work):
    """Tiles with room for the frames of the map or of so many channels of β."""
    n, e, _ = offset.shape
    k = len(work.tiles(1).taps)
    frame = work.tiles(_height(n, widths[-1] * k, work))
    most = frame.height * frame.width
    at_once = -(-k // -(-k // max(1, COLUMNS // most)))
    step, size = _apart(at_once * most), frame.rows.shape[1] * len(frame.columns)
    ones = work.empty(map_[0, 0].size if work.excludes else 0)
    ones[...] = 1
    return Tiles(
        *frame[:-1],
        at_once,
        step,
        planes=work.empty(work.threads, max(e + work.excludes, channels) * size + SLACK),
        offset=work.empty(work.threads, e * most + SLACK),
        factor=work.empty(work.threads, (1 if factor is None else e) * most + SLACK),
        z=work.empty(work.threads, sum(widths) * step + SLACK),
        ones=ones,
    )


def _by_columns(tiles):
    """With the taps column by column: vectors at neighbours in a row overlap, and loading the one waits until what is
    added to the other is in the cache."""
    return tiles._replace(taps=tiles.taps[tiles.order], order=np.arange(len(tiles.order)))


def _height(n, logits, work):
    """Rows of centres in a tile, such that the thread with most of them has few; a tile counts half a row more, for the
    borders that it shares."""
    most = max(1, min(work.height, COLUMNS // work.width, LOGITS // (logits * work.width)))

    def load_of(height):
        return -(-n * -(-work.height // height) // work.threads) * (2 * height + 1)

    return min(range(most, 0, -1), key=load_of)
