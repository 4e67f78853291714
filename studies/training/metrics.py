"""The sums of training, and accuracy, counted in integers, which sum exactly over batches and processes."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@dataclass
class Progress:
    """Sums over the epoch so far, over all processes; the seconds are those of this process alone."""

    loss_sum: float = 0.0
    correct1: int = 0
    box_loss_sum: float = 0.0
    seen: int = 0
    waited: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Score:
    n: int = 0
    correct1: int = 0
    correct5: int = 0
    nonfinite: int = 0
    """Images with a logit that is not finite. They count as wrong."""
    loss_sum: float = 0.0
    """Sum of the cross-entropy without smoothing, over the images with finite logits."""

    def __add__(self, other: Score) -> Score:
        return Score(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def top1(self) -> float:
        """In percent."""
        return 100 * self.correct1 / self.n

    @property
    def top5(self) -> float:
        """In percent."""
        return 100 * self.correct5 / self.n

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy; None if no image has finite logits."""
        return self.loss_sum / (self.n - self.nonfinite) if self.n > self.nonfinite else None

    def record(self) -> dict[str, Any]:
        """Counts, accuracies and loss, as plain JSON."""
        return asdict(self) | {"top1": self.top1, "top5": self.top5, "loss": self.loss}


def score(logits: Tensor, labels: Tensor) -> Score:
    """Top-1 and top-5 of `logits` (n classes). A class whose logit equals that of the label is ranked before it."""
    logits = logits.double()
    finite = logits.isfinite().all(1)
    own = logits.gather(1, labels[:, None])
    rank = (logits >= own).sum(1) - 1
    loss = F.cross_entropy(logits[finite], labels[finite], reduction="sum")
    first, fifth = (int(((rank < places) & finite).sum()) for places in (1, 5))
    return Score(len(labels), first, fifth, int((~finite).sum()), loss.item())
