"""The fused stand-alone attention on a GPU, in one kernel: logits u_ij = Σ_d query_i (key_j + relative_j) of each head,
the softmax over the taps, and y_i[c] = Σ_j softmax_j[c mod g] β_j[c]; and the gradients, for float32 and float64. Twin
of kernels_cuda/csrc/stand_alone.cu, but without its frames: a thread has a pair.

    traffic    query, key and β are read once, except for positions that several tiles read. y is written once. No array
               has the size of the footprint. `relative` comes from the caches, and its gradient goes to memory once per
               worker.
    forward    A block has a head of a tile of centres of any images. It processes their taps in chunks, with a thread
               per pair. The maximum and sum of the softmax, and y, are updated after each chunk.
    backward   Pairs are computed twice more: once for the centres (query, relative), and once for the positions of the
               map (key, β), each of which goes through the centres that read it. No atomics, and the same bits every
               time. Workers have partial sums of the gradient of `relative`, which are added in order.

Another array stands in for an array that is absent, and a flag says that it is not read or written. Nothing has been
timed on a GPU yet.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import cuda, int32

from kernels_numba.gpu import launch, mapping
from kernels_numba.gpu.launch import (
    THREADS,
    Block,
    ceil_div,
    device,
    first_real,
    flat,
    kernel,
    line,
    lowest_of,
    start,
    workers_of,
    zero_of,
)
from kernels_numba.gpu.mapping import add_up
from kernels_numba.gpu.pairs import Centres, any_image, first_reader, pair_centres, pair_readers, tables_of
from kernels_numba.gpu.softmax import gradient_dot_output, log_sum, softmax, weighted_mean


class Inputs(NamedTuple):
    """What the kernels read. Arrays are images × channels × centres, or positions."""

    query: Any
    key: Any
    relative: Any
    """Channels × taps, in one axis."""
    beta: Any
    heads: int
    zero: Any
    """0 of the arrays' dtype."""
    lowest: Any
    """The lowest number of the arrays' dtype."""
    keyed: bool
    """Whether there is a key."""
    embedded: bool
    """Whether there is `relative`."""
    excludes: bool
    """Whether the softmax skips taps outside the map."""


class Upstream(NamedTuple):
    """The gradients that flow back to the softmax."""

    gradient: Any
    """The gradient of y."""
    lse: Any
    dots: Any
    """Σ gradient · y over the channels of each group, see `softmax.gradient_dot_output`."""


class Plan(NamedTuple):
    """The centres, or positions of the map, of a tile; the taps of a chunk; and where each array begins in
    `Block.shared`: one or two numbers per pair, then the sums."""

    positions: int
    taps: int
    columns: int
    scores: int
    flows: int
    sums: int
    size: int


@device
def _logit(inputs, head, image, centre, source, tap):
    """The logit of a pair; a key outside the map is 0."""
    taps = inputs.relative.shape[0] // inputs.query.shape[1] if inputs.embedded else 0
    total = inputs.zero
    for c in range(head, inputs.query.shape[1], inputs.heads):
        value = inputs.zero
        if inputs.keyed and source >= 0:
            value += inputs.key[image, c, source]
        if inputs.embedded:
            value += inputs.relative[c * taps + tap]
        total += inputs.query[image, c, centre] * value
    return total


@device
def _scores(inputs, head, plan, block):
    """Write the logits of the pairs."""
    pairs, columns = block.pairs, plan.columns
    for column in range(block.thread, columns, block.threads):
        if pairs[column] >= 0:
            block.shared[plan.scores + column] = _logit(
                inputs, head, pairs[column], pairs[columns + column], pairs[2 * columns + column],
                pairs[3 * columns + column],
            )  # fmt: skip


@device
def _logits_gradient(inputs, upstream, head, plan, block):
    """Write the weights of the softmax and the gradients of the logits; both are 0 where there is no pair."""
    pairs, columns = block.pairs, plan.columns
    for column in range(block.thread, columns, block.threads):
        alpha, flow = inputs.zero, inputs.zero
        if pairs[column] >= 0:
            image, centre, source = pairs[column], pairs[columns + column], pairs[2 * columns + column]
            logit = _logit(inputs, head, image, centre, source, pairs[3 * columns + column])
            alpha = type(inputs.zero)(math.exp(logit - upstream.lse[image, head, centre]))
            flow -= upstream.dots[image, head, centre]
            if source >= 0:
                for c in range(head, inputs.beta.shape[1], inputs.heads):
                    flow += upstream.gradient[image, c, centre] * inputs.beta[image, c, source]
            flow *= alpha
        block.shared[plan.scores + column] = alpha
        block.shared[plan.flows + column] = flow


@kernel
def _attention(inputs, y, lse, plan, tables):
    """y and the logarithm of the softmax's denominator, for a head of a tile of centres."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.query.dtype)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    block = Block(pairs, shared, inputs.zero, thread, threads)
    zero, tile, columns = inputs.zero, plan.positions, plan.columns
    k, heads, p = tables.rows.shape[0], inputs.heads, inputs.query.shape[2]
    centres, share = inputs.query.shape[0] * p, inputs.beta.shape[1] // heads
    index = cuda.blockIdx.x // heads
    head, begin = cuda.blockIdx.x - index * heads, index * tile
    scores, sums = plan.scores, plan.sums
    most = sums + share * tile
    total = most + tile
    scale = total + tile

    for item in range(thread, share * tile, threads):
        shared[sums + item] = zero
    for item in range(thread, tile, threads):
        shared[most + item] = type(zero)(-math.inf)
        shared[total + item] = zero
    for tap in range(0, k, plan.taps):
        cuda.syncthreads()
        pair_centres(tables, Centres(begin, centres, p, tile), tap, columns, inputs.excludes, block)
        cuda.syncthreads()
        _scores(inputs, head, plan, block)
        cuda.syncthreads()
        softmax(inputs, plan, block, scores, most, 1)
        cuda.syncthreads()
        for item in range(thread, share * tile, threads):
            s = item // tile
            i = item - s * tile
            weighted = shared[sums + item] * shared[scale + i]
            for column in range(i, columns, tile):
                image, source = pairs[column], pairs[2 * columns + column]
                if image >= 0 and source >= 0:
                    weighted += shared[scores + column] * inputs.beta[image, head + s * heads, source]
            shared[sums + item] = weighted
    cuda.syncthreads()
    for item in range(thread, (share + 1) * tile, threads):
        s = item // tile
        i = item - s * tile
        if begin + i < centres:
            image = (begin + i) // p
            centre = begin + i - image * p
            weights, best = shared[total + i], shared[most + i]
            if s < share:
                y[image, head + s * heads, centre] = weighted_mean(shared[sums + item], weights, best, zero)
            else:
                lse[image, head, centre] = log_sum(weights, best, zero)


@device
def _add_to_query(inputs, head, plan, k, block):
    """Add gradient of the logit · (key + relative) of each pair to the sums of the query."""
    pairs, shared, tile, columns = block.pairs, block.shared, plan.positions, plan.columns
    for item in range(block.thread, inputs.query.shape[1] // inputs.heads * tile, block.threads):
        d = item // tile
        c = head + d * inputs.heads
        total = inputs.zero
        for column in range(item - d * tile, columns, tile):
            image, source = pairs[column], pairs[2 * columns + column]
            if image >= 0:
                value = inputs.zero
                if inputs.keyed and source >= 0:
                    value += inputs.key[image, c, source]
                if inputs.embedded:
                    value += inputs.relative[c * k + pairs[3 * columns + column]]
                total += shared[plan.flows + column] * value
        shared[plan.sums + item] += total


@kernel
def _centres_backward(inputs, upstream, query_gradient, partial, needs, plan, tables):
    """The gradients of query and `relative`, over all taps of the centres of a worker's tiles of a head."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.query.dtype)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    block = Block(pairs, shared, inputs.zero, thread, threads)
    zero, tile, columns = inputs.zero, plan.positions, plan.columns
    k, heads, e, p = tables.rows.shape[0], inputs.heads, inputs.query.shape[1], inputs.query.shape[2]
    centres, depth = inputs.query.shape[0] * p, e // heads
    worker = cuda.blockIdx.x // heads
    head, workers = cuda.blockIdx.x - worker * heads, cuda.gridDim.x // heads
    query_needed, relative_needed = needs
    if relative_needed:
        for item in range(thread, depth * k, threads):
            d = item // k
            partial[(worker * e + head + d * heads) * k + item - d * k] = zero
    for begin in range(worker * tile, centres, workers * tile):
        for item in range(thread, depth * tile, threads):
            shared[plan.sums + item] = zero
        for tap in range(0, k, plan.taps):
            cuda.syncthreads()
            pair_centres(tables, Centres(begin, centres, p, tile), tap, columns, inputs.excludes, block)
            cuda.syncthreads()
            _logits_gradient(inputs, upstream, head, plan, block)
            cuda.syncthreads()
            if query_needed:
                _add_to_query(inputs, head, plan, k, block)
            if relative_needed:
                for item in range(thread, depth * min(plan.taps, k - tap), threads):
                    j = item // depth
                    c = head + (item - j * depth) * heads
                    total = zero
                    for column in range(j * tile, (j + 1) * tile):
                        if pairs[column] >= 0:
                            query = inputs.query[pairs[column], c, pairs[columns + column]]
                            total += shared[plan.flows + column] * query
                    partial[(worker * e + c) * k + tap + j] += total
        cuda.syncthreads()
        if query_needed:
            for item in range(thread, depth * tile, threads):
                d = item // tile
                i = item - d * tile
                if begin + i < centres:
                    image = (begin + i) // p
                    query_gradient[image, head + d * heads, begin + i - image * p] = shared[plan.sums + item]
        cuda.syncthreads()


@kernel
def _map_backward(inputs, upstream, key_gradient, beta_gradient, needs, plan, tables):
    """The gradients of the key and of β of a head at a tile of positions, from all centres that read them."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.query.dtype)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    block = Block(pairs, shared, inputs.zero, thread, threads)
    zero, heads, area, tile, columns = inputs.zero, inputs.heads, inputs.beta.shape[2], plan.positions, plan.columns
    positions = inputs.beta.shape[0] * area
    key_needed, beta_needed = needs
    depth = inputs.query.shape[1] // heads if key_needed else 0
    share = inputs.beta.shape[1] // heads if beta_needed else 0
    index = cuda.blockIdx.x // heads
    head, begin = cuda.blockIdx.x - index * heads, index * tile
    exists = thread < tile and begin + thread < positions
    image = (begin + thread) // area if exists else -1
    source = begin + thread - image * area if exists else 0
    reader = first_reader(tables, source, 0)

    for item in range(thread, (depth + share) * tile, threads):
        shared[plan.sums + item] = zero
    while True:
        cuda.syncthreads()
        reader = pair_readers(tables, reader, image, source, tile, columns, block)
        cuda.syncthreads()
        if not any_image(pairs, tile):
            break
        _logits_gradient(inputs, upstream, head, plan, block)
        cuda.syncthreads()
        for item in range(thread, (depth + share) * tile, threads):
            d = item // tile
            total = zero
            for column in range(item - d * tile, columns, tile):
                if pairs[column] >= 0:
                    centre = pairs[columns + column]
                    if d < depth:
                        value = inputs.query[pairs[column], head + d * heads, centre]
                        total += shared[plan.flows + column] * value
                    else:
                        value = upstream.gradient[pairs[column], head + (d - depth) * heads, centre]
                        total += shared[plan.scores + column] * value
            shared[plan.sums + item] += total
    for item in range(thread, (depth + share) * tile, threads):
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
    """The plan with `sums` elements for each position."""
    columns = positions * taps
    scores = first_real(4 * columns, itemsize)
    flows = scores + columns
    return Plan(positions, taps, columns, scores, flows, flows + columns, flows + columns + sums * positions)


def _plan(k: int, itemsize: int, sums: int) -> Plan:
    """The plan with the most positions that fit shared memory, in as few and as equal chunks of taps as possible.
    ValueError if even the smallest does not fit."""
    for positions in (32, 16, 8, 4):
        if positions > THREADS:
            continue
        for chunks in range(ceil_div(k, max(mapping.MOST_COLUMNS // positions, 1)), k + 1):
            plan = _layout(positions, ceil_div(k, chunks), itemsize, sums)
            if plan.size * itemsize <= launch.SHARED_BYTES:
                return plan
    least = _layout(4, 1, itemsize, sums).size * itemsize
    raise ValueError(
        f"a stand-alone attention needs {least} bytes of shared memory; expected at most {launch.SHARED_BYTES}"
    )


def _inputs_of(query, key, relative, beta, widths, work):
    inputs = Inputs(
        query,
        flat(beta if key is None else key),
        line(query if relative is None else relative),
        flat(beta),
        int(widths[1]),
        zero_of(query),
        lowest_of(query),
        key is not None,
        relative is not None,
        bool(work.excludes),
    )
    return inputs, tables_of(work, beta)


def stand_alone_attention(query, key, relative, beta, y, lse, widths, work):
    inputs, tables = _inputs_of(query, key, relative, beta, widths, work)
    plan = _plan(tables.rows.shape[0], inputs.zero.itemsize, beta.shape[1] // inputs.heads + 3)
    blocks = ceil_div(lse.shape[0] * lse.shape[2], plan.positions) * inputs.heads
    start(_attention, blocks, plan.size, work, inputs.zero, inputs, y, lse, plan, tables)


def stand_alone_attention_backward(
    gradient, y, lse, query, key, relative, beta,
    query_gradient, key_gradient, relative_gradient, beta_gradient, widths, work,
):  # fmt: skip
    inputs, tables = _inputs_of(query, key, relative, beta, widths, work)
    (n, e, p), area, k = query.shape, inputs.beta.shape[2], tables.rows.shape[0]
    depth, share = e // inputs.heads, beta.shape[1] // inputs.heads
    dots = work.empty(*lse.shape)
    gradient_dot_output(gradient, y, dots, work)
    upstream = Upstream(gradient, lse, dots)
    needs = query_gradient is not None, relative_gradient is not None
    if any(needs):
        plan = _plan(k, inputs.zero.itemsize, depth)
        tiles = ceil_div(n * p, plan.positions)
        workers = workers_of(e * k, tiles) if needs[1] else tiles
        partial = work.empty(workers * e * k) if needs[1] else inputs.relative
        start(
            _centres_backward, workers * inputs.heads, plan.size, work, inputs.zero,
            inputs, upstream, query_gradient if needs[0] else query, partial, needs, plan, tables,
        )  # fmt: skip
        if needs[1]:
            add_up(partial, workers, relative_gradient, work)
    needs = key_gradient is not None, beta_gradient is not None
    if any(needs):
        plan = _plan(k, inputs.zero.itemsize, depth * needs[0] + share * needs[1])
        outputs = (inputs.beta if x is None else flat(x) for x in (key_gradient, beta_gradient))
        blocks = ceil_div(n * area, plan.positions) * inputs.heads
        start(_map_backward, blocks, plan.size, work, inputs.zero, inputs, upstream, *outputs, needs, plan, tables)
