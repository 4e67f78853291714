"""The roofline: the FLOP/s of operators under the roofs of the machine, by arithmetic intensity."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import math

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saprof.plots import findings, frames, looks, marks, scales, style
from saprof.plots.style import STYLE
from saprof.records.calibration import FORWARD, TENSOR_CORES, Calibration

PANEL = ["ran", "mode", "dtype"]
LINE = ["name", "n", "h", "w", "r", "v", "g"]
"""The columns in which the points of a line agree; they differ in their footprints."""
APART = 1.15
"""Bandwidths or rates that differ by less than this factor are one roof."""


def roofline_figure(rows: pd.DataFrame, calibration: Calibration, provenance: str = "") -> Figure:
    """FLOP/s against FLOP/byte of operators' forwards, by the `hardware` convention and compulsory bytes, with a panel
    per backend, mode and dtype. Larger points have more taps. A line connects points that differ only in their taps.

    The roofs are the bandwidth of the memory, the largest bandwidth of a cache, and the rates of FMAs and of matrix
    products. Raises ValueError if no row can be compared with them.
    """
    placed = (rows["kind"] == "operator") & rows["mode"].isin(FORWARD) & rows["latency_s"].notna()
    rows = rows.loc[placed & rows["dtype"].isin({*calibration.fma, *calibration.gemm})]
    idle = rows["flops_hardware"] == 0  # beyond the left end of the axis
    moving = ", ".join(rows.loc[idle, "name"].unique())
    lines = [f"not drawn, since they only move bytes: {moving}"] if moving else []
    if idle.all():
        raise ValueError("no operator's forward computes and has a latency, in a dtype whose roofs were measured")
    rows = _with_places(frames.with_roofs(rows[~idle], calibration))
    panels = [(key, panel) for key, panel in rows.groupby(PANEL, sort=False)]
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    with matplotlib.rc_context(STYLE):
        figure = style.Chart(figsize=(6.2 * across + 2.9, 4.6 * down + 1.0), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        _limit(grid[0, 0], rows, calibration)
        for axes, ((ran, mode, dtype), panel) in zip(grid.flat, panels, strict=False):
            _draw_roofs(axes, calibration, dtype)
            _draw_points(axes, panel)
            scales.log_axis(axes.xaxis)
            scales.log_axis(axes.yaxis)
            several = [text for text, column in ((mode, "mode"), (dtype, "dtype")) if rows[column].nunique() > 1]
            axes.set_title(", ".join([ran, *several]))
            axes.tick_params(labelbottom=True, labelleft=True)
            axes.set_xlabel("FLOP per compulsory byte (hardware convention)")
            axes.set_ylabel("GFLOP/s")
        for axes in list(grid.flat)[len(panels) :]:
            axes.remove()
        figure.legend(handles=_legend(rows), loc="outside right center", labelspacing=0.7)
        when = f"roofs measured {calibration.time} on {calibration.device}"
        too_low = calibration.why_too_low(rows["dtype"])
        when += "; they are too low, see the table" if too_low else ""
        found = "" if too_low else findings.of_roofs(rows)
        style.finish(figure, style.title("Roofline", rows), [*lines, when], provenance, found, alt(rows))
    return figure


def alt(rows: pd.DataFrame) -> str:
    """The figure in words; `rows` are operators with a latency."""
    flops = rows["flops_hardware"].astype(float)
    rates, intensities = flops / rows["latency_s"].astype(float) / 1e9, flops / rows["compulsory_bytes"].astype(float)
    ends = [
        f"{scales.plain(rates[i])} GFLOP/s ({findings.where(rows.loc[i])})" for i in (rates.idxmin(), rates.idxmax())
    ]
    many = int(frames.doubtful(rows).sum())
    return (
        f"Roofline chart of {len(rows)} rows, from {ends[0]} to {ends[1]}, at {scales.plain(intensities.min())} to "
        f"{scales.plain(intensities.max())} FLOP per compulsory byte, under the roofs of memory and compute."
        + (f" {many} rows are doubtful, drawn hollow." if many else "")
    )


def _with_places(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `x` and `y` in FLOP/byte and GFLOP/s, `size` in points, and `ran`."""
    flops = rows["flops_hardware"].astype(float)
    return rows.assign(
        ran=frames.who(rows),
        x=flops / rows["compulsory_bytes"].astype(float),
        y=flops / rows["latency_s"].astype(float) / 1e9,
        size=_size(rows["taps"].astype(float)),
    )


def _size(taps):
    """The diameter of a marker: 4.3 for 3 × 3, 9.4 for 11 × 11, and so on with the side of the footprint."""
    return 2.4 + 0.64 * taps**0.5


def _limit(axes: Axes, rows: pd.DataFrame, calibration: Calibration) -> None:
    """Axis limits that include all points, the ridges where memories meet the highest roof, and room for the labels."""
    top = max(calibration.flop_rate(dtype) for dtype in rows["dtype"].unique()) / 1e9
    ridges = [top / slope for _, slope in _bandwidths(calibration)]
    axes.set_xlim(min(rows["x"].min() / 2, ridges[-1] / 25), 3 * max(rows["x"].max(), ridges[0]))
    axes.set_ylim(rows["y"].min() / 2, max(top, rows["y"].max()) * 2)


def _bandwidths(calibration: Calibration) -> list[tuple[str, float]]:
    """Labels and GB/s of memory, and of the fastest cache if it is faster."""
    largest = max(moved for stream in calibration.streams.values() for moved in stream)
    memory = calibration.bandwidth(largest) / 1e9
    rate, moved = max((rate, moved) for stream in calibration.streams.values() for moved, rate in stream.items())
    found = [(f"memory, {scales.plain(memory)} GB/s", memory)]
    if rate / 1e9 > APART * memory:
        found.append((f"cache ({_binary(moved)}), {scales.plain(rate / 1e9)} GB/s", rate / 1e9))
    return found


def _binary(size: int) -> str:
    return f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size / 2**10:.3g} KiB"


SMALL = {"fontsize": 9, "color": "0.3"}
ROOF = {"color": "0.35", "linewidth": 1.3}


def _draw_roofs(axes: Axes, calibration: Calibration, dtype: str) -> None:
    """Draw each roof up to the point where a lower one begins. The labels of outer roofs are above them, those of inner
    roofs below."""
    names = (dtype, TENSOR_CORES) if dtype == "float32" else (dtype,)
    product = max(calibration.gemm.get(name, 0.0) for name in names)
    rates = {"FMA": calibration.fma.get(dtype, 0.0) / 1e9, "matrix product": product / 1e9}
    (high, top), (low, lower) = sorted(rates.items(), key=lambda item: -item[1])
    bandwidths = _bandwidths(calibration)
    for (label, slope), where in zip(bandwidths, ("below", "above"), strict=False):
        _draw_bandwidth(axes, label, slope, top, where)
    _draw_rate(axes, f"{high}, {scales.plain(top)} GFLOP/s", top / bandwidths[-1][1], top, "above")
    if lower:
        _draw_rate(axes, f"{low}, {scales.plain(lower)} GFLOP/s", lower / bandwidths[-1][1], lower, "below")


def _draw_bandwidth(axes: Axes, label: str, slope: float, top: float, where: str) -> None:
    left = axes.get_xlim()[0]
    axes.plot([left, top / slope], [left * slope, top], linestyle="-" if where == "below" else "--", **ROOF)
    start = max(left, axes.get_ylim()[0] / slope)
    x = math.exp(0.72 * math.log(start) + 0.28 * math.log(top / slope))
    y = x * slope * (1.07 if where == "above" else 1 / 1.07)
    rotation = {"rotation": math.degrees(math.atan(y / x)), "rotation_mode": "anchor", "transform_rotates_text": True}
    axes.text(x, y, label, va="bottom" if where == "above" else "top", **rotation, **SMALL)


def _draw_rate(axes: Axes, label: str, left: float, rate: float, where: str) -> None:
    right = axes.get_xlim()[1]
    axes.plot([left, right], [rate, rate], linestyle="-" if where == "above" else ":", **ROOF)
    place = {"ha": "right", "va": "bottom" if where == "above" else "top"}
    offset = (-2, 3 if where == "above" else -3)
    axes.annotate(label, (right, rate), offset, textcoords="offset points", **place, **SMALL)


def _draw_points(axes: Axes, panel: pd.DataFrame) -> None:
    for (name, *_), line in panel.groupby(LINE, sort=False, dropna=False):
        line, look = line.sort_values("taps"), looks.look(name)
        axes.plot(line["x"], line["y"], color=look.colour, linewidth=0.8, alpha=0.7)
        for (_, row), hollow in zip(line.iterrows(), frames.doubtful(line), strict=True):
            point = {"color": look.colour, "marker": look.marker, "linestyle": "none", "markersize": row["size"]}
            marks.plot(axes, [row["x"]], [row["y"]], [hollow], **point)


def _legend(rows: pd.DataFrame) -> list[Line2D]:
    """Operators by colour and marker, the footprints by size, at most five, and the meaning of hollow points."""
    names = [(name, looks.look(name)) for name in rows["name"].unique()]
    handles = [Line2D([], [], ls="", marker=look.marker, color=look.colour, label=name) for name, look in names]
    sizes = rows.drop_duplicates("taps").sort_values("taps")
    shown = sizes.iloc[sorted({round(i * (len(sizes) - 1) / 4) for i in range(5)})]
    handles += [
        Line2D([], [], ls="", marker="o", color="0.5", markersize=row["size"], label=f"{row['taps']:,.0f} taps")
        for _, row in shown.iterrows()
    ]
    return handles + marks.legend_of_doubtful(rows)
