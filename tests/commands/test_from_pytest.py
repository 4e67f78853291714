"""Results of pytest-benchmark become a run: the same cells, with the same keys and medians."""

import json
import math
from dataclasses import asdict

import pytest
from made_up import PROVENANCE, anchor, roofs

from saprof import from_pytest
from saprof.measure.cells import Cell
from saprof.operators import OPERATORS
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload
from saprof.records import calibration
from saprof.records.environment import fingerprint
from saprof.records.rows import SCHEMA, read_rows
from saprof.records.runs import read_provenance

WHERE = PROVENANCE | {"argv": ["--benchmark-only"]}
CELLS = [
    Cell(Workload.stage(OPERATORS["aggregation"], Footprint.square(7), 256, 56), backend="numba"),
    Cell(
        Workload.stage(OPERATORS["pairwise_subtraction"], Footprint.square(3), 64, 112, 8),
        "train_step",
        backend="unfold",
    ),
]
SAMPLES = [0.01, 0.0102, 0.0101, 0.0104, 0.0103, 0.0099, 0.0101]
ROOFS = roofs()


def benchmark(cell, samples=SAMPLES, **changes):
    """A benchmark in the form that tests/benchmarks/test_stages.py records."""
    info = cell.what | cell.costs | {"error": 0.01, "roof_share": 0.3} | changes
    stats = {"median": sorted(samples)[len(samples) // 2], "iqr": 1e-4, "rounds": len(samples), "iterations": 1}
    return {"name": f"test_operator[{cell}]", "extra_info": info, "stats": stats | {"data": samples}}


def saved(*benchmarks, **changes):
    content = {"machine_info": {"saprof": WHERE}, "datetime": "2026-11-22T01:00:00.567703+00:00", "version": "5.1.0"}
    return content | {"benchmarks": list(benchmarks)} | changes


OTHER = {"name": "test_pools[torch]", "extra_info": {}, "stats": {"median": 1.0, "iterations": 1}}


@pytest.fixture
def convert(tmp_path):
    """A function that converts saved results into tmp_path / "run", and returns its rows."""

    def run(content):
        file = tmp_path / "saved.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        assert from_pytest.main([str(file), "--output", str(tmp_path / "run")]) == 0
        return read_rows(tmp_path / "run")

    return run


def test_rows_are_those_of_the_cells(convert, tmp_path):
    rows = convert(saved(*map(benchmark, CELLS)))
    mark = fingerprint(WHERE)
    assert [row.key for row in rows] == [cell.key(mark) for cell in CELLS]
    for cell, row in zip(CELLS, rows, strict=True):
        fields = asdict(row)
        known = cell.what | cell.costs | {"error": 0.01}
        assert {name: fields[name] for name in known} == known
        assert (row.fingerprint, row.time) == (mark, "2026-11-22T01:00:00+00:00")
    where = read_provenance(tmp_path / "run")
    assert where == {"schema": SCHEMA, "fingerprint": mark, **WHERE}
    assert calibration.read(tmp_path / "run") is None


def test_latency_is_the_median_of_the_samples_with_its_interval(convert):
    (row,) = convert(saved(benchmark(CELLS[0])))
    assert (row.status, row.stopped, row.calls_per_sample) == ("ok", "rounds", 1)
    assert row.samples_s == SAMPLES
    assert row.latency_s == 0.0101
    assert row.latency_p10_s == pytest.approx(0.00996)
    assert row.latency_p90_s == pytest.approx(0.01034)
    assert 0.0099 <= row.latency_low_s < 0.0101 < row.latency_high_s <= 0.0104
    assert (row.ratio, row.verdict) == (None, None)


@pytest.mark.parametrize(("part", "status"), [(0.09, "ok"), (0.11, "unstable")])
def test_an_interval_wider_than_ten_percent_is_unstable(convert, part, status):
    (row,) = convert(saved(benchmark(CELLS[0], [1 - part] * 3 + [1.0] + [1 + part] * 3)))
    assert (row.latency_low_s, row.latency_s, row.latency_high_s) == (1 - part, 1.0, 1 + part)
    assert row.status == status


def test_without_samples_there_is_a_median_that_nothing_vouches_for(convert):
    stripped = benchmark(CELLS[0])
    del stripped["stats"]["data"]
    (row,) = convert(saved(stripped))
    assert (row.status, row.latency_s, row.calls_per_sample) == ("unstable", 0.0101, 1)
    assert row.reason == "its samples were not saved, so it has no interval"
    assert (row.latency_low_s, row.latency_high_s, row.samples_s) == (None, None, None)


def test_other_benchmarks_are_named_and_left_out(convert, capsys):
    others = [OTHER | {"name": f"test_pools[{n}]"} for n in range(5)]
    assert len(convert(saved(*others, benchmark(CELLS[0])))) == 1
    printed = capsys.readouterr()
    assert printed.err == (
        "left out, since they do not say which cell they measured: "
        "test_pools[0], test_pools[1], test_pools[2] and 2 more\n"
    )
    assert printed.out.endswith("run: 1 of 6 benchmarks\n")


def test_the_calibration_comes_along(convert, tmp_path):
    convert(saved(benchmark(CELLS[0]), calibration=calibration.content(ROOFS)))
    assert calibration.read(tmp_path / "run") == ROOFS


def test_rows_are_contended_if_the_calibration_was(convert):
    contended = roofs(anchors=(anchor(contended=True),))
    (row,) = convert(saved(benchmark(CELLS[0]), calibration=calibration.content(contended)))
    assert (row.status, row.reason) == ("contended", "other processes ran during the calibration")
    assert row.latency_s == 0.0101


def test_an_output_with_rows_is_left_alone(convert):
    before = convert(saved(benchmark(CELLS[0])))
    with pytest.raises(ValueError, match="already holds rows"):
        convert(saved(benchmark(CELLS[1])))
    assert before[0].name == "aggregation"


def damaged(**changes):
    return saved(benchmark(CELLS[0], **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"saved\.json is not JSON .*; expected a file of pytest-benchmark$"),
        ("[]", r"saved\.json is no file of pytest-benchmark; expected its benchmarks and machine_info$"),
        ({"benchmarks": []}, r"is no file of pytest-benchmark"),
        (
            saved(OTHER),
            r"none of 1 benchmarks says which cell it measured; expected some of tests/benchmarks/test_stages",
        ),
        (saved(), r"none of 0 benchmarks"),
        (saved(benchmark(CELLS[0]), machine_info={}), r"machine_info\['saprof'\] lacks versions, device, "),
        (saved(benchmark(CELLS[0]), calibration={}), r"its calibration is damaged"),
        (saved(benchmark(CELLS[0]), datetime="today"), r"says datetime 'today'; expected"),
        (
            damaged(name="agregation"),
            r"benchmark test_operator\[aggregation.*\] is damaged \(KeyError\('agregation'\)\)",
        ),
        (damaged(footprint="round"), r"is damaged .*cannot read footprint 'round'"),
        (damaged(taps=9), r"is damaged .*taps do not fit the other fields"),
        (saved(benchmark(CELLS[0]) | {"stats": {}}), r"is damaged \(KeyError\('iterations'\)\)"),
        (saved(benchmark(CELLS[0]) | {"stats": {"iterations": 1, "median": "?"}}), r"is damaged \(ValueError"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(convert, tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as why:
        convert(content)
    assert "\n" not in str(why.value)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"^cannot read .*nowhere: No such file"):
        from_pytest.main([str(tmp_path / "nowhere"), "--output", str(tmp_path / "run")])


def test_samples_that_are_no_numbers_are_refused(convert, tmp_path):
    with pytest.raises(ValueError, match="is damaged"):
        convert(saved(benchmark(CELLS[0], [math.nan] * 7)))
    assert not (tmp_path / "run").exists()
