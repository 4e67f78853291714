"""Growth with taps and pixels: which rows are a line, and its slope."""

from dataclasses import replace

import made_up
import pytest
from charts import hollow, row

from saprof import plots, report
from saprof.plots.gallery import drawings
from saprof.plots.growth import growing, growth_figure
from saprof.records.runs import read_run


def by_taps(power=1.0, memory=1.0, sizes=(3, 5, 7, 9, 11), **fields):
    """Rows of a latency and a peak that are powers of the taps, with linear operations."""
    found = []
    for size in sizes:
        latency = 1e-5 * (size**2) ** power
        facts = {
            "latency_s": latency, "latency_low_s": 0.99 * latency, "latency_high_s": 1.01 * latency,
            "peak_bytes": round(1e6 * (size**2) ** memory), "flops_hardware": 1000 * size**2,
        }  # fmt: skip
        found.append(row(size=size, **(facts | fields)))
    return found


def by_pixels(sides=(28, 56, 112), **fields):
    """Rows whose latency and operations grow as the pixels do."""
    return [
        replace(one, h=side, w=side, latency_s=1e-7 * side**2, peak_bytes=100 * side**2, flops_hardware=10 * side**2)
        for side, one in zip(sides, [row(size=7, **fields) for _ in sides], strict=True)
    ]


def test_slopes_are_the_powers():
    (line,) = growing(plots.frame(by_taps(power=0.9, memory=0.5)))
    assert line.along == "taps"
    assert line.is_linear
    assert line.slopes["latency_s"] == pytest.approx(0.9)
    assert line.slopes["peak_bytes"] == pytest.approx(0.5, abs=1e-3)
    (line,) = growing(plots.frame(by_pixels()))
    assert (line.along, len(line.rows)) == ("pixels", 3)
    assert line.slopes["latency_s"] == pytest.approx(1.0)


def test_a_line_has_rows_that_differ_in_nothing_else():
    several = [*by_taps(), *by_taps(backend="unfold"), *by_taps(n=8), *by_taps(v=32), *by_taps(mode="train_step")]
    assert len(growing(plots.frame(several))) == 5
    stages = [row(size=7, h=side, w=side, v=7168 // side) for side in (112, 56, 28)]
    assert not growing(plots.frame(stages))


def test_two_sizes_have_no_slope():
    with pytest.raises(ValueError, match=r"^nothing has a slope; expected sound rows at 3 footprints"):
        growth_figure(plots.frame(by_taps(sizes=(3, 5))))


def test_no_slope_rests_on_a_doubtful_row():
    rows = by_taps()
    rows[2] = replace(rows[2], status="contended", latency_s=1.0)
    (line,) = growing(plots.frame(rows))
    assert line.slopes["latency_s"] == pytest.approx(1.0)
    some = [replace(one, status="unstable") if one.taps > 25 else one for one in by_taps()]
    (line,) = growing(plots.frame(some))
    assert line.slopes["latency_s"] is None
    assert line.slopes["peak_bytes"] == pytest.approx(1.0, abs=1e-3)


def test_doubtful_latencies_are_hollow_and_memory_is_not():
    rows = by_taps()
    rows[2] = replace(rows[2], status="contended")
    latency, memory = growth_figure(plots.frame(rows)).axes
    assert hollow(latency) == [(49, pytest.approx(0.49))]
    assert not hollow(memory)
    assert "hollow" in latency.get_legend().get_texts()[-1].get_text()


def test_the_slopes_are_beside_the_lines():
    figure = growth_figure(plots.frame([*by_taps(power=0.8), *by_taps(power=0.8, name="pairwise_attention")]))
    for axes, slope in zip(figure.axes, ("0.80", "1.00"), strict=True):
        assert [text.get_text() for text in axes.texts] == [slope, slope]
        heights = sorted(text.get_position()[1] for text in axes.texts)
        assert heights[1] - heights[0] > 0.05
        assert heights[1] <= 1
    assert figure.get_suptitle().startswith("Where operations grow linearly, the slopes are: latency 0.80 with numba")
    assert "aggregation, numba, with taps: latency 0.80, peak memory 1.00, operations 1.00" in figure.alt


def test_operations_that_do_not_grow_linearly_are_beside_the_slope():
    figure = growth_figure(plots.frame(by_taps(power=0.8, flops_hardware=1000)))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.80 (0.00)"]
    assert figure.get_suptitle().startswith("The slopes are: latency 0.80 with numba")


def test_taps_and_pixels_have_a_panel_each():
    figure = growth_figure(plots.frame([*by_taps(), *by_pixels()]))
    assert [axes.get_xlabel() for axes in figure.axes] == ["footprint, and its taps", "map or image"] * 2
    assert all(axes.get_xscale() == axes.get_yscale() == "log" for axes in figure.axes)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["28×28", "56×56", "112×112"]


def test_a_report_shows_growth_where_sizes_were_measured(tmp_path):
    assert not [one for one in drawings(by_taps(sizes=(3, 5)), None, "") if one.stem.startswith("growth")]
    folder = made_up.run_folder(tmp_path / "run", [*by_taps(), *by_pixels()])
    page = report.write([read_run(folder)], tmp_path / "page").read_text()
    assert "Growth of operators with taps and pixels" in page
    assert (tmp_path / "page" / "growth-operators.svg").exists()
