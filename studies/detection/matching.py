"""The matching of anchors with objects: which object each anchor is trained to predict, if any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from studies.detection import boxes as box

BACKGROUND, IGNORED = -1, -2


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The thresholds of the IoU of an anchor with its best box. From `foreground` on, it is an object; below
    `background` it is none; in between, it is ignored. Raises ValueError unless 0 < background ≤ foreground ≤ 1."""

    foreground: float = 0.5
    background: float = 0.4
    keeps_low_quality: bool = True
    """Whether the best anchors of each box are objects, however small their IoU is."""

    def __post_init__(self) -> None:
        if not 0 < self.background <= self.foreground <= 1:
            raise ValueError(
                f"background is {self.background!r} and foreground {self.foreground!r}; "
                "expected 0 < background ≤ foreground ≤ 1"
            )


SASA = Matching(foreground=0.5, background=0.5, keeps_low_quality=True)
"""The thresholds of SASA's probable source."""
TORCHVISION = Matching()
PRESETS = {"sasa": SASA, "torchvision": TORCHVISION}


def match(
    boxes: Float[Tensor, "m 4"],
    anchors: Float[Tensor, "a 4"],
    how: Matching = TORCHVISION,
    crowd: Bool[Tensor, " m"] | None = None,
) -> Int64[Tensor, " a"]:
    """The number of the box of each anchor, or BACKGROUND, or IGNORED.

    The box of an anchor is the one with the largest IoU; of equal ones, the first. Boxes of a crowd match no anchor.
    Without boxes, every anchor is background. Raises ValueError if a box is empty or not finite.

    Departure: a box that overlaps no anchor matches none. In torchvision, such a box makes every anchor an object,
    because all anchors have the best IoU with it, which is 0.
    """
    box.check(boxes)
    found = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    numbers = torch.arange(len(boxes), device=anchors.device)
    if crowd is not None:
        numbers = numbers[~crowd]
    if not len(numbers) or not len(anchors):
        return found
    iou = box.pairwise_iou(boxes[numbers].to(anchors), anchors)
    best = iou.amax(dim=0)
    first = torch.where(iou == best, torch.arange(len(numbers), device=iou.device)[:, None], len(numbers)).amin(dim=0)
    of_anchor = numbers[first]
    found[best >= how.background] = IGNORED
    objects = best >= how.foreground
    if how.keeps_low_quality:
        highest = iou.amax(dim=1, keepdim=True)
        objects = objects | ((iou == highest) & (highest > 0)).any(dim=0)
    return torch.where(objects, of_anchor, found)
