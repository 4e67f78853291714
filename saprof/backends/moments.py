"""Mean and variance of the input of γ's first norm, without a pass over the pairs of a centre and a tap.

The rows of a pairwise attention are offset_i + map_j. Over images, centres i and taps j, the mean is a sum of two
means, and the second moment about any point is Σ offset_i² + 2 Σ_i offset_i (Σ_j map_j) + Σ map_j². If the taps are a
grid of row and column offsets, the sums over taps are two small products per map: one along rows, one along columns.
Sums over positions are in float64, about the mean of each map, so that squares lose no digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saprof.backends import tables
from saprof.backends.library import Kernels, Opaque, Plan, Shape, register
from saprof.operators.attention import Attention
from saprof.operators.footprint import Footprint


def are_sums(operator: Attention) -> bool:
    """Whether the rows of an attention are offset_i + map_j."""
    return operator.family == "pairwise" and operator.delta.relation in ("summation", "subtraction", "concatenation")


def of_pairs(
    offset: Float[Tensor, "n d p"], map_: Float[Tensor, "n d h w"], footprint: Footprint
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and biased variance of offset_i + map_j. A tap outside the map reads 0. The taps of the footprint are a
    grid."""
    by_row, by_column = _reads(footprint, *map_.shape[2:])
    by_row, by_column = by_row.to(map_), by_column.to(map_)
    pairs = offset.shape[0] * offset.shape[2] * footprint.taps
    middle, level = offset.detach().mean((0, 2)), map_.detach().mean((0, 2, 3))
    offset, apart = offset - middle[:, None], map_ - level[:, None, None]
    outside = footprint.taps - (by_row.sum(1)[:, None] * by_column.sum(1)).flatten()  # taps of each centre that read 0
    of_taps = _sum_of_taps(apart, str(footprint)).flatten(2) - level[:, None] * outside
    times = by_row.sum(0)[:, None] * by_column.sum(0)  # how often each position is read
    mean = (footprint.taps * _sum(offset) + _sum(of_taps)) / pairs
    square = footprint.taps * _sum(offset.square()) + 2 * _sum(offset * of_taps)
    square = square + _sum((apart.square() * times).flatten(2)) + len(offset) * outside.sum() * level.double().square()
    found = mean + middle + level, (square / pairs - mean.square()).clamp_min(0)
    return found[0].to(map_.dtype), found[1].to(map_.dtype)


def _sum(x: Float[Tensor, "n d p"]) -> Float[Tensor, " d"]:
    return x.sum((0, 2), dtype=torch.float64)


def of_taps(map_: Tensor, footprint: Footprint) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of a map at every tap, over images and centres: an element per channel and tap.

    The number of centres whose tap reads the position (a, b) is a product: how often the row offset of the tap reads
    row a, times how often its column offset reads column b. So the sums are taken over images, then rows, then columns,
    and no array has an element per tap and centre. The mean of a channel is subtracted first, so that squares lose no
    digits.
    """
    (n, _, h, w), (oh, ow) = map_.shape, footprint.output_size(*map_.shape[2:])
    (by_row, row_of), (by_column, column_of) = (
        (_on(times, map_), _on(of, map_))
        for times, of in (_reads_of_taps(footprint, h, 0), _reads_of_taps(footprint, w, 1))
    )
    outside = oh * ow - by_row.sum(1)[row_of] * by_column.sum(1)[column_of]  # centres whose tap reads 0
    middle = map_.detach().mean((0, 2, 3))
    apart = map_ - middle[:, None, None]
    over_images = torch.stack([apart.sum(0, dtype=torch.float64), apart.square().sum(0, dtype=torch.float64)])
    rows = (by_row[:, :, None] * over_images[:, :, None]).sum(3)  # 2 r, distinct row offsets, w
    sums = (by_column * rows[:, :, :, None]).sum(4)  # 2 r, distinct row and column offsets
    elsewhere = -middle.double()[:, None]
    elsewhere = torch.stack([elsewhere, elsewhere.square()])
    mean, square = (sums[:, :, row_of, column_of] + n * outside * elsewhere) / (n * oh * ow)
    found = (mean - elsewhere[0]).flatten(), (square - mean.square()).clamp_min(0).flatten()
    return found[0].to(map_.dtype), found[1].to(map_.dtype)


def _on(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.tensor(array, device=like.device)  # from_numpy has no fake tensors


@lru_cache(maxsize=1024)
def _reads_of_taps(footprint: Footprint, side: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each distinct offset along an axis reads each row or column, and the number of each tap's offset."""
    _, first, taps = np.unique([o[axis] for o in footprint.offsets], return_index=True, return_inverse=True)
    table = tables.apart(lambda: (footprint.columns if axis else footprint.rows)(side).numpy())[first]
    return (table[:, :, None] == np.arange(side)).sum(1).astype(np.float64), taps.reshape(-1)


@lru_cache(maxsize=1024)
def _reads(footprint: Footprint, h: int, w: int) -> tuple[Float[Tensor, "oh h"], Float[Tensor, "ow w"]]:
    """How many row offsets read each row, from each row of centres, and the same of columns."""
    assert footprint.lattice is not None
    across = footprint.lattice[0][1]

    def count() -> tuple[Tensor, Tensor]:
        rows, columns = footprint.rows(h)[::across, :, None], footprint.columns(w)[:across, :, None]
        return (rows == torch.arange(h)).sum(0).float(), (columns == torch.arange(w)).sum(0).float()

    return tables.apart(count)


def _plan(shapes: Sequence[Shape], text: str) -> Plan:
    """It counts no multiply-adds, like the statistics that it is a part of."""
    footprint, (n, d, h, w) = Footprint.parse(text), shapes[0]
    return Plan([(n, d, *footprint.output_size(h, w))], 0, (footprint, (h, w)))


def _run(name: str, tensors: Sequence[Tensor], footprint: Footprint, size: tuple[int, int]) -> None:
    *_, found = tensors
    by_row, by_column = (x.to(found) for x in _reads(footprint, *size))
    if name == _TAPS.name:
        found.copy_(by_row @ tensors[0] @ by_column.T)
    else:
        found.copy_(by_row.T @ tensors[0] @ by_column)


_TAPS = Opaque(name="sum_of_taps", inputs=("map",), options="str footprint", plan=_plan, degree=1)
_sum_of_taps = register(Kernels("moments", _run), _TAPS)
"""Σ_j map_j at every centre, for a footprint whose taps are a grid."""
