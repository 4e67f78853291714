"""Verdicts in words: `numba 2.0× faster than unfold`; and the reasons why a row has none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from saprof.quantities import factor
from saprof.records.calibration import Calibration, above_roof
from saprof.records.ratios import SAME_BAND, Ratio
from saprof.records.rows import DOUBTFUL, Row
from saprof.records.runs import Identity, identity

WHY_DOUBTFUL = {"contended": "other processes ran meanwhile", "unstable": "the calls differed too much"}
"""What each status of an unreliable latency means."""
COMPUTES = ("backend", "attention", "compiled")
"""The fields of a cell in which the rows of one group differ: what computes them."""
TOO_FAST = "measurement error: faster than the roofs allow"


def in_words(ours: str, theirs: str, ratio: Ratio, band: float = SAME_BAND, interval: bool = True) -> str:
    """The latency of `ours` over that of `theirs` in words, with the 95 % interval unless it is `same`; without
    `interval`, only with the interval of what is undecided.

    `numba 2.0× faster than unfold (1.9× to 2.1×)`, `the same as unfold within 2 %`, or `undecided: 0.97× to 1.05× the
    time of unfold`. `band` is the share by which two equal latencies may differ.
    """
    verdict = ratio.verdict(band)
    if verdict == "same":
        return f"the same as {theirs} within {100 * band:.3g} %"
    if verdict == "ambiguous":
        if not (ratio.low > 0 and math.isfinite(ratio.high)):
            return "undecided: the ratio has no interval"
        return f"undecided: {factor(ratio.low)} to {factor(ratio.high)} the time of {theirs}"
    ends = ratio.inverse if verdict == "faster" else ratio
    times, low, high = map(factor, (ends.median, ends.low, ends.high))
    return f"{ours} {times} {verdict} than {theirs}" + (f" ({low} to {high})" if interval and low != high else "")


def doubt(row: Row, roofs: Calibration | None = None) -> str:
    """Why the latency of a row should not be believed; empty if it should. `roofs` are those of its run."""
    if row.status in DOUBTFUL:
        return f"{row.status}: {row.reason or WHY_DOUBTFUL[row.status]}"
    return TOO_FAST if roofs is not None and above_roof(row, roofs) else ""


def firsts(rows: Iterable[Row]) -> dict[Identity, Row]:
    """By group, the row to which the ratios of the others refer. A group is given by `group(row)`; one in which not
    exactly one measured row has no ratio is left out."""
    found: dict[Identity, dict[Identity, Row]] = {}
    for row in rows:
        if row.latency_s is not None:
            found.setdefault(group(row), {})[identity(row)] = row  # a cell that was measured twice has its last row
    bases = {key: [row for row in rows.values() if row.ratio is None] for key, rows in found.items()}
    return {key: base[0] for key, base in bases.items() if len(base) == 1}


def group(row: Row) -> Identity:
    """What the rows of one group have in common: all of the cell except what computes it."""
    return identity(row, COMPUTES)


def verdict(row: Row, first: Row | None, roofs: Calibration | None = None) -> str:
    """The ratio of a row to `first`, the row of `firsts(rows)`, in words: the faster of the two is named first.

    Empty if the row has no ratio, or should not be believed. If `first` should not be believed, the text says so."""
    if row.ratio is None or row.ratio_low is None or row.ratio_high is None or doubt(row, roofs):
        return ""
    if first is not None and (why := doubt(first, roofs)):
        return f"no verdict: {first.ran_on} is {'too fast for its roof' if why == TOO_FAST else first.status}"
    theirs = "the first of its group" if first is None else first.ran_on
    ratio = Ratio(row.ratio, row.ratio_low, row.ratio_high)
    if ratio.verdict() == "slower" and first is not None:
        return in_words(theirs, row.ran_on, ratio.inverse)
    return in_words(row.ran_on, theirs, ratio)


def notes(rows: Sequence[Row], roofs: Calibration | None = None) -> list[str]:
    """A note for each row: why it failed or should not be believed; else its verdict."""
    known = firsts(rows)
    return [note(row, known, roofs) for row in rows]


def note(row: Row, known: Mapping[Identity, Row], roofs: Calibration | None = None) -> str:
    """The note of one row; `known` is `firsts(rows)`."""
    if row.latency_s is None:
        return f"{row.status}: {row.reason}"
    return doubt(row, roofs) or verdict(row, known.get(group(row)), roofs)
