"""The cost of a footprint's shape: latency and memory over footprints, with equally many taps side by side."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saprof.plots import findings, frames, lines, looks, marks, scales, style
from saprof.plots.style import STYLE
from saprof.quantities import LATENCY, MEMORY, Quantity


def shapes_figure(rows: pd.DataFrame, provenance: str = "") -> Figure:
    """Latency above and peak memory below, with a column per operator or network and a line per footprint, sorted by
    taps.

    Raises ValueError if no row has both a footprint and a latency.
    """
    rows = frames.attempted(lines.with_footprint(rows), "latency_s")
    rows = lines.place(rows, "footprint", apart=("shape",)).sort_values("taps", kind="stable")
    names = list(rows.sort_index()["name"].unique())
    footprints = list(rows["footprint"].unique())
    rows = rows.assign(y=rows["footprint"].map(footprints.index))
    with matplotlib.rc_context(STYLE):
        size = (3.1 * len(names) + 3.6, 2 * (0.3 * len(footprints) + 0.9) + 0.9)
        figure = style.Chart(figsize=size, layout="constrained")
        panels = figure.subplots(2, len(names), squeeze=False, sharey=True, sharex="row")
        drawn = []
        for quantity, above in zip((LATENCY, MEMORY), panels, strict=True):
            for name, axes in zip(names, above, strict=True):
                drawn.append((axes, _draw(axes, rows[rows["name"] == name], quantity)))
                axes.set_title(name if quantity is LATENCY else "")
            scales.log_axis(above[0].xaxis)
            for axes in above:
                axes.grid(visible=True, axis="x")
                axes.tick_params(axis="x", labelsize=9)
            above[len(names) // 2].set_xlabel(scales.label_of_bars(quantity))
        _label_footprints(panels[0, 0], rows)
        for axes, series in drawn:
            lines.separate(axes, series, across=True)
        panels[0, -1].legend(handles=lines.legend_of_rans(rows), loc="upper left", bbox_to_anchor=(1.02, 1.02))
        title = style.title("Latency and peak memory at equally many taps", rows)
        alt = f"Charts of {findings.extents(rows)}."
        found = findings.of_shapes(rows)
        style.finish(figure, title, lines.remarks(figure) + style.notes(rows), provenance, found, alt)
    return figure


def _draw(axes: Axes, rows: pd.DataFrame, quantity: Quantity) -> list[lines.Series]:
    """Draw a mark per footprint, backend and setting. Latencies have their interval."""
    drawn = []
    for _, line in rows.groupby(["ran", "setting"], sort=False):
        look = looks.look_of(line["ran"].iloc[0]) | lines.weight(line) | {"linestyle": "none"}
        line = line.assign(x=frames.column_of(line, quantity))
        drawn.append(marks.plot(axes, line["x"], line["y"], lines.hollow(line, quantity), **look))
        lines.mark_failed(axes, line["y"][line["latency_s"].isna()], look["color"], across=True)
        if quantity is LATENCY:
            axes.hlines(line["y"], *lines.interval(line), color=look["color"], linewidth=1.2)
    return drawn


def _label_footprints(axes: Axes, rows: pd.DataFrame) -> None:
    """The names of the footprints. Where the number of taps changes, it is in the name, with a line above."""
    first = rows.drop_duplicates("footprint")
    begins = first["taps"].diff() != 0
    labels = [
        f"{taps} taps   {frames.footprint_label(footprint)}" if begin else frames.footprint_label(footprint)
        for footprint, taps, begin in zip(first["footprint"], first["taps"], begins, strict=True)
    ]
    axes.set_yticks(first["y"], labels)
    axes.set_ylim(len(first) - 0.4, -0.6)
    for panel in axes.figure.axes:
        for y in first["y"][begins][1:]:
            panel.axhline(y - 0.5, color="0.8", linewidth=1)
