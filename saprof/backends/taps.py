"""Functions of tensors over the taps of a footprint, for the backend `unfold` and the layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saprof.backends.tables import rows_and_columns
from saprof.operators.footprint import Footprint, inside, source


def centre(x: Float[Tensor, "n c h w"], footprint: Footprint) -> Float[Tensor, "n c 1 p"]:
    """x_i at every centre i."""
    return x[:, :, :: footprint.stride, :: footprint.stride].flatten(2).unsqueeze(2)


def gather(x: Float[Tensor, "n c h w"], footprint: Footprint) -> Float[Tensor, "n c k p"]:
    """x_j for every tap j of every centre i; 0 if the boundary drops the tap."""
    h, w = x.shape[-2:]
    oh, ow = footprint.output_size(h, w)
    (top, bottom), (left, right) = footprint.window(h, w)
    if footprint.lattice is None or (bottom - top) * (right - left) > footprint.taps * oh * ow:
        return _gather_by_table(x, footprint)
    size, dilation = footprint.lattice
    patches = F.unfold(_window(x, footprint), size, dilation=dilation, stride=footprint.stride)
    return patches.unflatten(1, (-1, footprint.taps))


def softmax(logits, footprint, size):  # no shapes: layers call it, and torch.compile cannot trace checks of shapes
    """Softmax of logits (n, g, k, p) over the taps; with the boundary `exclude`, over the taps inside the map."""
    if footprint.boundary == "exclude":
        found = taps_inside(footprint, size, logits)
        # a centre without a tap inside has uniform weights, not NaN; its values are all 0
        dropped = torch.where(found.any(0), -torch.inf, 0.0).to(logits.dtype)
        logits = logits.where(found, dropped)
    return logits.softmax(dim=2)


def taps_inside(footprint, size, like):  # no shapes, see softmax
    """`footprint.inside` of a map of `size`, (k, p), on the device of `like`."""
    h, w = size
    return inside(*rows_and_columns(footprint, h, w, like))


def _window(x: Tensor, footprint: Footprint) -> Tensor:
    """The part of the map that the footprint reaches, with the boundary filled in."""
    spans = footprint.window(*x.shape[-2:])
    if footprint.drops_taps:
        (top, bottom), (left, right) = spans
        x = x[:, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        pads = []
        for (start, stop), kept in zip(reversed(spans), reversed(x.shape[-2:]), strict=True):
            before = min(max(-start, 0), stop - start)
            pads += [before, stop - start - before - kept]
        return F.pad(x, pads)
    for axis, (start, stop) in zip((-2, -1), spans, strict=True):
        positions = torch.arange(start, stop, device=x.device)
        x = x.index_select(axis, source(positions, x.shape[axis], footprint.boundary))
    return x


def _gather_by_table(x: Tensor, footprint: Footprint) -> Tensor:
    """Look up every tap in a table; a dropped tap reads a zero that is stored after the map.

    For taps that do not form a grid, and for taps so far apart that the map between them has more elements than the
    taps read.
    """
    h, w = x.shape[-2:]
    rows, columns = rows_and_columns(footprint, h, w, x)
    rows, columns = rows[:, :, None], columns[:, None, :]
    index = (rows * w + columns).where((rows >= 0) & (columns >= 0), h * w).flatten(1)
    return F.pad(x.flatten(2), (0, 1))[:, :, index]
