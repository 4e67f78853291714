"""The columns of the table of a profile: the text and the sort key of each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saprof.quantities import digits
from saprof.records.rows import Row


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    title: str
    cell: Callable[[Row, Row], str]
    """Returns the text for a row. The second argument is the row of the whole network as a layer."""
    key: Callable[[Row], Any]
    """Returns the value by which rows are sorted."""


def _number(name: str, per_unit: float) -> Callable[[Row, Row], str]:
    def cell(row: Row, _: Row) -> str:
        value = getattr(row, name)
        return "" if value is None else digits(value / per_unit)

    return cell


def _interval(name: str) -> Callable[[Row, Row], str]:
    """A time in milliseconds with half of its 95 % interval."""
    start = name.removesuffix("_s")

    def cell(row: Row, _: Row) -> str:
        value, low, high = (getattr(row, f"{start}{part}_s") for part in ("", "_low", "_high"))
        if value is None:
            return ""
        around = "" if low is None or high is None else f" ±{_percent((high - low) / 2 / value if value else 0)}"
        return f"{digits(value * 1e3)}{around}"

    return cell


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _share(row: Row, whole: Row) -> str:
    return f"{100 * (row.latency_s or 0) / (whole.latency_s or 1):.1f}"


def _of_roof(row: Row, _: Row) -> str:
    return "" if not row.least_s or not row.latency_s else digits(100 * row.least_s / row.latency_s)


def _column(title: str, name: str, per_unit: float) -> Column:
    return Column(title, _number(name, per_unit), lambda row: getattr(row, name) or 0)


def _total(title: str, forward: str, backward: str) -> Column:
    """Millions in the forward and the backward together, as the time has both."""

    def key(row: Row) -> int:
        return (getattr(row, forward) or 0) + (getattr(row, backward) or 0)

    def cell(row: Row, _: Row) -> str:
        known = getattr(row, forward) is not None or getattr(row, backward) is not None
        return digits(key(row) / 1e6) if known else ""

    return Column(title, cell, key)


def _time(title: str, name: str) -> Column:
    return Column(title, _interval(name), lambda row: getattr(row, name) or 0)


COLUMNS = {
    "time": _time("ms", "latency_s"),
    "share": Column("%", _share, lambda row: row.latency_s or 0),
    "self": _time("self ms", "self_s"),
    "forward": _time("forward ms", "forward_s"),
    "backward": _time("backward ms", "backward_s"),
    "roof": Column("% of roof", _of_roof, lambda row: (row.least_s or 0) / (row.latency_s or 1)),
    "bound": Column("bound by", lambda row, _: row.bound_by or "", lambda row: row.bound_by or ""),
    "ran": Column("ran on", lambda row, _: _ran(row), lambda row: row.ran_on),
    "calls": Column("calls", lambda row, _: str(row.calls or ""), lambda row: row.calls or 0),
    "params": _column("params k", "params", 1e3),
    "macs": _total("MMACs", "macs", "backward_macs"),
    "paper": _column("MFLOPs (paper)", "flops_paper", 1e6),
    "hardware": _total("MFLOPs (hardware)", "flops_hardware", "backward_flops_hardware"),
    "bytes": _total("least MB", "compulsory_bytes", "backward_bytes"),
    "held": _column("MB at peak", "held_bytes", 1e6),
    "peak": _column("peak MB", "peak_bytes", 1e6),
    "saved": _column("saved MB", "saved_bytes", 1e6),
    "module": Column("module", lambda row, _: row.module or "", lambda row: row.module or ""),
}
"""The columns of the table, by the name that `--columns` takes."""
ORDER = (
    "time", "share", "hardware", "roof", "bound", "ran", "held", "params", "backward", "forward", "saved", "peak",
    "self", "macs", "paper", "bytes", "calls", "module",
)  # fmt: skip
"""The columns by importance: a narrow terminal shows the first ones."""


def _ran(row: Row) -> str:
    return "" if row.backend == "torch" and not row.compiled else row.ran_on
