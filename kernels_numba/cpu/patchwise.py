"""CPU kernels of the fused patchwise attentions: relation, affine map, ReLU, linear layers and aggregation.

Arrays are contiguous: maps are (n, -, h, w); `centres` are (n, r, p), or a map for the clique product. mapping.py
describes the parameters and widths.

    z_i    = ReLU(scale · δ(φ_i, ψ_R(i)) + shift)      k rows, k·k rows, or r·k rows behind the r rows of the centres
    α_i    = W_L · ReLU(… ReLU(W_1 · z_i + b_1) …) + b_L
    y_i[c] = Σ_j α_i[c mod g, j] · β_j[c]

    tiles      A thread takes a few lines of centres at a time, or a few small images; the centres of a tile are the
               columns of all products. The relation reads ψ, and the aggregation reads β, from frames.
    chunks     z is never stored: a chunk of its rows is computed, multiplied by its columns of W_1 and overwritten. A
               chunk is the taps of a few channels of ψ (concatenation), or the products of ψ with one tap of φ. The
               star product is a clique product whose φ has a single tap, the centre. α is computed group by group.
    traffic    Maps and outputs are read and written once, except for the borders that tiles share. W_1 is read once per
               tile, from the third-level cache.
    backward   Everything is computed again. The gradients of maps are summed in the frames of each tile, and a second
               loop folds the frames into the maps. Each thread has its own sums of the parameters' gradients, so no
               lock is needed.
    training   The statistics of the second layer need W_1 · z, which has a value per centre and hidden channel. So
               `patchwise_hidden` writes it, `patchwise_weighted` reads the inputs of the last layer, and torch computes
               what is between them. There are no such kernels for a GPU, where the layers run again for each norm.

Times in SAN10's second stage (56 × 56, 7 × 7 taps, concatenation, one thread): tiles of 112 centres take 0.67 µs a
centre, because their chunks stay in the first-level cache; tiles of 224 take 0.58 µs, because they share fewer borders;
tiles of 392 take 0.56 µs. A tile of 224 takes 130 µs: products 55, the sums of the aggregation 38, chunks and their
ReLU 17, frames 16. In training, W_1 takes part in 3 products, forward and backward. It would take part in 8 if each
norm and the attention ran the layers again.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
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
    fold,
    portion,
    read,
    row_step,
    write,
)
from kernels_numba.cpu.mapping import (
    gather_moments,
    layers_gradient,
    mean_and_variance,
    moments_gradient,
    outer_product,
    product,
    rectify_gradient,
    row_sums,
    transpose,
)
from kernels_numba.cpu.simd import (
    add,
    broadcast,
    choose_first,
    fma,
    keep_first,
    lanes,
    load,
    maximum,
    mul,
    store,
    total,
    where_positive,
    zeros,
)

COLUMNS = 256
"""The most centres in a tile; a tile of one line may have more."""
CHUNK = 64
"""The most rows in a chunk of the concatenation; a chunk of one channel may have more."""
HALO = 16
"""The cost of a tile besides its columns, in columns."""


class View(NamedTuple):
    """How tiles read a map of h × w: the lookups of a Frame, and the places of frames and lines in memory.

    The frames of a tile's images follow each other in the memory of a channel.
    """

    rows: np.ndarray
    columns: np.ndarray
    begin: int
    end: int
    taps: np.ndarray
    order: np.ndarray
    lines: np.ndarray
    """The first element of each line of centres in the frames of a channel."""
    apart: int
    """The distance between the frames of two images."""
    step: int
    """The distance between the frames of two channels, with room for a vector that begins at the last column."""
    h: int
    w: int


class Plan(NamedTuple):
    """Sizes, and the places of arrays in a thread's memory, where rows of columns are `step` apart."""

    n: int
    r: int
    v: int
    groups: int
    taps: int
    threads: int
    items: int
    tiles: int
    """Tiles of an image."""
    images: int
    """Images in a tile."""
    width: int
    """Centres in a line."""
    columns: int
    """Centres in a tile."""
    step: int
    widths: np.ndarray
    kept: int
    """The number of layers whose outputs are kept; the next layer is computed group by group."""
    lead: int
    """Rows of centres before those of the relation."""
    rows: int
    """Rows of the relation."""
    chunks: int
    starts: np.ndarray
    """The beginnings of the rows of a chunk, counted from `source` on."""
    lines: np.ndarray
    """The beginnings of the lines of centres in a row."""
    floor: float
    """The least value of a row after its affine map."""
    memory: int
    """Elements of a thread's memory."""
    centres: int
    frames: int
    source: int
    chunk: int
    hidden: int
    top: int
    """The outputs of the last layer whose outputs are kept."""
    alpha: int
    chunk_gradient: int
    hidden_gradient: int
    top_gradient: int
    y_gradient: int


class Arrays(NamedTuple):
    """The inputs, flat; or the memory for their gradients: frames of all tiles, and the sums of each thread.

    Frames of a gradient that is not needed are empty.
    """

    centres: np.ndarray
    map_: np.ndarray
    beta: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    parameters: np.ndarray


class Views(NamedTuple):
    """How tiles read ψ and β, how they read the centres, and how they read arrays with one value per centre."""

    map: View
    centres: View
    own: View


class Upstream(NamedTuple):
    """The gradients of the mean and variance, and the mean."""

    mean_gradient: np.ndarray
    variance_gradient: np.ndarray
    mean: np.ndarray


class Tile(NamedTuple):
    """The tile number `index` of `images` images from `image` on: its lines and columns of centres."""

    item: int
    index: int
    image: int
    images: int
    lines: int
    columns: int


@part
def _begin(memory, plan, own, item, first):
    """The item's tile.

    Before the first tile, and before a tile with fewer columns, memory is cleared: behind the last column, gradients
    must be 0, and their factors must not be NaN.
    """
    index, image = item % plan.tiles, item // plan.tiles * plan.images
    images = min(plan.images, plan.n - image)
    lines = images * min(own.rows.shape[1], own.h - index * own.rows.shape[1])
    tile = Tile(item, index, image, images, lines, lines * plan.width)
    if item == first or tile.columns < plan.columns:
        clear(memory, 0, memory.shape[0])
    return tile


# The relation: its rows chunk by chunk, and its gradients.


@part
def _frames(memory, at, map_, channels, chosen, view, tile):
    """Fill the frames of the chosen channels."""
    for channel in chosen:
        for i in range(tile.images):
            start = ((tile.image + i) * channels + channel) * view.h * view.w
            to, rows = at + i * view.apart, view.rows[tile.index]
            fill(memory, to, map_, start, view.w, rows, view.columns, view.begin, view.end)
        at += view.step


@part
def _prepare(memory, inputs, plan, views, tile):
    """Fill the frames that all chunks read."""
    _frames(memory, plan.centres, inputs.centres, plan.r, range(plan.r), views.centres, tile)
    if plan.lead == 0:
        _frames(memory, plan.frames, inputs.map_, plan.r, range(plan.r), views.map, tile)


@part
def _relate(memory, inputs, plan, views, tile, chunk):
    """Compute the chunk's rows; return the number of the first row, and the number of rows."""
    first = chunk * plan.starts.shape[0]
    rows = min(plan.starts.shape[0], plan.rows - first)
    if plan.lead:
        channel = first // plan.taps
        _frames(memory, plan.frames, inputs.map_, plan.r, range(channel, channel + rows // plan.taps), views.map, tile)
    else:
        _multiply(memory, plan, views, tile, views.centres.taps[chunk])
    _rectify(memory, inputs, plan, tile, first, rows)
    return first, rows


@part
def _multiply(memory, plan, views, tile, tap):
    """Σ_c φ[c] at the tap · ψ[c] at each tap of ψ."""
    view, centres = views.map, views.centres
    whole = lanes(memory)
    for q in range(tile.lines):
        for x in range(0, plan.width, whole):
            correlate_block(
                memory, plan.centres + tap + centres.lines[q] + x, centres.step, whole,
                memory, plan.frames + view.lines[q] + x, view.step, view.taps, plan.r,
                memory, plan.source + plan.lines[q] + x, plan.step, whole,
            )  # fmt: skip


@part
def _rectify(memory, inputs, plan, tile, first, rows):
    """max(scale · δ + shift, floor)."""
    floor = broadcast(memory, plan.floor)
    for row in range(rows):
        scale, shift = broadcast(memory, inputs.scale[first + row]), broadcast(memory, inputs.shift[first + row])
        source, to = plan.source + plan.starts[row], plan.chunk + row * plan.step
        for q in range(tile.lines):
            for x in range(0, plan.width, lanes(memory)):
                value = fma(scale, load(memory, source + plan.lines[q] + x), shift)
                store(memory, to + q * plan.width + x, maximum(floor, value))


@part
def _rectify_gradient(memory, inputs, gradients, plan, tile, first, rows):
    """Replace the gradients of the rows by those of δ, and add to the gradients of scale and shift."""
    for row in range(rows):
        scale, at = broadcast(memory, inputs.scale[first + row]), row * plan.step
        scale_gradient = shift_gradient = zeros(memory)
        for q in range(tile.lines):
            for x in range(0, plan.width, lanes(memory)):
                e, room = at + q * plan.width + x, plan.width - x
                before = load(memory, plan.chunk_gradient + e)
                masked = where_positive(load(memory, plan.chunk + e), before, zeros(memory))
                value = keep_first(load(memory, plan.source + plan.starts[row] + plan.lines[q] + x), room)
                scale_gradient = fma(keep_first(masked, room), value, scale_gradient)
                shift_gradient = add(shift_gradient, keep_first(masked, room))
                store(memory, plan.chunk_gradient + e, choose_first(mul(scale, masked), before, room))
        gradients.scale[first + row] += total(scale_gradient)
        gradients.shift[first + row] += total(shift_gradient)


@part
def _relate_gradient(memory, gradients, plan, views, tile, chunk, first, rows):
    """Add to the gradients of φ and ψ, from the gradient of δ."""
    view, centres = views.map, views.centres
    map_ = tile.item * (plan.r * view.step + SLACK)
    if plan.lead:
        if gradients.map_.size:
            _scatter(memory, gradients.map_, map_ + first // plan.taps * view.step, plan, view, tile, rows)
        return
    for q in range(tile.lines):
        for x in range(0, plan.width, lanes(memory)):
            here, at = plan.chunk_gradient + q * plan.width + x, centres.taps[chunk] + centres.lines[q] + x
            if gradients.map_.size:
                _spread_channels(
                    memory, here, plan.step, memory, plan.centres + at, centres.step, plan.width - x,
                    gradients.map_, map_ + view.lines[q] + x, view.step, view.taps, view.order, plan.r,
                )  # fmt: skip
            if gradients.centres.size:
                at += tile.item * (plan.r * centres.step + SLACK)
                from_ = plan.frames + view.lines[q] + x
                _add_sums(memory, here, from_, plan, view, gradients.centres, at, centres.step, plan.width - x)


@part
def _place(memory, gradients, plan, tile, rows):
    """Write the gradients of the centres, which are rows of z."""
    if gradients.centres.size:
        to = tile.item * (rows * plan.step + SLACK)
        for at in range(0, rows * plan.step, lanes(memory)):
            store(gradients.centres, to + at, load(memory, plan.chunk_gradient + at))


@part
def _scatter(memory, frames, at, plan, view, tile, rows):
    """Add the gradient of each row to the elements of the frame that the row was read from."""
    for row in range(rows):
        for q in range(tile.lines):
            for x in range(0, plan.width, lanes(memory)):
                to = at + plan.starts[row] + view.lines[q] + x
                value = read(memory, plan.chunk_gradient + row * plan.step + q * plan.width + x, plan.width - x)
                store(frames, to, add(load(frames, to), value))


@part
def _spread_channels(a, at_a, step_a, b, at_b, step_b, room, to, at, step, start, order, channels):
    """Add a_j · b to the frames at tap j, for all channels of b."""
    for s in range(0, channels - BLOCK + 1, BLOCK):
        distribute_block(a, at_a, step_a, b, at_b + s * step_b, step_b, room, to, at + s * step, step, start, order)
    for s in range(channels // BLOCK * BLOCK, channels):
        distribute_channel(a, at_a, step_a, b, at_b + s * step_b, room, to, at + s * step, start, order)


@part
def _add_sums(memory, a, b, plan, view, to, at, step, room):
    """Add Σ_j a_j · b at tap j to `to`, for all channels of b."""
    whole = lanes(memory)
    for c in range(0, plan.r - BLOCK + 1, BLOCK):
        sums = aggregate_block(memory, a, plan.step, whole, memory, b + c * view.step, view.step, view.taps)
        for s, one in enumerate(sums):
            here = at + (c + s) * step
            store(to, here, add(load(to, here), keep_first(one, room)))
    for c in range(plan.r // BLOCK * BLOCK, plan.r):
        one = aggregate_channel(memory, a, plan.step, whole, memory, b + c * view.step, view.taps)
        store(to, at + c * step, add(load(to, at + c * step), keep_first(one, room)))


# The layers that are kept, and their gradients.


@part
def _floor(plan, layer):
    """The least value of the layer's outputs: 0 if a ReLU follows."""
    return 0.0 if layer < plan.widths.shape[0] - 2 else -np.inf


@part
def _keep(memory, inputs, plan, views, tile):
    """Compute the outputs of the layers whose outputs are kept."""
    _first(memory, inputs, plan, views, tile)
    weight, at = (plan.widths[0] + 1) * plan.widths[1], plan.hidden
    for layer in range(1, plan.kept):
        depth, outputs = plan.widths[layer], plan.widths[layer + 1]
        bias, to = weight + outputs * depth, at + depth * plan.step
        _layer(inputs.parameters, weight, bias, outputs, depth, memory, at, to, plan, tile, _floor(plan, layer))
        weight, at = bias + outputs, to


@part
def _layer(parameters, weight, bias, outputs, depth, memory, at, to, plan, tile, floor):
    product(
        parameters, weight, depth, bias, outputs, depth,
        memory, at, plan.step, memory, to, plan.step, tile.columns, False, floor,
    )  # fmt: skip


@part
def _first(memory, inputs, plan, views, tile):
    """Compute the first layer, chunk after chunk of its inputs: rows of centres, then rows of the relation."""
    _prepare(memory, inputs, plan, views, tile)
    depth, outputs, at = plan.widths[0], plan.widths[1], 0
    for chunk in range(-1 if plan.lead else 0, plan.chunks):
        rows, source = plan.lead, plan.centres
        if chunk >= 0:
            rows, source = _relate(memory, inputs, plan, views, tile, chunk)[1], plan.chunk
        product(
            inputs.parameters, at, depth, outputs * depth, outputs, rows, memory, source, plan.step,
            memory, plan.hidden, plan.step, tile.columns, at > 0, _floor(plan, 0) if at + rows == depth else -np.inf,
        )  # fmt: skip
        at += rows


@part
def _keep_gradient(memory, inputs, transposed, gradients, plan, views, tile):
    """Add to all gradients, from the gradients of the last outputs that are kept.

    `transposed` are the transposed parameters of the kept layers.
    """
    to, outputs = gradients.parameters, plan.widths[1]
    layers_gradient(
        transposed, plan.widths[1 : plan.kept + 1], memory[plan.hidden :], memory[plan.hidden_gradient :], plan.step,
        tile.columns, to, (plan.widths[0] + 1) * outputs,
    )  # fmt: skip
    if _floor(plan, 0) == 0:
        rectify_gradient(memory, plan.hidden_gradient, plan.step, memory, plan.hidden, plan.step, outputs, tile.columns)
    row_sums(memory, plan.hidden_gradient, plan.step, outputs, tile.columns, to, outputs * plan.widths[0])
    weight = transposed.shape[0] - (outputs + 1) * plan.widths[0]
    _first_gradient(memory, inputs, transposed, weight, gradients, plan, views, tile)


@part
def _first_gradient(memory, inputs, transposed, weight, gradients, plan, views, tile):
    """Add to all gradients, from the gradient of the first layer, whose transposed weights begin at `weight`."""
    _prepare(memory, inputs, plan, views, tile)
    to, depth, outputs, at = gradients.parameters, plan.widths[0], plan.widths[1], 0
    bias = weight + depth * outputs
    for chunk in range(-1 if plan.lead else 0, plan.chunks):
        first, rows, source = 0, plan.lead, plan.centres
        if chunk >= 0:
            first, rows = _relate(memory, inputs, plan, views, tile, chunk)
            source = plan.chunk
        outer_product(
            memory, plan.hidden_gradient, plan.step, outputs, memory, source, plan.step, rows, tile.columns,
            to, at, depth,
        )  # fmt: skip
        weights = weight + at * outputs
        _layer(
            transposed,
            weights,
            bias,
            rows,
            outputs,
            memory,
            plan.hidden_gradient,
            plan.chunk_gradient,
            plan,
            tile,
            -np.inf,
        )
        if chunk < 0:
            _place(memory, gradients, plan, tile, rows)
        else:
            _rectify_gradient(memory, inputs, gradients, plan, tile, first, rows)
            _relate_gradient(memory, gradients, plan, views, tile, chunk, first, rows)
        at += rows


# The weights α and the aggregation of a group.


@part
def _weigh(memory, inputs, plan, tile, group):
    """Compute the group's α, and return its place in memory."""
    k, outputs, depth = plan.taps, plan.groups * plan.taps, plan.widths[-2]
    if plan.kept == plan.widths.shape[0] - 1:
        return plan.hidden + group * k * plan.step
    weight = inputs.parameters.shape[0] - outputs * (depth + 1)
    bias = weight + outputs * depth + group * k
    weight += group * k * depth
    _layer(inputs.parameters, weight, bias, k, depth, memory, plan.top, plan.alpha, plan, tile, -np.inf)
    return plan.alpha


@part
def _weigh_gradient(memory, transposed, weight, gradients, plan, tile, group):
    """The gradients of the last layer's inputs and parameters, from the gradient of a group's α.

    The layer's parameters begin at `weight`.
    """
    k, outputs, depth = plan.taps, plan.groups * plan.taps, plan.widths[-2]
    to = gradients.parameters
    outer_product(
        memory, plan.chunk_gradient, plan.step, k, memory, plan.top, plan.step, depth, tile.columns,
        to, weight + group * k * depth, depth,
    )  # fmt: skip
    row_sums(memory, plan.chunk_gradient, plan.step, k, tile.columns, to, weight + outputs * depth + group * k)
    product(
        transposed, group * k, outputs, depth * outputs, depth, k, memory, plan.chunk_gradient, plan.step,
        memory, plan.top_gradient, plan.step, tile.columns, group > 0, -np.inf,
    )  # fmt: skip


@part
def _aggregate(memory, alpha, inputs, y, plan, views, tile, group):
    """y = Σ_j α_j · β at tap j, for the group's channels."""
    view, own = views.map, views.own
    share, whole, p = plan.v // plan.groups, lanes(memory), own.h * own.w
    height = tile.lines // tile.images
    for first in range(0, share, BLOCK):
        count, channel = min(BLOCK, share - first), first * plan.groups + group
        chosen = range(channel, channel + count * plan.groups, plan.groups)
        _frames(memory, plan.frames, inputs.beta, plan.v, chosen, view, tile)
        for q in range(tile.lines):
            row = tile.index * own.rows.shape[1] + q % height
            line = ((tile.image + q // height) * plan.v + channel) * p + row * plan.width
            for x in range(0, plan.width, whole):
                a, b = alpha + q * plan.width + x, plan.frames + view.lines[q] + x
                to, room = line + x, (height - q % height) * plan.width - x
                if count == BLOCK:
                    for s, sums in enumerate(
                        aggregate_block(memory, a, plan.step, whole, memory, b, view.step, view.taps)
                    ):
                        write(y, to + s * plan.groups * p, sums, room)
                else:
                    for s in range(count):
                        sums = aggregate_channel(memory, a, plan.step, whole, memory, b + s * view.step, view.taps)
                        write(y, to + s * plan.groups * p, sums, room)


@part
def _aggregate_gradient(memory, alpha, alpha_gradient, inputs, gradient, gradients, plan, views, tile, group):
    """Compute the gradient of a group's α, and add to the gradient of β."""
    view, own = views.map, views.own
    share, whole = plan.v // plan.groups, lanes(memory)
    chosen = range(group, plan.v, plan.groups)
    _frames(memory, plan.frames, inputs.beta, plan.v, chosen, view, tile)
    _frames(memory, plan.y_gradient, gradient, plan.v, chosen, own, tile)
    beta = tile.item * (plan.v * view.step + SLACK) + group * view.step
    for q in range(tile.lines):
        for x in range(0, plan.width, whole):
            e, at = q * plan.width + x, view.lines[q] + x
            correlate_block(
                memory, plan.y_gradient + e, own.step, whole, memory, plan.frames + at, view.step, view.taps, share,
                memory, alpha_gradient + e, plan.step, whole,
            )  # fmt: skip
            if gradients.beta.size:
                _spread_channels(
                    memory, alpha + e, plan.step, memory, plan.y_gradient + e, own.step, plan.width - x,
                    gradients.beta, beta + at, plan.groups * view.step, view.taps, view.order, share,
                )  # fmt: skip


# The kernels: the loop of the threads over tiles, and the sums over tiles and threads that follow it.


@compiled
def _attention(numbers, inputs, y, memory, plan, view, centres, own):
    for thread in numbers:
        views = Views(view, centres, own)
        mine, scratch = portion(plan.items, thread, plan.threads), memory[thread]
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            _keep(scratch, inputs, plan, views, tile)
            for group in range(plan.groups):
                alpha = _weigh(scratch, inputs, plan, tile, group)
                _aggregate(scratch, alpha, inputs, y, plan, views, tile, group)


@compiled
def _statistics(numbers, inputs, moments, memory, plan, view, centres, own):
    for thread in numbers:
        views = Views(view, centres, own)
        mine, scratch = portion(plan.items, thread, plan.threads), memory[thread]
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            if plan.kept:
                _keep(scratch, inputs, plan, views, tile)
                gather_moments(scratch, plan.top, plan.step, plan.widths[-1], tile.columns, moments[thread, :, 0:])
            else:
                _prepare(scratch, inputs, plan, views, tile)
                for chunk in range(plan.chunks):
                    first, rows = _relate(scratch, inputs, plan, views, tile, chunk)
                    gather_moments(scratch, plan.chunk, plan.step, rows, tile.columns, moments[thread, :, first:])


@compiled
def _attention_backward(numbers, gradient, inputs, transposed, gradients, memory, plan, view, centres, own):
    for thread in numbers:
        views = Views(view, centres, own)
        mine, scratch = portion(plan.items, thread, plan.threads), memory[thread]
        found = _of_thread(gradients, thread)
        last = plan.widths.shape[0] - 1
        outputs, depth = plan.widths[last], plan.widths[last - 1]
        weight, behind = inputs.parameters.shape[0] - outputs * (depth + 1), (outputs + 1) * depth
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            _clear_frames(found, plan, views, item)
            _keep(scratch, inputs, plan, views, tile)
            for group in range(plan.groups):
                alpha = _weigh(scratch, inputs, plan, tile, group)
                alpha_gradient = (
                    plan.chunk_gradient if plan.kept < last else plan.hidden_gradient + group * plan.taps * plan.step
                )
                _aggregate_gradient(
                    scratch, alpha, alpha_gradient, inputs, gradient, found, plan, views, tile, group
                )  # fmt: skip
                if plan.kept < last:
                    _weigh_gradient(scratch, transposed, weight, found, plan, tile, group)
            if plan.kept < last:
                rectify_gradient(
                    scratch, plan.top_gradient, plan.step, scratch, plan.top, plan.step, depth, tile.columns
                )
            of_kept = transposed[behind if plan.kept < last else 0 :]
            _keep_gradient(scratch, inputs, of_kept, found, plan, views, tile)


@compiled
def _statistics_backward(numbers, upstream, inputs, transposed, gradients, memory, plan, view, centres, own):
    mean_gradient, variance_gradient, mean = upstream
    for thread in numbers:
        views = Views(view, centres, own)
        mine, scratch = portion(plan.items, thread, plan.threads), memory[thread]
        count = plan.n * own.h * own.w
        found = _of_thread(gradients, thread)
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            _clear_frames(found, plan, views, item)
            if plan.kept:
                _keep(scratch, inputs, plan, views, tile)
                moments_gradient(
                    scratch, plan.top, plan.step, plan.widths[-1], tile.columns, scratch, plan.top_gradient, plan.step,
                    mean, mean_gradient, variance_gradient, count,
                )  # fmt: skip
                _keep_gradient(scratch, inputs, transposed, found, plan, views, tile)
            else:
                _prepare(scratch, inputs, plan, views, tile)
                for chunk in range(plan.chunks):
                    first, rows = _relate(scratch, inputs, plan, views, tile, chunk)
                    moments_gradient(
                        scratch, plan.chunk, plan.step, rows, tile.columns, scratch, plan.chunk_gradient, plan.step,
                        mean[first:], mean_gradient[first:], variance_gradient[first:], count,
                    )  # fmt: skip
                    _relate_gradient(scratch, found, plan, views, tile, chunk, first, rows)


# In training, the first layer is an operator of its own, and so are the last layer and the aggregation. What is between
# them has one value per centre and channel, and is computed outside of the kernels.


@compiled
def _hidden(numbers, inputs, hidden, memory, plan, view, centres, own):
    for thread in numbers:
        views = Views(view, centres, own)
        mine, scratch = portion(plan.items, thread, plan.threads), memory[thread]
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            _first(scratch, inputs, plan, views, tile)
            _write_rows(scratch, plan.hidden, hidden, plan.widths[1], plan, own, tile)


@compiled
def _hidden_backward(numbers, gradient, inputs, transposed, gradients, memory, plan, view, centres, own):
    for thread in numbers:
        views = Views(view, centres, own)
        mine, scratch = portion(plan.items, thread, plan.threads), memory[thread]
        found, outputs = _of_thread(gradients, thread), plan.widths[1]
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            _clear_frames(found, plan, views, item)
            _frames(scratch, plan.hidden_gradient, gradient, outputs, range(outputs), own, tile)
            _keep_gradient(scratch, inputs, transposed, found, plan, views, tile)


@compiled
def _weighted(numbers, inputs, y, memory, plan, view, own):
    for thread in numbers:
        views, depth = Views(view, own, own), plan.widths[1]
        mine, scratch = portion(plan.items, thread, plan.threads), memory[thread]
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            _frames(scratch, plan.top, inputs.centres, depth, range(depth), own, tile)
            for group in range(plan.groups):
                alpha = _weigh(scratch, inputs, plan, tile, group)
                _aggregate(scratch, alpha, inputs, y, plan, views, tile, group)


@compiled
def _weighted_backward(numbers, gradient, inputs, transposed, hidden_gradient, gradients, memory, plan, view, own):
    for thread in numbers:
        views, depth = Views(view, own, own), plan.widths[1]
        mine, scratch = portion(plan.items, thread, plan.threads), memory[thread]
        found = _of_thread(gradients, thread)
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            _clear_frames(found, plan, views, item)
            _frames(scratch, plan.top, inputs.centres, depth, range(depth), own, tile)
            for group in range(plan.groups):
                alpha = _weigh(scratch, inputs, plan, tile, group)
                _aggregate_gradient(
                    scratch, alpha, plan.chunk_gradient, inputs, gradient, found, plan, views, tile, group
                )  # fmt: skip
                _weigh_gradient(scratch, transposed, 0, found, plan, tile, group)
            if hidden_gradient.size:
                _write_rows(scratch, plan.top_gradient, hidden_gradient, depth, plan, own, tile)


@part
def _write_rows(memory, at, map_, channels, plan, own, tile):
    """Write rows of a tile to the centres of a map; the transpose of reading them with `_frames`."""
    height = tile.lines // tile.images
    start = tile.image * channels * own.h * own.w + tile.index * own.rows.shape[1] * own.w
    for channel in range(channels):
        for i in range(tile.images):
            to, here = start + (i * channels + channel) * own.h * own.w, at + channel * plan.step + i * own.apart
            for x in range(0, height * own.w, lanes(memory)):
                write(map_, to + x, load(memory, here + x), height * own.w - x)


@part
def _of_thread(gradients, thread):
    """The gradients with the sums of one thread, which begin with 0."""
    sums = gradients.scale[thread], gradients.shift[thread], gradients.parameters[thread]
    for one in sums:
        clear(one, 0, one.shape[0])
    return Arrays(gradients.centres, gradients.map_, gradients.beta, *sums)


@part
def _clear_frames(gradients, plan, views, item):
    _clear_item(gradients.centres, item, plan.r * views.centres.step + SLACK)
    _clear_item(gradients.map_, item, plan.r * views.map.step + SLACK)
    _clear_item(gradients.beta, item, plan.v * views.map.step + SLACK)


@part
def _clear_item(frames, item, size):
    if frames.size:
        clear(frames, item * size, size)


@compiled
def _fold_frames(numbers, frames, map_, channels, plan, view):
    """Fold the frames of all tiles into the gradient of a map."""
    size, area = channels * view.step + SLACK, view.h * view.w
    for thread in numbers:
        mine = portion(plan.n * channels, thread, plan.threads)
        for channel in range(mine[0], mine[1]):
            image = channel // channels
            at = image // plan.images * plan.tiles * size + channel % channels * view.step
            at += image % plan.images * view.apart
            clear(map_, channel * area, area)
            for index in range(plan.tiles):
                fold(
                    frames, at + index * size, map_, channel * area, view.w,
                    view.rows[index], view.columns, view.begin, view.end,
                )  # fmt: skip


# The plan of a call.


def _plan(kind, map_, v, widths, kept, backward, work):
    """The plan of a call, and its views."""
    return _planned(kind, map_.shape, v, tuple(widths), kept, backward, work.places)


@lru_cache(maxsize=256)
def _planned(kind, shape, v, widths, kept, backward, places):
    (n, r, h, w), concatenates = shape, kind == "concatenation"
    images, height = _tiling(n, places)
    own = _own(images, height, places)
    view = _view(places.lookups(height), images, h, w)
    centres = view if kind == "clique_product" else own
    k, tiles = len(view.taps), len(view.rows)
    groups = widths[-1] // k if v else 0
    share = v // groups if v else 0
    channels = min(r, max(1, CHUNK // k)) if concatenates else 1
    chunks = -(-r // channels) if concatenates else len(centres.taps)
    sizes = {
        "centres": r * centres.step + SLACK,
        "frames": max(channels if concatenates else r, share if backward else min(share, BLOCK)) * view.step + SLACK,
        "source": 0 if concatenates else k * own.step,
        "chunk": channels * k * own.step,
        "hidden": sum(widths[1 : kept + 1]) * own.step,
        "alpha": k * own.step,
        "chunk_gradient": max(channels * k, r if concatenates else 0) * own.step * backward,
        "hidden_gradient": sum(widths[1 : kept + 1]) * own.step * backward,
        "y_gradient": (share * own.step + SLACK) * backward,
    }
    *begins, memory = accumulate(sizes.values(), initial=0)
    at = dict(zip(sizes, begins, strict=True))
    if concatenates:
        at["source"] = at["frames"]
        starts = (np.arange(channels)[:, None] * view.step + view.taps).reshape(-1)
    else:
        starts = np.arange(k) * own.step
    before = sum(widths[1:kept]) * own.step
    plan = Plan(
        n=n, r=r, v=v, groups=groups, taps=k, threads=places.threads, items=-(-n // images) * tiles, tiles=tiles,
        images=images, width=places.width, columns=images * height * places.width, step=own.step,
        widths=np.array(widths, np.int64), kept=kept, lead=r if concatenates else 0,
        rows=(r if concatenates else chunks) * k, chunks=chunks, starts=starts,
        lines=view.lines if concatenates else own.lines, floor=0.0 if kept else -np.inf, memory=memory,
        top=at["hidden"] + before, top_gradient=at["hidden_gradient"] + before, **at,
    )  # fmt: skip
    return plan, Views(view, centres, own)


def _tiling(n, places):
    """The number of images in a tile, and of lines of each image, that give the busiest thread the fewest columns.

    The columns include the padding of vectors and the cost of a tile.
    """
    lines = [(1, height) for height in range(1, places.height + 1) if height * places.width <= COLUMNS]
    whole = [(images, places.height) for images in range(2, n + 1) if images * places.height * places.width <= COLUMNS]

    def columns(shape):
        images, height = shape
        items = -(-n // images) * -(-places.height // height)
        return -(-items // places.threads) * (-(-images * height * places.width // 8) * 8 + HALO)

    return min(lines + whole, key=columns, default=(1, 1))


def _view(frame, images, h, w):
    rows, columns, begin, end, taps, order, height = frame[:7]
    size = rows.shape[1] * len(columns)
    lines = (np.arange(images)[:, None] * size + np.arange(height) * len(columns)).reshape(-1)
    return View(rows, columns, begin, end, taps, order, lines, size, row_step(images * size + 7), h, w)


def _own(images, height, places):
    """The view of an array with one value per centre: its only tap is the centre, and lines follow each other."""
    tiles, width = -(-places.height // height), places.width
    rows = np.arange(tiles * height).reshape(tiles, height)
    rows[rows >= places.height] = -1
    lines = np.arange(images * height) * width
    step, centre = row_step(images * height * width + 7), np.zeros(1, np.int64)
    return View(rows, np.arange(width), 0, width, centre, centre, lines, height * width, step, places.height, width)


# The entry points: arrays, then the widths of the layers, the kind of relation, and the work (facts, lookups, memory).
# A gradient that is not needed is None.


def patchwise_attention(centres, map_, beta, scale, shift, parameters, y, widths, kind, work):
    inputs = _flat(centres, map_, beta, scale, shift, parameters)
    plan, views = _plan(kind, map_, beta.shape[1], widths, max(len(widths) - 2, 1), False, work)
    _attention(plan.threads, inputs, y.reshape(-1), work.empty(plan.threads, plan.memory), plan, *views)


def patchwise_attention_backward(
    gradient, centres, map_, beta, scale, shift, parameters,
    centres_gradient, map_gradient, beta_gradient, scale_gradient, shift_gradient, parameters_gradient,
    widths, kind, work,
):  # fmt: skip
    inputs = _flat(centres, map_, beta, scale, shift, parameters)
    plan, views = _plan(kind, map_, beta.shape[1], widths, max(len(widths) - 2, 1), True, work)
    gradients = _gradients(inputs, (centres_gradient, map_gradient, beta_gradient), plan, views, work)
    _attention_backward(plan.threads,
        gradient.reshape(-1), inputs, transpose(parameters, widths, work.empty), gradients,
        work.empty(plan.threads, plan.memory), plan, *views,
    )  # fmt: skip
    _add_up(
        gradients,
        (centres_gradient, map_gradient, beta_gradient),
        (scale_gradient, shift_gradient, parameters_gradient),
        plan,
        views,
    )


def patchwise_statistics(centres, map_, scale, shift, parameters, mean, variance, widths, kind, work):
    plan, views = _plan(kind, map_, 0, widths, len(widths) - 1, False, work)
    inputs = _inputs_of_statistics(centres, map_, scale, shift, parameters, plan, work)
    moments = work.double(plan.threads, 3, mean.size)
    _statistics(plan.threads, inputs, moments, work.empty(plan.threads, plan.memory), plan, *views)
    mean_and_variance(moments, mean, variance)


def patchwise_statistics_backward(
    mean_gradient, variance_gradient, mean, centres, map_, scale, shift, parameters,
    centres_gradient, map_gradient, scale_gradient, shift_gradient, parameters_gradient,
    widths, kind, work,
):  # fmt: skip
    plan, views = _plan(kind, map_, 0, widths, len(widths) - 1, True, work)
    inputs = _inputs_of_statistics(centres, map_, scale, shift, parameters, plan, work)
    gradients = _gradients(inputs, (centres_gradient, map_gradient, None), plan, views, work)
    _statistics_backward(plan.threads,
        Upstream(mean_gradient, variance_gradient, mean), inputs, transpose(parameters, widths, work.empty), gradients,
        work.empty(plan.threads, plan.memory), plan, *views,
    )  # fmt: skip
    _add_up(
        gradients,
        (centres_gradient, map_gradient, None),
        (scale_gradient, shift_gradient, parameters_gradient),
        plan,
        views,
    )


def patchwise_hidden(centres, map_, scale, shift, parameters, hidden, widths, kind, work):
    plan, views = _plan(kind, map_, 0, widths, 1, False, work)
    inputs = _flat(centres, map_, work.nothing(1), scale, shift, parameters)
    _hidden(plan.threads, inputs, hidden.reshape(-1), work.empty(plan.threads, plan.memory), plan, *views)


def patchwise_hidden_backward(
    gradient, centres, map_, scale, shift, parameters,
    centres_gradient, map_gradient, scale_gradient, shift_gradient, parameters_gradient,
    widths, kind, work,
):  # fmt: skip
    plan, views = _plan(kind, map_, 0, widths, 1, True, work)
    inputs = _flat(centres, map_, work.nothing(1), scale, shift, parameters)
    maps = centres_gradient, map_gradient, None
    gradients = _gradients(inputs, maps, plan, views, work)
    _hidden_backward(plan.threads,
        gradient.reshape(-1), inputs, transpose(parameters, widths, work.empty), gradients,
        work.empty(plan.threads, plan.memory), plan, *views,
    )  # fmt: skip
    _add_up(gradients, maps, (scale_gradient, shift_gradient, parameters_gradient), plan, views)


def patchwise_weighted(hidden, beta, parameters, y, widths, work):
    inputs, plan, views = _weighted_call(hidden, beta, parameters, widths, False, work)
    _weighted(plan.threads, inputs, y.reshape(-1), work.empty(plan.threads, plan.memory), plan, views.map, views.own)


def patchwise_weighted_backward(
    gradient, hidden, beta, parameters, hidden_gradient, beta_gradient, parameters_gradient, widths, work
):  # fmt: skip
    inputs, plan, views = _weighted_call(hidden, beta, parameters, widths, True, work)
    maps = None, None, beta_gradient
    gradients = _gradients(inputs, maps, plan, views, work)
    _weighted_backward(plan.threads,
        gradient.reshape(-1), inputs, transpose(parameters, widths, work.empty),
        or_empty(hidden_gradient, 3, work).reshape(-1), gradients,
        work.empty(plan.threads, plan.memory), plan, views.map, views.own,
    )  # fmt: skip
    _add_up(gradients, maps, (None, None, parameters_gradient), plan, views)


def _weighted_call(hidden, beta, parameters, widths, backward, work):
    """Inputs, plan and views: the rows of `hidden` are the outputs of a layer that is kept and has no inputs."""
    plan, views = _plan("concatenation", beta[:, :1], beta.shape[1], [0, *widths], 1, backward, work)
    nothing = work.nothing(1)
    return _flat(hidden, nothing, beta, nothing, nothing, parameters), plan, views


def _flat(*arrays):
    return Arrays(*(array.reshape(-1) for array in arrays))


def _inputs_of_statistics(centres, map_, scale, shift, parameters, plan, work):
    """Without a layer, the statistics are those of δ, before scale and shift."""
    if plan.kept == 0:
        scale, shift = work.empty(plan.rows), work.empty(plan.rows)
        scale[...], shift[...] = 1, 0
    return _flat(centres, map_, work.nothing(1), scale, shift, parameters)


def _gradients(inputs, maps, plan, views, work):
    """Memory for the gradients; the frames of maps whose gradient is not needed are empty."""
    frames = (
        work.empty(plan.items * (channels * view.step + SLACK) if map_ is not None else 0)
        for map_, channels, view in zip(
            maps, (plan.r, plan.r, plan.v), (views.centres, views.map, views.map), strict=True
        )
    )
    sums = (work.empty(plan.threads, x.size) for x in (inputs.scale, inputs.shift, inputs.parameters))
    return Arrays(*frames, *sums)


def _add_up(gradients, maps, sums, plan, views):
    """Add up the gradients of tiles and threads, where they are needed."""
    for frames, map_, view in zip(gradients[:3], maps, (views.centres, views.map, views.map), strict=True):
        if map_ is not None:
            _fold_frames(plan.threads, frames, map_.reshape(-1), map_.shape[1], plan, view)
    for partial, total_ in zip(gradients[3:], sums, strict=True):
        if total_ is not None:
            np.sum(partial[:, : total_.size], axis=0, out=total_)  # without a layer, scale and shift are empty
