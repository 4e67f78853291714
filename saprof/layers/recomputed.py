"""Batch norm, ReLU and the linear layers behind them in training, as one node of autograd.

The forward saves the input of the norm and the statistics of the batch. The backward computes ReLU(norm(x)) again, a
map that torch's layers save. The layers behind it share one matrix product in the forward and two in the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers.exactly import eager, not_norm
from saprof.layers.exactly import rectified as in_general
from saprof.layers.running import inside

AT_ONCE = 32 * 32
"""For maps with at most this many positions, one call computes the products of all images, because the start of a call
takes as long as a small product. For larger maps, one call per image was as fast or faster."""


def of_batch(norm: nn.Module, x: Tensor) -> bool:
    """Whether norm(x) is torch's batch norm in training, as the functions below compute it: with parameters, running
    statistics that have a momentum, and more than one value per channel."""
    if not norm.training or not eager(x) or x.dim() != 4 or not_norm(norm, x.shape[1]) is not None:
        return False
    assert isinstance(norm, nn.BatchNorm2d)
    tensors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    if norm.momentum is None or not norm.track_running_stats or x.numel() <= x.shape[1]:
        return False
    return all(t is not None and t.dtype == x.dtype and t.device == x.device for t in tensors)


def fits(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether the weight and the bias of a layer have the dtype and the device of x."""
    return all(t is None or (t.dtype, t.device) == (x.dtype, x.device) for t in (layer.weight, layer.bias))


def rectified(norm: nn.Module, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """ReLU(norm(x)). Where `of_batch` is true, the backward needs only x and the statistics of the batch."""
    if not (of_batch(norm, x) and x.is_contiguous()):
        return in_general(norm, x)
    assert isinstance(norm, nn.BatchNorm2d)
    return _Rectified.apply(x, norm.weight, norm.bias, norm)


def rectified_linears(
    norm: Any,
    x: Float[Tensor, "n c h w"],
    layers: Sequence[nn.Conv2d],
    residual: Float[Tensor, "n d h w"] | None = None,
) -> tuple[Tensor, ...]:
    """The 1 × 1 convolutions `layers` of ReLU(norm(x)). All have a bias. With a `residual` there is one layer, and its
    output is added to it."""
    weights = [weight for layer in layers for weight in (layer.weight, layer.bias)]
    return _Linears.apply(x, norm.weight, norm.bias, residual, norm, *weights)


@torch.no_grad()
def update_running_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, samples: int) -> None:
    """Update running statistics as torch does, with the mean and the biased variance over `samples` values."""
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / norm.num_batches_tracked if momentum is None else momentum
    unbiased = variance * (samples / (samples - 1))
    for running, now in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        if running is not None:
            running.copy_((1 - (momentum or 0)) * running + (momentum or 0) * now)


def differentiable_gradients(
    define: Callable[..., Any], inputs: Sequence[Tensor | None], needs: Sequence[bool], given: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients of define(*inputs), with a graph of their own for second derivatives."""
    if not any(needs):
        return (None,) * len(needs)
    with torch.enable_grad():
        # an input may depend on another one; its alias does not
        aliases = [None if x is None else x.view_as(x) for x in inputs]
        found = iter(
            torch.autograd.grad(
                define(*aliases),
                [x for x, need in zip(aliases, needs, strict=True) if x is not None and need],
                given,
                create_graph=True,
                allow_unused=True,
            )
        )
    return tuple(next(found) if need else None for need in needs)


def in_full(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The backward without autocast, which the forward did not have either."""

    @wraps(backward)
    def run(*arguments: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return backward(*arguments)

    return run


class _Rectified(torch.autograd.Function):
    """ReLU(norm(x))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        with inside(norm):
            y, mean, scale = _normed(norm, x, weight, bias)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.eps = norm.eps
        return y.relu_()

    @staticmethod
    @in_full
    def backward(ctx: Any, *given: Tensor) -> Any:
        (gradient,) = given
        x, weight, bias, mean, scale = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            found = differentiable_gradients(
                lambda x, weight, bias: _define(x, weight, bias, ctx.eps), (x, weight, bias), needs, given
            )
            return *found, None
        masked = torch.ops.aten.threshold_backward(gradient, _again(x, weight, bias, mean, scale), 0)
        return *_before(masked, x, weight, mean, scale, ctx.eps, needs), None


class _Linears(torch.autograd.Function):
    """Linear layers of ReLU(norm(x)), given as weight, bias, weight, bias, …"""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        norm: nn.BatchNorm2d,
        *layers: Tensor,
    ) -> tuple[Tensor, ...]:
        (n, _, h, w), matrix, added = x.shape, _joined(layers[::2]), torch.cat(layers[1::2])[:, None]
        with inside(norm):
            y, mean, scale = _normed(norm, x, weight, bias)
        y.relu_()
        ctx.save_for_backward(x, weight, bias, mean, scale, *layers)
        ctx.eps = norm.eps
        outputs = x.new_empty(n, len(matrix), h, w)
        if h * w <= AT_ONCE:
            start = added if residual is None else residual.flatten(2) + added
            torch.baddbmm(start, matrix.expand(n, -1, -1), y.flatten(2), out=outputs.flatten(2))
        else:
            for number, one in enumerate(y.flatten(2)):
                start = added if residual is None else residual[number].flatten(1) + added
                torch.addmm(start, matrix, one, out=outputs[number].flatten(1))
        if len(layers) == 2:
            return (outputs,)
        parts = outputs.split([len(layer) for layer in layers[::2]], 1)
        return tuple(part.contiguous() for part in parts)

    @staticmethod
    @in_full
    def backward(ctx: Any, *given: Any) -> Any:
        x, weight, bias, mean, scale, *layers = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            *before, wanted = (*needs[:3], needs[5:])
            found = differentiable_gradients(
                lambda x, weight, bias, *layers: _linears(_define(x, weight, bias, ctx.eps), layers),
                (x, weight, bias, *layers), (*before, *wanted), given,
            )  # fmt: skip
            return *found[:3], given[0] if needs[3] else None, None, *found[3:]
        arrived = [one.flatten(2) for one in given]
        gradient = torch.cat(arrived, 1) if len(arrived) > 1 else arrived[0]
        y = _again(x, weight, bias, mean, scale)
        of_layers: list[Tensor | None] = [None] * len(layers)
        widths = [len(layer) for layer in layers[::2]]
        if any(needs[5::2]):
            product = torch.bmm(gradient, y.flatten(2).mT).sum(0)
            of_layers[::2] = (g.view_as(w) for g, w in zip(product.split(widths), layers[::2], strict=True))
        if any(needs[6::2]):
            of_layers[1::2] = gradient.sum((0, 2)).split(widths)
        before: Sequence[Tensor | None] = (None, None, None)
        if any(needs[:3]):
            arriving = torch.bmm(_joined(layers[::2]).T.expand(len(x), -1, -1), gradient).view_as(x)
            torch.ops.aten.threshold_backward.grad_input(arriving, y, 0, grad_input=arriving)
            del y
            before = _before(arriving, x, weight, mean, scale, ctx.eps, needs[:3])
        of_layers = [g if need else None for g, need in zip(of_layers, needs[5:], strict=True)]
        return *before, given[0] if needs[3] else None, None, *of_layers


def _joined(weights: Sequence[Tensor]) -> Float[Tensor, "outputs inputs"]:
    matrices = [weight.flatten(1) for weight in weights]
    return torch.cat(matrices) if len(matrices) > 1 else matrices[0]


def _define(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, weight, bias, training=True, eps=eps))


def _linears(y: Tensor, layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(F.conv2d(y, *layer) for layer in zip(layers[::2], layers[1::2], strict=True))


def _normed(norm: nn.BatchNorm2d, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """norm(x), and the mean and the reciprocal standard deviation of the batch."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    running = norm.running_mean, norm.running_var
    return torch.native_batch_norm(x, weight, bias, *running, True, norm.momentum or 0.0, norm.eps)


def _again(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """ReLU(norm(x)) with known statistics."""
    scale = weight * scale
    return torch.addcmul((bias - mean * scale)[:, None, None], x, scale[:, None, None]).relu_()


def _before(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, the weight and the bias of the norm, from that of its output."""
    return torch.ops.aten.native_batch_norm_backward(
        gradient.contiguous(), x, weight, None, None, mean, scale, True, eps, list(needs)
    )
