"""The softmax over taps on a CPU, its gradient, and the average of a map with the weights that it gives.

    α_i = softmax of u_i over the taps j      y_i[c] = Σ_j α_ij · β_j[c]

Each function takes a vector of centres: their logits at tap j are at + j · step. The logits of one tile stay in the
cache, and the weights replace them in place.
"""

from __future__ import annotations

import numpy as np

from kernels_numba.compiled import part
from kernels_numba.cpu.frames import BLOCK, aggregate_block, aggregate_channel, rewrite, write
from kernels_numba.cpu.simd import add, broadcast, exp, lanes, load, maximum, mul, sub, where_positive, zeros


@part
def drop_outside(values, at, inside, out, room):
    """Replace the values of a tap by `out` where `inside` is 0: the tap is outside the map."""
    value = load(values, at)
    rewrite(values, at, where_positive(inside, value, out), value, room)


@part
def softmax(logits, at, k, step, room, lowest):
    """Replace the logits by exp(logit − peak); return the sums of these weights, and the peaks, the largest logits.

    A peak is at least the lowest number, so that a logit of −∞ has a weight of 0. If all logits are −∞, the sum is 0,
    and the division by it gives NaN, as torch's softmax does. The sum is NaN if a logit is NaN or ∞.
    """
    peak, sums = broadcast(logits, lowest), zeros(logits)
    for j in range(k):
        peak = maximum(peak, load(logits, at + j * step))
    for j in range(k):
        here = at + j * step
        logit = load(logits, here)
        weight = exp(sub(logit, peak))
        sums = add(sums, weight)
        rewrite(logits, here, weight, logit, room)
    return sums, peak


@part
def log_sum(peak, weights):
    """The logarithm of Σ_j exp(logit_j) of one centre, from the sum of its weights."""
    return peak + np.log(weights)


@part
def softmax_gradient(logit, lse, alpha_gradient, mean):
    """α = exp(logit − lse), and the gradient of the logit, α · (alpha_gradient − mean).

    `mean` is Σ_j α_j · alpha_gradient_j.
    """
    alpha = exp(sub(logit, lse))
    return alpha, mul(alpha, sub(alpha_gradient, mean))


@part
def average(weights, at, step, scale, planes, u, size, taps, channels, y, to, step_y, room):
    """y = scale · Σ_j weight_j · frame at tap j, for `channels` frames at u + c · size; BLOCK at most."""
    whole = lanes(weights)
    if channels == BLOCK:
        y0, y1, y2, y3, y4, y5, y6, y7 = aggregate_block(weights, at, step, whole, planes, u, size, taps)
        write(y, to, mul(y0, scale), room)
        write(y, to + step_y, mul(y1, scale), room)
        write(y, to + 2 * step_y, mul(y2, scale), room)
        write(y, to + 3 * step_y, mul(y3, scale), room)
        to += 4 * step_y
        write(y, to, mul(y4, scale), room)
        write(y, to + step_y, mul(y5, scale), room)
        write(y, to + 2 * step_y, mul(y6, scale), room)
        write(y, to + 3 * step_y, mul(y7, scale), room)
    else:
        for c in range(channels):
            value = aggregate_channel(weights, at, step, whole, planes, u + c * size, taps)
            write(y, to + c * step_y, mul(value, scale), room)


def lowest_of(like):
    """The lowest number of the array's dtype."""
    return float(np.finfo(like.dtype).min)


def clear_unreached(y, lse, work):
    """Set y and lse to 0 at the centres whose taps are all outside the map, if the softmax skips these taps."""
    if work.excludes and (0, 0) not in work.footprint.offsets:
        unreached = ~work.footprint.inside(*work.map_size).any(0).numpy()
        y[:, :, unreached] = 0
        lse[:, :, unreached] = 0
