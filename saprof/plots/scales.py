"""Axes with few ticks at round numbers, and numbers as plain text."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from saprof.plots import frames
from saprof.quantities import Quantity


def label_of_bars(quantity: Quantity) -> str:
    """The label of an axis along which intervals are bars, and not bands."""
    return quantity.label.replace("band", "bar")


def plain(value: float) -> str:
    """Three significant digits, without an exponent and with separators: `0.0975`, `12.4`, `1,560`."""
    if not np.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def tick(value: float, _: object = None) -> str:
    """The label of a tick: the number as it is, without an exponent and with separators."""
    text = f"{value:,.12f}".rstrip("0").rstrip(".")
    return text.replace("-", "−")


class _RoundNumbers(LogLocator):
    """Ticks of a logarithmic axis at round numbers: as few per power of ten as are readable, at least three in all."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        low, high = sorted((vmin, vmax))
        if not low > 0:
            return super().tick_values(vmin, vmax)
        powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        every = 1 + len(powers) // MOST_TICKS
        for parts in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            ticks = np.outer(10.0 ** powers[:: every if parts == (1,) else 1], parts).ravel()
            ticks = ticks[(ticks >= low * (1 - 1e-9)) & (ticks <= high * (1 + 1e-9))]
            if len(ticks) >= ENOUGH_TICKS:
                return ticks
        return MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)


MOST_TICKS, ENOUGH_TICKS = 10, 3
"""Powers of ten on an axis before some have no tick, and the ticks that it has at least."""


def log_axis(axis: Axis) -> None:
    """A logarithmic axis: ticks at round numbers, as plain numbers, with a light grid."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(_RoundNumbers())
    axis.set_major_formatter(FuncFormatter(tick))
    axis.set_minor_locator(NullLocator())
    axis.axes.grid(visible=True, axis=axis.axis_name)


def linear_axis(axis: Axis) -> None:
    """A linear axis whose ticks are plain numbers, with a light grid."""
    axis.set_major_formatter(FuncFormatter(tick))
    axis.axes.grid(visible=True, axis=axis.axis_name)


def taps_axis(axes: Axes, rows: pd.DataFrame) -> None:
    """Ticks at the footprints of the rows, each with its taps below."""
    square = rows[rows["footprint"].str.startswith("square")]
    labels = square["footprint"].map(frames.footprint_label).str.split().str[0]
    sides = dict(zip(square["taps"].astype(int), labels, strict=True))
    taps = sorted(rows["taps"].astype(int).unique())
    axes.set_xticks(taps, [f"{sides[k]}\n{k}" if k in sides else f"\n{k}" for k in taps])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("footprint, and its taps")
