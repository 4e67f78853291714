import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up_runs import attempts, finish, perform
from made_up_runs import tasks as tasks_of

from studies import footprints, reproduce
from studies.config import Config
from studies.failures import BadData, NonFinite, Preempted
from studies.reproduction import executors, paper_tables, rates, records
from studies.reproduction.executors import Local
from studies.reproduction.grid import cells
from studies.reproduction.study import Study
from studies.training.run import Run


def test_a_run_that_fails_stops_no_other_and_a_finished_one_is_not_repeated(tmp_path):
    tasks = tasks_of(tmp_path, [0, 101, 1, 102, 2])
    with Local(2, perform) as executor:
        failed = executor.do(tasks)
        assert failed == {
            str(tmp_path / "101"): "the loss is not finite at step 3",
            str(tmp_path / "102"): "its process ended with code 9 and no answer",
        }
        kept = json.loads((tmp_path / "101" / "failed.json").read_text())
        assert (kept["kind"], kept["reason"]) == ("NonFinite", "the loss is not finite at step 3")
        assert "in perform" in kept["traceback"]
        assert tasks[3].run.failure() == "its process ended with code 9 and no answer"
        assert sorted(attempts(tmp_path)) == [0, 1, 2, 101, 102]
        executor.do(tasks)
    assert sorted(attempts(tmp_path)) == [0, 1, 2, 101, 101, 102, 102]


def test_a_failed_run_is_one_that_training_takes_up_again(tmp_path):
    (task,) = tasks_of(tmp_path, [101])
    with pytest.raises(NonFinite):
        perform(task)
    assert executors.attempt(task, perform)
    assert [path.name for path in task.folder.iterdir()] == ["failed.json"]
    task.run.check(task.config)
    assert executors.attempt(task, finish) is None
    assert task.run.failure() is None


def test_why_a_run_failed_is_told_even_if_it_cannot_be_kept(tmp_path):
    (task,) = tasks_of(tmp_path, [101])
    (task.folder / "failed.json").mkdir()
    assert executors.attempt(task, perform) == "the loss is not finite at step 3"
    (task.folder / "failed.json").rmdir()
    task.folder.rmdir()
    task.folder.touch()  # where the run's folder would be
    assert executors.attempt(task, perform) == "the loss is not finite at step 3"


def test_the_reason_of_a_failure_is_one_line_whatever_is_in_it(tmp_path):
    run = Run(tmp_path / "run")
    assert run.failure() is None
    assert run.fail("BadData", "cannot read\n  \udce9.jpg") == run.failure() == "cannot read \udce9.jpg"
    assert run.fail("MemoryError", "") == run.failure() == "MemoryError"


def test_the_result_of_another_config_is_refused(tmp_path):
    (task,) = tasks_of(tmp_path, [0])
    finish(task)
    other = replace(task, config=replace(task.config, lr=0.7))
    was, asked = task.config.fingerprint(), other.config.fingerprint()
    with pytest.raises(ValueError, match=f"{tmp_path}/0/result.json is of another run .{was}.; expected {asked}"):
        other.left()
    assert not task.left()


def test_a_damaged_result_is_named(tmp_path):
    (task,) = tasks_of(tmp_path, [0])
    for damaged in ("{", "[]", '{"schema": 1}'):
        (task.folder / "result.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"0/result\.json is damaged .*; delete it, and it is made again"):
            task.left()


def test_a_run_without_its_place_is_named(tmp_path):
    (task,) = tasks_of(tmp_path, [0])
    finish(task)
    (task.folder / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(
        ValueError, match=r"0 does not record where its run was made; delete it, and the run is made again"
    ):
        records.collect({}, None, [task])


def test_a_run_that_was_judged_in_part_is_not_done(tmp_path):
    """The state after `studies.evaluate --only clean`."""
    from studies.judging.perturbations import ATTACKS, MANIPULATIONS

    task = replace(tasks_of(tmp_path, [0])[0], judged=True, images=20)
    finish(task)
    turned, attacked = {name: {"n": 20} for name in MANIPULATIONS}, {attack.name: {} for attack in ATTACKS}
    identity = {"schema": 1, "fingerprint": task.config.fingerprint(), "weights_sha256": "00", "sample_of": None}

    def left(manipulations, attacks):
        report = identity | {"manipulations": manipulations, "attacks": attacks}
        (task.folder / "robustness.json").write_text(json.dumps(report))
        return task.left()

    assert left({"none": {"n": 20}}, {})
    assert left(turned, {})
    assert left({"none": {"n": 20}}, attacked)
    assert not left(turned, attacked)


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
if __name__ == "__main__":
    from pathlib import Path
    from studies.reproduction.executors import Local
    from studies.failures import Preempted
    from made_up_runs import perform, tasks
    with Local(2, perform) as executor:
        try:
            executor.do(tasks(Path({folder!r}), [0, 103, 1]))
        except Preempted:
            sys.exit(75)
"""


def wait_for(what, seconds=120):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.deep
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -9)])
def test_processes_save_when_the_command_ends(tmp_path, number, code):
    (tmp_path / "driver.py").write_text(DRIVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    driver = subprocess.Popen([sys.executable, str(tmp_path / "driver.py")], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: (tmp_path / "1" / "result.json").exists() and (tmp_path / "103" / "listening").exists())
        driver.send_signal(number)
        assert driver.wait(60) == code
        wait_for((tmp_path / "103" / "saved").exists)
    finally:
        driver.kill()


def tuned(tmp_path, top1, loss=lambda rate, seed: 0.5, candidates=(0.1, 0.2)):
    """The choice of the convolutional family, given made-up results; None is a run that failed."""
    study, runs = Study(), tmp_path / "runs"
    tuning = rates.Tuning(study=study, runs=runs, families=("convolution",), candidates=candidates)
    for task in tuning.tasks():
        figure = top1(task.config.lr, task.config.seed)
        if figure is None:
            task.run.fail("NonFinite", "the loss is not finite")
        else:
            finish(task, figure, loss(task.config.lr, task.config.seed))
    return tuning, rates.choose(tuning, tmp_path / "learning_rates.json")["convolution"]


def test_the_rate_with_the_highest_mean_accuracy_is_chosen_and_all_are_kept(tmp_path):
    tuning, choice = tuned(tmp_path, lambda rate, seed: {1000: 90, 1001: 80}[seed] + rate)
    assert choice["chosen"] == 0.2
    assert choice["at_the_edge_of_candidates"]
    assert [(it["lr"], it["top1"]) for it in choice["candidates"]] == [(0.1, 85.1), (0.2, 85.2)]
    kept = json.loads((tmp_path / "learning_rates.json").read_text())
    assert kept["seeds"] == [1000, 1001]
    assert rates.read(tmp_path / "learning_rates.json", tuning) == kept["families"]


def test_of_equal_accuracies_the_lower_loss_is_chosen(tmp_path):
    _, choice = tuned(tmp_path, lambda rate, seed: 90, lambda rate, seed: 1 - rate)
    assert choice["chosen"] == 0.2


def test_of_equals_the_lower_rate_is_chosen(tmp_path):
    assert tuned(tmp_path, lambda rate, seed: 90)[1]["chosen"] == 0.1


def test_a_rate_of_which_a_run_failed_is_out(tmp_path):
    _, choice = tuned(tmp_path, lambda rate, seed: None if (rate, seed) == (0.2, 1001) else 90 + rate)
    assert choice["chosen"] == 0.1
    assert choice["candidates"][1]["runs"][1]["failed"] == "the loss is not finite"


def test_a_family_that_cannot_be_tuned(tmp_path):
    with pytest.raises(ValueError, match="no learning rate of convolution could be tried: the loss is not finite"):
        tuned(tmp_path, lambda rate, seed: None)


def test_a_choice_by_another_rule_is_refused(tmp_path):
    tuning, _ = tuned(tmp_path, lambda rate, seed: 90)
    with pytest.raises(ValueError, match=r"candidates \[0\.1, 0\.2\], not \[0\.1\]; choose another --output"):
        rates.read(tmp_path / "learning_rates.json", replace(tuning, candidates=(0.1,)))


def test_tuning_seeds_are_not_reported():
    with pytest.raises(ValueError, match="seeds is 1001; expected at most 1000, where tuning seeds begin"):
        reproduce.main(["table8", "--seeds", "1001"])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["table2"], "unknown table 'table2'; expected 'table3', .*'table10', 'sec5.3' or 'all'"),
        (["table4,figure1"], "unknown table 'figure1'"),
        (["table4", "--data", "mnist"], "unknown data set 'mnist'; expected 'digits', "),
        (["table4", "--executor", "cloud"], "unknown executor 'cloud'; expected 'local' or 'slurm'"),
        (["table4", "--device", "tpu"], "unknown device 'tpu'"),
        (["table4", "--seeds", "0"], "seeds is 0; expected a positive integer"),
        (["table4", "--jobs", "-1"], "jobs is -1; expected a positive integer"),
        (["table4", "--workers", "-1"], "workers -1; expected none or more"),
        (["table4", "--candidates", "0.1,high"], "candidates is '0.1,high'; expected positive numbers"),
        (["table4", "--candidates", "0"], "candidates is '0'; expected positive numbers"),
        (["table4", "--bandwidth", "0"], "bandwidth is 0.0; expected GB/s"),
        (["table4", "--from", "x", "--smoke"], "--from has no effect together with --smoke; omit these"),
        (["table4", "--from", "/nowhere"], "expected the folder of a finished study"),
    ],
)
def test_bad_input(argv, expected):
    with pytest.raises(ValueError, match=expected):
        reproduce.main(argv)


def test_data_that_are_missing_are_missed_once(tmp_path, capsys):
    output = tmp_path / "study"
    with pytest.raises(BadData, match=r"nowhere is not there; expected ROOT/train/<class>/\*\.jpg"):
        reproduce.main(["table3", "--data", "folder", "--root", f"{tmp_path}/nowhere", "--output", str(output)])
    assert not output.exists()


def test_help_needs_no_torch():
    code = (
        "import sys; from studies.reproduce import options; options().format_help(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.deep
def test_the_cost_of_full_scale_is_an_estimate(capsys, tmp_path):
    asked = ["table5", "--data", "folder", "--dry-run", "--seeds", "1", "--gpus", "8", "--output", str(tmp_path)]
    assert reproduce.main(asked) == 0
    shown = capsys.readouterr().out
    assert "7 runs: 0 finished, 7 left" in shown
    assert "an estimate, within a factor of two" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("san10_pairwise {} ")]
    assert line.split()[-1] == "12.15"  # 389 MiB per image, as an unfold prototype keeps too
    assert "learning rates: the recipe's" in shown
    assert not list(tmp_path.iterdir())


def test_the_cost_of_digits_is_by_finished_runs(capsys, tmp_path):
    asked = ["table8", "--dry-run", "--seeds", "2", "--candidates", "0.1", "--output", str(tmp_path)]
    assert reproduce.main(asked) == 0
    assert "12 runs: 0 finished, 12 left\nhours: unknown, no run is finished here" in capsys.readouterr().out
    tuning = rates.Tuning(study=Study(), runs=tmp_path / "runs", families=("convolution",), candidates=(0.1,))
    finish(tuning.tasks()[0])
    assert reproduce.main([*asked, "--jobs", "2"]) == 0
    assert "12 runs: 1 finished, 11 left\n0.00 hours of runs, 0.00 with 2 at a time" in capsys.readouterr().out


COMMAND = [sys.executable, "-m", "studies.reproduce", "sec5.3", "--smoke", "--jobs", "2", "--output"]


@pytest.mark.deep
def test_after_kill_9_no_finished_run_is_repeated(tmp_path, capsys):
    """Four runs of two epochs; half a minute."""
    command = subprocess.Popen([*COMMAND, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(tmp_path.glob("runs/*/result.json")), 900)
    finally:
        command.kill()
    command.wait()
    assert not (tmp_path / "results.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    assert reproduce.main([*COMMAND[3:], str(tmp_path)]) == 0
    again = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 4
    drawn = (tmp_path / "tables" / "sec5.3.md").read_text()
    assert "smoke: pipeline only" in drawn
    assert drawn.count("1 of 1") == 2

    assert reproduce.main([*COMMAND[3:], str(tmp_path)]) == 0
    assert capsys.readouterr().out == again
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "results.json").write_bytes((tmp_path / "results.json").read_bytes())
    assert reproduce.main(["all", "--from", str(tmp_path / "copy")]) == 0
    assert capsys.readouterr().out == again
    assert (tmp_path / "copy" / "tables" / "sec5.3.md").read_text() == drawn
    with pytest.raises(ValueError, match=r"of a study with smoke True, not False.*; choose another --output"):
        reproduce.main(["sec5.3", "--epochs", "2", "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="has none of the tables asked for; it has sec5"):
        reproduce.main(["table4", "--from", str(tmp_path / "copy")])


@pytest.mark.deep
def test_smoke_of_every_table(tmp_path):
    """43 runs of two epochs; a minute and a half on two idle cores."""
    command = [sys.executable, "-m", "studies.reproduce", "all", "--smoke", "--output", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 43
    assert len(list(tmp_path.glob("runs/*/robustness.json"))) == 9
    assert len(list((tmp_path / "tables").glob("*.csv"))) == 9
    for page in [*(tmp_path / "tables").glob("*.md"), tmp_path / "README.md"]:
        assert "digits-8x8 miniature, 1 seed, not ImageNet" in page.read_text()
        assert "smoke: pipeline only" in page.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("main", [reproduce.main, footprints.main])
def test_a_device_that_is_not_there_is_reported_before_anything_is_written(tmp_path, main):
    with pytest.raises(ValueError, match="device is 'cuda', and torch sees no CUDA device"):
        main(["--device", "cuda", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("judged_epochs", "kept"), [(20, True), (1, False), (None, False)])
def test_the_best_epoch_is_recorded_if_all_were_judged(tmp_path, judged_epochs, kept):
    (task,) = tasks_of(tmp_path, [0])
    finish(task)
    path = task.folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best_top1": 93.0, "judged_epochs": judged_epochs}))
    (run,) = records.collect({}, None, [task]).runs.values()
    assert run.get("best_top1") == (93.0 if kept else None)


FEW = ["sec5.3", "--seeds", "2", "--candidates", "0.1", "--jobs", "1"]


def interrupted(after):
    """Replaces training: a signal stops the command after so many runs."""
    done = []

    def perform(task):
        if len(done) == after:
            raise KeyboardInterrupt
        finish(task, 90.0 + task.config.seed % 7)
        done.append(task)

    return perform, done


class InProcess:
    """Does tasks in this process, and reports an interruption as Local does."""

    def __init__(self, perform):
        self.perform = perform

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def do(self, tasks, label="runs"):
        try:
            for task in tasks:
                if task.left():
                    self.perform(task)
        except KeyboardInterrupt:
            raise Preempted("stopped") from None
        return {}


def session(monkeypatch, output, record, after=99, more=()):
    """One session; the runs that it did."""
    perform, done = interrupted(after)
    monkeypatch.setattr(reproduce, "_executor", lambda arguments, planned: InProcess(perform))
    code = reproduce.main([*FEW, "--output", str(output), "--record", str(record), *more])
    return code, done


def test_a_study_goes_on_from_its_record_alone(tmp_path, monkeypatch, capsys):
    """Two families are tuned with two seeds each, then two networks are trained with two seeds each."""
    record = tmp_path / "record"
    assert session(monkeypatch, tmp_path / "first", record, after=3)[0] == Preempted.code
    kept = records.read(record / records.FILE)
    assert (list(kept.learning_rates["families"]), len(kept.runs)) == (["pairwise"], 0)

    code, done = session(monkeypatch, tmp_path / "second", record, after=5)
    assert code == Preempted.code
    assert [task.config.model for task in done[:2]] == ["san_mini_stand_alone"] * 2
    kept = records.read(record / records.FILE)
    assert len(kept.runs) == 3
    assert "1 of 2" in (record / "tables" / "sec5.3.md").read_text()
    assert {path.suffix for path in (record / "tables").iterdir()} == {".md"}

    code, done = session(monkeypatch, tmp_path / "third", record)
    assert (code, [task.config.seed for task in done]) == (0, [1])
    whole = records.read(record / records.FILE)
    assert len(whole.runs) == 4
    assert not whole.failed
    assert {key: whole.runs[key] for key in kept.runs} == dict(kept.runs)
    assert session(monkeypatch, tmp_path / "fourth", record) == (0, [])


def test_what_is_finished_so_far_is_recorded_without_training(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "study"
    session(monkeypatch, folder, tmp_path / "first", after=5)
    monkeypatch.undo()
    record = tmp_path / "record"
    assert reproduce.main([*FEW, "--output", str(folder), "--record", str(record), "--so-far"]) == 0
    assert "1 finished runs recorded" in capsys.readouterr().err
    assert len(records.read(record / records.FILE).runs) == 1
    assert reproduce.main([*FEW, "--output", str(folder), "--dry-run"]) == 0
    assert "4 runs: 1 finished, 3 left" in capsys.readouterr().out


def test_fewer_seeds_drop_no_recorded_run(tmp_path, monkeypatch, capsys):
    """The pages keep all seeds, and only the seeds asked for decide the exit code."""
    record = tmp_path / "record"
    session(monkeypatch, tmp_path / "first", record)
    whole = records.read(record / records.FILE)
    assert len(whole.runs) == 4
    for output in ("first", "second"):
        assert session(monkeypatch, tmp_path / output, record, more=["--seeds", "1"]) == (0, [])
        kept = records.read(record / records.FILE)
        assert (kept.runs, kept.study["seeds"]) == (whole.runs, 2)
        assert "2 of 2" in (record / "tables" / "sec5.3.md").read_text()


def test_fewer_seeds_than_an_unfinished_record_has(tmp_path, monkeypatch, capsys):
    """A session that finishes its own seed is complete, although the record still lacks runs of the other."""
    record = tmp_path / "record"
    session(monkeypatch, tmp_path / "first", record, after=5)
    assert session(monkeypatch, tmp_path / "second", record, more=["--seeds", "1"])[0] == 0
    kept = records.read(record / records.FILE)
    assert (len(kept.runs), kept.study["seeds"], len(kept.failed)) == (2, 2, 2)


def test_results_of_both_folders_are_kept(tmp_path, monkeypatch, capsys):
    """The output has runs that the record lacks, and no folders of runs."""
    record, output = tmp_path / "record", tmp_path / "output"
    session(monkeypatch, output, record)
    part = records.read(record / records.FILE)
    runs = dict(list(part.runs.items())[:1])
    (record / records.FILE).unlink()
    records.write(record / records.FILE, replace(part, runs=runs))
    shutil.rmtree(output / "runs")
    assert session(monkeypatch, output, record) == (0, [])
    for folder in (output, record):
        assert records.read(folder / records.FILE).runs == part.runs


def test_runs_of_another_recipe_are_not_dropped(tmp_path, monkeypatch, capsys):
    """The recipe's batch changed after the runs were recorded."""
    record = tmp_path / "record"
    session(monkeypatch, tmp_path / "first", record)
    before = (record / records.FILE).read_bytes()
    monkeypatch.setattr(Study, "recipe", property(lambda study: replace(Config(), batch=16, evaluate_every=20)))
    for asked in ([], ["--so-far"], ["--dry-run"]):
        with pytest.raises(ValueError, match=r"has 4 runs that this study does not make.*choose another folder"):
            session(monkeypatch, tmp_path / "second", record, more=asked)
    assert (record / records.FILE).read_bytes() == before


def test_results_are_not_replaced_by_fewer(tmp_path):
    first, second = tasks_of(tmp_path, [0, 1])
    for task in (first, second):
        finish(task)
    path = tmp_path / records.FILE
    study = {"data": "digits", "epochs": 20, "backend": None, "seeds": 2}
    records.write(path, records.collect(study, None, [first, second]))
    with pytest.raises(ValueError, match="has 1 run that this study does not make"):
        records.write(path, records.collect(study, None, [first]))
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        records.write(path, records.collect(study, None, [first]))


def test_a_session_at_full_scale_keeps_the_rates_that_were_chosen(tmp_path, capsys):
    """Without --tune, the runs would be those of the recipe's rates, and those recorded would be dropped."""
    study = Study(data="folder")
    tuning = rates.Tuning(study=study, runs=tmp_path, families=())
    chosen = {"convolution": {"chosen": 0.7}, "pairwise": {"chosen": 0.6}, "patchwise": {"chosen": 0.5}}
    facts = {"data": "folder", "epochs": 100, "backend": None, "seeds": 1, "tables": ["8"], "smoke": False}
    cell = cells("8", study.with_rates(chosen))[0]
    (task,) = tasks_of(tmp_path, [0])
    task = replace(task, config=replace(cell.config, seed=0, output=task.folder))
    finish(task)
    results = records.collect(facts, tuning.rule() | {"families": chosen}, [task])
    records.write(tmp_path / records.FILE, results)
    request = reproduce.Request(
        study=study, output=tmp_path, tables=["8"], seeds=1, smoke=False, tune=False,
        candidates=rates.CANDIDATES, tuning_seeds=rates.SEEDS,
    )  # fmt: skip
    assert paper_tables.plan(request).chosen == chosen
    bare = replace(results, learning_rates=None)
    (tmp_path / records.FILE).unlink()
    records.write(tmp_path / records.FILE, bare)
    with pytest.raises(ValueError, match="has runs with the recipe's learning rates; omit --tune"):
        paper_tables.plan(replace(request, tune=True))


def test_what_is_finished_is_recorded_if_the_work_ends_with_an_error(tmp_path, monkeypatch, capsys):
    class Broken(InProcess):
        def do(self, tasks, label="runs"):
            super().do(tasks, label)
            if label == "runs":
                raise OSError("the disk is gone")
            return {}

    monkeypatch.setattr(reproduce, "_executor", lambda arguments, planned: Broken(finish))
    with pytest.raises(OSError, match="the disk is gone"):
        reproduce.main([*FEW, "--output", str(tmp_path / "output")])
    assert len(records.read(tmp_path / "output" / records.FILE).runs) == 4
