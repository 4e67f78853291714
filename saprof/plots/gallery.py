"""Every figure that rows can have, with a caption and a description in words."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from saprof.paper.evidence import points
from saprof.plots import style
from saprof.plots.footprint import cost_figure, footprint_figure
from saprof.plots.panels import latency_figure, memory_figure
from saprof.plots.pareto import COSTS, accuracy_figure
from saprof.plots.roofline import roofline_figure
from saprof.plots.speedup import factor, speedup_figure, speedups
from saprof.quantities import LATENCY, MEMORY, Quantity
from saprof.records.calibration import Calibration
from saprof.records.rows import Row

KINDS = {"model": "networks", "operator": "operators"}


@dataclass(frozen=True)
class Drawing:
    """A possible figure: `draw` returns it, or raises ValueError with the reason why it cannot be drawn."""

    stem: str
    """The name of its files, without suffix."""
    title: str
    caption: str
    alt: str
    """A description for readers who cannot see the figure."""
    draw: Callable[[], Figure]


def drawings(rows: Sequence[Row], roofs: Calibration | None, provenance: str) -> Iterator[Drawing]:
    """The figures of a run, the most general one first. A figure whose rows differ in mode, batch, dtype or device is
    split if it would be unreadable."""
    frame = style.frame(rows)
    tried = frame[frame["status"] != "unsupported"]
    yield from _overviews(tried, provenance)
    yield _costs(tried, provenance)
    for kind, of_kind in tried.groupby("kind", sort=False):
        yield from _of_kind(KINDS[kind], of_kind, provenance)
    if roofs is not None:
        yield _roofline(tried, roofs, provenance)
    yield from _accuracies(rows, provenance)


def _overviews(tried: pd.DataFrame, provenance: str) -> Iterator[Drawing]:
    for name, part in _split(tried, ["mode", "n", "dtype", "device"]):
        yield Drawing(
            f"footprint{name}",
            "Cost, latency and memory against the footprint",
            "Operations, latency of one call and peak memory against the footprint, of everything that was measured. "
            "Colour and marker show the subject, the line shows the backend; bands and bars are 95 % intervals of the "
            "median. Operations do not depend on the backend.",
            f"Three charts against the footprint: operations; {_range(part, LATENCY)}; {_range(part, MEMORY)}.",
            partial(footprint_figure, part, provenance),
        )


def _costs(tried: pd.DataFrame, provenance: str) -> Drawing:
    return Drawing(
        "cost",
        "FLOPs and parameters of networks",
        "FLOPs and parameters of the networks against the footprint, counted from their declarations. Open squares are "
        "what SAN Table 7 prints, to one decimal.",
        "Two charts against the footprint, FLOPs in the paper convention and parameters, with the printed points.",
        partial(cost_figure, tried, provenance),
    )


def _of_kind(what: str, tried: pd.DataFrame, provenance: str) -> Iterator[Drawing]:
    """Latency, memory and speed-up of networks, or of operators."""
    for name, part in _split(tried, ["mode", "dtype", "device"]):
        yield Drawing(
            f"latency-{what}{name}",
            f"Latency of {what}",
            f"Latency of one call of {what}, by backend. Both axes are logarithmic if the footprint is one of "
            "them: a straight line is a power of the number of taps. Bands and bars are 95 % intervals of the median.",
            f"Charts of {_range(part, LATENCY)}.",
            partial(latency_figure, part, provenance),
        )
        yield Drawing(
            f"memory-{what}{name}",
            f"Peak memory of {what}",
            f"The most memory that one call of {what} holds at once, beside inputs and parameters.",
            f"Charts of {_range(part, MEMORY)}.",
            partial(memory_figure, part, provenance),
        )
        over = "unfold" if (part["backend"] == "unfold").any() else part["backend"].iloc[0]
        yield Drawing(
            f"speedup-{what}{name}",
            f"Speed-up of {what} over {over}",
            f"How many times as fast as {over} the others compute {what}: the quotient of latencies within the same "
            "interleaved rounds if they share them. Blue is faster, red slower; equal colour steps are equal factors.",
            f"Heat maps of speed-ups over {over}. {' '.join(extremes(part, over))}".strip(),
            partial(speedup_figure, part, over, provenance),
        )


def _roofline(tried: pd.DataFrame, roofs: Calibration, provenance: str) -> Drawing:
    return Drawing(
        "roofline",
        "What the machine allows",
        "Reached FLOP/s of operators against their FLOP per compulsory byte, beneath the roofs that were measured with "
        "the run: a point on a roof cannot be made faster without moving fewer bytes or computing less.",
        "Roofline chart: FLOP/s of each operator and backend against its arithmetic intensity, under bandwidth and "
        "compute roofs.",
        partial(roofline_figure, tried, roofs, provenance),
    )


def _accuracies(rows: Sequence[Row], provenance: str) -> Iterator[Drawing]:
    known = points(rows)
    for cost, quantity in COSTS.items() if len(known) else list(COSTS.items())[:1]:
        name = quantity.noun
        yield Drawing(
            f"accuracy-{cost.removesuffix('_s').replace('_', '-')}",
            f"Accuracy against {name}",
            f"Top-1 accuracy as the paper prints it, not measured here, against {name}. No network is at least as "
            "accurate and at most as expensive as one on the Pareto front, and better in one of both.",
            f"Chart of printed top-1 accuracy against {name} for {known['name'].nunique()} networks, with the front.",
            partial(accuracy_figure, known, cost, provenance),
        )


def extremes(rows: pd.DataFrame, over: str) -> list[str]:
    """One sentence per backend, mode and batch: the number of cells where it is faster than `over`, and the range of
    its speed-ups. Empty if nothing was measured beside `over`."""
    try:
        found = speedups(rows, over).dropna(subset=["speedup"])
    except ValueError:
        return []
    found = found.assign(setting=style.settings(found, ("mode", "n", "dtype", "device")))
    return [_extreme(part, over) for _, part in found.groupby(["ran", "setting"], sort=False)]


def _extreme(part: pd.DataFrame, over: str) -> str:
    faster, slower = int((part["low"] > 1).sum()), int((part["high"] < 1).sum())
    least, most = (part.loc[part["speedup"].idxmin()], part.loc[part["speedup"].idxmax()])
    who = ", ".join(filter(None, [f"{part['ran'].iloc[0]} over {over}", part["setting"].iloc[0]]))
    among = f"faster in {faster} of {len(part)} cells" + (f", slower in {slower}" if slower else "")
    if len(part) == 1:
        return f"{who}: {factor(most['speedup'])}× ({_where(most)})."
    ends = f"{factor(least['speedup'])}× ({_where(least)}) to {factor(most['speedup'])}× ({_where(most)})"
    return f"{who}: {among}; from {ends}."


def _split(rows: pd.DataFrame, columns: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Groups of rows that agree in the columns, each with the end of a file name; without rows, one empty group."""
    differ = [column for column in columns if rows[column].nunique() > 1]
    if not differ:
        yield "", rows
        return
    for key, part in rows.groupby(differ, sort=False):
        words = (f"n{value}" if column == "n" else str(value) for column, value in zip(differ, key, strict=True))
        yield "-" + "-".join(words).replace(":", "").replace("_", "-"), part


def _range(rows: pd.DataFrame, quantity: Quantity) -> str:
    """`latency, ms, from 0.4 (aggregation 3×3 numba) to 92 (…)`."""
    known = rows.dropna(subset=[quantity.column])
    name = quantity.label.partition(" (")[0]
    if known.empty:
        return f"{name}, of which nothing was measured"
    values = style.column_of(known, quantity)
    ends = [f"{values[i]:.3g} ({_where(known.loc[i])})" for i in (values.idxmin(), values.idxmax())]
    return f"{name}, from {ends[0]} to {ends[1]}"


def _where(row: pd.Series) -> str:
    ran = "" if "ran" in row else f", {row['backend']}"
    return f"{row['name']}, {style.footprint_label(row['footprint'])} at {row['h']}×{row['w']}{ran}"
