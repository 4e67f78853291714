"""Rows and run folders: nothing is lost, nothing half-written is believed."""

import json
import re
import subprocess
import sys

import made_up
import pytest

from saprof import atomic
from saprof.records.rows import MEASURED, SCHEMA, append_rows, read_rows
from saprof.records.runs import Run, believed, identity, read_run

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
        ({"status": "fine"}, "unknown status 'fine'; expected 'ok', 'host_bound', 'unstable'"),
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


@pytest.mark.parametrize(
    "damage", ["{", "[]", "null", "\x00\x00", "", '{"latency_s": NaN}', '{"samples_s": [Infinity]}']
)
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
        ({"footprint": 7}, "is no row: footprint is 7"),
        ({"latency_s": "fast"}, "is no row: latency_s is 'fast'"),
        ({"n": 1.5}, "is no row: n is 1.5"),
        ({"device": None}, "is no row: device is None"),
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


def hold(folder):
    """A process that works on the folder until its input ends."""
    code = "import sys; from pathlib import Path; from saprof import lock\n"
    code += "with lock.held(Path(sys.argv[1])): print('ready', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_one_process_works_on_a_run(tmp_path):
    """A second one is refused, and what killed the first one has freed the run."""
    start(tmp_path)
    with hold(tmp_path) as process:
        for resume in (False, True):
            with pytest.raises(ValueError, match=f"another process is working on {tmp_path}; wait for it, or stop it"):
                start(tmp_path, resume=resume)
        process.kill()
    start(tmp_path, resume=True).append([make()])


def test_a_run_is_free_when_it_is_closed(tmp_path):
    with start(tmp_path) as run:
        with pytest.raises(ValueError, match="another process"):
            start(tmp_path)
        run.append([make()])
    with pytest.raises(ValueError, match="already holds rows") as caught:
        start(tmp_path)
    start(tmp_path, resume=True).close()
    del caught


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError(30, "Read-only file system"), "Read-only file system"),
        (NotImplementedError("use SoftFileLock"), "its file system has no locks"),
    ],
)
def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch, error, reason):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", fails)
    with pytest.raises(ValueError, match=f"cannot write to {tmp_path}/run: {reason}; choose another with --output"):
        start(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(ValueError, match="typo has no run; expected the folder of a run"):
        start(tmp_path / "typo", resume=True)
    assert not (tmp_path / "typo").exists()
    start(tmp_path / "a").append([make()])
    (tmp_path / "a" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"a has rows, but no run\.json that says where they were measured"):
        start(tmp_path / "a", resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; expected a folder"):
        start(tmp_path / "file")


def test_a_run_that_began_without_rows_begins_anew(tmp_path):
    start(tmp_path, device="another")
    start(tmp_path).append([make()])
    assert json.loads((tmp_path / "run.json").read_text())["device"] == "a CPU"


@pytest.mark.parametrize("content", ["[]", "null", "{}", "\x00\x00", '{"schema": 1, "fing'])
def test_resume_of_another_header(tmp_path, content):
    start(tmp_path)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged .*; start anew with another --output"):
        start(tmp_path, resume=True)


def test_a_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(atomic.WriteError, match=r"cannot write to .*run\.json: No space left on device; choose"):
        start(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"cpu": 3}, {"threads": "2"}, {"versions": []}, {"dirty": "no"}, {"commit": 5}])
def test_provenance_of_another_shape(tmp_path, change):
    folder = made_up.run_folder(tmp_path / "a", [make()], where=made_up.PROVENANCE | change)
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=re.escape(f"run.json: {name} is {value!r}; expected what a sweep writes")):
        read_run(folder)


def test_a_profile_cannot_be_continued_as_a_sweep(tmp_path):
    made_up.run_folder(tmp_path / "run", made_up.profile_rows())
    with pytest.raises(ValueError, match="is a profile, which cannot be continued; expected the folder of a sweep"):
        Run(tmp_path / "run", made_up.PROVENANCE, resume=True)


@pytest.mark.parametrize(
    ("statuses", "chosen"),
    [
        (["ok", "ok"], 1),
        (["ok", "contended"], 0),
        (["contended", "ok"], 1),
        (["unstable", "contended"], 1),
        (["contended", "unstable"], 1),
        (["unstable", "error"], 0),
        (["timeout", "contended"], 1),
        (["ok", "incorrect"], 1),
        (["incorrect", "ok"], 0),
        (["error", "timeout"], 1),
        (["unstable", "ok", "contended"], 1),
    ],
)
def test_the_most_believable_row_counts_and_of_equals_the_newest(tmp_path, statuses, chosen):
    """Never the fastest: each row here is faster than the one before, and then each is slower."""
    for factor in (0.5, 2.0):
        rows = [
            made_up.row(status=status, **({"latency_s": factor**n} if status in MEASURED else {"reason": str(n)}))
            for n, status in enumerate(statuses)
        ]
        assert believed(rows, lambda row: row.key) == {"k": rows[chosen]}
        folder = made_up.run_folder(tmp_path / str(factor), rows)
        assert read_run(folder).rows == (rows[chosen],)
