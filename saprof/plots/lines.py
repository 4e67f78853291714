"""Rows as lines in a panel: how they are grouped, where they are drawn, and what their marks mean."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from saprof.plots import frames, looks, marks, scales
from saprof.quantities import LATENCY, Quantity

SETTINGS = ("mode", "dtype", "device", "n", "h", "v", "shape")
"""The columns in which rows of one name and one backend may differ, beside the size of the footprint."""

AGAINST = {"footprint": "against the footprint", "map": "at every map", "name": ""}
"""The values of `across` in words, for the title."""

FAILED = "did not run"
SIDE_BY_SIDE = "lines or points side by side have the same values"

TIMES = (LATENCY.column, "images_per_s", "roof_share")
"""Quantities that a disturbance of the machine changes. Memory and counts stay exact."""

EQUAL, APART, WIDEST = 0.006, 4.0, 16.0
"""Points are equal if they differ by less than EQUAL, a share of the height of a panel. Equal lines are drawn APART pt
apart, and the first and the last at most WIDEST pt."""


def with_footprint(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.dropna(subset=["taps"]).astype({"taps": int})
    if rows.empty:
        raise ValueError("no row has a footprint; give --footprint to the sweep")
    return rows


def across(rows: pd.DataFrame) -> str:
    """The horizontal axis: `footprint` if something was measured at several footprints, else `map`, else `name`."""
    rows = _with_shape(rows)
    same = ["name", "h", "n", "mode", "dtype", "device", "shape", "ran"]
    if rows.groupby(same)["taps"].nunique().max() > 1:
        return "footprint"
    return "map" if rows.groupby("name")["h"].nunique().max() > 1 else "name"


def place(rows: pd.DataFrame, axis: str, apart: Sequence[str] = ()) -> pd.DataFrame:
    """The rows with `x` along that axis (the largest map first), and the columns that distinguish lines: `ran`, which
    is what computed them, and `setting`, the fields in which rows of one name differ. Fields in `apart` have a panel
    each."""
    rows = _with_shape(rows)
    if axis == "footprint":
        rows = rows.dropna(subset=["taps"]).astype({"taps": int})
        return _with_setting(rows.assign(x=rows["taps"]), apart)
    if axis == "name":
        return _with_setting(rows, apart)
    keys = list(zip(-rows["h"], -rows["w"], rows["taps"].fillna(0), strict=True))
    maps = sorted(set(keys))
    return _with_setting(rows.assign(x=[maps.index(key) for key in keys]), ("h", "shape", *apart))


def _with_shape(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(shape=rows["footprint"].map(frames.shape), ran=frames.who(rows))


def _with_setting(rows: pd.DataFrame, apart: Sequence[str]) -> pd.DataFrame:
    setting = frames.settings(rows, [name for name in SETTINGS if name not in apart])
    series = (rows["ran"] + ", " + setting).str.removesuffix(", ")
    number, settings = pd.factorize(setting)
    return rows.assign(setting=setting, series=series, weight=number / max(1, len(settings) - 1))


def label_across(axes: Axes, rows: pd.DataFrame, axis: str) -> None:
    if axis == "footprint":
        return scales.taps_axis(axes, rows)
    first = rows.drop_duplicates("x").sort_values("x")
    axes.set_xticks(first["x"], [map_label(row) for _, row in first.iterrows()], fontsize=9.5)
    axes.set_xlabel("map (footprint)")


def map_label(row: pd.Series) -> str:
    """The map, and the footprint below it."""
    return f"{row['h']}×{row['w']}\n({frames.footprint_label(row['footprint'])})"


Series = list[Line2D]
"""The artists of one line: the line itself, and its hollow points."""


def draw(axes: Axes, line: pd.DataFrame, quantity: Quantity, look: dict[str, Any]) -> Series:
    """One line with its interval. Where a cell did not run, the line has a gap, and the panel has a cross at its
    foot. Doubtful times are hollow."""
    line = line.sort_values("x", kind="stable")
    label = line["series"].iloc[0]
    found = marks.plot(axes, line["x"], frames.column_of(line, quantity), hollow(line, quantity), label=label, **look)
    if quantity is LATENCY:
        low, high = interval(line)
        axes.fill_between(line["x"], low, high, color=look["color"], alpha=0.18, linewidth=0)
        axes.vlines(line["x"], low, high, color=look["color"], linewidth=1)
    mark_failed(axes, line["x"][line["latency_s"].isna()], look["color"])
    return found


def hollow(rows: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """Whether the value of each row is drawn hollow: it is a time, and the row is doubtful."""
    return frames.doubtful(rows) & (quantity.column in TIMES)


def separate(axes: Axes, series: Sequence[Series], across: bool = False) -> None:
    """Draw lines that would hide each other side by side, some points apart: lines whose values are equal wherever both
    have one. The lines keep their values. `across` says that values are along the horizontal axis."""
    axes.autoscale_view()
    places = [_places(axes, one[0], across) for one in series]
    left = list(range(len(series)))
    while left:
        first = left.pop(0)
        group = [first, *(other for other in left if _hides(places[first], places[other]))]
        left = [other for other in left if other not in group]
        gap = min(APART, WIDEST / max(1, len(group) - 1))
        for number, member in enumerate(group if len(group) > 1 else ()):
            shift = gap * (number - (len(group) - 1) / 2)
            for artist in series[member]:
                _shift(artist, axes, 0, shift)


def _shift(artist: Artist, axes: Axes, right: float, up: float) -> None:
    """Move an artist by some points on the page; its data stay as they are."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    artist.set_transform(artist.get_transform() + ScaledTranslation(right / 72, up / 72, figure.dpi_scale_trans))
    artist.set_gid(SEPARATED)


SEPARATED = "side-by-side"
"""The id of artists that were moved."""


def _places(axes: Axes, line: Line2D, across: bool) -> dict[float, float]:
    """The value at each place of a line, as shares of the panel."""
    points = np.column_stack([np.asarray(part, float) for part in line.get_data()])
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = axes.transLimits.transform(axes.transScale.transform(points[np.isfinite(points).all(1)]))
    return {round(float(at), 4): float(value) for at, value in (shares[:, ::-1] if across else shares)}


def _hides(one: dict[float, float], other: dict[float, float]) -> bool:
    shared = one.keys() & other.keys()
    smaller = min(len(one), len(other))
    return 0 < smaller == len(shared) and all(abs(one[x] - other[x]) < EQUAL for x in shared)


def remarks(figure: Figure) -> list[str]:
    """What a figure must say about lines that were moved apart."""
    moved = any(line.get_gid() == SEPARATED for axes in figure.axes for line in axes.lines)
    return [SIDE_BY_SIDE] if moved else []


def interval(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The ends of the 95 % interval of latencies, ms."""
    low, high = (LATENCY.in_unit(rows[f"latency_{bound}_s"].astype(float)) for bound in ("low", "high"))
    return low, high


def mark_failed(axes: Axes, at: pd.Series, colour: str, across: bool = False) -> None:
    """Crosses at the foot or at the left edge of the panel. Those of different lines are side by side."""
    if at.empty:
        return
    place = sum(line.get_label() == FAILED for line in axes.lines)
    edge = [0.03 + 0.05 * place] * len(at)
    where = axes.get_yaxis_transform() if across else axes.get_xaxis_transform()
    points = (edge, at) if across else (at, edge)
    axes.plot(*points, "x", color=colour, transform=where, label=FAILED, clip_on=False)


def look_of_line(line: pd.DataFrame) -> dict[str, Any]:
    """The style in the overview: colour and marker by name, line and filling by what computed it, width by setting."""
    look = looks.look(line["name"].iloc[0])
    own = looks.line_of(line["ran"].iloc[0])
    return own | {"color": look.colour, "marker": look.marker} | weight(line)


def weight(line: pd.DataFrame) -> dict[str, Any]:
    """Line width and marker size by the weight of the setting, from 0 to 1."""
    share = line["weight"].iloc[0]
    return {"linewidth": 1.6 + 1.6 * share, "markersize": 5.5 + 2.5 * share}


def legend(rows: pd.DataFrame) -> list[Line2D]:
    """The names, then `legend_of_rans` in grey."""
    return [*legend_of_names(rows), Line2D([], [], linestyle="none", label=""), *legend_of_rans(rows, grey=True)]


def legend_of_names(rows: pd.DataFrame) -> list[Line2D]:
    found = {name: looks.look(name) for name in rows["name"].unique()}
    return [Line2D([], [], color=look.colour, marker=look.marker, label=name) for name, look in found.items()]


def legend_of_rans(rows: pd.DataFrame, grey: bool = False, doubts: bool = True) -> list[Line2D]:
    """What computed the lines, then the settings, then the meaning of a hollow point and of a cross. `grey` is for
    panels whose colours and markers are those of names."""
    rans = {ran: looks.look_of(ran) for ran in rows["ran"].unique()}
    neutral = {"color": "0.3", "marker": ""} if grey else {}
    handles = [Line2D([], [], label=ran, **look | neutral) for ran, look in rans.items()]
    for setting, line in rows[rows["setting"] != ""].groupby("setting", sort=False):
        handles.append(Line2D([], [], color="0.5", marker="o", label=setting, **weight(line)))
    handles += marks.legend_of_doubtful(rows) if doubts else []
    if rows["latency_s"].isna().any():
        handles.append(Line2D([], [], color="0.3", marker="x", linestyle="none", label=f"{FAILED}, see below"))
    return handles
