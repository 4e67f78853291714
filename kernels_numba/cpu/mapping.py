"""The mapping γ on a CPU: linear layers of many columns, their gradients, and the moments of their outputs.

    u = W·z + b, with a ReLU between layers; z has a row per input and a column per pair

Columns are contiguous; the distance between rows is `step` elements. Whole vectors are read and written, so a row has
memory for columns up to a multiple of the lanes, and arrays that are summed over columns are 0 there. The parameters
are one flat array: W (outputs × inputs), then b, of every layer. `widths` are the number of inputs of the first layer,
then the numbers of outputs of all layers.

    traffic    The few hundred columns of a call, and the weights, stay in the second-level cache; 3 vectors of columns
               of all rows stay in the first-level cache.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from kernels_numba.compiled import part
from kernels_numba.cpu.simd import (
    ROWS,
    add,
    broadcast,
    fma,
    keep_first,
    lanes,
    load,
    outer_block,
    product_1,
    product_2,
    product_3,
    store,
    sub,
    total,
    where_positive,
    zeros,
)


@part
def product(
    parameters, at, step, bias, outputs, inputs, z, at_z, step_z, to, at_to, step_to, columns, adds, floor
):  # fmt: skip
    """to = max(W·z + b, floor); with `adds`, `to` replaces b. The distance between rows of W is `step`."""
    wide = lanes(z)
    vectors, x = -(-columns // wide), 0
    while vectors > 0:
        # 2 and 2 vectors are faster than 3 and 1, because a block of one vector waits for its sums
        count = min(vectors, 2 if vectors == 4 else 3)
        for o in range(0, outputs, ROWS):
            w, b, rows, source, target = at + o * step, bias + o, outputs - o, at_z + x, at_to + o * step_to + x
            if count == 3:
                product_3(parameters, w, step, b, rows, inputs, z, source, step_z, to, target, step_to, adds, floor)
            elif count == 2:
                product_2(parameters, w, step, b, rows, inputs, z, source, step_z, to, target, step_to, adds, floor)
            else:
                product_1(parameters, w, step, b, rows, inputs, z, source, step_z, to, target, step_to, adds, floor)
        vectors -= count
        x += count * wide


@part
def outer_product(a, at_a, step_a, outputs, z, at_z, step_z, inputs, columns, to, at_to, step_to):
    """to[o, e] += Σ over columns of a[o] · z[e]."""
    for o in range(0, outputs, ROWS):
        for e in range(0, inputs, 3):
            outer_block(
                a, at_a + o * step_a, step_a, outputs - o, z, at_z + e * step_z, step_z, inputs - e, columns,
                to, at_to + o * step_to + e, step_to,
            )  # fmt: skip


@part
def row_sums(a, at_a, step_a, rows, columns, to, at_to):
    """to[o] += Σ over columns of a[o]."""
    for o in range(rows):
        sums = zeros(a)
        for x in range(0, columns, lanes(a)):
            sums = add(sums, keep_first(load(a, at_a + o * step_a + x), columns - x))
        to[at_to + o] += total(sums)


@part
def rectify_gradient(gradient, at, step, z, at_z, step_z, rows, columns):
    """Set the gradient to 0 where z, before or after the ReLU, is 0 or negative."""
    for row in range(rows):
        for x in range(0, columns, lanes(z)):
            here = at + row * step + x
            by = load(z, at_z + row * step_z + x)
            store(gradient, here, where_positive(by, load(gradient, here), zeros(z)))


@part
def layers(parameters, weight, widths, z, step, to, at_to, step_to, columns):
    """The linear layers, whose parameters begin at `weight`.

    The inputs of the first layer are the first rows of z. Each layer but the last writes its outputs, after the ReLU,
    to the next rows of z; the last layer writes to `to`.
    """
    at, last = 0, widths.shape[0] - 2
    for layer in range(last + 1):
        inputs, outputs = widths[layer], widths[layer + 1]
        bias, behind = weight + outputs * inputs, at + inputs * step
        if layer < last:
            product(
                parameters, weight, inputs, bias, outputs, inputs, z, at, step, z, behind, step, columns, False, 0.0
            )
        else:
            product(
                parameters, weight, inputs, bias, outputs, inputs, z, at, step, to, at_to, step_to, columns,
                False, -np.inf,
            )  # fmt: skip
        weight, at = bias + outputs, behind


@part
def layers_gradient(transposed, widths, z, gradient, step, columns, to, weight):
    """The gradients of the layers' inputs and parameters.

    The rows of `gradient` correspond to those that `layers` writes to z; behind them, the gradient of the last layer's
    outputs is given. The gradients of the parameters are added to `to`, from `weight` on. `transpose` returns
    `transposed`.
    """
    at, back = 0, 0
    for layer in range(widths.shape[0] - 1):
        at += widths[layer] * step
        weight += (widths[layer] + 1) * widths[layer + 1]
    for layer in range(widths.shape[0] - 2, -1, -1):
        inputs, outputs = widths[layer], widths[layer + 1]
        before, weight = at - inputs * step, weight - (inputs + 1) * outputs
        outer_product(gradient, at, step, outputs, z, before, step, inputs, columns, to, weight, inputs)
        row_sums(gradient, at, step, outputs, columns, to, weight + outputs * inputs)
        product(
            transposed, back, outputs, back + inputs * outputs, inputs, outputs,
            gradient, at, step, gradient, before, step, columns, False, -np.inf,
        )  # fmt: skip
        if layer > 0:
            rectify_gradient(gradient, before, step, z, before, step, inputs, columns)
        at, back = before, back + inputs * (outputs + 1)


@part
def gather_moments(u, at, step, rows, columns, moments):
    """Merge the columns of u into `moments` (Chan, Golub, LeVeque 1979).

    `moments` is (3, rows) in float64: the number of columns, their mean, and the sum of squared distances from it.
    """
    for row in range(rows):
        first = at + row * step
        sums = zeros(u)
        for x in range(0, columns, lanes(u)):
            sums = add(sums, keep_first(load(u, first + x), columns - x))
        near = broadcast(u, total(sums) / columns)
        sums = squares = zeros(u)
        for x in range(0, columns, lanes(u)):
            apart = keep_first(sub(load(u, first + x), near), columns - x)
            sums, squares = add(sums, apart), fma(apart, apart, squares)
        off = total(sums) / columns
        rounded = total(near) / lanes(u)
        merge_moments(moments, row, columns, rounded + off, total(squares) - columns * off * off)


@part
def merge_moments(moments, row, count, mean, squares):
    """Merge `count` values with a mean and a sum of squared distances into the moments of a row."""
    before, apart = moments[0, row], mean - moments[1, row]
    both = before + count
    moments[0, row] = both
    moments[1, row] += apart * (count / both)
    moments[2, row] += squares + apart * apart * (before * count / both)


@part
def moments_gradient(u, at, step, rows, columns, to, at_to, step_to, mean, mean_gradient, variance_gradient, count):
    """The gradient of u: (mean_gradient + 2 variance_gradient · (u − mean)) / count."""
    for row in range(rows):
        slope, middle = 2 * variance_gradient[row] / count, mean[row]
        factor, term = broadcast(u, slope), broadcast(u, mean_gradient[row] / count)
        for x in range(0, columns, lanes(u)):
            apart = sub(load(u, at + row * step + x), broadcast(u, middle))
            store(to, at_to + row * step_to + x, keep_first(fma(factor, apart, term), columns - x))


def transpose(parameters, widths, empty):
    """The parameters of the transposed layers, from the last to the first, with Wᵀ in place of W and 0 in place of b.

    They map gradients of outputs to gradients of inputs. `empty` allocates an array.
    """
    transposed = empty(sum((inputs + 1) * outputs for outputs, inputs in pairwise(widths)) or 1)
    end, at = parameters.size, 0
    for outputs, inputs in pairwise(reversed(widths)):
        end -= outputs
        weight = parameters[end - outputs * inputs : end].reshape(outputs, inputs)
        transposed[at : at + weight.size].reshape(inputs, outputs)[...] = weight.T
        at += weight.size
        transposed[at : at + inputs] = 0
        at, end = at + inputs, end - weight.size
    return transposed


def mean_and_variance(gathered, mean, variance):
    """Write the mean and biased variance of the moments of all threads, (threads, 3, rows)."""
    for one in gathered[1:]:
        for row in range(one.shape[1]):
            if one[0, row] > 0:
                merge_moments.py_func(gathered[0], row, *one[:, row])
    mean[...], variance[...] = gathered[0, 1], gathered[0, 2] / gathered[0, 0]
