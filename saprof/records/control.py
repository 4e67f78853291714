"""The control of a comparison of two runs: cells that cannot have changed, so that what moved them is the machine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from saprof.records.calibration import Calibration
from saprof.records.ratios import Ratio, independent, median_interval
from saprof.records.rows import Row

PLAIN = ("unfold", "torch")
"""The backends that run none of our kernels."""
FEW = 5
"""With fewer ratios than these, the interval of the control reaches from the lowest to the highest."""


@dataclass(frozen=True)
class Control:
    """How far the control moved from A to B."""

    ratio: Ratio
    """The median of B / A over the control, with its 95 % interval."""
    spread: float
    """How far the ratios of the control differ from their median, as a share."""
    cells: int
    anchors: int

    def relative(self, ratio: Ratio) -> Ratio:
        """A ratio divided by that of the control. Its interval has the uncertainty of both."""
        if not (ratio.low > 0 and math.isfinite(ratio.high)):
            return Ratio(ratio.median / self.ratio.median, 0.0, math.inf)
        middle = ratio.median / self.ratio.median
        below = math.hypot(math.log(ratio.median / ratio.low), math.log(self.ratio.high / self.ratio.median))
        above = math.hypot(math.log(ratio.high / ratio.median), math.log(self.ratio.median / self.ratio.low))
        return Ratio(middle, middle * math.exp(-below), middle * math.exp(above))


def is_plain(row: Row) -> bool:
    """Whether a row is of code that a user of saprof does not change: plain torch, but neither a function nor a network
    of the user's own, nor a layer, which is a part of what is compared."""
    from_package = row.name.partition(":")[0] in ("torchvision", "timm") or ":" not in row.name
    return row.backend in PLAIN and row.kind in ("operator", "model") and from_package


def control(ratios: Iterable[Ratio], before: Calibration | None, after: Calibration | None) -> Control | None:
    """The control: the ratios of its cells, and the anchors of both runs. None without a cell, because anchors alone
    are too unlike any cell."""
    cells = [ratio for ratio in ratios if ratio.low > 0 and math.isfinite(ratio.high)]
    if not cells:
        return None
    ours, theirs = (roofs.anchored_s if roofs else {} for roofs in (before, after))
    anchors = [independent(theirs[call], ours[call]) for call in ours if call in theirs]
    known = [*cells, *anchors]
    logs = [math.log(ratio.median) for ratio in known]
    middle = median(logs)
    if len(known) < FEW:
        low, high = min(ratio.low for ratio in known), max(ratio.high for ratio in known)
    else:
        low, high = map(math.exp, median_interval(logs))
    spread = math.exp(1.4826 * median(abs(x - middle) for x in logs)) - 1
    return Control(Ratio(math.exp(middle), low, high), spread, len(cells), len(anchors))
