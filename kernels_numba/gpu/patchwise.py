"""The fused patchwise attention on a GPU: the rows of a relation, [centres, ρ(scale ⊙ ψ_j + shift)] or ρ(scale ⊙ δ +
shift) of the star or clique product δ, the mapping to α, and y_i[c] = Σ_j α[c mod g, j] β_j[c] (SAN Eq. 4); the
statistics of what the mapping gives, for a batch norm behind it; and what flows back. Twin of
kernels_cuda/csrc/patchwise.cu, for float32 and float64.

    traffic    A column is a centre. Outputs of all layers but the last, n · hidden · p of them, go through memory; rows
               of the relation and α, which have the size of the footprint, are generated panel by panel in shared
               memory, once for every 64 outputs that need them. Maps and parameters come from the caches.
    forward    A kernel for each layer, a block for up to 64 outputs × 64 columns, and one for the last layer and the
               aggregation, a block for a group of channels × 64 columns.
    backward   What flows to a layer is one more product of generated panels. Gradients of parameters: a block has up to
               32 outputs × 64 inputs of a layer and the columns of one worker; workers are added up in order. What
               flows to a map goes through the centres that read it: no atomics, and the same bits every time.

The twins part where C++ has templates: one kernel of readers serves β and the map, and is told which; an array that
there is not is another one, which a flag says not to read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, int32

from kernels_numba.gpu import mapping
from kernels_numba.gpu.mapping import (
    SIDES,
    THREADS,
    add_up,
    any_image,
    ceil_div,
    device,
    first_reader,
    first_real,
    flat,
    fused,
    kernel,
    line,
    merge_moments,
    next_reader,
    observe,
    outer_product,
    pair_centres,
    pair_readers,
    product,
    row_sums,
    source_of,
    start,
    tables_of,
    widths_of,
    workers_of,
    write_moments,
    zero_of,
)

TILE, MANY_BLOCKS = 64, 256
"""Columns of a tile at most, and blocks that fill an H200."""
OUTPUTS, INPUTS = 32, 64
"""Outputs and inputs of a block that has a layer's gradients."""

CONCATENATION, STAR_PRODUCT, CLIQUE_PRODUCT = range(3)
KINDS = ("concatenation", "star_product", "clique_product")

RELATION, ARRAY, ATTENTION = range(3)
"""Where rows come from: the relation, an array, or what flows to α from y."""


class Patchwise(NamedTuple):
    """All that a kernel reads, maps as images × channels × centres or positions."""

    centres: Any
    map: Any
    beta: Any
    gradient: Any
    scale: Any
    shift: Any
    parameters: Any
    mean_gradient: Any
    """Of statistics without a layer, with the next two: what flows to the rows."""
    variance_gradient: Any
    mean: Any
    share: Any
    """1 / columns"""
    zero: Any
    """Of the arrays' type."""
    kind: int
    layered: bool
    """Is there a layer?"""
    before: int
    """Rows of the first layer before those of the relation."""
    groups: int
    p: int
    """Centres of an image."""
    columns: int
    """And of all images."""


class Source(NamedTuple):
    kind: int
    array: Any
    """rows × columns of all images"""


class Product(NamedTuple):
    """A product of weights with rows that a source generates: Σ_d parameters[begin + o · step_o + d · step_d] · row d,
    and parameters[bias + o · step_b], unless that is −1."""

    source: Source
    begin: int
    bias: int
    step_o: int
    step_b: int
    step_d: int
    depth: int


class Sink(NamedTuple):
    """Where a layer's outputs go: into an array, which they are rectified for or masked by another one, or as what
    flows to them from their statistics; or to centres. All elements one behind the other."""

    to: Any
    at_centres: bool
    mask: Any
    masked: bool
    spread: bool
    rectified: bool


class Sides(NamedTuple):
    """The two maps of a product: what flows to `mine`, whose taps are rows · step_mine, from `other`, whose are rows ·
    step_other. Of centres there is no tap, and its step is 0."""

    mine: Any
    other: Any
    step_mine: int
    step_other: int
    at_centres: bool
    """Is `mine` one of centres?"""
    from_centres: bool
    """Is `other`?"""


class Plan(NamedTuple):
    """A block's panels: outputs and rows, of so many columns; and what begins where in shared memory, in elements of
    the arrays' type."""

    columns: int
    outputs: int
    depth: int
    panel: int
    held: int
    others: int
    size: int


@device
def _place(of, at, begin, count, places, me, threads):
    """The places of a tile's columns; before a barrier."""
    ow = at.columns.shape[1]
    for i in range(me, count, threads):
        image = (begin + i) // of.p
        centre = begin + i - image * of.p
        row = centre // ow
        places[i] = image if begin + i < of.columns else -1
        places[count + i] = centre
        places[2 * count + i] = row
        places[3 * count + i] = centre - row * ow


@device
def _related(of, at, row, image, centre, oy, ox):
    """A row of the relation, before scale and shift."""
    k = at.rows.shape[0]
    first = row // k
    there = source_of(at, row - first * k, oy, ox)
    found = of.zero
    if there >= 0:
        if of.kind == CONCATENATION:
            found = of.map[image, first, there]
        else:
            here = source_of(at, first, oy, ox) if of.kind == CLIQUE_PRODUCT else centre
            if here >= 0:
                for c in range(of.map.shape[1]):
                    found += of.centres[image, c, here] * of.map[image, c, there]
    return found


@device
def _value(of, at, source, row, image, centre, oy, ox):
    found = of.zero
    if source.kind == ARRAY:
        found = source.array[row, image * of.p + centre]
    elif source.kind == ATTENTION:
        k = at.rows.shape[0]
        group = row // k
        there = source_of(at, row - group * k, oy, ox)
        if there >= 0:
            for c in range(group, of.beta.shape[1], of.groups):
                found += of.gradient[image, c, centre] * of.beta[image, c, there]
    elif row < of.before:
        found = of.centres[image, row, centre]
    else:
        row -= of.before
        found = _related(of, at, row, image, centre, oy, ox)
        if of.layered:
            found = max(of.scale[row] * found + of.shift[row], of.zero)
    return found


@device
def _flow(of, row, found, rectified):
    """What flows to the relation's row from what flows to the rectified one."""
    return of.scale[row] * rectified if of.scale[row] * found + of.shift[row] > of.zero else of.zero


@device
def _spread(of, row, found):
    """What flows to a row from the statistics."""
    slope = of.variance_gradient[row] + of.variance_gradient[row]
    return of.share * (of.mean_gradient[row] + slope * (found - of.mean[row]))


@device
def _fill(of, source, at, places, columns, first, count, shared, to, me, threads):
    """Rows of a source from `first` on, 0 where there is no place."""
    for item in range(me, count * columns, threads):
        row = item // columns
        i = item - row * columns
        found = of.zero
        if places[i] >= 0:
            centre, oy, ox = places[columns + i], places[2 * columns + i], places[3 * columns + i]
            found = _value(of, at, source, first + row, places[i], centre, oy, ox)
        shared[to + item] = found


@device
def _compute(of, layer, first, step, count, at, plan, places, shared, me, threads):
    """`count` outputs from `first` on, `step` apart, behind `plan.held`. Begins and ends with a barrier."""
    begin, bias = layer.begin + first * layer.step_o, layer.bias
    if bias >= 0:
        bias += first * layer.step_b
    cuda.syncthreads()
    for d in range(0, layer.depth, plan.depth):
        rows = min(plan.depth, layer.depth - d)
        _fill(of, layer.source, at, places, plan.columns, d, rows, shared, plan.panel, me, threads)
        cuda.syncthreads()
        product(
            of.parameters, begin + d * layer.step_d, layer.step_o * step, layer.step_d,
            bias if d == 0 else -1, layer.step_b * step, shared, plan.panel, rows, plan.columns, plan.held, count,
            d > 0, False, False, of.zero, me, threads,
        )  # fmt: skip
        cuda.syncthreads()


@kernel
def _layer(of, layer, sink, outputs, plan, at):
    """A layer's outputs, or what flows to its inputs."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.map.dtype)
    me, threads, columns = cuda.threadIdx.x, cuda.blockDim.x, plan.columns
    panels = (outputs + plan.outputs - 1) // plan.outputs
    tile = cuda.blockIdx.x // panels
    first = (cuda.blockIdx.x - tile * panels) * plan.outputs
    count = min(plan.outputs, outputs - first)
    _place(of, at, tile * columns, columns, places, me, threads)
    _compute(of, layer, first, 1, count, at, plan, places, shared, me, threads)
    for item in range(me, count * columns, threads):
        o = item // columns
        i = item - o * columns
        o += first
        image, centre = places[i], places[columns + i]
        if image >= 0:
            value = shared[plan.held + item] if layer.depth > 0 else of.zero
            if sink.masked and not sink.mask[o, image * of.p + centre] > of.zero:
                value = of.zero
            if sink.spread:
                value = _spread(of, o, value)
            if sink.rectified:
                value = max(value, of.zero)
            if sink.at_centres:
                sink.to[(image * outputs + o) * of.p + centre] = value
            else:
                sink.to[o * of.columns + image * of.p + centre] = value


@kernel
def _attention(of, layer, y, plan, at):
    """The last layer, a group of channels at a time, and the aggregation."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.map.dtype)
    me, threads, columns, k = cuda.threadIdx.x, cuda.blockDim.x, plan.columns, at.rows.shape[0]
    share, groups = of.beta.shape[1] // of.groups, of.groups
    tile = cuda.blockIdx.x // groups
    g = cuda.blockIdx.x - tile * groups
    _place(of, at, tile * columns, columns, places, me, threads)
    for item in range(me, share * columns, threads):
        shared[plan.others + item] = of.zero
    for tap in range(0, k, plan.outputs):
        count = min(plan.outputs, k - tap)
        _compute(of, layer, g * k + tap, 1, count, at, plan, places, shared, me, threads)
        for item in range(me, (share + SIDES - 1) // SIDES * columns, threads):
            block = item // columns
            i, first = item - block * columns, block * SIDES
            image, oy, ox = places[i], places[2 * columns + i], places[3 * columns + i]
            if image >= 0:
                # beyond the last channel, it again
                c0 = g + first * groups
                c1 = g + min(first + 1, share - 1) * groups
                c2 = g + min(first + 2, share - 1) * groups
                c3 = g + min(first + 3, share - 1) * groups
                sums = (of.zero, of.zero, of.zero, of.zero)
                for j in range(count):
                    there = source_of(at, tap + j, oy, ox)
                    if there >= 0:
                        values = (
                            of.beta[image, c0, there],
                            of.beta[image, c1, there],
                            of.beta[image, c2, there],
                            of.beta[image, c3, there],
                        )
                        sums = fused(sums, shared[plan.held + j * columns + i], values)
                for s in range(SIDES):
                    if first + s < share:
                        shared[plan.others + (first + s) * columns + i] += sums[s]
    cuda.syncthreads()
    for item in range(me, share * columns, threads):
        s = item // columns
        i = item - s * columns
        if places[i] >= 0:
            y[places[i], g + s * groups, places[columns + i]] = shared[plan.others + item]


@kernel
def _statistics(of, layer, outputs, workers, partial, plan, at):
    """Moments of the last layer's outputs, or of the relation's rows, over the columns of a worker."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.map.dtype)
    me, threads, columns = cuda.threadIdx.x, cuda.blockDim.x, plan.columns
    panels = (outputs + plan.outputs - 1) // plan.outputs
    worker = cuda.blockIdx.x // panels
    first = (cuda.blockIdx.x - worker * panels) * plan.outputs
    count = min(plan.outputs, outputs - first)
    for item in range(me, plan.size - plan.others, threads):
        shared[plan.others + item] = of.zero
    for begin in range(worker * columns, of.columns, workers * columns):
        cuda.syncthreads()
        _place(of, at, begin, columns, places, me, threads)
        if of.layered:
            _compute(of, layer, first, 1, count, at, plan, places, shared, me, threads)
        else:
            cuda.syncthreads()
            _fill(of, layer.source, at, places, columns, first, count, shared, plan.held, me, threads)
            cuda.syncthreads()
        observe(shared, plan.held, count, columns, places, plan.others, of.zero, me, threads)
    cuda.syncthreads()
    write_moments(shared, plan.others, count, partial, 3 * (worker * outputs + first), me, threads)


@kernel
def _weights(of, flow, values, outputs, inputs, workers, partial, plan, at):
    """What flows to W and b of a layer, Σ flow · input over the columns of a worker."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.map.dtype)
    me, threads, columns = cuda.threadIdx.x, cuda.blockDim.x, plan.columns
    panels_i = (inputs + plan.depth - 1) // plan.depth
    panels_o = (outputs + plan.outputs - 1) // plan.outputs
    rest = cuda.blockIdx.x // panels_i
    first_i = (cuda.blockIdx.x - rest * panels_i) * plan.depth
    worker = rest // panels_o
    first_o = (rest - worker * panels_o) * plan.outputs
    held_i, held_o = min(plan.depth, inputs - first_i), min(plan.outputs, outputs - first_o)
    sums = plan.others
    bias = sums + held_o * held_i
    for item in range(me, held_o * (held_i + 1), threads):
        shared[sums + item] = of.zero
    for begin in range(worker * columns, of.columns, workers * columns):
        cuda.syncthreads()
        _place(of, at, begin, columns, places, me, threads)
        cuda.syncthreads()
        _fill(of, flow, at, places, columns, first_o, held_o, shared, plan.held, me, threads)
        _fill(of, values, at, places, columns, first_i, held_i, shared, plan.panel, me, threads)
        cuda.syncthreads()
        outer_product(
            shared, plan.held, held_o, plan.panel, held_i, columns, shared, sums, held_i, of.zero, me, threads
        )
        if first_i == 0:
            row_sums(shared, plan.held, held_o, columns, shared, bias, of.zero, me, threads)
    cuda.syncthreads()
    mine = worker * outputs * (inputs + 1)
    for item in range(me, held_o * held_i, threads):
        o = item // held_i
        partial[mine + (first_o + o) * inputs + first_i + item - o * held_i] = shared[sums + item]
    if first_i == 0:
        for o in range(me, held_o, threads):
            partial[mine + outputs * inputs + first_o + o] = shared[bias + o]


@kernel
def _affine(of, layer, rows, workers, scale_partial, shift_partial, plan, at):
    """What flows to scale and shift, from all columns of a worker; `layer` is what flows to the rectified rows."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.map.dtype)
    me, threads, columns = cuda.threadIdx.x, cuda.blockDim.x, plan.columns
    panels = (rows + plan.outputs - 1) // plan.outputs
    worker = cuda.blockIdx.x // panels
    first = (cuda.blockIdx.x - worker * panels) * plan.outputs
    count = min(plan.outputs, rows - first)
    scales = plan.others
    shifts = scales + plan.outputs
    products = shifts + plan.outputs
    for row in range(me, 2 * plan.outputs, threads):
        shared[scales + row] = of.zero
    for begin in range(worker * columns, of.columns, workers * columns):
        cuda.syncthreads()
        _place(of, at, begin, columns, places, me, threads)
        _compute(of, layer, first, 1, count, at, plan, places, shared, me, threads)
        for item in range(me, count * columns, threads):
            row = item // columns
            i = item - row * columns
            row += first
            found, flow = of.zero, of.zero
            if places[i] >= 0:
                centre, oy, ox = places[columns + i], places[2 * columns + i], places[3 * columns + i]
                found = _related(of, at, row, places[i], centre, oy, ox)
                if of.scale[row] * found + of.shift[row] > of.zero:
                    flow = shared[plan.held + item]
            shared[plan.held + item] = flow
            shared[products + item] = flow * found
        cuda.syncthreads()
        row_sums(shared, products, count, columns, shared, scales, of.zero, me, threads)
        row_sums(shared, plan.held, count, columns, shared, shifts, of.zero, me, threads)
    cuda.syncthreads()
    for row in range(me, count, threads):
        scale_partial[worker * rows + first + row] = shared[scales + row]
        shift_partial[worker * rows + first + row] = shared[shifts + row]


@kernel
def _readers(of, layer, beta, outputs, share, to, plan, at):
    """What flows to a map at `plan.columns` positions, tap by tap, and of those that several centres read through the
    same tap, reader by reader: to β, α · gradient, of some groups of channels; or to the map of a concatenation, of
    some channels."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.map.dtype)
    me, threads, tile, k = cuda.threadIdx.x, cuda.blockDim.x, plan.columns, at.rows.shape[0]
    ow, area = at.columns.shape[1], to.shape[2]
    panels = (outputs + plan.outputs - 1) // plan.outputs
    block = cuda.blockIdx.x // panels
    first = (cuda.blockIdx.x - block * panels) * plan.outputs
    count, positions = min(plan.outputs, outputs - first), to.shape[0] * area
    begin = block * tile
    exists = me < tile and begin + me < positions
    image = (begin + me) // area if exists else 0
    source = begin + me - image * area if exists else 0
    for item in range(me, share * count * tile, threads):
        shared[plan.others + item] = of.zero
    for tap in range(k):
        reader = first_reader(at, source, tap)
        while True:
            cuda.syncthreads()
            if me < tile:
                centre = -1
                if exists:
                    reader, centre = next_reader(at, source, reader, tap + 1)
                row = max(centre, 0) // ow
                places[me] = image if centre >= 0 else -1
                places[tile + me] = max(centre, 0)
                places[2 * tile + me] = row
                places[3 * tile + me] = max(centre, 0) - row * ow
            cuda.syncthreads()
            if not any_image(places, tile):
                break
            if beta or of.layered:
                _compute(of, layer, first * k + tap, k, count, at, plan, places, shared, me, threads)
            for item in range(me, share * count * tile, threads):
                rest = item // tile
                i = item - rest * tile
                s = rest // count
                o = rest - s * count
                channel = first + o + s * outputs
                if places[i] >= 0:
                    if beta:
                        alpha = shared[plan.held + o * tile + i]
                        shared[plan.others + item] += alpha * of.gradient[places[i], channel, places[tile + i]]
                    else:
                        found = of.map[places[i], channel, begin + i - places[i] * area]
                        row = channel * k + tap
                        if of.layered:
                            flow = _flow(of, row, found, shared[plan.held + o * tile + i])
                        else:
                            flow = _spread(of, row, found)
                        shared[plan.others + item] += flow
    for item in range(me, share * count * tile, threads):
        rest = item // tile
        i = item - rest * tile
        s = rest // count
        if begin + i < positions:
            image = (begin + i) // area
            to[image, first + rest - s * count + s * outputs, begin + i - image * area] = shared[plan.others + item]


@kernel
def _product_backward(of, sides, layer, gradient, tile, columns, flows, sums, at):
    """What flows to one side of a star or clique product, at a tile of positions or centres, through all pairs that
    they are in; and of a clique product, of each of them with every other tap of its centre. A thread has a pair's dot
    products. Shared memory: flows, and sums; behind the pairs, where each is in `other`, −1 if outside."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, of.map.dtype)
    me, threads, k, ow = cuda.threadIdx.x, cuda.blockDim.x, at.rows.shape[0], at.columns.shape[1]
    r, size, there = of.map.shape[1], sides.mine.shape[2], 4 * columns
    total = sides.mine.shape[0] * size
    begin = cuda.blockIdx.x * tile
    exists = me < tile and begin + me < total
    image = (begin + me) // size if exists else -1
    source = begin + me - image * size if exists else 0
    reader = first_reader(at, 0 if sides.at_centres else source, 0)
    others = 1 if sides.from_centres or sides.at_centres else k
    step = sides.step_other if sides.at_centres else sides.step_mine

    for item in range(me, r * tile, threads):
        shared[sums + item] = of.zero
    tap = 0
    while True:
        cuda.syncthreads()
        if sides.at_centres:
            pair_centres(at, begin, total, of.p, tile, tap, columns, pairs, me, threads)
        else:
            reader = pair_readers(at, reader, image, source, tile, columns, pairs, me)
        cuda.syncthreads()
        if tap >= k if sides.at_centres else not any_image(pairs, tile):
            break
        for l in range(others):  # noqa: E741
            for column in range(me, columns, threads):
                owner, centre = pairs[column], pairs[columns + column]
                found = -1
                if owner >= 0:
                    oy = centre // ow
                    ox = centre - oy * ow
                    here = centre + 0 if sides.at_centres else pairs[2 * columns + column] + 0
                    if sides.from_centres:
                        found = centre + 0
                    elif sides.at_centres:
                        found = pairs[2 * columns + column] + 0
                    else:
                        found = source_of(at, l, oy, ox)
                    if found >= 0:
                        row = pairs[3 * columns + column] * step + l * sides.step_other
                        dot, flow = of.zero, of.zero
                        for c in range(r):
                            dot += sides.mine[owner, c, here] * sides.other[owner, c, found]
                        if not of.layered:
                            flow = _spread(of, row, dot)
                        elif of.scale[row] * dot + of.shift[row] > of.zero:
                            place = layer.begin + row * layer.step_o
                            for d in range(layer.depth):
                                value = _value(of, at, layer.source, d, owner, centre, oy, ox)
                                flow += of.parameters[place + d * layer.step_d] * value
                            flow *= of.scale[row]
                        shared[flows + column] = flow
                pairs[there + column] = found
            cuda.syncthreads()
            for item in range(me, r * tile, threads):
                c = item // tile
                gathered = of.zero
                for column in range(item - c * tile, columns, tile):
                    if pairs[there + column] >= 0:
                        gathered += shared[flows + column] * sides.other[pairs[column], c, pairs[there + column]]
                shared[sums + item] += gathered
            cuda.syncthreads()
        tap += columns // tile
    for item in range(me, r * tile, threads):
        c = item // tile
        i = item - c * tile
        if begin + i < total:
            image = (begin + i) // size
            gradient[image, c, begin + i - image * size] = shared[sums + item]


# On the host.


def _layout(columns: int, outputs: int, depth: int, itemsize: int, others: int) -> Plan:
    panel = first_real(4 * columns, itemsize)
    held = panel + depth * columns
    first = held + outputs * columns
    return Plan(columns, outputs, depth, panel, held, first, first + others)


def _none(columns: int, outputs: int, depth: int) -> int:
    return 0


class _Launcher:
    """The kernels of a core, and the memory that they share; layers count from 1."""

    def __init__(self, centres, map_, beta, scale, shift, parameters, widths, kind, lookups, gradient=None,
                 statistics=None):  # fmt: skip
        self.lookups, self.at, self.widths = lookups, tables_of(lookups, map_), widths_of(widths)
        n, r = map_.shape[:2]
        zero = zero_of(map_)
        self.k, self.r, self.area = self.at.rows.shape[0], r, map_.shape[2] * map_.shape[3]
        p = self.at.rows.shape[1] * self.at.columns.shape[1]
        layers, concatenates = self.widths.layers, kind == "concatenation"
        map_flat = flat(map_)
        self.of = Patchwise(
            flat(centres), map_flat, map_flat if beta is None else flat(beta),
            map_flat if gradient is None else gradient, scale, shift, parameters,
            *((scale,) * 3 if statistics is None else statistics), type(zero)(1 / (n * p)), zero,
            KINDS.index(kind), layers > 0, r if concatenates and layers else 0, self.widths.last // self.k, p, n * p,
        )  # fmt: skip
        self.nothing = lookups.empty(1, 1)
        hidden = self.widths.sizes[1:layers]
        self.held = [lookups.empty(size, n * p) for size in hidden]
        """The outputs of all layers but the last."""

    def start(self, function: Any, blocks: int, elements: int, *arguments: Any) -> None:
        start(function, blocks, elements, self.lookups, self.of.zero, self.of, *arguments)

    def plan(self, most: tuple[int, int, int], total: int, outputs: int, depth: int,
             others: Callable[[int, int, int], int] = _none) -> Plan:  # fmt: skip
        """`others(columns, outputs, depth)` elements besides. As many of each as there are, up to those in `most`, and
        fit shared memory; but fewer columns if that makes more blocks, until there are MANY_BLOCKS; ValueError if
        nothing fits."""
        itemsize = self.of.zero.itemsize
        columns, outputs_held, depth = most[0], min(most[1], outputs), max(1, min(most[2], depth))
        while columns > 16 and ceil_div(total, columns) * ceil_div(outputs, outputs_held) < MANY_BLOCKS:
            columns //= 2
        while True:
            plan = _layout(columns, outputs_held, depth, itemsize, others(columns, outputs_held, depth))
            if plan.size * itemsize <= mapping.SHARED_BYTES:
                return plan
            if outputs_held > 4 and outputs_held >= depth:
                outputs_held = ceil_div(outputs_held, 2)
            elif depth > 4:
                depth = ceil_div(depth, 2)
            elif columns > 4:
                columns //= 2
            else:
                raise ValueError(
                    f"a patchwise attention needs {plan.size * itemsize} bytes of shared memory; expected at most "
                    f"{mapping.SHARED_BYTES}"
                )

    def workers(self, plan: Plan, panels: int, size: int) -> int:
        """As many workers, whose sums are of that size, as there are tiles, or as make about MANY_BLOCKS · 4 blocks of
        so many panels."""
        wanted = ceil_div(MANY_BLOCKS * 4, panels)
        return workers_of(size, min(ceil_div(self.of.columns, plan.columns), wanted))

    def input(self, layer: int) -> Source:
        """What a layer reads."""
        return Source(ARRAY, self.held[layer - 2]) if layer > 1 else Source(RELATION, self.nothing)

    def product_of(self, layer: int) -> Product:
        if not layer:
            return Product(self.input(0), 0, -1, 0, 0, 0, 0)
        inputs, outputs, begin = *self.widths.sizes[layer - 1 : layer + 1], self.widths.begins[layer - 1]
        return Product(self.input(layer), begin, begin + inputs * outputs, inputs, 1, 1, inputs)

    def back(self, layer: int, flow: Source, first: int) -> Product:
        """From what flows to a layer's outputs to what flows to its inputs from `first` on."""
        if not layer:
            return Product(flow, 0, -1, 0, 0, 0, 0)
        inputs, outputs, begin = *self.widths.sizes[layer - 1 : layer + 1], self.widths.begins[layer - 1]
        return Product(flow, begin + first, -1, 1, 0, inputs, outputs)

    def layer(self, layer: Product, to: Any, outputs: int, *, at_centres: bool = False, mask: Any = None,
              spread: bool = False, rectified: bool = False) -> None:  # fmt: skip
        masked = mask is not None
        sink = Sink(line(to), at_centres, mask if masked else self.nothing, masked, spread, rectified)
        plan = self.plan((TILE, TILE, mapping.MOST_ROWS), self.of.columns, outputs, layer.depth)
        blocks = ceil_div(self.of.columns, plan.columns) * ceil_div(outputs, plan.outputs)
        self.start(_layer, blocks, plan.size, layer, sink, outputs, plan, self.at)

    def forward(self) -> None:
        """The outputs of all layers but the last."""
        for number, held in enumerate(self.held, 1):
            self.layer(self.product_of(number), held, held.shape[0], rectified=True)

    def attention(self, y: Any) -> None:
        last, share, groups = self.product_of(self.widths.layers), y.shape[1] // self.of.groups, self.of.groups
        most = TILE, TILE, mapping.MOST_ROWS
        plan = self.plan(most, self.of.columns * groups, self.k, last.depth, lambda columns, *_: share * columns)
        self.start(_attention, ceil_div(self.of.columns, plan.columns) * groups, plan.size, last, y, plan, self.at)

    def statistics(self, mean: Any, variance: Any) -> None:
        last, rows = self.product_of(self.widths.layers), self.widths.last
        most = TILE, TILE, mapping.MOST_ROWS
        plan = self.plan(most, self.of.columns, rows, last.depth, lambda _, outputs, __: 3 * max(THREADS, outputs))
        panels = ceil_div(rows, plan.outputs)
        workers = self.workers(plan, panels, 3 * rows)
        partial = self.lookups.empty(workers * 3 * rows)
        self.start(_statistics, panels * workers, plan.size, last, rows, workers, partial, plan, self.at)
        merge_moments(partial, workers, rows, mean, variance, self.lookups)

    def weights(self, layer: int, flow: Source, gradient: Any) -> None:
        """What flows to a layer's parameters."""
        inputs, outputs = self.widths.sizes[layer - 1 : layer + 1]
        most = TILE, OUTPUTS, INPUTS
        plan = self.plan(most, 1 << 31, outputs, inputs, lambda _, held_o, held_i: held_o * (held_i + 1))
        panels, size = ceil_div(outputs, plan.outputs) * ceil_div(inputs, plan.depth), outputs * (inputs + 1)
        workers = self.workers(plan, panels, size)
        partial = self.lookups.empty(workers * size)
        self.start(
            _weights, panels * workers, plan.size,
            flow, self.input(layer), outputs, inputs, workers, partial, plan, self.at,
        )  # fmt: skip
        begin = self.widths.begins[layer - 1]
        add_up(partial, workers, gradient[begin : begin + size], self.lookups)

    def readers(self, layer: Product, beta: bool, outputs: int, share: int, to: Any) -> None:
        """What flows to a map of share · outputs channels; rows of the layer are outputs · k + tap."""
        to = flat(to)
        total = to.shape[0] * to.shape[2]
        most = min(32, THREADS), OUTPUTS, mapping.MOST_ROWS
        plan = self.plan(most, total, outputs, layer.depth, lambda columns, held, _: share * held * columns)
        blocks = ceil_div(total, plan.columns) * ceil_div(outputs, plan.outputs)
        self.start(_readers, blocks, plan.size, layer, beta, outputs, share, to, plan, self.at)

    def distribute(self, gradient: Any) -> None:
        """What flows to β."""
        groups = self.of.groups
        self.readers(self.product_of(self.widths.layers), True, groups, gradient.shape[1] // groups, gradient)

    def backward(self, flow: Source, centres: Any, map_: Any, scale: Any, shift: Any, parameters: Any) -> None:
        """From what flows to the last layer's outputs to all that is wanted."""
        for number in range(self.widths.layers, 0, -1):
            if parameters is not None:
                self.weights(number, flow, parameters)
            if number > 1:
                size = self.widths.sizes[number - 1]
                flowing = self.lookups.empty(size, self.of.columns)
                self.layer(self.back(number, flow, 0), flowing, size, mask=self.held[number - 2])
                flow = Source(ARRAY, flowing)
        first, of, k = min(self.widths.layers, 1), self.of, self.k
        rows = self.back(first, flow, of.before)
        self.affine(rows, scale, shift)
        if of.kind == CONCATENATION:
            if centres is not None:
                self.layer(self.back(first, flow, 0), centres, self.r, at_centres=True)
            if map_ is not None:
                self.readers(rows, False, self.r, 1, map_)
            return
        star = of.kind == STAR_PRODUCT
        if centres is not None:
            self.sides(Sides(of.centres, of.map, 0 if star else k, 1, star, False), rows, centres)
        if map_ is not None:
            self.sides(Sides(of.map, of.centres, 1, 0 if star else k, False, star), rows, map_)

    def affine(self, flow: Product, scale: Any, shift: Any) -> None:
        if scale is None and shift is None:
            return
        rows = self.widths.inputs - self.of.before
        workers, scales, shifts = 0, self.of.scale, self.of.shift
        if self.widths.layers:
            most = TILE, OUTPUTS, mapping.MOST_ROWS
            plan = self.plan(most, 1 << 31, rows, flow.depth, lambda columns, held, _: (2 + columns) * held)
            panels = ceil_div(rows, plan.outputs)
            workers = self.workers(plan, panels, 2 * rows)
            scales, shifts = self.lookups.empty(workers * rows), self.lookups.empty(workers * rows)
            self.start(_affine, panels * workers, plan.size, flow, rows, workers, scales, shifts, plan, self.at)
        for partial, to in ((scales, scale), (shifts, shift)):
            if to is not None:
                add_up(partial, workers, to, self.lookups)

    def sides(self, sides: Sides, flow: Product, gradient: Any) -> None:
        itemsize = self.of.zero.itemsize
        tile = min(32, THREADS)
        while True:
            columns = tile * max(1, min(THREADS // tile, self.k))
            flows = first_real(5 * columns, itemsize)
            sums = flows + columns
            size = sums + self.r * tile
            if size * itemsize <= mapping.SHARED_BYTES:
                break
            if tile == 1:
                raise ValueError(
                    f"a patchwise attention needs {size * itemsize} bytes of shared memory; expected at most "
                    f"{mapping.SHARED_BYTES}"
                )
            tile //= 2
        gradient = flat(gradient)
        blocks = ceil_div(gradient.shape[0] * gradient.shape[2], tile)
        self.start(_product_backward, blocks, size, sides, flow, gradient, tile, columns, flows, sums, self.at)


def patchwise_attention(centres, map_, beta, scale, shift, parameters, y, widths, kind, lookups):
    launcher = _Launcher(centres, map_, beta, scale, shift, parameters, widths, kind, lookups)
    launcher.forward()
    launcher.attention(y)


def patchwise_attention_backward(
    gradient, centres, map_, beta, scale, shift, parameters, centres_gradient, map_gradient, beta_gradient,
    scale_gradient, shift_gradient, parameters_gradient, widths, kind, lookups,
):  # fmt: skip
    launcher = _Launcher(centres, map_, beta, scale, shift, parameters, widths, kind, lookups, gradient=gradient)
    launcher.forward()
    if beta_gradient is not None:
        launcher.distribute(beta_gradient)
    flow = Source(ATTENTION, launcher.nothing)
    launcher.backward(flow, centres_gradient, map_gradient, scale_gradient, shift_gradient, parameters_gradient)


def patchwise_statistics(centres, map_, scale, shift, parameters, mean, variance, widths, kind, lookups):
    launcher = _Launcher(centres, map_, None, scale, shift, parameters, widths, kind, lookups)
    launcher.forward()
    launcher.statistics(mean, variance)


def patchwise_statistics_backward(
    mean_gradient, variance_gradient, mean, centres, map_, scale, shift, parameters, centres_gradient, map_gradient,
    scale_gradient, shift_gradient, parameters_gradient, widths, kind, lookups,
):  # fmt: skip
    statistics = mean_gradient, variance_gradient, mean
    launcher = _Launcher(centres, map_, None, scale, shift, parameters, widths, kind, lookups, statistics=statistics)
    launcher.forward()
    flow = Source(ARRAY, launcher.nothing)
    if launcher.widths.layers:
        rows = launcher.widths.last
        flow = Source(ARRAY, lookups.empty(rows, launcher.of.columns))
        launcher.layer(launcher.product_of(launcher.widths.layers), flow.array, rows, spread=True)
    launcher.backward(flow, centres_gradient, map_gradient, scale_gradient, shift_gradient, parameters_gradient)
