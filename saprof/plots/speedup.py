"""Speed-ups of backends over one of them, as a heat map over operators and footprints."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import math
from itertools import product, zip_longest

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from saprof.plots import findings, frames, marks, style
from saprof.plots.beside import factor, speedups
from saprof.plots.lines import across, map_label
from saprof.plots.style import STYLE

COLOUR_MAP = "RdBu"
"""Blue is faster, red is slower. Readers with any colour vision can distinguish them, and every cell has its number."""

MARKS = {
    "(": "(1.0): the 95 % interval includes 1",
    "≈": "≈ not measured in the same rounds",
}

PALEST = 0.8
"""The edge of a hollow cell whose colour is paler than this is grey, so that it can be seen."""

LEAST_RANGE = 2.0
"""The colours on either side of 1 reach at least up to this factor, so that small differences look small."""


def speedup_figure(rows: pd.DataFrame, over: str = "unfold", provenance: str = "") -> Figure:
    """Speed-up of every other backend over `over`, with a panel per backend, mode and setting. Rows are operators or
    networks, columns are footprints, or maps if each map has one footprint.

    Raises ValueError if no two latencies can be compared.
    """
    found = speedups(rows, over)
    if not found["speedup"].notna().any():
        raise ValueError(f"no cell has a latency both of {over} and of another backend")
    columns = "footprint" if across(found) == "footprint" else "map"
    found = _with_columns(found, columns)
    panels = [panel for _, panel in found.groupby(["kind", "ran", "setting"], sort=False)]
    norm = _norm(found)
    across_page = min(2, len(panels))
    down = -(-len(panels) // across_page)
    names, wide = (max(panel[column].nunique() for panel in panels) for column in ("name", "column"))
    with matplotlib.rc_context(STYLE):
        size = (max(0.9 * across_page * wide + 4.2, 6.8), down * (max(0.42 * names, 1.0) + 1.15) + 1.1)
        figure = style.Chart(figsize=size, layout="constrained")
        grid = figure.subplots(down, across_page, squeeze=False)
        for axes, panel, beside in zip_longest(grid.flat, panels, [None, *panels][: len(panels)]):
            if panel is None:
                axes.remove()
                continue
            _draw(axes, panel, norm)
            if axes not in grid[:, 0] and _names(panel) == _names(beside):
                axes.set_yticks([])
            first = panel.iloc[0]
            axes.set_title(", ".join(filter(None, [f"{first['ran']} over {over}", first["setting"]])))
            axes.set_xlabel({"footprint": "footprint", "map": "map (footprint)"}[columns])
        _colour_bar(figure, norm, found, over)
        style.finish(
            figure,
            style.title(f"Speed-up over {over}", found),
            _meanings(figure, rows) + style.notes(frames.attempted(rows)),
            provenance,
            findings.of_speed(rows, over),
            alt(rows, over),
        )
    return figure


def alt(rows: pd.DataFrame, over: str) -> str:
    """The figure in words."""
    many = int(speedups(rows, over).dropna(subset=["speedup"])["doubtful"].sum())
    doubts = f" {many} cells rest on doubtful rows and are hollow." if many else ""
    return f"Heat maps of speed-ups over {over}. {' '.join(findings.extremes(rows, over))}{doubts}"


def _norm(found: pd.DataFrame) -> TwoSlopeNorm:
    """Colours of the logarithm of a speed-up. 1 has the neutral colour, and each side has the range of its own data:
    that of sound cells, if there are some."""
    sound = found.loc[~found["doubtful"], "speedup"].dropna()
    values = np.log2(sound if len(sound) else found["speedup"].dropna())
    least = math.log2(LEAST_RANGE)
    return TwoSlopeNorm(0.0, min(-least, values.min()), max(least, values.max()))


def _meanings(figure: Figure, rows: pd.DataFrame) -> list[str]:
    """The meaning of the marks that occur in the cells."""
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    patches = [patch for axes in figure.axes for patch in axes.patches]
    found = [meaning for mark, meaning in MARKS.items() if any(mark in text for text in texts)]
    if any(patch.get_label() == marks.HOLLOW for patch in patches):
        found.append(f"hollow: one of the two rows is {frames.doubts(rows)}, do not trust")
    found += ["hatched: not measured"] if any(patch.get_hatch() for patch in patches) else []
    return [";  ".join(found)] if found else []


def _names(panel: pd.DataFrame) -> list[str]:
    return list(panel["name"].unique())


def _with_columns(rows: pd.DataFrame, columns: str) -> pd.DataFrame:
    """The rows with `column`, its position `x` by taps or by map, and the other fields in which the rows of a name
    differ."""
    settings = ["mode", "dtype", "device", "n", "v"]
    if columns == "footprint":
        label = rows["footprint"].map(frames.footprint_label).str.replace("@", "\n@")
        order = pd.Series(list(zip(rows["taps"].fillna(0), rows["footprint"], strict=True)), rows.index)
        settings.append("h")
    else:
        label = rows.apply(map_label, axis=1)
        order = pd.Series(list(zip(-rows["h"], -rows["w"], rows["taps"].fillna(0), strict=True)), rows.index)
    places = {key: x for x, key in enumerate(sorted(set(order)))}
    return rows.assign(column=label, x=order.map(places), setting=frames.settings(rows, settings))


def _draw(axes: Axes, panel: pd.DataFrame, norm: TwoSlopeNorm) -> None:
    """Draw a coloured cell with its number per speed-up; a hollow one, whose edge has the colour, if it is doubtful; a
    cross if a cell did not run, and hatches if there is no cell."""
    names, columns = _names(panel), panel.drop_duplicates("x").sort_values("x")
    cells = panel.drop_duplicates(["name", "x"]).set_index(["name", "x"])
    values = cells["speedup"].unstack("x").reindex(index=names, columns=columns["x"]).astype(float)
    hollow = cells["doubtful"].astype(object).unstack("x").reindex(index=names, columns=columns["x"]).eq(True)
    shown = np.ma.masked_invalid(np.log2(values.where(~hollow)))
    axes.pcolormesh(shown, norm=norm, cmap=COLOUR_MAP, edgecolors="white", linewidth=1)
    for (y, name), (x, place) in product(enumerate(names), enumerate(columns["x"])):
        middle = {"x": x + 0.5, "y": y + 0.5, "ha": "center", "va": "center"}
        if not math.isnan(speedup := values.loc[name, place]):
            colour, ink = _colours(norm, speedup)
            if hollow.loc[name, place]:
                edge = colour if min(colour[:3]) < PALEST else "0.75"
                look = {"facecolor": "white", "edgecolor": edge, "linewidth": 2.5, "label": marks.HOLLOW}
                axes.add_patch(Rectangle((x + 0.05, y + 0.09), 0.9, 0.82, **look))
                ink = "0.35"
            axes.text(**middle, s=_number(cells.loc[(name, place)], wide=len(columns) == 1), color=ink)
            continue
        axes.add_patch(Rectangle((x, y), 1, 1, fill=False, hatch="////", edgecolor="0.8", linewidth=0))
        axes.text(**middle, s="×" if (name, place) in cells.index else "", color="0.2")
    axes.set(xlim=(0, len(columns)), ylim=(len(names), 0))
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns["column"], fontsize=9.5)
    axes.set_yticks([y + 0.5 for y in range(len(names))], names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _colours(norm: TwoSlopeNorm, speedup: float) -> tuple[tuple[float, ...], str]:
    """The colour of a cell, and black or white, whichever has more contrast with it (WCAG's luminance)."""
    colour = matplotlib.colormaps[COLOUR_MAP](float(np.clip(norm(math.log2(speedup)), 0, 1)))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return colour, "white" if luminance < 0.179 else "black"


def _number(cell: pd.Series, wide: bool) -> str:
    """The speed-up with two digits, its interval if there is room, and its marks: see `MARKS`."""
    text = factor(cell["speedup"]) + (f" [{factor(cell['low'])}, {factor(cell['high'])}]" if wide else "")
    text = f"({text})" if cell["low"] <= 1 <= cell["high"] else text
    return ("≈" if cell["apart"] else "") + text


def _colour_bar(figure: Figure, norm: TwoSlopeNorm, found: pd.DataFrame, over: str) -> None:
    """The part of the colours that the cells have, and 1."""
    mappable = ScalarMappable(norm, COLOUR_MAP)
    bar = figure.colorbar(mappable, ax=figure.axes, aspect=28, pad=0.02)
    logs = np.log2(found["speedup"].dropna()).clip(norm.vmin, norm.vmax)
    low, high = min(0.0, logs.min()), max(0.0, logs.max())
    if high - low < 1e-9:
        low, high = float(norm.vmin), float(norm.vmax)
    bar.ax.set_ylim(low, high)
    step = max(1, round((high - low) / 6))
    ticks = [power for power in range(-40 * step, 41 * step, step) if low <= power <= high]
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{2**x:,g}×" if x >= 0 else f"1/{2**-x:,g}×"))
    bar.set_label(f"times as fast as {over}")
    bar.outline.set_visible(False)
