"""CPU kernels of the fused stand-alone attention, forward and backward, for float32 and float64.

    u_ij = Σ_d query_i · (key_j + relative_j)      α_i = softmax of u_i over the taps j      y_i[c] = Σ_j α_ij · β_j[c]

Arrays, all contiguous: `query` is (n, e, p), `key` (n, e, h, w), `relative` (e, k), β (n, v, h, w); channel c is of
head c mod g, and `widths` are the channels of a head and the heads. cpu.py says what a frame is.

    tiles      Heads have nothing in common: a thread takes one head of a few rows of an image's centres, with frames of
               its channels of the keys and β. The tiles, and so the sums of what flows to maps, do not depend on the
               threads.
    chunks     So many rows of a tile at a time that one logit per tap and centre fits the first-level cache. Rows are
               continued to whole vectors there, and only reading and writing them has to mind their ends.
    products   Query · relative is a product of matrices, in blocks of 4 taps and 3 vectors. Query · key, and the
               average of β, hold 8 channels of a vector of centres in registers, go through all taps, and read a vector
               of a frame for each multiplication; the next 8 channels come after all centres of the chunk.
    traffic    Every input is read once per tile, with the borders that tiles share, and every output written once. What
               there is of a pair never leaves the first-level cache, nor, backward, the second.
    backward   A chunk is computed again, and what flows to keys and β is added into frames of the tile's own, which are
               then folded into the maps: the same order whatever the threads, and nothing to lock. `relative` gets the
               sum of each thread's own.

What mattered, in CPU time of one thread of a busy machine, where a product of matrices did 36 billion multiply-adds per
second. 512 channels on 14 × 14, 7 × 7 taps, 8 heads: the next 8 channels after all centres of a chunk, not at each
vector of them, and tiles of all rows, not a few, 12.6 to 4.5 ms for the gradients. 64 channels on 56 × 56: 2.8 ms for
the attention, of which exp takes 0.8 and averaging 0.75. What would be left: two rows of centres share most keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from kernels_numba.compiled import compiled, part
from kernels_numba.cpu.mapping import outer, product
from kernels_numba.cpu.pairwise import _fold_tiles, _lowest, _planes
from kernels_numba.cpu.relations import (
    BLOCK,
    SLACK,
    _apart,
    _clear,
    _dots,
    _fill,
    _read,
    _share,
    _spread,
    _spread_one,
    _sum,
    _sums,
    _write,
)
from kernels_numba.cpu.simd import (
    BYTES,
    add,
    broadcast,
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

PAIRS = 1 << 12
"""Logits of a chunk, at most, unless it is of one row of centres."""
FRAMES = 1 << 17
"""Elements of all frames of a tile, at most, unless it is of one row of centres."""
HEIGHT = 16
"""Rows of centres in a tile, at most, lest a single image be too few tiles for many threads."""


class Tiles(NamedTuple):
    """A frame, of which cpu.py says what it is, and the memory for a head of a tile, (threads, elements) each."""

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
    """A row of centres in whole vectors."""
    step: int
    """From a chunk's centres in a channel, or at a tap, to those in the next."""
    planes: np.ndarray
    """Frames of the keys, of β, and of ones if taps outside are dropped."""
    query: np.ndarray
    logits: np.ndarray
    sums: np.ndarray
    """One number per centre."""
    ones: np.ndarray
    """A map (h, w) if taps outside are dropped, else nothing."""


class Gradients(NamedTuple):
    """What flows to a chunk, likewise; and each thread's sum for `relative`, (k, d) of every head."""

    y: np.ndarray
    logits: np.ndarray
    query: np.ndarray
    relative: np.ndarray


class Chunk(NamedTuple):
    """Rows of centres of a head of a tile of an image."""

    image: int
    head: int
    tile: int
    row: int
    """The first of them in the tile."""
    high: int
    centre: int
    """The first centre in the image."""


@part
def _tile(item, heads, p, tiles):
    """All of the item's rows."""
    count = tiles.rows.shape[0]
    tile, centre = item % count, item % count * tiles.height * tiles.width
    high = min(tiles.height, (p - centre) // tiles.width)
    return Chunk(item // count // heads, item // count % heads, tile, 0, high, centre)


@part
def _chunk(tile, row, tiles):
    """The tile's rows from there on."""
    high = min(tiles.at_once, tile.high - row)
    return Chunk(tile.image, tile.head, tile.tile, row, high, tile.centre + row * tiles.width)


@part
def _take(to, source, heads, at, tiles):
    """Copy what belongs to the centres; 0 where their rows are continued."""
    c, p = source.shape[1:]
    flat, width = source.reshape(-1), tiles.width
    for s in range(c // heads):
        start = (at.image * c + at.head + s * heads) * p + at.centre
        for row in range(at.high):
            for x in range(0, width, lanes(to)):
                value = _read(flat, start + row * width + x, width - x)
                store(to, s * tiles.step + row * tiles.wide + x, value)


@part
def _give(own, to, heads, at, tiles):
    """Copy it back."""
    c, p = to.shape[1:]
    flat, width = to.reshape(-1), tiles.width
    for s in range(c // heads):
        start = (at.image * c + at.head + s * heads) * p + at.centre
        for row in range(at.high):
            for x in range(0, width, lanes(own)):
                i = row * width + x
                value = load(own, s * tiles.step + row * tiles.wide + x)
                _write(flat, start + i, value, at.high * width - i)


@part
def _frames(planes, first, map_, heads, at, tiles):
    """Fill frames of the head's channels, from the `first` plane on."""
    c, h, w = map_.shape[1:]
    size, flat, rows = tiles.rows.shape[1] * tiles.columns.shape[0], map_.reshape(-1), tiles.rows[at.tile]
    for s in range(c // heads):
        start = (at.image * c + at.head + s * heads) * h * w
        _fill(planes, (first + s) * size, flat, start, w, rows, tiles.columns, tiles.begin, tiles.end)


@part
def _prepare(planes, key, beta, depth, heads, tile, tiles):
    """All frames of a head of a tile."""
    share = beta.shape[1] // heads
    if key.shape[0] > 0:
        _frames(planes, 0, key, heads, tile, tiles)
    _frames(planes, depth, beta, heads, tile, tiles)
    if tiles.ones.shape[0] > 0:
        size, flat, w = tiles.rows.shape[1] * tiles.columns.shape[0], tiles.ones.reshape(-1), beta.shape[3]
        _fill(planes, (depth + share) * size, flat, 0, w, tiles.rows[tile.tile], tiles.columns, tiles.begin, tiles.end)


@part
def _correlate(own, channels, planes, first, to, at, tiles):
    """to[j] = Σ own · frame at j, over the channels."""
    across, whole, step = tiles.columns.shape[0], lanes(own), tiles.step
    size = tiles.rows.shape[1] * across
    for c in range(0, channels, BLOCK):
        for row in range(at.high):
            for x in range(0, tiles.width, whole):
                i, u = row * tiles.wide + x, (first + c) * size + (at.row + row) * across + x
                _dots(
                    own, i + c * step, step, whole, planes, u, size, tiles.taps, min(BLOCK, channels - c),
                    to, i, step, whole, c > 0,
                )  # fmt: skip


@part
def _relate(own, planes, logits, query, key, relative, share, heads, lowest, at, tiles):
    """The chunk's logits, and before that its queries."""
    k, d = tiles.taps.shape[0], query.shape[1] // heads
    _take(own, query, heads, at, tiles)
    if key.shape[0] > 0:
        _correlate(own, d, planes, 0, logits, at, tiles)
    else:
        _clear(logits, 0, k * tiles.step)
    if relative.shape[0] > 0:
        product(
            relative.reshape(-1), at.head * k * d, d, 0, k, d, own, 0, tiles.step, logits, 0, tiles.step,
            at.high * tiles.wide, True, -np.inf,
        )  # fmt: skip
    if tiles.ones.shape[0] > 0:
        _drop(planes, d + share, logits, lowest, at, tiles)


@part
def _drop(planes, first, logits, lowest, at, tiles):
    """The lowest of all numbers in place of the logits of taps outside of the map."""
    across, out = tiles.columns.shape[0], broadcast(logits, lowest)
    frame = first * tiles.rows.shape[1] * across
    for j in range(tiles.taps.shape[0]):
        for row in range(at.high):
            for x in range(0, tiles.width, lanes(logits)):
                here = j * tiles.step + row * tiles.wide + x
                inside = load(planes, frame + tiles.taps[j] + (at.row + row) * across + x)
                store(logits, here, where_positive(inside, load(logits, here), out))


@part
def _softmax(logits, k, sums, lse, lowest, heads, at, tiles):
    """exp(logit − the largest of the centre) in place of the logits, their sums, and the logarithms of what these
    would be of the logits themselves."""
    flat, width, start = lse.reshape(-1), tiles.width, (at.image * heads + at.head) * lse.shape[2] + at.centre
    for row in range(at.high):
        for x in range(0, width, lanes(logits)):
            i = row * tiles.wide + x
            peak, normal = load(logits, i), zeros(logits)
            for j in range(1, k):
                peak = maximum(peak, load(logits, i + j * tiles.step))
            for j in range(k):
                here = i + j * tiles.step
                weight = exp(sub(load(logits, here), peak))
                normal = add(normal, weight)
                store(logits, here, weight)
            store(sums, i, normal)
            _write(flat, start + row * width + x, peak, width - x)
        for x in range(width):
            to = start + row * width + x
            peak = flat[to]
            flat[to] = 0 if peak == lowest else peak + np.log(sums[row * tiles.wide + x])


@part
def _average(weights, sums, planes, first, y, heads, at, tiles):
    """y = Σ_j weight · frame at j / the sum of weights, of the head's channels."""
    (v, p), across, whole, one = y.shape[1:], tiles.columns.shape[0], lanes(weights), broadcast(weights, 1)
    size, apart, share, flat = tiles.rows.shape[1] * across, heads * p, v // heads, y.reshape(-1)
    for c in range(0, share, BLOCK):
        start = (at.image * v + at.head + c * heads) * p + at.centre
        for row in range(at.high):
            for x in range(0, tiles.width, whole):
                i, u = row * tiles.wide + x, (first + c) * size + (at.row + row) * across + x
                to, left = start + row * tiles.width + x, (at.high - row) * tiles.width - x
                scale = div(one, load(sums, i))
                if share - c >= BLOCK:
                    for s, value in enumerate(_sums(weights, i, tiles.step, whole, planes, u, size, tiles.taps)):
                        _write(flat, to + s * apart, mul(value, scale), left)
                else:
                    for s in range(share - c):
                        value = _sum(weights, i, tiles.step, whole, planes, u + s * size, tiles.taps)
                        _write(flat, to + s * apart, mul(value, scale), left)


@compiled
def _attention(query, key, relative, beta, y, lse, heads, lowest, tiles):
    n, e, p = query.shape
    k, d, threads, share = tiles.taps.shape[0], e // heads, tiles.logits.shape[0], beta.shape[1] // heads
    for thread in prange(threads):
        planes, logits, sums = tiles.planes[thread], tiles.logits[thread], tiles.sums[thread]
        mine = _share(n * heads * tiles.rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            tile = _tile(item, heads, p, tiles)
            _prepare(planes, key, beta, d, heads, tile, tiles)
            for row in range(0, tile.high, tiles.at_once):
                at = _chunk(tile, row, tiles)
                _relate(tiles.query[thread], planes, logits, query, key, relative, share, heads, lowest, at, tiles)
                _softmax(logits, k, sums, lse, lowest, heads, at, tiles)
                _average(logits, sums, planes, d, y, heads, at, tiles)


@part
def _softmax_backward(u, d, k, own, y, lse, heads, at, tiles):
    """α = exp(u − lse) in place of u, and α · (d − Σ_j α_j d_j) in place of d, what flows to α; 0 where rows are
    continued. The sum is Σ own · y over the head's channels, `own` being what flows to y."""
    v, p = y.shape[1:]
    flat_y, flat_lse = y.reshape(-1), lse.reshape(-1)
    for row in range(at.high):
        for x in range(0, tiles.width, lanes(u)):
            i, room = row * tiles.wide + x, tiles.width - x
            centre, mean = at.centre + row * tiles.width + x, zeros(u)
            for s in range(v // heads):
                value = _read(flat_y, (at.image * v + at.head + s * heads) * p + centre, room)
                mean = fma(load(own, i + s * tiles.step), value, mean)
            normal = _read(flat_lse, (at.image * heads + at.head) * p + centre, room)
            for j in range(k):
                here = i + j * tiles.step
                alpha = exp(sub(load(u, here), normal))
                flow = mul(alpha, sub(load(d, here), mean))
                if room < lanes(u):
                    alpha, flow = keep_first(alpha, room), keep_first(flow, room)
                store(u, here, alpha)
                store(d, here, flow)


@part
def _begin(to, channels, heads, at, tiles):
    """Set the head's frames to 0."""
    size = tiles.rows.shape[1] * tiles.columns.shape[0]
    for s in range(channels):
        _clear(to, (at.head + s * heads) * size, size)


@part
def _distribute(alpha, own, channels, to, heads, at, tiles):
    """Add α_j · own to the head's frames at j."""
    across, whole, step, taps, order = tiles.columns.shape[0], lanes(own), tiles.step, tiles.taps, tiles.order
    size = tiles.rows.shape[1] * across
    apart = heads * size
    for c in range(0, channels, BLOCK):
        for row in range(at.high):
            for x in range(0, tiles.width, whole):
                i, o = row * tiles.wide + x, at.head * size + c * apart + (at.row + row) * across + x
                if channels - c >= BLOCK:
                    _spread(alpha, i, step, own, i + c * step, step, whole, to, o, apart, taps, order)
                else:
                    for s in range(channels - c):
                        _spread_one(alpha, i, step, own, i + (c + s) * step, whole, to, o + s * apart, taps, order)


@part
def _aggregate(d, planes, channels, to, at, tiles):
    """to = Σ_j d_j · frame at j."""
    across, whole, step = tiles.columns.shape[0], lanes(d), tiles.step
    size = tiles.rows.shape[1] * across
    for c in range(0, channels, BLOCK):
        for row in range(at.high):
            for x in range(0, tiles.width, whole):
                i, u = row * tiles.wide + x, c * size + (at.row + row) * across + x
                if channels - c >= BLOCK:
                    for s, value in enumerate(_sums(d, i, step, whole, planes, u, size, tiles.taps)):
                        store(to, i + (c + s) * step, value)
                else:
                    for s in range(channels - c):
                        store(to, i + (c + s) * step, _sum(d, i, step, whole, planes, u + s * size, tiles.taps))


@compiled
def _attention_backward(
    gradient, y, lse, query, key, relative, weight, beta, d_query, d_key, d_beta, heads, lowest, tiles, own
):  # fmt: skip
    n, e, p = query.shape
    k, d, threads, share = tiles.taps.shape[0], e // heads, tiles.logits.shape[0], beta.shape[1] // heads
    for thread in prange(threads):
        planes, queries, alpha = tiles.planes[thread], tiles.query[thread], tiles.logits[thread]
        flow, d_y, d_own = own.logits[thread], own.y[thread], own.query[thread]
        mine = _share(n * heads * tiles.rows.shape[0], thread, threads)
        for item in range(mine[0], mine[1]):
            tile = _tile(item, heads, p, tiles)
            frames = tile.image * tiles.rows.shape[0] + tile.tile
            _prepare(planes, key, beta, d, heads, tile, tiles)
            if d_key.shape[0] > 0:
                _begin(d_key[frames], d, heads, tile, tiles)
            if d_beta.shape[0] > 0:
                _begin(d_beta[frames], share, heads, tile, tiles)
            for row in range(0, tile.high, tiles.at_once):
                at = _chunk(tile, row, tiles)
                columns = at.high * tiles.wide
                _relate(queries, planes, alpha, query, key, relative, share, heads, lowest, at, tiles)
                _take(d_y, gradient, heads, at, tiles)
                _correlate(d_y, share, planes, d, flow, at, tiles)
                _softmax_backward(alpha, flow, k, d_y, y, lse, heads, at, tiles)
                if d_beta.shape[0] > 0:
                    _distribute(alpha, d_y, share, d_beta[frames], heads, at, tiles)
                if d_key.shape[0] > 0:
                    _distribute(flow, queries, d, d_key[frames], heads, at, tiles)
                if own.relative.shape[0] > 0:
                    outer(
                        flow, 0, tiles.step, k, queries, 0, tiles.step, d, columns,
                        own.relative[thread], at.head * k * d, d,
                    )  # fmt: skip
                if d_query.shape[0] > 0:
                    if key.shape[0] > 0:
                        _aggregate(flow, planes, d, d_own, at, tiles)
                    else:
                        _clear(d_own, 0, d * tiles.step)
                    if relative.shape[0] > 0:
                        product(
                            weight.reshape(-1), at.head * k, heads * k, 0, d, k, flow, 0, tiles.step,
                            d_own, 0, tiles.step, columns, True, -np.inf,
                        )  # fmt: skip
                    _give(d_own, d_query, heads, at, tiles)


# The core: arrays, then channels of a head and heads, and the work: threads, lookups, memory.


def stand_alone_attention(query, key, relative, beta, y, lse, widths, work):
    d, heads = widths
    tiles = _tiles(d, beta.shape[1] // heads, 1, query, work)
    _attention(
        query, _or_nothing(key, 4, work), _of_heads(relative, widths, work), beta, y, lse, heads, _lowest(query),
        tiles,
    )  # fmt: skip


def stand_alone_attention_backward(
    gradient, y, lse, query, key, relative, beta, d_query, d_key, d_relative, d_beta, widths, work
):  # fmt: skip
    d, heads = widths
    share = beta.shape[1] // heads
    tiles = _tiles(d, share, 2, query, work)
    key_planes, beta_planes = (work.empty(0, 0) if to is None else _planes(to, tiles, work) for to in (d_key, d_beta))
    partial = work.empty(0 if d_relative is None else work.threads, len(tiles.taps) * d * heads)
    partial[...] = 0
    own = Gradients(
        work.empty(work.threads, share * tiles.step + SLACK),
        work.empty(*tiles.logits.shape),
        work.empty(work.threads, d * tiles.step + SLACK),
        partial,
    )
    _attention_backward(
        gradient, y, lse, query, _or_nothing(key, 4, work), _of_heads(relative, widths, work),
        _or_nothing(relative, 2, work), beta, _or_nothing(d_query, 3, work), key_planes, beta_planes, heads,
        _lowest(query), tiles, own,
    )  # fmt: skip
    for to, frames in (d_key, key_planes), (d_beta, beta_planes):
        if to is not None:
            _fold_tiles(frames, to, tiles)
    if d_relative is not None:
        d_relative.reshape(d, heads, -1)[...] = partial.sum(0).reshape(heads, -1, d).transpose(2, 0, 1)


def _or_nothing(array, axes, work):
    return work.empty(*[0] * axes) if array is None else array


def _of_heads(relative, widths, work):
    """(g, k, d)"""
    if relative is None:
        return work.empty(0, 0, 0)
    d, heads = widths
    return np.ascontiguousarray(relative.reshape(d, heads, -1).transpose(1, 2, 0))


def _tiles(depth, share, sets, query, work):
    """Tiles with room for the frames of a head; so many sets of them are to stay in a cache."""
    least = work.tiles(1)
    k, lane, planes = len(least.taps), BYTES // query.itemsize, depth + share + work.excludes
    beyond = least.rows.shape[1] - 1  # nearly: rows that strides leave out are no frame's
    most = max(1, min(HEIGHT, FRAMES // (sets * planes * len(least.columns)) - beyond))
    frame = work.tiles(-(-work.height // -(-work.height // most)))  # no tile much lower than the others
    wide = -(-work.width // lane) * lane
    at_once = min(frame.height, max(1, PAIRS // (k * wide)))
    step, size = _apart(at_once * wide), frame.rows.shape[1] * len(frame.columns)
    ones = work.empty(*work.map_size if work.excludes else (0, 0))
    ones[...] = 1
    return Tiles(
        *frame[:-1],
        at_once,
        wide,
        step,
        planes=work.empty(work.threads, planes * size + SLACK),
        query=work.empty(work.threads, depth * step + SLACK),
        logits=work.empty(work.threads, k * step + SLACK),
        sums=work.empty(work.threads, step + SLACK),
        ones=ones,
    )
