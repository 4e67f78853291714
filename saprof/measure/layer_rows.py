"""The rows of a profile, from its traces and counts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from saprof.layers.running import around, compiled_by
from saprof.measure.found import Found, counted, least, measured, paths, weighed
from saprof.measure.latency import Latency
from saprof.measure.network import counts
from saprof.measure.profiled import Profiled
from saprof.measure.rounds import timed
from saprof.measure.trace import Place
from saprof.models.inputs import sizes
from saprof.records.calibration import Calibration
from saprof.records.ratios import Ratio
from saprof.records.rows import SCHEMA, Row, key_of


class Rows:
    """Builds the rows of one network."""

    def __init__(self, subject: Profiled, ran: Mapping[str, str], roofs: Calibration | None, fingerprint: str) -> None:
        self.subject = subject
        self.ran = ran
        """How each attention ran, such as `fused on numba`, by its path."""
        self.roofs = roofs
        self.fingerprint = fingerprint
        self.modules = dict(subject.module.named_modules(remove_duplicate=False))
        self.facts = {
            "name": subject.name,
            "footprint": "default",
            **sizes(subject.inputs).fields,
            "dtype": subject.dtype,
            "device": subject.device,
            "mode": subject.mode,
        }
        self.time = datetime.now(UTC).isoformat(timespec="seconds")

    def network(self, found: Found, latency: Latency) -> Row:
        """The row of the whole network, without the profiler."""
        memory = weighed(found, found.inside[""], "")
        return self._row(
            "model",
            **timed(latency),
            peak_bytes=memory["peak_bytes"],
            saved_bytes=memory.get("saved_bytes"),
            **self._about("") | counts(self.subject.name, self.subject.module, self.subject.inputs),
        )

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
        places = found.inside[path]
        return self._row(
            "layer",
            layer=path,
            calls=found.rounds[0].calls.get(path),
            **measured(found, places, found.own[path]),
            **counted(found, places),
            **weighed(found, places, path),
            **least(found, places, self.roofs, self.facts["dtype"]),
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
        places = [place for place in found.own[path] if place.operation == operation.operation]
        return self._row(
            "layer",
            layer=path,
            operation=operation.operation,
            calls=sum(found.rounds[0].operations.get(place, 0) for place in places),
            **measured(found, places, places),
            **counted(found, places),
            **weighed(found, places),
            **least(found, places, self.roofs, self.facts["dtype"]),
            **self._about(path, operation.operation),
            **fields,
        )

    def _about(self, path: str, operation: str | None = None) -> dict[str, Any]:
        """The class, the parameters, and what ran."""
        module = self.modules.get(path)
        if module is None:
            return {"backend": "torch"}
        inside = [ran.split(" on ") for at, ran in self.ran.items() if ran and path in around(at)]
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
        key = key_of(identity, self.fingerprint, SCHEMA)
        return Row(key=key, fingerprint=self.fingerprint, kind=kind, time=self.time, **{**self.facts, **fields})


_IDENTITY = ("layer", "operation", "apart")


def operations(found: Found, path: str) -> Iterable[Place]:
    """The operators that a module itself calls, forward and backward of the same name once."""
    seen = {place.operation: place for place in found.own[path] if place.operation is not None}
    return seen.values()
