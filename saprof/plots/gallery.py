"""Every figure that rows can have, with a caption."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from saprof.paper.evidence import points
from saprof.plots import frames
from saprof.plots.beside import base_of
from saprof.plots.footprint import cost_figure, footprint_figure
from saprof.plots.growth import growing, growth_figure
from saprof.plots.panels import latency_figure, memory_figure
from saprof.plots.pareto import COSTS, accuracy_figure
from saprof.plots.roofline import roofline_figure
from saprof.plots.speedup import speedup_figure
from saprof.plots.style import Chart
from saprof.records.calibration import Calibration
from saprof.records.rows import Row

KINDS = {"model": "networks", "operator": "operators"}

HOLLOW = "Hollow points are unstable, contended or above the roof; do not trust them."


@dataclass(frozen=True)
class Drawing:
    """A possible figure: `draw` returns it, or raises ValueError with the reason why it cannot be drawn."""

    stem: str
    """The name of its files, without suffix."""
    title: str
    caption: str
    draw: Callable[[], Chart]
    """Draws the figure, whose `alt` describes it for readers who cannot see it."""


def drawings(rows: Sequence[Row], roofs: Calibration | None, provenance: str) -> Iterator[Drawing]:
    """The figures of a run, the most general one first. A figure whose rows differ in mode, batch, dtype or device is
    split if it would be unreadable."""
    frame = frames.frame(rows, roofs)
    tried = frame[frame["status"] != "unsupported"]
    yield from _overviews(tried, provenance)
    yield _costs(tried, provenance)
    for kind, of_kind in tried[tried["kind"].isin([*KINDS])].groupby("kind", sort=False):
        yield from _of_kind(KINDS[kind], of_kind, provenance)
        yield from _growths(KINDS[kind], of_kind, provenance)
    if roofs is not None:
        yield _roofline(tried, roofs, provenance)
    yield from _accuracies(rows, roofs, provenance)


def _overviews(tried: pd.DataFrame, provenance: str) -> Iterator[Drawing]:
    for name, of, part in _split(tried, ["mode", "n", "dtype", "device"]):
        yield Drawing(
            f"footprint{name}",
            f"Cost, latency and memory against the footprint{of}",
            "Operations, latency of one call and peak memory against the footprint, of everything that was measured. "
            "Colour and marker show the subject, the line shows the backend; bands and bars are 95 % intervals of the "
            f"median. Operations do not depend on the backend. {HOLLOW}",
            partial(footprint_figure, part, provenance),
        )


def _costs(tried: pd.DataFrame, provenance: str) -> Drawing:
    return Drawing(
        "cost",
        "FLOPs and parameters of networks",
        "FLOPs and parameters of the networks against the footprint, counted from their declarations. Grey squares are "
        "what SAN Table 7 prints, to one decimal.",
        partial(cost_figure, tried, provenance),
    )


def _of_kind(what: str, tried: pd.DataFrame, provenance: str) -> Iterator[Drawing]:
    """Latency, memory and speed-up of networks, or of operators."""
    for name, of, part in _split(tried, ["mode", "dtype", "device"]):
        yield Drawing(
            f"latency-{what}{name}",
            f"Latency of {what}{of}",
            f"Latency of one call of {what}, by backend. Both axes are logarithmic if the footprint is one of "
            "them: a straight line is a power of the number of taps. Bands and bars are 95 % intervals of the median. "
            f"{HOLLOW}",
            partial(latency_figure, part, provenance),
        )
        yield Drawing(
            f"memory-{what}{name}",
            f"Peak memory of {what}{of}",
            f"The most memory that one call of {what} holds at once, beside inputs and parameters.",
            partial(memory_figure, part, provenance),
        )
        over = base_of(part)
        yield Drawing(
            f"speedup-{what}{name}",
            f"Speed-up of {what} over {over}{of}",
            f"How many times as fast as {over} the others compute {what}: the quotient of latencies within the same "
            "interleaved rounds if they share them. Blue is faster, red slower, white is 1. Each side has the range of "
            "its own cells. A hollow cell rests on a doubtful row.",
            partial(speedup_figure, part, over, provenance),
        )


def _growths(what: str, tried: pd.DataFrame, provenance: str) -> Iterator[Drawing]:
    """The growth with taps and pixels, where at least three sizes were measured."""
    for name, of, part in _split(tried, ["mode", "n", "dtype", "device"]):
        if growing(part):
            yield Drawing(
                f"growth-{what}{name}",
                f"Growth of {what} with taps and pixels{of}",
                "Latency and peak memory against taps, and against the pixels of the map or image, both axes "
                "logarithmic. The number beside a line is its slope by least squares over its sound rows: 1 is linear "
                "growth. Where the operations do not grow linearly, their slope is in parentheses. "
                f"{HOLLOW}",
                partial(growth_figure, part, provenance),
            )


def _roofline(tried: pd.DataFrame, roofs: Calibration, provenance: str) -> Drawing:
    return Drawing(
        "roofline",
        "What the machine allows",
        "Reached FLOP/s of operators against their FLOP per compulsory byte, beneath the roofs that were measured with "
        "the run: a point on a roof cannot be made faster without moving fewer bytes or computing less. "
        f"{HOLLOW}",
        partial(roofline_figure, tried, roofs, provenance),
    )


def _accuracies(rows: Sequence[Row], roofs: Calibration | None, provenance: str) -> Iterator[Drawing]:
    known = points(rows, roofs)
    for cost, quantity in COSTS.items() if len(known) else list(COSTS.items())[:1]:
        name = quantity.noun
        yield Drawing(
            f"accuracy-{cost.removesuffix('_s').replace('_', '-')}",
            f"Accuracy against {name}",
            f"Top-1 accuracy as the paper prints it, not measured here, against {name}. No network is at least as "
            "accurate and at most as expensive as one on the Pareto front, and better in one of both.",
            partial(accuracy_figure, known, cost, provenance),
        )


def _split(rows: pd.DataFrame, columns: list[str]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Groups of rows that agree in the columns, each with the end of a file name and the end of a title, which say what
    the group has; without rows, one empty group."""
    differ = [column for column in columns if rows[column].nunique() > 1]
    if not differ:
        yield "", "", rows
        return
    for key, part in rows.groupby(differ, sort=False):
        has = dict(zip(differ, map(str, key), strict=True))
        end = "-".join(f"n{value}" if column == "n" else value for column, value in has.items())
        words = ", ".join(f"n = {value}" if column == "n" else value for column, value in has.items())
        yield "-" + end.replace(":", "").replace("_", "-"), f" ({words})", part
