"""The naive backend: F.unfold, then plain PyTorch on tensors with an element per tap and centre.

A careful user would write this first, and the other backends are compared with it. Every operator consists of
differentiable functions of torch, so gradients of any order, `torch.compile` and every device work. The cost is memory:
k copies of ψ or β, and k more in the saved tensors of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.flop_counter
from jaxtyping import Bool, Float
from torch import Tensor

from saprof.backends.taps import centre, gather, softmax, taps_inside
from saprof.operators import Operator
from saprof.operators.attention import Attention, Roles
from saprof.operators.footprint import Footprint


def why_not(operator: Operator, dtype: torch.dtype, device: str, footprint: Footprint) -> str | None:
    return None


def kernel(operator: Operator) -> Callable[..., Tensor] | None:
    """The kernels are the functions of this module with the name of an operator."""
    if isinstance(operator, Attention):
        return lambda *inputs: attention(operator, operator.roles(inputs[:-1]), inputs[-1])
    return globals().get(operator.name)


def statistics(operator: Attention) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function that computes mean and variance of the input of the batch norm after the given steps."""

    def run(*arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, footprint = arguments
        gamma = _gamma(operator, operator.roles(inputs, statistics=True), footprint)
        variance, mean = torch.var_mean(gamma, (0, 2, 3), correction=0)
        return mean, variance

    return run


def sum_of_products(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Σ a·b over an axis.

    FlopCounterMode does not count an elementwise product, so `tally` reports its multiply-adds.
    """
    products = a * b
    macs, output = products.numel(), products.sum(axis)
    if torch.compiler.is_exporting():
        return output
    torch.ops.saprof.tally(macs)
    if output.requires_grad:  # the gradient of each factor is a product of the same size
        factors = a.requires_grad + b.requires_grad
        output.register_hook(lambda gradient: torch.ops.saprof.tally(factors * macs))
    return output


_library = torch.library.Library("saprof", "FRAGMENT")
_library.define("tally(SymInt macs) -> ()")
_library.impl("tally", lambda macs: None, "CompositeExplicitAutograd")


@torch.utils.flop_counter.register_flop_formula(torch.ops.saprof.tally)
def _tally_flops(macs, *args, out_shape=None, **kwargs) -> int:
    return 2 * macs


def pairwise_summation(phi, psi, footprint):
    return centre(phi, footprint) + gather(psi, footprint)


def pairwise_subtraction(phi, psi, footprint):
    return centre(phi, footprint) - gather(psi, footprint)


def pairwise_hadamard_product(phi, psi, footprint):
    return centre(phi, footprint) * gather(psi, footprint)


def pairwise_concatenation(phi, psi, footprint):
    psi = gather(psi, footprint)
    return torch.cat([centre(phi, footprint).expand_as(psi), psi], dim=1)


def pairwise_dot_product(phi, psi, footprint):
    return sum_of_products(centre(phi, footprint), gather(psi, footprint), 1).unsqueeze(1)


def patchwise_star_product(phi, psi, footprint):
    return sum_of_products(centre(phi, footprint), gather(psi, footprint), 1).unsqueeze(2)


def patchwise_clique_product(phi, psi, footprint):
    phi, psi = gather(phi, footprint), gather(psi, footprint)
    products = phi.permute(0, 3, 2, 1) @ psi.permute(0, 3, 1, 2)  # n p k k
    return products.flatten(2).transpose(1, 2).unsqueeze(2)


def patchwise_concatenation(phi, psi, footprint):
    return torch.cat([centre(phi, footprint), gather(psi, footprint).flatten(1, 2).unsqueeze(2)], dim=1)


def aggregation(alpha, beta, footprint):
    n, v, h, w = beta.shape
    beta = gather(beta, footprint).unflatten(1, (-1, alpha.shape[1]))  # n s g k p: channel c = s·g + (c mod g)
    return sum_of_products(alpha.unsqueeze(1), beta, 3).reshape(n, v, *footprint.output_size(h, w))


def attention(operator: Attention, inputs: Roles, footprint: Footprint) -> Tensor:
    """A fused attention, computed part by part."""
    if operator.family == "patchwise":
        alpha = _gamma(operator, inputs, footprint).squeeze(2)
        return aggregation(alpha.unflatten(1, (-1, footprint.taps)), inputs.beta, footprint)
    outside = _excluded(inputs.phi, footprint) if footprint.boundary == "exclude" else None
    return _average(_gamma(operator, inputs, footprint, outside), inputs.beta, footprint)


def stand_alone_attention(query, key, relative, value, footprint):
    return _average(_content(query, key, footprint) + _position(query, relative, footprint), value, footprint)


def stand_alone_attention_content(query, key, value, footprint):
    return _average(_content(query, key, footprint), value, footprint)


def stand_alone_attention_position(query, relative, value, footprint):
    return _average(_position(query, relative, footprint), value, footprint)


def _content(query, key, footprint) -> Float[Tensor, "n g k p"]:
    heads = query.shape[2]
    queries, keys = centre(query.flatten(1, 2), footprint), gather(key.flatten(1, 2), footprint)
    return sum_of_products(queries.unflatten(1, (-1, heads)), keys.unflatten(1, (-1, heads)), 1)


def _position(query, relative, footprint) -> Float[Tensor, "n g k p"]:
    queries = query[..., :: footprint.stride, :: footprint.stride].flatten(3)  # n d g p
    relative = relative.to(query.dtype)
    if footprint.boundary == "exclude":
        relative = relative[..., None].masked_fill(_excluded(query, footprint), 0)
        return sum_of_products(queries.unsqueeze(3), relative, 1)
    return relative.permute(1, 2, 0) @ queries.transpose(1, 2)


def _excluded(map_, footprint) -> Bool[Tensor, "k p"]:
    """The taps outside the map. Values are set to 0 there, so that a gradient of 0 is not multiplied by NaN."""
    return ~taps_inside(footprint, map_.shape[-2:], map_)


def _average(logits, value, footprint):
    return aggregation(softmax(logits, footprint, value.shape[-2:]), value, footprint)


def _gamma(operator: Attention, inputs: Roles, footprint: Footprint, outside=None) -> Float[Tensor, "n _ _ p"]:
    """γ([δ, position]). The inputs of its linear layers are 0 at the taps `outside`."""
    kept = (lambda x: x) if outside is None else (lambda x: x.masked_fill(outside, 0))
    x = globals()[operator.delta.name](inputs.phi, inputs.psi, footprint)
    if inputs.positions:
        *centres, at_taps = inputs.positions
        position = gather(at_taps, footprint)
        position = centre(centres[0], footprint) - position if centres else position
        x = torch.cat([x, position.to(x.dtype)], dim=1)
    x = kept(x)
    for step in inputs.steps:
        scale, shift, weight = (parameter.to(x.dtype) for parameter in step)
        x = kept(torch.addcmul(shift[:, None, None], x, scale[:, None, None]).relu())
        bias = inputs.bias if step is inputs.steps[-1] else None
        bias = bias if bias is None else bias.flatten().to(x.dtype)
        x = F.conv2d(x, weight.flatten(0, -2)[:, :, None, None], bias)
    return x
