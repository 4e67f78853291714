"""Doubtful rows can be told apart from sound ones in every figure that draws times."""

import pkgutil
from dataclasses import replace
from functools import partial
from importlib import import_module

import made_up
import matplotlib.colors
import pytest
from charts import row
from matplotlib.patches import Patch

from saprof import plots
from saprof.paper.evidence import points
from saprof.plots import findings, frames, lines, marks
from saprof.plots.gallery import drawings
from saprof.plots.icicle import TIME
from saprof.plots.metrics import metric_figure
from saprof.records.profiles import profiles

EXACT = ("memory-", "cost", "accuracy-flops", "accuracy-params", "accuracy-peak")
"""Drawings of what a busy machine does not change: counts, and memory."""
EXACT_FIGURES = {"memory_figure", "cost_figure", "footprint_picture", "attention_picture"}


def rows(doubts=True):
    """Networks and operators at two footprints, with two backends; the larger footprint is doubtful with numba."""
    found = []
    for name in ("san10_pairwise", "san10_patchwise", "aggregation", "pairwise_attention"):
        for size, backend in ((3, "numba"), (3, "unfold"), (7, "numba"), (7, "unfold")):
            is_doubtful = size == 7 and backend == "numba"
            ratio = {"ratio": 4.0, "ratio_low": 3.9, "ratio_high": 4.1} if backend == "unfold" else {}
            status = "unstable" if name == "aggregation" else "contended"
            fields = {"compulsory_bytes": 10**6, "status": status if is_doubtful and doubts else "ok"}
            found.append(row(name, size, backend, **fields, **ratio))
    return found


def is_white(colour):
    return matplotlib.colors.to_rgb(colour) == (1, 1, 1)


def hollow_marks(figure):
    """What is drawn hollow: points, and cells or boxes."""
    marks = []
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_marker() not in ("", "None", None, "_", "|", "x") and is_white(line.get_markerfacecolor()):
                marks += list(zip(*line.get_data(), strict=True))
        marks += [patch.get_xy() for patch in axes.patches if patch.get_fill() and is_white(patch.get_facecolor())]
    return marks


def explained(figure):
    """Whether a legend or the text at the foot explains hollow marks."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    texts = [text.get_text() for legend in legends for text in legend.get_texts()]
    return any("hollow" in text for text in [*texts, figure._supxlabel.get_text()])


STEMS = [drawing.stem for drawing in drawings(rows(), None, "")]


@pytest.mark.parametrize("stem", STEMS)
def test_every_figure_of_a_report_tells_doubtful_rows_apart(stem):
    (one,) = [drawing.draw() for drawing in drawings(rows(), None, "p") if drawing.stem == stem]
    (same,) = [drawing.draw() for drawing in drawings(rows(doubts=False), None, "p") if drawing.stem == stem]
    assert not hollow_marks(same)
    assert not explained(same)
    if stem.startswith(EXACT):
        assert not hollow_marks(one)
    else:
        assert hollow_marks(one)
        assert explained(one)


def figures(found):
    """Every public figure function, called with rows."""
    table = plots.frame(found)
    operators = table[table["kind"] == "operator"]
    return {
        "footprint_figure": partial(plots.footprint_figure, table),
        "latency_figure": partial(plots.latency_figure, table),
        "memory_figure": partial(plots.memory_figure, table),
        "cost_figure": partial(plots.cost_figure, table),
        "speedup_figure": partial(plots.speedup_figure, table),
        "shapes_figure": partial(plots.shapes_figure, operators),
        "accuracy_figure": partial(plots.accuracy_figure, points(found), "latency_s"),
        "roofline_figure": partial(plots.roofline_figure, operators, made_up.roofs()),
        "metric_figure": partial(metric_figure, table),
    }


OF_ROWS = {
    "footprint_figure": 4,
    "latency_figure": 4,
    "speedup_figure": 4,
    "shapes_figure": 2,
    "accuracy_figure": 4,
    "roofline_figure": 2,
    "metric_figure": 4,
}
"""The number of doubtful values that each figure draws. Both networks of 7 × 7 are in two tables of the paper."""


@pytest.mark.parametrize("name", OF_ROWS)
def test_every_doubtful_value_is_hollow_and_every_other_is_not(name):
    assert len(hollow_marks(figures(rows())[name]())) == OF_ROWS[name]
    assert not hollow_marks(figures(rows(doubts=False))[name]())


def test_no_figure_function_is_forgotten():
    """A new figure has to be in one of these lists."""
    modules = [import_module(f"saprof.plots.{module.name}") for module in pkgutil.iter_modules(plots.__path__)]
    named = {name for module in modules for name in vars(module) if not name.startswith("_")}
    public = {name for name in named if name.endswith(("_figure", "_picture"))}
    assert public == {*OF_ROWS, *EXACT_FIGURES, "icicle_figure", "growth_figure"}
    assert {*figures(rows())} <= {*OF_ROWS, *EXACT_FIGURES}


@pytest.mark.parametrize(
    ("metric", "count"),
    [("latency_s", 4), ("images_per_s", 4), ("roof_share", 4), ("speedup_over_unfold", 4), ("speedup_over_numba", 4),
     ("peak_bytes", 0), ("flops_hardware", 0)],
)  # fmt: skip
def test_a_metric_is_hollow_if_a_disturbance_changes_it(metric, count):
    table = plots.frame(rows()).assign(roof_share=0.5, images_per_s=1.0)
    figure = metric_figure(table, metric)
    assert len(hollow_marks(figure)) == count
    assert explained(figure) == (count > 0)


def test_rows_above_their_roof_are_hollow():
    table = plots.frame([row(size=3, compulsory_bytes=10**6), row(size=7, compulsory_bytes=10**6)])
    fast = table.assign(above_roof=[False, True])
    figure = plots.latency_figure(fast)
    assert hollow_marks(figure) == [(49, pytest.approx(7))]
    assert explained(figure)
    assert "above the roof" in frames.doubts(fast)


def test_a_line_of_doubtful_rows_alone_is_pale():
    (axes,) = plots.latency_figure(plots.frame([row(size=size, status="unstable") for size in (3, 7)])).axes
    (line, _) = axes.lines
    assert line.get_alpha() == marks.PALE


def test_doubtful_boxes_of_an_icicle_are_hollow():
    sound = [replace(one, status="ok") if one.status == "unstable" else one for one in made_up.profile_rows()]
    some = [replace(one, status="unstable") if one.kind == "layer" else one for one in sound]
    assert not hollow_marks(plots.icicle_figure(profiles(sound), TIME))
    figure = plots.icicle_figure(profiles(some), TIME)
    assert any(isinstance(patch, Patch) and patch.get_label() == marks.HOLLOW for patch in figure.axes[0].patches)
    assert explained(figure)


def test_no_finding_rests_on_doubtful_rows():
    """Neither from doubtful rows alone, nor from a doubtful one among sound ones."""
    only = [row(size=size, backend=backend, status="unstable") for size in (3, 7) for backend in ("numba", "unfold")]
    for find in (findings.of_speed, findings.of_memory, findings.of_growth, findings.of_shapes):
        assert find(plots.frame(only)) == ""
    assert findings.of_speed(plots.frame(rows())).endswith("(4 of 8 rows; the others are doubtful)")
    assert findings.of_speed(plots.frame([])) == ""


@pytest.mark.parametrize(
    ("ratio", "finding"),
    [
        ((4.0, 3.9, 4.1), "numba is 4.0 times as fast as unfold"),
        ((0.5, 0.4, 0.6), "numba takes 2.0 times as long as unfold"),
        ((1.02, 0.9, 1.1), "numba and unfold do not differ measurably"),
    ],
)
def test_a_finding_is_as_cautious_as_its_interval(ratio, finding):
    fields = dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True))
    found = findings.of_speed(plots.frame([row(), row(backend="unfold", **fields)]))
    assert found == finding


def test_a_gap_that_grows_is_in_the_finding():
    grown = [row(size=3), row(size=3, backend="unfold", ratio=2.0, ratio_low=1.9, ratio_high=2.1)]
    grown += [row(size=7), row(size=7, backend="unfold", ratio=4.0, ratio_low=3.9, ratio_high=4.1)]
    assert findings.of_speed(plots.frame(grown)) == "numba is 2.0 to 4.0 times as fast as unfold", "two are no trend"
    grown += [row(size=5), row(size=5, backend="unfold", ratio=3.0, ratio_low=2.9, ratio_high=3.1)]
    text = "numba is 2.0 to 4.0 times as fast as unfold, and the gap grows with the footprint"
    assert findings.of_speed(plots.frame(grown)) == text
    turned = findings.of_speed(plots.frame(grown), "numba")
    assert turned == "unfold takes 2.0 to 4.0 times as long as numba"


def test_what_stays_the_same_does_not_grow_by_a_factor_of_one():
    counts = {3: (10, 100), 7: (10, 200)}
    rows = [
        made_up.network("san10_pairwise", f"square:{side}", taps=side**2, params=params, flops_paper=flops)
        for side, (params, flops) in counts.items()
    ]
    rows += [
        made_up.network("resnet26", f"square:{side}", taps=side**2, params=side, flops_paper=100 * side)
        for side in (3, 7)
    ]
    assert findings.of_costs(plots.frame(rows)) == (
        "From 3×3 to 7×7, FLOPs grow by a factor of 2.0 (san10_pairwise) to 2.3 (resnet26), and parameters stay the "
        "same (san10_pairwise) or grow by up to a factor of 2.3 (resnet26)"
    )


def test_memory_and_counts_are_not_marked():
    assert lines.TIMES == ("latency_s", "images_per_s", "roof_share")
