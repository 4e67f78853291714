"""The explorer offers what runs have, and draws every choice; no two rows share a point without a word."""

import re
from dataclasses import replace

import made_up
import pytest

from saprof.plots.choices import narrowed
from saprof.plots.frames import frame
from saprof.plots.metrics import AXES, frame_of, lined, metric_figure, metric_of, metrics_of, with_metric
from saprof.records.found import find_runs
from saprof.records.runs import read_run

ROOFS = made_up.roofs()


def rows(names=("aggregation", "dot"), size=8, **fields):
    for number, (name, backend, k) in enumerate((n, b, k) for n in names for b in ("numba", "unfold") for k in (3, 5)):
        facts = {"name": name, "footprint": f"square:{k}", "taps": k * k, "backend": backend, "h": size, "w": size}
        latency = {f"latency_{part}s": number + 1.0 for part in ("", "low_", "high_")}
        facts |= {"flops_hardware": 10 * k, "compulsory_bytes": 8 * k, "peak_bytes": 1000 * (number + 1)}
        key = f"{name}{backend}{k}{size}{fields}"
        yield made_up.row(**{"key": key, "time": made_up.TIME} | facts | latency | fields)


def failed(**fields):
    facts = {"key": "f", "status": "oom", "reason": "no memory", "name": "dot", "h": 8, "w": 8,
             "footprint": "square:9", "taps": 81}  # fmt: skip
    return made_up.row(**facts | fields)


@pytest.fixture
def runs(tmp_path):
    """A folder with an old sweep of several settings, a new one, a profile, and a damaged one."""
    old = [*rows(), *rows(n=4), *rows(mode="train_step", saved_bytes=10), *rows(size=4), failed()]
    made_up.run_folder(tmp_path / "old", old, ROOFS)
    new = list(rows(("clique",), time="2026-02-02T00:00:00+00:00", status="contended"))
    made_up.run_folder(tmp_path / "below" / "new", new, where=made_up.PROVENANCE | {"threads": 4})
    made_up.run_folder(tmp_path / "traced", made_up.profile_rows())
    made_up.run_folder(tmp_path / "broken", list(rows()))
    (tmp_path / "broken" / "rows.jsonl").write_text("{\n")
    return tmp_path


@pytest.fixture
def explorer(runs, monkeypatch):
    """An explorer that makes its figures, but not their pictures, which takes long."""
    pytest.importorskip("ipywidgets", reason="needs the extra notebooks")
    from saprof.plots import explorer

    monkeypatch.setattr(explorer, "_image", lambda figure: f'<img alt="{figure.alt}">')
    return explorer.Explorer([runs])


def choose(explorer, *names):
    known = {label.partition(" · ")[0]: folder for label, folder in explorer.runs.options}
    explorer.runs.value = tuple(known[name] for name in names)


def shown(explorer):
    """The names of the controls that are shown."""
    controls = {"metric": explorer.metric, "across": explorer.across, **explorer.picks}
    return [name for name, one in controls.items() if explorer._parts[one].layout.display != "none"]


def values(control):
    return [value for _, value in control.options]


def alt(explorer):
    return re.search('alt="([^"]*)"', explorer.plot.value)[1]


def test_runs_are_found_with_name_date_and_kind_the_newest_first(runs):
    found = find_runs([runs, runs / "old", runs / "nowhere"])
    assert [one.label for one in found] == [
        "new · 2026-02-02 00:00 · 4 cells",
        "old · 2026-01-01 00:00 · 33 cells",
        "traced · 2026-01-01 00:00 · profile",
        "broken (cannot be read)",
    ]
    assert "rows.jsonl, line 1 is damaged" in found[-1].reason


def test_a_run_that_has_grown_is_read_again(runs):
    (before,) = find_runs([runs / "below"])
    with (runs / "below" / "new" / "rows.jsonl").open("a") as file:
        file.write(made_up.row(key="more", n=64).line() + "\n")
    (after,) = find_runs([runs / "below"])
    assert len(after.run.rows) == len(before.run.rows) + 1


def test_a_damaged_run_is_named_and_does_not_break_the_others(explorer):
    assert len(explorer.runs.options) == 3
    assert "1 run cannot be read" in explorer.unreadable.value
    assert "line 1 is damaged" in explorer.unreadable.value


def test_it_starts_with_one_operator_on_all_backends(explorer):
    choose(explorer, "old")
    assert alt(explorer) == "Latency of aggregation against the footprint, with 2 lines: numba; unfold."
    assert "Common to all" in explorer.said.value
    assert "float32, cpu, 2 threads, eager." in explorer.said.value


def test_only_what_differs_is_asked_for(explorer):
    choose(explorer, "old")
    assert shown(explorer) == ["metric", "across", "name", "mode", "map", "n", "backend", "footprint"]
    choose(explorer, "new")
    assert shown(explorer) == ["metric", "backend", "footprint"]


def test_only_the_metrics_of_the_run_are_offered(explorer):
    choose(explorer, "old")
    assert values(explorer.metric) == ["latency_s", "peak_bytes", "saved_bytes", "roof_share", "flops_hardware",
                                       "speedup_over_numba", "speedup_over_unfold"]  # fmt: skip
    choose(explorer, "new")
    assert "saved_bytes" not in values(explorer.metric)
    assert "roof_share" not in values(explorer.metric), "it has no calibration"


def test_no_choice_leads_to_an_empty_plot(explorer, monkeypatch):
    choose(explorer, "old")
    drawn = []
    monkeypatch.setattr(explorer, "_draw_rows", lambda rows, *_: drawn.append(len(rows)))
    explorer.metric.value = "saved_bytes"
    for column in AXES:
        several = values(explorer.picks[column])
        for value in several if len(several) > 1 else ():
            explorer.picks[column].value = (value,)
            assert explorer.picks[column].value == (value,)
            assert drawn.pop()
    explorer.picks["name"].value = ()
    assert explorer.picks["name"].value == ("aggregation", "dot"), "choosing nothing is choosing everything"


def test_runs_together_have_the_threads_and_the_run_as_axes(explorer):
    choose(explorer, "old", "new")
    explorer.picks["name"].value = tuple(values(explorer.picks["name"]))
    explorer.picks["run"].value = ("old", "new")
    assert {"run", "threads"} <= set(shown(explorer))
    assert "clique, numba, new, 4 threads" in alt(explorer)


def test_doubtful_rows_are_counted(explorer):
    choose(explorer, "new")
    assert "4 of 4 rows are contended, and hollow: do not trust." in explorer.said.value


def test_what_did_not_run_is_said(explorer):
    choose(explorer, "old")
    explorer.picks["name"].value = ("dot",)
    assert "Did not run: 1 cell (oom, no memory)." in explorer.said.value


def test_a_profile_is_drawn_by_layer(explorer):
    choose(explorer, "traced")
    assert shown(explorer) == ["metric"]
    assert values(explorer.metric) == ["Time", "Memory", "Operations"]
    assert "A profile" in explorer.said.value
    assert "<img" in explorer.plot.value


def test_refreshing_finds_new_runs_and_keeps_the_choice(explorer, runs):
    choose(explorer, "old")
    explorer.picks["name"].value = ("dot",)
    made_up.run_folder(runs / "newest", list(rows()))
    explorer.refresh.click()
    assert len(explorer.runs.options) == 4
    assert explorer.picks["name"].value == ("dot",)


def test_without_runs_it_says_where_it_looked(tmp_path):
    pytest.importorskip("ipywidgets", reason="needs the extra notebooks")
    from saprof.plots.explorer import Explorer

    assert f"Runs are looked for in {tmp_path}" in Explorer([tmp_path]).plot.value


def test_names_are_escaped(tmp_path):
    pytest.importorskip("ipywidgets", reason="needs the extra notebooks")
    from saprof.plots.explorer import Explorer

    hostile = '<script>"$x^{'
    where = made_up.PROVENANCE | {"device": hostile}
    made_up.run_folder(tmp_path / "run", [*rows((hostile,)), failed(name=hostile, reason=hostile)], where=where)
    found = Explorer([tmp_path])
    assert "<script>" not in found.plot.value + found.said.value
    assert "&lt;script&gt;" in found.said.value


def test_without_ipywidgets_the_sentence_says_what_to_install(monkeypatch):
    from saprof.plots import explorer

    monkeypatch.setattr(explorer, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="needs ipywidgets, which is not installed; install it with `pip"):
        explorer.explorer()


def test_controls_keep_their_width(explorer):
    controls, plot = explorer.widget.children
    assert {part.layout.width for part in controls.children[:-1]} == {"20rem"}
    assert explorer.widget.layout.flex_flow == "row wrap"
    assert plot.layout.min_width == "0"


@pytest.mark.parametrize(
    "fields",
    [{"n": 4}, {"dtype": "float64"}, {"size": 4}, {"mode": "backward"}, {"compiled": True}, {"v": 64},
     {"attention": "fused"}, {"device": "cuda:0"}],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
@pytest.mark.parametrize("metric", ["latency_s", "flops_hardware"])
def test_no_two_rows_fall_on_one_point(fields, metric):
    both = [*rows(), *rows(**fields)]
    different = [replace(row, flops_hardware=7) if number >= len(both) // 2 else row
                 for number, row in enumerate(both)] if metric == "flops_hardware" else both  # fmt: skip
    found = lined(with_metric(frame(different), metric), "footprint", metric_of(metric))
    assert not found.duplicated(["label", "x"]).any()
    if metric == "latency_s":
        assert len(found) == len(different), "every row has its own point"
    else:
        assert found["flops_hardware"].nunique() == 3, "counts that differ have lines of their own"


def test_footprints_with_the_same_number_of_taps_have_lines_of_their_own():
    shapes = ("random:9@seed1", "random:9@seed2", "square:3", "offsets:0,0;0,1", "offsets:0,0;1,0")
    some = [made_up.row(key=one, footprint=one, taps=9) for one in shapes]
    assert len(lined(with_metric(frame(some), "latency_s"), "footprint", metric_of("latency_s"))) == 5


def test_speed_up_and_share_of_roof_are_metrics(runs):
    found = frame_of(read_run(runs / "old"))
    assert "roof_share" in metrics_of(found)
    beside = with_metric(found, "speedup_over_unfold")
    assert set(beside["backend"]) == {"numba"}
    assert beside["speedup"].iloc[0] == pytest.approx(3.0)
    figure = metric_figure(found, "speedup_over_unfold")
    assert figure.axes[0].get_ylabel() == "times as fast as unfold (band: 95 % interval)"


def test_doubtful_points_are_hollow_for_times_and_not_for_memory():
    doubtful = list(rows(status="unstable"))

    def faces(metric):
        return {line.get_markerfacecolor() for line in metric_figure(frame(doubtful), metric).axes[0].lines
                if line.get_label() == "_doubtful"}  # fmt: skip

    assert faces("latency_s") == {"white"}
    assert faces("peak_bytes") == set()


def test_a_network_without_footprints_is_drawn_by_name():
    networks = [made_up.network(name) for name in ("san10_pairwise", "resnet26")]
    axes = metric_figure(frame(networks), "images_per_s").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["san10_pairwise", "resnet26"]


def test_choices_that_are_no_longer_offered_are_given_up(runs):
    found = with_metric(frame_of(read_run(runs / "old")), "latency_s")
    _, offers = narrowed(found, "footprint")
    assert offers["name"].picked == ("aggregation",)
    drawn, after = narrowed(found[found["name"] == "dot"], "footprint", offers)
    assert after["name"].picked == ("dot",)
    assert len(drawn)


def test_an_unknown_metric():
    with pytest.raises(ValueError, match="unknown metric 'speed'; expected 'latency_s'"):
        metric_figure(frame(list(rows())), "speed")
    with pytest.raises(ValueError, match="unknown axis 'time'; expected 'footprint'"):
        metric_figure(frame(list(rows())), across="time")


def test_a_metric_that_no_row_has():
    with pytest.raises(ValueError, match="no row has saved_bytes; expected other rows"):
        metric_figure(frame(list(rows())), "saved_bytes")
