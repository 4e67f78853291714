"""The softmax over the taps of chunks of pairs, and part of its gradient. Twin of kernels_cuda/csrc/softmax.h, and of
the softmax in pairwise.cu and stand_alone.cu."""

from __future__ import annotations

import math
from typing import Any

from numba import cuda

from kernels_numba.gpu.launch import THREADS, ceil_div, device, kernel, start, zero_of


@device
def softmax(inputs, plan, block, logits, most, groups):
    """Replace the logits of a chunk by exp(logit − the maximum so far).

    Shared memory holds from `most` on, for each group and position: the maximum so far, the sum so far, and the factor
    that scales earlier sums. The maximum is −∞ until there is a pair, and then at least the lowest number, so that a
    logit of −∞ has a weight of 0. The sum is NaN if a logit is NaN or ∞.
    """
    pairs, shared, zero, tile, columns = block.pairs, block.shared, block.zero, plan.positions, plan.columns
    total = most + groups * tile
    scale = total + groups * tile
    for item in range(block.thread, groups * tile, block.threads):
        group = item // tile
        i = item - group * tile
        own = logits + group * columns
        before = shared[most + item]
        best, weights = before, zero
        for column in range(i, columns, tile):
            if pairs[column] >= 0:
                best = max(best, max(inputs.lowest, shared[own + column]))  # drops NaN
        for column in range(i, columns, tile):
            alpha = zero
            if pairs[column] >= 0:
                alpha = type(zero)(math.exp(shared[own + column] - best))
            shared[own + column] = alpha
            weights += alpha
        factor = type(zero)(math.exp(before - best)) if best > before else type(zero)(1)
        shared[scale + item] = factor
        shared[total + item] = shared[total + item] * factor + weights
        shared[most + item] = best


@device
def weighted_mean(values, total, most, zero):
    """The sum of weighted values, divided by the sum of the weights; 0 without a pair."""
    return zero if most == -math.inf else values / total


@device
def log_sum(total, most, zero):
    """The logarithm of the softmax's denominator; 0 without a pair."""
    if most == -math.inf:
        return zero
    return most + type(zero)(-math.inf if total == zero else math.log(total))  # Numba's simulator has no log of 0


def gradient_dot_output(gradient: Any, y: Any, to: Any, work: Any) -> None:
    """to[n, g, i] = Σ gradient · y over the channels of the group: the softmax subtracts it from the gradient of each
    weight."""
    zero = zero_of(y)
    start(_gradient_dot_output, ceil_div(to.size, THREADS), 0, work, zero, gradient, y, to, zero)


@kernel
def _gradient_dot_output(gradient, y, to, zero):
    n, g, p = to.shape
    item = cuda.grid(1)
    if item >= n * g * p:
        return
    rest = item // p
    image = rest // g
    centre, group = item - rest * p, rest - image * g
    total = zero
    for c in range(group, y.shape[1], g):
        total += gradient[image, c, centre] * y[image, c, centre]
    to[image, group, centre] = total
