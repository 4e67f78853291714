"""Areas and overlaps of boxes, and the offsets that a detector predicts.

Boxes have shape (…, 4): x0, y0, x1, y1 in pixels. A box whose x1 is not above its x0, or whose y1 is not above its y0,
is empty: its area is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST_GROWTH = math.log(1000 / 16)
"""The largest logarithm of the factor between the side of an anchor and that of a decoded box, against overflow. It is
that of torchvision and of detectron2."""
EQUAL = (1.0, 1.0, 1.0, 1.0)
"""The weights of offsets in RetinaNet."""


def check(boxes: Tensor, what: str = "boxes") -> None:
    """Raise ValueError, which names the first bad box, unless `boxes` is (n, 4), finite, and has no empty box."""
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{what} has shape {tuple(boxes.shape)}; expected (n, 4), as x0, y0, x1, y1")
    finite = boxes.isfinite().all(dim=1)
    whole = finite & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    if not bool(whole.all()):
        place = int((~whole).nonzero()[0])
        why = "an empty box" if bool(finite[place]) else "no finite box"
        raise ValueError(f"{what}[{place}] is {boxes[place].tolist()}, {why}; expected x0 < x1 and y0 < y1")


def area(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, ...]:
    """Square pixels; 0 for an empty box."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def pairwise_iou(first: Float[Tensor, "m 4"], second: Float[Tensor, "n 4"]) -> Float[Tensor, "m n"]:
    """Intersection over union of each box of the first with each of the second, from 0 to 1; 0 where both are empty."""
    return _iou(first[:, None], second[None])[0]


def generalised_iou(first: Float[Tensor, "... 4"], second: Float[Tensor, "... 4"]) -> Float[Tensor, ...]:
    """IoU − (H − U) / H, from −1 to 1, where U is the area of the union and H that of the smallest box around both
    (Rezatofighi et al. 2019). The boxes are broadcast. Where H is 0, the result is 0."""
    iou, union = _iou(first, second)
    around = torch.cat(
        [torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:])], dim=-1
    )
    hull = area(around)
    return iou - (hull - union) / _positive(hull)


def _iou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the union, of boxes that are broadcast."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    union = area(first) + area(second) - intersection
    return intersection / _positive(union), union


def _positive(areas: Tensor) -> Tensor:
    """The areas, with 1 instead of 0, for a quotient whose numerator is then 0."""
    return torch.where(areas > 0, areas, torch.ones_like(areas))


def clip(boxes: Float[Tensor, "... 4"], image: Sequence[int]) -> Float[Tensor, "... 4"]:
    """The part of each box inside an image of `image` = (rows, columns) pixels."""
    rows, columns = image
    limits = boxes.new_tensor([columns, rows, columns, rows])
    return torch.minimum(boxes.clamp(min=0), limits)


def encode(
    boxes: Float[Tensor, "n 4"], anchors: Float[Tensor, "n 4"], weights: Sequence[float] = EQUAL
) -> Float[Tensor, "n 4"]:
    """The offsets from anchors to boxes: differences of the centres, in sides of the anchor, and logarithms of the
    ratios of width and height, each times its weight (Girshick et al. 2014). No box and no anchor may be empty."""
    (centres, sides), (from_, of_anchors) = _centres_and_sides(boxes), _centres_and_sides(anchors)
    return torch.cat([(centres - from_) / of_anchors, (sides / of_anchors).log()], dim=-1) * boxes.new_tensor(weights)


def decode(
    offsets: Float[Tensor, "... 4"], anchors: Float[Tensor, "... 4"], weights: Sequence[float] = EQUAL
) -> Float[Tensor, "... 4"]:
    """The boxes at these offsets from the anchors. A side is at most 62.5 times that of its anchor."""
    shift, growth = (offsets / offsets.new_tensor(weights)).split(2, dim=-1)
    centres, sides = _centres_and_sides(anchors)
    centres = centres + shift * sides
    half = growth.clamp(max=LARGEST_GROWTH).exp() * sides / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def _centres_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes.split(2, dim=-1)
    return (low + high) / 2, high - low
