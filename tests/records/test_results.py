"""Rows and run folders: nothing is lost, nothing half-written is believed."""

import json

import made_up
import pytest

from saprof.records.rows import MEASURED, SCHEMA, append_rows, read_rows
from saprof.records.runs import Run, identity

PROVENANCE = {"device": "a CPU", "commit": "abc", "argv": ["--footprint", "3"]}


def make(key="a", **changes):
    return made_up.row(**{"key": key, "latency_s": 0.5, "samples_s": [0.25, 0.5, 0.75]} | changes)


def start(folder, resume=False, **changes):
    return Run(folder, PROVENANCE | changes, resume)


def test_a_row_survives_the_file(tmp_path):
    rows = [make("a"), make("b", status="oom", latency_s=None, samples_s=None, reason="no memory")]
    append_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path) == rows


def test_how_an_attention_ran_survives_the_file(tmp_path):
    rows = [make("a", attention="fused"), make("b")]
    append_rows(tmp_path / "rows.jsonl", rows)
    assert [row.attention for row in read_rows(tmp_path)] == ["fused", None]
    assert "attention" not in json.loads(rows[1].line())


def test_rows_are_on_disk_when_they_are_appended(tmp_path, monkeypatch):
    path, synced = tmp_path / "rows.jsonl", []
    monkeypatch.setattr("os.fsync", lambda _: synced.append(path.read_text()))
    append_rows(path, [make("a")])
    assert synced == [make("a").line() + "\n"]


def test_identity_is_of_the_kind_of_device():
    """Runs on two devices of one kind are compared cell by cell."""
    assert identity(make(device="cuda:0")) == identity(make(device="cuda:1")) != identity(make(device="cpu"))


def test_absent_is_not_written_and_nan_is_refused():
    assert "peak_bytes" not in json.loads(make().line())
    with pytest.raises(ValueError, match="JSON"):
        make(latency_s=float("nan")).line()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "fine"}, "unknown status 'fine'; expected 'ok', 'unstable'"),
        ({"latency_s": None}, "status ok and latency_s = None"),
        ({"status": "error", "reason": "x"}, "status error and latency_s = 0.5"),
        ({"status": "error", "latency_s": None}, "status error without a reason"),
    ],
)
def test_status_decides_which_fields_exist(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
    assert "ok" in MEASURED


def test_a_last_line_cut_short_is_dropped_with_a_warning(tmp_path):
    append_rows(tmp_path / "rows.jsonl", [make("a"), make("b")])
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(make("c").line()[:40])
    with pytest.warns(UserWarning, match="line 3 was cut short"):
        assert [row.key for row in read_rows(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("damage", ["{", "[]", "null", "\x00\x00", ""])
def test_damage_elsewhere_names_the_line(tmp_path, damage):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([make("a").line(), damage, make("b").line(), ""]))
    with pytest.raises(ValueError, match="line 2 is damaged"):
        read_rows(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 0}, f"has schema 0; expected {SCHEMA}"),
        ({"colour": "red"}, "unknown fields: colour"),
        ({"status": "fine"}, "is no row: .*unknown status"),
    ],
)
def test_a_line_that_is_no_row_of_ours(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(json.loads(make().line()) | change) + "\n")
    with pytest.raises(ValueError, match=f"line 1.*{message}"):
        read_rows(path)


def test_missing_rows_name_the_path(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read rows from .*rows\.jsonl: No such file"):
        read_rows(tmp_path)


def test_a_run_is_not_overwritten(tmp_path):
    start(tmp_path).append([make()])
    with pytest.raises(ValueError, match="already holds rows; continue with --resume"):
        start(tmp_path)
    assert len(read_rows(tmp_path)) == 1


def test_resume_keeps_what_is_done_and_drops_what_was_cut(tmp_path):
    start(tmp_path).append([make("a"), make("b")])
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"key": "c"')
    with pytest.warns(UserWarning, match="cut short"):
        run = start(tmp_path, resume=True)
    run.append([make("d")])
    assert [row.key for row in read_rows(tmp_path)] == ["a", "b", "d"]
    assert [row.key for row in run.rows(["d", "x", "a"])] == ["d", "a"]


def test_resume_refuses_another_machine(tmp_path):
    start(tmp_path).append([make()])
    with pytest.raises(ValueError, match="device was 'a CPU' and is 'another'"):
        start(tmp_path, resume=True, device="another")


def test_resume_minds_the_code_and_not_the_command_line(tmp_path):
    start(tmp_path).append([make()])
    assert start(tmp_path, resume=True, argv=["--resume"], commit="def").done
    with pytest.raises(ValueError, match="code was None and is '123'"):
        start(tmp_path, resume=True, code="123")


def test_resume_of_a_damaged_header(tmp_path):
    start(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        start(tmp_path, resume=True)


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write to .*choose another with --output"):
        start(tmp_path / "file" / "run")
