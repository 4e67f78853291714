"""The fused stand-alone attention on a GPU: logits u_ij = Σ_d query_i (key_j + relative_j) of each head, the softmax
over the taps, and y_i[c] = Σ_j softmax_j[c mod g] β_j[c], in one go; and what flows back, for float32 and float64. What
stand_alone.py computes on a CPU.

    traffic    query, key and β are read once, but for what tiles share, y is written once: nothing has the size of the
               footprint. `relative` comes from the caches, and what flows to it goes once per worker through memory.
    forward    A block has a head of a tile of centres, of whichever images, and goes through their taps in chunks, a
               thread per pair. Maximum and sum of the softmax, and y, follow chunk by chunk.
    backward   Pairs are computed again, once from the side of the centres (query, relative) and once from that of the
               map (key, β), whose positions go through the centres that read them: no atomics, and the same bits every
               time. What flows to `relative` is added up by workers, and they are, in order.

An array that there is not is another one, which a flag says not to read or write. Nothing has been timed on a GPU yet.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import cuda, int32

from kernels_numba.gpu import mapping
from kernels_numba.gpu.mapping import (
    THREADS,
    add_up,
    any_image,
    ceil_div,
    device,
    first_reader,
    first_real,
    flat,
    kernel,
    line,
    pair_centres,
    pair_readers,
    start,
    tables_of,
    workers_of,
    zero_of,
)
from kernels_numba.gpu.pairwise import _counts, _shared_gradient, _softmax


class StandAlone(NamedTuple):
    """All that a kernel reads, of images × channels × centres or positions."""

    query: Any
    key: Any
    relative: Any
    """Of channels × taps, one behind the other."""
    beta: Any
    heads: int
    zero: Any
    """Of the arrays' type."""
    keyed: bool
    """Is there a key?"""
    embedded: bool
    """Is there `relative`?"""
    excludes: bool
    """Does the softmax skip taps outside the map?"""


class Head(NamedTuple):
    """What flows to y, and what the softmax's weights follow from."""

    gradient: Any
    lse: Any
    shared: Any
    """D_i = Σ gradient · y over the channels of a head: what the softmax takes from every tap."""


class Plan(NamedTuple):
    """Centres of a tile, or positions of the map, taps of a chunk; and what begins where in shared memory, in elements
    of the arrays' type: a number or two per pair, then sums."""

    positions: int
    taps: int
    columns: int
    scores: int
    flows: int
    sums: int
    size: int


@device
def _logit(of, head, image, centre, source, tap):
    """u of a pair; a key outside of the map is 0."""
    taps = of.relative.shape[0] // of.query.shape[1] if of.embedded else 0
    total = of.zero
    for c in range(head, of.query.shape[1], of.heads):
        value = of.zero
        if of.keyed and source >= 0:
            value += of.key[image, c, source]
        if of.embedded:
            value += of.relative[c * taps + tap]
        total += of.query[image, c, centre] * value
    return total


@device
def _scores(of, head, plan, pairs, shared, me, threads):
    """The pairs' logits."""
    columns = plan.columns
    for column in range(me, columns, threads):
        if pairs[column] >= 0:
            shared[plan.scores + column] = _logit(
                of, head, pairs[column], pairs[columns + column], pairs[2 * columns + column],
                pairs[3 * columns + column],
            )  # fmt: skip


@device
def _flows(of, back, head, plan, pairs, shared, me, threads):
    """The softmax's weights in the place of the logits, and what flows to these; 0 where there is no pair."""
    columns = plan.columns
    for column in range(me, columns, threads):
        alpha, flow = of.zero, of.zero
        if _counts(of, plan, pairs, column):
            image, centre, source = pairs[column], pairs[columns + column], pairs[2 * columns + column]
            logit = _logit(of, head, image, centre, source, pairs[3 * columns + column])
            alpha = type(of.zero)(math.exp(logit - back.lse[image, head, centre]))
            flow -= back.shared[image, head, centre]
            if source >= 0:
                for c in range(head, of.beta.shape[1], of.heads):
                    flow += back.gradient[image, c, centre] * of.beta[image, c, source]
            flow *= alpha
        shared[plan.scores + column] = alpha
        shared[plan.flows + column] = flow


@kernel
def _attention(of, y, lse, plan, at):
    """y and the logarithms of the softmax's denominators, of a head of a tile of centres."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.query.dtype)
    me, threads = cuda.threadIdx.x, cuda.blockDim.x
    zero, tile, columns = of.zero, plan.positions, plan.columns
    k, heads, p = at.rows.shape[0], of.heads, of.query.shape[2]
    centres, share = of.query.shape[0] * p, of.beta.shape[1] // heads
    block = cuda.blockIdx.x // heads
    head, begin = cuda.blockIdx.x - block * heads, block * tile
    scores, sums = plan.scores, plan.sums
    most = sums + share * tile
    total = most + tile
    scale = total + tile

    for item in range(me, share * tile, threads):
        shared[sums + item] = zero
    for item in range(me, tile, threads):
        shared[most + item] = type(zero)(-math.inf)
        shared[total + item] = zero
    for tap in range(0, k, plan.taps):
        cuda.syncthreads()
        pair_centres(at, begin, centres, p, tile, tap, columns, pairs, me, threads)
        cuda.syncthreads()
        _scores(of, head, plan, pairs, shared, me, threads)
        cuda.syncthreads()
        _softmax(of, plan, pairs, shared, scores, most, 1, me, threads)
        cuda.syncthreads()
        for item in range(me, share * tile, threads):
            s = item // tile
            i = item - s * tile
            weighted = shared[sums + item] * shared[scale + i]
            for column in range(i, columns, tile):
                image, source = pairs[column], pairs[2 * columns + column]
                if image >= 0 and source >= 0:
                    weighted += shared[scores + column] * of.beta[image, head + s * heads, source]
            shared[sums + item] = weighted
    cuda.syncthreads()
    for item in range(me, (share + 1) * tile, threads):
        s = item // tile
        i = item - s * tile
        if begin + i < centres:
            image = (begin + i) // p
            centre = begin + i - image * p
            weights = shared[total + i]
            if s < share:
                value = shared[sums + item] / weights if weights > zero else zero
                y[image, head + s * heads, centre] = value
            elif weights > zero:
                lse[image, head, centre] = shared[most + i] + type(zero)(math.log(weights))
            else:
                lse[image, head, centre] = zero


@kernel
def _centres_backward(of, back, query_gradient, partial, needs, plan, at):
    """What flows to query and `relative`, through all taps of the centres of a worker's tiles of a head."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.query.dtype)
    me, threads = cuda.threadIdx.x, cuda.blockDim.x
    zero, tile, columns = of.zero, plan.positions, plan.columns
    k, heads, e, p = at.rows.shape[0], of.heads, of.query.shape[1], of.query.shape[2]
    centres, depth = of.query.shape[0] * p, e // heads
    worker = cuda.blockIdx.x // heads
    head, workers = cuda.blockIdx.x - worker * heads, cuda.gridDim.x // heads
    query_needed, relative_needed = needs
    if relative_needed:
        for item in range(me, depth * k, threads):
            d = item // k
            partial[(worker * e + head + d * heads) * k + item - d * k] = zero
    for begin in range(worker * tile, centres, workers * tile):
        for item in range(me, depth * tile, threads):
            shared[plan.sums + item] = zero
        for tap in range(0, k, plan.taps):
            cuda.syncthreads()
            pair_centres(at, begin, centres, p, tile, tap, columns, pairs, me, threads)
            cuda.syncthreads()
            _flows(of, back, head, plan, pairs, shared, me, threads)
            cuda.syncthreads()
            if query_needed:
                for item in range(me, depth * tile, threads):
                    d = item // tile
                    c = head + d * heads
                    total = zero
                    for column in range(item - d * tile, columns, tile):
                        image, source = pairs[column], pairs[2 * columns + column]
                        if image >= 0:
                            value = zero
                            if of.keyed and source >= 0:
                                value += of.key[image, c, source]
                            if of.embedded:
                                value += of.relative[c * k + pairs[3 * columns + column]]
                            total += shared[plan.flows + column] * value
                    shared[plan.sums + item] += total
            if relative_needed:
                for item in range(me, depth * min(plan.taps, k - tap), threads):
                    j = item // depth
                    c = head + (item - j * depth) * heads
                    total = zero
                    for column in range(j * tile, (j + 1) * tile):
                        if pairs[column] >= 0:
                            query = of.query[pairs[column], c, pairs[columns + column]]
                            total += shared[plan.flows + column] * query
                    partial[(worker * e + c) * k + tap + j] += total
        cuda.syncthreads()
        if query_needed:
            for item in range(me, depth * tile, threads):
                d = item // tile
                i = item - d * tile
                if begin + i < centres:
                    image = (begin + i) // p
                    query_gradient[image, head + d * heads, begin + i - image * p] = shared[plan.sums + item]
        cuda.syncthreads()


@kernel
def _map_backward(of, back, key_gradient, beta_gradient, needs, plan, at):
    """What flows to the key and to β at a tile of positions, from all centres that read them, of a head."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.query.dtype)
    me, threads = cuda.threadIdx.x, cuda.blockDim.x
    zero, heads, area, tile, columns = of.zero, of.heads, of.beta.shape[2], plan.positions, plan.columns
    positions = of.beta.shape[0] * area
    key_needed, beta_needed = needs
    depth = of.query.shape[1] // heads if key_needed else 0
    share = of.beta.shape[1] // heads if beta_needed else 0
    block = cuda.blockIdx.x // heads
    head, begin = cuda.blockIdx.x - block * heads, block * tile
    exists = me < tile and begin + me < positions
    image = (begin + me) // area if exists else -1
    source = begin + me - image * area if exists else 0
    reader = first_reader(at, source, 0)

    for item in range(me, (depth + share) * tile, threads):
        shared[plan.sums + item] = zero
    while True:
        cuda.syncthreads()
        reader = pair_readers(at, reader, image, source, tile, columns, pairs, me)
        cuda.syncthreads()
        if not any_image(pairs, tile):
            break
        _flows(of, back, head, plan, pairs, shared, me, threads)
        cuda.syncthreads()
        for item in range(me, (depth + share) * tile, threads):
            d = item // tile
            total = zero
            for column in range(item - d * tile, columns, tile):
                if pairs[column] >= 0:
                    at_centre = pairs[columns + column]
                    if d < depth:
                        value = of.query[pairs[column], head + d * heads, at_centre]
                        total += shared[plan.flows + column] * value
                    else:
                        value = back.gradient[pairs[column], head + (d - depth) * heads, at_centre]
                        total += shared[plan.scores + column] * value
            shared[plan.sums + item] += total
    for item in range(me, (depth + share) * tile, threads):
        d = item // tile
        i = item - d * tile
        if begin + i < positions:
            image = (begin + i) // area
            source = begin + i - image * area
            if d < depth:
                key_gradient[image, head + d * heads, source] = shared[plan.sums + item]
            else:
                beta_gradient[image, head + (d - depth) * heads, source] = shared[plan.sums + item]


# On the host.


def _layout(positions: int, taps: int, itemsize: int, sums: int) -> Plan:
    """`sums` of each position."""
    columns = positions * taps
    scores = first_real(4 * columns, itemsize)
    flows = scores + columns
    return Plan(positions, taps, columns, scores, flows, flows + columns, flows + columns + sums * positions)


def _plan(k: int, itemsize: int, sums: int) -> Plan:
    """As many positions as fit shared memory, and of the chunks of their taps as few, and as equal; ValueError if
    nothing fits."""
    for positions in (32, 16, 8, 4):
        if positions > THREADS:
            continue
        for chunks in range(ceil_div(k, max(mapping.MOST_COLUMNS // positions, 1)), k + 1):
            plan = _layout(positions, ceil_div(k, chunks), itemsize, sums)
            if plan.size * itemsize <= mapping.SHARED_BYTES:
                return plan
    least = _layout(4, 1, itemsize, sums).size * itemsize
    raise ValueError(
        f"a stand-alone attention needs {least} bytes of shared memory; expected at most {mapping.SHARED_BYTES}"
    )


def _stand_alone(query, key, relative, beta, widths, lookups):
    of = StandAlone(
        query,
        flat(beta if key is None else key),
        line(query if relative is None else relative),
        flat(beta),
        int(widths[1]),
        zero_of(query),
        key is not None,
        relative is not None,
        bool(lookups.excludes),
    )
    return of, tables_of(lookups, beta)


def stand_alone_attention(query, key, relative, beta, y, lse, widths, lookups):
    of, at = _stand_alone(query, key, relative, beta, widths, lookups)
    plan = _plan(at.rows.shape[0], of.zero.itemsize, beta.shape[1] // of.heads + 3)
    blocks = ceil_div(lse.shape[0] * lse.shape[2], plan.positions) * of.heads
    start(_attention, blocks, plan.size, lookups, of.zero, of, y, lse, plan, at)


def stand_alone_attention_backward(
    gradient, y, lse, query, key, relative, beta,
    query_gradient, key_gradient, relative_gradient, beta_gradient, widths, lookups,
):  # fmt: skip
    of, at = _stand_alone(query, key, relative, beta, widths, lookups)
    (n, e, p), area, k = query.shape, of.beta.shape[2], at.rows.shape[0]
    depth, share = e // of.heads, beta.shape[1] // of.heads
    shared = lookups.empty(*lse.shape)
    start(_shared_gradient, ceil_div(shared.size, THREADS), 0, lookups, of.zero, gradient, y, shared, of.zero)
    back = Head(gradient, lse, shared)
    needs = query_gradient is not None, relative_gradient is not None
    if any(needs):
        plan = _plan(k, of.zero.itemsize, depth)
        tiles = ceil_div(n * p, plan.positions)
        workers = workers_of(e * k, tiles) if needs[1] else tiles
        partial = lookups.empty(workers * e * k) if needs[1] else of.relative
        start(
            _centres_backward, workers * of.heads, plan.size, lookups, of.zero,
            of, back, query_gradient if needs[0] else query, partial, needs, plan, at,
        )  # fmt: skip
        if needs[1]:
            add_up(partial, workers, relative_gradient, lookups)
    needs = key_gradient is not None, beta_gradient is not None
    if any(needs):
        plan = _plan(k, of.zero.itemsize, depth * needs[0] + share * needs[1])
        outputs = (of.beta if x is None else flat(x) for x in (key_gradient, beta_gradient))
        blocks = ceil_div(n * area, plan.positions) * of.heads
        start(_map_backward, blocks, plan.size, lookups, of.zero, of, back, *outputs, needs, plan, at)
