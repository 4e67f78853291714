"""What all figures share: how rows become a DataFrame, how figures look, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from saprof.results import Row

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "saprof",
}


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a DataFrame, one column per field, samples left out; of no rows, the columns alone."""
    columns = [field.name for field in fields(Row) if field.name != "samples_s"]
    return pd.DataFrame([asdict(row) for row in rows], columns=columns)


def write(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG beside each other; returns both paths."""
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    with matplotlib.rc_context(STYLE):
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(path, dpi=150, metadata=metadata)
    return paths
