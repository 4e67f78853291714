"""From the outputs of a detector to its detections: the best of each level, decoded, without duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saprof.operators.footprint import set_positive
from studies.detection import boxes as box


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which predictions are detections. Raises ValueError for a threshold that is not from 0 to 1, or a number that is
    not positive."""

    score: float = 0.05
    """Predictions of a smaller or equal score are left out."""
    per_level: int = 1000
    """The largest number of predictions of a level: those of the highest scores."""
    overlap: float = 0.5
    """A box whose IoU with a better one of its class is larger is left out."""
    most: int = 100
    """The largest number of detections of an image."""
    offset_weights: tuple[float, float, float, float] = box.EQUAL

    def __post_init__(self) -> None:
        for name in ("score", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a number from 0 to 1")
        set_positive(self, "per_level", "most")


class Detections(NamedTuple):
    """The detections of one image, the best first."""

    boxes: Float[Tensor, "d 4"]
    scores: Float[Tensor, " d"]
    labels: Int64[Tensor, " d"]


@torch.no_grad()
def detections(
    logits: Float[Tensor, "n a classes"],
    offsets: Float[Tensor, "n a 4"],
    anchors: Sequence[Float[Tensor, "l 4"]],
    images: Sequence[tuple[int, int]],
    how: Selection | None = None,
) -> list[Detections]:
    """The detections of each image. `anchors` has a tensor per level; `images` are rows and columns of each image, at
    which boxes are clipped. Raises ValueError if a logit or an offset is not finite, or if the numbers of anchors or of
    images differ."""
    how = how or Selection()
    counts = [len(each) for each in anchors]
    if sum(counts) != logits.shape[1] or len(images) != len(logits):
        got = f"{len(logits)} images and {logits.shape[1]} anchors"
        raise ValueError(f"logits are of {got}; expected {len(images)} and {sum(counts)}")
    for name, values in (("logits", logits), ("offsets", offsets)):
        bad = ~values.isfinite().flatten(1).all(dim=1)
        if bool(bad.any()):
            raise ValueError(f"{name} of image {int(bad.nonzero()[0])} of the batch are not finite; expected numbers")
    return [
        _of_image(logits[n].split(counts), offsets[n].split(counts), anchors, image, how)
        for n, image in enumerate(images)
    ]


def _of_image(
    logits: Sequence[Tensor],
    offsets: Sequence[Tensor],
    anchors: Sequence[Tensor],
    image: tuple[int, int],
    how: Selection,
) -> Detections:
    found = [_of_level(*level, image, how) for level in zip(logits, offsets, anchors, strict=True)]
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = suppress(boxes, scores, labels, how.overlap, how.most)
    return Detections(boxes[kept], scores[kept], labels[kept])


def _of_level(logits: Tensor, offsets: Tensor, anchors: Tensor, image: tuple[int, int], how: Selection) -> Detections:
    scores = logits.sigmoid().flatten()
    (candidates,) = torch.where(scores > how.score)
    order = scores[candidates].sort(descending=True, stable=True).indices[: how.per_level]
    chosen = candidates[order]
    at, labels = chosen // logits.shape[1], chosen % logits.shape[1]
    boxes = box.decode(offsets[at], anchors[at].to(offsets), how.offset_weights)
    return Detections(box.clip(boxes, image), scores[chosen], labels)


def suppress(
    boxes: Float[Tensor, "d 4"],
    scores: Float[Tensor, " d"],
    labels: Int64[Tensor, " d"],
    overlap: float,
    most: int | None = None,
) -> Int64[Tensor, " kept"]:
    """The numbers of the boxes that are kept, the best first, `most` of them at most.

    Greedy: in the order of the scores, a box is left out if its IoU with a kept box of its class is larger than
    `overlap`. Of equal scores, the first comes first, on every device. Overlaps are computed in float64.
    """
    order = scores.sort(descending=True, stable=True).indices
    boxes, labels = boxes[order].double(), labels[order]
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    kept: list[int] = []
    place = 0
    while place < len(order) and (most is None or len(kept) < most):
        kept.append(place)
        iou = box.pairwise_iou(boxes[place : place + 1], boxes[place:])[0]
        alive[place:] &= ~((iou > overlap) & (labels[place:] == labels[place]))
        alive[place] = False
        (rest,) = torch.where(alive[place:])
        place = place + int(rest[0]) if len(rest) else len(order)
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]
