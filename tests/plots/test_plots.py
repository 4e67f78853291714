"""Figures draw the values of the rows. Cells that did not run, and only these, are marked and explained."""

import itertools
import math

import made_up
import numpy as np
import pandas as pd
import pytest
from charts import (
    BACKENDS,
    description_of,
    drawn,
    failed,
    footer,
    hollow,
    legend_of,
    row,
    ticks,
    title_of,
)

from saprof import plots
from saprof.paper.evidence import points
from saprof.plots import looks, style
from saprof.plots.beside import speedups
from saprof.plots.lines import SIDE_BY_SIDE


def sweep(name="aggregation", sizes=(3, 7, 11), backends=("numba", "unfold"), **fields):
    """Rows of one sweep: the first backend has no ratio, the others have their ratio to it."""
    first = BACKENDS[backends[0]]
    rows = []
    for size, backend in itertools.product(sizes, backends):
        ratio = BACKENDS[backend] / first
        within = (
            {"ratio": ratio, "ratio_low": 0.95 * ratio, "ratio_high": 1.05 * ratio} if backend != backends[0] else {}
        )
        rows.append(row(name, size, backend, **(within | fields)))
    return plots.frame(rows)


def test_the_overview_draws_the_rows():
    rows = pd.concat([sweep("san10_pairwise"), sweep("aggregation")], ignore_index=True)
    figure = plots.footprint_figure(rows, "some machine")
    assert len(figure.axes) == 6
    (flops, latency, memory), (macs, _, _) = figure.axes[:3], figure.axes[3:]
    assert drawn(flops)["san10_pairwise"] == [(9, 3), (49, 7), (121, 11)]
    assert drawn(macs)["aggregation"] == [(9, 3), (49, 7), (121, 11)]
    assert drawn(latency)["numba"] == [(9, pytest.approx(3)), (49, pytest.approx(7)), (121, pytest.approx(11))]
    assert drawn(latency)["unfold"] == [(9, pytest.approx(12)), (49, pytest.approx(28)), (121, pytest.approx(44))]
    assert drawn(memory)["unfold"] == [(9, 3), (49, 7), (121, 11)]
    assert flops.get_ylabel() == "GFLOPs per image (paper convention)"
    assert macs.get_ylabel() == "MFLOPs (hardware convention)"
    assert latency.get_ylabel() == "latency, ms (band: 95 % interval)"
    assert memory.get_ylabel() == "peak memory, MB"
    assert {axes.get_xlabel() for axes in figure.axes} == {"footprint, and its taps"}
    assert ticks(latency.xaxis) == ["3×3\n9", "7×7\n49", "11×11\n121"]
    assert latency.get_yscale() == memory.get_yscale() == "log"
    assert legend_of(memory) == ["san10_pairwise", "numba", "unfold", "SAN Table 7, as printed"]
    assert footer(figure).endswith("some machine")
    finding = "From 3×3 to 11×11, the latency of networks grows 3.7 times with numba and unfold"
    assert title_of(figure) == finding
    assert (
        description_of(figure)
        == "Cost, latency and memory against the footprint  ·  forward  ·  float32  ·  cpu  ·  n = 1"
    )


def test_the_band_is_the_interval():
    latency = plots.footprint_figure(sweep(backends=("numba",))).axes[1]
    (band, bars) = latency.collections
    corners = band.get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((0.9 * 3, 1.2 * 11))
    assert [list(bar[:, 1]) for bar in bars.get_segments()] == [pytest.approx([0.9 * k, 1.2 * k]) for k in (3, 7, 11)]


def test_backends_differ_in_grey():
    latency = plots.footprint_figure(sweep()).axes[1]
    numba, unfold = latency.lines
    assert numba.get_color() == unfold.get_color() == looks.look("aggregation").colour
    assert numba.get_linestyle() != unfold.get_linestyle()
    assert numba.get_fillstyle() == unfold.get_fillstyle() == "full", "hollow means doubtful"
    found = [looks.look(name) for name in looks.LOOKS]
    assert len({look.colour for look in found}) == len({look.marker for look in found}) == len(found)


def test_names_look_the_same_in_every_figure():
    assert looks.look("san10_pairwise") == looks.look("pairwise_subtraction")
    assert looks.look("san10_patchwise_star_product") == looks.look("patchwise_star_product")
    assert looks.look("resnet26_5x5") == looks.look("resnet26")
    assert looks.look("sasa_resnet26") == looks.look("san10_stand_alone") == looks.look("stand_alone_attention")
    assert looks.look("sasa_resnet26_convolution_stem") not in (looks.look("sasa_resnet26"), looks.look("resnet26"))
    assert looks.look("san15_pairwise") != looks.look("san10_pairwise")
    assert looks.look("my_relation") == looks.look("my_relation")


@pytest.mark.parametrize("draw", [plots.footprint_figure, plots.latency_figure, plots.memory_figure])
def test_what_did_not_run_is_marked_and_explained(draw):
    rows = pd.concat([sweep(sizes=(3, 7)), plots.frame([row(size=11), failed()])], ignore_index=True)
    figure = draw(rows, "some machine")
    panels = [axes for axes in figure.axes if "did not run" in drawn(axes)]
    assert panels
    for axes in panels:
        ((taps, _),) = drawn(axes)["did not run"]
        assert taps == 121
        x, y = np.array(drawn(axes)["unfold"]).T
        assert list(x) == [9, 49, 121]
        assert np.isnan(y).tolist() == [False, False, True], "the line must end, not skip"
    assert [line for line in footer(figure).splitlines() if line != SIDE_BY_SIDE] == [
        "× aggregation 11×11 unfold forward: would take 3.1 GB; 2.0 GB are free",
        "some machine",
    ]
    assert "did not run, see below" in [text for axes in figure.axes if axes.get_legend() for text in legend_of(axes)]


def test_many_failures_are_counted():
    rows = plots.frame([row(), *(failed(size=size) for size in range(3, 17, 2))])
    lines = footer(plots.latency_figure(rows)).splitlines()
    assert sum(line.startswith("× aggregation") for line in lines) == style.NOTES
    assert "× and 2 more that did not run" in lines


def test_unsupported_cells_are_left_to_the_tables():
    rows = plots.frame([row(), row(size=7), failed(backend="cuda", status="unsupported", reason="no kernels")])
    for draw in (plots.footprint_figure, plots.latency_figure, plots.memory_figure):
        figure = draw(rows)
        assert not any("did not run" in drawn(axes) for axes in figure.axes)
        assert "no kernels" not in footer(figure)


def test_cost_beside_the_printed_table():
    rows = pd.concat([sweep("san10_pairwise"), sweep("resnet26", sizes=(3,))], ignore_index=True)
    flops, params = plots.cost_figure(rows).axes
    assert drawn(flops)["san10_pairwise"] == [(9, 3), (49, 7), (121, 11)]
    assert drawn(params)["san10_pairwise"] == [(9, 10), (49, 10), (121, 10)]
    printed = drawn(flops)["SAN Table 7, as printed"]
    assert printed == [(9, 2.4), (25, 4.0), (49, 6.5), (9, 1.7), (25, 1.9), (49, 2.2), (81, 2.5), (121, 3.0)]
    assert (121, 10.5) in drawn(params)["SAN Table 7, as printed"]
    assert params.get_ylabel() == "parameters, M"


def test_what_is_printed_is_of_large_images():
    flops, _ = plots.cost_figure(sweep("san10_pairwise", h=64, w=64)).axes
    assert list(drawn(flops)) == ["san10_pairwise"]


def test_latency_has_a_panel_per_name_and_mode():
    rows = pd.concat([sweep(), sweep("pairwise_subtraction"), sweep(mode="train_step")], ignore_index=True)
    figure = plots.latency_figure(rows)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["aggregation, forward", "pairwise_subtraction, forward", "aggregation, train_step"]
    assert {axes.get_xscale() for axes in figure.axes} == {axes.get_yscale() for axes in figure.axes} == {"log"}
    assert drawn(figure.axes[2])["numba"] == [(9, pytest.approx(3)), (49, pytest.approx(7)), (121, pytest.approx(11))]
    assert figure._supylabel.get_text() == "latency, ms (band: 95 % interval)"


def test_memory_of_two_batches():
    rows = pd.concat([sweep(), sweep(n=8, peak_bytes=10**8)], ignore_index=True)
    (axes,) = plots.memory_figure(rows).axes
    assert drawn(axes)["numba, n = 1"] == [(9, 3), (49, 7), (121, 11)]
    assert drawn(axes)["numba, n = 8"] == [(9, 100), (49, 100), (121, 100)]
    thin, thick = (line.get_linewidth() for line in axes.lines if line.get_label().startswith("numba"))
    assert thin < thick
    assert legend_of(axes) == ["numba", "unfold", "n = 1", "n = 8"]


def test_one_footprint_per_map_is_drawn_over_the_maps():
    rows = plots.frame([row(size=3, h=112, w=112, v=16), row(size=7, h=56, w=56), row(size=7, h=7, w=7, v=512)])
    (axes,) = plots.latency_figure(rows).axes
    assert ticks(axes.xaxis) == ["112×112\n(3×3)", "56×56\n(7×7)", "7×7\n(7×7)"]
    assert drawn(axes)["numba"] == [(0, pytest.approx(3)), (1, pytest.approx(7)), (2, pytest.approx(7))]


def test_names_alone_are_drawn_below_each_other():
    rows = plots.frame(
        [row("san10_pairwise"), row("san10_patchwise", status="contended"), failed("resnet26", 3, "torch")]
    )
    (axes,) = plots.latency_figure(rows).axes
    assert ticks(axes.yaxis) == ["san10_pairwise", "san10_patchwise", "resnet26"]
    assert drawn(axes)["numba"] == [(pytest.approx(3), 0), (pytest.approx(3), 1)]
    assert [y for _, y in drawn(axes)["did not run"]] == [2]
    assert hollow(axes) == [(pytest.approx(3), 1)]


def test_what_disturbs_a_latency_does_not_touch_memory():
    rows = plots.frame([row(), row(size=7, status="unstable")])
    (latency,), (memory,) = plots.latency_figure(rows).axes, plots.memory_figure(rows).axes
    assert hollow(latency) == [(49, pytest.approx(7))]
    assert not hollow(memory)
    assert legend_of(latency) == ["numba", "hollow: unstable,\ndo not trust"]
    assert legend_of(memory) == ["numba"]


def test_shapes_are_lines_of_their_own():
    rows = plots.frame(
        [row(size=size) for size in (3, 5)]
        + [row(size=size, footprint=f"dilated:{size}x2", peak_bytes=10**5) for size in (3, 5)]
        + [row(size=size, footprint=f"square:{size} boundary=zero", peak_bytes=10**4) for size in (3, 5)]
    )
    (axes,) = plots.memory_figure(rows).axes
    assert list(drawn(axes)) == ["numba, square", "numba, dilated ×2", "numba, square boundary=zero"]


def test_speedup_from_ratios_within_rounds():
    """Not from latencies, which were taken at other times."""
    rows = sweep(sizes=(3,))
    rows.loc[rows["backend"] == "unfold", "latency_s"] = 17.0
    (found,) = speedups(rows).to_dict("records")
    assert (found["ran"], found["speedup"], found["apart"]) == ("numba", 4, False)
    assert (found["low"], found["high"]) == pytest.approx((0.95 * 4, 1.05 * 4))
    (turned,) = speedups(rows, over="numba").to_dict("records")
    assert (turned["ran"], turned["speedup"]) == ("unfold", 0.25)
    assert (turned["low"], turned["high"]) == pytest.approx((1 / (1.05 * 4), 1 / (0.95 * 4)))


def test_speedup_of_latencies_measured_apart():
    rows = plots.frame([row(backend="unfold"), row()])
    (found,) = speedups(rows).to_dict("records")
    assert found["apart"]
    assert (found["speedup"], found["low"], found["high"]) == pytest.approx((4, 4 * 0.9 / 1.2, 4 * 1.2 / 0.9))


def test_speedup_map():
    others = plots.frame(
        [row("pairwise_subtraction", 3, "numba", status="contended"), failed("pairwise_subtraction", 3)]
    )
    rows = pd.concat([sweep(), sweep("pairwise_summation", sizes=(3,)), others], ignore_index=True)
    figure = plots.speedup_figure(rows)
    heat = figure.axes[0]
    assert heat.get_title("left") == "numba over unfold"
    assert ticks(heat.yaxis) == ["aggregation", "pairwise_summation", "pairwise_subtraction"]
    assert ticks(heat.xaxis) == ["3×3", "7×7", "11×11"]
    cells = {tuple(text.get_position()): text.get_text() for text in heat.texts if text.get_text()}
    assert cells == {(0.5, 0.5): "4.0", (1.5, 0.5): "4.0", (2.5, 0.5): "4.0", (0.5, 1.5): "4.0", (0.5, 2.5): "×"}
    hatched = {patch.get_xy() for patch in heat.patches if patch.get_hatch()}
    assert hatched == {(1, 1), (2, 1), (0, 2), (1, 2), (2, 2)}
    (mesh,) = heat.collections
    logs = [[2, 2, 2], [2, 0, 0], [0, 0, 0]]
    assert np.ma.masked_invalid(mesh.get_array()).filled(0).tolist() == logs
    assert mesh.norm(0) == 0.5, "1 must have the neutral colour"
    assert mesh.norm(2) == 1, "the largest speed-up must have the strongest colour"
    assert "hatched: not measured" in footer(figure)
    assert "pairwise_subtraction 3×3 unfold forward: would take 3.1 GB" in footer(figure)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "4.0 [3.8, 4.2]"),
        ({"status": "unstable"}, "4.0 [3.8, 4.2]"),
        ({"ratio": 1.02, "ratio_low": 0.9, "ratio_high": 1.1}, "(1.0 [0.90, 1.1])"),
        ({"ratio": 12.4, "ratio_low": 9.96, "ratio_high": 16}, "12 [10, 16]"),
        ({"ratio": math.nan}, "≈4.0 [3.0, 5.3]"),
    ],
)
def test_what_a_cell_says(fields, text):
    """A number with its interval and its marks."""
    rows = sweep(sizes=(3,))
    rows.loc[rows["backend"] == "unfold", list(fields)] = list(fields.values())
    (written,) = plots.speedup_figure(rows).axes[0].texts
    assert written.get_text() == text


def test_compiled_and_fused_have_panels():
    rows = plots.frame(
        [
            row("san10_pairwise", 7, "unfold", attention="composed"),
            row("san10_pairwise", 7, "numba", attention="composed", ratio=0.5, ratio_low=0.5, ratio_high=0.5),
            row("san10_pairwise", 7, "numba", attention="fused", ratio=0.25, ratio_low=0.25, ratio_high=0.25),
            row(
                "san10_pairwise",
                7,
                "unfold",
                attention="composed",
                compiled=True,
                ratio=1.0,
                ratio_low=1.0,
                ratio_high=1.0,
            ),
        ]
    )
    figure = plots.speedup_figure(rows)
    panels = {axes.get_title("left"): axes.texts[0].get_text() for axes in figure.axes if axes.texts}
    assert panels == {
        "numba over unfold": "2.0 [2.0, 2.0]",
        "numba fused over unfold": "4.0 [4.0, 4.0]",
        "unfold+compile over unfold": "(1.0 [1.0, 1.0])",
    }


def networks(**fields):
    return [
        row("resnet26", 3, "torch", params=13_700_000, flops_paper=2_400_000_000, **fields),
        row("san10_pairwise", 3, params=10_500_000, flops_paper=1_700_000_000, **fields),
        row("san10_pairwise", 11, params=10_500_000, flops_paper=3_000_000_000, **fields),
        row("san10_patchwise", 3, params=10_700_000, flops_paper=1_600_000_000, **fields),
        row("san10_patchwise", 7, params=11_800_000, flops_paper=1_900_000_000, **fields),
    ]


@pytest.mark.parametrize(
    ("cost", "label", "front"),
    [
        ("flops_paper", "GFLOPs per image (paper convention)", [(1.6, 77.4), (1.9, 79.3)]),
        ("params", "parameters, M", [(10.5, 77.6), (11.8, 79.3)]),
        ("latency_s", "latency, ms (bar: 95 % interval)", [(3, 77.4), (7, 79.3)]),
        ("peak_bytes", "peak memory, MB", [(3, 77.4), (7, 79.3)]),
    ],
)
def test_accuracy_and_its_front(cost, label, front):
    axes = plots.accuracy_figure(points(networks()), cost).axes[0]
    assert axes.get_xlabel() == label
    assert axes.get_ylabel() == "top-1 accuracy in the paper, %\n(ImageNet val-split)"
    stairs = drawn(axes)["Pareto front"]
    assert sorted(set(stairs)) == [(pytest.approx(x), y) for x, y in front]
    single = [line for line in axes.lines if line.get_label() != "Pareto front"]
    assert len(single) == 5
    assert sorted(text.get_text() for text in axes.texts) == sorted(["ResNet26", "3×3", "11×11", "3×3", "7×7"])


def test_labels_do_not_cover_each_other():
    frame = points([row("san10_patchwise", size, params=10_700_000 + size) for size in (3, 5, 7, 9, 11)] + networks())
    figure = plots.accuracy_figure(frame, "params")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) > 5
    assert not [1 for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]


def test_sets_of_images_and_modes_do_not_share_a_panel():
    frame = points(networks() + networks(mode="train_step"))
    titles = [axes.get_title("left") for axes in plots.accuracy_figure(frame, "latency_s").axes]
    assert len(titles) == len(set(titles)) == 4
    assert {title.split(", ")[0] for title in titles} == {"forward", "train_step"}
    assert {title.split(", ")[1] for title in titles} == {"ImageNet val-split", "ImageNet val-original"}
    assert len(plots.accuracy_figure(frame, "params").axes) == 2


@pytest.mark.parametrize(
    ("draw", "rows", "message"),
    [
        (plots.footprint_figure, [], "no row has a footprint"),
        (plots.footprint_figure, [row("resnet26", footprint="default", taps=None)], "no row has a footprint"),
        (plots.footprint_figure, [failed(), failed()], "no row has a latency: 2 are predicted_oom"),
        (plots.latency_figure, [], "no row has a latency: nothing was tried"),
        (plots.latency_figure, [failed(status="oom")], "no row has a latency: 1 is oom"),
        (plots.memory_figure, [row(peak_bytes=None)], "no row has a peak of memory: 1 is ok"),
        (plots.cost_figure, [row()], "no network with a footprint was counted"),
        (plots.speedup_figure, [row()], "unknown backend to compare with 'unfold'; expected 'numba'"),
        (plots.speedup_figure, [row(backend="unfold")], "nothing was measured beside unfold"),
        (plots.speedup_figure, [row(), failed(size=3)], "no cell has a latency both of unfold and of another"),
    ],
)
def test_nothing_to_draw_is_a_sentence(draw, rows, message):
    with pytest.raises(ValueError, match="^" + message):
        draw(plots.frame(rows))


def test_accuracy_of_nothing_is_a_sentence():
    with pytest.raises(ValueError, match="no network has both latency and an accuracy"):
        plots.accuracy_figure(points([row()]), "latency_s")
    with pytest.raises(ValueError, match="unknown cost 'price'; expected 'flops_paper'"):
        plots.accuracy_figure(points(networks()), "price")


def test_the_same_rows_give_the_same_bytes(tmp_path):
    figures = (plots.footprint_figure(sweep(), "p"), plots.speedup_figure(sweep(), provenance="p"))
    for place, figure in enumerate(figures):
        plots.write(figure, tmp_path / f"here{place}")
    again = (plots.footprint_figure(sweep(), "p"), plots.speedup_figure(sweep(), provenance="p"))
    for place, figure in enumerate(again):
        paths = plots.write(figure, tmp_path / f"there{place}")
        assert [path.suffix for path in paths] == [".png", ".svg"]
        for path in paths:
            assert path.read_bytes() == path.with_name(path.name.replace("there", "here")).read_bytes()


def test_a_frame_has_every_field_but_samples():
    frame = plots.frame([row()])
    assert "samples_s" not in frame
    assert len(plots.frame([])) == 0
    assert list(plots.frame([])) == list(frame)


def test_layers_are_not_drawn_as_networks():
    found = plots.frame(made_up.profile_rows())
    assert list(found["kind"]) == ["model"]
