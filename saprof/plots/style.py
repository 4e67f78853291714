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
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from saprof import atomic
from saprof.models.catalogue import MODELS, NamedModel
from saprof.operators.attention import DEFAULTS
from saprof.quantities import Quantity, who_ran
from saprof.records.calibration import Calibration, above_roof, share
from saprof.records.rows import DOUBTFUL, Row

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

LOOKS = {
    "pairwise_attention": ("#332288", "p"),
    "pairwise_summation": ("#56b4e9", "v"),
    "pairwise_subtraction": ("#0072b2", "o"),
    "pairwise_hadamard_product": ("#44aa99", "P"),
    "pairwise_concatenation": ("#117733", "X"),
    "pairwise_dot_product": ("#999933", "<"),
    "patchwise_attention": ("#882255", "H"),
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

OTHERS = ("#7f9fbf", "#b08d57", "#5fae57", "#9a7fd1", "#c9728b")
"""Colours of names that are not in LOOKS, such as your own networks."""

FAMILIES = {"convolution": "convolution", "stand_alone": "stand_alone_attention"}
FAMILIES |= {family: f"{family}_{relation}" for family, (relation, *_) in DEFAULTS.items()}
"""The entry of LOOKS that the usual network of a family has."""

FAMILY_LOOKS = {
    "convolution": ("#2c4a3a", "D"),
    "pairwise": ("#008a92", "o"),
    "patchwise": ("#a8400a", "s"),
    "stand_alone": ("#e858e0", ">"),
}
"""Colour and marker of families of networks. Their greys differ."""

SHADE = {15: 0.7, 38: 0.7, 19: 0.45, 50: 0.45}
"""By depth: the share of the light that the colour of a deeper network keeps."""

BACKENDS = {"numba": "#2418c8", "unfold": "#f0103c", "cuda": "#a673ff", "torch": "#4d2a12"}
"""Colours in panels of one operator or network. Neither LOOKS nor FAMILY_LOOKS has one of them: on a page, a colour has
one meaning."""

MARKERS = {"numba": "opd8", "unfold": "shPX", "cuda": "^v<>", "torch": "DDHH"}
"""Markers in these panels: of a backend as it is, fused, compiled, and both. Plain torch fuses nothing."""

DASHES = {"numba": (), "unfold": (4, 2), "cuda": (6, 2, 1.5, 2), "torch": (1.5, 1.2)}
"""Dashes and gaps of the line of a backend, in line widths."""

SPELLED = {"latency_s": "a latency", "peak_bytes": "a peak of memory"}
"""The nouns that name fields in sentences."""

HOLLOW = "_doubtful"
"""The label of hollow points."""

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


@dataclass(frozen=True)
class Look:
    """Colour and marker of one name, family or backend."""

    colour: str
    marker: str


def frame(rows: Sequence[Row], roofs: Calibration | None = None) -> pd.DataFrame:
    """Rows as a DataFrame with one column per field, without samples. Without rows it has only the columns.

    With the roofs of the machine, it also has `roof_share`, the least time over the measured time, and `above_roof`,
    whether a row is faster than the machine allows; figures then mark these measurement errors. Rows of layers are left
    out: they are parts of networks, and `saprof.plots.profile_page` draws them.
    """
    columns = [field.name for field in fields(Row) if field.name != "samples_s"]
    kept = [row for row in rows if row.kind != "layer"]
    found = pd.DataFrame([asdict(row) for row in kept], columns=columns)
    return found if roofs is None else found.assign(**_beside_roofs(kept, roofs))


def _beside_roofs(rows: Sequence[Row], roofs: Calibration) -> dict[str, list[Any]]:
    return {
        "roof_share": [share(row, roofs) for row in rows],
        "above_roof": [above_roof(row, roofs) for row in rows],
    }


def with_roofs(rows: pd.DataFrame, roofs: Calibration) -> pd.DataFrame:
    """A table of `frame` with the columns that depend on the roofs."""
    names = [field.name for field in fields(Row) if field.name in rows]
    records = rows[names].astype(object).where(rows[names].notna(), None).to_dict("records")
    return rows.assign(**_beside_roofs([Row(**{str(k): v for k, v in one.items()}) for one in records], roofs))


def doubtful(rows: pd.DataFrame) -> pd.Series:
    """Whether each row has a latency that should not be believed: it is unstable or contended, or faster than the
    machine allows."""
    found = rows["status"].isin(DOUBTFUL)
    return found | rows["above_roof"].eq(True) if "above_roof" in rows else found


def plot(axes: Axes, x: Any, y: Any, doubtful: Any, **look: Any) -> list[Line2D]:
    """A line with its points, or points alone: filled where a row is sound, hollow where it is `doubtful`. The line of
    rows that are all doubtful is pale.

    Every figure that draws latencies, or what is computed from them, draws its points here. Returns the artists.
    """
    x, y, hollow = np.asarray(x, float), np.asarray(y, float), np.asarray(doubtful, bool)
    found = axes.plot(x, y, markevery=~hollow, **look)
    if hollow.any():
        found[0].set_alpha(PALE if hollow.all() else None)
        found += axes.plot(x[hollow], y[hollow], **(look | {"linestyle": "none", "label": HOLLOW}), **HOLLOW_LOOK)
    return found


PALE = 0.45
"""The opacity of what is drawn of doubtful rows only."""

HOLLOW_LOOK = {"markerfacecolor": "white", "markeredgewidth": 1.1, "zorder": 3}
"""Nothing but a doubtful row is hollow."""


def doubts(rows: pd.DataFrame) -> str:
    """The reasons for which some of the rows are doubtful: `unstable or contended`; empty if none is."""
    kinds = [status for status in DOUBTFUL if (rows["status"] == status).any()]
    kinds += ["above the roof"] if "above_roof" in rows and rows["above_roof"].eq(True).any() else []
    return ", ".join(kinds[:-1]) + " or " * (len(kinds) > 1) + "".join(kinds[-1:])


def legend_of_doubtful(rows: pd.DataFrame) -> list[Line2D]:
    """The entry of a legend that explains hollow points; empty if no row is doubtful."""
    why = doubts(rows)
    return [legend_of_hollow(f"{why},\ndo not trust")] if why else []


def legend_of_hollow(why: str) -> Line2D:
    """The entry of a legend that says why points are hollow."""
    return Line2D([], [], color="0.3", marker="o", linestyle="none", label=f"hollow: {why}", **HOLLOW_LOOK)


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
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            if isinstance(figure, Chart) and figure.alt:
                metadata["Description"] = figure.alt
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
    colour, marker = LOOKS.get(kind) or _look_of_other(name)
    light = SHADE.get(model.depth, 1) if model else 1
    return Look(to_hex(tuple(light * channel for channel in to_rgb(colour))), marker)


def _look_of_other(name: str) -> tuple[str, str]:
    number, markers = zlib.crc32(name.encode()), [marker for _, marker in LOOKS.values()]
    return OTHERS[number % len(OTHERS)], markers[number // len(OTHERS) % len(markers)]


def _kind_of_look(model: NamedModel) -> str:
    if model.convolution_stem:
        return "convolution_stem"
    return f"{model.family}_{model.relation}" if model.relation else FAMILIES[model.family]


def look_of_family(family: str) -> Look:
    """The colour and marker of a family of networks."""
    return Look(*FAMILY_LOOKS[family]) if family in FAMILY_LOOKS else look(family)


def who(rows: pd.DataFrame) -> pd.Series:
    """Who computed each row: `numba`, `numba fused`, `unfold+compile`."""
    attentions = rows["attention"].astype(object).where(rows["attention"].notna(), None)
    rans = map(who_ran, rows["backend"], attentions, rows["compiled"].astype(bool))
    return pd.Series(list(rans), rows.index, dtype=object)


def line_of(ran: str) -> dict[str, Any]:
    """The line style by what computed a row, such as `numba fused`; all of them can be distinguished in grey."""
    backend, fused, compiled = _parts(ran)
    dashes = DASHES.get(backend, DASHES["torch"])
    if fused:
        dashes = tuple(2.5 * part for part in dashes) or (10, 2)
    if compiled:
        dashes = (*(dashes or (7, 1.5)), 1, 1.5, 1, 1.5)
    return {"linestyle": (0, dashes) if dashes else "-"}


def look_of(ran: str) -> dict[str, Any]:
    """The same with a colour and a marker, for panels of one operator or network."""
    backend, _, _ = _parts(ran)
    return line_of(ran) | {"color": BACKENDS.get(backend, BACKENDS["torch"]), "marker": marker_of(ran)}


def marker_of(ran: str) -> str:
    """The marker of what computed a row."""
    backend, fused, compiled = _parts(ran)
    return MARKERS.get(backend, MARKERS["torch"])[fused + 2 * compiled]


def _parts(ran: str) -> tuple[str, bool, bool]:
    """The backend, whether it ran fused, and whether it was compiled."""
    plain = ran.removesuffix("+compile")
    return plain.split()[0], " " in plain, plain != ran


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
