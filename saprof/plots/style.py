"""What all figures share: rows as a DataFrame, colours and markers, axes, titles and files."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from saprof import atomic
from saprof.models.catalogue import MODELS, NamedModel
from saprof.operators.attention import DEFAULTS
from saprof.quantities import Quantity, who_ran
from saprof.records.rows import Row

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
    "legend.handlelength": 2.8,
    "hatch.color": "0.75",
    "hatch.linewidth": 0.7,
    "figure.titlesize": 13.5,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "svg.hashsalt": "saprof",
    "text.parse_math": False,  # names and reasons may contain $
}

LOOKS = {
    "pairwise_attention": ("#332288", "o"),
    "pairwise_summation": ("#56b4e9", "v"),
    "pairwise_subtraction": ("#0072b2", "o"),
    "pairwise_hadamard_product": ("#44aa99", "P"),
    "pairwise_concatenation": ("#117733", "X"),
    "pairwise_dot_product": ("#999933", "<"),
    "patchwise_attention": ("#882255", "s"),
    "patchwise_star_product": ("#e69f00", "*"),
    "patchwise_clique_product": ("#cc79a7", "h"),
    "patchwise_concatenation": ("#d55e00", "s"),
    "aggregation": ("#222222", "^"),
    "stand_alone_attention": ("#aa4499", ">"),
    "convolution_stem": ("#cc6677", "d"),
    "convolution": ("#666666", "D"),
}
"""Colour and marker of operators, and of the networks made of them. The colours are from the palettes of Okabe and Ito
and of Tol, which readers with any colour vision can distinguish. Pairwise colours are cool, patchwise ones warm."""

FAMILIES = {"convolution": "convolution", "stand_alone": "stand_alone_attention"}
FAMILIES |= {family: f"{family}_{relation}" for family, (relation, *_) in DEFAULTS.items()}
"""The entry of LOOKS that a family has."""

SHADE = {15: 0.7, 38: 0.7, 19: 0.45, 50: 0.45}
"""By depth: the share of the light that the colour of a deeper network keeps."""

LINES = {"numba": "-", "unfold": "--", "cuda": "-."}
BACKENDS = {"numba": ("#0072b2", "o"), "unfold": ("#d55e00", "s"), "cuda": ("#009e73", "^"), "torch": ("#444444", "D")}
"""Colour and marker in panels of one operator or network."""

SPELLED = {"latency_s": "a latency", "peak_bytes": "a peak of memory"}
"""The nouns that name fields in sentences."""

NOTES = 5
"""At most this many of the cells that did not run are explained one by one in a figure."""


@dataclass(frozen=True)
class Look:
    """Colour and marker of one name or of one backend."""

    colour: str
    marker: str


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a DataFrame with one column per field, without samples. Without rows it has only the columns.

    Rows of layers are left out: they are parts of networks, and `saprof.plots.profile_page` draws them.
    """
    columns = [field.name for field in fields(Row) if field.name != "samples_s"]
    return pd.DataFrame([asdict(row) for row in rows if row.kind != "layer"], columns=columns)


def column_of(rows: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """The column of a quantity, in its unit."""
    return quantity.in_unit(rows[quantity.column].astype(float))


def label_of_bars(quantity: Quantity) -> str:
    """The label of an axis along which intervals are bars, and not bands."""
    return quantity.label.replace("band", "bar")


def write(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and as SVG, each whole or not at all. Returns both paths."""
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    with matplotlib.rc_context(STYLE):
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            content = BytesIO()
            figure.savefig(content, format=path.suffix[1:], dpi=150, metadata=metadata)
            atomic.write(path, content.getvalue())
    return paths


def attempted(rows: pd.DataFrame, field: str | None = None) -> pd.DataFrame:
    """The rows without those that no backend can run (the tables name these). Raises ValueError if no row has
    `field`."""
    rows = rows.loc[rows["status"] != "unsupported"].copy()
    if field is not None and not rows[field].notna().any():
        raise ValueError(f"no row has {SPELLED[field]}: {_statuses(rows)}")
    return rows


def _statuses(rows: pd.DataFrame) -> str:
    """A text such as `3 are oom, 1 is error`, or a note that there are no rows."""
    counts = rows["status"].value_counts(sort=False)
    return ", ".join(f"{n} {'is' if n == 1 else 'are'} {status}" for status, n in counts.items()) or "nothing was tried"


def look(name: str) -> Look:
    """The colour and marker of an operator or a network in every figure. A network looks like its relation, and a
    deeper one is darker."""
    model = MODELS.get(name)
    kind = name if model is None else _kind_of_look(model)
    known = list(LOOKS.values())
    colour, marker = LOOKS.get(kind) or known[zlib.crc32(name.encode()) % len(known)]
    light = SHADE.get(model.depth, 1) if model else 1
    return Look(to_hex(tuple(light * channel for channel in to_rgb(colour))), marker)


def _kind_of_look(model: NamedModel) -> str:
    if model.convolution_stem:
        return "convolution_stem"
    return f"{model.family}_{model.relation}" if model.relation else FAMILIES[model.family]


def look_of_family(family: str) -> Look:
    """The colour and marker of a family: those of its usual relation."""
    return look(FAMILIES.get(family, family))


def who(rows: pd.DataFrame) -> pd.Series:
    """Who computed each row: `numba`, `numba fused`, `unfold+compile`."""
    attentions = rows["attention"].astype(object).where(rows["attention"].notna(), None)
    rans = map(who_ran, rows["backend"], attentions, rows["compiled"].astype(bool))
    return pd.Series(list(rans), rows.index, dtype=object)


def line_of(ran: str) -> dict[str, Any]:
    """Line style and filling by what computed a row, distinguishable in grey. Unfold is open, compiled is half open."""
    backend = ran.split()[0].split("+")[0]
    compiled = ran.endswith("+compile")
    fill = "left" if compiled else "none" if backend == "unfold" else "full"
    style = ":" if compiled and backend != "unfold" else LINES.get(backend, "-")
    return {"linestyle": style, "fillstyle": fill, "markerfacecoloralt": "white"}


def look_of(ran: str) -> dict[str, Any]:
    """The same with a colour and a marker, for panels of one operator or network."""
    colour, marker = BACKENDS.get(ran.split()[0].split("+")[0], BACKENDS["torch"])
    return line_of(ran) | {"color": colour, "marker": marker}


def settings(rows: pd.DataFrame, columns: Iterable[str]) -> pd.Series:
    """The other columns in which rows of one name differ, as text: `train_step, n = 8, 28×28`."""
    alike = {"v": ["name", "h"]}  # channels usually follow from the map, as in SAN's stages
    parts = [
        _worded(rows, column)
        for column in columns
        if rows.groupby(alike.get(column, ["name"]))[column].nunique(dropna=False).max() > 1
    ]
    if not parts:
        return pd.Series("", index=rows.index)
    return pd.concat(parts, axis=1).agg(", ".join, axis=1)


def _worded(rows: pd.DataFrame, column: str) -> pd.Series:
    match column:
        case "n":
            return "n = " + rows["n"].astype(str)
        case "h":
            return rows["h"].astype(str) + "×" + rows["w"].astype(str)
        case "v":
            return rows["v"].map(lambda v: "" if pd.isna(v) else f"{v:.0f} channels")
    return rows[column].astype(str)


def shape(footprint: str) -> str:
    """A footprint without its size: `square`, `dilated ×2`, `cross boundary=zero`."""
    kind, *options = footprint.split()
    kind, _, size = kind.partition(":")
    dilation = f" ×{size.partition('x')[2]}" if kind == "dilated" else ""
    return " ".join([kind + dilation, *options])


def footprint_label(footprint: str) -> str:
    """`7×7` for `square:7`, `own` for a network's own footprints, otherwise the text that `Footprint.parse` reads."""
    kind, *options = footprint.split()
    kind, _, size = kind.partition(":")
    named = {"square": f"{size}×{size}", "default": "own"}.get(kind, footprint.split()[0].replace(":", " "))
    return " ".join([named, *options])


def log_axis(axis: Axis) -> None:
    """Ticks at powers of ten and at 2 and 5 times these, as plain numbers, with a light grid."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
    axis.axes.grid(axis=axis.axis_name)


def taps_axis(axes: Axes, rows: pd.DataFrame) -> None:
    """Ticks at the footprints of the rows, each with its taps below."""
    square = rows[rows["footprint"].str.startswith("square")]
    labels = square["footprint"].map(footprint_label).str.split().str[0]
    sides = dict(zip(square["taps"].astype(int), labels, strict=True))
    taps = sorted(rows["taps"].astype(int).unique())
    axes.set_xticks(taps, [f"{sides[k]}\n{k}" if k in sides else f"\n{k}" for k in taps])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("footprint, and its taps")


def notes(rows: pd.DataFrame) -> list[str]:
    """The reason why each cell has no latency, one per line: `× san10_pairwise 11×11 unfold: would take 3.1 GB; 2.0 GB
    are free`."""
    failed = rows[rows["latency_s"].isna()]
    lines = [
        f"× {row['name']} {footprint_label(row['footprint'])} {row['ran']} {row['mode']}: {row['reason']}"
        for _, row in failed.assign(ran=who(failed)).iterrows()
    ]
    more = len(lines) - NOTES
    return [*lines[:NOTES], f"× and {more} more that did not run"] if more > 0 else lines


def finish(figure: Figure, title: str, lines: Sequence[str], provenance: str) -> None:
    """The title above; below, in small print, the cells that did not run and the source of the numbers."""
    width = int(13 * figure.get_figwidth())
    wrapped = [textwrap.fill(textwrap.shorten(line, 2 * width, placeholder=" …"), width) for line in lines]
    figure.suptitle(title, x=0.01, ha="left")
    figure.supxlabel("\n".join([*wrapped, provenance]), x=0.01, ha="left", fontsize=9, color="0.35", linespacing=1.4)


def title(what: str, rows: pd.DataFrame) -> str:
    """The title of a figure: its content, and the fields that all its rows share."""
    shared = [f"{rows[column].iloc[0]}" for column in ("mode", "dtype", "device") if rows[column].nunique() == 1]
    batch = [f"n = {rows['n'].iloc[0]}"] if rows["n"].nunique() == 1 else []
    return "  ·  ".join([what, *shared, *batch])
