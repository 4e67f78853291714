"""Reference implementations of the cores of the fused attentions: each pair of a centre and a tap is materialised, and
autograd computes the gradients.

`saprof/backends/cores.py` defines the cores. This file shares no code with it or with the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from saprof.operators.footprint import Footprint


def at_taps(x: Tensor, footprint: Footprint) -> Tensor:
    """n c k p: the value of the map at each tap of each centre, 0 outside."""
    h, w = x.shape[-2:]
    rows, columns = footprint.rows(h)[:, :, None], footprint.columns(w)[:, None, :]
    index = (rows * w + columns).where((rows >= 0) & (columns >= 0), h * w).flatten(1)
    return torch.nn.functional.pad(x.flatten(2), (0, 1))[:, :, index]


def layers(parameters: Tensor, widths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """(W, b) of each linear layer: W (outputs, inputs) row by row, then b, layer after layer."""
    found, at = [], 0
    for inputs, outputs in pairwise(widths):
        weight = parameters[at : at + inputs * outputs].view(outputs, inputs)
        at += inputs * outputs
        found.append((weight, parameters[at : at + outputs]))
        at += outputs
    return found


def mapping(z: Tensor, parameters: Tensor, widths: Sequence[int]) -> Tensor:
    """The linear layers, with a ReLU between them, on the second axis of (n, e, …)."""
    for index, (weight, bias) in enumerate(layers(parameters, widths)):
        z = z.relu() if index else z
        z = torch.einsum("oe,ne...->no...", weight, z) + bias.view(-1, *[1] * (z.dim() - 2))
    return z


def pairwise_rows(offset: Tensor, factor: Tensor | None, map_: Tensor, footprint: Footprint) -> Tensor:
    taps = at_taps(map_, footprint)
    return offset[:, :, None] + (taps if factor is None else factor[:, :, None] * taps)


def pairwise_attention(offset, factor, map_, beta, parameters, widths, rectified, footprint):
    """y (n, v, p) and lse (n, g, p)."""
    z = pairwise_rows(offset, factor, map_, footprint)
    logits = mapping(z.relu() if rectified else z, parameters, widths)
    return average(logits, beta, footprint)


def stand_alone_attention(query, key, relative, beta, widths, footprint):
    """y (n, v, p) and lse (n, g, p)."""
    terms = query[:, :, None] * (0 if key is None else at_taps(key, footprint))
    if relative is not None:
        terms = terms + query[:, :, None] * relative[:, :, None]
    return average(terms.unflatten(1, tuple(widths)).sum(1), beta, footprint)


def average(logits: Tensor, beta: Tensor, footprint: Footprint) -> tuple[Tensor, Tensor]:
    """y (n, v, p) and lse (n, g, p) of logits (n, g, k, p)."""
    if footprint.boundary == "exclude":
        inside = footprint.inside(*beta.shape[-2:])
        logits = logits.masked_fill(~inside, -torch.inf)
        none = ~inside.any(0)
        lse = logits.masked_fill(none, 0.0).logsumexp(2).masked_fill(none, 0.0)
    else:
        lse = logits.logsumexp(2)
    alpha = (logits - lse[:, :, None]).exp()
    return aggregate(alpha, beta, footprint), lse


def aggregate(alpha: Tensor, beta: Tensor, footprint: Footprint) -> Tensor:
    taps = at_taps(beta, footprint)
    share = beta.shape[1] // alpha.shape[1]
    return (alpha.repeat(1, share, 1, 1) * taps).sum(2)


def pairwise_statistics(offset, factor, map_, parameters, widths, rectified, footprint):
    """The mean and biased variance of the last layer's outputs over images, taps and centres; without a layer, of the
    rows before the ReLU."""
    z = pairwise_rows(offset, factor, map_, footprint)
    if len(widths) > 1:
        z = mapping(z.relu() if rectified else z, parameters, widths)
    return z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)


def patchwise_rows(kind: str, centres: Tensor, map_: Tensor, footprint: Footprint) -> Tensor:
    """n rows p: the relation before its batch norm; for the concatenation, only the part of ψ."""
    psi = at_taps(map_, footprint)
    if kind == "concatenation":
        return psi.flatten(1, 2)
    if kind == "star_product":
        return (centres[:, :, None] * psi).sum(1)
    return torch.einsum("ncjp,nclp->njlp", at_taps(centres, footprint), psi).flatten(1, 2)


def patchwise_hidden(kind, centres, map_, scale, shift, parameters, widths, footprint):
    z = (scale[:, None] * patchwise_rows(kind, centres, map_, footprint) + shift[:, None]).relu()
    if kind == "concatenation":
        z = torch.cat([centres, z], 1)
    return mapping(z, parameters, widths)


def patchwise_attention(kind, centres, map_, beta, scale, shift, parameters, widths, footprint):
    """y (n, v, p)."""
    alpha = patchwise_hidden(kind, centres, map_, scale, shift, parameters, widths, footprint)
    return aggregate(alpha.unflatten(1, (-1, footprint.taps)), beta, footprint)


def patchwise_statistics(kind, centres, map_, scale, shift, parameters, widths, footprint):
    """The mean and biased variance of the last layer's outputs over images and centres; without a layer, of the
    relation."""
    if len(widths) > 1:
        z = patchwise_hidden(kind, centres, map_, scale, shift, parameters, widths, footprint)
    else:
        z = patchwise_rows(kind, centres, map_, footprint)
    return z.mean((0, 2)), z.var((0, 2), correction=0)
