"""How latency and memory grow with taps and pixels: lines in log-log, each with its slope."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from saprof.plots import findings, frames, lines, marks, scales, style
from saprof.quantities import HARDWARE_FLOPS, LATENCY, MEMORY, Quantity
from saprof.text import counted

LEAST_POINTS = 3
"""A slope needs at least as many sizes."""
LINEAR = 0.05
"""Operations are called linear if their slope differs from 1 by at most this."""
QUANTITIES = (LATENCY, MEMORY)

_SAME = ["kind", "name", "n", "dtype", "device", "mode", "ran", "r", "v", "g"]
_ALONG = {"taps": [*_SAME, "h", "w", "shape"], "pixels": [*_SAME, "footprint"]}
"""The columns in which the rows of a line agree, by what grows."""
_GAP = 0.055
"""The least distance between two slopes beside a panel, as a share of its height."""


class Line(NamedTuple):
    """Rows that differ only in their taps, or only in their pixels."""

    along: str
    """`taps` or `pixels`."""
    rows: pd.DataFrame
    """The rows in this order, with `x`."""
    slopes: dict[str, float | None]
    """The slope of each quantity in log-log, by its column; None if there are too few sound rows."""

    @property
    def is_linear(self) -> bool:
        """Whether the operations grow as x does."""
        slope = self.slopes[HARDWARE_FLOPS.column]
        return slope is not None and abs(slope - 1) <= LINEAR


def growing(rows: pd.DataFrame) -> list[Line]:
    """The lines that have a slope of latency or memory, from rows of `saprof.plots.frame`."""
    return [line for line in _lines(rows) if any(line.slopes[one.column] is not None for one in QUANTITIES)]


def _lines(rows: pd.DataFrame) -> Iterator[Line]:
    rows = rows.assign(
        ran=frames.who(rows), shape=rows["footprint"].map(frames.shape), pixels=rows["h"].astype(float) * rows["w"]
    )
    for along, same in _ALONG.items():
        known = rows[rows[along].notna() & (rows["latency_s"].notna() | rows["peak_bytes"].notna())]
        known = known.assign(x=known[along].astype(float))
        for _, line in known.groupby(same, sort=False, dropna=False):
            if line["x"].nunique() >= LEAST_POINTS:
                line = line.drop_duplicates("x", keep="last").sort_values("x")
                yield Line(along, line, {one.column: _slope(line, one) for one in (*QUANTITIES, HARDWARE_FLOPS)})


def _slope(line: pd.DataFrame, quantity: Quantity) -> float | None:
    """The slope of least squares in log-log, over sound rows that have a value."""
    sound = line[~lines.hollow(line, quantity) & (line[quantity.column].astype(float) > 0)]
    if sound["x"].nunique() < LEAST_POINTS:
        return None
    return float(np.polyfit(np.log(sound["x"]), np.log(sound[quantity.column].astype(float)), 1)[0])


def growth_figure(rows: pd.DataFrame, provenance: str = "") -> style.Chart:
    """Latency and peak memory against taps and against pixels, with the slope of each line beside it.

    A line has rows that differ in nothing else, with at least three sizes. Its slope in log-log, by least squares, is
    that of its sound rows: 1 is linear growth. ValueError if no line has a slope.
    """
    found = growing(frames.attempted(rows))
    if not found:
        raise ValueError(f"nothing has a slope; expected sound rows at {LEAST_POINTS} footprints or sizes of maps")
    by_axis = {along: [line for line in found if line.along == along] for along in _ALONG}
    by_axis = {along: of_axis for along, of_axis in by_axis.items() if of_axis}
    placed = _with_labels(found)
    with matplotlib.rc_context(style.STYLE):
        most = max(map(len, by_axis.values()))
        height = max(3.7, 0.17 * most)
        figure = style.Chart(figsize=(4.6 * len(by_axis) + 4.2, 2 * height + 1.4), layout="constrained")
        panels = figure.subplots(len(QUANTITIES), len(by_axis), squeeze=False)
        for row, quantity in zip(panels, QUANTITIES, strict=True):
            for axes, (along, of_axis) in zip(row, by_axis.items(), strict=True):
                _panel(axes, of_axis, placed, quantity, along)
        panels[0, -1].legend(handles=lines.legend(placed), loc="upper left", bbox_to_anchor=(1.16, 1.02))
        title = style.title(f"Latency and peak memory against {' and '.join(by_axis)}; slopes in log-log", placed)
        said = "; ".join(_said(line) for line in found)
        alt = f"{counted(len(found), 'line')}. {said}. {findings.extents(placed)}."
        style.finish(figure, title, lines.remarks(figure), provenance, _finding(found), alt)
    return figure


def _with_labels(found: Sequence[Line]) -> pd.DataFrame:
    """All rows, with `setting`, the fields in which lines of one name differ, and `weight`, which is by setting."""
    rows = pd.concat([line.rows for line in found])
    rows = rows[~rows.index.duplicated()]
    setting = frames.settings(rows, ("n", "mode", "dtype", "device", "shape"))
    number, settings = pd.factorize(setting)
    return rows.assign(setting=setting, weight=number / max(1, len(settings) - 1))


def _panel(axes: Axes, of_axis: Sequence[Line], placed: pd.DataFrame, quantity: Quantity, along: str) -> None:
    """The lines of one quantity. Panels are logarithmic on both axes."""
    drawn, ends = [], []
    for line in of_axis:
        rows = line.rows.assign(**{name: placed.loc[line.rows.index, name] for name in ("setting", "weight")})
        rows = rows[rows[quantity.column].notna()]
        if rows.empty:
            continue
        look, values = lines.look_of_line(rows), frames.column_of(rows, quantity)
        drawn.append(marks.plot(axes, rows["x"], values, lines.hollow(rows, quantity), **look))
        if quantity is LATENCY:
            axes.vlines(rows["x"], *lines.interval(rows), color=look["color"], linewidth=1)
        ends.append((float(values.iloc[-1]), _beside(line, quantity), look["color"]))
    scales.log_axis(axes.yaxis)
    scales.log_axis(axes.xaxis)
    axes.set_ylabel(quantity.label.replace("band", "bar"))
    every = pd.concat([line.rows for line in of_axis]).drop_duplicates("x").sort_values("x")
    if along == "taps":
        scales.taps_axis(axes, every)
    else:
        axes.set_xticks(every["x"], [f"{row['h']}×{row['w']}" for _, row in every.iterrows()], rotation=30, ha="right")
        axes.set_xlabel("map or image")
    lines.separate(axes, drawn)
    _write_slopes(axes, ends)


def _beside(line: Line, quantity: Quantity) -> str:
    """`1.02`, or `0.62 (0.71)` with that of the operations if these are not linear; empty without a slope."""
    slope, operations = line.slopes[quantity.column], line.slopes[HARDWARE_FLOPS.column]
    if slope is None:
        return ""
    known = "" if line.is_linear or operations is None else f" ({_written(operations)})"
    return f"{_written(slope)}{known}"


def _written(slope: float) -> str:
    return f"{round(slope, 2) + 0.0:.2f}".replace("-", "−")  # 0.0 makes 0 of −0


def _write_slopes(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """The slopes at the right edge, each at the height of the last value of its line, or near it if two would
    overlap."""
    ends = sorted(end for end in ends if end[1])
    to_share = axes.transScale + axes.transLimits
    heights = [float(to_share.transform((axes.get_xlim()[1], value))[1]) for value, *_ in ends]
    gap = min(_GAP, 1 / max(1, len(ends)))
    for place in range(1, len(ends)):
        heights[place] = max(heights[place], heights[place - 1] + gap)
    for place in range(len(ends) - 1, -1, -1):
        heights[place] = min(heights[place], 1 - gap * (len(ends) - 1 - place))
    for height, (_, slope, colour) in zip(heights, ends, strict=True):
        axes.text(1.015, height, slope, color=colour, transform=axes.transAxes, va="center", fontsize=9)


def _finding(found: Sequence[Line]) -> str:
    """A sentence such as `Where operations grow linearly, the slopes are: latency 0.93 to 1.04 with numba`, or the same
    for all lines if no operations do."""
    linear = [line for line in found if line.is_linear]
    said = []
    for quantity in QUANTITIES:
        by_ran: dict[str, list[float]] = {}
        for line in linear or found:
            slope = line.slopes[quantity.column]
            if slope is not None:
                by_ran.setdefault(line.rows["ran"].iloc[0], []).append(slope)
        parts = [f"{_range(slopes)} with {ran}" for ran, slopes in by_ran.items()]
        said += [f"{quantity.noun} {', '.join(parts)}"] if parts else []
    where = "Where operations grow linearly, the slopes" if linear else "The slopes"
    return f"{where} are: {'; '.join(said)}"


def _range(slopes: Sequence[float]) -> str:
    low, high = _written(min(slopes)), _written(max(slopes))
    return low if low == high else f"{low} to {high}"


def _said(line: Line) -> str:
    """`aggregation, numba, with taps: latency 1.02, peak memory 0.98, operations 1.00`."""
    first = line.rows.iloc[0]
    nouns = {one.column: one.noun for one in QUANTITIES} | {HARDWARE_FLOPS.column: "operations"}
    slopes = [f"{noun} {_written(slope)}" for name, noun in nouns.items() if (slope := line.slopes[name]) is not None]
    return f"{first['name']}, {first['ran']}, with {line.along}: {', '.join(slopes)}"
