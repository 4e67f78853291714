"""γ on the CPU: linear layers of many columns at once, their gradients, and statistics of what they give.

    u = W·z + b, ReLU between layers; z has a row per input and a column per pair

Columns lie one behind the other, rows `step` elements apart. Whole vectors are read and written: rows need room for
columns up to a multiple of the lanes, and what is summed over columns has to be 0 there. Parameters are one flat array,
W (outputs × inputs) then b of every layer; `widths` are the inputs of the first layer, then the outputs of all.

    traffic    The few hundred columns of a call, and the weights, stay in the second-level cache; 3 vectors of columns
               of all rows stay in the first.
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
    """to = max(W·z + b, floor); if it adds, `to` in place of b. Rows of W are `step` apart."""
    wide = lanes(z)
    vectors, x = -(-columns // wide), 0
    while vectors > 0:
        # 4 vectors are better 2 and 2, since a block of a single one waits for its sums
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
def outer(a, at_a, step_a, outputs, z, at_z, step_z, inputs, columns, to, at_to, step_to):
    """to[o, e] += Σ over columns of a[o] · z[e]."""
    for o in range(0, outputs, ROWS):
        for e in range(0, inputs, 3):
            outer_block(
                a, at_a + o * step_a, step_a, outputs - o, z, at_z + e * step_z, step_z, inputs - e, columns,
                to, at_to + o * step_to + e, step_to,
            )  # fmt: skip


@part
def add_rows(a, at_a, step_a, rows, columns, to, at_to):
    """to[o] += Σ over columns of a[o]."""
    for o in range(rows):
        sums = zeros(a)
        for x in range(0, columns, lanes(a)):
            sums = add(sums, load(a, at_a + o * step_a + x))
        to[at_to + o] += total(sums)


@part
def rectify_gradient(gradient, at, step, z, at_z, step_z, rows, columns):
    """Set the gradient of max(z, 0) to 0 where z, or what is left of it, is not positive."""
    for row in range(rows):
        for x in range(0, columns, lanes(z)):
            here = at + row * step + x
            by = load(z, at_z + row * step_z + x)
            store(gradient, here, where_positive(by, load(gradient, here), zeros(z)))


@part
def layers(parameters, weight, widths, z, step, to, at_to, step_to, columns):
    """The layers, whose parameters begin at `weight`. All but the last find their inputs in z, the first from 0 on, and
    add their outputs behind them, rectified; the last writes to `to`."""
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
def layers_backward(transposed, widths, z, gradient, step, columns, to, weight):
    """The gradients of what `layers` left in z, at the same places of `gradient`, from those of the last layer's
    outputs behind them; the parameters' are added to `to` from `weight` on. `transposed` is what `transpose` gives."""
    at, back = 0, 0
    for layer in range(widths.shape[0] - 1):
        at += widths[layer] * step
        weight += (widths[layer] + 1) * widths[layer + 1]
    for layer in range(widths.shape[0] - 2, -1, -1):
        inputs, outputs = widths[layer], widths[layer + 1]
        before, weight = at - inputs * step, weight - (inputs + 1) * outputs
        outer(gradient, at, step, outputs, z, before, step, inputs, columns, to, weight, inputs)
        add_rows(gradient, at, step, outputs, columns, to, weight + outputs * inputs)
        product(
            transposed, back, outputs, back + inputs * outputs, inputs, outputs,
            gradient, at, step, gradient, before, step, columns, False, -np.inf,
        )  # fmt: skip
        if layer > 0:
            rectify_gradient(gradient, before, step, z, before, step, inputs, columns)
        at, back = before, back + inputs * (outputs + 1)


@part
def gather(u, at, step, rows, columns, moments):
    """Merge the columns of u into `moments`, (3, rows) in float64: how many columns there were, their mean, and the sum
    of their squared distances from it (Chan, Golub, LeVeque 1979)."""
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
        merge(moments, row, columns, rounded + off, total(squares) - columns * off * off)


@part
def merge(moments, row, count, mean, squares):
    """Merge `count` more values."""
    before, apart = moments[0, row], mean - moments[1, row]
    both = before + count
    moments[0, row] = both
    moments[1, row] += apart * (count / both)
    moments[2, row] += squares + apart * apart * (before * count / both)


@part
def spread(u, at, step, rows, columns, to, at_to, step_to, mean, d_mean, d_variance, count):
    """The columns' gradients from those of their mean and variance: (d_mean + 2 d_variance (u − mean)) / count."""
    for row in range(rows):
        slope, middle = 2 * d_variance[row] / count, mean[row]
        factor, term = broadcast(u, slope), broadcast(u, d_mean[row] / count)
        for x in range(0, columns, lanes(u)):
            apart = sub(load(u, at + row * step + x), broadcast(u, middle))
            store(to, at_to + row * step_to + x, keep_first(fma(factor, apart, term), columns - x))


def transpose(parameters, widths, empty):
    """Parameters that take gradients of outputs to those of inputs: the layers from the last to the first, each with Wᵀ
    in place of W and 0 in place of b. `empty` makes an array."""
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


def moments_of(gathered, mean, variance):
    """Mean and biased variance of what the threads have gathered, (threads, 3, rows)."""
    for one in gathered[1:]:
        for row in range(one.shape[1]):
            if one[0, row] > 0:
                merge.py_func(gathered[0], row, *one[:, row])
    mean[...], variance[...] = gathered[0, 1], gathered[0, 2] / gathered[0, 0]
