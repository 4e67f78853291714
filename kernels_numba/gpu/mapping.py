"""The linear layers of the mapping, forward and backward, for a chunk of columns in shared memory; moments; and sums
over workers. A column is a centre, or a pair of a centre and a tap. Twin of mapping.h and mapping.cu in
kernels_cuda/csrc.

A matrix of rows × columns is stored row by row. Each multiply-add is one FMA in the dtype of the arrays.

The two files differ where Numba lacks a feature of C++:

    shared     A block's shared memory is one array of the arrays' dtype, and one array of integers that begins at the
               same address (`Block`). Nothing is reinterpreted.
    products   4 outputs × 4 columns per thread, in tuples, which are registers. Numba loads no vectors, so the columns
               of a thread are `columns / WIDTH` apart, and neighbouring threads read neighbouring words. Indices in
               inner loops are unsigned: Numba compares signed indices with 0, since negative ones count from the end.
    closures   `Finish` describes what happens to a product: whether it is added, rectified or masked.
    barriers   Functions here contain none and take the thread that calls them (`Block`): Numba's simulator replaces the
               name `cuda` in the module of the kernel only.

Nothing has been timed on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from numba import cuda, uint64

from kernels_numba.gpu.launch import THREADS, ceil_div, device, kernel, line, start, zero_of

SIDES = 4
"""A thread holds the sums of this many outputs, or inputs, in registers."""
WIDTH = 4
"""It holds the sums of this many columns."""
MOST_COLUMNS, MOST_ROWS = 128, 32
"""At most this many columns of a chunk, and rows of a panel."""
MOST_LAYERS = 8
PARTS = 8
"""The number of threads that share an element of the sums over workers."""


class Widths(NamedTuple):
    """The sizes of the linear layers, padded to MOST_LAYERS, so that one compiled kernel serves all."""

    layers: int
    sizes: tuple[int, ...]
    """The inputs of the first layer, then the outputs of each layer."""
    begins: tuple[int, ...]
    """Where the W of each layer begins in `parameters`; b follows."""
    rows: tuple[int, ...]
    """The first row of each layer among the outputs of all layers."""

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
        """The outputs of all layers together."""
        return sum(self.sizes[1 : self.layers + 1])

    @property
    def held(self) -> int:
        """Rows of a chunk that stay in shared memory: all outputs, or the inputs if there is no layer."""
        return self.outputs if self.layers else self.inputs


class Weights(NamedTuple):
    """A matrix of weights: array[begin + o · step_o + d · step_d]. The bias is array[bias + o · step_b]; no bias is
    −1."""

    array: Any
    begin: int
    step_o: int
    step_d: int
    bias: int
    step_b: int


class Rows(NamedTuple):
    """`count` rows of shared memory from `begin` on."""

    begin: int
    count: int
    columns: int


class Target(NamedTuple):
    """Where sums are added: array[begin + o · step + i]."""

    array: Any
    begin: int
    step: int


class Finish(NamedTuple):
    """What happens to a product: it is added to the element in its place, and then rectified; or it is set to 0 where
    that element is 0 or negative. A ReLU, and its gradient, pass NaN: `max` would replace it by 0."""

    added: bool
    rectified: bool
    masked: bool


# On the host.


def widths_of(numbers: Sequence[int]) -> Widths:
    layers = len(numbers) - 1
    if not 0 <= layers <= MOST_LAYERS:
        raise ValueError(f"a mapping has {len(numbers)} widths; expected 1 to {MOST_LAYERS + 1}")
    sizes, begins, rows = [*map(int, numbers)], [0], [0]
    for inputs, outputs in pairwise(sizes):
        begins.append(begins[-1] + (inputs + 1) * outputs)
        rows.append(rows[-1] + outputs)
    padding = [0] * MOST_LAYERS
    return Widths(layers, *(tuple([*x, *padding][: MOST_LAYERS + 1]) for x in (sizes, begins, rows)))


def add_up(partial: Any, workers: int, to: Any, work: Any) -> None:
    """to[i] = Σ_w partial[w][i], summed in the order of the workers."""
    zero, to = zero_of(to), line(to)
    blocks = ceil_div(to.size, THREADS // min(PARTS, THREADS))
    start(_add_up, blocks, THREADS, work, zero, partial, workers, to, zero)


def merge_moments(partial: Any, workers: int, rows: int, mean: Any, variance: Any, work: Any) -> None:
    """The mean and the biased variance of each row from the moments of the workers."""
    zero = zero_of(mean)
    start(_merge_moments, ceil_div(rows, THREADS), 0, work, zero, partial, workers, rows, mean, variance, zero)


# On the device.


@device
def fused(sums, scale, values):
    """sums + scale · values, element by element."""
    return (
        sums[0] + scale * values[0],
        sums[1] + scale * values[1],
        sums[2] + scale * values[2],
        sums[3] + scale * values[3],
    )


@device
def _write(shared, place, step, sums, begin, finish, zero):
    """Write the WIDTH sums of an output, each plus `begin`."""
    for w in range(WIDTH):
        before = shared[place + w * step]
        result = begin + sums[w]
        if finish.added:
            result += before
        if (finish.rectified and result < zero) or (finish.masked and before <= zero):
            result = zero
        shared[place + w * step] = result


@device
def product(weights, rows, to, outputs, finish, block):
    """Row `to` + o of shared memory = bias of o + Σ_d weights[o, d] · row d, for all outputs o."""
    array, shared, zero = weights.array, block.shared, block.zero
    vectors, last = rows.columns // WIDTH, outputs - 1
    for item in range(block.thread, (outputs + SIDES - 1) // SIDES * vectors, block.threads):
        panel = item // vectors
        o, column = panel * SIDES, item - panel * vectors
        # beyond the end, the last output is repeated, so that no load waits for a branch
        w0 = uint64(weights.begin + o * weights.step_o)
        w1 = uint64(weights.begin + min(o + 1, last) * weights.step_o)
        w2 = uint64(weights.begin + min(o + 2, last) * weights.step_o)
        w3 = uint64(weights.begin + min(o + 3, last) * weights.step_o)
        place, step, along = uint64(rows.begin + column), uint64(weights.step_d), uint64(rows.columns)
        v1, v2, v3 = uint64(vectors), uint64(2 * vectors), uint64(3 * vectors)
        s0 = (zero, zero, zero, zero)
        s1, s2, s3 = s0, s0, s0
        for _ in range(rows.count):
            values = (shared[place], shared[place + v1], shared[place + v2], shared[place + v3])
            s0 = fused(s0, array[w0], values)
            s1 = fused(s1, array[w1], values)
            s2 = fused(s2, array[w2], values)
            s3 = fused(s3, array[w3], values)
            w0, w1, w2, w3 = w0 + step, w1 + step, w2 + step, w3 + step
            place += along
        sums = (s0, s1, s2, s3)
        for s in range(SIDES):
            if o + s < outputs:
                bias = array[weights.bias + (o + s) * weights.step_b] if weights.bias >= 0 else zero
                _write(shared, to + (o + s) * rows.columns + column, vectors, sums[s], bias, finish, zero)


@device
def outer_product(left, right, to, block):
    """to[o, i] += Σ_column left[o][column] · right[i][column]. Threads begin at different columns, since all rows begin
    in the same bank."""
    shared, columns, outputs, inputs = block.shared, left.columns, left.count, right.count
    groups = (inputs + SIDES - 1) // SIDES
    for item in range(block.thread, (outputs + SIDES - 1) // SIDES * groups, block.threads):
        panel = item // groups
        o, i = panel * SIDES, (item - panel * groups) * SIDES
        l0, r0 = uint64(left.begin + o * columns), uint64(right.begin + i * columns)
        l1, r1 = (
            uint64(left.begin + min(o + 1, outputs - 1) * columns),
            uint64(right.begin + min(i + 1, inputs - 1) * columns),
        )
        l2, r2 = (
            uint64(left.begin + min(o + 2, outputs - 1) * columns),
            uint64(right.begin + min(i + 2, inputs - 1) * columns),
        )
        l3, r3 = (
            uint64(left.begin + min(o + 3, outputs - 1) * columns),
            uint64(right.begin + min(i + 3, inputs - 1) * columns),
        )
        s0 = (block.zero, block.zero, block.zero, block.zero)
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
                    to.array[to.begin + (o + t) * to.step + i + s] += sums[t][s]


@device
def row_sums(rows, to, block):
    """to[o] += Σ_column row o."""
    for o in range(block.thread, rows.count, block.threads):
        total, column = block.zero, o % rows.columns
        for _ in range(rows.columns):
            total += block.shared[rows.begin + o * rows.columns + column]
            column = column + 1 if column + 1 < rows.columns else 0
        to.array[to.begin + o] += total


@device
def add_parameter_gradients(gradient, rows, first, to, block):
    """Add the gradients of W and b of a layer, over a chunk, to the sums in `to`, whose step is the layer's inputs.

    `gradient` are the rows of the outputs' gradients, and `rows` the layer's inputs from `first` on. The gradient of b
    is added together with the first inputs."""
    outer_product(gradient, rows, Target(to.array, to.begin + first, to.step), block)
    if first == 0:
        row_sums(gradient, Target(to.array, to.begin + gradient.count * to.step, 1), block)


@device
def _merge(moments, index, count, mean, squares):
    """Merge count, mean and sum of squared deviations at `index` with others, by the formula of Chan et al."""
    if count > 0:
        here = moments[index]
        total, difference = here + count, mean - moments[index + 1]
        moments[index] = total
        moments[index + 1] += difference * (count / total)
        moments[index + 2] += squares + difference * difference * (here / total * count)


@device
def _parts_of(rows, threads):
    """How many threads share a row."""
    return max(1, threads // rows)


@device
def gather_moments(values, moments, block):
    """Add the moments of the rows, over all columns that belong to an image, to the moments of each (row, part)."""
    shared, zero, columns = block.shared, block.zero, values.columns
    parts, one = _parts_of(values.count, block.threads), type(zero)(1)
    for item in range(block.thread, values.count * parts, block.threads):
        row = item // parts
        count, mean, squares = zero, zero, zero
        for column in range(item - row * parts, columns, parts):
            if block.pairs[column] >= 0:
                count += one
                mean += shared[values.begin + row * columns + column]
        if count > 0:
            mean /= count
        for column in range(item - row * parts, columns, parts):
            if block.pairs[column] >= 0:
                difference = shared[values.begin + row * columns + column] - mean
                squares += difference * difference
        _merge(shared, moments + 3 * item, count, mean, squares)


@device
def write_moments(moments, rows, to, begin, block):
    """Write the moments of each row to `to` from `begin` on, merged in the order of the parts."""
    shared, parts = block.shared, _parts_of(rows, block.threads)
    for row in range(block.thread, rows, block.threads):
        first = moments + 3 * row * parts
        for part in range(1, parts):
            other = first + 3 * part
            _merge(shared, first, shared[other], shared[other + 1], shared[other + 2])
        for i in range(3):
            to[begin + 3 * row + i] = shared[first + i]


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
        first = 3 * (worker * rows + row)
        others = partial[first]
        if others > 0:
            total, difference = count + others, partial[first + 1] - here
            here += difference * (others / total)
            squares += partial[first + 2] + difference * difference * (count / total * others)
            count = total
    mean[row] = here
    variance[row] = squares / count
