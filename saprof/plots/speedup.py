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
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from saprof.plots import style
from saprof.plots.lines import across, map_label
from saprof.plots.style import STYLE
from saprof.records.rows import DOUBTFUL
from saprof.text import unknown

ALIKE = ["kind", "name", "footprint", "n", "h", "w", "r", "v", "g", "dtype", "device", "mode", "fingerprint"]
"""The fields in which rows agree that were measured side by side."""

COLOUR_MAP = "RdBu"
"""Blue is faster, red is slower. Readers with any colour vision can distinguish them, and every cell has its number."""

WITHIN = {False: ("ratio", "ratio_low", "ratio_high"), True: ("latency_s", "latency_low_s", "latency_high_s")}
"""How speed-ups are computed: from ratios within interleaved rounds, or from latencies that were measured
separately."""

MARKS = {
    "(": "(1.0): the 95 % interval includes 1",
    "≈": "≈ not measured in the same rounds",
    "*": "* one of the two is unstable or contended",
}


def speedups(rows: pd.DataFrame, over: str = "unfold") -> pd.DataFrame:
    """The rows that were measured beside plain `over`, with `ran`, `speedup` = latency of `over` / latency of the row,
    and the `low` and `high` end of its 95 % interval. `doubtful` is true if one of the two is unstable or contended.

    If the candidates were measured in interleaved rounds, the speed-up is the quotient of two ratios within rounds,
    each to the first candidate. Otherwise `apart` is true, and it is the quotient of two latencies. Raises ValueError
    if nothing ran beside `over`.
    """
    rows = style.attempted(rows)
    rows = rows.assign(ran=style.who(rows))
    if over not in set(rows["backend"]):
        raise ValueError(unknown("backend to compare with", over, list(rows["backend"].unique()) or ["any"]))
    groups = [group for _, group in rows.groupby(ALIKE, dropna=False, sort=False)]
    found = [_beside(group, base.index[0]) for group in groups if len(base := _plain(group, over)) and len(group) > 1]
    if not found:
        raise ValueError(f"nothing was measured beside {over}; give --backend {over} and others to one sweep")
    return pd.concat(found).sort_values("ran", key=lambda ran: ran.map(list(ran.unique()).index), kind="stable")


def _plain(group: pd.DataFrame, over: str) -> pd.DataFrame:
    """The candidates of that backend, with composed and eager ones first."""
    return group[group["backend"] == over].sort_values(["attention", "compiled"], kind="stable", na_position="first")


def _beside(group: pd.DataFrame, base: int) -> pd.DataFrame:
    timed = group["latency_s"].notna()
    apart = bool(timed.sum() - group["ratio"].notna().sum() != 1)  # all except the first have a ratio to it
    value, low, high = (group[name].astype(float) for name in WITHIN[apart])
    if not apart:
        value, low, high = (x.where(x.notna() | ~timed, 1.0) for x in (value, low, high))
    doubtful = group["status"].isin(DOUBTFUL)
    found = group.assign(speedup=value[base] / value, low=low[base] / high, high=high[base] / low)
    return found.assign(apart=apart, doubtful=doubtful | doubtful[base]).drop(index=base)


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
    largest = max(2.0, found["speedup"].max(), 1 / found["speedup"].min())
    norm = LogNorm(1 / largest, largest)
    across_page = min(2, len(panels))
    down = -(-len(panels) // across_page)
    names, wide = (max(panel[column].nunique() for panel in panels) for column in ("name", "column"))
    with matplotlib.rc_context(STYLE):
        size = (max(0.9 * across_page * wide + 4.2, 6.8), down * (max(0.42 * names, 1.0) + 1.15) + 1.1)
        figure = Figure(figsize=size, layout="constrained")
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
        _colour_bar(figure, norm, largest, over)
        title = style.title(f"Speed-up over {over}", found)
        style.finish(figure, title, _meanings(figure) + style.notes(style.attempted(rows)), provenance)
    return figure


def _meanings(figure: Figure) -> list[str]:
    """The meaning of the marks that occur in the cells."""
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    marks = [meaning for mark, meaning in MARKS.items() if any(mark in text for text in texts)]
    marks += ["hatched: not measured"] if any(axes.patches for axes in figure.axes) else []
    return [";  ".join(marks)] if marks else []


def _names(panel: pd.DataFrame) -> list[str]:
    return list(panel["name"].unique())


def _with_columns(rows: pd.DataFrame, columns: str) -> pd.DataFrame:
    """The rows with `column`, its position `x` by taps or by map, and the other fields in which the rows of a name
    differ."""
    settings = ["mode", "dtype", "device", "n", "v"]
    if columns == "footprint":
        label = rows["footprint"].map(style.footprint_label)
        order = pd.Series(list(zip(rows["taps"].fillna(0), rows["footprint"], strict=True)), rows.index)
        settings.append("h")
    else:
        label = rows.apply(map_label, axis=1)
        order = pd.Series(list(zip(-rows["h"], -rows["w"], rows["taps"].fillna(0), strict=True)), rows.index)
    places = {key: x for x, key in enumerate(sorted(set(order)))}
    return rows.assign(column=label, x=order.map(places), setting=style.settings(rows, settings))


def _draw(axes: Axes, panel: pd.DataFrame, norm: LogNorm) -> None:
    """Draw a coloured cell with its number per speed-up, a cross if a cell did not run, and hatches if there is no
    cell."""
    names, columns = _names(panel), panel.drop_duplicates("x").sort_values("x")
    cells = panel.drop_duplicates(["name", "x"]).set_index(["name", "x"])
    values = cells["speedup"].unstack("x").reindex(index=names, columns=columns["x"]).astype(float)
    axes.pcolormesh(np.ma.masked_invalid(values), norm=norm, cmap=COLOUR_MAP, edgecolors="white", linewidth=1)
    for (y, name), (x, place) in product(enumerate(names), enumerate(columns["x"])):
        middle = {"x": x + 0.5, "y": y + 0.5, "ha": "center", "va": "center"}
        if not math.isnan(speedup := values.loc[name, place]):
            axes.text(**middle, s=_number(cells.loc[(name, place)], wide=len(columns) == 1), color=_ink(norm(speedup)))
            continue
        axes.add_patch(Rectangle((x, y), 1, 1, fill=False, hatch="////", edgecolor="0.8", linewidth=0))
        axes.text(**middle, s="×" if (name, place) in cells.index else "", color="0.2")
    axes.set(xlim=(0, len(columns)), ylim=(len(names), 0))
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns["column"], fontsize=9.5)
    axes.set_yticks([y + 0.5 for y in range(len(names))], names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _ink(place: float) -> str:
    """Black or white, whichever is readable on that colour."""
    red, green, blue, _ = matplotlib.colormaps[COLOUR_MAP](place)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"


def _number(cell: pd.Series, wide: bool) -> str:
    """The speed-up with two digits, its interval if there is room, and its marks: see `MARKS`."""
    text = factor(cell["speedup"]) + (f" [{factor(cell['low'])}, {factor(cell['high'])}]" if wide else "")
    text = f"({text})" if cell["low"] <= 1 <= cell["high"] else text
    return ("≈" if cell["apart"] else "") + text + ("*" if cell["doubtful"] else "")


def factor(speedup: float) -> str:
    """Two digits: 0.46, 1.8, 12."""
    return f"{speedup:.0f}" if speedup >= 9.95 else f"{speedup:.1f}" if speedup >= 0.995 else f"{speedup:.2f}"


def _colour_bar(figure: Figure, norm: LogNorm, largest: float, over: str) -> None:
    mappable = ScalarMappable(norm, COLOUR_MAP)
    bar = figure.colorbar(mappable, ax=figure.axes, aspect=28, pad=0.02)
    step = 1 if largest < 6 else 2 if largest < 40 else 3
    ticks = [2.0**power for power in range(-9 * step, 10 * step, step) if 1 / largest <= 2.0**power <= largest]
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×" if x >= 1 else f"1/{1 / x:g}×"))
    bar.set_label(f"times as fast as {over}")
    bar.outline.set_visible(False)
