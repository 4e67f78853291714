"""The fused pairwise attention on a GPU: rows z_ij = ρ(factor_i ⊙ map_j + offset_i), the mapping to logits, the softmax
over the taps, and y_i[c] = Σ_j softmax_j[c mod g] β_j[c], in one go; the statistics of what the mapping gives, for the
batch norm behind it; and what flows back. Twin of kernels_cuda/csrc/pairwise.cu, for float32 and float64.

    traffic    offset, factor, map and β are read once, but for what tiles share, y is written once: nothing has the
               size of the footprint. The parameters come from the caches, and backward once per worker through memory.
    forward    A block has a tile of centres, of whichever images, and goes through their taps in chunks: pairs are the
               columns of small products in shared memory. Maximum and sum of the softmax, and y, follow chunk by chunk.
    backward   Pairs are computed again, once from the side of the centres (offset, factor, parameters) and once from
               that of the map (map, β), whose positions go through the centres that read them: no atomics, and the same
               bits every time. Sums of products for the parameters are those of workers, added up in order.

The twins part where C++ has templates: what flows to the last layer, from the softmax or from statistics, is told by
`Head.softmax`, and an array that there is not is another one, which a flag says not to read or write.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import cuda, int32

from kernels_numba.gpu import mapping
from kernels_numba.gpu.mapping import (
    THREADS,
    Tables,
    Widths,
    add_gradients,
    add_up,
    any_image,
    ceil_div,
    device,
    first_reader,
    first_real,
    flat,
    kernel,
    merge_moments,
    observe,
    pair_centres,
    pair_readers,
    product,
    start,
    tables_of,
    widths_of,
    workers_of,
    write_moments,
    zero_of,
)


class Pairwise(NamedTuple):
    """All that a kernel reads, of images × channels × centres or positions."""

    offset: Any
    factor: Any
    map: Any
    beta: Any
    parameters: Any
    widths: Widths
    zero: Any
    """Of the arrays' type."""
    factored: bool
    """Is there a factor?"""
    rectified: bool
    excludes: bool
    """Does the softmax skip taps outside the map?"""


class Head(NamedTuple):
    """What flows to the last layer's outputs: from the softmax, or from their mean and variance over so many pairs."""

    softmax: bool
    gradient: Any
    lse: Any
    shared: Any
    """D_i[g] = Σ gradient · y over the channels c that are g modulo the groups: what the softmax takes from every
    tap."""
    mean_gradient: Any
    variance_gradient: Any
    mean: Any
    share: Any
    """1 / pairs"""


class Plan(NamedTuple):
    """Centres of a tile, or positions of the map, taps of a chunk, rows of a panel; and what begins where in shared
    memory, in elements of the arrays' type."""

    positions: int
    taps: int
    depth: int
    columns: int
    panel: int
    held: int
    sums: int
    size: int


@device
def _counts(of, plan, pairs, column):
    """Does the softmax count the pair?"""
    return pairs[column] >= 0 and (not of.excludes or pairs[2 * plan.columns + column] >= 0)


@device
def _softmax(of, plan, pairs, shared, logits, most, groups, me, threads):
    """exp(logit − the largest so far) in place of the chunk's logits. From `most` on shared memory has, of every group
    and position, that largest, the sum so far, and by what what was summed before is to be scaled."""
    zero, tile, columns = of.zero, plan.positions, plan.columns
    total = most + groups * tile
    scale = total + groups * tile
    for item in range(me, groups * tile, threads):
        group = item // tile
        i = item - group * tile
        mine = logits + group * columns
        before = shared[most + item]
        best, weights = before, zero
        for column in range(i, columns, tile):
            if _counts(of, plan, pairs, column):
                best = max(best, shared[mine + column])
        for column in range(i, columns, tile):
            alpha = zero
            if _counts(of, plan, pairs, column):
                alpha = type(zero)(math.exp(shared[mine + column] - best))
            shared[mine + column] = alpha
            weights += alpha
        factor = type(zero)(math.exp(before - best)) if best > before else type(zero)(1)
        shared[scale + item] = factor
        shared[total + item] = shared[total + item] * factor + weights
        shared[most + item] = best


@device
def _rows(of, plan, pairs, shared, first, count, rectify, to, me, threads):
    """Rows of the first layer from `first` on, 0 where there is no pair."""
    columns = plan.columns
    for item in range(me, count * columns, threads):
        row = item // columns
        column = item - row * columns
        row += first
        image, centre, source = pairs[column], pairs[columns + column], pairs[2 * columns + column]
        z = of.zero
        if image >= 0:
            if source >= 0:
                z = of.map[image, row, source]
            if of.factored:
                z *= of.factor[image, row, centre]
            z += of.offset[image, row, centre]
            if rectify:
                z = max(z, of.zero)
        shared[to + item] = z


@device
def _forward(of, plan, pairs, shared, me, threads):
    """From rows to the last layer's outputs. Begins and ends with a barrier."""
    widths, columns = of.widths, plan.columns
    cuda.syncthreads()
    if widths.layers == 0:
        _rows(of, plan, pairs, shared, 0, widths.sizes[0], False, plan.held, me, threads)
        cuda.syncthreads()
    for l in range(widths.layers):  # noqa: E741
        inputs, outputs, begin = widths.sizes[l], widths.sizes[l + 1], widths.begins[l]
        most = inputs if l > 0 else plan.depth
        rows = plan.held + widths.rows[l - 1] * columns if l > 0 else plan.panel
        for first in range(0, inputs, most):
            count = min(most, inputs - first)
            if l == 0:
                _rows(of, plan, pairs, shared, first, count, of.rectified, rows, me, threads)
                cuda.syncthreads()
            product(
                of.parameters, begin + first, inputs, 1, begin + inputs * outputs if first == 0 else -1, 1,
                shared, rows, count, columns, plan.held + widths.rows[l] * columns, outputs,
                first > 0, first + count == inputs and l + 1 < widths.layers, False, of.zero, me, threads,
            )  # fmt: skip
            cuda.syncthreads()


@device
def _last(of, plan):
    """Where the last layer's outputs are; without a layer, the rows."""
    return plan.held + of.widths.rows[max(of.widths.layers - 1, 0)] * plan.columns


@device
def _backward(of, plan, shared, partial, at, wanted, me, threads):
    """From what flows to the last layer's outputs, which is in their place, to what flows to those of the first; and,
    if `wanted`, to the parameters of all layers between. Begins after a barrier and ends with one."""
    widths, columns = of.widths, plan.columns
    for l in range(widths.layers - 1, 0, -1):  # noqa: E741
        inputs, outputs, begin = widths.sizes[l], widths.sizes[l + 1], widths.begins[l]
        gradient, rows = plan.held + widths.rows[l] * columns, plan.held + widths.rows[l - 1] * columns
        if wanted:
            add_gradients(
                shared, gradient, outputs, rows, 0, inputs, inputs, columns, partial, at + begin, of.zero, me, threads
            )
            cuda.syncthreads()
        product(
            of.parameters, begin, 1, inputs, -1, 0, shared, gradient, outputs, columns, rows, inputs,
            False, False, True, of.zero, me, threads,
        )  # fmt: skip
        cuda.syncthreads()


@device
def _backward_rows(of, plan, pairs, shared, partial, at, wanted, rows_wanted, first, count, me, threads):
    """From there to a panel of rows, and to the first layer's parameters; where what flows to the rows is. Ends with a
    barrier."""
    widths, columns = of.widths, plan.columns
    if widths.layers == 0:
        return plan.held + first * columns
    inputs, outputs = widths.sizes[0], widths.sizes[1]
    _rows(of, plan, pairs, shared, first, count, of.rectified, plan.panel, me, threads)
    cuda.syncthreads()
    if wanted:
        add_gradients(
            shared, plan.held, outputs, plan.panel, first, count, inputs, columns, partial, at, of.zero, me, threads
        )
        cuda.syncthreads()
    if rows_wanted:
        product(
            of.parameters, first, 1, inputs, -1, 0, shared, plan.held, outputs, columns, plan.panel, count,
            False, False, of.rectified, of.zero, me, threads,
        )  # fmt: skip
        cuda.syncthreads()
    return plan.panel


@kernel
def _attention(of, y, lse, plan, at):
    """y and the logarithms of the softmax's denominators, of a tile of centres."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.map.dtype)
    me, threads = cuda.threadIdx.x, cuda.blockDim.x
    zero, tile, columns = of.zero, plan.positions, plan.columns
    k, v, g, p = at.rows.shape[0], of.beta.shape[1], lse.shape[1], of.offset.shape[2]
    centres = of.offset.shape[0] * p
    begin = cuda.blockIdx.x * tile
    logits, sums = _last(of, plan), plan.sums
    most = sums + v * tile
    total = most + g * tile
    scale = total + g * tile

    for item in range(me, v * tile, threads):
        shared[sums + item] = zero
    for item in range(me, g * tile, threads):
        shared[most + item] = type(zero)(-math.inf)
        shared[total + item] = zero
    for tap in range(0, k, plan.taps):
        cuda.syncthreads()
        pair_centres(at, begin, centres, p, tile, tap, columns, pairs, me, threads)
        _forward(of, plan, pairs, shared, me, threads)
        _softmax(of, plan, pairs, shared, logits, most, g, me, threads)
        cuda.syncthreads()
        for item in range(me, v * tile, threads):
            c = item // tile
            i = item - c * tile
            group = c % g
            weighted = shared[sums + item] * shared[scale + group * tile + i]
            for column in range(i, columns, tile):
                image, source = pairs[column], pairs[2 * columns + column]
                if image >= 0 and source >= 0:
                    weighted += shared[logits + group * columns + column] * of.beta[image, c, source]
            shared[sums + item] = weighted
    cuda.syncthreads()
    for item in range(me, (v + g) * tile, threads):
        c = item // tile
        i = item - c * tile
        if begin + i < centres:
            image = (begin + i) // p
            centre = begin + i - image * p
            group = c % g if c < v else c - v
            weights = shared[total + group * tile + i]
            if c < v:
                y[image, c, centre] = shared[sums + item] / weights if weights > zero else zero
            elif weights > zero:
                lse[image, group, centre] = shared[most + group * tile + i] + type(zero)(math.log(weights))
            else:
                lse[image, group, centre] = zero


@kernel
def _statistics(of, partial, plan, at):
    """Moments of the last layer's outputs over the tiles of a worker."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.map.dtype)
    me, threads = cuda.threadIdx.x, cuda.blockDim.x
    rows, p = of.widths.sizes[of.widths.layers], of.offset.shape[2]
    centres, tile, columns = of.offset.shape[0] * p, plan.positions, plan.columns
    for item in range(me, plan.size - plan.sums, threads):
        shared[plan.sums + item] = of.zero
    for begin in range(cuda.blockIdx.x * tile, centres, cuda.gridDim.x * tile):
        for tap in range(0, at.rows.shape[0], plan.taps):
            cuda.syncthreads()
            pair_centres(at, begin, centres, p, tile, tap, columns, pairs, me, threads)
            _forward(of, plan, pairs, shared, me, threads)
            observe(shared, _last(of, plan), rows, columns, pairs, plan.sums, of.zero, me, threads)
    cuda.syncthreads()
    write_moments(shared, plan.sums, rows, partial, 3 * cuda.blockIdx.x * rows, me, threads)


@kernel
def _shared_gradient(gradient, y, to, zero):
    """What the softmax takes from every tap, `Head.shared`."""
    n, g, p = to.shape
    item = cuda.grid(1)
    if item >= n * g * p:
        return
    rest = item // p
    image = rest // g
    centre, group = item - rest * p, rest - image * g
    total = zero
    for c in range(group, y.shape[1], g):
        total += gradient[image, c, centre] * y[image, c, centre]
    to[image, group, centre] = total


@device
def _values(of, head, plan, pairs, shared, me, threads):
    """Alpha in the place of the logits, if they are of a softmax."""
    if head.softmax:
        columns = plan.columns
        for item in range(me, head.lse.shape[1] * columns, threads):
            group = item // columns
            column = item - group * columns
            alpha, place = of.zero, _last(of, plan) + item
            if _counts(of, plan, pairs, column):
                lse = head.lse[pairs[column], group, pairs[columns + column]]
                alpha = type(of.zero)(math.exp(shared[place] - lse))
            shared[place] = alpha


@device
def _flows(of, head, plan, pairs, shared, me, threads):
    """What flows to the last layer's outputs, in their place, or in that of alpha."""
    columns = plan.columns
    for item in range(me, of.widths.sizes[of.widths.layers] * columns, threads):
        f = item // columns
        column = item - f * columns
        image, centre, source = pairs[column], pairs[columns + column], pairs[2 * columns + column]
        place = _last(of, plan) + item
        flow = of.zero
        if head.softmax:
            if _counts(of, plan, pairs, column):
                flow -= head.shared[image, f, centre]
                if source >= 0:
                    for c in range(f, of.beta.shape[1], head.lse.shape[1]):
                        flow += head.gradient[image, c, centre] * of.beta[image, c, source]
                flow *= shared[place]
        elif image >= 0:
            slope = head.variance_gradient[f] + head.variance_gradient[f]
            flow = head.share * (head.mean_gradient[f] + slope * (shared[place] - head.mean[f]))
        shared[place] = flow


@kernel
def _centres_backward(of, head, offset_gradient, factor_gradient, partial, needs, plan, at):
    """What flows to offset, factor and parameters, through all taps of the centres of a worker's tiles."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.map.dtype)
    me, threads = cuda.threadIdx.x, cuda.blockDim.x
    e, p, size = of.map.shape[1], of.offset.shape[2], of.parameters.shape[0]
    centres, tile, columns = of.offset.shape[0] * p, plan.positions, plan.columns
    offset_needed, factor_needed, parameters_needed = needs
    rows_needed = offset_needed or factor_needed
    offset_sums, factor_sums = plan.sums, plan.sums + e * tile
    mine = cuda.blockIdx.x * size
    if parameters_needed:
        for i in range(me, size, threads):
            partial[mine + i] = of.zero
    for begin in range(cuda.blockIdx.x * tile, centres, cuda.gridDim.x * tile):
        for item in range(me, 2 * e * tile, threads):
            shared[plan.sums + item] = of.zero
        for tap in range(0, at.rows.shape[0], plan.taps):
            cuda.syncthreads()
            pair_centres(at, begin, centres, p, tile, tap, columns, pairs, me, threads)
            _forward(of, plan, pairs, shared, me, threads)
            _values(of, head, plan, pairs, shared, me, threads)
            _flows(of, head, plan, pairs, shared, me, threads)
            cuda.syncthreads()
            _backward(of, plan, shared, partial, mine, parameters_needed, me, threads)
            for first in range(0, e, plan.depth):
                count = min(plan.depth, e - first)
                rows = _backward_rows(
                    of, plan, pairs, shared, partial, mine, parameters_needed, rows_needed, first, count, me, threads
                )
                if rows_needed:
                    for item in range(me, count * tile, threads):
                        row = item // tile
                        alone, times = of.zero, of.zero
                        for column in range(item - row * tile, columns, tile):
                            flow = shared[rows + row * columns + column]
                            alone += flow
                            image, source = pairs[column], pairs[2 * columns + column]
                            if factor_needed and image >= 0 and source >= 0:
                                times += flow * of.map[image, first + row, source]
                        shared[offset_sums + first * tile + item] += alone
                        shared[factor_sums + first * tile + item] += times
                    cuda.syncthreads()
        cuda.syncthreads()
        for item in range(me, e * tile, threads):
            row = item // tile
            i = item - row * tile
            if begin + i < centres:
                image = (begin + i) // p
                centre = begin + i - image * p
                if offset_needed:
                    offset_gradient[image, row, centre] = shared[offset_sums + item]
                if factor_needed:
                    factor_gradient[image, row, centre] = shared[factor_sums + item]
        cuda.syncthreads()


@kernel
def _map_backward(of, head, map_gradient, beta_gradient, needs, plan, at):
    """What flows to the map and to β at a tile of positions, from all centres that read them."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.map.dtype)
    me, threads = cuda.threadIdx.x, cuda.blockDim.x
    e, area, g = of.map.shape[1], of.map.shape[2], head.lse.shape[1]
    positions, tile, columns = of.map.shape[0] * area, plan.positions, plan.columns
    map_needed, beta_needed = needs
    v = of.beta.shape[1] if beta_needed else 0
    begin = cuda.blockIdx.x * tile
    exists = me < tile and begin + me < positions
    image = (begin + me) // area if exists else -1
    source = begin + me - image * area if exists else 0
    reader = first_reader(at, source, 0)
    beta_sums = plan.sums + e * tile

    for item in range(me, (e + v) * tile, threads):
        shared[plan.sums + item] = of.zero
    while True:
        cuda.syncthreads()
        reader = pair_readers(at, reader, image, source, tile, columns, pairs, me)
        cuda.syncthreads()
        if not any_image(pairs, tile):
            break
        _forward(of, plan, pairs, shared, me, threads)
        _values(of, head, plan, pairs, shared, me, threads)
        cuda.syncthreads()
        for item in range(me, v * tile, threads):
            c = item // tile
            alpha = _last(of, plan) + c % g * columns
            total = of.zero
            for column in range(item - c * tile, columns, tile):
                if pairs[column] >= 0:
                    total += shared[alpha + column] * head.gradient[pairs[column], c, pairs[columns + column]]
            shared[beta_sums + item] += total
        cuda.syncthreads()
        if map_needed:
            _flows(of, head, plan, pairs, shared, me, threads)
            cuda.syncthreads()
            _backward(of, plan, shared, of.parameters, 0, False, me, threads)
            for first in range(0, e, plan.depth):
                count = min(plan.depth, e - first)
                rows = _backward_rows(of, plan, pairs, shared, of.parameters, 0, False, True, first, count, me, threads)
                for item in range(me, count * tile, threads):
                    row = item // tile
                    total = of.zero
                    for column in range(item - row * tile, columns, tile):
                        if pairs[column] >= 0:
                            flow = shared[rows + row * columns + column]
                            if of.factored:
                                flow *= of.factor[pairs[column], first + row, pairs[columns + column]]
                            total += flow
                    shared[plan.sums + first * tile + item] += total
                cuda.syncthreads()
    for item in range(me, (e + v) * tile, threads):
        c = item // tile
        i = item - c * tile
        if begin + i < positions:
            image = (begin + i) // area
            source = begin + i - image * area
            if c >= e:
                beta_gradient[image, c - e, source] = shared[plan.sums + item]
            elif map_needed:
                map_gradient[image, c, source] = shared[plan.sums + item]


# On the host.


def _layout(positions: int, taps: int, depth: int, widths: Widths, itemsize: int, sums: int, others: int) -> Plan:
    """`sums` of each position, and so many others."""
    columns = positions * taps
    panel = first_real(4 * columns, itemsize)
    held = panel + depth * columns
    first = held + widths.held * columns
    return Plan(positions, taps, depth, columns, panel, held, first, first + sums * positions + others)


def _plan(of: Pairwise, k: int, sums: int, others: int) -> Plan:
    """As many columns as fit shared memory, with as many positions as may be among equals, and chunks of as equal a
    size as may be; ValueError if nothing fits."""
    best, itemsize = None, of.zero.itemsize
    depth = min(of.widths.inputs, mapping.MOST_ROWS)
    for positions in (32, 16, 8, 4):
        if positions > THREADS:
            continue
        for chunks in range(ceil_div(k, max(mapping.MOST_COLUMNS // positions, 1)), k + 1):
            plan = _layout(positions, ceil_div(k, chunks), depth, of.widths, itemsize, sums, others)
            if plan.size * itemsize <= mapping.SHARED_BYTES:
                best = plan if best is None or plan.columns > best.columns else best
                break
    if best is None:
        least = _layout(4, 1, depth, of.widths, itemsize, sums, others).size * itemsize
        raise ValueError(
            f"a pairwise attention needs {least} bytes of shared memory; expected at most {mapping.SHARED_BYTES}"
        )
    return best


def _pairwise(offset: Any, factor: Any, map_: Any, beta: Any, parameters: Any, widths: Any, rectified: bool,
              lookups: Any) -> tuple[Pairwise, Tables]:  # fmt: skip
    map_flat = flat(map_)
    of = Pairwise(
        offset,
        offset if factor is None else factor,
        map_flat,
        map_flat if beta is None else flat(beta),
        parameters,
        widths_of(widths),
        zero_of(map_),
        factor is not None,
        bool(rectified),
        bool(lookups.excludes),
    )
    return of, tables_of(lookups, map_)


def _start_backward(of, at, head, offset, factor, map_, beta, parameters, lookups):
    """Kernels of what is needed; the outputs that are not None."""
    n, e, area = of.map.shape
    k, v = at.rows.shape[0], of.beta.shape[1]
    needs = offset is not None, factor is not None, parameters is not None and of.widths.layers > 0
    if any(needs):
        plan = _plan(of, k, 2 * e, 0)
        tiles = ceil_div(n * of.offset.shape[2], plan.positions)
        size = of.widths.parameters
        workers = workers_of(size, tiles)
        partial = lookups.empty(workers * size) if needs[2] else of.parameters
        start(
            _centres_backward, workers if needs[2] else tiles, plan.size, lookups, of.zero,
            of, head, *(of.offset if x is None else x for x in (offset, factor)), partial, needs, plan, at,
        )  # fmt: skip
        if needs[2]:
            add_up(partial, workers, parameters, lookups)
    needs = map_ is not None, beta is not None
    if any(needs):
        plan = _plan(of, k, e + v * needs[1], 0)
        outputs = (of.map if x is None else flat(x) for x in (map_, beta))
        blocks = ceil_div(n * area, plan.positions)
        start(_map_backward, blocks, plan.size, lookups, of.zero, of, head, *outputs, needs, plan, at)


def pairwise_attention(offset, factor, map_, beta, parameters, y, lse, widths, rectified, lookups):
    of, at = _pairwise(offset, factor, map_, beta, parameters, widths, rectified, lookups)
    plan = _plan(of, at.rows.shape[0], of.beta.shape[1] + 3 * lse.shape[1], 0)
    blocks = ceil_div(lse.shape[0] * lse.shape[2], plan.positions)
    start(_attention, blocks, plan.size, lookups, of.zero, of, y, lse, plan, at)


def pairwise_attention_backward(
    gradient, y, lse, offset, factor, map_, beta, parameters,
    offset_gradient, factor_gradient, map_gradient, beta_gradient, parameters_gradient, widths, rectified, lookups,
):  # fmt: skip
    of, at = _pairwise(offset, factor, map_, beta, parameters, widths, rectified, lookups)
    shared = lookups.empty(*lse.shape)
    start(_shared_gradient, ceil_div(shared.size, THREADS), 0, lookups, of.zero, gradient, y, shared, of.zero)
    head = Head(True, gradient, lse, shared, parameters, parameters, parameters, of.zero)
    _start_backward(
        of, at, head, offset_gradient, factor_gradient, map_gradient, beta_gradient, parameters_gradient, lookups
    )


def pairwise_statistics(offset, factor, map_, parameters, mean, variance, widths, rectified, lookups):
    of, at = _pairwise(offset, factor, map_, None, parameters, widths, rectified, lookups)
    rows = of.widths.last
    plan = _plan(of, at.rows.shape[0], 0, 3 * rows * max(1, THREADS // rows))
    workers = workers_of(3 * rows, ceil_div(offset.shape[0] * offset.shape[2], plan.positions))
    partial = lookups.empty(workers * 3 * rows)
    start(_statistics, workers, plan.size, lookups, of.zero, of, partial, plan, at)
    merge_moments(partial, workers, rows, mean, variance, lookups)


def pairwise_statistics_backward(
    mean_gradient, variance_gradient, mean, offset, factor, map_, parameters,
    offset_gradient, factor_gradient, map_gradient, parameters_gradient, widths, rectified, lookups,
):  # fmt: skip
    of, at = _pairwise(offset, factor, map_, None, parameters, widths, rectified, lookups)
    share = type(of.zero)(1 / (offset.shape[0] * offset.shape[2] * at.rows.shape[0]))
    head = Head(False, offset, offset, offset, mean_gradient, variance_gradient, mean, share)
    _start_backward(of, at, head, offset_gradient, factor_gradient, map_gradient, None, parameters_gradient, lookups)
