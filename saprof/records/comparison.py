"""Comparison of two runs, or of two backends of one run: rows of the same cell, their ratio, and the noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from saprof.quantities import LATENCY, MEMORY, SAVED, Quantity
from saprof.records import calibration
from saprof.records.control import Control, control
from saprof.records.ratios import SAME_BAND, Ratio, independent, within_rounds
from saprof.records.rows import DOUBTFUL, HOST_BOUND, MEASURED, Row
from saprof.records.runs import Floor, Identity, Recorded, change, identity

SAME_ROUNDS_S = 5
"""The times of two rows of the same rounds differ by less than this: the rows are written together."""


@dataclass(frozen=True)
class Metric:
    """A quantity that is compared."""

    quantity: Quantity
    words: Mapping[str, str] = field(default_factory=dict)
    """If the quantity is exact, its words for slower, faster and same."""

    @property
    def exact(self) -> bool:
        return bool(self.words)

    def of(self, row: Row) -> float | None:
        return getattr(row, self.quantity.column)


_EXACT = {"slower": "more", "faster": "less", "same": "equal"}
METRICS = {
    "latency": Metric(LATENCY),
    "peak": Metric(MEMORY, _EXACT),
    "saved": Metric(SAVED, _EXACT),
}
EXACT = Floor(0.0, "exact")
FAILED_IN_B = "failed in B"
DOUBTED = "doubtful"
"""The verdict on cells of which one side should not be believed."""


@dataclass(frozen=True)
class Matched:
    """The rows of cells that both sides have, in pairs, and the rows of cells that only one side has."""

    pairs: tuple[tuple[Row, Row], ...]
    only_before: tuple[Row, ...]
    only_after: tuple[Row, ...]


def match(before: Iterable[Row], after: Iterable[Row], without: Collection[str] = ()) -> Matched:
    """Pairs of rows that agree in all fields of the cell except `without`, in the order of `before`.

    The row of a cell that was not measured has the requested backend and attention, which may be `auto`. It is paired
    with a measured row if only one fits. If backends may differ, attentions may differ too.
    """
    rest = {id(row): row for row in before}, {id(row): row for row in after}
    order = {key: place for place, key in enumerate(rest[0])}
    pairs: list[tuple[Row, Row]] = []
    for loose in ((), ("attention",), ("attention", "backend")):
        groups: dict[Identity, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
        for side, rows in enumerate(rest):
            for row in rows.values():
                groups[identity(row, {*without, *loose})][side].append(row)
        for ours, theirs in groups.values():
            if len(ours) == len(theirs) == 1 and (
                not loose or "backend" in without or _was_asked_for(ours[0], theirs[0])
            ):
                pairs.append((ours[0], theirs[0]))
                del rest[0][id(ours[0])], rest[1][id(theirs[0])]
    pairs.sort(key=lambda pair: order[id(pair[0])])
    return Matched(tuple(pairs), tuple(rest[0].values()), tuple(rest[1].values()))


def _was_asked_for(one: Row, other: Row) -> bool:
    """Whether one row failed, and the other ran with the backend and attention that the first requested."""
    failed, measured = sorted((one, other), key=lambda row: row.status in MEASURED)
    if failed.status in MEASURED or measured.status not in MEASURED:
        return False
    return all(getattr(failed, name) in ("auto", getattr(measured, name)) for name in ("backend", "attention"))


@dataclass(frozen=True)
class Compared:
    """One cell on both sides. It has no ratio if one side failed."""

    before: Row
    after: Row
    metric: Metric
    ratio: Ratio | None
    floor: Floor
    remarks: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    """Why there is no verdict: sides that should not be believed."""
    relative: Ratio | None = None
    """The ratio divided by that of the control, if the control moved."""

    @property
    def judged(self) -> Ratio | None:
        """The ratio of the verdict."""
        return self.relative or self.ratio

    @property
    def is_clear(self) -> bool:
        """Whether the sides differ, or one of them failed."""
        return self.verdict not in ("same", "equal", "ambiguous", DOUBTED)

    @property
    def band(self) -> float:
        """How far from 1 a ratio must be to be a difference."""
        return 0.0 if self.metric.exact else max(SAME_BAND, self.floor.share)

    @property
    def verdict(self) -> str:
        """The verdict of the ratio, in the words of the metric; or the side on which the cell failed."""
        if self.ratio is None:
            return FAILED_IN_B if self.before.status in MEASURED else "failed in A"
        if self.doubts:
            return DOUBTED
        verdict = (self.relative or self.ratio).verdict(self.band)
        return self.metric.words.get(verdict, verdict)

    def is_regression(self, limit: float) -> bool:
        """Whether B failed, or is worse than A by more than `limit` (a share of A) and by more than noise. What should
        not be believed is no regression."""
        ratio = self.relative or self.ratio
        if ratio is None:
            return self.verdict == FAILED_IN_B
        return not self.doubts and ratio.low > 1 + max(limit, self.band)


@dataclass(frozen=True)
class Comparison:
    """Side A and side B, and the noise between them."""

    before: Recorded
    after: Recorded
    across_devices: bool = False

    def compare(self, one: Row, other: Row, metric: Metric) -> Compared | None:
        """B over A; None if neither was measured, or if one has no value of this metric."""
        a, b = metric.of(one), metric.of(other)
        if a is not None and b is not None:
            if metric.exact:
                ratio = b / a if a else (math.inf if b else 1.0)
                return Compared(one, other, metric, Ratio(ratio, ratio, ratio), EXACT)
            return self._latency(one, other, metric)
        if (a is None) != (b is None) and (one.status in MEASURED) != (other.status in MEASURED):
            failed = other if one.status in MEASURED else one
            return Compared(one, other, metric, None, EXACT, (f"{failed.status}: {failed.reason}",))
        return None

    def _latency(self, one: Row, other: Row, metric: Metric) -> Compared:
        same_run = self.before is self.after
        shared = same_run and same_rounds(one, other)
        floor = self.before.within if shared else self._between
        sides = ("A", self.before, one), ("B", self.after, other)
        doubtful = {status: [side for side, _, row in sides if row.status == status] for status in DOUBTFUL}
        doubts = [f"{status} in {' and '.join(where)}" for status, where in doubtful.items() if where]
        remarks = []
        if same_run and not shared:
            remarks.append("not in the same rounds")
        if self.before.profiles and one.ran_on != other.ran_on:
            remarks.append(f"{one.ran_on} in A, {other.ran_on} in B")
        if not (one.samples_s and other.samples_s):
            remarks.append("no samples")
        if bound := [side for side, _, row in sides if row.status == HOST_BOUND]:
            remarks.append(f"{HOST_BOUND} in {' and '.join(bound)}")
        for side, run, row in sides:
            if run.calibration is not None and calibration.above_roof(row, run.calibration):
                doubts.append(f"{side} is faster than its roof: a measurement error")
        ratio = latency_ratio(other, one, shared)
        return Compared(one, other, metric, ratio, floor, tuple(remarks), tuple(doubts))

    def against(self, moved: Control, one: Compared) -> Compared:
        """A comparison relative to the control. Its noise is that of the two runs and of the control; what the anchors
        changed is in the control."""
        if one.ratio is None:
            return one
        floors = [self.before.between, self.after.between, Floor(moved.spread, "the spread of the control cells")]
        floor = max(floors, key=lambda floor: floor.share)
        return replace(one, relative=moved.relative(one.ratio), floor=floor)

    def moved(self, found: Iterable[Compared]) -> Control | None:
        """The control, if it moved from A to B by more than the noise of both runs."""
        ratios = [one.ratio for one in found if one.ratio is not None and not one.doubts]
        measured = control(ratios, self.before.calibration, self.after.calibration)
        noise = max(SAME_BAND, self.before.between.share, self.after.between.share)
        return measured if measured and measured.ratio.verdict(noise) in ("slower", "faster") else None

    @cached_property
    def _between(self) -> Floor:
        """The largest of three: the noise in each run, and the change between the anchors of the two runs."""
        floors = [self.before.between, self.after.between]
        ours, theirs = self.before.calibration, self.after.calibration
        if ours is not None and theirs is not None and not self.across_devices:
            floors.append(Floor(change(ours, theirs), "the same calls in A and in B"))
        return max(floors, key=lambda floor: floor.share)


def same_rounds(one: Row, other: Row) -> bool:
    """Whether two rows of one run were measured in the same interleaved rounds. Older rows do not state it;
    it follows from the numbers and times of their samples."""
    if not (one.samples_s and other.samples_s):
        return False
    if one.rounds is not None or other.rounds is not None:
        return one.rounds == other.rounds
    if len(one.samples_s) != len(other.samples_s):
        return False
    if one.time is None or other.time is None:
        return False
    apart = datetime.fromisoformat(one.time) - datetime.fromisoformat(other.time)
    return abs(apart.total_seconds()) <= SAME_ROUNDS_S


def latency_ratio(one: Row, other: Row, shared_rounds: bool) -> Ratio:
    """one / other. Without samples, it is the ratio of the medians, with the widest interval that the intervals of
    both allow; without these, the interval is from 0 to infinity."""
    assert one.latency_s is not None
    assert other.latency_s is not None
    if one.samples_s and other.samples_s:
        return (within_rounds if shared_rounds else independent)(one.samples_s, other.samples_s)
    ratio = one.latency_s / other.latency_s
    if not (one.latency_low_s and one.latency_high_s and other.latency_low_s and other.latency_high_s):
        return Ratio(ratio, 0.0, math.inf)
    return Ratio(ratio, one.latency_low_s / other.latency_high_s, one.latency_high_s / other.latency_low_s)
