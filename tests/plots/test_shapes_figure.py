"""The figure over shapes draws the values of the rows, with equally many taps side by side."""

import pytest
from charts import drawn, failed, footer, hollow, legend_of, row, ticks

from saprof import Footprint, plots
from saprof.plots.shapes import shapes_figure

SHAPES = ["square:5", "square:3", "cross:13", "cross:5", "random:25@seed1", "random:25@seed2"]


def measured(name, backend, footprint, factor=1.0, make=row, **fields):
    taps = Footprint.parse(footprint).taps
    times = {} if make is failed else {"latency_s": factor * 1e-3, "latency_low_s": 0, "latency_high_s": 1}
    peak = {} if make is failed else {"peak_bytes": round(factor * 1e6)}
    return make(name, 3, backend, footprint=footprint, taps=taps, **times, **peak, **fields)


def rows(**fields):
    return plots.frame(
        [
            measured(name, backend, footprint, number + factor, **fields)
            for name in ("pairwise_attention", "aggregation")
            for backend, factor in (("numba", 1), ("unfold", 10))
            for number, footprint in enumerate(SHAPES)
        ]
    )


def test_every_shape_has_a_line_and_every_backend_a_mark_on_it():
    figure = shapes_figure(rows(), "some machine")
    latency, others, memory, _ = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["pairwise_attention", "aggregation", "", ""]
    names = ["9 taps   3×3", "cross 5", "25 taps   5×5", "cross 13", "random 25@seed1", "random 25@seed2"]
    assert ticks(latency.yaxis) == names
    order = [1, 3, 0, 2, 4, 5]  # of SHAPES, by their taps
    for axes in (latency, others, memory):
        numba, unfold = [points for points in drawn(axes).values() if len(points) == len(SHAPES)]
        assert numba == [(pytest.approx(number + 1), y) for y, number in enumerate(order)]
        assert unfold == [(pytest.approx(number + 10), y) for y, number in enumerate(order)]
    assert legend_of(others) == ["numba", "unfold"]
    assert "some machine" in footer(figure)


def test_what_did_not_run_and_what_is_doubtful_is_marked():
    shown = rows(status="unstable")
    broken = measured("aggregation", "unfold", "disk:9", make=failed)
    figure = shapes_figure(plots.frame([broken, measured("aggregation", "numba", "disk:9", status="contended")]))
    assert [y for _, y in hollow(figure.axes[0])] == [0]
    assert "did not run, see below" in legend_of(figure.axes[0])
    assert "× aggregation disk 9 unfold forward: would take 3.1 GB" in footer(figure)
    assert len(hollow(shapes_figure(shown).axes[0])) == 2 * len(SHAPES)


def test_rows_without_footprints_are_refused():
    with pytest.raises(ValueError, match="no row has a footprint"):
        shapes_figure(plots.frame([row("san10_pairwise", footprint="default", taps=None)]))
    with pytest.raises(ValueError, match="no row has a latency"):
        shapes_figure(plots.frame([failed()]))
