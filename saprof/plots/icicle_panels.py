"""Icicles of profiles as a matplotlib figure, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from saprof.plots.icicle import MEASURES, Box, Measure, boxes, finding, scale_of
from saprof.plots.layer_kinds import COLOURS, MODULE, SPELLED
from saprof.plots.style import STYLE, finish
from saprof.records.profiles import Profile

WIDTH = 12.0
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
        figure = Figure(figsize=(WIDTH, LEVEL * sum(levels) + 0.55 * len(levels) + 1.5), layout="constrained")
        panels = figure.subplots(len(found), 1, squeeze=False, height_ratios=levels)[:, 0]
        for axes, one, of, deep in zip(panels, profiles, found, levels, strict=True):
            _draw(axes, of, measure.value(one.whole) / measure.per_unit, WIDTH * measure.per_unit / scale)
            axes.set_title(f"{one.network.name}: {finding(one, measure)}")
            axes.set(xlim=(0, scale / measure.per_unit), ylim=(deep, 0), yticks=[])
            axes.spines["left"].set_visible(False)
        panels[-1].set_xlabel(measure.unit)
        kinds = [name for name in COLOURS if any(box.kind == name for of in found for box in of)]
        handles = [Patch(color=COLOURS[name], label="modules" if name == MODULE else SPELLED[name]) for name in kinds]
        figure.legend(handles=handles, loc="outside upper right", ncols=4, fontsize=9)
        finish(figure, measure.title, [], provenance)
    return figure


def _draw(axes: Axes, found: Sequence[Box], whole: float, inches: float) -> None:
    """Draw the boxes, with labels where they fit. `whole` is the width of the icicle in units of the axis; one unit is
    `inches` wide."""
    for one in found:
        left, width = whole * one.start, whole * (one.end - one.start)
        hatch = {"hatch": "////", "alpha": 0.7} if one.row.apart else {}
        colour = COLOURS[one.kind]
        axes.add_patch(Rectangle((left, one.level), width, 0.93, facecolor=colour, edgecolor="white", lw=0.5, **hatch))
        if len(one.label) * LETTER + 0.1 < 0.97 * inches * width:
            axes.text(left + 0.04 / inches, one.level + 0.48, one.label, fontsize=8, va="center", clip_on=True)
