"""Run folders: rows, provenance, and the noise of their measurements."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from saprof import atomic, lock
from saprof.records import calibration
from saprof.records.calibration import Calibration
from saprof.records.environment import MAY_CHANGE, fingerprint
from saprof.records.profiles import Profile, profiles
from saprof.records.ratios import self_difference
from saprof.records.rows import DOUBTFUL, ROWS, SCHEMA, SOUND, Row, append_rows, read_rows

HEADER = "run.json"
"""The file of a run folder with the provenance of its rows."""
IDENTITY = (
    "kind", "name", "footprint", "n", "h", "w", "r", "v", "g",
    "dtype", "device", "mode", "backend", "attention", "compiled", "layer", "operation", "apart",
)  # fmt: skip
"""The fields of a row that identify its cell; the device counts only by its kind."""
RECORDED = Path(__file__).resolve().parents[2] / "studies" / "recorded"
"""The folder of the runs that are installed together with saprof."""
MACHINE = ("device", "cpu", "threads")
"""The provenance that two runs must share to be compared."""
REQUIRED: dict[str, Any] = {"device": str, "cpu": str, "threads": int, "cores": int, "versions": dict}
REQUIRED |= {"commit": str | None, "dirty": bool}
"""What provenance must contain, with its types."""
UNREMARKABLE = ("schema", "fingerprint", "argv", "memory_bytes")
"""Differences between two runs that are not printed, because they follow from others or the rows show them."""

Identity = tuple[Any, ...]


@dataclass(frozen=True)
class Floor:
    """How far a ratio of identical calls may be from 1, as a share, and the source of that number."""

    share: float
    source: str


@dataclass(frozen=True)
class Recorded:
    """The content of a run folder; a cell that was measured more than once has its most believable row."""

    folder: Path
    rows: tuple[Row, ...]
    provenance: Mapping[str, Any]
    calibration: Calibration | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def cells(self) -> tuple[Row, ...]:
        """The rows of operators and of whole networks, without those of layers, which are parts of networks."""
        return tuple(row for row in self.rows if row.kind != "layer")

    @cached_property
    def profiles(self) -> tuple[Profile, ...]:
        """What saprof.profile wrote into this folder; none for a sweep."""
        return tuple(profiles(self.rows, self.provenance, self.calibration))

    @property
    def caption(self) -> str:
        """One line on the machine and the code, for the foot of a figure."""
        from saprof.records import environment

        return environment.caption(dict(self.provenance))

    @property
    def within(self) -> Floor:
        """Noise between measurements in the same rounds."""
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
        """The 95th percentile, over the cells, of the difference between odd and even rounds."""
        import numpy as np

        own = [self_difference(row.samples_s) for row in self.cells if row.samples_s and len(row.samples_s) > 1]
        if not own:
            return Floor(0.0, f"unknown, without a calibration and samples, {self.folder}")
        source = f"odd against even rounds of each cell, without a calibration, {self.folder}"
        return Floor(float(np.percentile(own, 95)), source)


def read_run(folder: str | Path) -> Recorded:
    """Read a run folder; ValueError if it is not a run folder, has no rows, or has incomplete provenance."""
    folder = Path(folder)
    provenance = read_provenance(folder)
    missing = [name for name in REQUIRED if name not in provenance]
    if missing:
        raise ValueError(f"{folder / HEADER} does not tell {', '.join(missing)}; expected what a sweep writes")
    for name, kind in REQUIRED.items():
        if not isinstance(provenance[name], kind):
            raise ValueError(f"{folder / HEADER}: {name} is {provenance[name]!r}; expected what a sweep writes")
    rows = believed(read_rows(folder), identity)
    if not rows:
        raise ValueError(f"{folder} has no rows; expected a run with at least one")
    return Recorded(folder, tuple(rows.values()), provenance, calibration.read(folder))


def believed(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, Row]:
    """One row for each key: the most believable one, and of equally believable ones the last.

    A row that was found to be incorrect counts most, then a latency that is `ok`, then one that is doubtful, then a
    cell that was not measured. Numbers are never compared: a faster row is no better than a slower one.
    """
    found: dict[Any, Row] = {}
    for row in rows:
        name = key(row)
        if name not in found or _trust(row) >= _trust(found[name]):
            found[name] = row
    return found


def _trust(row: Row) -> int:
    return {"incorrect": 3, **dict.fromkeys(SOUND, 2), **dict.fromkeys(DOUBTFUL, 1)}.get(row.status, 0)


def identity(row: Row, without: Collection[str] = ()) -> Identity:
    """The fields that identify the cell of a row, except `without`."""
    facts = vars(row) | {"device": row.device.partition(":")[0]}
    return tuple(facts.get(name) for name in IDENTITY if name not in without)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The differences between the provenance of two runs; `versions` and `flags` are compared entry by entry."""
    one, other = (_flat(provenance) for provenance in (before, after))
    names = [name for name in {**one, **other} if name not in UNREMARKABLE]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _flat(provenance: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in provenance.items():
        flat |= {f"{name}.{part}": x for part, x in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def require_same_machine(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """ValueError if two runs are of different machines; it names the differences."""
    apart = [
        f"{name} is {before[name]!r} in A and {after[name]!r} in B" for name in MACHINE if before[name] != after[name]
    ]
    if apart:
        raise ValueError(f"the runs are of different machines: {', '.join(apart)}; compare them with --across-devices")


def change(before: Calibration, after: Calibration) -> float:
    """How far the calls of the anchors, which are the same in both runs, differ between the runs, as a share of the
    shorter."""
    ours, theirs = before.anchored_s, after.anchored_s
    pairs = [(median(ours[call]), median(theirs[call])) for call in ours.keys() & theirs.keys()]
    return max((max(pair) / min(pair) - 1 for pair in pairs), default=0.0)


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """The provenance of a run folder; ValueError if it has none."""
    path = Path(folder) / HEADER
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}); expected the folder of a run") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not of schema {SCHEMA}; measure again")
    return content


def check_folder(folder: Path, resume: bool = False) -> None:
    """ValueError unless a run can begin in the folder or, if `resume`, continue there."""
    header, rows = folder / HEADER, folder / ROWS
    has_rows = rows.exists() and rows.stat().st_size > 0
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder as --output")
    if resume and not header.exists():
        lacks = f"rows, but no {HEADER} that says where they were measured" if has_rows else "no run"
        raise ValueError(f"{folder} has {lacks}; expected the folder of a run, or omit --resume and begin in another")
    if has_rows and not resume:
        raise ValueError(f"{folder} already holds rows; continue with --resume, or choose another with --output")


class Run:
    """A run folder: `rows.jsonl`, and `run.json` with the provenance of the rows. It is locked until it is closed."""

    def __init__(self, folder: str | Path, provenance: dict[str, Any], resume: bool = False) -> None:
        self.folder = Path(folder)
        self.rows_path = self.folder / ROWS
        self.fingerprint = fingerprint(provenance)
        self.done: dict[str, Row] = {}
        self._open = ExitStack()
        check_folder(self.folder, resume)
        is_new = not self.folder.exists()
        try:
            self._begin(provenance, resume)
        except OSError as error:
            self.close()
            if is_new:
                self._remove_empty()
            path = error.filename or self.folder
            raise atomic.WriteError.of(path, error, "; choose another with --output") from None
        except ValueError:
            self.close()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the folder."""
        self._open.close()

    def append(self, rows: Sequence[Row]) -> None:
        append_rows(self.rows_path, rows)
        self.done = believed([*self.done.values(), *rows], _key)

    def rows(self, keys: Iterable[str]) -> list[Row]:
        """The rows of the cells that are done."""
        return [self.done[key] for key in keys if key in self.done]

    def _begin(self, provenance: dict[str, Any], resume: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open.enter_context(lock.held(self.folder))
        check_folder(self.folder, resume)  # another process may have written to it meanwhile
        if resume:
            self._continue(provenance)
        else:
            content = {"schema": SCHEMA, "fingerprint": self.fingerprint, **provenance}
            atomic.write(self.folder / HEADER, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
        self.rows_path.touch()

    def _remove_empty(self) -> None:
        """Delete the folder if it contains at most the lock file."""
        with suppress(OSError):
            (self.folder / lock.FILE).unlink(missing_ok=True)
            self.folder.rmdir()

    def _continue(self, provenance: dict[str, Any]) -> None:
        header = self.folder / HEADER
        rows = read_rows(self.rows_path) if self.rows_path.exists() else []
        if any(row.kind == "layer" for row in rows):
            raise ValueError(f"{self.folder} is a profile, which cannot be continued; expected the folder of a sweep")
        try:
            before = json.loads(header.read_text(encoding="utf-8"))
            if not isinstance(before, dict) or "fingerprint" not in before:
                raise ValueError("it has no fingerprint")
        except (OSError, ValueError) as error:
            raise ValueError(f"{header} is damaged ({error}); start anew with another --output") from None
        if before["fingerprint"] != self.fingerprint:
            changed = [
                name for name, value in provenance.items() if name not in MAY_CHANGE and before.get(name) != value
            ]
            was = ", ".join(f"{name} was {before.get(name)!r} and is {provenance[name]!r}" for name in changed)
            raise ValueError(f"{self.folder} was measured under other conditions: {was}; choose another --output")
        if self.rows_path.exists():
            self.done = believed(rows, _key)
            atomic.write(self.rows_path, "".join(row.line() + "\n" for row in rows).encode())  # drops a cut line


def _key(row: Row) -> str:
    return row.key
