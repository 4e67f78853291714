"""The fused pairwise attention on a GPU, in one kernel: rows z_ij = ρ(factor_i ⊙ map_j + offset_i), the mapping to
logits, the softmax over the taps, and y_i[c] = Σ_j softmax_j[c mod g] β_j[c]. Also the statistics of the mapping's
outputs, for the batch norm after it, and the gradients. Twin of kernels_cuda/csrc/pairwise.cu, for float32 and float64.

    traffic    offset, factor, map and β are read once, except for positions that several tiles read. y is written once.
               No array has the size of the footprint. The parameters come from the caches; the backward writes their
               gradients to memory once per worker.
    forward    A block has a tile of centres of any images. It processes their taps in chunks: pairs are the columns of
               small products in shared memory. The maximum and sum of the softmax, and y, are updated after each chunk.
    backward   Pairs are computed twice more: once for the centres (offset, factor, parameters), and once for the
               positions of the map (map, β), each of which goes through the centres that read it. No atomics, and the
               same bits every time. Workers have partial sums of the parameters' gradients, which are added in order.

The two files differ where C++ has templates: `Upstream.softmax` says whether the gradient comes from the softmax or
from the statistics. Another array stands in for an array that is absent, and a flag says that it is not read or
written.
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
    lowest_of,
    start,
    workers_of,
    zero_of,
)
from kernels_numba.gpu.mapping import (
    Finish,
    Rows,
    Target,
    Weights,
    Widths,
    add_parameter_gradients,
    add_up,
    gather_moments,
    merge_moments,
    product,
    widths_of,
    write_moments,
)
from kernels_numba.gpu.pairs import Centres, Tables, any_image, first_reader, pair_centres, pair_readers, tables_of
from kernels_numba.gpu.softmax import gradient_dot_output, log_sum, softmax, weighted_mean


class Inputs(NamedTuple):
    """What the kernels read. Arrays are images × channels × centres, or positions."""

    offset: Any
    factor: Any
    map: Any
    beta: Any
    parameters: Any
    widths: Widths
    zero: Any
    """0 of the arrays' dtype."""
    lowest: Any
    """The lowest number of the arrays' dtype."""
    factored: bool
    """Whether there is a factor."""
    rectified: bool
    excludes: bool
    """Whether the softmax skips taps outside the map."""


class Upstream(NamedTuple):
    """The gradient of the last layer's outputs: from the softmax, or from their mean and variance over all pairs."""

    softmax: bool
    gradient: Any
    """The gradient of y."""
    lse: Any
    dots: Any
    """Σ gradient · y over the channels of each group, see `softmax.gradient_dot_output`."""
    mean_gradient: Any
    variance_gradient: Any
    mean: Any
    inverse_count: Any
    """1 / pairs"""


class Gradients(NamedTuple):
    """The arrays of the gradients that are computed; None if one is not needed."""

    offset: Any
    factor: Any
    map: Any
    beta: Any
    parameters: Any


class Partial(NamedTuple):
    """A worker's partial sums of the parameters' gradients: array[begin…]."""

    array: Any
    begin: int
    needed: bool


class Plan(NamedTuple):
    """The centres, or positions of the map, of a tile; the taps of a chunk; the rows of a panel; and where each array
    begins in `Block.shared`."""

    positions: int
    taps: int
    depth: int
    columns: int
    panel: int
    held: int
    sums: int
    size: int


@device
def _rows(inputs, plan, block, first, count, rectify, to):
    """Write inputs of the first layer from `first` on, 0 where there is no pair."""
    pairs, columns = block.pairs, plan.columns
    for item in range(block.thread, count * columns, block.threads):
        row = item // columns
        column = item - row * columns
        row += first
        image, centre, source = pairs[column], pairs[columns + column], pairs[2 * columns + column]
        z = inputs.zero
        if image >= 0:
            if source >= 0:
                z = inputs.map[image, row, source]
            if inputs.factored:
                z *= inputs.factor[image, row, centre]
            z += inputs.offset[image, row, centre]
            if rectify and z < inputs.zero:
                z = inputs.zero
        block.shared[to + item] = z


@device
def _forward(inputs, plan, block):
    """Compute the outputs of the last layer. Begins and ends with a barrier."""
    widths, columns = inputs.widths, plan.columns
    cuda.syncthreads()
    if widths.layers == 0:
        _rows(inputs, plan, block, 0, widths.sizes[0], False, plan.held)
        cuda.syncthreads()
    for l in range(widths.layers):  # noqa: E741
        fan_in, fan_out, begin = widths.sizes[l], widths.sizes[l + 1], widths.begins[l]
        most = fan_in if l > 0 else plan.depth
        rows = plan.held + widths.rows[l - 1] * columns if l > 0 else plan.panel
        for first in range(0, fan_in, most):
            count = min(most, fan_in - first)
            if l == 0:
                _rows(inputs, plan, block, first, count, inputs.rectified, rows)
                cuda.syncthreads()
            bias = begin + fan_in * fan_out if first == 0 else -1
            product(
                Weights(inputs.parameters, begin + first, fan_in, 1, bias, 1), Rows(rows, count, columns),
                plan.held + widths.rows[l] * columns, fan_out,
                Finish(first > 0, first + count == fan_in and l + 1 < widths.layers, False), block,
            )  # fmt: skip
            cuda.syncthreads()


@device
def _last(inputs, plan):
    """Where the last layer's outputs begin, or the rows if there is no layer."""
    return plan.held + inputs.widths.rows[max(inputs.widths.layers - 1, 0)] * plan.columns


@device
def _outputs_gradient(inputs, plan, partial, block):
    """Compute the gradients of the first layer's outputs, and of the parameters of all later layers if they are needed.

    The gradients of the last layer's outputs have replaced these outputs. A barrier must precede; ends with one.
    """
    widths, columns = inputs.widths, plan.columns
    for l in range(widths.layers - 1, 0, -1):  # noqa: E741
        fan_in, fan_out, begin = widths.sizes[l], widths.sizes[l + 1], widths.begins[l]
        rows = plan.held + widths.rows[l - 1] * columns
        gradient = Rows(plan.held + widths.rows[l] * columns, fan_out, columns)
        if partial.needed:
            target = Target(partial.array, partial.begin + begin, fan_in)
            add_parameter_gradients(gradient, Rows(rows, fan_in, columns), 0, target, block)
            cuda.syncthreads()
        weights = Weights(inputs.parameters, begin, 1, fan_in, -1, 0)
        product(weights, gradient, rows, fan_in, Finish(False, False, True), block)
        cuda.syncthreads()


@device
def _rows_gradient(inputs, plan, partial, needed, first, count, block):
    """Compute the gradients of a panel of rows if they are `needed`, and those of the first layer's parameters. Returns
    where the former are. Ends with a barrier."""
    widths, columns = inputs.widths, plan.columns
    if widths.layers == 0:
        return plan.held + first * columns
    fan_in, fan_out = widths.sizes[0], widths.sizes[1]
    gradient = Rows(plan.held, fan_out, columns)
    _rows(inputs, plan, block, first, count, inputs.rectified, plan.panel)
    cuda.syncthreads()
    if partial.needed:
        target = Target(partial.array, partial.begin, fan_in)
        add_parameter_gradients(gradient, Rows(plan.panel, count, columns), first, target, block)
        cuda.syncthreads()
    if needed:
        weights = Weights(inputs.parameters, first, 1, fan_in, -1, 0)
        product(weights, gradient, plan.panel, count, Finish(False, False, inputs.rectified), block)
        cuda.syncthreads()
    return plan.panel


@kernel
def _attention(inputs, y, lse, plan, tables):
    """y and the logarithm of the softmax's denominator, for a tile of centres."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.map.dtype)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    block = Block(pairs, shared, inputs.zero, thread, threads)
    zero, tile, columns = inputs.zero, plan.positions, plan.columns
    k, v, g, p = tables.rows.shape[0], inputs.beta.shape[1], lse.shape[1], inputs.offset.shape[2]
    centres = inputs.offset.shape[0] * p
    begin = cuda.blockIdx.x * tile
    logits, sums = _last(inputs, plan), plan.sums
    most = sums + v * tile
    total = most + g * tile
    scale = total + g * tile

    for item in range(thread, v * tile, threads):
        shared[sums + item] = zero
    for item in range(thread, g * tile, threads):
        shared[most + item] = type(zero)(-math.inf)
        shared[total + item] = zero
    for tap in range(0, k, plan.taps):
        cuda.syncthreads()
        pair_centres(tables, Centres(begin, centres, p, tile), tap, columns, inputs.excludes, block)
        _forward(inputs, plan, block)
        softmax(inputs, plan, block, logits, most, g)
        cuda.syncthreads()
        for item in range(thread, v * tile, threads):
            c = item // tile
            i = item - c * tile
            group = c % g
            weighted = shared[sums + item] * shared[scale + group * tile + i]
            for column in range(i, columns, tile):
                image, source = pairs[column], pairs[2 * columns + column]
                if image >= 0 and source >= 0:
                    weighted += shared[logits + group * columns + column] * inputs.beta[image, c, source]
            shared[sums + item] = weighted
    cuda.syncthreads()
    for item in range(thread, (v + g) * tile, threads):
        c = item // tile
        i = item - c * tile
        if begin + i < centres:
            image = (begin + i) // p
            centre = begin + i - image * p
            group = c % g if c < v else c - v
            weights, best = shared[total + group * tile + i], shared[most + group * tile + i]
            if c < v:
                y[image, c, centre] = weighted_mean(shared[sums + item], weights, best, zero)
            else:
                lse[image, group, centre] = log_sum(weights, best, zero)


@kernel
def _statistics(inputs, partial, plan, tables):
    """The moments of the last layer's outputs over the tiles of a worker."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.map.dtype)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    block = Block(pairs, shared, inputs.zero, thread, threads)
    rows, p = inputs.widths.sizes[inputs.widths.layers], inputs.offset.shape[2]
    centres, tile, columns = inputs.offset.shape[0] * p, plan.positions, plan.columns
    for item in range(thread, plan.size - plan.sums, threads):
        shared[plan.sums + item] = inputs.zero
    for begin in range(cuda.blockIdx.x * tile, centres, cuda.gridDim.x * tile):
        for tap in range(0, tables.rows.shape[0], plan.taps):
            cuda.syncthreads()
            pair_centres(tables, Centres(begin, centres, p, tile), tap, columns, False, block)
            _forward(inputs, plan, block)
            gather_moments(Rows(_last(inputs, plan), rows, columns), plan.sums, block)
    cuda.syncthreads()
    write_moments(plan.sums, rows, partial, 3 * cuda.blockIdx.x * rows, block)


@device
def _weights(inputs, upstream, plan, block):
    """Replace the logits by the weights of the softmax, if there is one."""
    pairs, shared, thread, threads = block.pairs, block.shared, block.thread, block.threads
    if upstream.softmax:
        columns = plan.columns
        for item in range(thread, upstream.lse.shape[1] * columns, threads):
            group = item // columns
            column = item - group * columns
            alpha, place = inputs.zero, _last(inputs, plan) + item
            if pairs[column] >= 0:
                lse = upstream.lse[pairs[column], group, pairs[columns + column]]
                alpha = type(inputs.zero)(math.exp(shared[place] - lse))
            shared[place] = alpha


@device
def _last_gradient(inputs, upstream, plan, block):
    """Replace the last layer's outputs, or the weights of the softmax, by the gradients of these outputs."""
    pairs, shared, columns = block.pairs, block.shared, plan.columns
    for item in range(block.thread, inputs.widths.sizes[inputs.widths.layers] * columns, block.threads):
        f = item // columns
        column = item - f * columns
        image, centre, source = pairs[column], pairs[columns + column], pairs[2 * columns + column]
        place = _last(inputs, plan) + item
        flow = inputs.zero
        if upstream.softmax:
            if image >= 0:
                flow -= upstream.dots[image, f, centre]
                if source >= 0:
                    for c in range(f, inputs.beta.shape[1], upstream.lse.shape[1]):
                        flow += upstream.gradient[image, c, centre] * inputs.beta[image, c, source]
                flow *= shared[place]
        elif image >= 0:
            slope = upstream.variance_gradient[f] + upstream.variance_gradient[f]
            flow = upstream.inverse_count * (upstream.mean_gradient[f] + slope * (shared[place] - upstream.mean[f]))
        shared[place] = flow


@device
def _clear_missing(inputs, plan, block):
    """Replace the outputs of all layers but the last by 0 where there is no pair: they may be infinite."""
    for column in range(block.thread, plan.columns, block.threads):
        if block.pairs[column] < 0:
            for row in range(inputs.widths.rows[max(inputs.widths.layers - 1, 0)]):
                block.shared[plan.held + row * plan.columns + column] = inputs.zero


@device
def _add_to_centres(inputs, plan, block, rows, first, count, factor_needed):
    """Add the gradients of a panel of rows to the sums of offset and factor."""
    pairs, shared, tile, columns = block.pairs, block.shared, plan.positions, plan.columns
    offset_sums = plan.sums + first * tile
    factor_sums = offset_sums + inputs.map.shape[1] * tile
    for item in range(block.thread, count * tile, block.threads):
        row = item // tile
        alone, times = inputs.zero, inputs.zero
        for column in range(item - row * tile, columns, tile):
            image, source = pairs[column], pairs[2 * columns + column]
            if image >= 0:
                flow = shared[rows + row * columns + column]
                alone += flow
                if factor_needed and source >= 0:
                    times += flow * inputs.map[image, first + row, source]
        shared[offset_sums + item] += alone
        shared[factor_sums + item] += times


@kernel
def _centres_backward(inputs, upstream, offset_gradient, factor_gradient, partial, needs, plan, tables):
    """The gradients of offset, factor and parameters, over all taps of the centres of a worker's tiles."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.map.dtype)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    block = Block(pairs, shared, inputs.zero, thread, threads)
    e, p, size = inputs.map.shape[1], inputs.offset.shape[2], inputs.parameters.shape[0]
    centres, tile = inputs.offset.shape[0] * p, plan.positions
    offset_needed, factor_needed, parameters_needed = needs
    rows_needed = offset_needed or factor_needed
    offset_sums, factor_sums = plan.sums, plan.sums + e * tile
    sums = Partial(partial, cuda.blockIdx.x * size, parameters_needed)
    if parameters_needed:
        for i in range(thread, size, threads):
            partial[sums.begin + i] = inputs.zero
    for begin in range(cuda.blockIdx.x * tile, centres, cuda.gridDim.x * tile):
        for item in range(thread, 2 * e * tile, threads):
            shared[plan.sums + item] = inputs.zero
        for tap in range(0, tables.rows.shape[0], plan.taps):
            cuda.syncthreads()
            excludes = inputs.excludes and upstream.softmax
            pair_centres(tables, Centres(begin, centres, p, tile), tap, plan.columns, excludes, block)
            _forward(inputs, plan, block)
            _weights(inputs, upstream, plan, block)
            _last_gradient(inputs, upstream, plan, block)
            _clear_missing(inputs, plan, block)
            cuda.syncthreads()
            _outputs_gradient(inputs, plan, sums, block)
            for first in range(0, e, plan.depth):
                count = min(plan.depth, e - first)
                rows = _rows_gradient(inputs, plan, sums, rows_needed, first, count, block)
                if rows_needed:
                    _add_to_centres(inputs, plan, block, rows, first, count, factor_needed)
                    cuda.syncthreads()
        cuda.syncthreads()
        for item in range(thread, e * tile, threads):
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


@device
def _add_to_beta(inputs, upstream, plan, block, channels, sums):
    """Add weight · gradient of each pair to the sums of some channels of β."""
    pairs, shared, tile, columns = block.pairs, block.shared, plan.positions, plan.columns
    for item in range(block.thread, channels * tile, block.threads):
        c = item // tile
        alpha = _last(inputs, plan) + c % upstream.lse.shape[1] * columns
        total = inputs.zero
        for column in range(item - c * tile, columns, tile):
            if pairs[column] >= 0:
                total += shared[alpha + column] * upstream.gradient[pairs[column], c, pairs[columns + column]]
        shared[sums + item] += total


@device
def _add_to_map(inputs, plan, block, rows, first, count):
    """Add the gradients of a panel of rows to the sums of the map."""
    pairs, shared, tile, columns = block.pairs, block.shared, plan.positions, plan.columns
    for item in range(block.thread, count * tile, block.threads):
        row = item // tile
        total = inputs.zero
        for column in range(item - row * tile, columns, tile):
            if pairs[column] >= 0:
                flow = shared[rows + row * columns + column]
                if inputs.factored:
                    flow *= inputs.factor[pairs[column], first + row, pairs[columns + column]]
                total += flow
        shared[plan.sums + first * tile + item] += total


@kernel
def _map_backward(inputs, upstream, map_gradient, beta_gradient, needs, plan, tables):
    """The gradients of the map and of β at a tile of positions, from all centres that read them."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.map.dtype)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    block = Block(pairs, shared, inputs.zero, thread, threads)
    e, area = inputs.map.shape[1], inputs.map.shape[2]
    positions, tile = inputs.map.shape[0] * area, plan.positions
    map_needed, beta_needed = needs
    v = inputs.beta.shape[1] if beta_needed else 0
    begin = cuda.blockIdx.x * tile
    exists = thread < tile and begin + thread < positions
    image = (begin + thread) // area if exists else -1
    source = begin + thread - image * area if exists else 0
    reader = first_reader(tables, source, 0)

    for item in range(thread, (e + v) * tile, threads):
        shared[plan.sums + item] = inputs.zero
    while True:
        cuda.syncthreads()
        reader = pair_readers(tables, reader, image, source, tile, plan.columns, block)
        cuda.syncthreads()
        if not any_image(pairs, tile):
            break
        _forward(inputs, plan, block)
        _weights(inputs, upstream, plan, block)
        cuda.syncthreads()
        _add_to_beta(inputs, upstream, plan, block, v, plan.sums + e * tile)
        cuda.syncthreads()
        if map_needed:
            _last_gradient(inputs, upstream, plan, block)
            cuda.syncthreads()
            unneeded = Partial(inputs.parameters, 0, False)
            _outputs_gradient(inputs, plan, unneeded, block)
            for first in range(0, e, plan.depth):
                count = min(plan.depth, e - first)
                rows = _rows_gradient(inputs, plan, unneeded, True, first, count, block)
                _add_to_map(inputs, plan, block, rows, first, count)
                cuda.syncthreads()
    for item in range(thread, (e + v) * tile, threads):
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
    """The plan with `sums` elements for each position, and `others` elements."""
    columns = positions * taps
    panel = first_real(4 * columns, itemsize)
    held = panel + depth * columns
    first = held + widths.held * columns
    return Plan(positions, taps, depth, columns, panel, held, first, first + sums * positions + others)


def _plan(inputs: Inputs, k: int, sums: int, others: int) -> Plan:
    """The plan with the most columns that fit shared memory, among these with the most positions, in chunks that are as
    equal as possible. ValueError if even the smallest does not fit."""
    best, itemsize = None, inputs.zero.itemsize
    depth = min(inputs.widths.inputs, mapping.MOST_ROWS)
    for positions in (32, 16, 8, 4):
        if positions > THREADS:
            continue
        for chunks in range(ceil_div(k, max(mapping.MOST_COLUMNS // positions, 1)), k + 1):
            plan = _layout(positions, ceil_div(k, chunks), depth, inputs.widths, itemsize, sums, others)
            if plan.size * itemsize <= launch.SHARED_BYTES:
                best = plan if best is None or plan.columns > best.columns else best
                break
    if best is None:
        least = _layout(4, 1, depth, inputs.widths, itemsize, sums, others).size * itemsize
        raise ValueError(
            f"a pairwise attention needs {least} bytes of shared memory; expected at most {launch.SHARED_BYTES}"
        )
    return best


def _inputs_of(offset: Any, factor: Any, map_: Any, beta: Any, parameters: Any, widths: Any, rectified: bool,
              work: Any) -> tuple[Inputs, Tables]:  # fmt: skip
    map_flat = flat(map_)
    inputs = Inputs(
        offset,
        offset if factor is None else factor,
        map_flat,
        map_flat if beta is None else flat(beta),
        parameters,
        widths_of(widths),
        zero_of(map_),
        lowest_of(map_),
        factor is not None,
        bool(rectified),
        bool(work.excludes),
    )
    return inputs, tables_of(work, map_)


def _start_backward(inputs: Inputs, tables: Tables, upstream: Upstream, gradients: Gradients, work: Any) -> None:
    """Compute the gradients that are needed."""
    n, e, area = inputs.map.shape
    k, v = tables.rows.shape[0], inputs.beta.shape[1]
    offset, factor, map_, beta, parameters = gradients
    needs = offset is not None, factor is not None, parameters is not None and inputs.widths.layers > 0
    if any(needs):
        plan = _plan(inputs, k, 2 * e, 0)
        tiles = ceil_div(n * inputs.offset.shape[2], plan.positions)
        size = inputs.widths.parameters
        workers = workers_of(size, tiles)
        partial = work.empty(workers * size) if needs[2] else inputs.parameters
        outputs = (inputs.offset if x is None else x for x in (offset, factor))
        start(
            _centres_backward, workers if needs[2] else tiles, plan.size, work, inputs.zero,
            inputs, upstream, *outputs, partial, needs, plan, tables,
        )  # fmt: skip
        if needs[2]:
            add_up(partial, workers, parameters, work)
    needs = map_ is not None, beta is not None
    if any(needs):
        plan = _plan(inputs, k, e + v * needs[1], 0)
        outputs = (inputs.map if x is None else flat(x) for x in (map_, beta))
        blocks = ceil_div(n * area, plan.positions)
        start(_map_backward, blocks, plan.size, work, inputs.zero, inputs, upstream, *outputs, needs, plan, tables)


def pairwise_attention(offset, factor, map_, beta, parameters, y, lse, widths, rectified, work):
    inputs, tables = _inputs_of(offset, factor, map_, beta, parameters, widths, rectified, work)
    plan = _plan(inputs, tables.rows.shape[0], inputs.beta.shape[1] + 3 * lse.shape[1], 0)
    blocks = ceil_div(lse.shape[0] * lse.shape[2], plan.positions)
    start(_attention, blocks, plan.size, work, inputs.zero, inputs, y, lse, plan, tables)


def pairwise_attention_backward(
    gradient, y, lse, offset, factor, map_, beta, parameters,
    offset_gradient, factor_gradient, map_gradient, beta_gradient, parameters_gradient, widths, rectified, work,
):  # fmt: skip
    inputs, tables = _inputs_of(offset, factor, map_, beta, parameters, widths, rectified, work)
    dots = work.empty(*lse.shape)
    gradient_dot_output(gradient, y, dots, work)
    upstream = Upstream(True, gradient, lse, dots, parameters, parameters, parameters, inputs.zero)
    gradients = Gradients(offset_gradient, factor_gradient, map_gradient, beta_gradient, parameters_gradient)
    _start_backward(inputs, tables, upstream, gradients, work)


def pairwise_statistics(offset, factor, map_, parameters, mean, variance, widths, rectified, work):
    inputs, tables = _inputs_of(offset, factor, map_, None, parameters, widths, rectified, work)
    rows = inputs.widths.last
    plan = _plan(inputs, tables.rows.shape[0], 0, 3 * rows * max(1, THREADS // rows))
    workers = workers_of(3 * rows, ceil_div(offset.shape[0] * offset.shape[2], plan.positions))
    partial = work.empty(workers * 3 * rows)
    start(_statistics, workers, plan.size, work, inputs.zero, inputs, partial, plan, tables)
    merge_moments(partial, workers, rows, mean, variance, work)


def pairwise_statistics_backward(
    mean_gradient, variance_gradient, mean, offset, factor, map_, parameters,
    offset_gradient, factor_gradient, map_gradient, parameters_gradient, widths, rectified, work,
):  # fmt: skip
    inputs, tables = _inputs_of(offset, factor, map_, None, parameters, widths, rectified, work)
    inverse_count = type(inputs.zero)(1 / (offset.shape[0] * offset.shape[2] * tables.rows.shape[0]))
    upstream = Upstream(False, offset, offset, offset, mean_gradient, variance_gradient, mean, inverse_count)
    gradients = Gradients(offset_gradient, factor_gradient, map_gradient, None, parameters_gradient)
    _start_backward(inputs, tables, upstream, gradients, work)
