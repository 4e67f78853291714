"""Statistics of accuracies over seeds, and of one run's accuracy over images.

The two kinds of interval answer two questions: which accuracy would other seeds give, and which would other images
give? Accuracies are in percent, differences in percentage points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

LEVEL = 0.95
"""Confidence level of intervals that are not corrected for their number."""

NEGLIGIBLE = 1e-9
"""A spread smaller than this, relative to the values, is rounding and counts as none."""

VERDICTS = SUPPORTED, CONTRADICTED, EQUIVALENT, UNDECIDED, NOT_APPLICABLE = (
    "supported",
    "contradicted",
    "equivalent",
    "undecided",
    "not applicable",
)

SMALLEST_MARGIN = 0.5
"""Half a point: the margin of equivalence where the paper's difference is smaller."""


@dataclass(frozen=True)
class Mean:
    """The mean over seeds. One seed has no spread and no interval."""

    n: int
    mean: float
    sd: float | None = None
    """Standard deviation of the seeds, not of their mean."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """The mean difference from the base, paired by seed, with the t test and t interval of paired values.

    One seed gives no p and no interval. If all seeds differ by the same amount, there is no spread for a t test: then
    there is no interval, and p is that of the sign test, 2^(1 − n), the smallest possible for n signs; at least 6 seeds
    are needed for p below 0.05. If no seed differs, p is 1.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = LEVEL
    """Confidence level of the interval."""
    p: float | None = None
    p_adjusted: float | None = None
    """p, corrected by Holm for the number of comparisons in the table; None before `holm`."""

    @property
    def resolvable(self) -> float | None:
        """The smallest difference that these seeds could have resolved: half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Verdict:
    """What our difference says about the difference that a paper claims."""

    word: str
    """One of VERDICTS."""
    reason: str = ""
    """Why the verdict is `not applicable`."""

    def __str__(self) -> str:
        return f"{self.word} ({self.reason})" if self.reason else self.word


def mean(values: Sequence[float], level: float = LEVEL) -> Mean:
    """The mean with its t interval. Raises ValueError without values, or if one is not finite."""
    _checked(values)
    n, centre = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Mean(1, centre)
    sd = _sd(values, centre)
    half = _t_quantile(level, n) * sd / math.sqrt(n)
    return Mean(n, centre, sd, centre - half, centre + half)


def paired(ours: Mapping[int, float], base: Mapping[int, float], level: float = LEVEL) -> Difference:
    """The difference of ours from the base, both by seed. Raises ValueError unless the seeds are the same."""
    if ours.keys() != base.keys():
        alone = ", ".join(map(str, sorted(ours.keys() ^ base.keys())))
        raise ValueError(f"only one of the compared networks has seeds {alone}; expected the same seeds in both")
    _checked([*ours.values(), *base.values()])
    differences = [ours[seed] - base[seed] for seed in sorted(ours)]
    n, centre = len(differences), math.fsum(differences) / len(differences)
    if n == 1:
        return Difference(1, centre)
    scale = max(abs(value) for value in (*ours.values(), *base.values()))
    sd = _sd(differences, centre)
    if sd <= NEGLIGIBLE * scale:
        differ = abs(centre) > NEGLIGIBLE * scale
        return Difference(n, centre, p=2.0 ** (1 - n) if differ else 1.0, level=level, sd=0.0)
    return _interval(Difference(n, centre, p=_p(centre, sd, n), sd=sd), level)


def holm(differences: Sequence[Difference], level: float = LEVEL) -> list[Difference]:
    """The comparisons of one table, in the given order, with p corrected for their number m by Holm (1979).

    The intervals are at the levels of Holm's steps: 1 − α / (m − i + 1) for the i-th smallest p, up to the first
    comparison that is not resolved; all later ones have the level of that one. So an interval excludes 0 exactly if
    the corrected p is below α. The field `level` holds the level. Together the intervals do not cover with
    probability 1 − α, as Bonferroni's wider intervals would. Comparisons without p are not counted.
    """
    alpha = 1 - level
    tested = [index for index, difference in enumerate(differences) if difference.p is not None]
    tested.sort(key=lambda index: _p_of(differences[index]))
    corrected, largest, remaining = list(differences), 0.0, 1
    for place, index in enumerate(tested):
        if largest < alpha:  # every comparison so far is resolved
            remaining = len(tested) - place
        p = _p_of(differences[index])
        largest = min(1.0, max(largest, (len(tested) - place) * p))
        corrected[index] = _interval(replace(differences[index], p_adjusted=largest), 1 - alpha / remaining)
    return corrected


def wilson(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of one run's accuracy over the images it was judged on. Raises ValueError unless
    0 ≤ correct ≤ n and n > 0."""
    from scipy.stats import binomtest

    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"{correct} of {n} images are correct; expected at least one image, and 0 to n correct ones")
    interval = binomtest(correct, n).proportion_ci(level, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def verdict(paper_difference: float | None, ours: Difference | None, level: float = LEVEL) -> Verdict:
    """What our difference says about the paper's. The corrected p decides if there is one.

    A resolved difference supports or contradicts the sign of the paper's. If it is not resolved, `equivalent` says that
    its interval lies within ± the paper's difference, or ± half a point if that is larger. Where the paper's difference
    is 0, there is no sign to support: a resolved difference contradicts it if its interval lies outside half a point.
    """
    if paper_difference is None:
        return Verdict(NOT_APPLICABLE, "the paper has no such difference")
    _checked([paper_difference])
    if ours is None or ours.n < 2:
        return Verdict(NOT_APPLICABLE, f"{0 if ours is None else ours.n} of at least 2 seeds")
    p = _p_of(ours) if ours.p_adjusted is None else ours.p_adjusted
    _checked([p, ours.mean])
    resolved, margin = p < 1 - level, max(abs(paper_difference), SMALLEST_MARGIN)
    low, high = (ours.mean, ours.mean) if ours.low is None or ours.high is None else (ours.low, ours.high)
    if resolved and paper_difference:
        return Verdict(SUPPORTED if (ours.mean > 0) == (paper_difference > 0) else CONTRADICTED)
    if resolved and (low >= margin or high <= -margin):
        return Verdict(CONTRADICTED)
    return Verdict(EQUIVALENT if -margin < low and high < margin and _spread(ours) else UNDECIDED)


def _spread(ours: Difference) -> bool:
    """Whether an interval is known, or all seeds agree that there is no difference."""
    return ours.low is not None or ours.p == 1.0


def _interval(difference: Difference, level: float) -> Difference:
    """The difference with a t interval of that level, if there is a spread."""
    if not difference.sd:
        return replace(difference, level=level)
    half = _t_quantile(level, difference.n) * difference.sd / math.sqrt(difference.n)
    return replace(difference, level=level, low=difference.mean - half, high=difference.mean + half)


def _t_quantile(level: float, n: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, n - 1))


def _p(centre: float, sd: float, n: int) -> float:
    from scipy.stats import t

    return float(2 * t.sf(abs(centre) * math.sqrt(n) / sd, n - 1))


def _p_of(difference: Difference) -> float:
    assert difference.p is not None
    return difference.p


def _sd(values: Sequence[float], centre: float) -> float:
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def _checked(values: Sequence[float]) -> None:
    if not len(values):
        raise ValueError("there are no values; expected at least one seed")
    if bad := [value for value in values if not math.isfinite(value)]:
        raise ValueError(f"{len(bad)} of {len(values)} values are not finite, such as {bad[0]}; expected numbers")
