"""The losses of a detector: focal loss of the classes of all anchors, and a loss of the boxes of those with objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from saprof.text import unknown
from studies.detection import boxes as box
from studies.detection.matching import IGNORED

BOX_LOSSES = ("l1", "huber", "generalised_iou")
DIVISORS = ("image", "batch")


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The settings of both losses. Raises ValueError for an unknown name, or a number out of its range."""

    alpha: float = 0.25
    """The weight of the class that is there; that of the others is 1 − α."""
    gamma: float = 2.0
    """The exponent that makes well-classified anchors count less."""
    boxes: str = "l1"
    """One of BOX_LOSSES."""
    delta: float = 0.1
    """Where the Huber loss turns from a square into a line."""
    box_weight: float = 1.0
    offset_weights: tuple[float, float, float, float] = box.EQUAL
    divisor: str = "image"
    """`image`: the sums of each image are divided by the number N of its anchors with objects, or by 1 if N is 0, and
    averaged over images, as in torchvision. `batch`: the sums of the batch are divided by N + 1, where N is the number
    of its anchors with objects, and the box loss also by 4, the numbers of a box, as in SASA's probable source."""

    def __post_init__(self) -> None:
        if self.boxes not in BOX_LOSSES:
            raise ValueError(unknown("loss of boxes", str(self.boxes), BOX_LOSSES))
        if self.divisor not in DIVISORS:
            raise ValueError(unknown("divisor", str(self.divisor), DIVISORS))
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha!r}; expected a number from 0 to 1")
        for name in ("gamma", "box_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a finite number, 0 or more")
        if not 0 < self.delta < float("inf"):
            raise ValueError(f"delta is {self.delta!r}; expected a positive number")


SASA = Losses(gamma=1.5, boxes="huber", box_weight=50.0, divisor="batch")
"""The losses of SASA's probable source."""
TORCHVISION = Losses()
PRESETS = {"sasa": SASA, "torchvision": TORCHVISION}


class Targets(NamedTuple):
    """The objects of one image, and the box of each anchor."""

    boxes: Float[Tensor, "m 4"]
    labels: Int64[Tensor, " m"]
    """The class of each box, from 0."""
    matched: Int64[Tensor, " a"]
    """What `studies.detection.matching.match` returns for the boxes."""


class Found(NamedTuple):
    """The two losses of a batch; the second is multiplied by its weight."""

    classes: Float[Tensor, ""]
    boxes: Float[Tensor, ""]


def focal_loss(
    logits: Float[Tensor, ...], present: Float[Tensor, ...], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, ...]:
    """−α_t (1 − p_t)^γ log p_t of every logit (Lin et al. 2017, Eq. 5). `present` is 1 where the class is there, 0
    where it is not."""
    entropy = F.binary_cross_entropy_with_logits(logits, present, reduction="none")
    probability = logits.sigmoid()
    missed = probability + present - 2 * probability * present  # 1 − p_t
    return (alpha * present + (1 - alpha) * (1 - present)) * missed**gamma * entropy


def box_loss(
    offsets: Float[Tensor, "p 4"], boxes: Float[Tensor, "p 4"], anchors: Float[Tensor, "p 4"], how: Losses
) -> Float[Tensor, " p"]:
    """The loss of each predicted box, from its offsets, without the weight: the sum of the L1 or Huber losses of the
    four offsets, or 1 − generalised IoU."""
    if how.boxes == "generalised_iou":
        return 1 - box.generalised_iou(box.decode(offsets, anchors, how.offset_weights), boxes)
    expected = box.encode(boxes, anchors, how.offset_weights)
    if how.boxes == "huber":
        return F.huber_loss(offsets, expected, reduction="none", delta=how.delta).sum(dim=1)
    return (offsets - expected).abs().sum(dim=1)


def losses(
    logits: Float[Tensor, "n a classes"],
    offsets: Float[Tensor, "n a 4"],
    anchors: Float[Tensor, "a 4"],
    targets: Sequence[Targets],
    how: Losses = TORCHVISION,
) -> Found:
    """Both losses of a batch. Raises ValueError if there are not as many targets as images, or if a label is not below
    the number of classes."""
    if len(targets) != len(logits):
        raise ValueError(f"there are {len(targets)} targets and {len(logits)} images; expected one per image")
    classes, of_boxes, objects = [], [], []
    for image, target in enumerate(targets):
        _check_labels(target.labels, logits.shape[-1], image)
        there = target.matched >= 0
        chosen = target.matched[there]
        counts = target.matched != IGNORED
        classes.append(_classes(logits[image], target.labels[chosen], there, counts, how))
        boxes = target.boxes[chosen].to(offsets)
        of_boxes.append(box_loss(offsets[image][there], boxes, anchors[there], how).sum())
        objects.append(there.sum())
    each, of_each, number = torch.stack(classes), torch.stack(of_boxes), torch.stack(objects)
    if how.divisor == "image":
        divisor = number.clamp(min=1)
        return Found((each / divisor).mean(), how.box_weight * (of_each / divisor).mean())
    divisor = number.sum() + 1
    numbers = 1 if how.boxes == "generalised_iou" else 4
    return Found(each.sum() / divisor, how.box_weight * of_each.sum() / (numbers * divisor))


def _classes(
    logits: Float[Tensor, "a classes"],
    labels: Int64[Tensor, " p"],
    there: Bool[Tensor, " a"],
    counts: Bool[Tensor, " a"],
    how: Losses,
) -> Float[Tensor, ""]:
    present = torch.zeros_like(logits)
    present[there] = F.one_hot(labels, logits.shape[-1]).to(logits)
    return focal_loss(logits[counts], present[counts], how.alpha, how.gamma).sum()


def _check_labels(labels: Int64[Tensor, " m"], classes: int, image: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)].tolist()
    if wrong:
        raise ValueError(f"image {image} of the batch has the label {wrong[0]}; expected 0 to {classes - 1}")
