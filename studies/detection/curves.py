"""The figure of precision against recall: of all classes at several IoUs, and of each class at an IoU of 0.5."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from saprof.plots import style
from saprof.plots.style import STYLE, Chart
from studies.detection.evaluation import OVERLAPS, RECALLS, Evaluation, at_iou
from studies.failures import CannotWrite

COLOURS = matplotlib.colormaps["tab10"](range(10))
NAMED = len(COLOURS)
"""With more classes, those of the highest and of the lowest AP50 have a name and a colour, and the others are grey."""
LINES = {OVERLAPS[0]: ("AP50, IoU 0.50", "#0072b2", "-"), OVERLAPS[1]: ("AP75, IoU 0.75", "#d55e00", (0, (5, 1.5)))}
MEAN = ("AP, mean of IoUs 0.50 to 0.95", "#222222", (0, (1.5, 1)))


def write(stem: Path, judged: Evaluation, about: str) -> list[Path]:
    """Write the figure as PNG and SVG, unless no class has an object. Raises CannotWrite if that fails."""
    if not judged.curves:
        return []
    try:
        return style.write(figure(judged, about), stem)
    except OSError as error:
        raise CannotWrite(f"cannot write {error.filename}: {error.strerror}") from None


def figure(judged: Evaluation, about: str) -> Chart:
    """Precision against recall. `about` says what was judged on what. Raises ValueError if no class has an object."""
    if not judged.curves:
        raise ValueError("no class has an object; expected some, for a figure of precision against recall")
    with matplotlib.rc_context(STYLE):
        chart = Chart(figsize=(11.5, 4.6), layout="constrained")
        every, each = chart.subplots(1, 2, sharey=True)
        _draw_mean(every, np.mean([*judged.curves.values()], axis=0))
        _draw_classes(each, judged)
        for axes in (every, each):
            axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall")
            axes.grid(visible=True)
        every.set_ylabel("precision")
        said = ", ".join(f"{name} {_percent(judged.numbers[name])}" for name in ("AP", "AP50", "AP75"))
        described = [f"{name} {_percent(judged.of_class(name)['AP50'])}" for name in _ordered(judged)]
        alt = f"Precision against recall. AP50 of each class: {', '.join(described)}."
        style.finish(chart, "Precision against recall", [], about, said, alt)
    return chart


def _draw_mean(axes: Axes, curves: np.ndarray) -> None:
    lines = [(at_iou(curves, iou), look) for iou, look in LINES.items()]
    for precision, (label, colour, dashes) in [*lines, (curves.mean(axis=0), MEAN)]:
        axes.plot(RECALLS, precision, color=colour, linestyle=dashes, label=f"{label}: {_percent(precision.mean())}")
    axes.set_title("mean of all classes")
    axes.legend(loc="upper right")


def _draw_classes(axes: Axes, judged: Evaluation) -> None:
    ordered = _ordered(judged)
    named = ordered if len(ordered) <= NAMED else [*ordered[: NAMED // 2], *ordered[-NAMED // 2 :]]
    for name in ordered:
        precision = at_iou(judged.curves[name], OVERLAPS[0])
        if name not in named:
            axes.plot(RECALLS, precision, color="0.82", linewidth=0.8, zorder=1)
            continue
        place = named.index(name)
        label = f"{name}: {_percent(precision.mean())}"
        axes.plot(RECALLS, precision, color=COLOURS[place], linestyle="--" if place % 2 else "-", label=label)
    rest = len(ordered) - len(named)
    axes.set_title("each class, IoU 0.50" + f"; the {rest} between them are grey" * bool(rest))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="AP50, the best first")


def _ordered(judged: Evaluation) -> list[str]:
    """The classes with objects, the highest AP50 first."""
    return sorted(judged.curves, key=lambda name: -float(at_iou(judged.curves[name], OVERLAPS[0]).mean()))


def _percent(value: float | None) -> str:
    return "without an object" if value is None else f"{100 * value:.1f} %"
