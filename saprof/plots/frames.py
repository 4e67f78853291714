"""Rows as a DataFrame: their columns, which of them are doubtful, and how they are named in words."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

import pandas as pd

from saprof.quantities import Quantity, who_ran
from saprof.records.calibration import Calibration, above_roof, share
from saprof.records.rows import DOUBTFUL, Row

SPELLED = {"latency_s": "a latency", "peak_bytes": "a peak of memory"}
"""The nouns that name fields in sentences."""


def frame(rows: Sequence[Row], roofs: Calibration | None = None) -> pd.DataFrame:
    """Rows as a DataFrame with one column per field, without samples. Without rows it has only the columns.

    With the roofs of the machine, it also has `roof_share`, the least time over the measured time, and `above_roof`,
    whether a row is faster than the machine allows; figures then mark these measurement errors. Rows of layers are left
    out: they are parts of networks, and `saprof.plots.profile_page` draws them.
    """
    columns = [field.name for field in fields(Row) if field.name != "samples_s"]
    kept = [row for row in rows if row.kind != "layer"]
    found = pd.DataFrame([asdict(row) for row in kept], columns=columns)
    return found if roofs is None else found.assign(**_beside_roofs(kept, roofs))


def _beside_roofs(rows: Sequence[Row], roofs: Calibration) -> dict[str, list[Any]]:
    return {
        "roof_share": [share(row, roofs) for row in rows],
        "above_roof": [above_roof(row, roofs) for row in rows],
    }


def with_roofs(rows: pd.DataFrame, roofs: Calibration) -> pd.DataFrame:
    """A table of `frame` with the columns that depend on the roofs."""
    names = [field.name for field in fields(Row) if field.name in rows]
    records = rows[names].astype(object).where(rows[names].notna(), None).to_dict("records")
    return rows.assign(**_beside_roofs([Row(**{str(k): v for k, v in one.items()}) for one in records], roofs))


def doubtful(rows: pd.DataFrame) -> pd.Series:
    """Whether each row has a latency that should not be believed: it is unstable or contended, or faster than the
    machine allows."""
    found = rows["status"].isin(DOUBTFUL)
    return found | rows["above_roof"].eq(True) if "above_roof" in rows else found


def doubts(rows: pd.DataFrame) -> str:
    """The reasons for which some of the rows are doubtful: `unstable or contended`; empty if none is."""
    kinds = [status for status in DOUBTFUL if (rows["status"] == status).any()]
    kinds += ["above the roof"] if "above_roof" in rows and rows["above_roof"].eq(True).any() else []
    return ", ".join(kinds[:-1]) + " or " * (len(kinds) > 1) + "".join(kinds[-1:])


def column_of(rows: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """The column of a quantity, in its unit."""
    return quantity.in_unit(rows[quantity.column].astype(float))


def attempted(rows: pd.DataFrame, field: str | None = None) -> pd.DataFrame:
    """The rows without those that no backend can run (the tables name these). Raises ValueError if no row has
    `field`."""
    rows = rows.loc[rows["status"] != "unsupported"].copy()
    if field is not None and not rows[field].notna().any():
        raise ValueError(f"no row has {SPELLED[field]}: {_statuses(rows)}")
    return rows


def _statuses(rows: pd.DataFrame) -> str:
    """A text such as `3 are oom, 1 is error`, or a note that there are no rows."""
    counts = rows["status"].value_counts(sort=False)
    return ", ".join(f"{n} {'is' if n == 1 else 'are'} {status}" for status, n in counts.items()) or "nothing was tried"


def who(rows: pd.DataFrame) -> pd.Series:
    """What computed each row: `numba`, `numba fused`, `unfold+compile`."""
    attentions = rows["attention"].astype(object).where(rows["attention"].notna(), None)
    rans = map(who_ran, rows["backend"], attentions, rows["compiled"].astype(bool))
    return pd.Series(list(rans), rows.index, dtype=object)


def settings(rows: pd.DataFrame, columns: Iterable[str]) -> pd.Series:
    """The other columns in which rows of one name differ, as text: `train_step, n = 8, 28×28`."""
    alike = {"v": ["name", "h"]}  # channels usually follow from the map, as in SAN's stages
    parts = [
        _worded(rows, column)
        for column in columns
        if rows.groupby(alike.get(column, ["name"]))[column].nunique(dropna=False).max() > 1
    ]
    if not parts:
        return pd.Series("", index=rows.index)
    return pd.concat(parts, axis=1).agg(", ".join, axis=1)


def _worded(rows: pd.DataFrame, column: str) -> pd.Series:
    match column:
        case "n":
            return "n = " + rows["n"].astype(str)
        case "h":
            return rows["h"].astype(str) + "×" + rows["w"].astype(str)
        case "v":
            return rows["v"].map(lambda v: "" if pd.isna(v) else f"{v:.0f} channels")
    return rows[column].astype(str)


def shape(footprint: str) -> str:
    """A footprint without its size: `square`, `dilated ×2`, `cross boundary=zero`."""
    kind, *options = footprint.split()
    kind, _, size = kind.partition(":")
    dilation = f" ×{size.partition('x')[2]}" if kind == "dilated" else ""
    return " ".join([kind + dilation, *options])


def footprint_label(footprint: str) -> str:
    """`7×7` for `square:7`, `own` for a network's own footprints, otherwise the text that `Footprint.parse` reads."""
    kind, *options = footprint.split()
    kind, _, size = kind.partition(":")
    named = {"square": f"{size}×{size}", "default": "own"}.get(kind, footprint.split()[0].replace(":", " "))
    return " ".join([named, *options])
