"""A colour has one meaning on a page; lines that are equal, large numbers and labels can be read."""

import itertools
import re

import matplotlib
import numpy as np
import pytest
from charts import drawn, footer, row, ticks
from matplotlib.colors import to_rgb

from saprof import plots
from saprof.paper.evidence import points
from saprof.plots import layer_kinds, looks, pictures, scales
from saprof.plots.gallery import drawings
from saprof.plots.lines import SIDE_BY_SIDE
from saprof.records.runs import read_run
from studies.reproduction import figures as studies

RANS = [f"{b}{way}{c}" for b in looks.BACKENDS for way in ("", " fused") for c in ("", "+compile")]
RANS = [ran for ran in RANS if not ran.startswith("torch fused")]
SETS = {
    "names": {colour for colour, _ in looks.LOOKS.values()},
    "others": set(looks.OTHERS),
    "families": {colour for colour, _ in looks.FAMILY_LOOKS.values()},
    "backends": set(looks.BACKENDS.values()),
    "kinds of layers": set(layer_kinds.COLOURS.values()),
    "verdicts": set(studies.VERDICTS.values()),
    "pictures": {pictures.TAP, pictures.CENTRE},
}
FROM_LMS = np.array([[0.2104542553, 0.793617785, -0.0040720468], [1.9779984951, -2.428592205, 0.4505937099],
                     [0.0259040371, 0.7827717662, -0.808675766]])  # fmt: skip
TO_LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                   [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
VIEWS = {
    "usual": np.eye(3),
    "without green cones": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                                     [-0.01182, 0.04294, 0.968881]]),
    "without red cones": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                                   [-0.003882, -0.048116, 1.051998]]),
}  # fmt: skip
"""The linear colours that readers see (Machado et al., 2009)."""


def linear(colour):
    parts = np.array(to_rgb(colour))
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def distance(one, other, view="usual"):
    """How different two colours look (Oklab; black and white differ by 1)."""
    seen = [FROM_LMS @ np.cbrt(TO_LMS @ np.clip(VIEWS[view] @ linear(colour), 0, 1)) for colour in (one, other)]
    return float(np.linalg.norm(seen[0] - seen[1]))


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SETS, 2)))
def test_sets_of_colours_are_disjoint(one, other):
    """Also to the eye."""
    least = min((distance(a, b), a, b) for a in SETS[one] for b in SETS[other])
    assert least[0] > 0.03, least


@pytest.mark.parametrize("name", ["families", "backends", "verdicts"])
@pytest.mark.parametrize("view", VIEWS)
def test_colours_of_a_panel_differ_for_every_reader(name, view):
    assert min(distance(a, b, view) for a, b in itertools.combinations(SETS[name], 2)) > 0.08


@pytest.mark.parametrize("name", ["families", "backends", "verdicts"])
def test_colours_of_a_panel_differ_in_print(name):
    greys = sorted(np.cbrt(luminance(colour)) for colour in SETS[name])
    assert min(np.diff(greys)) > 0.05


def test_every_way_to_run_has_its_own_line_and_marker():
    found = [looks.look_of(ran) for ran in RANS]
    assert len({str(look["linestyle"]) for look in found}) == len({look["marker"] for look in found}) == len(RANS)


def equal(backends=("numba", "unfold"), names=("aggregation",), **fields):
    return plots.frame(
        [
            row(name, size, backend, **({"latency_s": size * 1e-3, "peak_bytes": size * 10**6} | fields))
            for name in names
            for size in (3, 5, 7)
            for backend in backends
        ]
    )


def page_places(line, figure):
    figure.draw_without_rendering()
    return line.get_transform().transform(np.column_stack(line.get_data()))


@pytest.mark.parametrize("draw", [plots.latency_figure, plots.memory_figure])
@pytest.mark.parametrize("many", [2, 3])
def test_equal_lines_of_backends_are_both_seen(draw, many):
    figure = draw(equal(("numba", "unfold", "cuda")[:many]))
    found = [line for line in figure.axes[0].lines if line.get_label() in looks.BACKENDS]
    values = [list(map(tuple, zip(*line.get_data(), strict=True))) for line in found]
    assert values[0] == values[1], "the data stay as they are"
    for one, other in itertools.combinations(found, 2):
        apart = abs(page_places(one, figure) - page_places(other, figure)).max(axis=1)
        assert (apart > 2 * figure.dpi / 72).all()
    assert SIDE_BY_SIDE in footer(figure)


def test_equal_lines_of_names_are_both_seen():
    """Operations do not depend on the backend, and some operators do equally many."""
    figure = plots.footprint_figure(equal(("numba",), ("pairwise_subtraction", "pairwise_summation")))
    for axes in figure.axes[:3]:
        one, other = [line for line in axes.lines if not line.get_label().startswith("_")][:2]
        assert (abs(page_places(one, figure) - page_places(other, figure)).max(axis=1) > 2).all()


def test_a_short_line_under_a_long_one_is_seen():
    rows = equal()
    rows = rows[~((rows["backend"] == "unfold") & (rows["taps"] == 49))]
    figure = plots.memory_figure(rows)
    one, other = [line for line in figure.axes[0].lines if line.get_label() in looks.BACKENDS]
    assert (abs(page_places(one, figure)[:2] - page_places(other, figure)).max(axis=1) > 2).all()


def test_equal_points_are_both_seen():
    rows = plots.frame([row("san10_pairwise", 3, backend, peak_bytes=10**6) for backend in ("numba", "unfold")])
    figure = plots.memory_figure(rows)
    one, other = [line for line in figure.axes[0].lines if line.get_label() in looks.BACKENDS]
    assert (abs(page_places(one, figure) - page_places(other, figure)).max(axis=1) > 2).all()


def test_lines_that_differ_stay_in_their_place():
    figure = plots.latency_figure(plots.frame([row(size=s, backend=b) for s in (3, 7) for b in ("numba", "unfold")]))
    assert SIDE_BY_SIDE not in footer(figure)
    assert len(drawn(figure.axes[0])) == 2


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1, 1e3, 1e6])
def test_ticks_are_plain_numbers(factor):
    rows = plots.frame(
        [
            row(name, size, backend, latency_s=factor * size, latency_low_s=factor, latency_high_s=factor * 12,
                peak_bytes=int(1e9 * factor) + size,
                flops_paper=int(1e12 * factor) + size, params=int(1e12 * factor) + 1)
            for name in ("san10_pairwise", "aggregation") for size in (3, 11) for backend in ("numba", "unfold")
        ]
    )  # fmt: skip
    for draw in (plots.footprint_figure, plots.latency_figure, plots.memory_figure, plots.cost_figure):
        figure = draw(rows)
        figure.draw_without_rendering()
        for axes in figure.axes:
            texts = [text for text in ticks(axes.yaxis) if text]
            assert texts, "an axis without numbers"
            assert all(axis.get_offset_text().get_text() == "" for axis in (axes.xaxis, axes.yaxis))
            for text in texts:
                assert re.fullmatch(r"−?\d{1,3}(,\d{3})*(\.\d+)?", text), text


def test_numbers_in_sentences_have_separators():
    numbers = {
        0.0975: "0.0975",
        12.44: "12.4",
        100.0: "100",
        1560.4: "1,560",
        1.2e6: "1,200,000",
        0: "0",
        -3.25: "-3.25",
    }
    assert {value: scales.plain(value) for value in numbers} == numbers


def label_boxes(axes):
    return {text: text.get_window_extent() for text in axes.texts if text.get_text()}


def assert_readable(figure):
    """No label of a panel covers another, a point of the panel, or its edge."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = label_boxes(axes)
        for one, other in itertools.combinations(boxes, 2):
            assert not boxes[one].overlaps(boxes[other]), (one.get_text(), other.get_text())
        marks = [line for line in axes.lines if line.get_linestyle() == "None"]
        places = np.concatenate([axes.transData.transform(np.column_stack(line.get_data())) for line in marks])
        for text, box in boxes.items():
            assert axes.bbox.contains(box.x0, box.y0), text.get_text()
            assert axes.bbox.contains(box.x1, box.y1), text.get_text()
            assert not any(box.contains(*place) for place in places), text.get_text()


@pytest.mark.parametrize("run", ["footprint_cpu", "networks_cpu", "stand_alone_cpu"])
@pytest.mark.parametrize("cost", ["flops_paper", "params", "latency_s", "peak_bytes"])
def test_labels_of_recorded_fronts_are_readable(run, cost):
    assert_readable(plots.accuracy_figure(points(read_run(f"studies/recorded/{run}").rows), cost))


@pytest.mark.parametrize("spread", [0, 1e-3, 0.1])
def test_labels_of_crowded_fronts_are_readable(spread):
    """Where there is no room, labels are left out, and the figure says how many."""
    rows = [
        row(name, size, backend, latency_s=1e-3 * (1 + spread * number), latency_low_s=1e-3, latency_high_s=2e-3)
        for number, (name, size, backend) in enumerate(
            itertools.product(("san10_pairwise", "san10_patchwise"), (3, 5, 7, 9, 11), ("numba", "unfold", "cuda"))
        )
    ]
    figure = plots.accuracy_figure(points(rows), "latency_s")
    assert_readable(figure)
    written = sum(len(label_boxes(axes)) for axes in figure.axes)
    notes = " ".join(axes.get_title("right") for axes in figure.axes)
    left = sum(int(number) for number in re.findall(r"(\d+) labels have no room", notes))
    assert written + left == len(points(rows))
    assert written > 10


@pytest.mark.parametrize(("low", "high"), [(1.5, 51), (0.8, 51), (0.02, 0.9), (0.3, 3), (1.01, 1.02)])
def test_colours_of_a_map_have_the_range_of_its_data(low, high):
    """1 is neutral, the largest value on each side that matters has the strongest colour, and numbers are readable."""
    rows = plots.frame(
        [
            fields
            for size, ratio in ((3, low), (5, (low * high) ** 0.5), (7, high))
            for fields in (
                row(size=size),
                row(size=size, backend="unfold", ratio=ratio, ratio_low=0.99 * ratio, ratio_high=1.01 * ratio),
            )
        ]
    )
    figure = plots.speedup_figure(rows)
    heat, bar = figure.axes
    (mesh,) = heat.collections
    assert mesh.norm(0) == 0.5
    if high >= 2:
        assert mesh.norm(np.log2(high)) == pytest.approx(1)
    if low <= 0.5:
        assert mesh.norm(np.log2(low)) == pytest.approx(0)
    assert bar.get_ylim() == pytest.approx((min(0, np.log2(low)), max(0, np.log2(high))))
    figure.draw_without_rendering()
    for text in heat.texts:
        x, _ = text.get_position()
        colour = matplotlib.colormaps["RdBu"](mesh.norm(mesh.get_array()[0][int(x)]))
        one, other = sorted((luminance(colour[:3]), luminance(text.get_color())))
        assert (other + 0.05) / (one + 0.05) > 4.5
        box = text.get_window_extent()
        cell = heat.transData.transform([(int(x), 0), (int(x) + 1, 1)])
        assert cell[0][0] < box.x0
        assert box.x1 < cell[1][0]


@pytest.mark.parametrize("run", ["footprint_cpu", "networks_cpu"])
def test_titles_say_the_finding(run):
    found = read_run(f"studies/recorded/{run}")
    for drawing in drawings(found.rows, found.calibration, found.caption):
        try:
            figure = drawing.draw()
        except ValueError:
            continue
        assert any(character.isdigit() for character in figure.get_suptitle()) or "front" in figure.get_suptitle()
        assert figure.alt.startswith(" ".join(figure.get_suptitle().split("\n")).strip().replace("- ", "-"))
        assert len(figure.alt) > 80


@pytest.mark.parametrize("run", ["backends_cpu", "relations_cpu", "fused_cpu"])
def test_no_two_figures_of_a_page_have_one_title(run):
    found = read_run(f"studies/recorded/{run}")
    titles = [drawing.title for drawing in drawings(found.rows, found.calibration, found.caption)]
    assert len({*titles}) == len(titles)
