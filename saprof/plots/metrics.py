"""One metric of rows against the footprint, the map, the batch or the name, for any choice of rows."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes

from saprof import quantities
from saprof.plots import frames, looks, marks, scales, style
from saprof.plots.beside import ALIKE, speedups
from saprof.plots.lines import TIMES, Series, map_label, remarks, separate
from saprof.quantities import Quantity
from saprof.records.runs import Recorded
from saprof.text import counted, unknown

SPEEDUP = "speedup_over_"
"""A metric of this name and a backend is the speed-up over that backend."""
ROOF = "roof_share"
MANY = 12
"""The largest number of lines that readers can distinguish."""

AXES = {
    "kind": "kind",
    "name": "operator or network",
    "run": "run",
    "mode": "mode",
    "map": "map",
    "channels": "channels",
    "n": "batch",
    "dtype": "dtype",
    "device": "device",
    "threads": "threads",
    "backend": "backend",
    "attends": "attention",
    "compiled": "compiled",
    "footprint": "footprint",
}
"""The columns in which rows may differ, in words. Earlier ones are chosen first."""
WAYS = ("backend", "attends", "compiled")
"""The columns that say what computed a row; counts do not depend on them."""
AGAINST = {"footprint": "footprint", "map": "map", "n": "batch", "name": "operator or network"}
"""The horizontal axes, in words."""
FOLLOWERS = {"map": ("channels", "footprint"), "name": ("kind", "channels")}
"""The columns that usually follow from the horizontal axis, and then do not distinguish lines."""


@dataclass(frozen=True)
class Metric:
    """A quantity on the vertical axis."""

    column: str
    noun: str
    label: str
    per_unit: float = 1.0
    bounds: tuple[str, str] | None = None
    """The columns with the ends of the 95 % interval."""
    counted: bool = False
    """Whether it follows from the declaration, so that it does not depend on what computed the row."""
    mark: float | None = None
    """A horizontal line, in the unit of the label."""


def _of(quantity: Quantity, **more: Any) -> Metric:
    return Metric(quantity.column, quantity.noun, quantity.label, quantity.per_unit, **more)


METRICS = {
    one.column: one
    for one in (
        _of(quantities.LATENCY, bounds=("latency_low_s", "latency_high_s")),
        _of(quantities.MEMORY),
        _of(quantities.SAVED),
        _of(quantities.IMAGES),
        Metric(ROOF, "share of the roof", "% of roof", 0.01, mark=100),
        _of(quantities.HARDWARE_FLOPS, counted=True),
        _of(quantities.PAPER_MFLOPS, counted=True),
        _of(quantities.MACS, counted=True),
        _of(quantities.PARAMS, counted=True),
    )
}
"""The metrics by their column, beside the speed-ups."""


def frame_of(run: Recorded) -> pd.DataFrame:
    """The rows of a run as `saprof.plots.frame` has them, with the share of the roof, the threads and the run."""
    found = frames.frame(run.cells, run.calibration)
    return ready(found.assign(run=run.name, threads=run.provenance["threads"]))


def ready(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with every column of AXES; an unknown value is the same in all of them."""
    missing = {name: None for name in ("run", "threads", ROOF, "above_roof") if name not in rows}
    channels = [
        " ".join(f"{name}{value:.0f}" for name, value in zip("rvg", of, strict=True) if not pd.isna(value))
        for of in zip(rows["r"], rows["v"], rows["g"], strict=True)
    ]
    attends = rows["attention"].astype(object).where(rows["attention"].notna(), "")
    sizes = rows["h"].astype(str) + "×" + rows["w"].astype(str)
    return rows.assign(**missing, channels=channels, attends=attends, map=sizes, ran=frames.who(rows))


def metrics_of(rows: pd.DataFrame) -> list[str]:
    """The metrics that some of the rows have, with a speed-up over each backend beside which others were measured."""
    known = [name for name in METRICS if name in rows and rows[name].notna().any()]
    timed = rows[rows["latency_s"].notna()]
    beside = [set(group) for _, group in timed.groupby(ALIKE, dropna=False)["backend"] if group.size > 1]
    bases = [name for name in timed["backend"].unique() if any(name in backends for backends in beside)]
    return known + [SPEEDUP + name for name in bases]


def metric_of(name: str) -> Metric:
    """The metric of that name; ValueError for an unknown one."""
    if name.startswith(SPEEDUP):
        over = name.removeprefix(SPEEDUP)
        label = f"times as fast as {over} (band: 95 % interval)"
        return Metric("speedup", f"speed-up over {over}", label, bounds=("low", "high"), mark=1)
    if name not in METRICS:
        raise ValueError(unknown("metric", name, [*METRICS, f"{SPEEDUP}unfold"]))
    return METRICS[name]


def with_metric(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows that have the metric, with its column. Their `doubtful` is true if the value should not be believed.
    ValueError if there is none."""
    metric = metric_of(name)
    rows = ready(rows)
    if name.startswith(SPEEDUP):
        rows = speedups(rows, name.removeprefix(SPEEDUP))
    else:
        rows = rows.assign(doubtful=frames.doubtful(rows) & (name in TIMES))
    found = rows[rows[metric.column].notna()]
    if found.empty:
        raise ValueError(f"no row has {name}; expected other rows, or another metric")
    return found


def against(rows: pd.DataFrame) -> list[str]:
    """The horizontal axes along which something differs, the most telling one first."""
    same = ["name", "map", "n", "mode", "dtype", "device", "run", *WAYS]
    groups = {
        "footprint": rows[rows["taps"].notna()].groupby(same, dropna=False)["taps"],
        "map": rows.groupby([one for one in same if one != "map"], dropna=False)["map"],
        "n": rows.groupby([one for one in [*same, "footprint"] if one != "n"], dropna=False)["n"],
    }
    found = [name for name, group in groups.items() if group.nunique().max() > 1]
    return [*found, "name"] if rows["name"].nunique() > 1 or not found else found


def metric_figure(
    rows: pd.DataFrame, metric: str = "latency_s", provenance: str = "", across: str | None = None
) -> style.Chart:
    """One metric of the rows, with a line for every setting in which they differ.

    `metric` is a field of rows such as `peak_bytes`, `roof_share` (of `frame_of`), or `speedup_over_unfold`. `across`
    is the horizontal axis: `footprint`, `map`, `n` or `name`; by default the first along which rows differ. ValueError
    for an unknown name, or if no row has the metric.
    """
    drawn = with_metric(rows, metric)
    across = across or against(drawn)[0]
    if across not in AGAINST:
        raise ValueError(unknown("axis", across, list(AGAINST)))
    if across == "footprint":
        drawn = drawn[drawn["taps"].notna()]
        if drawn.empty:
            raise ValueError(f"no row with {metric} has a footprint; expected other rows, or another axis")
    return figure_of(drawn, metric_of(metric), across, provenance)


def figure_of(drawn: pd.DataFrame, what: Metric, across: str, provenance: str = "") -> style.Chart:
    """The same for rows of `with_metric`."""
    placed = lined(drawn, across, what)
    with matplotlib.rc_context(style.STYLE):
        figure = style.Chart(figsize=(9.5, 5.2), layout="constrained")
        axes = figure.subplots()
        series = [
            _draw(axes, line.sort_values("x"), what, _look(line, placed, what), across == "name")
            for _, line in placed.groupby("label", sort=False)
        ]
        if (placed[what.column] > 0).all():
            scales.log_axis(axes.yaxis)
        _label_across(axes, placed, across)
        if what.mark is not None:
            axes.axhline(what.mark, color="0.4", linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        axes.set_ylabel(what.label)
        separate(axes, series)
        if placed["label"].nunique() > 1 or placed["doubtful"].any():
            lines = [one[0] for one in series]
            doubtful = placed[placed["doubtful"]]
            explained = marks.legend_of_doubtful(doubtful)
            if len(doubtful) and not explained:  # only the rows that these are compared with
                explained = [marks.legend_of_hollow("compared with\na doubtful row")]
            axes.legend(handles=[*lines, *explained], loc="upper left", bbox_to_anchor=(1.01, 1.02))
        subject = _subject(placed, across, what)
        alt = f"{subject}, with {counted(len(series), 'line')}: {'; '.join(placed['label'].unique())}."
        style.finish(figure, style.title(subject, placed), remarks(figure), provenance, alt=alt)
    return figure


def _subject(rows: pd.DataFrame, across: str, what: Metric) -> str:
    """`Latency of aggregation against the footprint`."""
    of = f" of {rows['name'].iloc[0]}" if rows["name"].nunique() == 1 else ""
    return f"{what.noun[:1].upper()}{what.noun[1:]}{of} against the {AGAINST[across]}"


def lined(rows: pd.DataFrame, across: str, what: Metric) -> pd.DataFrame:
    """The rows with `x`, and with `label`, which distinguishes all rows that have the same `x`. Of the rows that agree
    in everything, and of equal counts, only the last one is kept."""
    rows = rows.assign(x=_x(rows, across), shape=rows["footprint"].map(shape))
    follow = FOLLOWERS.get(across, ())
    names = [one for one in AXES if one not in (*follow, "footprint", *WAYS) and one != across]
    columns = ["name", *(["ran"] if not what.counted else []), *(one for one in names if one != "name"), "shape"]
    keys = [one for one in columns if one != across and rows[one].nunique(dropna=False) > 1]
    for more in ("attends", "footprint", *follow, *((*WAYS, "mode") if what.counted else ())):
        if more not in keys and rows.duplicated([*keys, "x"], keep=False).any():
            same = rows.groupby([*keys, "x"], dropna=False)
            depends = what.column if what.counted and more in (*WAYS, "mode") else more
            if same[depends].nunique(dropna=False).max() > 1 and same[more].nunique(dropna=False).max() > 1:
                keys.append(more)
    rows = rows.drop_duplicates([*keys, "x"], keep="last")
    setting = [one for one in keys if one not in ("name", "ran")]
    return rows.assign(label=_joined(rows, keys), setting=_joined(rows, setting))


def shape(footprint: str) -> str:
    """A footprint without its size: `square`, `dilated ×2`, `random @seed1`."""
    _, seeded, seed = footprint.partition("@")
    return frames.shape(footprint) + (f" @{seed.split()[0]}" if seeded else "")


def _joined(rows: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """The texts of the columns, one after the other."""
    words = [[worded(column, value) for value in rows[column]] for column in columns]
    return pd.Series([", ".join(filter(None, of)) for of in zip(*words, strict=True)] or "", rows.index, dtype=object)


def worded(column: str, value: Any) -> str:
    """A value in words: `n = 8`, `4 threads`, `7×7`."""
    match column:
        case "n":
            return f"n = {value}"
        case "threads":
            return counted(value, "thread")
        case "compiled":
            return "compiled" if value else "eager"
        case "footprint":
            return "own footprints" if value == "default" else frames.footprint_label(value)
        case "channels":
            return f"channels {value}" if value else ""
    return "" if value is None else str(value)


def _x(rows: pd.DataFrame, across: str) -> pd.Series:
    """The place of each row: its taps, or the number of its map, batch or name."""
    if across == "footprint":
        return rows["taps"].astype(int)
    if across == "map":
        keys = list(zip(-rows["h"], -rows["w"], rows["taps"].fillna(0), strict=True))
        places = sorted(set(keys))
    else:
        keys = list(rows[across])
        places = list(dict.fromkeys(sorted(keys) if across == "n" else keys))
    return pd.Series([places.index(key) for key in keys], rows.index)


def _label_across(axes: Axes, rows: pd.DataFrame, across: str) -> None:
    if across == "footprint":
        return scales.taps_axis(axes, rows)
    first = rows.drop_duplicates("x").sort_values("x")
    by_row = {"map": map_label}.get(across, lambda row: str(row[across]))
    labels = [by_row(row) for _, row in first.iterrows()]
    turned = across == "name" and len(labels) > 3
    axes.set_xticks(first["x"], labels, rotation=30 if turned else 0, ha="right" if turned else "center")
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xlabel("map (footprint)" if across == "map" else AGAINST[across])


def _look(line: pd.DataFrame, rows: pd.DataFrame, what: Metric) -> dict[str, Any]:
    """Colour and marker by name; if there is one name, by backend; and if there is one backend, too, by setting. The
    line shows what computed the row, and its width the setting."""
    first = line.iloc[0]
    settings = list(rows["setting"].unique())
    number = settings.index(first["setting"])
    if what.counted or (rows["name"].nunique() > 1 and line["name"].nunique() == 1):
        look = looks.look(first["name"])
        found = ({} if what.counted else looks.line_of(first["ran"])) | {"color": look.colour, "marker": look.marker}
    else:
        found = looks.look_of(first["ran"])
    if len(settings) > 1 and rows["name"].nunique() == 1 and (what.counted or rows["ran"].nunique() == 1):
        colour, marker = list(looks.LOOKS.values())[number % len(looks.LOOKS)]
        return found | {"color": colour, "marker": marker, "label": first["label"]}
    weight = number / max(1, len(settings) - 1)
    return found | {"linewidth": 1.6 + 1.8 * weight, "markersize": 5.5 + 2.5 * weight, "label": first["label"]}


def _draw(axes: Axes, line: pd.DataFrame, what: Metric, look: dict[str, Any], alone: bool) -> Series:
    """One line with its interval. Points that are `alone` are not connected."""
    values = line[what.column].astype(float) / what.per_unit
    found = marks.plot(axes, line["x"], values, line["doubtful"], **look | ({"linestyle": "none"} if alone else {}))
    if what.bounds is not None:
        low, high = (line[bound].astype(float) / what.per_unit for bound in what.bounds)
        if not alone:
            axes.fill_between(line["x"], low, high, color=look["color"], alpha=0.15, linewidth=0)
        axes.vlines(line["x"], low, high, color=look["color"], linewidth=1)
    return found
