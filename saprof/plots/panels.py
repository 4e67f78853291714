"""Latency and memory of every backend, with a panel per operator or network."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from itertools import zip_longest

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from saprof.plots import findings, frames, lines, looks, marks, scales, style
from saprof.plots.style import STYLE
from saprof.quantities import LATENCY, MEMORY, Quantity


def latency_figure(rows: pd.DataFrame, provenance: str = "") -> Figure:
    """Latency of every backend against the footprint, with a panel per operator or network and mode. The axis is the
    map if there is one footprint per map, and the names if there is only one of both.

    Raises ValueError if no row has a latency.
    """
    return _panels(rows, "Latency", LATENCY, provenance)


def memory_figure(rows: pd.DataFrame, provenance: str = "") -> Figure:
    """The same for peak memory. Raises ValueError if none was measured."""
    return _panels(rows, "Peak memory", MEMORY, provenance)


def _panels(rows: pd.DataFrame, what: str, quantity: Quantity, provenance: str) -> Figure:
    rows = frames.attempted(rows, quantity.column)
    axis = lines.across(rows)
    rows = lines.place(rows, axis, apart=("mode",))
    title = style.title(f"{what} {lines.AGAINST[axis]}".strip(), rows)
    found = (findings.of_speed(rows) or findings.of_growth(rows)) if quantity is LATENCY else findings.of_memory(rows)
    alt = f"Charts of {findings.extent(rows, quantity)}."
    with matplotlib.rc_context(STYLE):
        figure = (_over_names if axis == "name" else _over_places)(rows, axis, quantity)
        style.finish(figure, title, lines.remarks(figure) + style.notes(rows), provenance, found, alt)
    return figure


def _over_places(rows: pd.DataFrame, axis: str, quantity: Quantity) -> Figure:
    """One panel per name and mode, with a line per backend and setting."""
    groups = [group for _, group in rows.groupby(["name", "mode"], sort=False)]
    columns = min(3, len(groups))
    down = -(-len(groups) // columns)
    figure = style.Chart(figsize=(max(4.1 * columns, 7) + 1.8, 3.3 * down + 1.2), layout="constrained")
    panels = figure.subplots(down, columns, squeeze=False, sharey=rows["kind"].nunique() == 1)
    separated = []
    for axes, group, below in zip_longest(panels.flat, groups, groups[columns:]):
        if group is None:
            axes.remove()
            continue
        drawn = []
        for _, line in group.groupby(["ran", "setting"], sort=False):
            look = looks.look_of(line["ran"].iloc[0]) | lines.weight(line)
            drawn.append(lines.draw(axes, line, quantity, look))
        if axis == "footprint":
            scales.log_axis(axes.xaxis)
            axes.grid(visible=False, axis="x")
        lines.label_across(axes, group, axis)
        axes.set_xlabel(axes.get_xlabel() if below is None else "")
        axes.set_title(_panel_title(group["name"].iloc[0], group, rows))
        scales.log_axis(axes.yaxis)
        separated.append((axes, drawn))
    for axes, drawn in separated:  # panels share an axis, so this waits for the last one
        lines.separate(axes, drawn)
    figure.supylabel(quantity.label, fontsize=11, color="0.15")
    handles = lines.legend_of_rans(rows, doubts=quantity is LATENCY)
    panels[0, min(columns, len(groups)) - 1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.02))
    return figure


def _over_names(rows: pd.DataFrame, axis: str, quantity: Quantity) -> Figure:
    """One panel per kind and mode, with a line for each name and a mark per backend and setting."""
    groups = [group for _, group in rows.groupby(["kind", "mode"], sort=False)]
    heights = [group["name"].nunique() + 2 for group in groups]
    figure = style.Chart(figsize=(10.5, 0.34 * sum(heights) + 1.2), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        names, drawn = list(group["name"].unique()), []
        for _, line in group.groupby(["ran", "setting"], sort=False):
            look = looks.look_of(line["ran"].iloc[0]) | lines.weight(line) | {"linestyle": "none"}
            line = line.assign(x=frames.column_of(line, quantity), y=line[axis].map(names.index))
            look["label"] = line["series"].iloc[0]
            drawn.append(marks.plot(axes, line["x"], line["y"], lines.hollow(line, quantity), **look))
            lines.mark_failed(axes, line["y"][line["latency_s"].isna()], look["color"], across=True)
        if quantity is LATENCY:
            axes.hlines(group[axis].map(names.index), *lines.interval(group), color="0.6", linewidth=1.2, zorder=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(visible=True, axis="y")
        kind = {"model": "Networks", "operator": "Operators"}[group["kind"].iloc[0]]
        axes.set(xlabel=scales.label_of_bars(quantity), title=_panel_title(kind, group, rows))
        scales.log_axis(axes.xaxis)
        lines.separate(axes, drawn, across=True)
    handles = lines.legend_of_rans(rows, doubts=quantity is LATENCY)
    panels[0].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.02))
    return figure


def _panel_title(what: str, group: pd.DataFrame, rows: pd.DataFrame) -> str:
    return f"{what}, {group['mode'].iloc[0]}" if rows["mode"].nunique() > 1 else what
