"""Accuracy against cost, and the Pareto front."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saprof.models.catalogue import MODELS
from saprof.paper.evidence import front
from saprof.plots import style
from saprof.plots.style import STYLE
from saprof.quantities import LATENCY, MEMORY, PAPER_FLOPS, PARAMS
from saprof.records.rows import DOUBTFUL
from saprof.text import unknown

COSTS = {quantity.column: quantity for quantity in (PAPER_FLOPS, PARAMS, LATENCY, MEMORY)}
"""The quantities that accuracy is drawn against, by the field of rows."""

OF_ROWS = (LATENCY.column, MEMORY.column)
"""Costs that depend on the backend, the mode and the batch."""

FONT = 8.5
AROUND = [(reach, dx, dy) for reach in (1, 2, 3.2, 4.6) for dy, dx in product((1, -1, 0), (1, -1, 0)) if dx or dy]
"""The distances and directions of a label from its point, the best first."""


def accuracy_figure(points: pd.DataFrame, cost: str = "flops_paper", provenance: str = "") -> Figure:
    """The printed accuracy of networks (`saprof.paper.evidence.points`) against one of `COSTS`, with the Pareto front.

    There is a panel per evaluation set, and per mode, batch, dtype and device if the cost depends on them.

    Raises ValueError for another cost, and if no network has both.
    """
    if cost not in COSTS:
        raise ValueError(unknown("cost", cost, list(COSTS)))
    quantity = COSTS[cost]
    label, name = style.label_of_bars(quantity), quantity.noun
    points = points.dropna(subset=[cost, "top1"])
    if points.empty:
        raise ValueError(f"no network has both {name} and an accuracy that SAN prints (at 224×224)")
    points = points.assign(cost=style.column_of(points, quantity), ran=style.who(points), label=_labels(points))
    if cost == "latency_s":
        points["label"] += points["status"].isin(DOUBTFUL).map({True: "*", False: ""})
    apart = ["evaluation_set", *(("mode", "n", "dtype", "device") if cost in OF_ROWS else ())]
    if cost not in OF_ROWS:
        points = points.drop_duplicates(["name", "relation", "footprint", "evaluation_set"]).assign(ran="")
    panels = list(points.groupby(apart, sort=False))
    with matplotlib.rc_context(STYLE):
        lines, columns = -(-len(panels) // 2), min(2, len(panels))
        figure = Figure(figsize=(7.4 * columns + 2.2, 5.4 * lines + 0.7), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, (_, panel) in zip(grid.flat, panels, strict=False):
            _draw(axes, panel, cost)
            judged = panel["evaluation_set"].iloc[0]
            axes.set(xlabel=label, ylabel=f"top-1 accuracy in the paper, %\n(ImageNet {judged})")
            axes.set_title(", ".join(_settings(panel, points)))
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        grid[0, -1].legend(handles=_legend(points), loc="upper left", bbox_to_anchor=(1.02, 1.02))
        title = f"Accuracy against {name}"
        sources = "; ".join(points["source"].unique())
        notes = [f"Accuracies are those that the paper prints, not measured here: {sources}"]
        notes += ["* unstable or contended"] if points["label"].str.endswith("*").any() else []
        style.finish(figure, title, notes, provenance)
        figure.draw_without_rendering()
        for axes, (_, panel) in zip(grid.flat, panels, strict=False):
            _write_labels(axes, panel)
    return figure


def _labels(points: pd.DataFrame) -> pd.Series:
    """A label such as `SAN15 7×7 summation`. It has the network, footprint and relation if the family of the point has
    several of them, and the relation if it is not the usual one."""
    several = points.groupby("family")[["name", "footprint"]].transform("nunique") > 1
    models = points["name"].map(MODELS)
    network = models.map(lambda model: f"{model.architecture}{model.depth or ''}")
    footprint = points["footprint"].map(style.footprint_label)
    relation = points["relation"].fillna("")
    usual = relation == models.map(lambda model: model.relation)
    parts = [
        network.where(several["name"] | ~several["footprint"], ""),
        footprint.where(several["footprint"], ""),
        relation.str.replace("_", " ").where(~usual, ""),
    ]
    return pd.concat(parts, axis=1).agg(lambda words: " ".join(filter(None, words)), axis=1)


def _settings(panel: pd.DataFrame, points: pd.DataFrame) -> list[str]:
    """The settings of a panel that differ between panels."""
    worded = {"mode": "{}", "n": "n = {}", "dtype": "{}", "device": "{}", "evaluation_set": "ImageNet {}"}
    return [text.format(panel[name].iloc[0]) for name, text in worded.items() if points[name].nunique() > 1]


def _draw(axes: Axes, panel: pd.DataFrame, cost: str) -> None:
    """Draw the front as stairs, a point per line of the table, and the interval of a latency."""
    best = panel[front(panel, ["cost"])].sort_values("cost")
    if len(best) > 1:
        axes.step(best["cost"], best["top1"], where="post", color="0.6", linewidth=5, alpha=0.35, label="Pareto front")
    for _, point in panel.iterrows():
        look = style.look_of_family(point["family"])
        ran = style.line_of(point["ran"] or "torch") | {"linestyle": "none"}
        axes.plot([point["cost"]], [point["top1"]], look.marker, color=look.colour, label=point["label"], **ran)
        if cost == "latency_s":
            low, high = (LATENCY.in_unit(point[f"latency_{bound}_s"]) for bound in ("low", "high"))
            axes.hlines(point["top1"], low, high, color=look.colour, linewidth=1)
    if cost in OF_ROWS:
        style.log_axis(axes.xaxis)
    axes.margins(0.12, 0.14)
    axes.grid(visible=True)


def _write_labels(axes: Axes, panel: pd.DataFrame) -> None:
    """Place each label as near to its point as possible without covering a point or another label. A thin line connects
    distant labels."""
    per_pt = axes.figure.dpi / 72
    places = axes.transData.transform(panel[["cost", "top1"]].to_numpy(float)) / per_pt
    inside = axes.get_window_extent().extents / per_pt
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for (x, y), (_, point) in zip(places, panel.iterrows(), strict=True):
        half = 0.33 * FONT * len(point["label"]) + 1, 0.62 * FONT
        offsets = [(dx * (half[0] + 5) * min(reach, 1.6), dy * (half[1] + 5) * reach) for reach, dx, dy in AROUND]
        boxes = [(x + dx - half[0], y + dy - half[1], x + dx + half[0], y + dy + half[1]) for dx, dy in offsets]
        free = [i for i, box in enumerate(boxes) if _within(box, inside) and not any(_overlap(box, t) for t in taken)]
        best = free[0] if free else 0
        taken.append(boxes[best])
        text = axes.annotate(
            point["label"],
            (point["cost"], point["top1"]),
            offsets[best],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=FONT,
            color=style.look_of_family(point["family"]).colour,
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6} if AROUND[best][0] > 1 else None,
        )
        text.set_in_layout(False)


Box = Sequence[float]
"""A rectangle: left, bottom, right, top, in pt."""


def _within(box: Box, outer: Box) -> bool:
    return box[0] >= outer[0] and box[1] >= outer[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _legend(points: pd.DataFrame) -> list[Line2D]:
    """The legend of families, of what computed them, and of the front."""
    handles = []
    for family in points["family"].unique():
        look = style.look_of_family(family)
        marks = {"color": look.colour, "marker": look.marker, "linestyle": "none"}
        handles.append(Line2D([], [], label=family.replace("_", "-"), **marks))
    for ran in points["ran"].unique() if points["ran"].any() else ():
        look = style.line_of(ran) | {"linestyle": "none"}
        handles.append(Line2D([], [], color="0.4", marker="o", label=ran, **look))
    return [*handles, Line2D([], [], color="0.6", linewidth=5, alpha=0.35, label="Pareto front")]
