"""Rows that the tests of figures draw, and what can be read from a figure."""

import itertools

import made_up
from matplotlib.text import Annotation

KEYS = itertools.count()
BACKENDS = {"unfold": 4.0, "numba": 1.0}
"""Times as slow."""


def row(name="aggregation", size=3, backend="numba", **fields):
    """An operator's row, or a network's, made by hand."""
    network = name.startswith(("san", "resnet"))
    own = {"kind": "model", "h": 224, "w": 224, "params": 10_000_000} if network else {"kind": "operator", "v": 64}
    latency = 1e-3 * size * BACKENDS.get(backend, 2.0)
    facts = {
        "key": f"{next(KEYS)}",
        "name": name,
        "footprint": f"square:{size}",
        "taps": size**2,
        "h": 56,
        "w": 56,
        "backend": backend,
        "flops_paper": 10**9 * size,
        "flops_hardware": 10**6 * size,
        "peak_bytes": 10**6 * size,
        "latency_s": latency,
        "latency_low_s": 0.9 * latency,
        "latency_high_s": 1.2 * latency,
    }
    return made_up.row(**(facts | own | fields))


def failed(name="aggregation", size=11, backend="unfold", **fields):
    nothing = dict.fromkeys(("latency_s", "latency_low_s", "latency_high_s", "peak_bytes"))
    why = {"status": "predicted_oom", "reason": "would take 3.1 GB; 2.0 GB are free"}
    return row(name, size, backend, **(nothing | why | fields))


def drawn(axes):
    """The lines of a panel by label, as lists of (x, y)."""
    return {line.get_label(): list(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines}


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts() if text.get_text()]


def footer(figure):
    return figure._supxlabel.get_text()


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def hollow(axes):
    """The hollow points of a panel, as a list of (x, y)."""
    lines = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    return [point for line in lines for point in zip(*map(list, line.get_data()), strict=True)]


def title_of(figure):
    """The finding, or the description if there is no finding."""
    return " ".join(figure.get_suptitle().split("\n")).strip()


def description_of(figure):
    """The line below the finding."""
    (below,) = [artist for artist in figure.get_children() if isinstance(artist, Annotation)]
    return below.get_text()
