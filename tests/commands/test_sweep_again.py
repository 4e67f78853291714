"""Doubtful rows are measured again, and every reader of a run sees one row per cell. Nothing here is timed."""

import json

import pytest

from saprof import sweep
from saprof.measure import cell as cells
from saprof.measure import execute
from saprof.records.rows import read_rows
from saprof.records.runs import read_run

TWO = ["--operator", "aggregation,pairwise_summation", "--backend", "unfold,numba", "--roofs", "skip"]
SIZE = ["--channels", "32", "--size", "6", "--footprint", "3"]


@pytest.fixture
def measured(monkeypatch):
    """Replaces the measuring. `plan` holds a list of statuses for each time that a group is measured; the result lists
    the groups that were."""
    done = []

    def measure_group(group, fingerprint, how, say):
        say(group[0], "checking")
        name = group[0].what["name"]
        statuses = measured.plan[name].pop(0)
        done.append(name)
        return [
            cells.row(cell, fingerprint, status=status, latency_s=len(done) * 1e-3, samples_s=[1e-3] * 7)
            for cell, status in zip(group, statuses, strict=True)
        ]

    measured = measure_group
    measured.plan = {}
    monkeypatch.setattr(execute, "measure_group", measure_group)
    monkeypatch.setattr(execute, "compile_first", lambda cells, progress: None)
    monkeypatch.setattr(execute, "AGAIN_SHARE", 1e9)
    return lambda **plan: (measured.plan.update(plan), done)[1]


def run(folder, *arguments, options=(*TWO, *SIZE)):
    return sweep.main([*options, "--output", str(folder), *arguments])


def statuses(folder):
    return {(row.name, row.backend): row.status for row in read_run(folder).rows}


def test_a_group_in_doubt_is_measured_again_as_a_whole(tmp_path, capsys, measured):
    done = measured(aggregation=[["ok", "unstable"], ["ok", "ok"]], pairwise_summation=[["ok", "ok"]])
    assert run(tmp_path) == 0
    assert done == ["aggregation", "pairwise_summation", "aggregation"]
    assert "1 doubtful row; measuring 1 again" in capsys.readouterr().err
    assert len(read_rows(tmp_path)) == 6, "rows are only appended"
    rows = {(row.name, row.backend): row for row in read_run(tmp_path).rows}
    assert [row.status for row in rows.values()] == ["ok"] * 4
    assert rows["aggregation", "unfold"].latency_s == 3e-3, "of equally believable rows the newest counts"


def test_the_printed_rows_are_one_per_cell(tmp_path, capsys, measured):
    measured(aggregation=[["ok", "unstable"], ["contended", "ok"]], pairwise_summation=[["ok", "ok"]])
    assert run(tmp_path, "--format", "json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["backend"], row["status"], row["latency_s"]) for row in printed] == [
        ("aggregation", "unfold", "ok", 1e-3),
        ("aggregation", "numba", "ok", 3e-3),
        ("pairwise_summation", "unfold", "ok", 2e-3),
        ("pairwise_summation", "numba", "ok", 2e-3),
    ]


def test_without_time_it_says_how_to_measure_again(tmp_path, capsys, monkeypatch, measured):
    monkeypatch.setattr(execute, "AGAIN_SHARE", -1)
    done = measured(aggregation=[["contended", "unstable"]], pairwise_summation=[["ok", "ok"]])
    assert run(tmp_path) == 0
    assert done == ["aggregation", "pairwise_summation"]
    said = f"2 doubtful rows; measure again with --resume --output {tmp_path} --again doubtful"
    assert said in capsys.readouterr().err


def test_what_is_in_doubt_again_is_not_measured_a_third_time(tmp_path, measured):
    done = measured(aggregation=[["contended", "ok"], ["contended", "ok"]], pairwise_summation=[["ok", "ok"]])
    assert run(tmp_path) == 0
    assert done.count("aggregation") == 2


def test_a_time_budget_limits_it(tmp_path, measured):
    done = measured(aggregation=[["contended", "ok"]] * 2, pairwise_summation=[["ok", "ok"]])
    assert run(tmp_path / "long", "--time-budget", "1000") == 0
    assert done == ["aggregation", "pairwise_summation", "aggregation"]
    done.clear()
    assert run(tmp_path / "none", "--time-budget", "0") == 1
    assert done == []


def test_a_time_budget_limits_what_is_measured_again_later(tmp_path, capsys, monkeypatch, measured):
    """How long a group takes is not known from an earlier sweep, so the time is looked at before each group."""
    monkeypatch.setattr(execute, "AGAIN_SHARE", -1)
    done = measured(
        aggregation=[["contended", "ok"], ["ok", "ok"]],
        pairwise_summation=[["contended", "unstable"], ["ok", "ok"]],
    )
    assert run(tmp_path) == 0
    capsys.readouterr()
    monkeypatch.setattr(execute._Sweep, "_spent", property(lambda self: float(len(done))))
    assert run(tmp_path, "--resume", "--again", "doubtful", "--time-budget", "2.5") == 0
    assert done[2:] == ["aggregation"]
    said = f"2 rows in doubt left when the time budget ran out; continue with --resume --output {tmp_path} --again"
    assert said in capsys.readouterr().err
    assert run(tmp_path, "--resume", "--again", "doubtful", "--time-budget", "1000") == 0
    assert done[3:] == ["pairwise_summation"]


def test_later_with_resume(tmp_path, capsys, monkeypatch, measured):
    monkeypatch.setattr(execute, "AGAIN_SHARE", -1)
    done = measured(aggregation=[["ok", "contended"], ["ok", "ok"]], pairwise_summation=[["ok", "ok"]])
    assert run(tmp_path) == 0
    assert run(tmp_path, "--resume") == 0
    assert done == ["aggregation", "pairwise_summation"], "resuming alone measures nothing twice"
    assert run(tmp_path, "--resume", "--again", "doubtful") == 0
    assert done == ["aggregation", "pairwise_summation", "aggregation"]
    assert set(statuses(tmp_path).values()) == {"ok"}
    capsys.readouterr()
    before = (tmp_path / "rows.jsonl").read_bytes()
    assert run(tmp_path, "--resume", "--again", "doubtful") == 0
    assert "nothing to measure again" in capsys.readouterr().err
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_missing_cells_are_measured_too(tmp_path, monkeypatch, measured):
    monkeypatch.setattr(execute, "AGAIN_SHARE", -1)
    done = measured(
        aggregation=[["ok", "contended"], ["ok", "ok"]], pairwise_summation=[["ok", "unstable"], ["ok"] * 2]
    )
    one = ["--operator", "aggregation", "--backend", "unfold,numba", "--roofs", "skip", *SIZE]
    assert run(tmp_path, options=one) == 0
    assert run(tmp_path, "--resume", "--again", "doubtful") == 0
    assert sorted(done) == ["aggregation", "aggregation", "pairwise_summation", "pairwise_summation"]
    assert set(statuses(tmp_path).values()) == {"ok"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--again", "doubtful"],
            "--again measures rows of a run again; expected --resume, and its folder as --output",
        ),
        (["--resume", "--again", "contended"], "unknown again 'contended'; expected 'doubtful'"),
        (["--resume", "--again", ""], "unknown again ''; expected 'doubtful'"),
        (["--resume", "--again", "doubtfull"], "unknown again 'doubtfull'; expected 'doubtful'; did you mean"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        run(tmp_path / "run", *arguments)
    assert "\n" not in str(caught.value)


def test_doubtful_rows_of_other_cells_are_not_forgotten(tmp_path, monkeypatch, measured):
    monkeypatch.setattr(execute, "AGAIN_SHARE", -1)
    measured(aggregation=[["ok", "contended"]], pairwise_summation=[["ok", "ok"]])
    assert run(tmp_path) == 0
    other = ["--operator", "pairwise_summation", "--backend", "unfold,numba", "--roofs", "skip", *SIZE]
    with pytest.raises(ValueError, match=r" has 1 doubtful row of cells that were not requested; expected the options"):
        run(tmp_path, "--resume", "--again", "doubtful", options=other)
