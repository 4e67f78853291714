"""Points of rows: filled where a row is sound, hollow where it is doubtful."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from saprof.plots import frames

HOLLOW = "_doubtful"
"""The label of hollow points."""

PALE = 0.45
"""The opacity of a line of which all rows are doubtful."""

HOLLOW_LOOK = {"markerfacecolor": "white", "markeredgewidth": 1.1, "zorder": 3}
"""The style of hollow points. Only doubtful rows have it."""


def plot(axes: Axes, x: Any, y: Any, doubtful: Any, **look: Any) -> list[Line2D]:
    """A line with its points, or points alone: filled where a row is sound, hollow where it is `doubtful`. The line of
    rows that are all doubtful is pale.

    Every figure that draws latencies, or what is computed from them, draws its points here. Returns the artists.
    """
    x, y, hollow = np.asarray(x, float), np.asarray(y, float), np.asarray(doubtful, bool)
    found = axes.plot(x, y, markevery=~hollow, **look)
    if hollow.any():
        found[0].set_alpha(PALE if hollow.all() else None)
        found += axes.plot(x[hollow], y[hollow], **(look | {"linestyle": "none", "label": HOLLOW}), **HOLLOW_LOOK)
    return found


def legend_of_doubtful(rows: pd.DataFrame) -> list[Line2D]:
    """The entry of a legend that explains hollow points; empty if no row is doubtful."""
    why = frames.doubts(rows)
    return [legend_of_hollow(f"{why},\ndo not trust")] if why else []


def legend_of_hollow(why: str) -> Line2D:
    """The entry of a legend that says why points are hollow."""
    return Line2D([], [], color="0.3", marker="o", linestyle="none", label=f"hollow: {why}", **HOLLOW_LOOK)
