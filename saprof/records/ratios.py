"""Ratios of latencies: medians of samples, their confidence intervals and verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

SAME_BAND = 0.02
"""Two latencies are the same if the longer one exceeds the other by at most this share of it."""
COARSE = 0.10
"""With a wider band no verdict is `same`, because a difference may exist within the band."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Ratio:
    """The latency of one candidate over that of another, with the 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def inverse(self) -> Ratio:
        """The ratio with the candidates exchanged."""
        return Ratio(*(1 / end if end > 0 else math.inf for end in (self.median, self.high, self.low)))

    def verdict(self, band: float = SAME_BAND) -> str:
        """`slower` or `faster` if the whole interval is beyond the band, `same` if it is within one of at most ± 10 %,
        else `ambiguous`.

        The band is from 1 / (1 + band) to 1 + band, so that exchanging the candidates exchanges `slower` and `faster`.
        """
        most = 1 + band
        if self.low > most:
            return "slower"
        if self.high < 1 / most:
            return "faster"
        within = self.low >= 1 / most and self.high <= most
        return "same" if within and band <= COARSE else "ambiguous"


def median_interval(samples: Sequence[float] | ndarray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % bootstrap confidence interval of the median. The same samples always give the same interval."""
    return _middle(_medians(samples, resamples, seed=0))


def within_rounds(one: Sequence[float], other: Sequence[float]) -> Ratio:
    """one / other of two candidates in the same rounds: the median of the ratios of the rounds that both have, which
    are the first ones of each."""
    ratios = [a / b for a, b in zip(one, other, strict=False)]
    return Ratio(statistics.median(ratios), *median_interval(ratios))


def independent(one: Sequence[float], other: Sequence[float]) -> Ratio:
    """one / other of two candidates without common rounds: the ratio of the medians, with both sets resampled.

    Half of the resamples exchange the seeds of the two sets, so that other / one is exactly the inverse. The interval
    does not account for changes of the machine between the two measurements.
    """
    import numpy as np

    above, below = ([np.log(_medians(values, RESAMPLES // 2, seed)) for seed in (0, 1)] for values in (one, other))
    low, high = _middle(np.concatenate([above[0] - below[1], above[1] - below[0]]))
    return Ratio(statistics.median(one) / statistics.median(other), math.exp(low), math.exp(high))


def self_difference(samples: Sequence[float]) -> float:
    """How far the medians of odd and of even rounds differ, as a share of the shorter: an A/A test."""
    odd, even = statistics.median(samples[::2]), statistics.median(samples[1::2])
    return max(odd, even) / min(odd, even) - 1


def _medians(samples: Sequence[float] | ndarray, resamples: int, seed: int) -> ndarray:
    import numpy as np

    values = np.asarray(samples)
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return np.median(values[picks], axis=1)


def _middle(values: ndarray) -> tuple[float, float]:
    """The interval of the middle 95 % of the values."""
    import numpy as np

    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
