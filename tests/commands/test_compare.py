"""Comparing runs: which rows are of the same cell, how much they differ, and whether this is more than noise."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import made_up
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import PROVENANCE, TIME

from saprof import command, compare
from saprof.records.comparison import METRICS, Comparison, match
from saprof.records.control import is_plain
from saprof.records.ratios import Ratio, independent, self_difference, within_rounds
from saprof.records.rows import MEASURED
from saprof.records.runs import change, read_run

RECORDED = Path(__file__).parents[2] / "studies" / "recorded" / "backends_cpu"
WHERE = PROVENANCE | {"versions": {"torch": "2.13"}}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal in which nothing is wrapped."""
    monkeypatch.setenv("COLUMNS", "1000")


def samples(median, spread=0.002, count=21, seed=0):
    """Samples around a median that is one of them."""
    values = 1 + spread * np.random.default_rng(seed).standard_normal(count)
    return list(median * values / np.median(values))


def row(name="aggregation", seconds=1e-3, backend="numba", status="ok", **fields):
    facts = {"time": TIME, "key": f"{name}{backend}"} | fields
    if status in MEASURED and "samples_s" not in facts:
        facts["samples_s"] = seconds if isinstance(seconds, list) else samples(seconds)
    if status in MEASURED:
        facts["latency_s"] = float(np.median(facts["samples_s"])) if facts["samples_s"] else seconds
    else:
        facts["reason"] = "no luck"
    return made_up.row(name=name, backend=backend, status=status, **facts)


def calibrated(within=0.005, between=0.01, copy=1.0):
    """The roofs of a machine that is far faster than the rows here."""
    blocks = {"copy": (copy, copy * (1 + between))}
    return made_up.roofs(anchors=(made_up.anchor(blocks_s=blocks, ratios={"copy": (1 - within, 1 + within)}),))


def recorded(folder, rows, noise=None, **provenance):
    return str(made_up.run_folder(folder, rows, noise, WHERE | provenance))


def scaled(factor):
    """The recorded run, with all latencies multiplied by a factor."""
    return [
        replace(
            row,
            latency_s=row.latency_s and row.latency_s * factor,
            samples_s=row.samples_s and [x * factor for x in row.samples_s],
        )
        for row in read_run(RECORDED).rows[::12]
    ]


def verdicts(*arguments, capsys):
    assert compare.main([*arguments, "--format", "json"]) == 0
    return [(line["name"], line["verdict"]) for line in json.loads(capsys.readouterr().out)]


# the arithmetic

TIMES = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12)


@given(TIMES, TIMES)
@settings(max_examples=30, deadline=None)
def test_b_over_a_mirrors_a_over_b(one, other):
    there, back = independent(one, other), independent(other, one)
    mirrored = (1 / back.median, 1 / back.high, 1 / back.low)
    assert (there.median, there.low, there.high) == pytest.approx(mirrored, rel=1e-9)


@given(TIMES, st.floats(0.01, 100.0))
@settings(max_examples=30, deadline=None)
def test_a_scaled_run_has_that_ratio_and_no_interval_without_it(times, factor):
    ratio = independent([factor * x for x in times], times)
    assert ratio.median == pytest.approx(factor)
    assert ratio.low * ratio.high == pytest.approx(factor**2), "as far below as above"
    assert ratio.low <= factor * (1 + 1e-9)


def test_the_interval_of_independent_samples_covers_as_often_as_it_says():
    rng = np.random.default_rng(3)
    draws = (independent(1.5 * rng.lognormal(0, 0.1, 25), rng.lognormal(0, 0.2, 40)) for _ in range(300))
    covered = sum(ratio.low <= 1.5 <= ratio.high for ratio in draws)
    assert 0.90 < covered / 300 < 0.99


def test_a_ratio_within_rounds_is_the_median_of_the_ratios():
    assert within_rounds([1.0, 10.0, 100.0], [1.0, 5.0, 400.0]).median == 1.0  # that of the medians is 2


def test_ratios_within_rounds_do_not_feel_what_all_feel():
    weather = np.random.default_rng(0).uniform(1, 30, 20)
    ratio = within_rounds(list(2 * weather), list(weather))
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)
    apart = independent(list(2 * weather), list(weather))
    assert apart.low < 1 < 3 < apart.high


@pytest.mark.parametrize(
    ("low", "high", "band", "verdict"),
    [
        (1.021, 1.5, 0.02, "slower"),
        (1.02, 1.5, 0.02, "ambiguous"),
        (0.5, 0.9803, 0.02, "faster"),
        (0.5, 0.9804, 0.02, "ambiguous"),  # 1 / 1.02 = 0.98039
        (0.9804, 1.02, 0.02, "same"),
        (0.98, 1.02, 0.02, "ambiguous"),
        (1.2, 1.4, 0.25, "ambiguous"),
        (0.94, 1.06, 0.1, "same"),
        (0.94, 1.06, 0.11, "ambiguous"),
        (0.0, float("inf"), 0.02, "ambiguous"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low, high, band, verdict):
    assert Ratio(1.0, low, high).verdict(band) == verdict


def test_a_difference_from_itself():
    assert self_difference([1.0, 2.0, 1.0, 2.0, 1.0]) == 1.0
    assert self_difference([2.0, 1.0]) == 1.0
    assert self_difference([3.0, 3.0, 3.0]) == 0.0


# a recorded run


def test_two_backends_of_a_run_compare_as_the_sweep_compared_them():
    run = read_run(RECORDED)
    pairs = match(
        *([row for row in run.rows if row.backend == name] for name in ("numba", "unfold")), ("backend",)
    ).pairs
    assert len(pairs) >= 50
    for one, other in pairs:
        compared = Comparison(run, run).compare(one, other, METRICS["latency"])
        ratio = compared.ratio
        assert (ratio.median, ratio.low, ratio.high) == (other.ratio, other.ratio_low, other.ratio_high)
        assert "rounds" not in compared.remarks


def test_a_run_against_itself_and_scaled(tmp_path, capsys):
    """Test the whole command. The run has cells with all kinds of spread."""
    provenance = json.loads((RECORDED / "run.json").read_text())
    for name, factor in (("same", 1.0), ("slower", 1.5)):
        recorded(tmp_path / name, scaled(factor), calibrated(), **provenance)
    a, b = str(tmp_path / "same"), str(tmp_path / "slower")
    found = {}
    for pair in ((a, a), (a, b), (b, a)):
        assert compare.main([*pair, "--format", "json"]) == 0
        found[pair] = json.loads(capsys.readouterr().out)
    for itself, there, back in zip(found[a, a], found[a, b], found[b, a], strict=True):
        assert itself["ratio"] == 1
        assert itself["verdict"] in ("same", "ambiguous", "doubtful")
        assert there["ratio"] == pytest.approx(1.5)
        assert there["ratio"] * back["ratio"] == pytest.approx(1)
        assert there["ratio_low"] * back["ratio_high"] == pytest.approx(1)
        mirror = {"slower": "faster", "ambiguous": "ambiguous", "doubtful": "doubtful"}
        assert mirror[there["verdict"]] == back["verdict"]
    slower = sum(line["verdict"] == "slower" for line in found[a, b])
    assert slower > 0.5 * len(found[a, b])
    assert compare.main([a, a, "--fail-on-regression", "0"]) == 0
    assert compare.main([a, b, "--fail-on-regression", "10%"]) == command.REGRESSION


# the command


def test_slower_faster_same_and_regressions(tmp_path, capsys):
    times = {"slower": 1.2e-3, "faster": 0.7e-3, "same": 1.005e-3}
    a = recorded(tmp_path / "a", [row(name) for name in times], calibrated())
    b = recorded(tmp_path / "b", [row(name, seconds) for name, seconds in times.items()], calibrated())
    assert verdicts(a, b, capsys=capsys) == [(name, name) for name in times]
    assert compare.main([a, b]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"A: {a}\nB: {b}\nnoise ± 1.0 %: identical calls at different times, {a}\n\n")
    lines = [line.split() for line in printed.out.splitlines()]
    clear = [line for line in lines if line[:1] in (["faster"], ["slower"])]
    assert [line[:4] for line in clear] == [["faster", "1", "0.7", "0.700"], ["slower", "1", "1.2", "1.200"]], (
        "by effect"
    )
    assert "B 1.43× faster than A" in printed.out
    assert "B 1.20× slower than A" in printed.out
    assert "3 cells: 1 slower, 1 faster, 1 same\n" in printed.out
    assert printed.out.endswith("1 of 3 cells: no difference, or undecided; --all shows them\n")
    compare.main([a, b, "--all"])
    assert "the same as A within 2 %" in capsys.readouterr().out
    assert printed.err == ""
    assert compare.main([a, b, "--fail-on-regression", "10%"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("regression: slower-n1-8x8-square:3-float32 forward numba: 1.200×, 1.19")
    assert line.endswith(", slower")
    assert compare.main([a, b, "--fail-on-regression", "0.25"]) == 0


@pytest.mark.parametrize(("noise", "verdict"), [(0.04, "slower"), (0.08, "same"), (0.3, "ambiguous")])
def test_a_difference_below_the_noise_is_none(tmp_path, capsys, noise, verdict):
    """If the noise is large, the verdict is not `same` either."""
    a = recorded(tmp_path / "a", [row()], calibrated(between=noise))
    b = recorded(tmp_path / "b", [row(seconds=1.06e-3)], calibrated())
    mirror = {"slower": "faster"}.get(verdict, verdict)
    assert verdicts(a, b, capsys=capsys) == [("aggregation", verdict)]
    assert verdicts(b, a, capsys=capsys) == [("aggregation", mirror)]
    assert compare.main([a, b, "--fail-on-regression", "3%"]) == (3 if verdict == "slower" else 0)


def test_a_machine_that_changed_shows_in_its_anchors(tmp_path, capsys):
    ours, theirs = calibrated(copy=1.0), calibrated(copy=1.25)
    assert change(ours, theirs) == change(theirs, ours) == pytest.approx(0.25)
    assert change(ours, ours) == 0
    a = recorded(tmp_path / "a", [row()], ours)
    b = recorded(tmp_path / "b", [row(seconds=1.2e-3)], theirs)
    assert verdicts(a, b, capsys=capsys) == [("aggregation", "ambiguous")]
    assert verdicts(a, b, "--across-devices", capsys=capsys) == [("aggregation", "slower")]
    compare.main([a, b])
    assert "noise ± 25.0 %: the same calls in A and in B" in capsys.readouterr().out


def test_without_calibration_the_samples_tell_the_noise(tmp_path, capsys):
    quiet, loud = [1e-3] * 20, [1e-3, 1.4e-3] * 10
    folder = recorded(tmp_path / "a", [row("quiet", quiet), row("loud", loud)])
    assert read_run(folder).between.share == pytest.approx(0.95 * 0.4), "the 95th of 0 and 40 %"
    b = recorded(tmp_path / "b", [row("quiet", [1.2e-3] * 20)])
    assert verdicts(folder, b, capsys=capsys) == [("quiet", "ambiguous")]
    compare.main([folder, b])
    source = f"noise ± 38.0 %: odd against even rounds of each cell, without a calibration, {folder}"
    assert source in capsys.readouterr().out


def test_backends_of_one_run_share_rounds_or_say_that_they_do_not(tmp_path, capsys):
    weather = np.random.default_rng(0).uniform(1, 30, 20) * 1e-3
    late = "2026-01-01T00:01:00+00:00"
    rows = [
        *(row(name, list(weather)) for name in ("together", "apart")),
        row("together", list(1.1 * weather), "unfold", time="2026-01-01T00:00:02+00:00"),
        row("apart", list(1.1 * weather), "unfold", time=late),
    ]
    folder = recorded(tmp_path / "a", rows, calibrated(within=0.03, between=0.04))
    assert compare.main([folder, "--backends", "numba,unfold", "--format", "json"]) == 0
    together, apart = json.loads(capsys.readouterr().out)
    assert (together["verdict"], together["remarks"], together["noise"]) == ("slower", "", pytest.approx(0.03))
    assert together["ratio_high"] == pytest.approx(1.1)
    assert (apart["verdict"], apart["remarks"]) == ("ambiguous", "not in the same rounds")
    assert apart["noise"] == pytest.approx(0.04)
    assert (apart["a_backend"], apart["b_backend"]) == ("numba", "unfold")
    compare.main([folder, "--backends", "unfold, numba"])
    assert capsys.readouterr().out.startswith(f"A: {folder}, unfold\nB: {folder}, numba\n")


def test_what_was_measured_twice_counts_as_it_was_measured_last(tmp_path, capsys):
    a = recorded(tmp_path / "a", [row(), row(seconds=2e-3)], calibrated())
    b = recorded(tmp_path / "b", [row(status="error"), row(seconds=2e-3)], calibrated())
    assert verdicts(a, b, capsys=capsys) == [("aggregation", "same")]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "model"), ("footprint", "square:5"), ("n", 2), ("h", 9), ("w", 9), ("r", 4), ("v", 4), ("g", 2),
        ("dtype", "float64"), ("device", "cuda:0"), ("mode", "backward"), ("backend", "unfold"),
        ("attention", "fused"), ("compiled", True),
    ],
)  # fmt: skip
def test_what_makes_another_cell(tmp_path, field, value):
    a = recorded(tmp_path / "a", [row()])
    b = recorded(tmp_path / "b", [row(**{field: value})])
    with pytest.raises(ValueError, match=r"^no cell is in both A and B; expected the same cells, and A has 'aggreg"):
        compare.main([a, b])


def test_cells_of_one_side_and_failed_ones(tmp_path, capsys):
    a = [row("both"), row("breaks"), row("heals", status="oom"), row("never", status="oom"), row("old")]
    b = [row("both"), row("breaks", status="oom"), row("heals"), row("never", status="error")]
    b += [row(name) for name in ("new1", "new2", "new3", "new4")]
    a, b = recorded(tmp_path / "a", a, calibrated()), recorded(tmp_path / "b", b, calibrated())
    assert verdicts(a, b, capsys=capsys) == [("both", "same"), ("breaks", "failed in B"), ("heals", "failed in A")]
    assert compare.main([a, b, "--fail-on-regression", "50%"]) == 3
    printed = capsys.readouterr()
    assert "failed in B, oom: no luck" in printed.out
    assert printed.out.splitlines()[-5:-1] == [
        "3 cells: 1 same, 1 failed in B, 1 failed in A",
        "in both, and not compared, since not measured: 1 cell",
        "only in A: 1 cell: old-n1-8x8-square:3-float32 forward numba",
        "only in B: 4 cells: " + ", ".join(f"new{n}-n1-8x8-square:3-float32 forward numba" for n in (1, 2, 3)) + ", …",
    ]
    assert printed.err == "regression: breaks-n1-8x8-square:3-float32 forward numba: failed in B, oom: no luck\n"
    assert compare.main([b, a, "--fail-on-regression", "50%"]) == 3, "what heals there breaks here"
    assert "regression: heals" in capsys.readouterr().err


def test_a_network_that_failed_is_the_one_that_ran_before(tmp_path, capsys):
    """A failed row has the requested backend, a measured one the backend that ran."""
    network = {"kind": "model", "footprint": "default"}
    a = [
        row("san10_pairwise", attention="fused", **network),
        row("san10_pairwise", attention="composed", backend="unfold", **network),
        row("san10_patchwise", attention="composed", **network),
        row("other", attention="fused", **network),
    ]
    b = [
        row("san10_pairwise", attention="auto", status="error", **network),
        row("san10_pairwise", attention="auto", backend="unfold", status="error", **network),
        row("san10_patchwise", attention="auto", backend="auto", status="error", **network),
        row("other", attention="composed", **network),
        row("san10_pairwise", attention="fused", backend="cuda", status="error", **network),
    ]
    a, b = read_run(recorded(tmp_path / "a", a)), read_run(recorded(tmp_path / "b", b))
    there, back = match(a.rows, b.rows), match(b.rows, a.rows)
    assert [(a.rows.index(one), b.rows.index(other)) for one, other in there.pairs] == [(0, 0), (1, 1), (2, 2)]
    assert {(other.name, one.name) for one, other in there.pairs} == {
        (one.name, other.name) for one, other in back.pairs
    }
    assert (there.only_before, there.only_after) == (back.only_after, back.only_before)
    assert there.only_before == (a.rows[3],)


def test_backends_decide_how_attention_runs(tmp_path):
    network = {"kind": "model", "footprint": "default"}
    rows = [
        row("one", attention="fused", **network),
        row("one", attention="composed", backend="unfold", **network),
        row("two", attention="fused", **network),
        row("two", attention="composed", **network),
        row("two", attention="composed", backend="unfold", **network),
    ]
    run = read_run(recorded(tmp_path / "a", rows))
    matched = match(*([row for row in run.rows if row.backend == name] for name in ("numba", "unfold")), ("backend",))
    assert matched.pairs == ((rows[0], rows[1]), (rows[3], rows[4]))
    assert (matched.only_before, matched.only_after) == ((rows[2],), ())


def test_a_comparison_says_which_side_waits_for_the_host(tmp_path, capsys):
    a, b = recorded(tmp_path / "a", [row("small")]), recorded(tmp_path / "b", [row("small", status="host_bound")])
    compare.main([a, b, "--all", "--format", "json"])
    (one,) = json.loads(capsys.readouterr().out)
    assert "host_bound in B" in one["remarks"]
    assert one["verdict"] != "doubtful"


def test_verdicts_carry_what_is_doubtful(tmp_path, capsys):
    roofs = {"macs": 1, "flops_hardware": 10**10, "compulsory_bytes": 8}  # 10 ms at 1 TFLOP/s
    fields = {"latency_low_s": 0.9e-3, "latency_high_s": 1.1e-3}
    a = [row("busy", status="contended"), row("wide"), row("magic", seconds=20e-3, **roofs)]
    b = [row("busy", status="contended"), row("wide", status="unstable"), row("magic", **roofs, **fields)]
    a, b = recorded(tmp_path / "a", a, calibrated()), recorded(tmp_path / "b", b, calibrated())
    compare.main([a, b])
    lines = capsys.readouterr().out.splitlines()
    ends = {line.split()[0]: line.rpartition("  ")[2] for line in lines if line.startswith(("busy", "wide", "magic"))}
    assert ends == {
        "busy": "contended in A and B",
        "wide": "unstable in B",
        "magic": "B is faster than its roof: a measurement error",
    }
    assert "3 cells: 3 doubtful" in lines
    assert compare.main([b, a, "--fail-on-regression", "10%"]) == 0, "what should not be believed is no regression"


def test_rows_without_samples(tmp_path, capsys):
    """Their intervals bound the ratio. Without intervals there is no verdict."""
    bounds = {"latency_low_s": 0.99e-3, "latency_high_s": 1.01e-3, "samples_s": None}
    a = [row("bounded", **bounds), row("bare", samples_s=None)]
    b = [row("bounded"), row("bare", seconds=9e-3)]
    b[0] = replace(b[0], latency_s=2e-3, latency_low_s=1.98e-3, latency_high_s=2.02e-3)
    a, b = recorded(tmp_path / "a", a, calibrated()), recorded(tmp_path / "b", b, calibrated())
    assert compare.main([a, b, "--format", "json", "--fail-on-regression", "10%"]) == 3
    printed = capsys.readouterr()
    bounded, bare = json.loads(printed.out)
    assert (bounded["verdict"], bounded["remarks"], bounded["ratio"]) == ("slower", "no samples", 2.0)
    assert (bounded["ratio_low"], bounded["ratio_high"]) == (pytest.approx(1.98 / 1.01), pytest.approx(2.02 / 0.99))
    assert (bare["verdict"], bare["remarks"], bare["ratio"]) == ("ambiguous", "no samples", pytest.approx(9))
    assert bare["ratio_low"] == 0
    assert bare["ratio_high"] is None
    assert "regression: bare" not in printed.err
    empty = read_run(recorded(tmp_path / "empty", [row(samples_s=None)]))
    assert (empty.between.share, empty.between.source.partition(",")[0]) == (0.0, "unknown")


def test_memory_is_exact(tmp_path, capsys):
    before = {"more": 1000, "less": 1000, "equal": 0, "nothing": 0, "unweighed": None}
    after = {"more": 1001, "less": 999, "equal": 0, "nothing": 5, "unweighed": 5}
    a = recorded(tmp_path / "a", [row(name, peak_bytes=x) for name, x in before.items()])
    b = recorded(tmp_path / "b", [row(name, peak_bytes=x) for name, x in after.items()])
    expected = [("more", "more"), ("less", "less"), ("equal", "equal"), ("nothing", "more")]
    assert verdicts(a, b, "--metric", "peak", capsys=capsys) == expected
    assert compare.main([a, b, "--metric", "peak", "--fail-on-regression", "0"]) == 3
    printed = capsys.readouterr()
    assert "noise" not in printed.out
    assert "in both, and not compared, since not measured: 1 cell" in printed.out
    assert printed.err.splitlines() == [
        "regression: nothing-n1-8x8-square:3-float32 forward numba: inf×, more",
        "regression: more-n1-8x8-square:3-float32 forward numba: 1.001×, more",
    ]
    with pytest.raises(ValueError, match=r"^none of the 5 cells in common has saved_bytes; expected cells that were"):
        compare.main([a, b, "--metric", "saved"])


def test_other_machines_are_refused_and_other_versions_told(tmp_path, capsys):
    a = recorded(tmp_path / "a", [row()], flags={"OMP_NUM_THREADS": "2"})
    b = recorded(tmp_path / "b", [row(device="cuda:1")], device="a GPU", threads=4, versions={"torch": "2.14"}, argv=[])
    message = (
        "^the runs are of different machines: device is 'a CPU' in A and 'a GPU' in B, threads is 2 in A and 4 in B; "
    )
    with pytest.raises(ValueError, match=message + "compare them with --across-devices$"):
        compare.main([a, b])
    assert compare.main([a, b, "--across-devices"]) == 0
    legend = capsys.readouterr().out.partition("\nnoise")[0].splitlines()[2:]
    assert sorted(legend) == [
        "device: a CPU in A, a GPU in B",
        "flags.OMP_NUM_THREADS: 2 in A, none in B",
        "threads: 2 in A, 4 in B",
        "versions.torch: 2.13 in A, 2.14 in B",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "got 1 run; expected two, or one with --backends, such as --backends numba,unfold"),
        (["a", "a", "a"], "got 3 runs; expected two"),
        (["a", "a", "--backends", "numba,unfold"], "got 2 runs; expected one with --backends"),
        (["a", "--backends", "numba"], "backends is 'numba'; expected two, such as numba,unfold"),
        (["a", "--backends", "numba,numba"], "backends is 'numba,numba'; expected two"),
        (["a", "--backends", "numba,cuda"], r"\S*a has no rows of backend 'cuda'; expected numba$"),
        (["a", "a", "--fail-on-regression=10"], "fail-on-regression is '10'; expected a share such as 10% or 0.1"),
        (["a", "a", "--fail-on-regression=-1%"], "fail-on-regression is '-1%'; expected a share"),
        (["a", "a", "--fail-on-regression=1_0%"], "fail-on-regression is '1_0%'; expected a share"),
        (["a", "a", "--fail-on-regression=much"], "fail-on-regression is 'much'; expected a share"),
        (["a", "a", "--fail-on-regression=nan%"], "fail-on-regression is 'nan%'; expected a share"),
        (["a", "nowhere"], r"cannot read \S*nowhere/run.json \(.*; expected the folder of a run"),
        (["a", "empty"], r"\S*empty has no rows; expected a run with at least one"),
        (["a", "bare"], r"\S*run.json does not tell threads, .*; expected what a sweep writes"),
        (["failed", "failed"], "none of the 1 cells in common has latency_s; expected cells that were measured"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, message):
    recorded(tmp_path / "a", [row()])
    recorded(tmp_path / "empty", [])
    recorded(tmp_path / "failed", [row(status="error")])
    recorded(tmp_path / "bare", [row()])
    (tmp_path / "bare" / "run.json").write_text('{"schema": 1, "device": "a CPU", "cpu": "a CPU"}')
    known = [
        str(tmp_path / word) if word in ("a", "empty", "failed", "bare", "nowhere") else word for word in arguments
    ]
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        compare.main(known)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("asked", "share"), [("10%", 0.1), ("0.1", 0.1), (" 2.5 %", 0.025), ("0", 0), ("200%", 2)])
def test_shares(asked, share):
    assert compare.share(asked) == pytest.approx(share)


def test_formats_keep_notes_apart_from_records(tmp_path, capsys):
    a = recorded(tmp_path / "a", [row(), row("old")], calibrated())
    compare.main([a, recorded(tmp_path / "b", [row()], calibrated()), "--format", "csv"])
    printed = capsys.readouterr()
    header, line = printed.out.splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=False))["a_latency_s"] == "0.001"
    assert "only in A: 1 cell: old" in printed.err
    compare.main([a, str(tmp_path / "b"), "--format", "md"])
    assert "| ----" in capsys.readouterr().out


def test_the_command_imports_little_and_exits_2_with_a_sentence():
    code = "import sys; from saprof import compare; assert not {'torch', 'numpy', 'pandas'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    command = [sys.executable, "-m", "saprof.compare", "nowhere", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read nowhere/run.json")
    assert "Traceback" not in done.stderr


def test_two_profiles_show_which_layers_became_slower(tmp_path, capsys):
    a = recorded(tmp_path / "a", made_up.profile_rows(), calibrated())
    b = recorded(tmp_path / "b", made_up.profile_rows(attention_ms=12), calibrated())
    assert compare.main([a, b]) == command.OK
    shown = capsys.readouterr().out
    cells = [line.split("  ")[0] for line in shown.splitlines() if line.startswith("tiny")]
    assert cells == [
        "tiny-n1-16x16-default-float32 forward torch",
        "tiny body",
        "tiny body.1",
        "tiny body.1 pairwise_attention()",
    ], "the network first, then the largest differences; what is the same is not shown"
    assert "not shown: 6 layers and operators without a clear difference of 0.5 % of their network or more" in shown
    assert "10 cells: 6 same, 4 slower" in shown


def test_layers_that_ran_otherwise_are_compared_with_a_remark(tmp_path, capsys):
    def unfold(rows):
        return [replace(row, backend="unfold", attention=None) if row.attention else row for row in rows]

    a = recorded(tmp_path / "a", made_up.profile_rows(), calibrated())
    b = recorded(tmp_path / "b", unfold(made_up.profile_rows(attention_ms=12)), calibrated())
    compare.main([a, b])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tiny body.1  ")]
    assert "B 2.0× slower than A" in line
    assert line.endswith("  numba fused in A, unfold in B")


@pytest.mark.parametrize(("ms", "code"), [(12, command.REGRESSION), (6, command.OK)])
def test_a_slower_layer_is_a_regression(tmp_path, capsys, ms, code):
    a = recorded(tmp_path / "a", made_up.profile_rows(), calibrated())
    b = recorded(tmp_path / "b", made_up.profile_rows(attention_ms=ms), calibrated())
    assert compare.main([a, b, "--fail-on-regression", "10%"]) == code
    assert ("regression: tiny body.1: 2.000×" in capsys.readouterr().err) == (code != command.OK)


def test_a_small_layer_is_no_regression(tmp_path, capsys):
    """Twice as long, and 2 % of the network."""

    def with_small(ms):
        rows = made_up.profile_rows()
        return recorded(
            tmp_path / f"{ms}", [*rows, made_up.layer("head", ms), made_up.layer("head", ms, "addmm")], calibrated()
        )

    assert compare.main([with_small(0.1), with_small(0.2), "--fail-on-regression", "10%"]) == command.OK
    shown = capsys.readouterr().out
    assert "tiny head  " in shown
    assert "addmm" not in shown, "it is all that its module does"


def test_the_backends_of_a_profile_are_not_those_of_its_layers(tmp_path):
    run = recorded(tmp_path / "a", made_up.profile_rows(), calibrated())
    with pytest.raises(ValueError, match="has no rows of backend 'numba'; expected torch"):
        compare.main([run, "--backends", "numba,torch"])


# the control


def two_runs(tmp_path, machine, ours=1.0, cells=6, anchors=1.0, **kinds):
    """Runs of `cells` operators with unfold and numba. In B the machine takes `machine` times as long, and our kernels
    `ours` times as long as that."""
    names = [f"operator{n}" for n in range(cells)]
    a = [row(name, 1e-3, backend) for name in names for backend in ("unfold", "numba")]
    b = [
        row(name, machine * (ours if backend == "numba" else 1.0) * 1e-3, backend)
        for name in names
        for backend in ("unfold", "numba")
    ]
    a, b = ([replace(one, **kinds) for one in rows] for rows in (a, b))
    return recorded(tmp_path / "a", a, calibrated()), recorded(tmp_path / "b", b, calibrated(copy=anchors))


@pytest.mark.parametrize(("machine", "anchors"), [(0.55, 0.55), (0.55, 1.0), (1.8, 1.7)])
def test_a_machine_that_changed_is_no_change_of_the_code(tmp_path, capsys, machine, anchors):
    a, b = two_runs(tmp_path, machine, anchors=anchors)
    assert compare.main([a, b, "--fail-on-regression", "5%"]) == 0
    out = capsys.readouterr().out
    assert f"control cells moved {machine:.2f}× [" in out
    assert "so the machine changed (6 cells of unfold and 1 anchor); verdicts are relative to them" in out
    assert "12 cells: 12 same" in out
    assert compare.main([a, b, "--control", "none", "--format", "json"]) == 0
    assert {line["relative"] for line in json.loads(capsys.readouterr().out)} == {None}


def test_a_regression_that_the_machine_hides_is_found(tmp_path, capsys):
    a, b = two_runs(tmp_path, 0.5, ours=1.3, anchors=0.5)
    assert compare.main([a, b, "--fail-on-regression", "10%"]) == command.REGRESSION
    printed = capsys.readouterr()
    assert "B 1.30× slower than A" in printed.out
    assert "relative to the control" in printed.out
    assert printed.err.count("regression: ") == 6
    assert compare.main([a, b, "--fail-on-regression", "10%", "--control", "none"]) == 0, "as measured, B is faster"
    capsys.readouterr()
    compare.main([a, b, "--format", "json"])
    ours = [line for line in json.loads(capsys.readouterr().out) if line["a_backend"] == "numba"]
    for line in ours:
        assert (line["ratio"], line["relative"]) == (pytest.approx(0.65), pytest.approx(1.3))
        own, relative = (line[f"{name}_high"] / line[f"{name}_low"] for name in ("ratio", "relative"))
        assert relative >= own, "the interval has the uncertainty of the control"


def test_a_control_that_did_not_move_changes_nothing(tmp_path, capsys):
    a, b = two_runs(tmp_path, 1.0, ours=1.3)
    compare.main([a, b])
    out = capsys.readouterr().out
    assert "control cells" not in out
    assert "B 1.30× slower than A" in out


def test_the_control_may_be_named(tmp_path, capsys):
    a, b = two_runs(tmp_path, 0.5, ours=1.3, anchors=0.5)
    compare.main([a, b, "--control", "numba"])
    assert "control cells moved 0.65×" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"^unknown control 'unfald'; expected .*'none'; did you mean 'unfold'"):
        compare.main([a, b, "--control", "unfald"])
    with pytest.raises(ValueError, match=r"^--control has no effect with --backends"):
        compare.main([a, "--backends", "numba,unfold", "--control", "unfold"])
    with pytest.raises(ValueError, match=r"^--control has no effect with --metric peak"):
        compare.main([a, b, "--metric", "peak", "--control", "unfold"])


def test_what_a_user_may_have_changed_is_no_control():
    assert is_plain(made_up.row(backend="unfold"))
    assert is_plain(made_up.network("resnet26", backend="torch"))
    assert is_plain(made_up.network("torchvision:resnet18", backend="torch"))
    assert not is_plain(made_up.row(backend="numba"))
    assert not is_plain(made_up.network("my.nets:mine", backend="torch"))
    assert not is_plain(made_up.row(kind="function", backend="torch"))
    assert not is_plain(made_up.layer("body", 1.0))


def test_a_run_of_plain_torch_alone_is_no_control_of_itself(tmp_path, capsys):
    a = recorded(tmp_path / "a", [row("one", backend="unfold")], calibrated())
    b = recorded(tmp_path / "b", [row("one", 2e-3, "unfold")], calibrated())
    assert compare.main([a, b, "--fail-on-regression", "10%"]) == command.REGRESSION
    assert "control cells" not in capsys.readouterr().out
