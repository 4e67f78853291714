"""Advice within a budget: the recommendation, the lines shown beside it, and the sources that it names."""

import csv
import io
import json
import shlex
import subprocess
import sys

import made_up
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import PROVENANCE

from saprof import advise
from saprof.paper import budget, evidence
from saprof.paper.budget import LIMITED
from saprof.records import calibration, environment
from saprof.records.runs import Run

LATENCY, MEMORY, PARAMS, FLOPS = LIMITED


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Every test runs on the machine of PROVENANCE, in a terminal in which no line is wrapped."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(environment, "cpu_name", lambda: PROVENANCE["cpu"])
    monkeypatch.setattr("psutil.cpu_count", lambda logical: PROVENANCE["cores"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def network(name, footprint, ms, **changes):
    """A network's row, measured to ± 1 ms."""
    facts = {
        "key": f"{name} {footprint} {ms}", "latency_s": ms / 1e3, "latency_low_s": (ms - 1) / 1e3,
        "latency_high_s": (ms + 1) / 1e3, "peak_bytes": 30 * 10**6, "params": 11 * 10**6, "flops_hardware": 4 * 10**9,
    }  # fmt: skip
    return made_up.network(name, footprint, **facts | changes)


SMALL = network("san10_pairwise", "square:3", 20)
WIDE = network("san10_pairwise", "square:9", 40)
SLOW = network("san10_pairwise", "square:9", 90, backend="unfold", attention="composed", peak_bytes=90 * 10**6)
PATCHWISE = network("san10_patchwise", "square:5", 30, params=12 * 10**6)
LARGE = network("san10_patchwise", "square:11", 60, params=14 * 10**6, flops_paper=3 * 10**9)
ROWS = (SMALL, WIDE, SLOW, PATCHWISE, LARGE)
"""Top-1 as printed: 75.3, 77.8, 77.8, 78.7, 79.4."""


@pytest.fixture
def record(tmp_path):
    """A function that writes a run folder, and returns its path."""

    def write(*rows, name="run", **where):
        return str(made_up.run_folder(tmp_path / name, list(rows), where=PROVENANCE | where))

    return write


def answer(capsys, *arguments):
    code = advise.main([*arguments])
    return code, capsys.readouterr().out


def records(capsys, *arguments):
    assert advise.main([*arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("quantity", "written", "value"),
    [
        (LATENCY, "30ms", 0.03),
        (LATENCY, "1.5 s", 1.5),
        (LATENCY, "250us", 250e-6),
        (LATENCY, "250µs", 250e-6),
        (LATENCY, "250\N{GREEK SMALL LETTER MU}s", 250e-6),
        (LATENCY, "3e-2s", 0.03),
        (MEMORY, "100MB", 1e8),
        (MEMORY, "1 GiB", 2.0**30),
        (MEMORY, "512B", 512.0),
        (MEMORY, "20kB", 2e4),
        (PARAMS, "12M", 12e6),
        (PARAMS, "12000k", 12e6),
        (PARAMS, "12000000", 12e6),
        (FLOPS, "2G", 2e9),
        (FLOPS, ".5e3M", 5e8),
    ],
)
def test_what_people_write(quantity, written, value):
    assert quantity.read(written) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("quantity", "written"),
    [
        *((LATENCY, written) for written in ("", "fast", "30 m", "30MB", "0ms", "-3ms", "inf", "nan", "1e400", "1,5s")),
        *((LATENCY, written) for written in ("200", "0.2", "3e-2", "２００ms", "1_0ms", "2²ms")),
        *((MEMORY, written) for written in ("100mb", "100M", "1 TB", "MB", "100")),
        *((PARAMS, written) for written in ("12m", "12MB", "1_000")),
    ],
)
def test_nonsense_is_one_sentence(quantity, written):
    with pytest.raises(
        ValueError, match=f"^--max-{quantity.name} is '{written}'; expected a positive number in "
    ) as why:
        quantity.read(written)
    assert str(why.value).endswith(f"such as {quantity.example}")


def test_the_most_accurate_within_the_budget_is_recommended(record, capsys):
    code, out = answer(capsys, "--run", record(*ROWS), "--max-latency", "50ms", "--max-params", "12M")
    assert code == 0
    assert out.startswith(
        "a CPU, 2 threads, ImageNet val-split: take san10_patchwise 5×5 on numba fused, top-1 78.7 as printed, "
        "30 ms [29, 31], 30 MB, 12 M parameters, 2 G FLOPs.\n"
    )


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ([], [LARGE, PATCHWISE, WIDE, SLOW, SMALL]),
        (["--max-latency", "40ms"], [PATCHWISE, WIDE, SMALL]),
        (["--max-memory", "30MB"], [LARGE, PATCHWISE, WIDE, SMALL]),
        (["--max-params", "11.5M"], [WIDE, SLOW, SMALL]),
        (["--max-flops", "2G", "--max-latency", "35ms"], [PATCHWISE, SMALL]),
    ],
)
def test_each_limit_holds(record, capsys, limits, kept):
    found = records(capsys, "--run", record(*ROWS), "--all", *limits)
    assert [(line["name"], line["footprint"], line["backend"]) for line in found] == [
        (row.name, row.footprint, row.backend) for row in kept
    ]
    assert [line["recommended"] for line in found] == [True] + [False] * (len(kept) - 1)


def test_dominated_ones_are_shown_on_request_and_say_by_whom(record, capsys):
    run = record(*ROWS)
    assert [line["on_front"] for line in records(capsys, "--run", run)] == [True] * 4
    found = records(capsys, "--run", run, "--all")
    assert {evidence.label(line): line["dominated_by"] for line in found} == {
        "san10_patchwise 11×11 on numba fused": None,
        "san10_patchwise 5×5 on numba fused": None,
        "san10_pairwise 9×9 on numba fused": None,
        "san10_pairwise 9×9 on unfold": "san10_pairwise 9×9 on numba fused",
        "san10_pairwise 3×3 on numba fused": None,
    }
    _, out = answer(capsys, "--run", run, "--all")
    (line,) = (line for line in out.splitlines() if line.startswith("san10_pairwise ") and " unfold " in line)
    assert line.endswith("dominated by san10_pairwise 9×9 on numba fused")
    assert " unfold " not in answer(capsys, "--run", run)[1]


def test_whoever_is_as_fast_may_be_dominated_by_chance(record, capsys):
    twin = network("san10_pairwise", "square:9", 41, backend="unfold", attention="composed")
    found = records(capsys, "--run", record(WIDE, twin), "--all")
    assert [line["dominated_by"] for line in found] == [
        None,
        "san10_pairwise 9×9 on numba fused (their latencies overlap)",
    ]


def test_of_the_as_accurate_and_as_fast_the_smallest_is_recommended(record, capsys):
    lean = network("san10_pairwise", "square:9", 40.9, backend="unfold", attention="composed", peak_bytes=10**6)
    slower = network("san10_pairwise", "square:9", 41.1, backend="cuda", peak_bytes=10**5)
    best = next(line for line in records(capsys, "--run", record(WIDE, lean, slower)) if line["recommended"])
    assert best["backend"] == "unfold"


lines = st.fixed_dictionaries(
    {"top1": st.integers(0, 2), "latency_s": st.integers(1, 4), "latency_high_s": st.integers(0, 2)}
    | dict.fromkeys(("peak_bytes", "params", "flops_paper"), st.integers(1, 3))
)


@given(st.lists(lines, min_size=1, max_size=10))
def test_what_is_recommended_is_on_the_front(found):
    import pandas as pd

    frame = pd.DataFrame(found)
    frame["latency_high_s"] += frame["latency_s"]
    best = budget.recommend(frame)
    assert evidence.front(frame)[best]
    assert frame["top1"][best] == frame["top1"].max()


def test_nothing_within_the_budget_names_the_nearest_misses(record, capsys):
    run = record(*ROWS)
    code, out = answer(capsys, "--run", run, "--max-latency", "15ms", "--max-params", "11M")
    assert code == 1
    assert out.splitlines()[:2] == [
        "a CPU, 2 threads, ImageNet val-split: nothing of 5 is within the budget;",
        "  the smallest latency within the other limits is 20 ms, where 15 ms is the limit: "
        "san10_pairwise 3×3 on numba fused",
    ]
    assert "number of parameters" not in out, "that limit can be kept"
    code, out = answer(
        capsys, "--run", record(PATCHWISE, WIDE, name="two"), "--max-latency", "35ms", "--max-params", "11M"
    )
    assert code == 1
    assert "the smallest latency within the other limits is 40 ms, where 35 ms is" in out
    assert "the smallest number of parameters within the other limits is 12 M, where 11 M is" in out


def test_limits_that_can_be_kept_alone_only():
    columns = {quantity.column: 2.0 for quantity in LIMITED}
    label = {"name": "resnet26", "relation": None, "footprint": "square:3", "attention": None, "compiled": False}
    import pandas as pd

    frame = pd.DataFrame([columns | label | {quantity.column: 1.0, "backend": quantity.name} for quantity in LIMITED])
    told = budget.misses(frame, dict.fromkeys((LATENCY, PARAMS, FLOPS), 1.0))
    assert [line.rpartition(" on ")[2] for line in told] == ["latency", "params", "flops"]


def test_evaluation_sets_are_advised_on_apart(record, capsys):
    run = record(network("san10_pairwise", "default", 30), network("resnet50", "default", 50, backend="torch"))
    found = records(capsys, "--run", run, "--all")
    assert [(line["name"], line["evaluation_set"], line["top1"], line["on_front"]) for line in found] == [
        ("san10_pairwise", "val-split", 77.4, True),
        ("resnet50", "val-original", 76.9, True),
        ("san10_pairwise", "val-original", 74.9, True),
    ]
    assert found[1]["relation"] is None
    _, out = answer(capsys, "--run", run)
    assert [line for line in out.splitlines() if "take" in line] == out.splitlines()[:2]


def test_machines_are_advised_on_apart(record, capsys):
    runs = record(SMALL, name="one"), record(WIDE, name="two", threads=1)
    assert [line["machine"] for line in records(capsys, "--run", *runs)] == ["a CPU, 2 threads", "a CPU, 1 thread"]
    assert [line["recommended"] for line in records(capsys, "--run", *runs)] == [True, True]


def test_of_rows_of_the_same_the_last_sound_one_counts(record, capsys):
    later = "2026-11-22T15:00:00+00:00"
    first, last = (
        record(SMALL, WIDE, name="a"),
        record(
            network("san10_pairwise", "square:3", 25, time=later),
            network("san10_pairwise", "square:9", 80, status="contended", time=later),
            name="b",
        ),
    )
    for runs in ([first, last], [last, first]):
        latencies = {line["footprint"]: line["latency_s"] for line in records(capsys, "--run", *runs)}
        assert latencies == {"square:3": 0.025, "square:9": 0.04}
    _, out = answer(capsys, "--run", first, last)
    assert "These 2 runs were made at different times" in out


def test_doubtful_rows_are_marked(record, capsys):
    _, out = answer(capsys, "--run", record(SMALL, network("san10_pairwise", "square:9", 40, status="contended")))
    assert "40 ms [39, 41] (contended: other processes took part of the processor" in out.splitlines()[0]
    (line,) = (line for line in out.splitlines() if line.startswith("san10_pairwise") and "9×9" in line)
    assert line.endswith("recommended, contended")
    assert "contended, 1 of 2 rows: other processes" in out
    assert "unstable" not in out


def test_a_latency_whose_interval_leaves_the_budget_is_marked(record, capsys):
    run = record(SMALL, WIDE)
    assert "recommended, may exceed the limit" in answer(capsys, "--run", run, "--max-latency", "40.5ms")[1]
    assert "may exceed" not in answer(capsys, "--run", run, "--max-latency", "41ms")[1]


def test_rows_above_the_roof_are_not_used(record, capsys):
    run = record(SMALL, WIDE)
    calibration.write(run, made_up.roofs(fma={"float32": 4e9 / 30e-3}))
    found = records(capsys, "--run", run)
    assert [line["footprint"] for line in found] == ["square:9"], "20 ms are less than the 30 ms that 4 GFLOPs take"
    told = f"Omitted from {run}: 1 rows that are faster than the machine's roofs allow."
    assert told in answer(capsys, "--run", run)[1]


def test_evidence_says_where_and_when(record, capsys):
    run = record(*ROWS)
    _, out = answer(capsys, "--run", run)
    assert "a CPU  ·  2 threads of 2 cores  ·  torch 2.13.0  ·  saprof abcdef0123, 2026-11-21." in out
    assert f"Latency and memory: {run}" in out
    assert "Accuracy: SAN Table 7, as printed, ImageNet val-split. It was not measured here." in out
    assert "This looks like the machine of these rows" in out
    assert "saprof.sweep" not in out


@pytest.mark.parametrize(
    "where", [{"cpu": "another", "device": "another"}, {"cores": 4}, {"threads": 1}, {"device": "a GPU"}]
)
def test_another_machine_is_told_how_to_measure(record, capsys, where):
    run = record(*ROWS, network("san10_pairwise_summation", "default", 30), **where)
    argv = ["--max-latency", "40ms", "--max-params", "12M", "--run", run]
    _, out = answer(capsys, *argv)
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("  python")]
    how = ["--mode", "forward", "--batch", "1", "--dtype", "float32", "--output", "runs/here"]
    sweep = ["python", "-m", "saprof.sweep", "--model"]
    assert commands == [
        [*sweep, "san10_pairwise", "--footprint", "3,9", *how],
        [*sweep, "san10_patchwise", "--footprint", "5", *how, "--resume"],
        [*sweep, "san10_pairwise_summation", "--footprint", "7", *how, "--resume"],
        ["python", "-m", "saprof.advise", *argv, "--run", "runs/here"],
    ]


def test_threads_of_this_machine_are_what_torch_would_take(record, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "saprof.sweep" not in answer(capsys, "--run", record(SMALL, threads=1))[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "backward"], r"^mode backward, batch 1, float32, backend all: no such measurement"),
        (["--batch", "8"], r"^mode forward, batch 8, .*expected one of: forward, batch 1, float32, numba; "),
        (["--dtype", "bfloat16"], r"forward, batch 1, float32, unfold$"),
        (["--backend", "cuda,torch"], r"backend cuda,torch: no such measurement"),
        (["--backend", "triton"], r"^unknown backend 'triton'; expected cuda, numba, unfold, torch or all"),
        (["--max-latency", "soon"], r"^--max-latency is 'soon'; expected a positive number in s, ms, "),
    ],
)
def test_what_was_not_measured_or_not_understood(record, arguments, message):
    with pytest.raises(ValueError, match=message):
        advise.main(["--run", record(*ROWS), *arguments])


def test_backends_are_chosen(record, capsys):
    mixed = network("san10_pairwise", "square:5", 30, backend="numba+unfold")
    run = record(*ROWS, mixed)
    assert {line["backend"] for line in records(capsys, "--run", run, "--backend", "numba", "--all")} == {"numba"}
    both = records(capsys, "--run", run, "--backend", "numba,unfold", "--all")
    assert {line["backend"] for line in both} == {"numba", "unfold", "numba+unfold"}


def test_runs_that_are_none(record, tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*run\.json"):
        advise.main(["--run", str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match=r"expected one of: none$"):
        advise.main(["--run", record(network("aggregation", "square:7", 1, kind="operator"))])
    bare = Run(tmp_path / "bare", {"device": "a CPU"})
    bare.append(ROWS)
    with pytest.raises(ValueError, match=r"run\.json does not tell cpu, threads, cores, versions, commit, dirty; "):
        advise.main(["--run", str(bare.folder)])


def test_by_default_the_recorded_runs_about_networks_count(record, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(advise, "RECORDED", tmp_path)
    with pytest.raises(
        ValueError, match=r"^no recorded run about networks in .*; measure some with saprof\.sweep, and"
    ):
        advise.main([])
    record(network("aggregation", "square:7", 1, kind="operator"), name="operators")
    record(SMALL, name="networks")
    assert [line["run"] for line in records(capsys)] == [str(tmp_path / "networks")]


def test_csv_and_markdown(record, capsys):
    run = record(*ROWS)
    assert advise.main(["--run", run, "--format", "csv"]) == 0
    printed = capsys.readouterr()
    found = list(csv.DictReader(io.StringIO(printed.out)))
    assert [line["footprint"] for line in found] == ["square:11", "square:5", "square:9", "square:3"]
    assert (
        found[0].items() >= {"dominated_by": "", "torch": "2.13.0", "commit": PROVENANCE["commit"], "run": run}.items()
    )
    assert "take san10_patchwise 11×11" in printed.err
    _, out = answer(capsys, "--run", run, "--format", "md")
    assert "## a CPU, 2 threads, ImageNet val-split\n\n| network " in out


def test_advice_needs_no_torch(record):
    code = (
        "import sys; from saprof import advise; assert 'pandas' not in sys.modules and 'numpy' not in sys.modules; "
        "advise.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, "--run", record(SMALL)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "take san10_pairwise 3×3" in done.stdout
