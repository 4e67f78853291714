"""What was measured in some rounds of one network, by place, and the fields of rows that follow from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray

from saprof.layers.running import around
from saprof.measure.inspection import Counted
from saprof.measure.latency import UNSTABLE
from saprof.measure.trace import Place, Trace
from saprof.operators.cost import Cost
from saprof.records.calibration import Calibration
from saprof.records.layers import LEAST_CHANGE
from saprof.records.ratios import RESAMPLES


@dataclass
class Found:
    """What was measured in some rounds of one network."""

    rounds: Sequence[Trace]
    counted: Counted
    status: str
    """`contended`, or `ok`."""
    weighed: Trace | None = None
    """The trace of the memory."""
    saved: Mapping[str, int] = field(default_factory=dict)
    """The bytes saved for the backward pass, by module."""

    def __post_init__(self) -> None:
        self.places = list(dict.fromkeys(place for one in self.rounds for place in one.seconds))
        found = [[one.seconds.get(place, 0.0) for place in self.places] for one in self.rounds]
        self._columns = {place: column for column, place in enumerate(self.places)}
        self._seconds = np.array(found).reshape(len(self.rounds), len(self.places))
        self._whole = self._seconds.sum(axis=1)
        drawn = np.random.default_rng(0).integers(len(self.rounds), size=(RESAMPLES, len(self.rounds)))
        self._drawn = np.array([_middle_half(self._whole, some) for some in drawn])
        self.least_sampled = LEAST_CHANGE * self.typical(self._whole)[0]
        """Layers that take less time keep only its mean and interval."""
        self.own: defaultdict[str, list[Place]] = defaultdict(list)
        """The places of each module, where it has a time, a count or memory."""
        self.inside: defaultdict[str, list[Place]] = defaultdict(list)
        """The places of each module and of the modules inside."""
        held = self.weighed.held if self.weighed else ()
        for place in dict.fromkeys([*self.places, *self.counted.costs, *held]):
            self.own[place.path].append(place)
            for path in around(place.path):
                self.inside[path].append(place)
        self.has_backward = any(place.backward for place in self.places)
        self.peaks: dict[str, int] = {}
        """The most bytes that are allocated while a module, or one inside it, runs."""
        for at, peak in (self.weighed.peaks if self.weighed else {}).items():
            self.peaks |= {path: max(self.peaks.get(path, 0), peak) for path in around(at)}
        self.saved_inside: dict[str, int] = {}
        for at, size in self.saved.items():
            self.saved_inside |= {path: self.saved_inside.get(path, 0) + size for path in around(at)}

    def seconds(self, places: Sequence[Place]) -> ndarray:
        """The time at some places, one number per round."""
        columns = [self._columns[place] for place in places if place in self._columns]
        return self._seconds[:, columns].sum(axis=1)

    def typical(self, seconds: ndarray) -> tuple[float, float, float]:
        """A time over the rounds, and its 95 % bootstrap interval.

        It is the mean over the middle half of the rounds by the time of the whole call. The rounds are the same for
        all layers, so the times of the parts add up to that of the whole.
        """
        middle = float(seconds[_middle_half(self._whole, np.arange(len(seconds)))].mean())
        low, high = np.percentile(seconds[self._drawn].mean(axis=1), (2.5, 97.5))
        return middle, float(low), float(high)


def _middle_half(whole: ndarray, rounds: ndarray) -> ndarray:
    """Those of the rounds whose whole time is neither in the lowest nor in the highest quarter."""
    ordered = rounds[np.argsort(whole[rounds], kind="stable")]
    cut = len(rounds) // 4
    return ordered[cut : len(rounds) - cut]


def paths(found: Found) -> list[str]:
    """The modules that ran or in which something ran, and those around them, each before the modules inside."""
    seen = [*found.rounds[0].calls, *(place.path for place in found.places)]
    return list(dict.fromkeys(path for one in dict.fromkeys(seen) for path in around(one))) or [""]


def measured(found: Found, places: Sequence[Place], own: Sequence[Place]) -> dict[str, Any]:
    """The fields of a row about time: of its `places`, and of those among them that are the layer's `own`.

    Layers that take a small share of the whole have no samples, which are most of the size of a row."""
    whole = found.seconds(places)
    times = {"latency": whole, "self": found.seconds(own)}
    if found.has_backward:
        times["forward"] = found.seconds([place for place in places if not place.backward])
        times["backward"] = found.seconds([place for place in places if place.backward])
    fields: dict[str, Any] = {}
    for name, samples in times.items():
        middle, low, high = found.typical(samples)
        fields |= {f"{name}_s": middle, f"{name}_low_s": low, f"{name}_high_s": high}
    if fields["latency_s"] >= found.least_sampled:
        fields["samples_s"] = [float(f"{x:.6g}") for x in whole]
    wide = fields["latency_high_s"] - fields["latency_low_s"] > 2 * UNSTABLE * fields["latency_s"]
    return fields | {"status": found.status if found.status != "ok" else "unstable" if wide else "ok"}


def counted(found: Found, places: Sequence[Place]) -> dict[str, Any]:
    """The fields of a row about operations: those of the forward, and with a prefix those of the backward."""
    forward, backward = (_sum(found.counted.costs, places, in_backward) for in_backward in (False, True))
    fields = forward.operations
    if found.has_backward:
        fields |= {
            "backward_macs": backward.macs,
            "backward_flops_hardware": backward.flops("hardware"),
            "backward_bytes": backward.bytes,
        }
    return fields


def _sum(costs: Mapping[Place, Cost], places: Sequence[Place], backward: bool) -> Cost:
    return sum((costs[place] for place in places if place in costs and place.backward == backward), Cost())


def weighed(found: Found, places: Sequence[Place], path: str | None = None) -> dict[str, Any]:
    """The fields of a row about memory; the peak and what is saved only for a module with its `path`."""
    if found.weighed is None:
        return {}
    fields: dict[str, Any] = {"held_bytes": sum(found.weighed.held.get(place, 0) for place in places)}
    if path is None:
        return fields
    fields["peak_bytes"] = found.peaks.get(path, 0)
    if found.saved:
        fields["saved_bytes"] = found.saved_inside.get(path, 0)
    return fields


def least(found: Found, places: Sequence[Place], roofs: Calibration | None, dtype: str) -> dict[str, Any]:
    """The least time that the roofs allow the operators, one after the other, and the roof that gives most of it."""
    rate = roofs.flop_rate(dtype) if roofs else None
    if roofs is None or rate is None:
        return {}
    by = {"memory": 0.0, "compute": 0.0}
    for place in places:
        cost = found.counted.costs.get(place)
        if cost is not None and cost.bytes:
            calls = max(found.counted.calls.get(place, 1), 1)
            memory = cost.bytes / roofs.bandwidth(cost.bytes / calls)
            compute = cost.flops("hardware") / rate
            by["memory" if memory >= compute else "compute"] += max(memory, compute)
    seconds = sum(by.values())
    return {"least_s": seconds, "bound_by": max(by, key=lambda roof: by[roof])} if seconds else {}
