"""CPU kernels of the patchwise attentions' cores: relation, affine map, ReLU, linear layers and aggregation at once.

Arrays are contiguous: maps (n, -, h, w), `centres` (n, r, p), or a map for the clique product; mapping.py says what the
parameters and widths are.

    z_i    = ReLU(scale · δ(φ_i, ψ_R(i)) + shift)      k, k·k or, behind the rows of the centres, r·k rows
    α_i    = W_L · ReLU(… ReLU(W_1 · z_i + b_1) …) + b_L
    y_i[c] = Σ_j α_i[c mod g, j] · β_j[c]

    tiles      A thread takes a few lines of centres at a time, or a few small images; their centres are the columns of
               all products. What the relation reads of ψ, and the aggregation of β, lies in frames.
    chunks     z is never whole: a chunk of its rows is made, multiplied by its columns of W_1 and forgotten. A chunk is
               the taps of a few channels of ψ (concatenation), or the products of ψ with one tap of φ; the star product
               is a clique product whose φ has no tap but the centre. α is made group by group.
    traffic    Maps and outputs once, but for the tiles' halos; W_1 once per tile, from the third-level cache.
    backward   All is made once more. Gradients of maps are added up in frames of their tile, and the frames folded into
               the maps in a second loop; each thread has its own sums of the parameters' gradients: nothing to lock.

What mattered, in SAN10's second stage (56 × 56, 7 × 7 taps, concatenation, one thread): tiles of 112 centres, whose
chunks stay in the first-level cache, 0.67 µs a centre; of 224, with fewer halos to copy, 0.58 µs; of 392, 0.56 µs.
Of the 130 µs that the second take, products are 55, the aggregation's sums 38, rectified chunks 17 and frames 16.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numba import prange

from kernels_numba.compiled import compiled, part
from kernels_numba.cpu.mapping import (
    add_rows,
    gather,
    layers_backward,
    moments_of,
    outer,
    product,
    rectify_gradient,
    spread,
    transpose,
)
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
"""Centres in a tile, unless a line has more."""
CHUNK = 64
"""Rows in a chunk of the concatenation, unless a channel has more."""
HALO = 16
"""What a tile costs beside its columns, in columns."""


class View(NamedTuple):
    """How tiles read a map of h × w: the lookups of `cpu.Frame`, and where in a channel's frames, those of a tile's
    images one behind the other, a line of centres begins."""

    rows: np.ndarray
    columns: np.ndarray
    begin: int
    end: int
    taps: np.ndarray
    order: np.ndarray
    lines: np.ndarray
    apart: int
    """From an image's frame to the next one's."""
    step: int
    """From a channel's frames to the next one's: room for vectors that begin at any column."""
    h: int
    w: int


class Plan(NamedTuple):
    """Sizes; and from where on what lies in a thread's memory, in which rows of columns are `step` apart."""

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
    """Layers all of whose outputs are kept; the next one's are made group by group."""
    lead: int
    """Rows of centres before those of the relation."""
    rows: int
    """Rows of the relation."""
    chunks: int
    starts: np.ndarray
    """Where, from `source` on, the rows of a chunk begin …"""
    lines: np.ndarray
    """… and in a row the lines of centres."""
    floor: float
    """What a row is at least, after its affine map."""
    memory: int
    """Elements of a thread's memory."""
    centres: int
    frames: int
    source: int
    chunk: int
    hidden: int
    top: int
    """The outputs of the last layer that is kept."""
    alpha: int
    d_chunk: int
    d_hidden: int
    d_top: int
    d_y: int


class Arrays(NamedTuple):
    """The inputs, flat; or what their gradients are added to: frames of all tiles, empty where nobody needs them, and
    sums of each thread."""

    centres: np.ndarray
    map_: np.ndarray
    beta: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    parameters: np.ndarray


class Tile(NamedTuple):
    """The index-th tile of images from `image` on: lines of centres, and columns."""

    item: int
    index: int
    image: int
    images: int
    lines: int
    columns: int


@part
def _begin(memory, plan, own, item, first):
    """The item's tile. Before the first, and before one with fewer columns, memory is cleared: behind the last column
    gradients have to be 0, and what they are multiplied by a number."""
    index, image = item % plan.tiles, item // plan.tiles * plan.images
    images = min(plan.images, plan.n - image)
    lines = images * min(own.rows.shape[1], own.h - index * own.rows.shape[1])
    tile = Tile(item, index, image, images, lines, lines * plan.width)
    if item == first or tile.columns < plan.columns:
        _clear(memory, 0, memory.shape[0])
    return tile


# The relation: its rows chunk by chunk, and its gradients.


@part
def _frames(memory, at, map_, channels, chosen, view, tile):
    """Fill the frames of the chosen channels."""
    for channel in chosen:
        for i in range(tile.images):
            start = ((tile.image + i) * channels + channel) * view.h * view.w
            to, rows = at + i * view.apart, view.rows[tile.index]
            _fill(memory, to, map_, start, view.w, rows, view.columns, view.begin, view.end)
        at += view.step


@part
def _prepare(memory, inputs, plan, view, centres, tile):
    """What all chunks read."""
    _frames(memory, plan.centres, inputs.centres, plan.r, range(plan.r), centres, tile)
    if plan.lead == 0:
        _frames(memory, plan.frames, inputs.map_, plan.r, range(plan.r), view, tile)


@part
def _relate(memory, inputs, plan, view, centres, tile, chunk):
    """Make the chunk's rows: the number of the first one, and how many they are."""
    first = chunk * plan.starts.shape[0]
    rows = min(plan.starts.shape[0], plan.rows - first)
    if plan.lead:
        channel = first // plan.taps
        _frames(memory, plan.frames, inputs.map_, plan.r, range(channel, channel + rows // plan.taps), view, tile)
    else:
        _multiply(memory, plan, view, centres, tile, centres.taps[chunk])
    _rectify(memory, inputs, plan, tile, first, rows)
    return first, rows


@part
def _multiply(memory, plan, view, centres, tile, tap):
    """Σ_c φ[c] at the tap · ψ[c] at each of its own."""
    whole = lanes(memory)
    for q in range(tile.lines):
        for x in range(0, plan.width, whole):
            _dots(
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
def _rectify_backward(memory, inputs, gradients, plan, tile, first, rows):
    """The gradients of δ in place of those of its rows, and what they add to those of scale and shift."""
    for row in range(rows):
        scale, at = broadcast(memory, inputs.scale[first + row]), row * plan.step
        d_scale = d_shift = zeros(memory)
        for q in range(tile.lines):
            for x in range(0, plan.width, lanes(memory)):
                e, room = at + q * plan.width + x, plan.width - x
                before = load(memory, plan.d_chunk + e)
                masked = where_positive(load(memory, plan.chunk + e), before, zeros(memory))
                value = keep_first(load(memory, plan.source + plan.starts[row] + plan.lines[q] + x), room)
                d_scale = fma(keep_first(masked, room), value, d_scale)
                d_shift = add(d_shift, keep_first(masked, room))
                store(memory, plan.d_chunk + e, choose_first(mul(scale, masked), before, room))
        gradients.scale[first + row] += total(d_scale)
        gradients.shift[first + row] += total(d_shift)


@part
def _relate_backward(memory, gradients, plan, view, centres, tile, chunk, first, rows):
    """Add what δ's gradients give to those of φ and ψ."""
    map_ = tile.item * (plan.r * view.step + SLACK)
    if plan.lead:
        if gradients.map_.size:
            _scatter(memory, gradients.map_, map_ + first // plan.taps * view.step, plan, view, tile, rows)
        return
    for q in range(tile.lines):
        for x in range(0, plan.width, lanes(memory)):
            here, at = plan.d_chunk + q * plan.width + x, centres.taps[chunk] + centres.lines[q] + x
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
    """Gradients of centres, which are rows themselves."""
    if gradients.centres.size:
        to = tile.item * (rows * plan.step + SLACK)
        for at in range(0, rows * plan.step, lanes(memory)):
            store(gradients.centres, to + at, load(memory, plan.d_chunk + at))


@part
def _scatter(memory, frames, at, plan, view, tile, rows):
    """Add each row's gradients to where the row was read from."""
    for row in range(rows):
        for q in range(tile.lines):
            for x in range(0, plan.width, lanes(memory)):
                to = at + plan.starts[row] + view.lines[q] + x
                value = _read(memory, plan.d_chunk + row * plan.step + q * plan.width + x, plan.width - x)
                store(frames, to, add(load(frames, to), value))


@part
def _spread_channels(a, at_a, step_a, b, at_b, step_b, room, to, at, step, start, order, channels):
    """Add a_j · b to the frames at tap j, for all channels of b."""
    for s in range(0, channels - BLOCK + 1, BLOCK):
        _spread(a, at_a, step_a, b, at_b + s * step_b, step_b, room, to, at + s * step, step, start, order)
    for s in range(channels // BLOCK * BLOCK, channels):
        _spread_one(a, at_a, step_a, b, at_b + s * step_b, room, to, at + s * step, start, order)


@part
def _add_sums(memory, a, b, plan, view, to, at, step, room):
    """Add Σ_j a_j · b at j, for all channels of b."""
    whole = lanes(memory)
    for c in range(0, plan.r - BLOCK + 1, BLOCK):
        sums = _sums(memory, a, plan.step, whole, memory, b + c * view.step, view.step, view.taps)
        for s, one in enumerate(sums):
            here = at + (c + s) * step
            store(to, here, add(load(to, here), keep_first(one, room)))
    for c in range(plan.r // BLOCK * BLOCK, plan.r):
        one = _sum(memory, a, plan.step, whole, memory, b + c * view.step, view.taps)
        store(to, at + c * step, add(load(to, at + c * step), keep_first(one, room)))


# The layers that are kept, and their gradients.


@part
def _floor(plan, layer):
    """What the layer's outputs are at least."""
    return 0.0 if layer < plan.widths.shape[0] - 2 else -np.inf


@part
def _keep(memory, inputs, plan, view, centres, tile):
    """The outputs of the layers that are kept."""
    _first(memory, inputs, plan, view, centres, tile)
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
def _first(memory, inputs, plan, view, centres, tile):
    """The outputs of the first layer, chunk after chunk of its inputs: rows of centres, then those of the relation."""
    _prepare(memory, inputs, plan, view, centres, tile)
    depth, outputs, at = plan.widths[0], plan.widths[1], 0
    for chunk in range(-1 if plan.lead else 0, plan.chunks):
        rows, source = plan.lead, plan.centres
        if chunk >= 0:
            rows, source = _relate(memory, inputs, plan, view, centres, tile, chunk)[1], plan.chunk
        product(
            inputs.parameters, at, depth, outputs * depth, outputs, rows, memory, source, plan.step,
            memory, plan.hidden, plan.step, tile.columns, at > 0, _floor(plan, 0) if at + rows == depth else -np.inf,
        )  # fmt: skip
        at += rows


@part
def _keep_backward(memory, inputs, transposed, gradients, plan, view, centres, tile):
    """Add to all gradients what those of the last outputs that are kept give; `transposed` are the kept layers'."""
    to, outputs = gradients.parameters, plan.widths[1]
    layers_backward(
        transposed, plan.widths[1 : plan.kept + 1], memory[plan.hidden :], memory[plan.d_hidden :], plan.step,
        tile.columns, to, (plan.widths[0] + 1) * outputs,
    )  # fmt: skip
    if _floor(plan, 0) == 0:
        rectify_gradient(memory, plan.d_hidden, plan.step, memory, plan.hidden, plan.step, outputs, tile.columns)
    add_rows(memory, plan.d_hidden, plan.step, outputs, tile.columns, to, outputs * plan.widths[0])
    weight = transposed.shape[0] - (outputs + 1) * plan.widths[0]
    _first_backward(memory, inputs, transposed, weight, gradients, plan, view, centres, tile)


@part
def _first_backward(memory, inputs, transposed, weight, gradients, plan, view, centres, tile):
    """The same for the first layer, whose transposed weights begin at `weight`."""
    _prepare(memory, inputs, plan, view, centres, tile)
    to, depth, outputs, at = gradients.parameters, plan.widths[0], plan.widths[1], 0
    bias = weight + depth * outputs
    for chunk in range(-1 if plan.lead else 0, plan.chunks):
        first, rows, source = 0, plan.lead, plan.centres
        if chunk >= 0:
            first, rows = _relate(memory, inputs, plan, view, centres, tile, chunk)
            source = plan.chunk
        outer(
            memory, plan.d_hidden, plan.step, outputs, memory, source, plan.step, rows, tile.columns, to, at, depth
        )  # fmt: skip
        weights = weight + at * outputs
        _layer(transposed, weights, bias, rows, outputs, memory, plan.d_hidden, plan.d_chunk, plan, tile, -np.inf)
        if chunk < 0:
            _place(memory, gradients, plan, tile, rows)
        else:
            _rectify_backward(memory, inputs, gradients, plan, tile, first, rows)
            _relate_backward(memory, gradients, plan, view, centres, tile, chunk, first, rows)
        at += rows


# The weights and the aggregation of a group.


@part
def _weigh(memory, inputs, plan, tile, group):
    """The group's α: where it is."""
    k, outputs, depth = plan.taps, plan.groups * plan.taps, plan.widths[-2]
    if plan.kept == plan.widths.shape[0] - 1:
        return plan.hidden + group * k * plan.step
    weight = inputs.parameters.shape[0] - outputs * (depth + 1)
    bias = weight + outputs * depth + group * k
    weight += group * k * depth
    _layer(inputs.parameters, weight, bias, k, depth, memory, plan.top, plan.alpha, plan, tile, -np.inf)
    return plan.alpha


@part
def _weigh_backward(memory, transposed, weight, gradients, plan, tile, group):
    """From the gradients of a group's α those of what it is made of, the last layer's inputs; its parameters are at
    `weight`."""
    k, outputs, depth = plan.taps, plan.groups * plan.taps, plan.widths[-2]
    to = gradients.parameters
    outer(
        memory, plan.d_chunk, plan.step, k, memory, plan.top, plan.step, depth, tile.columns,
        to, weight + group * k * depth, depth,
    )  # fmt: skip
    add_rows(memory, plan.d_chunk, plan.step, k, tile.columns, to, weight + outputs * depth + group * k)
    product(
        transposed, group * k, outputs, depth * outputs, depth, k, memory, plan.d_chunk, plan.step,
        memory, plan.d_top, plan.step, tile.columns, group > 0, -np.inf,
    )  # fmt: skip


@part
def _aggregate(memory, alpha, inputs, y, plan, view, own, tile, group):
    """Σ_j α_j · β at j, for the group's channels."""
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
                    for s, sums in enumerate(_sums(memory, a, plan.step, whole, memory, b, view.step, view.taps)):
                        _write(y, to + s * plan.groups * p, sums, room)
                else:
                    for s in range(count):
                        sums = _sum(memory, a, plan.step, whole, memory, b + s * view.step, view.taps)
                        _write(y, to + s * plan.groups * p, sums, room)


@part
def _aggregate_backward(memory, alpha, d_alpha, inputs, gradient, gradients, plan, view, own, tile, group):
    """The gradients of a group's α, and what they add to β's."""
    share, whole = plan.v // plan.groups, lanes(memory)
    chosen = range(group, plan.v, plan.groups)
    _frames(memory, plan.frames, inputs.beta, plan.v, chosen, view, tile)
    _frames(memory, plan.d_y, gradient, plan.v, chosen, own, tile)
    beta = tile.item * (plan.v * view.step + SLACK) + group * view.step
    for q in range(tile.lines):
        for x in range(0, plan.width, whole):
            e, at = q * plan.width + x, view.lines[q] + x
            _dots(
                memory, plan.d_y + e, own.step, whole, memory, plan.frames + at, view.step, view.taps, share,
                memory, d_alpha + e, plan.step, whole,
            )  # fmt: skip
            if gradients.beta.size:
                _spread_channels(
                    memory, alpha + e, plan.step, memory, plan.d_y + e, own.step, plan.width - x,
                    gradients.beta, beta + at, plan.groups * view.step, view.taps, view.order, share,
                )  # fmt: skip


# What threads do, and what is left to do once all have done it.


@compiled
def _attention(inputs, y, memory, plan, view, centres, own):
    for thread in prange(plan.threads):
        mine, scratch = _share(plan.items, thread, plan.threads), memory[thread]
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            _keep(scratch, inputs, plan, view, centres, tile)
            for group in range(plan.groups):
                alpha = _weigh(scratch, inputs, plan, tile, group)
                _aggregate(scratch, alpha, inputs, y, plan, view, own, tile, group)


@compiled
def _statistics(inputs, moments, memory, plan, view, centres, own):
    for thread in prange(plan.threads):
        mine, scratch = _share(plan.items, thread, plan.threads), memory[thread]
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            if plan.kept:
                _keep(scratch, inputs, plan, view, centres, tile)
                gather(scratch, plan.top, plan.step, plan.widths[-1], tile.columns, moments[thread, :, 0:])
            else:
                _prepare(scratch, inputs, plan, view, centres, tile)
                for chunk in range(plan.chunks):
                    first, rows = _relate(scratch, inputs, plan, view, centres, tile, chunk)
                    gather(scratch, plan.chunk, plan.step, rows, tile.columns, moments[thread, :, first:])


@compiled
def _attention_backward(inputs, transposed, gradient, gradients, memory, plan, view, centres, own):
    for thread in prange(plan.threads):
        mine, scratch = _share(plan.items, thread, plan.threads), memory[thread]
        found = _of_thread(gradients, thread)
        last = plan.widths.shape[0] - 1
        outputs, depth = plan.widths[last], plan.widths[last - 1]
        weight, behind = inputs.parameters.shape[0] - outputs * (depth + 1), (outputs + 1) * depth
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            _clear_frames(found, plan, view, centres, item)
            _keep(scratch, inputs, plan, view, centres, tile)
            for group in range(plan.groups):
                alpha = _weigh(scratch, inputs, plan, tile, group)
                d_alpha = plan.d_chunk if plan.kept < last else plan.d_hidden + group * plan.taps * plan.step
                _aggregate_backward(
                    scratch, alpha, d_alpha, inputs, gradient, found, plan, view, own, tile, group
                )  # fmt: skip
                if plan.kept < last:
                    _weigh_backward(scratch, transposed, weight, found, plan, tile, group)
            if plan.kept < last:
                rectify_gradient(scratch, plan.d_top, plan.step, scratch, plan.top, plan.step, depth, tile.columns)
            of_kept = transposed[behind if plan.kept < last else 0 :]
            _keep_backward(scratch, inputs, of_kept, found, plan, view, centres, tile)


@compiled
def _statistics_backward(inputs, transposed, d_mean, d_variance, mean, gradients, memory, plan, view, centres, own):
    for thread in prange(plan.threads):
        mine, scratch, count = _share(plan.items, thread, plan.threads), memory[thread], plan.n * own.h * own.w
        found = _of_thread(gradients, thread)
        for item in range(mine[0], mine[1]):
            tile = _begin(scratch, plan, own, item, mine[0])
            _clear_frames(found, plan, view, centres, item)
            if plan.kept:
                _keep(scratch, inputs, plan, view, centres, tile)
                spread(
                    scratch, plan.top, plan.step, plan.widths[-1], tile.columns, scratch, plan.d_top, plan.step,
                    mean, d_mean, d_variance, count,
                )  # fmt: skip
                _keep_backward(scratch, inputs, transposed, found, plan, view, centres, tile)
            else:
                _prepare(scratch, inputs, plan, view, centres, tile)
                for chunk in range(plan.chunks):
                    first, rows = _relate(scratch, inputs, plan, view, centres, tile, chunk)
                    spread(
                        scratch, plan.chunk, plan.step, rows, tile.columns, scratch, plan.d_chunk, plan.step,
                        mean[first:], d_mean[first:], d_variance[first:], count,
                    )  # fmt: skip
                    _relate_backward(scratch, found, plan, view, centres, tile, chunk, first, rows)


@part
def _of_thread(gradients, thread):
    """With the sums of one thread, at first 0."""
    sums = gradients.scale[thread], gradients.shift[thread], gradients.parameters[thread]
    for one in sums:
        _clear(one, 0, one.shape[0])
    return Arrays(gradients.centres, gradients.map_, gradients.beta, *sums)


@part
def _clear_frames(gradients, plan, view, centres, item):
    _clear_item(gradients.centres, item, plan.r * centres.step + SLACK)
    _clear_item(gradients.map_, item, plan.r * view.step + SLACK)
    _clear_item(gradients.beta, item, plan.v * view.step + SLACK)


@part
def _clear_item(frames, item, size):
    if frames.size:
        _clear(frames, item * size, size)


@compiled
def _fold_frames(frames, map_, channels, plan, view):
    """The map's gradient: the frames of all tiles folded into it."""
    size, area = channels * view.step + SLACK, view.h * view.w
    for thread in prange(plan.threads):
        mine = _share(plan.n * channels, thread, plan.threads)
        for channel in range(mine[0], mine[1]):
            image = channel // channels
            at = image // plan.images * plan.tiles * size + channel % channels * view.step
            at += image % plan.images * view.apart
            _clear(map_, channel * area, area)
            for index in range(plan.tiles):
                _fold(
                    frames, at + index * size, map_, channel * area, view.w,
                    view.rows[index], view.columns, view.begin, view.end,
                )  # fmt: skip


# The plan of a call.


def _plan(kind, map_, v, widths, kept, backward, work):
    """The plan, and how its tiles read ψ and β, what the relation takes of the centres, and what has one value per
    centre."""
    (n, r, h, w), concatenates = map_.shape, kind == "concatenation"
    images, height = _tiling(n, work)
    own = _own(images, height, work)
    view = _view(work.tiles(height), images, h, w)
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
        "d_chunk": max(channels * k, r if concatenates else 0) * own.step * backward,
        "d_hidden": sum(widths[1 : kept + 1]) * own.step * backward,
        "d_y": (share * own.step + SLACK) * backward,
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
        n=n, r=r, v=v, groups=groups, taps=k, threads=work.threads, items=-(-n // images) * tiles, tiles=tiles,
        images=images, width=work.width, columns=images * height * work.width, step=own.step,
        widths=np.array(widths, np.int64), kept=kept, lead=r if concatenates else 0,
        rows=(r if concatenates else chunks) * k, chunks=chunks, starts=starts,
        lines=view.lines if concatenates else own.lines, floor=0.0 if kept else -np.inf, memory=memory,
        top=at["hidden"] + before, d_top=at["d_hidden"] + before, **at,
    )  # fmt: skip
    return plan, view, centres, own


def _tiling(n, work):
    """Of how many images a tile is, and of how many lines of each: what takes the threads the fewest columns, those of
    incomplete vectors and of halos included."""
    lines = [(1, height) for height in range(1, work.height + 1) if height * work.width <= COLUMNS]
    whole = [(images, work.height) for images in range(2, n + 1) if images * work.height * work.width <= COLUMNS]

    def columns(shape):
        images, height = shape
        items = -(-n // images) * -(-work.height // height)
        return -(-items // work.threads) * (-(-images * height * work.width // 8) * 8 + HALO)

    return min(lines + whole, key=columns, default=(1, 1))


def _view(frame, images, h, w):
    rows, columns, begin, end, taps, order, height = frame[:7]
    size = rows.shape[1] * len(columns)
    lines = (np.arange(images)[:, None] * size + np.arange(height) * len(columns)).reshape(-1)
    return View(rows, columns, begin, end, taps, order, lines, size, _apart(images * size + 7), h, w)


def _own(images, height, work):
    """A view of what has one value per centre, which is its only tap: a line behind the other."""
    tiles, width = -(-work.height // height), work.width
    rows = np.arange(tiles * height).reshape(tiles, height)
    rows[rows >= work.height] = -1
    lines = np.arange(images * height) * width
    step, centre = _apart(images * height * width + 7), np.zeros(1, np.int64)
    return View(rows, np.arange(width), 0, width, centre, centre, lines, height * width, step, work.height, width)


# The cores: inputs, outputs, the layers' widths, the relation's kind, and `work`, which knows the footprint and the
# threads, and makes arrays. A gradient that nobody needs is None.


def patchwise_attention(centres, map_, beta, scale, shift, parameters, y, widths, kind, work):
    inputs = _flat(centres, map_, beta, scale, shift, parameters)
    plan, *views = _plan(kind, map_, beta.shape[1], widths, max(len(widths) - 2, 1), False, work)
    _attention(inputs, y.reshape(-1), work.empty(plan.threads, plan.memory), plan, *views)


def patchwise_attention_backward(
    gradient, centres, map_, beta, scale, shift, parameters,
    d_centres, d_map, d_beta, d_scale, d_shift, d_parameters, widths, kind, work,
):  # fmt: skip
    inputs = _flat(centres, map_, beta, scale, shift, parameters)
    plan, *views = _plan(kind, map_, beta.shape[1], widths, max(len(widths) - 2, 1), True, work)
    gradients = _gradients(inputs, (d_centres, d_map, d_beta), plan, *views, work)
    _attention_backward(
        inputs, transpose(parameters, widths, work.empty), gradient.reshape(-1), gradients,
        work.empty(plan.threads, plan.memory), plan, *views,
    )  # fmt: skip
    _add_up(gradients, (d_centres, d_map, d_beta), (d_scale, d_shift, d_parameters), plan, *views)


def patchwise_statistics(centres, map_, scale, shift, parameters, mean, variance, widths, kind, work):
    plan, *views = _plan(kind, map_, 0, widths, len(widths) - 1, False, work)
    inputs = _inputs_of_statistics(centres, map_, scale, shift, parameters, plan, work)
    moments = work.double(plan.threads, 3, mean.size)
    _statistics(inputs, moments, work.empty(plan.threads, plan.memory), plan, *views)
    moments_of(moments, mean, variance)


def patchwise_statistics_backward(
    d_mean, d_variance, mean, centres, map_, scale, shift, parameters,
    d_centres, d_map, d_scale, d_shift, d_parameters, widths, kind, work,
):  # fmt: skip
    plan, *views = _plan(kind, map_, 0, widths, len(widths) - 1, True, work)
    inputs = _inputs_of_statistics(centres, map_, scale, shift, parameters, plan, work)
    gradients = _gradients(inputs, (d_centres, d_map, None), plan, *views, work)
    _statistics_backward(
        inputs, transpose(parameters, widths, work.empty), d_mean, d_variance, mean, gradients,
        work.empty(plan.threads, plan.memory), plan, *views,
    )  # fmt: skip
    _add_up(gradients, (d_centres, d_map, None), (d_scale, d_shift, d_parameters), plan, *views)


def _flat(*arrays):
    return Arrays(*(array.reshape(-1) for array in arrays))


def _inputs_of_statistics(centres, map_, scale, shift, parameters, plan, work):
    """Without a layer, the statistics are of what comes before scale and shift."""
    if plan.kept == 0:
        scale, shift = work.empty(plan.rows), work.empty(plan.rows)
        scale[...], shift[...] = 1, 0
    return _flat(centres, map_, work.empty(0), scale, shift, parameters)


def _gradients(inputs, maps, plan, view, centres, own, work):
    """Memory for the gradients; of the maps, for those that are needed."""
    frames = (
        work.empty(plan.items * (channels * of.step + SLACK) if map_ is not None else 0)
        for map_, channels, of in zip(maps, (plan.r, plan.r, plan.v), (centres, view, view), strict=True)
    )
    sums = (work.empty(plan.threads, x.size) for x in (inputs.scale, inputs.shift, inputs.parameters))
    return Arrays(*frames, *sums)


def _add_up(gradients, maps, sums, plan, view, centres, own):
    """The gradients that are needed, of those of tiles and threads."""
    for frames, map_, of in zip(gradients[:3], maps, (centres, view, view), strict=True):
        if map_ is not None:
            _fold_frames(frames, map_.reshape(-1), map_.shape[1], plan, of)
    for partial, total_ in zip(gradients[3:], sums, strict=True):
        if total_ is not None:
            np.sum(partial[:, : total_.size], axis=0, out=total_)  # without a layer, scale and shift are empty
