"""What can be said of accuracies: of runs that differ in their seed, and of one run on the images it was judged on.

The two kinds of interval answer two questions: another seed, or other images. Accuracies and differences are in percent
and points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

LEVEL = 0.95
"""Confidence of all intervals that are not corrected for their number."""

NEGLIGIBLE = 1e-9
"""A spread smaller than this, relative to the values, is rounding and counts as none."""

VERDICTS = SAME_SIGN, OPPOSITE, NOT_RESOLVED, NOT_APPLICABLE = (
    "same sign",
    "opposite",
    "not resolved",
    "not applicable",
)


@dataclass(frozen=True)
class Mean:
    """Over seeds. One seed has no spread and no interval."""

    n: int
    mean: float
    sd: float | None = None
    """Of the seeds, not of their mean."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of what each seed gave less what it gave the base; t test and interval of paired values.

    One seed gives no p and no interval. Seeds that all differ by the same amount have no spread that t could measure it
    by: then there is no interval, and p is that of the sign test, 2^(1 − n), the smallest that n signs can reach; 6
    seeds are the fewest for which it is below 0.05. If they do not differ at all, p is 1.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = LEVEL
    """Confidence of the interval."""
    p: float | None = None
    p_adjusted: float | None = None
    """For the number of comparisons in the table, by Holm; None before `holm`."""


@dataclass(frozen=True)
class Verdict:
    """Of one claim of a paper, a difference: what our difference says of its sign."""

    word: str
    """`same sign`, `opposite`, `not resolved` or `not applicable`."""
    reason: str = ""
    """Why it is not applicable."""

    def __str__(self) -> str:
        return f"{self.word} ({self.reason})" if self.reason else self.word


def mean(values: Sequence[float], level: float = LEVEL) -> Mean:
    """The mean with its t interval. ValueError without values, or if one is not finite."""
    _checked(values)
    n, centre = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Mean(1, centre)
    sd = _sd(values, centre)
    half = _t_quantile(level, n) * sd / math.sqrt(n)
    return Mean(n, centre, sd, centre - half, centre + half)


def paired(ours: Mapping[int, float], base: Mapping[int, float], level: float = LEVEL) -> Difference:
    """Ours less the base, both by seed. ValueError unless the seeds are the same."""
    if ours.keys() != base.keys():
        alone = ", ".join(map(str, sorted(ours.keys() ^ base.keys())))
        raise ValueError(f"only one of the two that are compared has seeds {alone}; expected the same seeds in both")
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
    """The comparisons of one table, in their order, with p adjusted for their number m by Holm (1979).

    Their intervals are at the levels of Holm's steps, 1 − α / (m − i + 1) for the i-th smallest p, up to the first
    that is not resolved, whose level all after it share: an interval leaves out 0 exactly where the adjusted p is
    below α. `level` of each says which; together they do not cover at 1 − α, as Bonferroni's wider ones would. What has
    no p is not counted.
    """
    alpha = 1 - level
    tested = [index for index, difference in enumerate(differences) if difference.p is not None]
    tested.sort(key=lambda index: _p_of(differences[index]))
    corrected, largest, share = list(differences), 0.0, 1.0
    for place, index in enumerate(tested):
        if largest < alpha:  # the steps go on
            share = len(tested) - place
        p = _p_of(differences[index])
        largest = min(1.0, max(largest, (len(tested) - place) * p))
        corrected[index] = _interval(replace(differences[index], p_adjusted=largest), 1 - alpha / share)
    return corrected


def wilson(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of one run's accuracy over the images it was judged on, by Wilson. ValueError unless 0 ≤ correct ≤ n."""
    from scipy.stats import binomtest

    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"{correct} of {n} images are right; expected images, and between none and all of them right")
    interval = binomtest(correct, n).proportion_ci(level, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def verdict(paper_difference: float | None, ours: Difference | None, level: float = LEVEL) -> Verdict:
    """Whether ours has the sign of the paper's. By the adjusted p if there is one."""
    if paper_difference is None:
        return Verdict(NOT_APPLICABLE, "the paper has no such difference")
    _checked([paper_difference])
    if paper_difference == 0:
        return Verdict(NOT_APPLICABLE, "the paper's difference is 0")
    if ours is None or ours.n < 2:
        return Verdict(NOT_APPLICABLE, f"{0 if ours is None else ours.n} of at least 2 seeds")
    p = _p_of(ours) if ours.p_adjusted is None else ours.p_adjusted
    _checked([p, ours.mean])
    if p >= 1 - level:
        return Verdict(NOT_RESOLVED)
    return Verdict(SAME_SIGN if (ours.mean > 0) == (paper_difference > 0) else OPPOSITE)


def _interval(difference: Difference, level: float) -> Difference:
    """With a t interval of that level, if there is a spread."""
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
        raise ValueError("there are no values; expected one of at least one seed")
    if bad := [value for value in values if not math.isfinite(value)]:
        raise ValueError(f"{len(bad)} of {len(values)} values are not finite, such as {bad[0]}; expected numbers")
