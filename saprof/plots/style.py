"""The page of a figure: fonts, title, finding, small print, description and files."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from saprof import atomic
from saprof.plots import frames

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": "0.15",
    "axes.edgecolor": "0.35",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.8,
    "xtick.color": "0.25",
    "ytick.color": "0.25",
    "lines.linewidth": 1.7,
    "lines.markersize": 6,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.handlelength": 3.4,
    "hatch.color": "0.75",
    "hatch.linewidth": 0.7,
    "figure.titlesize": 13.5,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "svg.hashsalt": "saprof",
    "text.parse_math": False,  # names and reasons may contain $
}

NOTES = 5
"""At most this many of the cells that did not run are explained one by one in a figure."""


class Chart(Figure):
    """A figure with its description for readers who cannot see it."""

    alt = ""
    """The description in words. `write` stores it in the files, and notebooks in their outputs."""
    notes: Sequence[str] = ()
    """The lines at the foot in full, if the figure has no room for them."""

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict[str, Any], Any]:
        """The description as metadata of the picture that IPython makes."""
        return {}, {"image/png": {"alt": self.alt}} if self.alt else {}


def write(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and as SVG, each whole or not at all. Returns both paths."""
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    with matplotlib.rc_context(STYLE):
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            if isinstance(figure, Chart) and figure.alt:
                metadata["Description"] = figure.alt
            content = BytesIO()
            figure.savefig(content, format=path.suffix[1:], dpi=150, metadata=metadata)
            atomic.write(path, content.getvalue())
    return paths


def notes(rows: pd.DataFrame) -> list[str]:
    """The reason why each cell has no latency, one per line: `× san10_pairwise 11×11 unfold: would take 3.1 GB; 2.0 GB
    are free`."""
    failed = rows[rows["latency_s"].isna()]
    lines = [
        f"× {row['name']} {frames.footprint_label(row['footprint'])} {row['ran']} {row['mode']}: {row['reason']}"
        for _, row in failed.assign(ran=frames.who(failed)).iterrows()
    ]
    return lines


def _few(lines: Sequence[str], width: int) -> list[str]:
    """The lines for which a figure has room, each with at most two lines of the page."""
    more = sum(line.startswith("×") for line in lines) - NOTES
    kept = [*lines[: len(lines) - more], f"× and {more} more that did not run"] if more > 0 else lines
    return [textwrap.shorten(line, 2 * width, placeholder=" …") for line in kept]


def finish(figure: Figure, title: str, lines: Sequence[str], provenance: str, finding: str = "", alt: str = "") -> None:
    """The finding above, if there is one, and the title, which says what is drawn, below it; without a finding, the
    title alone. At the foot, in small print, are the cells that did not run and the source of the numbers.

    `alt` describes what is drawn for readers who cannot see it; the finding is put before it.
    """
    width = int(13 * figure.get_figwidth())
    few = _few(lines, width)
    wrapped = [textwrap.fill(line, width) for line in few]
    head = textwrap.fill(finding, int(9.8 * figure.get_figwidth()))
    shown = figure.suptitle(f"{head}\n" if head else title, x=0.01, ha="left")
    if head:
        below = {"xycoords": shown, "va": "bottom", "ha": "left", "fontsize": 10.5, "color": "0.35"}
        figure.add_artist(Annotation(title, (0, 0), annotation_clip=False, **below))
    figure.supxlabel("\n".join([*wrapped, provenance]), x=0.01, ha="left", fontsize=9, color="0.35", linespacing=1.4)
    if isinstance(figure, Chart):
        figure.alt = " ".join(filter(None, [f"{finding}." if finding else "", alt]))
        figure.notes = () if few == [" ".join(line.split()) for line in lines] else tuple(lines)


def title(what: str, rows: pd.DataFrame) -> str:
    """The title of a figure: its content, and the fields that all its rows share."""
    shared = [f"{rows[column].iloc[0]}" for column in ("mode", "dtype", "device") if rows[column].nunique() == 1]
    batch = [f"n = {rows['n'].iloc[0]}"] if rows["n"].nunique() == 1 else []
    return "  ·  ".join([what, *shared, *batch])
