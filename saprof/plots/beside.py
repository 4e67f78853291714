"""Rows beside those of one backend: speed-ups, and ratios of memory."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import pandas as pd

from saprof.plots import frames
from saprof.text import unknown

ALIKE = ["kind", "name", "footprint", "n", "h", "w", "r", "v", "g", "dtype", "device", "mode", "fingerprint"]
"""The fields in which rows agree that were measured side by side."""

WITHIN = {False: ("ratio", "ratio_low", "ratio_high"), True: ("latency_s", "latency_low_s", "latency_high_s")}
"""How speed-ups are computed: from ratios within interleaved rounds, or from latencies that were measured
separately."""


def base_of(rows: pd.DataFrame) -> str:
    """The backend that the others are compared with: `unfold`, which is plain PyTorch, if it ran."""
    return "unfold" if (rows["backend"] == "unfold").any() else rows["backend"].iloc[0] if len(rows) else "unfold"


def speedups(rows: pd.DataFrame, over: str = "unfold") -> pd.DataFrame:
    """The rows that were measured beside plain `over`, with `ran`, `speedup` = latency of `over` / latency of the row,
    and the `low` and `high` end of its 95 % interval. `doubtful` is true if one of the two should not be believed.
    `memory` is the peak of `over` / the peak of the row.

    If the candidates were measured in interleaved rounds, the speed-up is the quotient of two ratios within rounds,
    each to the first candidate. Otherwise `apart` is true, and it is the quotient of two latencies. Raises ValueError
    if nothing ran beside `over`.
    """
    rows = frames.attempted(rows)
    rows = rows.assign(ran=frames.who(rows))
    if over not in set(rows["backend"]):
        raise ValueError(unknown("backend to compare with", over, list(rows["backend"].unique()) or ["any"]))
    groups = [group for _, group in rows.groupby(ALIKE, dropna=False, sort=False)]
    found = [_beside(group, base.index[0]) for group in groups if len(base := _plain(group, over)) and len(group) > 1]
    if not found:
        raise ValueError(f"nothing was measured beside {over}; give --backend {over} and others to one sweep")
    return pd.concat(found).sort_values("ran", key=lambda ran: ran.map(list(ran.unique()).index), kind="stable")


def _plain(group: pd.DataFrame, over: str) -> pd.DataFrame:
    """The candidates of that backend, with composed and eager ones first."""
    return group[group["backend"] == over].sort_values(["attention", "compiled"], kind="stable", na_position="first")


def _beside(group: pd.DataFrame, base: int) -> pd.DataFrame:
    timed = group["latency_s"].notna()
    apart = bool(timed.sum() - group["ratio"].notna().sum() != 1)  # all except the first have a ratio to it
    value, low, high = (group[name].astype(float) for name in WITHIN[apart])
    if not apart:
        value, low, high = (x.where(x.notna() | ~timed, 1.0) for x in (value, low, high))
    doubtful, peak = frames.doubtful(group), group["peak_bytes"].astype(float)
    found = group.assign(speedup=value[base] / value, low=low[base] / high, high=high[base] / low)
    found = found.assign(apart=apart, doubtful=doubtful | doubtful[base], memory=peak[base] / peak)
    return found.drop(index=base)


def factor(speedup: float) -> str:
    """Two digits: 0.46, 1.8, 12."""
    return f"{speedup:.0f}" if speedup >= 9.95 else f"{speedup:.1f}" if speedup >= 0.995 else f"{speedup:.2f}"
