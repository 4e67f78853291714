"""Figures of the studies: claims, rotated images, attacked images, footprints, and the attention of a trained network.

All but the last take a DataFrame, the rows of a page, and return a matplotlib Figure.
"""

# pandas does not annotate the type of an indexed DataFrame:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportReturnType=false

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saprof.plots.looks import look_of_family
from saprof.plots.scales import linear_axis, plain
from saprof.plots.style import STYLE, Chart, finish
from saprof.text import counted
from studies.judging.statistics import CONTRADICTED, EQUIVALENT, SUPPORTED
from studies.reproduction import records
from studies.reproduction.report import page

VERDICTS = {SUPPORTED: "#4f9a12", CONTRADICTED: "#6a0f12", EQUIVALENT: "#8a63c7"}
"""Colours of verdicts that decide a claim; the others are gray."""

PAPER = {"marker": "_", "markersize": 15, "markeredgewidth": 2.2, "linestyle": "none", "alpha": 0.75}
"""The mark of a value that the paper prints: a dash, in the colour of its family."""


def frame(folder: str | Path, *tables: str) -> pd.DataFrame:
    """The rows of these tables of a recorded reproduction; the column `caution` says what readers must know about
    them."""
    results = records.read(Path(folder) / records.FILE)
    pages = [page(table, results) for table in tables]
    return pd.concat([pd.DataFrame(p.rows).assign(caution=p.caution) for p in pages], ignore_index=True)


def claims_figure(rows: pd.DataFrame, provenance: str = "") -> Figure:
    """The difference of every row from its base: the paper's, and ours with its corrected interval."""
    claims = rows.dropna(subset=["difference"])
    if claims.empty:
        raise ValueError("no row is compared with another; expected those of Tables 3 to 8")
    with matplotlib.rc_context(STYLE):
        figure = Chart(figsize=(13, 0.36 * len(claims) + 1.8), layout="constrained")
        paper, ours = figure.subplots(1, 2, sharey=True)
        places = np.arange(len(claims))[::-1]
        paper.plot(claims["paper_difference"], places, "|", color="0.2", markersize=12, markeredgewidth=2.2)
        for place, (_, row) in zip(places, claims.iterrows(), strict=True):
            colour = VERDICTS.get(str(row["verdict"]).partition(" (")[0], "0.55")
            ours.plot([row["difference_low"], row["difference_high"]], [place, place], color=colour, linewidth=2)
            ours.plot(row["difference"], place, "o", color=colour)
        labels = [f"{r.network} {r.family}, {r.setting}\nagainst {r.against}" for r in claims.itertuples()]
        paper.set_yticks(places, labels, fontsize="small")
        for axes, title in ((paper, "the paper, ImageNet"), (ours, "here, with Holm's interval over seeds")):
            axes.axvline(0, color="0.7", linewidth=1)
            axes.set_title(title, loc="left", fontsize="medium")
            axes.set_xlabel("difference in top-1, points")
            axes.margins(x=0.1)
            linear_axis(axes.xaxis)
        for name, colour in [*VERDICTS.items(), ("undecided, or not applicable", "0.55")]:
            ours.plot([], [], "o-", color=colour, label=name)
        figure.legend(frameon=False, fontsize="small", loc="outside lower right", ncols=4)
        _sign(figure, claims, "Differences of top-1 accuracy, the paper's and ours", _verdicts(claims), provenance)
    return figure


def turned_figure(rows: pd.DataFrame, provenance: str = "") -> Figure:
    """The drop in accuracy on rotated images: the paper's as a dash, ours with its interval."""
    return _families(rows[rows["measure"] == "top-1 drop"], "drop in top-1 accuracy, points", provenance)


def attacked_figure(rows: pd.DataFrame, provenance: str = "") -> Figure:
    """Accuracy under targeted PGD against its radius ε, one panel per size of network."""
    rows = rows[rows["measure"] == "top-1"].copy()
    found = rows["setting"].str.extract(r"pgd_(?P<epsilon>\d+)_(?P<step>\d+)_(?P<steps>\d+)").astype(int)
    rows = rows.assign(epsilon=found["epsilon"], steps=found["steps"])
    rows = rows[rows["steps"] == 4]  # lines with one number of steps
    with matplotlib.rc_context(STYLE):
        depths = _depths(rows)
        figure = Chart(figsize=(4.0 * len(depths) + 2.4, 4.2), layout="constrained")
        for axes, (depth, of_depth) in zip(
            figure.subplots(1, len(depths), sharey=True, squeeze=False)[0], depths, strict=True
        ):
            for family, line in of_depth.groupby("family", sort=False):
                look = look_of_family(str(family))
                axes.plot(line["epsilon"], line["ours"], label=f"{family}, here", color=look.colour, marker=look.marker)
                axes.fill_between(line["epsilon"], line["low"], line["high"], color=look.colour, alpha=0.2, linewidth=0)
                axes.plot(line["epsilon"], line["paper"], label=f"{family}, paper", color=look.colour, **PAPER)
            linear_axis(axes.yaxis)
            axes.set_title(depth, loc="left")
            axes.set_xlabel("ε of PGD, gray levels of 255 (4 steps)")
            axes.set_xticks(sorted(rows["epsilon"].unique()))
        figure.axes[0].set_ylabel("top-1 accuracy, %\n(band: 95 % over seeds)")
        _legend(figure)
        found = _verdicts(rows)
        _sign(figure, rows, "Top-1 accuracy under attack against its radius, the paper's and ours", found, provenance)
    return figure


def footprints_figure(rows: pd.DataFrame, provenance: str = "") -> Figure:
    """Accuracy of footprints with equally many taps, and the difference from the square, or else from the first
    footprint; `rows` are those of `studies.reproduction.footprint_shapes.frame`."""
    groups = [group for _, group in rows.groupby("taps", sort=False)]
    sizes = [group["footprint"].nunique() for group in groups]
    with matplotlib.rc_context(STYLE):
        figure = Chart(figsize=(11.5, 0.5 * sum(sizes) + 0.9 * len(groups) + 0.9), layout="constrained")
        panels = figure.subplots(len(groups), 2, squeeze=False, sharey="row", sharex="col", height_ratios=sizes)
        for group, (accuracy, difference) in zip(groups, panels, strict=True):
            names = list(dict.fromkeys(group["footprint"]))
            families = list(dict.fromkeys(group["family"]))
            for number, family in enumerate(families):
                mine = group[group["family"] == family]
                shift = 0.5 * ((number + 0.5) / len(families) - 0.5)
                places = [names.index(name) + shift for name in mine["footprint"]]
                _draw_interval(accuracy, mine, places, family, ("top1", "low", "high"))
                _draw_interval(difference, mine, places, family, ("difference", "difference_low", "difference_high"))
            labels = [f"{name}, the base" if name in set(group["against"]) else name for name in names]
            accuracy.set_yticks(range(len(names)), labels)
            accuracy.set_ylim(len(names) - 0.5, -0.5)
            accuracy.set_title(f"{group['taps'].iloc[0]} taps")
            difference.axvline(0, color="0.7", linewidth=1)
            linear_axis(accuracy.xaxis)
            linear_axis(difference.xaxis)
        panels[-1, 0].set_xlabel("top-1, %  (bar: 95 % over seeds)")
        panels[-1, 1].set_xlabel("difference to the base, points  (bar: Holm's interval)")
        _legend(figure)
        _sign(figure, rows, "Top-1 accuracy of footprints with equally many taps", _shapes(rows), provenance)
    return figure


def detectors_figure(rows: pd.DataFrame, provenance: str = "") -> Figure:
    """Costs of five detectors as shares of those of convolutions, and the difference in average precision: the paper's
    as dashes, ours as points; `rows` are those of `studies.reproduction.detectors.evidence`."""
    labels = [f"{row.backbone} in the backbone,\n{row.heads} in the heads" for row in rows.itertuples()]
    places = np.arange(len(rows))[::-1]
    with matplotlib.rc_context(STYLE):
        figure = Chart(figsize=(13, 4.6), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, name, title in ((panels[0], "params", "parameters"), (panels[1], "flops", "FLOPs")):
            axes.plot(rows[f"{name}_share_paper"], places, "|", color="0.2", markersize=16, label="the paper, COCO")
            axes.plot(rows[f"{name}_share"], places, "o", color=DETECTORS, label="miniature")
            axes.set(title=title, xlabel="share of the convolutional detector's", xlim=(0.5, 1.05))
        _draw_precision(panels[2], rows, places)
        panels[0].set_yticks(places, labels, fontsize="small")
        for axes in panels:
            linear_axis(axes.xaxis)
        panels[0].set_ylim(-0.9, len(rows) - 0.6)
        panels[1].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(0.05, 0.62))
        least = rows["flops_share_paper"].min()
        alt = f"Detectors of attention, in the paper with down to {plain(least)} of the FLOPs of convolutions."
        foot = "  ·  ".join(filter(None, [rows["caution"].iloc[0], provenance]))
        finish(figure, "Detectors of convolutions and of attention", [], foot, _detected(rows), alt)
    return figure


DETECTORS = "#aa4499"
"""The colour of our detectors: that of stand-alone attention."""


def _draw_precision(axes: Axes, rows: pd.DataFrame, places: np.ndarray) -> None:
    """The difference in average precision from convolutions, with Holm's interval."""
    axes.axvline(0, color="0.7", linewidth=1)
    axes.plot(rows["paper_difference"].astype(float), places, "|", color="0.2", markersize=16)
    axes.hlines(places, rows["difference_low"].astype(float), rows["difference_high"].astype(float), color=DETECTORS)
    axes.plot(rows["difference"].astype(float), places, "o", color=DETECTORS)
    axes.set(title="average precision", xlabel="difference from convolutions, points")
    axes.margins(x=0.2)
    if rows["difference"].isna().to_numpy().all():
        axes.text(0.5, 0.02, "no trained detector is recorded", transform=axes.transAxes, ha="center", color="0.35")


def _detected(rows: pd.DataFrame) -> str:
    """The finding: by how much attention lowers the costs in the paper, and what our differences say."""
    last = rows.iloc[-1]
    saved = [f"{100 * (1 - last[f'{name}_share_paper']):.0f} % of the {of}" for name, of in SHARES.items()]
    said = f"In the paper, attention everywhere saves {' and '.join(saved)}"
    decided = _verdicts(rows)
    return f"{said}; {decided[0].lower()}{decided[1:]}" if decided else said


SHARES = {"params": "parameters", "flops": "FLOPs"}


def _shapes(rows: pd.DataFrame) -> str:
    """`4 of 21 differences to the base are resolved: 4 losses`."""
    compared = rows.dropna(subset=["difference_low", "difference_high"])
    gains, losses = int((compared["difference_low"] > 0).sum()), int((compared["difference_high"] < 0).sum())
    if compared.empty:
        return ""
    spelled = [counted(gains, "gain")] * bool(gains) + [f"{losses} loss{'es' * (losses > 1)}"] * bool(losses)
    resolved, bases = gains + losses, compared["against"].unique()
    many = f"{resolved or 'None'} of {counted(len(compared), 'difference')} to the base"
    many = many.replace("the base", "the square") if all(base.startswith("square") for base in bases) else many
    return f"{many} {'is' if resolved < 2 else 'are'} resolved" + (f": {' and '.join(spelled)}" if resolved else "")


def _verdicts(rows: pd.DataFrame) -> str:
    """`3 of 12 differences that the paper reports are decided here: 2 supported, 1 contradicted`."""
    claims = rows.dropna(subset=["paper_difference", "difference"])
    if claims.empty:
        return ""
    verdicts = claims["verdict"].astype(str).str.partition(" (")[0]
    counts = {word: int((verdicts == word).sum()) for word in VERDICTS}
    decided = sum(counts.values())
    many = f"{decided or 'None'} of the {counted(len(claims), 'difference')} that the paper reports"
    many = many.replace(f"{decided} of the", "All") if decided == len(claims) else many
    spelled = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    return f"{many} {'is' if decided < 2 else 'are'} decided here" + (f": {spelled}" if spelled else "")


def _legend(figure: Figure) -> None:
    """The legend of the first panel, at the right."""
    figure.axes[len(figure.axes) - 1 if len(figure.axes) < 4 else 1].legend(
        *figure.axes[0].get_legend_handles_labels(), frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.02)
    )


def _draw_interval(axes: Axes, rows: pd.DataFrame, places: Sequence[float], family: str, names: Sequence[str]) -> None:
    """The values of a family, with their intervals if they have one."""
    value, low, high = (rows[name].astype(float) for name in names)
    look = look_of_family(family)
    axes.hlines(places, low, high, color=look.colour, linewidth=1.5)
    axes.plot(value, places, look.marker, color=look.colour, label=family)


def looked_at_figure(network: str | Path, number: int, centres: Sequence[tuple[int, int]], groups: int = 4) -> Figure:
    """The attention of a network trained on digits, a file of `saprof.save`, at these centres of a test image: the
    weights of the first groups of its first attention."""
    import torch

    import saprof
    from saprof.plots.pictures import attention_picture
    from studies import data
    from studies.config import Config
    from studies.training.classification import Classifier

    digits = data.load(Config(model=Path(network).stem, data="digits"))
    classifier = Classifier(saprof.load(network), digits).eval()
    pixels = digits.view(digits.test.read(number))
    with torch.no_grad():
        predicted = digits.classes[int(classifier(pixels[None]).argmax())]
    path, alpha = next(iter(saprof.attention_weights(classifier, pixels[None]).items()))
    footprint = classifier.get_submodule(path).footprint
    label = digits.classes[int(digits.test.labels[number])]
    title = f"{Path(network).stem}: a {label}, read as {predicted}"
    return attention_picture(pixels[0].numpy(), alpha[0, :groups].numpy(), footprint, centres, title)


def _families(rows: pd.DataFrame, label: str, provenance: str) -> Figure:
    """One panel per network size, with one position per setting and one marker per family."""
    with matplotlib.rc_context(STYLE):
        depths = _depths(rows)
        figure = Chart(figsize=(4.0 * len(depths) + 2.4, 4.2), layout="constrained")
        for axes, (depth, of_depth) in zip(
            figure.subplots(1, len(depths), sharey=True, squeeze=False)[0], depths, strict=True
        ):
            settings = list(dict.fromkeys(of_depth["setting"]))
            for shift, (family, line) in zip((-0.22, 0, 0.22), of_depth.groupby("family", sort=False), strict=False):
                _draw_family(axes, family, line, [settings.index(s) + shift for s in line["setting"]])
            axes.set_xticks(range(len(settings)), [s.replace("_", "\n") for s in settings])
            axes.set_title(depth, loc="left")
        figure.axes[0].set_ylabel(label)
        linear_axis(figure.axes[0].yaxis)
        _legend(figure)
        found = _verdicts(rows)
        _sign(figure, rows, f"The {label.partition(',')[0]} on rotated images, the paper's and ours", found, provenance)
    return figure


def _draw_family(axes: Axes, family: str, line: pd.DataFrame, places: list[float]) -> None:
    look = look_of_family(family)
    bars = [line["ours"] - line["low"], line["high"] - line["ours"]]
    here = {"color": look.colour, "marker": look.marker, "linestyle": "", "label": f"{family}, here (95 % over seeds)"}
    axes.errorbar(places, line["ours"], bars, capsize=2, **here)
    axes.plot(places, line["paper"], label=f"{family}, paper", color=look.colour, **PAPER)


def _depths(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of ResNet26 and SAN10, of ResNet38 and SAN15, of ResNet50 and SAN19, each with its title."""
    size = {"26": "10", "38": "15", "50": "19"}
    numbers = rows["network"].map(lambda name: (number := re.sub(r"\D", "", name)) and size.get(number, number))
    resnets = {san: resnet for resnet, san in size.items()}
    return [(f"SAN{n}, ResNet{resnets[n]}", of_depth) for n, of_depth in rows.groupby(numbers, sort=False)]


def _sign(figure: Chart, rows: pd.DataFrame, description: str, finding: str, provenance: str) -> None:
    """Title, caution, provenance, and the description in words."""
    caution = rows["caution"].iloc[0].partition(";")[0]
    value = next(
        column
        for column in ("ours", "top1", "difference")
        if column in rows and not rows[column].isna().to_numpy().all()
    )
    low, high = rows[value].min(), rows[value].max()
    where = rows.loc[[rows[value].idxmin(), rows[value].idxmax()]]
    named = [", ".join(f"{one[name]}" for name in NAMED if one.get(name)) for one in where.to_dict("records")]
    alt = f"{description}. Ours: from {plain(low)} ({named[0]}) to {plain(high)} ({named[1]})."
    finish(figure, description, [], "  ·  ".join(filter(None, [caution, provenance])), finding, alt)


NAMED = ("network", "family", "setting", "footprint")
"""The columns that name a row in a description."""
