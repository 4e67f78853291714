"""The cost of a footprint: operations, parameters, latency and memory against its taps."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saprof.models.catalogue import MODELS
from saprof.paper.printed import PaperRow
from saprof.paper.printed import rows as paper_rows
from saprof.plots import findings, frames, lines, looks, scales, style
from saprof.plots.lines import AGAINST
from saprof.plots.style import STYLE
from saprof.quantities import HARDWARE_FLOPS, LATENCY, MEMORY, PAPER_FLOPS, PARAMS, Quantity

OPERATIONS = {"model": PAPER_FLOPS, "operator": HARDWARE_FLOPS}
"""The field in the first panel of the overview, for each kind."""

TABLE_7 = "SAN Table 7, as printed"


def footprint_figure(rows: pd.DataFrame, provenance: str = "") -> Figure:
    """Operations, latency and peak memory against the footprint; networks above, operators below. If there is one
    footprint per map, the axis is the map.

    Raises ValueError if no row has both a footprint and a latency.
    """
    rows = frames.attempted(lines.with_footprint(rows), "latency_s")
    axis = "map" if lines.across(rows) == "map" else "footprint"
    kinds = [kind for kind in ("model", "operator") if (rows["kind"] == kind).any()]
    with matplotlib.rc_context(STYLE):
        figure = style.Chart(figsize=(15.5, 4.5 * len(kinds) + 0.8), layout="constrained")
        grid = figure.subplots(len(kinds), 3, squeeze=False)
        for kind, panels in zip(kinds, grid, strict=True):
            of_kind = lines.place(rows[rows["kind"] == kind], axis)
            _draw_kind(panels, of_kind, OPERATIONS[kind])
            printed = _printed(of_kind) if kind == "model" and axis == "footprint" else []
            handles = lines.legend(of_kind) + _mark_printed(panels[0], printed, "flops_G")
            panels[-1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.02))
            panels[0].set_title({"model": "Networks", "operator": "Operators"}[kind])
            for axes in panels:
                lines.label_across(axes, of_kind, axis)
        title = style.title(f"Cost, latency and memory {AGAINST[axis]}", rows)
        found = findings.of_growth(rows) if axis == "footprint" else findings.of_speed(rows)
        alt = f"Charts of operations, latency and memory: {findings.extents(rows)}."
        style.finish(figure, title, lines.remarks(figure) + style.notes(rows), provenance, found, alt)
    return figure


def cost_figure(rows: pd.DataFrame, provenance: str = "") -> Figure:
    """FLOPs and parameters of networks against the footprint, with the figures that SAN Table 7 prints.

    Raises ValueError if no network with a footprint was counted.
    """
    rows = rows[rows["kind"] == "model"].dropna(subset=["taps", "flops_paper", "params"])
    if rows.empty:
        raise ValueError("no network with a footprint was counted; give --model and --footprint to the sweep")
    rows = rows.drop_duplicates(["name", "footprint", "h", "w"])
    rows = lines.place(rows, "footprint")
    with matplotlib.rc_context(STYLE):
        figure = style.Chart(figsize=(12.5, 4.6), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, quantity in zip(panels, (PAPER_FLOPS, PARAMS), strict=True):
            _draw_costs(axes, rows, quantity)
            lines.label_across(axes, rows, "footprint")
        _mark_printed(panels[0], _printed(rows), "flops_G")
        handles = lines.legend_of_names(rows) + _mark_printed(panels[1], _printed(rows), "params_M")
        panels[1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.02))
        title = "FLOPs and parameters of networks against the footprint"
        alt = f"Charts of {findings.extent(rows, PAPER_FLOPS)}; {findings.extent(rows, PARAMS)}."
        style.finish(figure, title, lines.remarks(figure), provenance, findings.of_costs(rows), alt)
    return figure


def _draw_kind(panels: Sequence[Axes], rows: pd.DataFrame, operations: Quantity) -> None:
    """The overview of networks, or of operators: operations, latency, memory."""
    _draw_costs(panels[0], rows, operations)
    for axes, quantity in zip(panels[1:], (LATENCY, MEMORY), strict=True):
        groups = [line for _, line in rows.groupby(["name", "series"], sort=False)]
        drawn = [lines.draw(axes, line, quantity, lines.look_of_line(line)) for line in groups]
        scales.log_axis(axes.yaxis)
        lines.separate(axes, drawn)
        axes.set_ylabel(quantity.label)


def _draw_costs(axes: Axes, rows: pd.DataFrame, quantity: Quantity) -> None:
    """One line per name and setting. Costs are counted: they depend neither on the backend nor on the machine."""
    drawn = []
    for (name, _), line in rows.dropna(subset=[quantity.column]).groupby(["name", "setting"], sort=False):
        line = line.drop_duplicates("x").sort_values("x")
        look = looks.look(name)
        own = {"color": look.colour, "marker": look.marker} | lines.weight(line)
        drawn.append(axes.plot(line["x"], frames.column_of(line, quantity), label=name, **own))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(quantity.label)
    scales.linear_axis(axes.yaxis)
    lines.separate(axes, drawn)


def _printed(rows: pd.DataFrame) -> list[PaperRow]:
    """The rows of Table 7 about the drawn networks. The table is about images of 224 × 224."""
    drawn = [MODELS[name] for name in rows.loc[rows["h"] == 224, "name"].unique() if name in MODELS]
    networks = {(model.base, model.relation) for model in drawn}
    return [row for row in paper_rows(7) if (MODELS[row.model].base, MODELS[row.model].relation) in networks]


def _mark_printed(axes: Axes, printed: Sequence[PaperRow], field: str) -> list[Line2D]:
    """Draw the printed values as grey squares behind the points; returns the handle for the legend."""
    if not printed:
        return []
    mark = {"marker": "s", "markersize": 13, "linestyle": "none", "color": "0.82"}
    taps = [int(row.setting or 0) ** 2 for row in printed]
    axes.plot(taps, [getattr(row, field) for row in printed], label=TABLE_7, zorder=1, **mark)
    return [Line2D([], [], label=TABLE_7, **mark)]
