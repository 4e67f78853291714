"""How pages write numbers, intervals and lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from saprof.text import counted

if TYPE_CHECKING:
    from studies.reproduction.records import Results

Row = Mapping[str, Any]


def number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.1f}"


def count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def probability(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def between(row: Row, low: str, high: str, sign: str = "") -> str:
    if row.get(low) is None:
        return ""
    return f"[{number(row[low], sign)}, {number(row[high], sign)}]"


def interval(row: Row, centre: str, low: str, high: str, sign: str = "") -> str:
    return f"{number(row.get(centre), sign)} {between(row, low, high, sign)}".strip()


def holm_note(rows: Iterable[Row]) -> list[str]:
    """The paragraph on the differences of a table, if there are any."""
    compared = sum(row.get("p_holm") is not None for row in rows)
    if not compared:
        return []
    return [
        f"Differences are paired by seed. p is of the paired t test, corrected for the {compared} comparisons of this "
        "table by Holm, and intervals are at the levels of Holm's steps. The interval over seeds asks what another "
        "seed would give, the one over images what other images would."
    ]


VERDICT_NOTE = (
    "*Supported* and *contradicted*: the difference is resolved, and has the sign of the paper's or the opposite one. "
    "*Equivalent*: its interval lies within ± the paper's difference, or within ± 0.5 points if the paper's difference "
    "is smaller than that. *Undecided*: its interval is wider. If the paper reports no difference, a resolved one "
    "outside of ± 0.5 points contradicts it. The smallest difference that could have been resolved is half the width "
    "of the interval."
)
"""The paragraph on the verdicts of a page."""


def bullets(title: str, sentences: Iterable[str]) -> str:
    return "\n".join([f"{title}:", "", *(f"- {sentence}" for sentence in sentences)])


def places(results: Results) -> str:
    """The places where the runs were made, with the number of runs of each."""
    from saprof.records.environment import caption

    made = [sum(run["where"] == place for run in results.runs.values()) for place in range(len(results.where))]
    return "\n".join(
        f"- {counted(runs, 'run')}: {caption(dict(where))}" for runs, where in zip(made, results.where, strict=True)
    )
