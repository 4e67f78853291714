"""Accuracy against cost, and the Pareto front."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import Collection, LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saprof.models.catalogue import MODELS, NamedModel
from saprof.paper.evidence import front
from saprof.plots import findings, frames, looks, marks, scales, style
from saprof.plots.style import STYLE
from saprof.quantities import LATENCY, MEMORY, PAPER_FLOPS, PARAMS, Quantity
from saprof.text import unknown

COSTS = {quantity.column: quantity for quantity in (PAPER_FLOPS, PARAMS, LATENCY, MEMORY)}
"""The quantities that accuracy is drawn against, by the field of rows."""

OF_ROWS = (LATENCY.column, MEMORY.column)
"""Costs that depend on the backend, the mode and the batch."""

Box = Sequence[float]
"""A rectangle: left, bottom, right, top, in pt."""

FONT = 8.5
MARGIN = 1.5
"""The space around a label, in pt."""
POINT = 4.5
"""Half the side of the square that a point covers, in pt."""
AROUND = [(reach, dx, dy) for reach in (1, 2, 3.2, 4.6, 6.2, 8, 10, 13, 17, 22) for dx, dy in (
    (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0), (0.5, 1), (-0.5, 1), (0.5, -1), (-0.5, -1),
)]  # fmt: skip
"""The distances and directions of a label from its point, the best first."""


def accuracy_figure(points: pd.DataFrame, cost: str = "flops_paper", provenance: str = "") -> Figure:
    """The printed accuracy of networks (`saprof.paper.evidence.points`) against one of `COSTS`, with the Pareto front.

    There is a panel per evaluation set, and per mode, batch, dtype and device if the cost depends on them.

    Raises ValueError for another cost, and if no network has both.
    """
    if cost not in COSTS:
        raise ValueError(unknown("cost", cost, list(COSTS)))
    quantity = COSTS[cost]
    label, name = scales.label_of_bars(quantity), quantity.noun
    points = points.dropna(subset=[cost, "top1"])
    if points.empty:
        raise ValueError(f"no network has both {name} and an accuracy that SAN or SASA prints (at 224×224)")
    points = points.assign(cost=frames.column_of(points, quantity), ran=frames.who(points), label=_labels(points))
    points["hollow"] = frames.doubtful(points) & (cost == LATENCY.column)
    apart = ["evaluation_set", *(("mode", "n", "dtype", "device") if cost in OF_ROWS else ())]
    if cost not in OF_ROWS:
        points = points.drop_duplicates(["name", "relation", "footprint", "evaluation_set"]).assign(ran="")
    panels = list(points.groupby(apart, sort=False))
    with matplotlib.rc_context(STYLE):
        lines, columns = -(-len(panels) // 2), min(2, len(panels))
        figure = style.Chart(figsize=(7.4 * columns + 2.2, 5.4 * lines + 0.7), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, (_, panel) in zip(grid.flat, panels, strict=False):
            _draw(axes, panel, cost)
            scales.linear_axis(axes.yaxis)
            judged = panel["evaluation_set"].iloc[0]
            axes.set(xlabel=label, ylabel=f"top-1 accuracy in the paper, %\n(ImageNet {judged})")
            axes.set_title(", ".join(_settings(panel, points)))
            axes.set_title(" ", loc="right", fontsize=FONT)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        handles = _legend(points, fronts=any(_best(panel).sum() > 1 for _, panel in panels))
        grid[0, -1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.02))
        sources = "; ".join(points["source"].unique())
        notes = [f"Accuracies are those that the paper prints, not measured here: {sources}"]
        notes += ["Doubtful points are not part of the front"] if points["hollow"].any() else []
        found, alt = _finding([panel for _, panel in panels], name), _alt(points, quantity)
        style.finish(figure, f"Accuracy against {name}", notes, provenance, found, alt)
        figure.draw_without_rendering()
        for axes, (_, panel) in zip(grid.flat, panels, strict=False):
            if left := _write_labels(axes, panel):
                axes.set_title(f"{left} labels have no room", loc="right", fontsize=FONT)
    return figure


def _best(panel: pd.DataFrame) -> pd.Series:
    """The points of the front: sound ones that no other sound point beats."""
    sound = panel[~panel["hollow"]]
    return front(sound, ["cost"]).reindex(panel.index, fill_value=False) if len(sound) else panel["hollow"] & False


def _finding(panels: Sequence[pd.DataFrame], name: str) -> str:
    """The families on the front of each panel."""
    said: dict[str, list[str]] = {}
    for panel in panels:
        if one := findings.of_front(panel[_best(panel)], panel):
            said.setdefault(one, []).append(f"ImageNet {panel['evaluation_set'].iloc[0]}")
    several = len(panels) > 1 and len(said) > 1
    texts = [one + f" ({', '.join(dict.fromkeys(sets))})" * several for one, sets in said.items()]
    return f"Against {name}, {'; '.join(texts)}" if texts else ""


def _alt(points: pd.DataFrame, quantity: Quantity) -> str:
    ends = [points.loc[points["cost"].idxmin()], points.loc[points["cost"].idxmax()]]
    spelled = [f"{scales.plain(end['cost'])} {quantity.unit} and {end['top1']} % ({end['label']})" for end in ends]
    many = int(points["hollow"].sum())
    return (
        f"Chart of printed top-1 accuracy against {quantity.noun}, {len(points)} points from {spelled[0]} to "
        f"{spelled[1]}, with the Pareto front." + (f" {many} points are doubtful, drawn hollow." if many else "")
    )


def _labels(points: pd.DataFrame) -> pd.Series:
    """A label such as `SAN15 7×7 summation`. It has the network, footprint and relation if the family of the point has
    several of them, and the relation if it is not the usual one."""
    several = points.groupby("family")[["name", "footprint"]].transform("nunique") > 1
    models = points["name"].map(MODELS)
    network = models.map(_short)
    footprint = points["footprint"].map(frames.footprint_label)
    relation = points["relation"].fillna("")
    usual = relation == models.map(lambda model: model.relation)
    parts = [
        network.where(several["name"] | ~several["footprint"], ""),
        footprint.where(several["footprint"], ""),
        relation.str.replace("_", " ").where(~usual, ""),
    ]
    return pd.concat(parts, axis=1).agg(lambda words: " ".join(filter(None, words)), axis=1)


def _short(model: NamedModel) -> str:
    """`SAN10`, `SASA50 conv stem`."""
    return f"{model.architecture}{model.depth or ''}{' conv stem' if model.convolution_stem else ''}"


def _settings(panel: pd.DataFrame, points: pd.DataFrame) -> list[str]:
    """The settings of a panel that differ between panels."""
    worded = {"mode": "{}", "n": "n = {}", "dtype": "{}", "device": "{}", "evaluation_set": "ImageNet {}"}
    return [text.format(panel[name].iloc[0]) for name, text in worded.items() if points[name].nunique() > 1]


def _draw(axes: Axes, panel: pd.DataFrame, cost: str) -> None:
    """Draw the front as stairs, a point per line of the table, and the interval of a latency."""
    best = panel[_best(panel)].sort_values("cost")
    if len(best) > 1:
        axes.step(best["cost"], best["top1"], where="post", color="0.6", linewidth=5, alpha=0.35, label="Pareto front")
    for _, point in panel.iterrows():
        look = looks.look_of_family(point["family"])
        marker = looks.marker_of(point["ran"]) if point["ran"] else look.marker
        mark = {"color": look.colour, "marker": marker, "linestyle": "none", "label": point["label"]}
        marks.plot(axes, [point["cost"]], [point["top1"]], [point["hollow"]], **mark)
        if cost == "latency_s":
            low, high = (LATENCY.in_unit(point[f"latency_{bound}_s"]) for bound in ("low", "high"))
            axes.hlines(point["top1"], low, high, color=look.colour, linewidth=1)
    scales.log_axis(axes.xaxis) if cost in OF_ROWS else scales.linear_axis(axes.xaxis)
    axes.margins(0.12, 0.14)
    axes.grid(visible=True)


def _write_labels(axes: Axes, panel: pd.DataFrame) -> int:
    """Place each label as near to its point as possible, without covering a point, an interval or another label, those
    of the front first. A thin line connects distant labels. Returns the number of labels for which there is no room;
    they are left out."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    per_pt = figure.dpi / 72
    places = axes.transData.transform(panel[["cost", "top1"]].to_numpy(float)) / per_pt
    inside = list(axes.get_window_extent().extents / per_pt)
    taken = [(x - POINT, y - POINT, x + POINT, y + POINT) for x, y in places]
    taken += [box for line in axes.collections for box in _boxes(axes, line, per_pt)]
    order = np.argsort(~_best(panel).to_numpy(bool), kind="stable")
    left, leaders = 0, []
    for number in order:
        point, (x, y) = panel.iloc[number], places[number]
        text = axes.annotate(
            point["label"],
            (point["cost"], point["top1"]),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=FONT,
            color=looks.look_of_family(point["family"]).colour,
        )
        text.set_in_layout(False)
        extent = text.get_window_extent()
        half = extent.width / per_pt / 2 + MARGIN, extent.height / per_pt / 2 + MARGIN
        found = _room((x, y), half, inside, taken)
        if found is None:
            text.remove()
            left += 1
            continue
        reach, dx, dy = found
        text.set_position((dx, dy))
        taken.append((x + dx - half[0], y + dy - half[1], x + dx + half[0], y + dy + half[1]))
        if reach > 1:
            end = np.clip((x, y), np.subtract((x + dx, y + dy), half), np.add((x + dx, y + dy), half))
            leaders.append(axes.transData.inverted().transform(np.array([(x, y), end]) * per_pt))
    axes.add_collection(LineCollection(leaders, colors="0.7", linewidths=0.6, zorder=1), autolim=False)
    return left


def _room(
    at: tuple[float, float], half: tuple[float, float], inside: Box, taken: Sequence[Box]
) -> tuple[float, float, float] | None:
    """The first free place around a point: its reach, and its offset in pt."""
    for reach, dx, dy in AROUND:
        right, up = dx * (half[0] + POINT) * min(reach, 2.4), dy * (half[1] + POINT) * reach
        box = (at[0] + right - half[0], at[1] + up - half[1], at[0] + right + half[0], at[1] + up + half[1])
        if _within(box, inside) and not any(_overlap(box, other) for other in taken):
            return reach, right, up
    return None


def _boxes(axes: Axes, line: Collection, per_pt: float) -> list[Box]:
    """The boxes that the intervals of latencies cover."""
    found = []
    for path in line.get_paths():
        (left, low), (right, high) = axes.transData.transform(path.vertices)[[0, -1]] / per_pt
        found.append((left, low - 1, right, high + 1))
    return found


def _within(box: Box, outer: Box) -> bool:
    return box[0] >= outer[0] and box[1] >= outer[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _legend(points: pd.DataFrame, fronts: bool) -> list[Line2D]:
    """The legend of families, of what computed them, of hollow points, and of the front."""
    handles = []
    several = points["ran"].any()
    for family in points["family"].unique():
        look = looks.look_of_family(family)
        mark = {"marker": "", "linewidth": 7} if several else {"marker": look.marker, "linestyle": "none"}
        handles.append(Line2D([], [], color=look.colour, label=family.replace("_", "-"), **mark))
    for ran in points["ran"].unique() if several else ():
        handles.append(Line2D([], [], color="0.4", marker=looks.marker_of(ran), linestyle="none", label=ran))
    handles += marks.legend_of_doubtful(points[points["hollow"]])
    stairs = {"color": "0.6", "linewidth": 5, "alpha": 0.35, "label": "Pareto front"}
    return [*handles, Line2D([], [], **stairs)] if fronts else handles
