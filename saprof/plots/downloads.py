"""Rows as csv files that a page holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from saprof import text
from saprof.records.calibration import Calibration, share
from saprof.records.rows import Row

LEFT_OUT = "samples_s"
"""The field that is a list and no column; `rows.jsonl` has it."""


def rows_as_csv(rows: Sequence[Row], roofs: Calibration | None = None) -> str:
    """Every field that one of the rows has, in SI units and with all digits, and the share of the roof if there are
    roofs."""
    found = [asdict(row) | ({"roof_share": share(row, roofs)} if roofs else {}) for row in rows]
    known = [name for name in found[0] if name != LEFT_OUT and any(one[name] is not None for one in found)]
    return text.records([{name: one[name] for name in known} for one in found], "csv")
