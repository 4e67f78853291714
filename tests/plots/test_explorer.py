"""The explorer draws every choice."""

import made_up
import numpy as np
import pytest

pytest.importorskip("ipywidgets", reason="needs the extra notebooks")

import IPython.display

from saprof.plots.explorer import METRICS, PICKED, explorer, metric_figure
from saprof.plots.style import frame


def rows(names, size):
    for number, (name, backend, k) in enumerate((n, b, k) for n in names for b in ("numba", "unfold") for k in (3, 5)):
        facts = {"name": name, "footprint": f"square:{k}", "taps": k * k, "backend": backend, "h": size, "w": size}
        latency = {f"latency_{part}s": number + 1.0 for part in ("", "low_", "high_")}
        yield made_up.row(key=f"{number}", **facts, **latency, peak_bytes=1000 * (number + 1))


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr(IPython.display, "display", found.append)
    return found


def controls(widget):
    return {control.description: control for control in widget.children[0].children}


@pytest.fixture
def runs():
    one, other = list(rows(["aggregation", "dot", "star"], 8)), list(rows(["clique"], 4))
    return {"one": (frame(one), "machine one"), "other": (frame(other), "machine other")}


def labels(figure):
    return [line.get_label() for line in figure.axes[0].lines]


def test_every_choice_draws_anew(shown, runs):
    pick = controls(explorer(runs))
    assert list(pick) == ["run", "metric", *PICKED]
    assert labels(shown[-1]) == [f"{n}, {b}, forward" for n in ("aggregation", "dot") for b in ("numba", "unfold")]
    pick["name"].value = ("star",)
    pick["backend"].value = ("unfold",)
    assert labels(shown[-1]) == ["star, unfold, forward"]
    (line,) = shown[-1].axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), [[9, 11e3], [25, 12e3]])
    pick["metric"].value = "peak_bytes"
    np.testing.assert_allclose(shown[-1].axes[0].lines[0].get_xydata(), [[9, 0.011], [25, 0.012]])
    pick["run"].value = "other"
    assert pick["name"].options == ("clique",)
    assert labels(shown[-1]) == ["clique, numba, forward", "clique, unfold, forward"]


def test_what_cannot_be_drawn_is_said(shown, runs, capsys):
    pick = controls(explorer(runs))
    drawn = len(shown)
    pick["metric"].value = "saved_bytes"
    assert len(shown) == drawn
    assert "no row has a footprint and saved_bytes" in capsys.readouterr().out


def test_an_unknown_metric(runs):
    with pytest.raises(ValueError, match="unknown metric 'speed'; expected 'latency_s'"):
        metric_figure(runs["one"][0], "speed")


@pytest.mark.parametrize("metric", ["latency_s", "peak_bytes"])
def test_units_are_on_the_axis(runs, metric):
    assert metric_figure(runs["one"][0], metric).axes[0].get_ylabel() == METRICS[metric].label
