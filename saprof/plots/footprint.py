"""What a footprint costs: operations, latency and memory against its taps."""

# What an index into a DataFrame gives is beyond pandas' annotations:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from saprof.plots.style import STYLE
from saprof.tables import rows as paper_rows


def footprint_figure(rows: pd.DataFrame, provenance: str = "") -> Figure:
    """Operations, latency and peak memory against the taps of the footprint; networks above, operators below."""
    rows = rows.dropna(subset=["taps"]).astype({"taps": int})
    kinds = [kind for kind in ("model", "operator") if (rows["kind"] == kind).any()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 4.4 * len(kinds) + 0.6), layout="constrained")
        panels = figure.subplots(len(kinds), 3, squeeze=False)
        for kind, (cost, latency, memory) in zip(kinds, panels, strict=True):
            of_kind = rows[rows["kind"] == kind].copy()
            of_kind["series"] = _series(of_kind)
            names = of_kind["series"].unique()
            for name, colour in zip(names, sns.color_palette("colorblind", len(names)), strict=True):
                series = of_kind[of_kind["series"] == name].sort_values("taps")
                _draw_series(series, name, colour, cost, latency, memory)
            if kind == "model":
                _mark_paper(cost)
            _label(kind, sorted(of_kind["taps"].unique()), cost, latency, memory)
        figure.suptitle(_title(rows))
        figure.supxlabel(provenance, fontsize="x-small", color="0.4")
    return figure


def _series(rows: pd.DataFrame) -> pd.Series:
    """What a line of the figure is: the name, and whatever else the rows differ in."""
    parts = [rows["name"]]
    of_kind = rows[rows["kind"] == rows["kind"].iloc[0]]
    for column in ("backend", "attention", "mode", "dtype", "compiled", "n", "h"):
        alike = ["name", "backend"] if column == "attention" else ["name"]  # which a backend mostly decides
        if of_kind.groupby(alike)[column].nunique().max() > 1:
            parts.append((f"{column} " + rows[column].astype(str)).where(rows[column].notna(), ""))
    return pd.concat(parts, axis=1).agg(lambda names: ", ".join(filter(None, names)), axis=1)


OPERATIONS = {
    "model": ("flops_paper", 1e9, "GFLOPs per image (paper convention)"),
    "operator": ("flops_hardware", 1e6, "MFLOPs (hardware convention)"),
}
"""What the first panel shows of each kind: a field, its unit, its label."""


def _draw_series(series: pd.DataFrame, name: str, colour, cost: Axes, latency: Axes, memory: Axes) -> None:
    """One line per panel; a cell without a latency is a cross on the floor of its panel."""
    line = {"color": colour, "label": name, "marker": "o", "markersize": 4}
    field, unit, _ = OPERATIONS[series["kind"].iloc[0]]
    counted = series.dropna(subset=[field])
    cost.plot(counted["taps"], counted[field].astype(float) / unit, **line)
    timed = series.dropna(subset=["latency_s"])
    latency.plot(timed["taps"], 1e3 * timed["latency_s"].astype(float), **line)
    low, high = (1e3 * timed[f"latency_{bound}_s"].astype(float) for bound in ("low", "high"))
    latency.fill_between(timed["taps"], low, high, color=colour, alpha=0.2, linewidth=0)
    memory.plot(timed["taps"], timed["peak_bytes"].astype(float) / 1e6, **line)
    failed = series.loc[series["latency_s"].isna(), "taps"]
    for axes in (latency, memory) if len(failed) else ():
        axes.plot(failed, [0.02] * len(failed), "x", color=colour, transform=axes.get_xaxis_transform())


def _mark_paper(axes: Axes) -> None:
    """The printed FLOPs of Table 7, as open squares."""
    taps = [int(row.setting or 0) ** 2 for row in paper_rows(7)]
    flops = [row.flops_G for row in paper_rows(7)]
    axes.plot(taps, flops, "s", markersize=9, fillstyle="none", color="0.4", label="SAN Table 7, as printed")


def _label(kind: str, taps: list[int], cost: Axes, latency: Axes, memory: Axes) -> None:
    labels = [OPERATIONS[kind][2], "latency, ms (band: 95 % interval)", "peak memory, MB"]
    for axes, label in zip((cost, latency, memory), labels, strict=True):
        axes.set_xlabel("taps of the footprint")
        axes.set_ylabel(label)
        axes.set_xticks(taps, [_tick(k) for k in taps])
    cost.set_ylim(bottom=0)
    for axes in (latency, memory):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y", color="0.9")
    cost.set_title({"model": "networks", "operator": "operators"}[kind], loc="left")
    cost.legend(frameon=False, fontsize="small")


def _tick(taps: int) -> str:
    side = round(taps**0.5)
    return f"{taps}\n{side}×{side}" if side * side == taps else str(taps)


def _title(rows: pd.DataFrame) -> str:
    """What all rows share."""
    shared = [str(rows[column].iloc[0]) for column in ("device", "dtype", "mode") if rows[column].nunique() == 1]
    return "  ·  ".join(["cost, latency and memory against footprint", *shared])
