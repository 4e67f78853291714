"""2 × 2 maxima in training, with the place of each maximum in one byte, and SAN's stem before such a pool.

The stem is a linear layer at every pixel, batch norm and ReLU. Its map is as large as the image and has many more
channels, and only the pool reads it. The statistics of the norm follow from those of the image: the mean is W·mean(x),
the variance diag(W·Cov(x)·Wᵀ). So the norm is folded into the layer, W' x + b'. ReLU and maximum commute. The maximum
is taken over the four products of W' and the pixels of a block, image by image, and no map has the size of the image.

Comparisons write numbers, not bools: at four images of 224² pixels and 64 channels, on two cores, a forward and a
backward of the stem and the pool take 37 ms instead of 54.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers.exactly import changed, eager, not_linear
from saprof.layers.recomputed import differentiable_gradients, fits, in_full, of_batch, update_running_statistics

RECTIFIED = 4
"""Added to the place of a maximum that ReLU makes 0. The places 0 to 3 are the values of a block, row by row."""


def largest(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h/2 w/2"]:
    """The largest of each 2 × 2 values. Of equal ones, the first row by row has the gradient, as in torch. Both sides
    are at least 2; the last row or column of an odd side is left out."""
    return _Largest.apply(x)


def stem_fits(layers: nn.Module, x: Tensor) -> bool:
    """Whether `layers` are a linear layer, batch norm and ReLU in training, which `largest_of_stem` computes."""
    if not (layers.training and eager(x) and x.dim() == 4 and not x.requires_grad):
        return False
    n, channels, h, w = x.shape
    if changed(layers, nn.Sequential) is not None or len(layers._modules) != 3 or min(n, h, w) < 1 or h % 2 or w % 2:
        return False
    layer, norm, rectifier = layers._modules.values()
    if not (isinstance(layer, nn.Conv2d) and isinstance(norm, nn.Module) and isinstance(rectifier, nn.Module)):
        return False
    outputs = layer.out_channels
    return (
        not_linear(layer, channels, outputs, bias=False) is None
        and fits(layer, x)
        and of_batch(norm, x.new_empty(1).expand(n, outputs, h, w))
        and changed(rectifier, nn.ReLU) is None
    )


def largest_of_stem(layers: nn.Sequential, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h/2 w/2"]:
    """The largest of each 2 × 2 values of ReLU(norm(linear(x))). No gradient of x is computed."""
    layer: Any = layers[0]
    norm: Any = layers[1]
    samples = x.numel() // x.shape[1]
    channels_first = x.transpose(0, 1).flatten(1)
    mean = channels_first.mean(1, dtype=torch.float64)
    apart = channels_first.double() - mean[:, None]
    weight = layer.weight.flatten(1).double()
    of_outputs = weight @ mean
    variance = (weight @ (apart @ apart.T / samples) * weight).sum(1)
    update_running_statistics(norm, of_outputs, variance, samples)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    shift = norm.bias - scale * of_outputs
    folded = (scale[:, None] * weight).to(x.dtype), shift.to(x.dtype)
    return _LargestOfLinear.apply(x, *folded)


class _Largest(torch.autograd.Function):
    """The pool. Columns come first, so that the first of equal values row by row is found."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        h, w = (side // 2 * 2 for side in x.shape[-2:])
        left, right = x[..., :h, 0:w:2], x[..., :h, 1:w:2]
        in_row = _is_greater(right, left)
        of_rows = torch.maximum(left, right)
        y, place = _of_rows(of_rows[..., ::2, :], of_rows[..., 1::2, :], in_row[..., ::2, :], in_row[..., 1::2, :])
        ctx.save_for_backward(place.to(torch.uint8))
        ctx.shape = x.shape
        return y

    @staticmethod
    @in_full
    def backward(ctx: Any, *given: Tensor) -> Any:
        (place,) = ctx.saved_tensors
        h, w = ctx.shape[-2:]
        rows = torch.arange(0, h // 2 * 2, 2)[:, None] * w
        index = place.long()  # the maximum is linear in x where it is differentiable, so this may be differentiated
        index = (index >> 1) * w + (index & 1) + (rows + torch.arange(0, w // 2 * 2, 2))
        zeros = given[0].new_zeros(*ctx.shape[:2], h * w)
        return zeros.scatter(2, index.flatten(2), given[0].flatten(2)).view(ctx.shape)


class _LargestOfLinear(torch.autograd.Function):
    """max(0, the largest of W x + b over each 2 × 2 pixels)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = x.new_empty(n, len(weight), h // 2 * (w // 2))
        places = torch.empty_like(y, dtype=torch.uint8)
        for number, pixels in enumerate(_blocks(x)):
            first, right, below, last = (torch.addmm(bias[:, None], weight, one) for one in pixels)
            upper, lower = _is_greater(right, first), _is_greater(last, below)
            torch.maximum(first, right, out=first)
            torch.maximum(below, last, out=below)
            found, place = _of_rows(first, below, upper, lower)
            places[number] = place.add_(torch.le(found, 0, out=upper), alpha=RECTIFIED)
            y[number] = found.relu_()
        ctx.save_for_backward(x, weight, bias, places)
        return y.view(n, -1, h // 2, w // 2)

    @staticmethod
    @in_full
    def backward(ctx: Any, *given: Tensor) -> Any:
        x, weight, bias, places = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(_define, (x, weight, bias), ctx.needs_input_grad, given)
        found = x.new_zeros(len(weight), x.shape[1] + 1)
        for gradient, place, pixels in zip(given[0].flatten(2), places.to(x.dtype), _blocks(x), strict=True):
            here = torch.empty_like(gradient)
            for number, one in enumerate(pixels):
                with_bias = torch.cat([one, torch.ones_like(one[:1])])
                found.addmm_(torch.eq(place, number, out=here).mul_(gradient), with_bias.T)
        needs = ctx.needs_input_grad
        return None, found[:, :-1] if needs[1] else None, found[:, -1] if needs[2] else None


def _define(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.max_pool2d(F.conv2d(x, weight[:, :, None, None], bias), 2))


def _blocks(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 4 c p"]:
    """The pixels of every image by their place in the block."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4, c, -1)


def _of_rows(upper: Tensor, lower: Tensor, of_upper: Tensor, of_lower: Tensor) -> tuple[Tensor, Tensor]:
    """The larger of two values that are maxima over columns, and its place, from the column of each."""
    place = torch.addcmul(of_upper, _is_greater(lower, upper), of_lower - of_upper + 2)
    return torch.maximum(upper, lower), place


def _is_greater(a: Tensor, b: Tensor) -> Tensor:
    """1 where a > b, else 0, in the dtype of a: on a CPU, torch compares into bool in three times the time."""
    return torch.gt(a, b, out=torch.empty_like(a))
