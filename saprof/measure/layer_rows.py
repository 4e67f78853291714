"""The rows of a profile, from its traces and counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy import ndarray

from saprof.layers.running import compiled_by
from saprof.measure.inspection import Counted
from saprof.measure.latency import UNSTABLE, Latency
from saprof.measure.profiled import Profiled
from saprof.measure.rounds import timed
from saprof.measure.trace import Place, Trace
from saprof.models.counting import count
from saprof.models.inputs import first, sizes
from saprof.operators.cost import Cost
from saprof.records.calibration import Calibration
from saprof.records.ratios import RESAMPLES, Ratio
from saprof.records.rows import SCHEMA, Row


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
        self._seconds = np.array(found).reshape(len(self.rounds), len(self.places))
        self._whole = self._seconds.sum(axis=1)
        drawn = np.random.default_rng(0).integers(len(self.rounds), size=(RESAMPLES, len(self.rounds)))
        self._drawn = np.array([_middle_half(self._whole, some) for some in drawn])

    def seconds(self, chosen: Callable[[Place], bool]) -> ndarray:
        """The time at the chosen places, one number per round."""
        return self._seconds[:, [chosen(place) for place in self.places]].sum(axis=1)

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
    known: dict[str, None] = {"": None}
    for path in [*found.rounds[0].calls, *(place.path for place in found.places)]:
        parts = path.split(".")
        known |= {".".join(parts[:length]): None for length in range(1, len(parts) + 1) if path}
    return list(known)


def within(place: Place, path: str) -> bool:
    """Whether a place is in a module, or in a module inside."""
    return not path or place.path == path or place.path.startswith(f"{path}.")


def measured(found: Found, chosen: Callable[[Place], bool], own: Callable[[Place], bool]) -> dict[str, Any]:
    """The fields of a row about time: of all `chosen` places, and of those that are the layer's `own`."""
    whole = found.seconds(chosen)
    times = {"latency": whole, "self": found.seconds(lambda place: chosen(place) and own(place))}
    if any(place.backward for place in found.places):
        times["forward"] = found.seconds(lambda place: chosen(place) and not place.backward)
        times["backward"] = found.seconds(lambda place: chosen(place) and place.backward)
    fields: dict[str, Any] = {"samples_s": [float(x) for x in whole]}
    for name, samples in times.items():
        middle, low, high = found.typical(samples)
        fields |= {f"{name}_s": middle, f"{name}_low_s": low, f"{name}_high_s": high}
    wide = fields["latency_high_s"] - fields["latency_low_s"] > 2 * UNSTABLE * fields["latency_s"]
    return fields | {"status": found.status if found.status != "ok" else "unstable" if wide else "ok"}


def counted(found: Found, chosen: Callable[[Place], bool]) -> dict[str, Any]:
    """The fields of a row about operations: those of the forward, and with a prefix those of the backward."""
    forward, backward = (_sum(found.counted.costs, chosen, in_backward) for in_backward in (False, True))
    fields = {
        "macs": forward.macs,
        "flops_paper": forward.paper,
        "flops_hardware": forward.flops("hardware"),
        "compulsory_bytes": forward.bytes,
    }
    if any(place.backward for place in found.counted.costs):
        fields |= {
            "backward_macs": backward.macs,
            "backward_flops_hardware": backward.flops("hardware"),
            "backward_bytes": backward.bytes,
        }
    return fields


def _sum(costs: Mapping[Place, Cost], chosen: Callable[[Place], bool], backward: bool) -> Cost:
    return sum((cost for place, cost in costs.items() if chosen(place) and place.backward == backward), Cost())


def weighed(found: Found, chosen: Callable[[Place], bool], path: str | None = None) -> dict[str, Any]:
    """The fields of a row about memory; the peak and what is saved only for a module with its `path`."""
    if found.weighed is None:
        return {}
    fields = {"held_bytes": sum(size for place, size in found.weighed.held.items() if chosen(place))}
    if path is None:
        return fields
    inside = [peak for at, peak in found.weighed.peaks.items() if within(Place(at, None, False), path)]
    fields["peak_bytes"] = max(inside, default=0)
    if found.saved:
        fields["saved_bytes"] = sum(size for at, size in found.saved.items() if within(Place(at, None, False), path))
    return fields


def least(found: Found, chosen: Callable[[Place], bool], roofs: Calibration | None, dtype: str) -> dict[str, Any]:
    """The least time that the roofs allow the operators, one after the other, and the roof that gives most of it."""
    rate = roofs.flop_rate(dtype) if roofs else None
    if roofs is None or rate is None:
        return {}
    by = {"memory": 0.0, "compute": 0.0}
    for place, cost in found.counted.costs.items():
        if chosen(place) and cost.bytes:
            calls = max(found.counted.calls.get(place, 1), 1)
            memory = cost.bytes / roofs.bandwidth(cost.bytes / calls)
            compute = cost.flops("hardware") / rate
            by["memory" if memory >= compute else "compute"] += max(memory, compute)
    seconds = sum(by.values())
    return {"least_s": seconds, "bound_by": max(by, key=lambda roof: by[roof])} if seconds else {}


class Rows:
    """Builds the rows of one network."""

    def __init__(self, subject: Profiled, ran: Mapping[str, str], roofs: Calibration | None, fingerprint: str) -> None:
        self.subject = subject
        self.ran = ran
        """How each attention ran, such as `fused on numba`, by its path."""
        self.roofs = roofs
        self.fingerprint = fingerprint
        self.modules = dict(subject.module.named_modules(remove_duplicate=False))
        found = sizes(subject.inputs)
        self.facts = {
            "name": subject.name,
            "footprint": "default",
            "n": found.n or 1,
            "h": found.h or 0,
            "w": found.w or 0,
            "dtype": subject.dtype,
            "device": subject.device,
            "mode": subject.mode,
        }
        self.time = datetime.now(UTC).isoformat(timespec="seconds")

    def network(self, found: Found, latency: Latency) -> Row:
        """The row of the whole network, without the profiler."""
        memory = weighed(found, everywhere, "")
        return self._row(
            "model",
            **timed(latency),
            peak_bytes=memory["peak_bytes"],
            saved_bytes=memory.get("saved_bytes"),
            **self._about(""),
            **self._of_one_image(),
        )

    def _of_one_image(self) -> dict[str, Any]:
        """The counts of one image, as in the rows of a sweep; nothing for a network that cannot be counted without
        data."""
        try:
            cost = count(self.subject.module, inputs=first(self.subject.inputs), uncounted="list")
        except ValueError:
            return {}
        return {
            "macs": cost.macs,
            "flops_paper": cost.paper,
            "flops_hardware": cost.flops("hardware"),
            "compulsory_bytes": cost.bytes,
        }

    def layers(self, found: Found, overhead: Ratio, remarks: str) -> Iterator[Row]:
        """One row per module that ran, and one per operator that it calls."""
        ratio = {"ratio": overhead.median, "ratio_low": overhead.low, "ratio_high": overhead.high}
        root = ratio | {"remarks": remarks or None}
        for path in paths(found):
            yield self._layer(found, path, **({} if path else root))
            yield from self._operations(found, path)

    def apart(self, apart: Found, found: Found, fused: Sequence[str]) -> Iterator[Row]:
        """The rows of what ran inside the `fused` attentions only when they were composed."""
        known = set(paths(found))
        for attention in fused:
            ran = {place.operation for place in operations(found, attention)}
            yield from self._operations(apart, attention, without=ran, apart=True)
            for path in paths(apart):
                if path.startswith(f"{attention}.") and path not in known:
                    yield self._layer(apart, path, apart=True)
                    yield from self._operations(apart, path, apart=True)

    def _layer(self, found: Found, path: str, **fields: Any) -> Row:
        def chosen(place: Place) -> bool:
            return within(place, path)

        return self._row(
            "layer",
            layer=path,
            calls=found.rounds[0].calls.get(path),
            **measured(found, chosen, lambda place: place.path == path),
            **counted(found, chosen),
            **weighed(found, chosen, path),
            **least(found, chosen, self.roofs, self.facts["dtype"]),
            **self._about(path),
            **fields,
        )

    def _operations(
        self, found: Found, path: str, without: Collection[str | None] = (), **fields: Any
    ) -> Iterator[Row]:
        for operation in operations(found, path):
            if operation.operation not in without:
                yield self._operation(found, path, operation, **fields)

    def _operation(self, found: Found, path: str, operation: Place, **fields: Any) -> Row:
        def chosen(place: Place) -> bool:
            return place.path == path and place.operation == operation.operation

        calls = (one for place, one in found.rounds[0].operations.items() if chosen(place))
        return self._row(
            "layer",
            layer=path,
            operation=operation.operation,
            calls=sum(calls),
            **measured(found, chosen, lambda _: True),
            **counted(found, chosen),
            **weighed(found, chosen),
            **least(found, chosen, self.roofs, self.facts["dtype"]),
            **self._about(path, operation.operation),
            **fields,
        )

    def _about(self, path: str, operation: str | None = None) -> dict[str, Any]:
        """The class, the parameters, and what ran."""
        module = self.modules.get(path)
        if module is None:
            return {"backend": "torch"}
        inside = [ran.split(" on ") for at, ran in self.ran.items() if ran and within(Place(at, None, False), path)]
        if operation is not None and not operation.startswith("saprof::"):
            inside = []
        attentions, backends = (
            ("+".join(dict.fromkeys(part)) for part in zip(*inside, strict=True)) if inside else (None, "torch")
        )
        facts: dict[str, Any] = {"backend": backends, "attention": attentions}
        if operation is None:
            facts |= {
                "module": type(module).__name__,
                "params": sum(x.numel() for x in module.parameters()),
                "compiled": compiled_by(module) is not None,
            }
        return facts

    def _row(self, kind: str, **fields: Any) -> Row:
        identity = {**self.facts, "kind": kind, **{name: fields.get(name) for name in _IDENTITY}}
        key = hashlib.sha256(json.dumps([identity, self.fingerprint, SCHEMA], sort_keys=True).encode()).hexdigest()[:16]
        return Row(key=key, fingerprint=self.fingerprint, kind=kind, time=self.time, **{**self.facts, **fields})


_IDENTITY = ("layer", "operation", "apart")


def everywhere(_: Place) -> bool:
    return True


def operations(found: Found, path: str) -> Iterable[Place]:
    """The operators that a module itself calls, forward and backward of the same name once."""
    seen = {place.operation: place for place in found.places if place.path == path and place.operation is not None}
    return seen.values()
