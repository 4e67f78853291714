"""An explorer of recorded rows for JupyterLab: the plot shows the chosen operators, footprints, backends and metric."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saprof.measure.cells import MODES
from saprof.plots import style
from saprof.quantities import HARDWARE_FLOPS, LATENCY, MACS, MEMORY, PAPER_MFLOPS, PARAMS, SAVED, Quantity
from saprof.text import unknown

METRICS = {
    quantity.column: quantity for quantity in (LATENCY, MEMORY, SAVED, MACS, PAPER_MFLOPS, HARDWARE_FLOPS, PARAMS)
}
"""The metrics that can be drawn, by the field of rows."""
STRENGTH = dict(zip(MODES, (1.0, 0.7, 0.45, 0.45), strict=True))
"""The opacity of a line, by mode."""


def metric_figure(rows: pd.DataFrame, metric: str = "latency_s", provenance: str = "") -> Figure:
    """One metric against the footprint, a line per name, backend and mode.

    Raises ValueError for an unknown metric, or one that no row has.
    """
    if metric not in METRICS:
        raise ValueError(unknown("metric", metric, [*METRICS]))
    drawn = rows.dropna(subset=["taps", metric])
    if drawn.empty:
        raise ValueError(f"no row has a footprint and {metric}; expected others, or another metric")
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        axes = figure.subplots()
        for (name, ran, mode), line in drawn.groupby(["name", style.who(drawn), "mode"], sort=False):
            look = style.look(name)
            style_of_line = style.line_of(ran) | {"color": look.colour, "marker": look.marker, "alpha": STRENGTH[mode]}
            _draw(axes, line.sort_values("taps"), METRICS[metric], style_of_line | {"label": f"{name}, {ran}, {mode}"})
        style.log_axis(axes.yaxis)
        style.taps_axis(axes, drawn)
        axes.set_ylabel(METRICS[metric].label)
        figure.legend(loc="outside right upper")
        style.finish(
            figure,
            style.title(f"{METRICS[metric].label.partition(',')[0]} against the footprint", drawn),
            [],
            provenance,
        )
    return figure


def _draw(axes: Axes, line: pd.DataFrame, quantity: Quantity, style_of_line: dict[str, Any]) -> None:
    axes.plot(line["taps"], style.column_of(line, quantity), **style_of_line)
    if quantity is LATENCY:
        low, high = (quantity.in_unit(line[f"latency_{bound}_s"].astype(float)) for bound in ("low", "high"))
        axes.fill_between(line["taps"], low, high, color=style_of_line["color"], alpha=0.15, linewidth=0)


def explorer(runs: Mapping[str, tuple[pd.DataFrame, str]]) -> Any:
    """A widget over named runs, each a table of rows with its provenance; it needs ipywidgets.

    Every choice redraws the plot. If nothing can be drawn, the reason is shown instead.
    """
    import ipywidgets
    from IPython.display import display

    run = ipywidgets.Dropdown(options=list(runs), description="run")
    picks = {column: ipywidgets.SelectMultiple(description=column, rows=8) for column in PICKED}
    metric = ipywidgets.Dropdown(
        options=[(quantity.label, name) for name, quantity in METRICS.items()], description="metric"
    )
    plot = ipywidgets.Output()

    def draw(_: object = None) -> None:
        rows, caption = runs[run.value]
        for column, pick in picks.items():
            rows = rows[rows[column].isin(pick.value)]
        plot.clear_output(wait=True)
        with plot:
            try:
                display(metric_figure(rows, metric.value, caption))
            except ValueError as error:
                print(error)

    def offer(_: object = None) -> None:
        """Offer the choices of the run. At first two names are chosen, and all values of the other columns."""
        rows, _caption = runs[run.value]
        for column, pick in picks.items():
            pick.unobserve(draw, "value")
            pick.options = _in_order(rows, column)
            pick.value = pick.options[:2] if column == "name" else pick.options
            pick.observe(draw, "value")
        draw()

    for control in picks.values():
        control.observe(draw, "value")
    metric.observe(draw, "value")
    run.observe(offer, "value")
    offer()
    controls = ipywidgets.VBox([run, metric, *picks.values()])
    return ipywidgets.HBox([controls, plot])


PICKED = ("name", "footprint", "backend", "mode")
"""The columns by which rows are picked."""


def _in_order(rows: pd.DataFrame, column: str) -> Sequence[str]:
    """The values of a column; footprints are sorted by taps."""
    rows = rows.dropna(subset=["taps"])
    return tuple((rows.sort_values("taps") if column == "footprint" else rows)[column].unique())
