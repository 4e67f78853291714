"""Icicles of profiles as a matplotlib figure, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from saprof.plots.icicle import MEASURES, TIME, Box, Measure, boxes, finding, is_doubtful, scale_of
from saprof.plots.layer_kinds import COLOURS, MODULE, SPELLED
from saprof.plots.marks import HOLLOW
from saprof.plots.scales import linear_axis
from saprof.plots.style import STYLE, Chart, finish
from saprof.quantities import digits
from saprof.records.profiles import Profile

WIDTH, LEGEND = 12.0, 2.9
"""The width of the icicles and of the legend, in inches."""
LEVEL = 0.19
"""The height of a box, in inches."""
LETTER = 0.066
"""The width of a letter of a label, in inches."""


def icicle_figure(profiles: Sequence[Profile], measure: Measure = MEASURES[0], provenance: str = "") -> Figure:
    """Icicles of one measure as a figure, one below the other on one scale. Parts that were timed apart are hatched.
    `provenance` is the text at the bottom. Raises ValueError if no profile has the measure.
    """
    scale = scale_of(profiles, measure)
    if not scale:
        raise ValueError(f"no profile has {measure.title.lower()}; expected a measure that was measured")
    found = [boxes(one, measure) for one in profiles]
    levels = [1 + max(one.level for one in of) for of in found]
    with matplotlib.rc_context(STYLE):
        figure = Chart(figsize=(WIDTH + LEGEND, LEVEL * sum(levels) + 0.55 * len(levels) + 1.5), layout="constrained")
        panels = figure.subplots(len(found), 1, squeeze=False, height_ratios=levels)[:, 0]
        for axes, one, of, deep in zip(panels, profiles, found, levels, strict=True):
            _draw(
                axes, of, measure.value(one.whole) / measure.per_unit, WIDTH * measure.per_unit / scale, measure is TIME
            )
            axes.set_title(f"{one.network.name}: {finding(one, measure)}")
            axes.set(xlim=(0, scale / measure.per_unit), ylim=(deep, 0), yticks=[])
            axes.spines["left"].set_visible(False)
            linear_axis(axes.xaxis)
            axes.grid(visible=False)
        panels[-1].set_xlabel(measure.unit)
        kinds = [name for name in COLOURS if any(box.kind == name for of in found for box in of)]
        handles = [Patch(color=COLOURS[name], label="modules" if name == MODULE else SPELLED[name]) for name in kinds]
        hollow = any(patch.get_label() == HOLLOW for axes in panels for patch in axes.patches)
        if hollow:
            label = "hollow: unstable or contended,\ndo not trust"
            handles.append(Patch(facecolor="white", edgecolor="0.4", label=label))
        figure.legend(handles=handles, loc="outside right upper", fontsize=9)
        found = _finding(profiles, measure)
        finish(figure, measure.title, [], provenance, found, alt(profiles, measure))
    return figure


def _finding(profiles: Sequence[Profile], measure: Measure) -> str:
    """Which network has more of the measure, if there are two; empty for times of doubtful networks."""
    totals = [measure.value(one.whole) for one in profiles]
    doubts = measure is TIME and any(is_doubtful(one.network) for one in profiles)
    if len(profiles) != 2 or not all(totals) or doubts:
        return ""
    (most, first), (least, second) = sorted(
        ((total, one.network.name) for total, one in zip(totals, profiles, strict=True)), reverse=True
    )
    if most < 1.005 * least:
        return f"{measure.title}: {first} and {second} have the same"
    return f"{first} {measure.verb} {digits(most / least)} times {SPELLED_MEASURES[measure.title]} {second}"


SPELLED_MEASURES = {
    "Time": "as long as",
    "Memory": "as much at its peak as",
    "Memory for the backward pass": "as much for the backward pass as",
    "Operations": "as many operations as",
}


def alt(profiles: Sequence[Profile], measure: Measure) -> str:
    """The figure in words."""
    said = [f"{one.network.name}: {finding(one, measure)}" for one in profiles]
    return f"Icicles of {measure.title.lower()}, a box per layer. {'; '.join(said)}."


def _draw(axes: Axes, found: Sequence[Box], whole: float, inches: float, doubts: bool) -> None:
    """Draw the boxes, with labels where they fit. `whole` is the width of the icicle in units of the axis; one unit is
    `inches` wide. With `doubts`, boxes of doubtful rows are hollow."""
    for one in found:
        left, width = whole * one.start, whole * (one.end - one.start)
        colour = COLOURS[one.kind]
        look = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.5}
        if one.row.apart:
            look |= {"hatch": "////", "alpha": 0.7}
        if doubts and is_doubtful(one.row):
            look |= {"facecolor": "white", "edgecolor": colour, "linewidth": 1.4, "label": HOLLOW}
        axes.add_patch(Rectangle((left, one.level), width, 0.93, **look))
        if len(one.label) * LETTER + 0.1 < 0.97 * inches * width:
            axes.text(left + 0.04 / inches, one.level + 0.48, one.label, fontsize=8, va="center", clip_on=True)
