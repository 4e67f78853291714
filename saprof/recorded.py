"""Run folders as they were read: rows, provenance, and how far identical calls were found apart in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from saprof import calibration, results
from saprof.calibration import Calibration
from saprof.ratios import self_difference
from saprof.results import Row

IDENTITY = (
    "kind", "name", "footprint", "n", "h", "w", "r", "v", "g",
    "dtype", "device", "mode", "backend", "attention", "compiled",
)  # fmt: skip
"""The fields of a row that say which cell it is; of the device, its kind."""
MACHINE = ("device", "cpu", "threads")
"""What two runs must share to be compared."""
TOLD = (*MACHINE, "cores", "versions", "commit", "dirty")
"""What provenance must tell."""
UNREMARKABLE = ("schema", "fingerprint", "argv", "memory_bytes")
"""What two runs may differ in without a word: it follows from the rest, or is seen in the rows."""

Identity = tuple[Any, ...]


@dataclass(frozen=True)
class Floor:
    """How far a ratio of identical calls may be from 1, as a share, and how that is known."""

    share: float
    source: str


@dataclass(frozen=True)
class Recorded:
    """A run folder as it was read; a cell that was measured again has its last row."""

    folder: Path
    rows: tuple[Row, ...]
    provenance: Mapping[str, Any]
    calibration: Calibration | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def caption(self) -> str:
        """One line on where it was measured, for the foot of a figure."""
        from saprof.measure import environment

        return environment.caption(dict(self.provenance))

    @property
    def within(self) -> Floor:
        """Noise between what was measured in the same rounds."""
        if self.calibration is None:
            return self._own
        return Floor(self.calibration.noise_within, f"identical calls in the same rounds, {self.folder}")

    @property
    def between(self) -> Floor:
        """Noise between different times of the run."""
        if self.calibration is None:
            return self._own
        return Floor(self.calibration.noise_between, f"identical calls at different times, {self.folder}")

    @cached_property
    def _own(self) -> Floor:
        """By what odd rounds of a cell differ from even ones, which 95 % of the cells keep to."""
        import numpy as np

        own = [self_difference(row.samples_s) for row in self.rows if row.samples_s and len(row.samples_s) > 1]
        if not own:
            return Floor(0.0, f"unknown, without a calibration and samples, {self.folder}")
        source = f"odd against even rounds of each cell, without a calibration, {self.folder}"
        return Floor(float(np.percentile(own, 95)), source)


def read(folder: str | Path) -> Recorded:
    """A run folder; ValueError if it is none, has no rows, or does not tell where they are from."""
    folder = Path(folder)
    provenance = results.provenance(folder)
    missing = [name for name in TOLD if name not in provenance]
    if missing:
        raise ValueError(f"{folder / 'run.json'} does not tell {', '.join(missing)}; expected what a sweep writes")
    rows = {identity(row): row for row in results.read(folder)}
    if not rows:
        raise ValueError(f"{folder} has no rows; expected a run with at least one")
    return Recorded(folder, tuple(rows.values()), provenance, calibration.read(folder))


def identity(row: Row, without: Collection[str] = ()) -> Identity:
    """Which cell a row is about, up to the fields left out."""
    facts = vars(row) | {"device": row.device.partition(":")[0]}
    return tuple(facts.get(name) for name in IDENTITY if name not in without)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between the provenance of two runs, `versions` and `flags` by their entries."""
    one, other = (_flat(provenance) for provenance in (before, after))
    names = [name for name in {**one, **other} if name not in UNREMARKABLE]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _flat(provenance: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in provenance.items():
        flat |= {f"{name}.{part}": x for part, x in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def require_same_machine(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """ValueError that names what differs."""
    apart = [
        f"{name} is {before[name]!r} in A and {after[name]!r} in B" for name in MACHINE if before[name] != after[name]
    ]
    if apart:
        raise ValueError(f"the runs are of different machines: {', '.join(apart)}; compare them with --across-devices")


def change(before: Calibration, after: Calibration) -> float:
    """How far the anchors' calls, the same in both runs, differ between them, as a share of the shorter."""
    ours, theirs = _anchored(before), _anchored(after)
    pairs = [(ours[call], theirs[call]) for call in ours.keys() & theirs.keys()]
    return max((max(pair) / min(pair) - 1 for pair in pairs), default=0.0)


def _anchored(calibration: Calibration) -> dict[str, float]:
    """The median seconds of each anchor call over the run."""
    blocks: dict[str, list[float]] = defaultdict(list)
    for anchor in calibration.anchors:
        for call, medians in anchor.blocks_s.items():
            blocks[call] += medians
    return {call: median(medians) for call, medians in blocks.items()}
