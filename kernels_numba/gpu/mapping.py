"""What the CUDA kernels of the fused attentions' cores have in common: a chunk of columns in shared memory, each of
them a centre or a pair of a centre and a tap, the products of the mapping's linear layers, and moments. Twin of
mapping.h and mapping.cu in kernels_cuda/csrc.

Rows × columns lie row by row in shared memory. Products are exact, one FMA per multiply-add in the type of the arrays.

The twins part where C++ has no equal in Numba:

    shared     A block's shared memory is one array of the arrays' type and, in front of it, one of integers; places in
               the first are counted from its beginning, integers included. Nothing is reinterpreted.
    products   4 outputs × 4 columns per thread, in tuples, which are registers. Numba loads no vectors, so a thread's
               columns are `columns / WIDTH` apart, and threads side by side read words side by side.
               Places in the inner loops are unsigned, since of signed ones Numba asks whether they count from the end.
    closures   What becomes of a product is said by numbers: added or not, rectified, masked.
    taps       Tables have a row per tap, so a tap's source is looked up in two reads and no list of taps is kept. The
               readers of a position come tap by tap.
    barriers   Functions here have none, and are told which thread they are and of how many: Numba's simulator replaces
               the name `cuda` in the module of the kernel only.

Nothing has been timed on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, uint64

from kernels_numba.compiled import _STAMP

SIMULATED = cuda.config.ENABLE_CUDASIM

SIDES = 4
"""Outputs, or inputs, whose sums a thread holds in registers."""
WIDTH = 4
"""Columns of them."""
MOST_COLUMNS, MOST_ROWS = 128, 32
"""Columns of a chunk, and rows of a panel, at most."""
MOST_LAYERS = 8
THREADS = 8 if SIMULATED else 128
"""Threads per block; the simulator starts each of them."""
PARTS = 8
"""Threads that share an element of sums of workers."""
SHARED_BYTES = 48 << 10
"""What any GPU gives a block of threads of its shared memory."""
WORKERS = 512
"""Blocks that have sums of their own, at most: some more than an H200 runs at once."""
SCRATCH = 1 << 24
"""Elements that their sums take together, unless those of one take more."""

cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # as in gpu.py

device = cuda.jit(device=True)


def kernel(function: Callable[..., None]) -> Any:
    """A CUDA kernel, kept on disk until a file of this folder changes: it inlines functions of others."""
    dispatcher: Any = cuda.jit(cache=True)(function)
    if not SIMULATED:
        dispatcher._cache._cache_file._source_stamp = _STAMP
    return dispatcher


class Tables(NamedTuple):
    """Where taps read and who reads an element, as in `gpu.Lookups`; and the width of the map."""

    rows: Any
    columns: Any
    row_starts: Any
    row_readers: Any
    column_starts: Any
    column_readers: Any
    width: int


class Widths(NamedTuple):
    """The linear layers, always so many numbers, so that a kernel is compiled once."""

    layers: int
    sizes: tuple[int, ...]
    """Inputs of the first, then the outputs of each."""
    begins: tuple[int, ...]
    """Of each layer's W in `parameters`, which b follows."""
    rows: tuple[int, ...]
    """Of each layer's outputs among those of all."""

    @property
    def inputs(self) -> int:
        return self.sizes[0]

    @property
    def last(self) -> int:
        return self.sizes[self.layers]

    @property
    def parameters(self) -> int:
        return sum((i + 1) * o for i, o in pairwise(self.sizes[: self.layers + 1]))

    @property
    def outputs(self) -> int:
        """Of all layers together."""
        return sum(self.sizes[1 : self.layers + 1])

    @property
    def held(self) -> int:
        """Rows of a chunk that stay: without a layer, the inputs."""
        return self.outputs if self.layers else self.inputs


# On the host.


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def tables_of(lookups: Any, map_: Any) -> Tables:
    return Tables(*(getattr(lookups, name) for name in Tables._fields[:-1]), map_.shape[3])


def widths_of(numbers: Sequence[int]) -> Widths:
    layers = len(numbers) - 1
    if not 0 <= layers <= MOST_LAYERS:
        raise ValueError(f"a mapping has {len(numbers)} widths; expected 1 to {MOST_LAYERS + 1}")
    sizes, begins, rows = [*map(int, numbers)], [0], [0]
    for inputs, outputs in pairwise(sizes):
        begins.append(begins[-1] + (inputs + 1) * outputs)
        rows.append(rows[-1] + outputs)
    padding = [0] * MOST_LAYERS
    return Widths(
        layers, *(tuple([*x, *padding][: MOST_LAYERS + 1]) for x in (sizes, begins, rows))
    )  # fmt: skip


def flat(x: Any) -> Any:
    """(n, -, h, w) as (n, -, h·w)."""
    return x if len(x.shape) == 3 else x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def line(x: Any) -> Any:
    """All elements, one behind the other."""
    return x.reshape(x.size)


def zero_of(x: Any) -> Any:
    return np.dtype(x.dtype).type(0)


def first_real(integers: int, itemsize: int) -> int:
    """Where the reals begin in shared memory, behind so many integers."""
    return ceil_div(integers * 4, 16) * 16 // itemsize


def workers_of(size: int, tiles: int) -> int:
    """How many workers, whose sums are of that size, share so many tiles."""
    return min(max(SCRATCH // max(size, 1), 1), WORKERS, tiles)


def start(function: Any, blocks: int, elements: int, lookups: Any, zero: Any, *arguments: Any) -> None:
    """Launch a kernel of so many blocks, with so many elements of shared memory each."""
    if blocks:  # an empty grid cannot be launched
        function[blocks, THREADS, lookups.stream, ceil_div(elements * zero.itemsize, 16) * 16](*arguments)


def add_up(partial: Any, workers: int, to: Any, lookups: Any) -> None:
    """to[i] = Σ_w partial[w][i], in the order of the workers."""
    zero, to = zero_of(to), line(to)
    blocks = ceil_div(to.size, THREADS // min(PARTS, THREADS))
    start(_add_up, blocks, THREADS, lookups, zero, partial, workers, to, zero)


def merge_moments(partial: Any, workers: int, rows: int, mean: Any, variance: Any, lookups: Any) -> None:
    """Mean and biased variance of what the workers have seen of each row."""
    zero = zero_of(mean)
    start(_merge_moments, ceil_div(rows, THREADS), 0, lookups, zero, partial, workers, rows, mean, variance, zero)


# On the device. Pairs and places are four rows of integers each: image, centre, source and tap, or image, centre, row
# and column. No image is −1.


@device
def source_of(at, tap, row, column):
    """Where in the map the tap of that centre reads, −1 if outside."""
    y, x = at.rows[tap, row], at.columns[tap, column]
    return y * at.width + x if min(y, x) >= 0 else -1


@device
def pair_centres(at, first, total, per_image, centres, tap, columns, pairs, me, threads):
    """The pairs of `centres` centres from `first` on, of all images' `total`, and of the taps from `tap` on: centres
    first."""
    k, ow = at.rows.shape[0], at.columns.shape[1]
    for column in range(me, columns, threads):
        j = column // centres
        index = first + column - j * centres
        exists = index < total and tap + j < k
        image = index // per_image
        centre = index - image * per_image
        oy = centre // ow
        pairs[column] = image if exists else -1
        pairs[columns + column] = centre if exists else 0
        pairs[2 * columns + column] = source_of(at, tap + j, oy, centre - oy * ow) if exists else -1
        pairs[3 * columns + column] = tap + j if exists else 0


@device
def first_reader(at, source, tap):
    """Before the first pair that reads that position of the map through that tap or a later one: tap, and where in the
    readers of its row and column."""
    y = source // at.width
    return tap, at.row_starts[tap, y] + 0, at.column_starts[tap, source - y * at.width] + 0


@device
def next_reader(at, source, reader, end):
    """Behind the next pair, of the taps up to `end`; and its centre, −1 if there is none."""
    tap, row, column = reader
    y = source // at.width
    x = source - y * at.width
    centre = -1
    while tap < end and centre < 0:
        if row >= at.row_starts[tap, y + 1]:
            tap += 1
            if tap < end:
                row = at.row_starts[tap, y] + 0
                column = at.column_starts[tap, x] + 0
        elif column >= at.column_starts[tap, x + 1]:
            row += 1
            column = at.column_starts[tap, x] + 0
        else:
            centre = at.row_readers[row] * at.columns.shape[1] + at.column_readers[column]
            column += 1
    return (tap, row, column), centre


@device
def pair_readers(at, reader, image, source, positions, columns, pairs, me):
    """The next `columns / positions` pairs of each of the block's positions: thread i deals with position i, the others
    wait."""
    if me < positions:
        for column in range(me, columns, positions):
            centre = -1
            if image >= 0:
                reader, centre = next_reader(at, source, reader, at.rows.shape[0])
            pairs[column] = image if centre >= 0 else -1
            pairs[columns + column] = max(centre, 0)
            pairs[2 * columns + column] = source
            pairs[3 * columns + column] = reader[0] if centre >= 0 else 0
    return reader


@device
def any_image(places, positions):
    """Has any position of the block found one? The first column of each tells."""
    most = -1
    for i in range(positions):
        most = max(most, places[i])
    return most >= 0


@device
def fused(sums, scale, values):
    return (
        sums[0] + scale * values[0],
        sums[1] + scale * values[1],
        sums[2] + scale * values[2],
        sums[3] + scale * values[3],
    )


@device
def finish(shared, place, step, sums, begin, added, rectified, masked, zero):
    for w in range(WIDTH):
        before = shared[place + w * step]
        result = begin + sums[w]
        if added:
            result += before
        if rectified:
            result = max(result, zero)
        if masked and not before > zero:
            result = zero
        shared[place + w * step] = result


@device
def product(
    weights, begin, step_o, step_d, bias, step_b, shared, rows, depth, columns, to, outputs,
    added, rectified, masked, zero, me, threads,
):  # fmt: skip
    """Row `to` + o of shared memory = bias[o · step_b] + Σ_d weights[begin + o · step_o + d · step_d] · row d, of all
    outputs o; no bias is −1. `added` to what is there, and then `rectified`; or `masked` by it."""
    vectors, last = columns // WIDTH, outputs - 1
    for item in range(me, (outputs + SIDES - 1) // SIDES * vectors, threads):
        block = item // vectors
        o, column = block * SIDES, item - block * vectors
        # beyond the last output, it again, so that no load waits for a branch
        w0 = uint64(begin + o * step_o)
        w1 = uint64(begin + min(o + 1, last) * step_o)
        w2 = uint64(begin + min(o + 2, last) * step_o)
        w3 = uint64(begin + min(o + 3, last) * step_o)
        place, step, along = uint64(rows + column), uint64(step_d), uint64(columns)
        v1, v2, v3 = uint64(vectors), uint64(2 * vectors), uint64(3 * vectors)
        s0 = (zero, zero, zero, zero)
        s1, s2, s3 = s0, s0, s0
        for _ in range(depth):
            values = (shared[place], shared[place + v1], shared[place + v2], shared[place + v3])
            s0 = fused(s0, weights[w0], values)
            s1 = fused(s1, weights[w1], values)
            s2 = fused(s2, weights[w2], values)
            s3 = fused(s3, weights[w3], values)
            w0, w1, w2, w3 = w0 + step, w1 + step, w2 + step, w3 + step
            place += along
        sums = (s0, s1, s2, s3)
        for s in range(SIDES):
            if o + s < outputs:
                b = weights[bias + (o + s) * step_b] if bias >= 0 else zero
                finish(shared, to + (o + s) * columns + column, vectors, sums[s], b, added, rectified, masked, zero)


@device
def outer_product(shared, left, outputs, right, inputs, columns, to, at, step, zero, me, threads):
    """to[at + o · step + i] += Σ_column left[o][column] · right[i][column]. Threads begin at different columns, since
    rows begin in the same bank."""
    groups = (inputs + SIDES - 1) // SIDES
    for item in range(me, (outputs + SIDES - 1) // SIDES * groups, threads):
        block = item // groups
        o, i = block * SIDES, (item - block * groups) * SIDES
        l0, r0 = uint64(left + o * columns), uint64(right + i * columns)
        l1, r1 = uint64(left + min(o + 1, outputs - 1) * columns), uint64(right + min(i + 1, inputs - 1) * columns)
        l2, r2 = uint64(left + min(o + 2, outputs - 1) * columns), uint64(right + min(i + 2, inputs - 1) * columns)
        l3, r3 = uint64(left + min(o + 3, outputs - 1) * columns), uint64(right + min(i + 3, inputs - 1) * columns)
        s0 = (zero, zero, zero, zero)
        s1, s2, s3 = s0, s0, s0
        column, one, end, begin = uint64(item % columns), uint64(1), uint64(columns), uint64(0)
        for _ in range(columns):
            values = (shared[r0 + column], shared[r1 + column], shared[r2 + column], shared[r3 + column])
            s0 = fused(s0, shared[l0 + column], values)
            s1 = fused(s1, shared[l1 + column], values)
            s2 = fused(s2, shared[l2 + column], values)
            s3 = fused(s3, shared[l3 + column], values)
            column += one
            if column == end:
                column = begin
        sums = (s0, s1, s2, s3)
        for t in range(SIDES):
            for s in range(SIDES):
                if o + t < outputs and i + s < inputs:
                    to[at + (o + t) * step + i + s] += sums[t][s]


@device
def row_sums(shared, rows, count, columns, to, at, zero, me, threads):
    """to[at + o] += Σ_column row o."""
    for o in range(me, count, threads):
        total, column = zero, o % columns
        for _ in range(columns):
            total += shared[rows + o * columns + column]
            column = column + 1 if column + 1 < columns else 0
        to[at + o] += total


@device
def add_gradients(shared, gradient, outputs, rows, first, count, inputs, columns, partial, at, zero, me, threads):
    """A layer's gradients of a chunk, added to those that the block has in `partial`: of W, whose inputs from `first`
    on the `rows` are, and of b with the first of them."""
    outer_product(shared, gradient, outputs, rows, count, columns, partial, at + first, inputs, zero, me, threads)
    if first == 0:
        row_sums(shared, gradient, outputs, columns, partial, at + outputs * inputs, zero, me, threads)


@device
def merge(moments, at, count, mean, squares):
    """Count, mean and sum of squared deviations at `at`, with others as Chan et al. merge them."""
    if count > 0:
        here = moments[at]
        total, difference = here + count, mean - moments[at + 1]
        moments[at] = total
        moments[at + 1] += difference * (count / total)
        moments[at + 2] += squares + difference * difference * (here / total * count)


@device
def parts_of(rows, threads):
    """Threads that share a row."""
    return max(1, threads // rows)


@device
def observe(shared, values, rows, columns, places, moments, zero, me, threads):
    """The rows' moments over all columns that are of an image, added to those that each (row, part) has."""
    parts, one = parts_of(rows, threads), type(zero)(1)
    for item in range(me, rows * parts, threads):
        row = item // parts
        count, mean, squares = zero, zero, zero
        for column in range(item - row * parts, columns, parts):
            if places[column] >= 0:
                count += one
                mean += shared[values + row * columns + column]
        if count > 0:
            mean /= count
        for column in range(item - row * parts, columns, parts):
            if places[column] >= 0:
                difference = shared[values + row * columns + column] - mean
                squares += difference * difference
        merge(shared, moments + 3 * item, count, mean, squares)


@device
def write_moments(shared, moments, rows, to, at, me, threads):
    """The block's moments of each row, in the order of its parts."""
    parts = parts_of(rows, threads)
    for row in range(me, rows, threads):
        first = moments + 3 * row * parts
        for part in range(1, parts):
            other = first + 3 * part
            merge(shared, first, shared[other], shared[other + 1], shared[other + 2])
        for i in range(3):
            to[at + 3 * row + i] = shared[first + i]


@kernel
def _add_up(partial, workers, to, zero):
    sums = cuda.shared.array(0, to.dtype)
    parts = min(PARTS, cuda.blockDim.x)
    wide = cuda.blockDim.x // parts
    part = cuda.threadIdx.x // wide
    i = cuda.blockIdx.x * wide + cuda.threadIdx.x - part * wide
    total = zero
    if i < to.size:
        for worker in range(part, workers, parts):
            total += partial[worker * to.size + i]
    sums[cuda.threadIdx.x] = total
    cuda.syncthreads()
    if part == 0 and i < to.size:
        for other in range(1, parts):
            total += sums[other * wide + cuda.threadIdx.x]
        to[i] = total


@kernel
def _merge_moments(partial, workers, rows, mean, variance, zero):
    row = cuda.grid(1)
    if row >= rows:
        return
    count, here, squares = zero, zero, zero
    for worker in range(workers):
        at = 3 * (worker * rows + row)
        others = partial[at]
        if others > 0:
            total, difference = count + others, partial[at + 1] - here
            here += difference * (others / total)
            squares += partial[at + 2] + difference * difference * (count / total * others)
            count = total
    mean[row] = here
    variance[row] = squares / count
