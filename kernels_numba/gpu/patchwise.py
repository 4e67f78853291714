"""The fused patchwise attention on a GPU: the rows of a relation, [centres, ρ(scale ⊙ ψ_j + shift)] or ρ(scale ⊙ δ +
shift) for the star or clique product δ, the mapping to α, and y_i[c] = Σ_j α[c mod g, j] β_j[c] (SAN Eq. 4). Also the
statistics of the mapping's outputs, for a batch norm after it, and the gradients. Twin of
kernels_cuda/csrc/patchwise.cu, for float32 and float64.

    traffic    A column is a centre. The outputs of all layers but the last, n · hidden · p elements, go through memory.
               The rows of the relation and α have the size of the footprint. They are generated panel by panel in
               shared memory, once for every 64 outputs that need them. Maps and parameters come from the caches.
    forward    A kernel for each layer but the last: a block has up to 64 outputs × 64 columns. Another kernel for the
               last layer and the aggregation: a block has a group of channels × 64 columns.
    backward   The gradient of a layer's inputs is one more product of generated panels. For the gradients of
               parameters, a block has up to 32 outputs × 64 inputs of a layer and the columns of one worker; the
               workers' sums are added in order. The gradient of a map goes through the centres that read it: no
               atomics, and the same bits every time.

The two files differ where C++ has templates: one kernel of readers serves β and the map, and an argument says which.
Another array stands in for an array that is absent, and a flag says that it is not read.
"""

from __future__ import annotations

from collections.abc import Callable
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
    start,
    workers_of,
    zero_of,
)
from kernels_numba.gpu.mapping import (
    SIDES,
    Finish,
    Rows,
    Target,
    Weights,
    add_up,
    fused,
    gather_moments,
    merge_moments,
    outer_product,
    product,
    row_sums,
    widths_of,
    write_moments,
)
from kernels_numba.gpu.pairs import (
    Centres,
    any_image,
    first_reader,
    next_reader,
    pair_centres,
    pair_readers,
    source_of,
    tables_of,
)

TILE, MANY_BLOCKS = 64, 256
"""At most this many columns of a tile; and blocks that fill an H200."""
OUTPUTS, INPUTS = 32, 64
"""At most this many outputs and inputs of a block that computes the gradients of a layer."""

CONCATENATION, STAR_PRODUCT, CLIQUE_PRODUCT = range(3)
KINDS = ("concatenation", "star_product", "clique_product")

RELATION, ARRAY, ATTENTION = range(3)
"""Where rows come from: the relation, an array, or the gradient of α."""


class Inputs(NamedTuple):
    """What the kernels read. Maps are images × channels × centres, or positions."""

    centres: Any
    map: Any
    beta: Any
    gradient: Any
    scale: Any
    shift: Any
    parameters: Any
    mean_gradient: Any
    """For statistics without a layer: the gradients of the rows follow from this field and the next two."""
    variance_gradient: Any
    mean: Any
    inverse_count: Any
    """1 / columns"""
    zero: Any
    """0 of the arrays' dtype."""
    kind: int
    layered: bool
    """Whether there is a layer."""
    before: int
    """The number of inputs of the first layer before the rows of the relation."""
    groups: int
    p: int
    """Centres of one image."""
    columns: int
    """Centres of all images."""


class Source(NamedTuple):
    kind: int
    array: Any
    """rows × columns of all images"""


class LayerProduct(NamedTuple):
    """A product of weights with the rows of a source: Σ_d parameters[begin + o · step_o + d · step_d] · row d, plus
    parameters[bias + o · step_b] unless `bias` is −1."""

    source: Source
    begin: int
    bias: int
    step_o: int
    step_b: int
    step_d: int
    depth: int


class Sink(NamedTuple):
    """Where a layer's outputs are written: to an array (rows × columns), or to one of images × outputs × centres; both
    in one axis. They may be rectified, set to 0 where `mask` is 0 or negative, or replaced by their gradients from
    those of the statistics."""

    to: Any
    to_centres: bool
    mask: Any
    masked: bool
    from_moments: bool
    rectified: bool


class Sides(NamedTuple):
    """The two maps of a product: `mine`, whose gradient is computed, and `other`. The row of a pair of taps is tap of
    mine · step_mine + tap of other · step_other. The step is 0 for centres, which have no tap."""

    mine: Any
    other: Any
    step_mine: int
    step_other: int
    to_centres: bool
    """Whether `mine` holds centres."""
    from_centres: bool
    """Whether `other` does."""


class Plan(NamedTuple):
    """The sizes of a block's panels: columns, outputs, and rows; and where each array begins in `Block.shared`."""

    columns: int
    outputs: int
    depth: int
    panel: int
    held: int
    others: int
    size: int


class Place(NamedTuple):
    """A centre of an image, and its row and column."""

    image: int
    centre: int
    row: int
    column: int


@device
def _list_places(inputs, tables, begin, count, block):
    """List the places of `count` columns from `begin` on; a barrier must follow."""
    places, ow = block.pairs, tables.columns.shape[1]
    for i in range(block.thread, count, block.threads):
        image = (begin + i) // inputs.p
        centre = begin + i - image * inputs.p
        row = centre // ow
        places[i] = image if begin + i < inputs.columns else -1
        places[count + i] = centre
        places[2 * count + i] = row
        places[3 * count + i] = centre - row * ow


@device
def _place_of(places, columns, i):
    """The place of a column."""
    return Place(places[i], places[columns + i], places[2 * columns + i], places[3 * columns + i])


@device
def _read(map_, image, channel, position, zero):
    """The value of the map; 0 outside."""
    return map_[image, channel, position] if position >= 0 else zero


@device
def _dot(left, here, right, there, image, zero):
    """Σ_c left[c] at `here` · right[c] at `there`. A product with the 0 outside is NaN if the other factor is not
    finite."""
    total = zero
    for c in range(right.shape[1]):
        total += _read(left, image, c, here, zero) * _read(right, image, c, there, zero)
    return total


@device
def _related(inputs, tables, row, place):
    """A row of the relation before scale and shift."""
    k = tables.rows.shape[0]
    first = row // k
    there = source_of(tables, row - first * k, place.row, place.column)
    if inputs.kind == CONCATENATION:
        return _read(inputs.map, place.image, first, there, inputs.zero)
    here = place.centre
    if inputs.kind == CLIQUE_PRODUCT:
        here = source_of(tables, first, place.row, place.column)
    return _dot(inputs.centres, here, inputs.map, there, place.image, inputs.zero)


@device
def _value(inputs, tables, source, row, place):
    """A row of the source."""
    found = inputs.zero
    if source.kind == ARRAY:
        found = source.array[row, place.image * inputs.p + place.centre]
    elif source.kind == ATTENTION:
        k = tables.rows.shape[0]
        group = row // k
        there = source_of(tables, row - group * k, place.row, place.column)
        if there >= 0:
            for c in range(group, inputs.beta.shape[1], inputs.groups):
                found += inputs.gradient[place.image, c, place.centre] * inputs.beta[place.image, c, there]
    elif row < inputs.before:
        found = inputs.centres[place.image, row, place.centre]
    else:
        row -= inputs.before
        found = _related(inputs, tables, row, place)
        if inputs.layered:
            found = inputs.scale[row] * found + inputs.shift[row]
            if found < inputs.zero:
                found = inputs.zero
    return found


@device
def _row_gradient(inputs, row, found, rectified):
    """The gradient of a row of the relation, from that of the rectified row."""
    return (
        inputs.zero if inputs.scale[row] * found + inputs.shift[row] <= inputs.zero else inputs.scale[row] * rectified
    )


@device
def _moments_gradient(inputs, row, found):
    """The gradient of a row from those of the statistics."""
    slope = inputs.variance_gradient[row] + inputs.variance_gradient[row]
    return inputs.inverse_count * (inputs.mean_gradient[row] + slope * (found - inputs.mean[row]))


@device
def _fill(inputs, source, tables, columns, first, count, to, block):
    """Write rows of a source from `first` on, 0 where there is no centre."""
    for item in range(block.thread, count * columns, block.threads):
        row = item // columns
        i = item - row * columns
        found = inputs.zero
        if block.pairs[i] >= 0:
            found = _value(inputs, tables, source, first + row, _place_of(block.pairs, columns, i))
        block.shared[to + item] = found


@device
def _compute(inputs, layer, first, step, count, tables, plan, block):
    """Write `count` outputs from `first` on, `step` apart, at `plan.held`. Begins and ends with a barrier."""
    begin, bias = layer.begin + first * layer.step_o, layer.bias
    if bias >= 0:
        bias += first * layer.step_b
    cuda.syncthreads()
    for d in range(0, layer.depth, plan.depth):
        rows = Rows(plan.panel, min(plan.depth, layer.depth - d), plan.columns)
        _fill(inputs, layer.source, tables, plan.columns, d, rows.count, plan.panel, block)
        cuda.syncthreads()
        weights = Weights(
            inputs.parameters, begin + d * layer.step_d, layer.step_o * step, layer.step_d,
            bias if d == 0 else -1, layer.step_b * step,
        )  # fmt: skip
        product(weights, rows, plan.held, count, Finish(d > 0, False, False), block)
        cuda.syncthreads()


@kernel
def _layer(inputs, layer, sink, outputs, plan, tables):
    """The outputs of a layer, or the gradients of its inputs."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.map.dtype)
    block = Block(places, shared, inputs.zero, cuda.threadIdx.x, cuda.blockDim.x)
    thread, threads, columns = cuda.threadIdx.x, cuda.blockDim.x, plan.columns
    panels = (outputs + plan.outputs - 1) // plan.outputs
    tile = cuda.blockIdx.x // panels
    first = (cuda.blockIdx.x - tile * panels) * plan.outputs
    count = min(plan.outputs, outputs - first)
    _list_places(inputs, tables, tile * columns, columns, block)
    _compute(inputs, layer, first, 1, count, tables, plan, block)
    for item in range(thread, count * columns, threads):
        o = item // columns
        i = item - o * columns
        o += first
        image, centre = places[i], places[columns + i]
        if image >= 0:
            value = shared[plan.held + item] if layer.depth > 0 else inputs.zero
            if sink.masked and sink.mask[o, image * inputs.p + centre] <= inputs.zero:
                value = inputs.zero
            if sink.from_moments:
                value = _moments_gradient(inputs, o, value)
            if sink.rectified and value < inputs.zero:
                value = inputs.zero
            if sink.to_centres:
                sink.to[(image * outputs + o) * inputs.p + centre] = value
            else:
                sink.to[o * inputs.columns + image * inputs.p + centre] = value


@kernel
def _attention(inputs, layer, y, plan, tables):
    """The last layer, for one group of channels, and the aggregation."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.map.dtype)
    block = Block(places, shared, inputs.zero, cuda.threadIdx.x, cuda.blockDim.x)
    thread, threads, columns, k = cuda.threadIdx.x, cuda.blockDim.x, plan.columns, tables.rows.shape[0]
    share, groups = inputs.beta.shape[1] // inputs.groups, inputs.groups
    tile = cuda.blockIdx.x // groups
    g = cuda.blockIdx.x - tile * groups
    _list_places(inputs, tables, tile * columns, columns, block)
    for item in range(thread, share * columns, threads):
        shared[plan.others + item] = inputs.zero
    for tap in range(0, k, plan.outputs):
        count = min(plan.outputs, k - tap)
        _compute(inputs, layer, g * k + tap, 1, count, tables, plan, block)
        for item in range(thread, (share + SIDES - 1) // SIDES * columns, threads):
            panel = item // columns
            i, first = item - panel * columns, panel * SIDES
            image, oy, ox = places[i], places[2 * columns + i], places[3 * columns + i]
            if image >= 0:
                # beyond the end, the last channel is repeated
                c0 = g + first * groups
                c1 = g + min(first + 1, share - 1) * groups
                c2 = g + min(first + 2, share - 1) * groups
                c3 = g + min(first + 3, share - 1) * groups
                sums = (inputs.zero, inputs.zero, inputs.zero, inputs.zero)
                for j in range(count):
                    there = source_of(tables, tap + j, oy, ox)
                    values = (
                        _read(inputs.beta, image, c0, there, inputs.zero),
                        _read(inputs.beta, image, c1, there, inputs.zero),
                        _read(inputs.beta, image, c2, there, inputs.zero),
                        _read(inputs.beta, image, c3, there, inputs.zero),
                    )
                    sums = fused(sums, shared[plan.held + j * columns + i], values)
                for s in range(SIDES):
                    if first + s < share:
                        shared[plan.others + (first + s) * columns + i] += sums[s]
    cuda.syncthreads()
    for item in range(thread, share * columns, threads):
        s = item // columns
        i = item - s * columns
        if places[i] >= 0:
            y[places[i], g + s * groups, places[columns + i]] = shared[plan.others + item]


@kernel
def _statistics(inputs, layer, outputs, workers, partial, plan, tables):
    """The moments of the last layer's outputs, or of the relation's rows, over the columns of a worker."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.map.dtype)
    block = Block(places, shared, inputs.zero, cuda.threadIdx.x, cuda.blockDim.x)
    thread, threads, columns = cuda.threadIdx.x, cuda.blockDim.x, plan.columns
    panels = (outputs + plan.outputs - 1) // plan.outputs
    worker = cuda.blockIdx.x // panels
    first = (cuda.blockIdx.x - worker * panels) * plan.outputs
    count = min(plan.outputs, outputs - first)
    for item in range(thread, plan.size - plan.others, threads):
        shared[plan.others + item] = inputs.zero
    for begin in range(worker * columns, inputs.columns, workers * columns):
        cuda.syncthreads()
        _list_places(inputs, tables, begin, columns, block)
        if inputs.layered:
            _compute(inputs, layer, first, 1, count, tables, plan, block)
        else:
            cuda.syncthreads()
            _fill(inputs, layer.source, tables, columns, first, count, plan.held, block)
            cuda.syncthreads()
        gather_moments(Rows(plan.held, count, columns), plan.others, block)
    cuda.syncthreads()
    write_moments(plan.others, count, partial, 3 * (worker * outputs + first), block)


@kernel
def _parameters_gradient(inputs, flow, values, sizes, partial, plan, tables):
    """The gradients of W and b of a layer, Σ flow · input over the columns of a worker."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.map.dtype)
    block = Block(places, shared, inputs.zero, cuda.threadIdx.x, cuda.blockDim.x)
    thread, threads, columns = cuda.threadIdx.x, cuda.blockDim.x, plan.columns
    fan_out, fan_in, workers = sizes
    panels_i = (fan_in + plan.depth - 1) // plan.depth
    panels_o = (fan_out + plan.outputs - 1) // plan.outputs
    rest = cuda.blockIdx.x // panels_i
    first_i = (cuda.blockIdx.x - rest * panels_i) * plan.depth
    worker = rest // panels_o
    first_o = (rest - worker * panels_o) * plan.outputs
    held_i, held_o = min(plan.depth, fan_in - first_i), min(plan.outputs, fan_out - first_o)
    sums = plan.others
    bias = sums + held_o * held_i
    for item in range(thread, held_o * (held_i + 1), threads):
        shared[sums + item] = inputs.zero
    for begin in range(worker * columns, inputs.columns, workers * columns):
        cuda.syncthreads()
        _list_places(inputs, tables, begin, columns, block)
        cuda.syncthreads()
        _fill(inputs, flow, tables, columns, first_o, held_o, plan.held, block)
        _fill(inputs, values, tables, columns, first_i, held_i, plan.panel, block)
        cuda.syncthreads()
        flows = Rows(plan.held, held_o, columns)
        outer_product(flows, Rows(plan.panel, held_i, columns), Target(shared, sums, held_i), block)
        if first_i == 0:
            row_sums(flows, Target(shared, bias, 1), block)
    cuda.syncthreads()
    mine = worker * fan_out * (fan_in + 1)
    for item in range(thread, held_o * held_i, threads):
        o = item // held_i
        partial[mine + (first_o + o) * fan_in + first_i + item - o * held_i] = shared[sums + item]
    if first_i == 0:
        for o in range(thread, held_o, threads):
            partial[mine + fan_out * fan_in + first_o + o] = shared[bias + o]


@kernel
def _affine_gradient(inputs, layer, rows, workers, scale_partial, shift_partial, plan, tables):
    """The gradients of scale and shift over the columns of a worker; `layer` computes those of the rectified rows."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.map.dtype)
    block = Block(places, shared, inputs.zero, cuda.threadIdx.x, cuda.blockDim.x)
    thread, threads, columns = cuda.threadIdx.x, cuda.blockDim.x, plan.columns
    panels = (rows + plan.outputs - 1) // plan.outputs
    worker = cuda.blockIdx.x // panels
    first = (cuda.blockIdx.x - worker * panels) * plan.outputs
    count = min(plan.outputs, rows - first)
    scales = plan.others
    shifts = scales + plan.outputs
    products = shifts + plan.outputs
    for row in range(thread, 2 * plan.outputs, threads):
        shared[scales + row] = inputs.zero
    for begin in range(worker * columns, inputs.columns, workers * columns):
        cuda.syncthreads()
        _list_places(inputs, tables, begin, columns, block)
        _compute(inputs, layer, first, 1, count, tables, plan, block)
        for item in range(thread, count * columns, threads):
            row = item // columns
            i = item - row * columns
            row += first
            found, flow = inputs.zero, inputs.zero
            if places[i] >= 0:
                found = _related(inputs, tables, row, _place_of(places, columns, i))
                if not inputs.scale[row] * found + inputs.shift[row] <= inputs.zero:
                    flow = shared[plan.held + item]
            shared[plan.held + item] = flow
            shared[products + item] = flow * found
        cuda.syncthreads()
        row_sums(Rows(products, count, columns), Target(shared, scales, 1), block)
        row_sums(Rows(plan.held, count, columns), Target(shared, shifts, 1), block)
    cuda.syncthreads()
    for row in range(thread, count, threads):
        scale_partial[worker * rows + first + row] = shared[scales + row]
        shift_partial[worker * rows + first + row] = shared[shifts + row]


class Panel(NamedTuple):
    """`count` outputs from `first` on of a layer with `outputs` outputs, at a tile of positions from `begin` on."""

    first: int
    count: int
    outputs: int
    begin: int
    tile: int


@device
def _put_place(places, columns, i, image, centre, width):
    """Write the place of a column; the centre is −1 if there is none."""
    row = max(centre, 0) // width
    places[i] = image if centre >= 0 else -1
    places[columns + i] = max(centre, 0)
    places[2 * columns + i] = row
    places[3 * columns + i] = max(centre, 0) - row * width


@device
def _add_reader(inputs, beta, tap, k, panel, share, plan, block):
    """Add what one reader of each position contributes to the gradient of β, or of the map."""
    places, shared, tile = block.pairs, block.shared, panel.tile
    for item in range(block.thread, share * panel.count * tile, block.threads):
        rest = item // tile
        i = item - rest * tile
        s = rest // panel.count
        o = rest - s * panel.count
        channel = panel.first + o + s * panel.outputs
        if places[i] >= 0:
            if beta:
                alpha = shared[plan.held + o * tile + i]
                shared[plan.others + item] += alpha * inputs.gradient[places[i], channel, places[tile + i]]
            else:
                area = inputs.map.shape[2]
                found = inputs.map[places[i], channel, panel.begin + i - places[i] * area]
                row = channel * k + tap
                if inputs.layered:
                    flow = _row_gradient(inputs, row, found, shared[plan.held + o * tile + i])
                else:
                    flow = _moments_gradient(inputs, row, found)
                shared[plan.others + item] += flow


@kernel
def _map_gradient(inputs, layer, beta, outputs, share, to, plan, tables):
    """The gradient of a map at `plan.columns` positions: β (α · gradient, for some groups of channels), or the map of a
    concatenation (for some channels). Taps are processed one after the other; where several centres read a position
    through the same tap, these follow one after the other too."""
    places = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.map.dtype)
    block = Block(places, shared, inputs.zero, cuda.threadIdx.x, cuda.blockDim.x)
    thread, threads, tile, k = cuda.threadIdx.x, cuda.blockDim.x, plan.columns, tables.rows.shape[0]
    ow, area = tables.columns.shape[1], to.shape[2]
    panels = (outputs + plan.outputs - 1) // plan.outputs
    index = cuda.blockIdx.x // panels
    first = (cuda.blockIdx.x - index * panels) * plan.outputs
    count, positions = min(plan.outputs, outputs - first), to.shape[0] * area
    begin = index * tile
    exists = thread < tile and begin + thread < positions
    image = (begin + thread) // area if exists else 0
    source = begin + thread - image * area if exists else 0
    for item in range(thread, share * count * tile, threads):
        shared[plan.others + item] = inputs.zero
    for tap in range(k):
        reader = first_reader(tables, source, tap)
        while True:
            cuda.syncthreads()
            if thread < tile:
                centre = -1
                if exists:
                    reader, centre = next_reader(tables, source, reader, tap + 1)
                _put_place(places, tile, thread, image, centre, ow)
            cuda.syncthreads()
            if not any_image(places, tile):
                break
            if beta or inputs.layered:
                _compute(inputs, layer, first * k + tap, k, count, tables, plan, block)
            _add_reader(inputs, beta, tap, k, Panel(first, count, outputs, begin, tile), share, plan, block)
    for item in range(thread, share * count * tile, threads):
        rest = item // tile
        i = item - rest * tile
        s = rest // count
        if begin + i < positions:
            image = (begin + i) // area
            to[image, first + rest - s * count + s * outputs, begin + i - image * area] = shared[plan.others + item]


class PairsPlan(NamedTuple):
    """The positions of a tile, the columns of a chunk of pairs, and where flows and sums begin in `Block.shared`."""

    tile: int
    columns: int
    flows: int
    sums: int


@device
def _dot_gradients(inputs, sides, layer, l, plan, tables, block):  # noqa: E741
    """The gradients of the dot products of a chunk of pairs, and where each pair is in `other`, −1 if outside; in a
    clique product, those with tap l of the same centre."""
    pairs, columns, ow = block.pairs, plan.columns, tables.columns.shape[1]
    step = sides.step_other if sides.to_centres else sides.step_mine
    for column in range(block.thread, columns, block.threads):
        owner, centre, source = pairs[column], pairs[columns + column], pairs[2 * columns + column]
        found = -1
        if owner >= 0:
            oy = centre // ow
            place = Place(owner, centre, oy, centre - oy * ow)
            here = centre + 0 if sides.to_centres else source + 0
            if sides.from_centres:
                found = centre + 0
            elif sides.to_centres:
                found = source + 0
            else:
                found = source_of(tables, l, place.row, place.column)
            row = pairs[3 * columns + column] * step + l * sides.step_other
            dot = _dot(sides.mine, here, sides.other, found, owner, inputs.zero)
            block.shared[plan.flows + column] = _dot_gradient(inputs, layer, row, dot, tables, place)
        pairs[4 * columns + column] = found


@device
def _dot_gradient(inputs, layer, row, dot, tables, place):
    """The gradient of a dot product, which is a row of the relation."""
    flow = inputs.zero
    if not inputs.layered:
        flow = _moments_gradient(inputs, row, dot)
    elif not inputs.scale[row] * dot + inputs.shift[row] <= inputs.zero:
        begin = layer.begin + row * layer.step_o
        for d in range(layer.depth):
            flow += inputs.parameters[begin + d * layer.step_d] * _value(inputs, tables, layer.source, d, place)
        flow *= inputs.scale[row]
    return flow


@device
def _add_other(sides, channels, plan, block):
    """Add gradient · `other` of each pair to the sums of its position."""
    pairs, shared, tile, columns = block.pairs, block.shared, plan.tile, plan.columns
    for item in range(block.thread, channels * tile, block.threads):
        c = item // tile
        gathered = block.zero
        for column in range(item - c * tile, columns, tile):
            there = pairs[4 * columns + column]
            if pairs[column] >= 0:
                value = _read(sides.other, pairs[column], c, there, block.zero)
                gathered += shared[plan.flows + column] * value
        shared[plan.sums + item] += gathered


@kernel
def _product_gradient(inputs, sides, layer, gradient, plan, tables):
    """The gradient of one side of a star or clique product, at a tile of positions or centres, over all pairs with
    them. In a clique product each pair also meets all other taps of its centre. One thread computes the dot products of
    a pair."""
    pairs = cuda.shared.array(0, int32)
    shared = cuda.shared.array(0, inputs.map.dtype)
    block = Block(pairs, shared, inputs.zero, cuda.threadIdx.x, cuda.blockDim.x)
    thread, threads, k, tile, columns = cuda.threadIdx.x, cuda.blockDim.x, tables.rows.shape[0], plan.tile, plan.columns
    r, size = inputs.map.shape[1], sides.mine.shape[2]
    total = sides.mine.shape[0] * size
    begin = cuda.blockIdx.x * tile
    exists = thread < tile and begin + thread < total
    image = (begin + thread) // size if exists else -1
    source = begin + thread - image * size if exists else 0
    reader = first_reader(tables, 0 if sides.to_centres else source, 0)

    for item in range(thread, r * tile, threads):
        shared[plan.sums + item] = inputs.zero
    tap = 0
    while True:
        cuda.syncthreads()
        if sides.to_centres:
            pair_centres(tables, Centres(begin, total, inputs.p, tile), tap, columns, False, block)
        else:
            reader = pair_readers(tables, reader, image, source, tile, columns, block)
        cuda.syncthreads()
        if tap >= k if sides.to_centres else not any_image(pairs, tile):
            break
        for l in range(1 if sides.from_centres or sides.to_centres else k):  # noqa: E741
            _dot_gradients(inputs, sides, layer, l, plan, tables, block)
            cuda.syncthreads()
            _add_other(sides, r, plan, block)
            cuda.syncthreads()
        tap += columns // tile
    for item in range(thread, r * tile, threads):
        c = item // tile
        i = item - c * tile
        if begin + i < total:
            image = (begin + i) // size
            gradient[image, c, begin + i - image * size] = shared[plan.sums + item]


# On the host.


def _layout(columns: int, outputs: int, depth: int, itemsize: int, others: int) -> Plan:
    panel = first_real(4 * columns, itemsize)
    held = panel + depth * columns
    first = held + outputs * columns
    return Plan(columns, outputs, depth, panel, held, first, first + others)


def _none(columns: int, outputs: int, depth: int) -> int:
    return 0


class Arrays(NamedTuple):
    """The arrays of a core. β is absent for statistics; a gradient, or statistics, only exist in a backward."""

    centres: Any
    map: Any
    beta: Any
    scale: Any
    shift: Any
    parameters: Any
    gradient: Any = None
    statistics: Any = None
    """The gradients of mean and variance, and the mean."""


class Gradients(NamedTuple):
    """The arrays of the gradients that are computed; None if one is not needed."""

    centres: Any
    map: Any
    beta: Any
    scale: Any
    shift: Any
    parameters: Any


class _Launcher:
    """Starts the kernels of a core, with the arrays and the memory that they share; layers count from 1."""

    def __init__(self, arrays: Arrays, widths: Any, kind: str, work: Any) -> None:
        map_, scale = arrays.map, arrays.scale
        self.work, self.tables, self.widths = work, tables_of(work, map_), widths_of(widths)
        n, self.r = map_.shape[:2]
        zero = zero_of(map_)
        self.k = self.tables.rows.shape[0]
        p = self.tables.rows.shape[1] * self.tables.columns.shape[1]
        layers, concatenates = self.widths.layers, kind == "concatenation"
        map_flat = flat(map_)
        self.inputs = Inputs(
            flat(arrays.centres), map_flat, map_flat if arrays.beta is None else flat(arrays.beta),
            map_flat if arrays.gradient is None else arrays.gradient, scale, arrays.shift, arrays.parameters,
            *(arrays.statistics or (scale,) * 3), type(zero)(1 / (n * p)), zero,
            KINDS.index(kind), layers > 0, self.r if concatenates and layers else 0, self.widths.last // self.k,
            p, n * p,
        )  # fmt: skip
        self.nothing = work.empty(1, 1)
        hidden = self.widths.sizes[1:layers]
        self.held = [work.empty(size, n * p) for size in hidden]
        """The outputs of all layers but the last."""

    def start(self, function: Any, blocks: int, elements: int, *arguments: Any) -> None:
        start(function, blocks, elements, self.work, self.inputs.zero, self.inputs, *arguments)

    def plan(self, most: tuple[int, int, int], total: int, outputs: int, depth: int,
             others: Callable[[int, int, int], int] = _none) -> Plan:  # fmt: skip
        """The largest plan, up to `most`, that fits shared memory together with `others(columns, outputs, depth)`
        elements. It has fewer columns where there would otherwise be fewer than MANY_BLOCKS blocks. ValueError if even
        the smallest does not fit."""
        itemsize = self.inputs.zero.itemsize
        columns, outputs_held, depth = most[0], min(most[1], outputs), max(1, min(most[2], depth))
        while columns > 16 and ceil_div(total, columns) * ceil_div(outputs, outputs_held) < MANY_BLOCKS:
            columns //= 2
        while True:
            plan = _layout(columns, outputs_held, depth, itemsize, others(columns, outputs_held, depth))
            if plan.size * itemsize <= launch.SHARED_BYTES:
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
                    f"{launch.SHARED_BYTES}"
                )

    def workers(self, plan: Plan, panels: int, size: int) -> int:
        """As many workers as there are tiles, but at most about 4 · MANY_BLOCKS blocks in all, one per worker and
        panel. The partial sums of a worker have `size` elements."""
        wanted = ceil_div(MANY_BLOCKS * 4, panels)
        return workers_of(size, min(ceil_div(self.inputs.columns, plan.columns), wanted))

    def input(self, layer: int) -> Source:
        """The rows that a layer reads."""
        return Source(ARRAY, self.held[layer - 2]) if layer > 1 else Source(RELATION, self.nothing)

    def product_of(self, layer: int) -> LayerProduct:
        if not layer:
            return LayerProduct(self.input(0), 0, -1, 0, 0, 0, 0)
        fan_in, fan_out, begin = *self.widths.sizes[layer - 1 : layer + 1], self.widths.begins[layer - 1]
        return LayerProduct(self.input(layer), begin, begin + fan_in * fan_out, fan_in, 1, 1, fan_in)

    def inputs_gradient(self, layer: int, flow: Source, first: int) -> LayerProduct:
        """The product that gives the gradients of a layer's inputs from `first` on; `flow` gives those of its
        outputs."""
        if not layer:
            return LayerProduct(flow, 0, -1, 0, 0, 0, 0)
        fan_in, fan_out, begin = *self.widths.sizes[layer - 1 : layer + 1], self.widths.begins[layer - 1]
        return LayerProduct(flow, begin + first, -1, 1, 0, fan_in, fan_out)

    def layer(self, layer: LayerProduct, to: Any, outputs: int, *, to_centres: bool = False, mask: Any = None,
              from_moments: bool = False, rectified: bool = False) -> None:  # fmt: skip
        masked = mask is not None
        sink = Sink(line(to), to_centres, mask if masked else self.nothing, masked, from_moments, rectified)
        plan = self.plan((TILE, TILE, mapping.MOST_ROWS), self.inputs.columns, outputs, layer.depth)
        blocks = ceil_div(self.inputs.columns, plan.columns) * ceil_div(outputs, plan.outputs)
        self.start(_layer, blocks, plan.size, layer, sink, outputs, plan, self.tables)

    def forward(self) -> None:
        """Compute the outputs of all layers but the last."""
        for number, held in enumerate(self.held, 1):
            self.layer(self.product_of(number), held, held.shape[0], rectified=True)

    def attention(self, y: Any) -> None:
        last, share, groups = self.product_of(self.widths.layers), y.shape[1] // self.inputs.groups, self.inputs.groups
        most = TILE, TILE, mapping.MOST_ROWS
        plan = self.plan(most, self.inputs.columns * groups, self.k, last.depth, lambda columns, *_: share * columns)
        self.start(
            _attention, ceil_div(self.inputs.columns, plan.columns) * groups, plan.size, last, y, plan, self.tables
        )

    def statistics(self, mean: Any, variance: Any) -> None:
        last, rows = self.product_of(self.widths.layers), self.widths.last
        most = TILE, TILE, mapping.MOST_ROWS
        plan = self.plan(most, self.inputs.columns, rows, last.depth, lambda _, outputs, __: 3 * max(THREADS, outputs))
        panels = ceil_div(rows, plan.outputs)
        workers = self.workers(plan, panels, 3 * rows)
        partial = self.work.empty(workers * 3 * rows)
        self.start(_statistics, panels * workers, plan.size, last, rows, workers, partial, plan, self.tables)
        merge_moments(partial, workers, rows, mean, variance, self.work)

    def weights(self, layer: int, flow: Source, gradient: Any) -> None:
        """The gradients of a layer's parameters."""
        fan_in, fan_out = self.widths.sizes[layer - 1 : layer + 1]
        most = TILE, OUTPUTS, INPUTS
        plan = self.plan(most, 1 << 31, fan_out, fan_in, lambda _, held_o, held_i: held_o * (held_i + 1))
        panels, size = ceil_div(fan_out, plan.outputs) * ceil_div(fan_in, plan.depth), fan_out * (fan_in + 1)
        workers = self.workers(plan, panels, size)
        partial = self.work.empty(workers * size)
        sizes = fan_out, fan_in, workers
        self.start(
            _parameters_gradient, panels * workers, plan.size,
            flow, self.input(layer), sizes, partial, plan, self.tables,
        )  # fmt: skip
        begin = self.widths.begins[layer - 1]
        add_up(partial, workers, gradient[begin : begin + size], self.work)

    def readers(self, layer: LayerProduct, beta: bool, outputs: int, share: int, to: Any) -> None:
        """The gradient of a map of share · outputs channels; row output · k + tap of the layer belongs to an output and
        a tap."""
        to = flat(to)
        total = to.shape[0] * to.shape[2]
        most = min(32, THREADS), OUTPUTS, mapping.MOST_ROWS
        plan = self.plan(most, total, outputs, layer.depth, lambda columns, held, _: share * held * columns)
        blocks = ceil_div(total, plan.columns) * ceil_div(outputs, plan.outputs)
        self.start(_map_gradient, blocks, plan.size, layer, beta, outputs, share, to, plan, self.tables)

    def distribute(self, gradient: Any) -> None:
        """The gradient of β."""
        groups = self.inputs.groups
        self.readers(self.product_of(self.widths.layers), True, groups, gradient.shape[1] // groups, gradient)

    def backward(self, flow: Source, gradients: Gradients) -> None:
        """Compute the gradients that are needed, except that of β; `flow` gives those of the last layer's outputs."""
        centres, map_, _, scale, shift, parameters = gradients
        for number in range(self.widths.layers, 0, -1):
            if parameters is not None:
                self.weights(number, flow, parameters)
            if number > 1:
                size = self.widths.sizes[number - 1]
                gradient = self.work.empty(size, self.inputs.columns)
                self.layer(self.inputs_gradient(number, flow, 0), gradient, size, mask=self.held[number - 2])
                flow = Source(ARRAY, gradient)
        first, inputs, k = min(self.widths.layers, 1), self.inputs, self.k
        rows = self.inputs_gradient(first, flow, inputs.before)
        self.affine(rows, scale, shift)
        if inputs.kind == CONCATENATION:
            if centres is not None:
                self.layer(self.inputs_gradient(first, flow, 0), centres, self.r, to_centres=True)
            if map_ is not None:
                self.readers(rows, False, self.r, 1, map_)
            return
        star = inputs.kind == STAR_PRODUCT
        if centres is not None:
            self.sides(Sides(inputs.centres, inputs.map, 0 if star else k, 1, star, False), rows, centres)
        if map_ is not None:
            self.sides(Sides(inputs.map, inputs.centres, 1, 0 if star else k, False, star), rows, map_)

    def affine(self, flow: LayerProduct, scale: Any, shift: Any) -> None:
        if scale is None and shift is None:
            return
        rows = self.widths.inputs - self.inputs.before
        workers, scales, shifts = 0, self.inputs.scale, self.inputs.shift
        if self.widths.layers:
            most = TILE, OUTPUTS, mapping.MOST_ROWS
            plan = self.plan(most, 1 << 31, rows, flow.depth, lambda columns, held, _: (2 + columns) * held)
            panels = ceil_div(rows, plan.outputs)
            workers = self.workers(plan, panels, 2 * rows)
            scales, shifts = self.work.empty(workers * rows), self.work.empty(workers * rows)
            self.start(
                _affine_gradient, panels * workers, plan.size, flow, rows, workers, scales, shifts, plan, self.tables
            )
        for partial, to in ((scales, scale), (shifts, shift)):
            if to is not None:
                add_up(partial, workers, to, self.work)

    def sides(self, sides: Sides, flow: LayerProduct, gradient: Any) -> None:
        itemsize = self.inputs.zero.itemsize
        tile = min(32, THREADS)
        while True:
            columns = tile * max(1, min(THREADS // tile, self.k))
            flows = first_real(5 * columns, itemsize)
            sums = flows + columns
            size = sums + self.r * tile
            if size * itemsize <= launch.SHARED_BYTES:
                break
            if tile == 1:
                raise ValueError(
                    f"a patchwise attention needs {size * itemsize} bytes of shared memory; expected at most "
                    f"{launch.SHARED_BYTES}"
                )
            tile //= 2
        gradient = flat(gradient)
        blocks = ceil_div(gradient.shape[0] * gradient.shape[2], tile)
        plan = PairsPlan(tile, columns, flows, sums)
        self.start(_product_gradient, blocks, size, sides, flow, gradient, plan, self.tables)


def patchwise_attention(centres, map_, beta, scale, shift, parameters, y, widths, kind, work):
    launcher = _Launcher(Arrays(centres, map_, beta, scale, shift, parameters), widths, kind, work)
    launcher.forward()
    launcher.attention(y)


def patchwise_attention_backward(
    gradient, centres, map_, beta, scale, shift, parameters, centres_gradient, map_gradient, beta_gradient,
    scale_gradient, shift_gradient, parameters_gradient, widths, kind, work,
):  # fmt: skip
    arrays = Arrays(centres, map_, beta, scale, shift, parameters, gradient=gradient)
    launcher = _Launcher(arrays, widths, kind, work)
    launcher.forward()
    if beta_gradient is not None:
        launcher.distribute(beta_gradient)
    gradients = Gradients(
        centres_gradient, map_gradient, beta_gradient, scale_gradient, shift_gradient, parameters_gradient
    )
    launcher.backward(Source(ATTENTION, launcher.nothing), gradients)


def patchwise_statistics(centres, map_, scale, shift, parameters, mean, variance, widths, kind, work):
    launcher = _Launcher(Arrays(centres, map_, None, scale, shift, parameters), widths, kind, work)
    launcher.forward()
    launcher.statistics(mean, variance)


def patchwise_statistics_backward(
    mean_gradient, variance_gradient, mean, centres, map_, scale, shift, parameters, centres_gradient, map_gradient,
    scale_gradient, shift_gradient, parameters_gradient, widths, kind, work,
):  # fmt: skip
    statistics = mean_gradient, variance_gradient, mean
    arrays = Arrays(centres, map_, None, scale, shift, parameters, statistics=statistics)
    launcher = _Launcher(arrays, widths, kind, work)
    launcher.forward()
    flow = Source(ARRAY, launcher.nothing)
    if launcher.widths.layers:
        rows = launcher.widths.last
        flow = Source(ARRAY, work.empty(rows, launcher.inputs.columns))
        launcher.layer(launcher.product_of(launcher.widths.layers), flow.array, rows, from_moments=True)
    gradients = Gradients(centres_gradient, map_gradient, None, scale_gradient, shift_gradient, parameters_gradient)
    launcher.backward(flow, gradients)
