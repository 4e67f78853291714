"""CPU kernels of the fused stand-alone attention, forward and backward, for float32 and float64.

    u_ij = Σ_d query_i · (key_j + relative_j)      α_i = softmax of u_i over the taps j      y_i[c] = Σ_j α_ij · β_j[c]

Arrays are contiguous: `query` is (n, e, p), `key` is (n, e, h, w), `relative` is (e, k), β is (n, v, h, w). Channel c
belongs to head c mod g; `widths` are the channels of a head and the number of heads. frames.py describes the frames.

    tiles      Heads are independent: a thread takes one head of a few rows of an image's centres, with frames of the
               head's channels of the keys and β. The tiles, and so the order of the sums in the gradients of maps, do
               not depend on the number of threads.
    chunks     A chunk is as many rows of a tile as keep a logit per tap and centre in the first-level cache. There each
               row is padded to whole vectors, so that only the loops that read and write arrays treat ends of rows.
    products   Query · relative is a matrix product, in blocks of 4 taps and 3 vectors. Query · key, and the average of
               β, hold 8 channels of a vector of centres in registers, go through all taps, and read a vector of a frame
               for each multiplication; the next 8 channels follow after all centres of the chunk.
    traffic    Every input is read once per tile, including the borders that tiles share, and every output is written
               once. The logits of a chunk never leave the first-level cache; in the backward, the second.
    backward   The logits of a chunk are computed again. The gradients of keys and β are added to the tile's own frames,
               which are then folded into the maps: the order of a sum does not depend on the number of threads, and no
               lock is needed. The gradient of `relative` is summed per thread.

What mattered, in CPU time of one thread of a busy machine, where a matrix product did 36 billion multiply-adds per
second. 512 channels on 14 × 14, 7 × 7 taps, 8 heads: the next 8 channels after all centres of a chunk instead of at
each vector, and tiles of all rows instead of a few, 12.6 to 4.5 ms for the gradients. 64 channels on 56 × 56: 2.8 ms
for the attention, of which exp takes 0.8 and the average 0.75. Not done: two rows of centres share most keys.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels_numba.compiled import compiled, or_empty, part
from kernels_numba.cpu.frames import (
    BLOCK,
    SLACK,
    aggregate_block,
    aggregate_channel,
    clear,
    correlate_block,
    distribute_block,
    distribute_channel,
    fill,
    fold_tiles,
    frames_of_tiles,
    portion,
    read,
    row_step,
    write,
)
from kernels_numba.cpu.mapping import outer_product, product
from kernels_numba.cpu.simd import (
    BYTES,
    add,
    broadcast,
    div,
    fma,
    keep_first,
    lanes,
    load,
    mul,
    store,
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

PAIRS = 1 << 12
"""The most logits in a chunk; a chunk of one row of centres may have more."""
FRAMES = 1 << 17
"""The most elements in all frames of a tile; a tile of one row of centres may have more."""
HEIGHT = 16
"""The most rows of centres in a tile, so that a single image has tiles for many threads."""


class Inputs(NamedTuple):
    """The arrays that the attention reads, and its facts."""

    query: np.ndarray
    key: np.ndarray
    """Empty if the attention has no keys."""
    relative: np.ndarray
    """(g, k, d); empty if the attention has no relative positions."""
    beta: np.ndarray
    heads: int
    lowest: float
    """The lowest number of the dtype."""


class Upstream(NamedTuple):
    """The gradient of y, and the outputs y and lse = log Σ_j exp(u_j) that the forward saved."""

    gradient: np.ndarray
    y: np.ndarray
    lse: np.ndarray


class Gradients(NamedTuple):
    """The arrays that the gradients are written to; empty where a gradient is not needed."""

    query: np.ndarray
    key_frames: np.ndarray
    beta_frames: np.ndarray
    relative: np.ndarray
    """The sum of each thread, (k, d) of every head."""


class Tiles(NamedTuple):
    """The lookups of a Frame, and the memory for a head of a tile, (threads, elements) each."""

    rows: np.ndarray
    columns: np.ndarray
    begin: int
    end: int
    taps: np.ndarray
    order: np.ndarray
    height: int
    width: int
    at_once: int
    """Rows of centres in a chunk."""
    wide: int
    """The width of a row of centres, padded to whole vectors."""
    step: int
    """The distance between the channels, or the taps, of a chunk."""
    planes: np.ndarray
    """Frames of the keys, of β, and of ones if the softmax skips taps outside the map."""
    query: np.ndarray
    logits: np.ndarray
    sums: np.ndarray
    """A number per centre."""
    ones: np.ndarray
    """A map of ones (h, w) if the softmax skips taps outside the map, else empty."""


class ChunkGradients(NamedTuple):
    """Memory for the gradients of a chunk's y, logits and query, (threads, elements) each."""

    y: np.ndarray
    logits: np.ndarray
    query: np.ndarray


class Chunk(NamedTuple):
    """Rows of centres of a head of a tile of an image."""

    image: int
    head: int
    tile: int
    row: int
    """The first row, counted in the tile."""
    high: int
    """The number of rows."""
    centre: int
    """The first centre, counted in the image."""


@part
def _tile(item, heads, p, tiles):
    """All rows of a tile of a head."""
    count = tiles.rows.shape[0]
    tile, centre = item % count, item % count * tiles.height * tiles.width
    high = min(tiles.height, (p - centre) // tiles.width)
    return Chunk(item // count // heads, item // count % heads, tile, 0, high, centre)


@part
def _chunk(tile, row, tiles):
    """The chunk of the tile that begins with a row."""
    high = min(tiles.at_once, tile.high - row)
    return Chunk(tile.image, tile.head, tile.tile, row, high, tile.centre + row * tiles.width)


@part
def _take(to, source, heads, at, tiles):
    """Copy the head's channels of the chunk's centres; the padding of rows is 0."""
    c, p = source.shape[1:]
    flat, width = source.reshape(-1), tiles.width
    for s in range(c // heads):
        start = (at.image * c + at.head + s * heads) * p + at.centre
        for row in range(at.high):
            for x in range(0, width, lanes(to)):
                value = read(flat, start + row * width + x, width - x)
                store(to, s * tiles.step + row * tiles.wide + x, value)


@part
def _give(own, to, heads, at, tiles):
    """The reverse of `_take`: copy from the chunk's memory to the array."""
    c, p = to.shape[1:]
    flat, width = to.reshape(-1), tiles.width
    for s in range(c // heads):
        start = (at.image * c + at.head + s * heads) * p + at.centre
        for row in range(at.high):
            for x in range(0, width, lanes(own)):
                i = row * width + x
                value = load(own, s * tiles.step + row * tiles.wide + x)
                write(flat, start + i, value, at.high * width - i)


@part
def _frames(planes, first, map_, heads, at, tiles):
    """Fill the frames of the head's channels, from the frame `first` on."""
    c, h, w = map_.shape[1:]
    size, flat, rows = tiles.rows.shape[1] * tiles.columns.shape[0], map_.reshape(-1), tiles.rows[at.tile]
    for s in range(c // heads):
        start = (at.image * c + at.head + s * heads) * h * w
        fill(planes, (first + s) * size, flat, start, w, rows, tiles.columns, tiles.begin, tiles.end)


@part
def _prepare(planes, inputs, depth, tile, tiles):
    """Fill all frames of a head of a tile."""
    key, beta, heads = inputs.key, inputs.beta, inputs.heads
    share = beta.shape[1] // heads
    if key.shape[0] > 0:
        _frames(planes, 0, key, heads, tile, tiles)
    _frames(planes, depth, beta, heads, tile, tiles)
    if tiles.ones.shape[0] > 0:
        size, flat, w = tiles.rows.shape[1] * tiles.columns.shape[0], tiles.ones.reshape(-1), beta.shape[3]
        fill(planes, (depth + share) * size, flat, 0, w, tiles.rows[tile.tile], tiles.columns, tiles.begin, tiles.end)


@part
def _correlate(own, channels, planes, first, to, at, tiles):
    """to[j] = Σ own · frame at tap j, over the channels."""
    across, whole, step = tiles.columns.shape[0], lanes(own), tiles.step
    size = tiles.rows.shape[1] * across
    for c in range(0, channels, BLOCK):
        for row in range(at.high):
            for x in range(0, tiles.width, whole):
                i, u = row * tiles.wide + x, (first + c) * size + (at.row + row) * across + x
                correlate_block(
                    own, i + c * step, step, whole, planes, u, size, tiles.taps, min(BLOCK, channels - c),
                    to, i, step, whole, c > 0,
                )  # fmt: skip


@part
def _relate(own, planes, logits, inputs, at, tiles):
    """Copy the chunk's queries to `own`, and compute its logits."""
    query, key, relative, _, heads, _ = inputs
    k, d = tiles.taps.shape[0], query.shape[1] // heads
    _take(own, query, heads, at, tiles)
    if key.shape[0] > 0:
        _correlate(own, d, planes, 0, logits, at, tiles)
    else:
        clear(logits, 0, k * tiles.step)
    if relative.shape[0] > 0:
        product(
            relative.reshape(-1), at.head * k * d, d, 0, k, d, own, 0, tiles.step, logits, 0, tiles.step,
            at.high * tiles.wide, True, -np.inf,
        )  # fmt: skip


@part
def _drop(planes, first, values, out, at, tiles):
    """Replace the values of taps outside the map by `out`; the frame `first` holds ones."""
    across, by = tiles.columns.shape[0], broadcast(values, out)
    frame = first * tiles.rows.shape[1] * across
    for j in range(tiles.taps.shape[0]):
        for row in range(at.high):
            for x in range(0, tiles.width, lanes(values)):
                inside = load(planes, frame + tiles.taps[j] + (at.row + row) * across + x)
                drop_outside(values, j * tiles.step + row * tiles.wide + x, inside, by, lanes(values))


@part
def _softmax(logits, k, sums, lse, lowest, heads, at, tiles):
    """The softmax of the chunk without its division, the sums of the weights, and lse."""
    flat, width, start = lse.reshape(-1), tiles.width, (at.image * heads + at.head) * lse.shape[2] + at.centre
    for row in range(at.high):
        for x in range(0, width, lanes(logits)):
            i = row * tiles.wide + x
            weights, peak = softmax(logits, i, k, tiles.step, lanes(logits), lowest)
            store(sums, i, weights)
            write(flat, start + row * width + x, peak, width - x)
        for x in range(width):
            to = start + row * width + x
            flat[to] = log_sum(flat[to], sums[row * tiles.wide + x])


@part
def _average(weights, sums, planes, first, y, heads, at, tiles):
    """y = Σ_j weight · frame at tap j / the sum of the weights, for the head's channels."""
    (v, p), across, whole, one = y.shape[1:], tiles.columns.shape[0], lanes(weights), broadcast(weights, 1)
    size, apart, share, flat = tiles.rows.shape[1] * across, heads * p, v // heads, y.reshape(-1)
    for c in range(0, share, BLOCK):
        start = (at.image * v + at.head + c * heads) * p + at.centre
        for row in range(at.high):
            for x in range(0, tiles.width, whole):
                i, u = row * tiles.wide + x, (first + c) * size + (at.row + row) * across + x
                to, left = start + row * tiles.width + x, (at.high - row) * tiles.width - x
                scale = div(one, load(sums, i))
                average(
                    weights, i, tiles.step, scale, planes, u, size, tiles.taps, min(BLOCK, share - c),
                    flat, to, apart, left,
                )  # fmt: skip


@compiled
def _attention(numbers, inputs, y, lse, tiles):
    query, heads, lowest = inputs.query, inputs.heads, inputs.lowest
    n, e, p = query.shape
    k, d, threads, share = tiles.taps.shape[0], e // heads, tiles.logits.shape[0], inputs.beta.shape[1] // heads
    for thread in numbers:
        planes, logits, sums = tiles.planes[thread], tiles.logits[thread], tiles.sums[thread]
        mine = portion(n * heads * tiles.rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            tile = _tile(item, heads, p, tiles)
            _prepare(planes, inputs, d, tile, tiles)
            for row in range(0, tile.high, tiles.at_once):
                at = _chunk(tile, row, tiles)
                _relate(tiles.query[thread], planes, logits, inputs, at, tiles)
                if tiles.ones.shape[0] > 0:
                    _drop(planes, d + share, logits, -np.inf, at, tiles)
                _softmax(logits, k, sums, lse, lowest, heads, at, tiles)
                _average(logits, sums, planes, d, y, heads, at, tiles)


@part
def _softmax_gradient(u, gradient, k, own, upstream, heads, at, tiles):
    """Replace the logits u by α, and the gradient of α by the gradient of the logits; the padding of rows is 0.

    The mean Σ_j α_j · the gradient of α_j is Σ own · y over the head's channels; `own` is the gradient of y.
    """
    y, lse = upstream.y, upstream.lse
    v, p = y.shape[1:]
    flat_y, flat_lse = y.reshape(-1), lse.reshape(-1)
    for row in range(at.high):
        for x in range(0, tiles.width, lanes(u)):
            i, room = row * tiles.wide + x, tiles.width - x
            centre, mean = at.centre + row * tiles.width + x, zeros(u)
            for s in range(v // heads):
                value = read(flat_y, (at.image * v + at.head + s * heads) * p + centre, room)
                mean = fma(load(own, i + s * tiles.step), value, mean)
            normal = read(flat_lse, (at.image * heads + at.head) * p + centre, room)
            for j in range(k):
                here = i + j * tiles.step
                alpha, flow = softmax_gradient(load(u, here), normal, load(gradient, here), mean)
                if room < lanes(u):
                    alpha, flow = keep_first(alpha, room), keep_first(flow, room)
                store(u, here, alpha)
                store(gradient, here, flow)


@part
def _clear_frames(to, channels, heads, at, tiles):
    """Set the head's frames to 0."""
    size = tiles.rows.shape[1] * tiles.columns.shape[0]
    for s in range(channels):
        clear(to, (at.head + s * heads) * size, size)


@part
def _distribute(alpha, own, channels, to, heads, at, tiles):
    """Add α_j · own to the head's frames at tap j."""
    across, whole, step, taps, order = tiles.columns.shape[0], lanes(own), tiles.step, tiles.taps, tiles.order
    size = tiles.rows.shape[1] * across
    apart = heads * size
    for c in range(0, channels, BLOCK):
        for row in range(at.high):
            for x in range(0, tiles.width, whole):
                i, o = row * tiles.wide + x, at.head * size + c * apart + (at.row + row) * across + x
                if channels - c >= BLOCK:
                    distribute_block(alpha, i, step, own, i + c * step, step, whole, to, o, apart, taps, order)
                else:
                    for s in range(channels - c):
                        distribute_channel(
                            alpha, i, step, own, i + (c + s) * step, whole, to, o + s * apart, taps, order
                        )  # fmt: skip


@part
def _aggregate(gradient, planes, channels, to, at, tiles):
    """to = Σ_j gradient_j · frame at tap j."""
    across, whole, step = tiles.columns.shape[0], lanes(gradient), tiles.step
    size = tiles.rows.shape[1] * across
    for c in range(0, channels, BLOCK):
        for row in range(at.high):
            for x in range(0, tiles.width, whole):
                i, u = row * tiles.wide + x, c * size + (at.row + row) * across + x
                if channels - c >= BLOCK:
                    for s, value in enumerate(aggregate_block(gradient, i, step, whole, planes, u, size, tiles.taps)):
                        store(to, i + (c + s) * step, value)
                else:
                    for s in range(channels - c):
                        value = aggregate_channel(gradient, i, step, whole, planes, u + s * size, tiles.taps)
                        store(to, i + (c + s) * step, value)


@part
def _query_gradient(flow, planes, own, inputs, weight, infinite, to, at, tiles):
    """The gradient of the chunk's queries, from the gradient of its logits; `weight` is `relative` as (e, k)."""
    key, heads = inputs.key, inputs.heads
    k, d = tiles.taps.shape[0], inputs.query.shape[1] // heads
    if key.shape[0] > 0:
        _aggregate(flow, planes, d, own, at, tiles)
    else:
        clear(own, 0, d * tiles.step)
    if weight.shape[0] > 0:
        product(
            weight.reshape(-1), at.head * k, heads * k, 0, d, k, flow, 0, tiles.step, own, 0, tiles.step,
            at.high * tiles.wide, True, -np.inf,
        )  # fmt: skip
    for j in infinite:
        _add_inside(flow, planes, own, inputs, j, at, tiles)
    _give(own, to, heads, at, tiles)


@part
def _add_inside(flow, planes, own, inputs, j, at, tiles):
    """Add what tap j of `relative` contributes to the gradient of the queries, where the tap is inside the map."""
    across, d, share = tiles.columns.shape[0], inputs.relative.shape[2], inputs.beta.shape[1] // inputs.heads
    frame = (d + share) * tiles.rows.shape[1] * across + tiles.taps[j]
    for row in range(at.high):
        for x in range(0, tiles.width, lanes(own)):
            i, inside = row * tiles.wide + x, load(planes, frame + (at.row + row) * across + x)
            for c in range(d):
                term = mul(load(flow, i + j * tiles.step), broadcast(own, inputs.relative[at.head, j, c]))
                here = i + c * tiles.step
                store(own, here, add(load(own, here), where_positive(inside, term, zeros(own))))


@part
def _clear_infinite(own, count):
    """Replace what is not finite among `count` elements by 0."""
    for at in range(0, count, lanes(own)):
        value, zero = load(own, at), zeros(own)
        store(own, at, where_positive(mul(value, zero), zero, value))


@compiled
def _attention_backward(numbers, upstream, inputs, weight, infinite, gradients, tiles, own):
    query, _, _, beta, heads, _ = inputs
    query_gradient, key_frames, beta_frames, relative_gradient = gradients
    n, e, p = query.shape
    k, d, threads, share = tiles.taps.shape[0], e // heads, tiles.logits.shape[0], beta.shape[1] // heads
    for thread in numbers:
        planes, queries, alpha = tiles.planes[thread], tiles.query[thread], tiles.logits[thread]
        flow, y_gradient, own_gradient = own.logits[thread], own.y[thread], own.query[thread]
        mine = portion(n * heads * tiles.rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            tile = _tile(item, heads, p, tiles)
            frames = tile.image * tiles.rows.shape[0] + tile.tile
            _prepare(planes, inputs, d, tile, tiles)
            if key_frames.shape[0] > 0:
                _clear_frames(key_frames[frames], d, heads, tile, tiles)
            if beta_frames.shape[0] > 0:
                _clear_frames(beta_frames[frames], share, heads, tile, tiles)
            for row in range(0, tile.high, tiles.at_once):
                at = _chunk(tile, row, tiles)
                _relate(queries, planes, alpha, inputs, at, tiles)
                _take(y_gradient, upstream.gradient, heads, at, tiles)
                _correlate(y_gradient, share, planes, d, flow, at, tiles)
                _softmax_gradient(alpha, flow, k, y_gradient, upstream, heads, at, tiles)
                if tiles.ones.shape[0] > 0:
                    _drop(planes, d + share, flow, 0.0, at, tiles)
                if beta_frames.shape[0] > 0:
                    _distribute(alpha, y_gradient, share, beta_frames[frames], heads, at, tiles)
                if key_frames.shape[0] > 0:
                    _distribute(flow, queries, d, key_frames[frames], heads, at, tiles)
                if relative_gradient.shape[0] > 0:
                    if tiles.ones.shape[0] > 0:
                        # a flow of 0 at a tap outside the map must not be multiplied by ∞; all other flows are NaN
                        _clear_infinite(queries, d * tiles.step)
                    outer_product(
                        flow, 0, tiles.step, k, queries, 0, tiles.step, d, at.high * tiles.wide,
                        relative_gradient[thread], at.head * k * d, d,
                    )  # fmt: skip
                if query_gradient.shape[0] > 0:
                    _query_gradient(flow, planes, own_gradient, inputs, weight, infinite, query_gradient, at, tiles)


# The entry points: arrays, then `widths` (the channels of a head, the heads), and the work (facts, lookups, memory). A
# gradient that is not needed is None.


def stand_alone_attention(query, key, relative, beta, y, lse, widths, work):
    inputs = _inputs(query, key, relative, beta, widths, work)
    d, heads = widths
    _attention(work.threads, inputs, y, lse, tiles_of_a_head(d, beta.shape[1] // heads, 1, work))
    clear_unreached(y, lse, work)


def stand_alone_attention_backward(
    gradient, y, lse, query, key, relative, beta,
    query_gradient, key_gradient, relative_gradient, beta_gradient, widths, work,
):  # fmt: skip
    d, heads = widths
    inputs = _inputs(query, key, relative, beta, widths, work)
    share = beta.shape[1] // heads
    tiles = tiles_of_a_head(d, share, 2, work)
    maps = key_gradient, beta_gradient
    frames = [work.nothing(2) if to is None else frames_of_tiles(to, tiles, work) for to in maps]
    partial = work.empty(0 if relative_gradient is None else work.threads, len(tiles.taps) * d * heads)
    partial[...] = 0
    gradients = Gradients(or_empty(query_gradient, 3, work), *frames, partial)
    own = ChunkGradients(*work.per_thread(share * tiles.step + SLACK, tiles.logits.shape[1], d * tiles.step + SLACK))
    weight, infinite = or_empty(relative, 2, work), np.zeros(0, np.int64)
    if work.excludes:  # outside the map, a gradient of 0 must not be multiplied by an infinite embedding
        infinite = np.flatnonzero(~np.isfinite(weight).all(0))
        weight = np.where(np.isin(np.arange(weight.shape[1]), infinite), weight.dtype.type(0), weight)
    _attention_backward(work.threads, Upstream(gradient, y, lse), inputs, weight, infinite, gradients, tiles, own)
    for to, of_tiles in zip(maps, frames, strict=True):
        if to is not None:
            fold_tiles(work.threads, of_tiles, to, tiles)
    if relative_gradient is not None:
        relative_gradient.reshape(d, heads, -1)[...] = partial.sum(0).reshape(heads, -1, d).transpose(2, 0, 1)


def _inputs(query, key, relative, beta, widths, work):
    d, heads = widths
    by_heads = work.nothing(3)
    if relative is not None:
        by_heads = np.ascontiguousarray(relative.reshape(d, heads, -1).transpose(1, 2, 0))
    return Inputs(query, or_empty(key, 4, work), by_heads, beta, heads, lowest_of(query))


def tiles_of_a_head(depth, share, sets, work):
    """Tiles with room for the frames of a head's keys and β; `sets` of these frames stay in the cache."""
    planes = depth + share + work.excludes
    frame, at_once, wide, step = _tiling(sets * planes, BYTES // work.itemsize, work.places)
    size, ones = frame.rows.shape[1] * len(frame.columns), work.nothing(2)
    if work.excludes:
        ones = work.empty(*work.map_size)
        ones[...] = 1
    memory = work.per_thread(
        planes * size + SLACK, depth * step + SLACK, len(frame.taps) * step + SLACK, step + SLACK
    )  # fmt: skip
    return Tiles(*frame, at_once, wide, step, *memory, ones)


@lru_cache(maxsize=256)
def _tiling(planes, lane, places):
    """The lookups of tiles for which `planes` frames stay in the cache, the rows of centres at a time, the width of a
    row up to a multiple of `lane`, and the distance between taps."""
    least = places.lookups(1)
    beyond = least.rows.shape[1] - 1  # an upper bound: a frame has no rows that strides leave out
    most = max(1, min(HEIGHT, FRAMES // (planes * len(least.columns)) - beyond))
    frame = places.lookups(-(-places.height // -(-places.height // most)))  # tiles of about the same height
    wide = -(-places.width // lane) * lane
    at_once = min(frame.height, max(1, PAIRS // (len(least.taps) * wide)))
    return frame, at_once, wide, row_step(at_once * wide)
