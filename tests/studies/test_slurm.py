"""Jobs on a replacement of Slurm's commands; test_on_slurm.py uses a real Slurm."""

import os
import pickle
import signal
from pathlib import Path

import pytest
from made_up_runs import attempts, perform
from made_up_runs import tasks as tasks_of

from studies.failures import Preempted
from studies.reproduction import slurm
from studies.reproduction.slurm import Cluster, Job, Slurm

submitit = pytest.importorskip("submitit")


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """sbatch keeps its script and prints job 7; squeue prints the file `queue`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": "exit 0",
        "sbatch": f'cat "$1" > {tmp_path}/script; echo >> {tmp_path}/submitted; echo Submitted batch job 7',
        "squeue": f"cat {tmp_path}/queue",
    }
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "POLL", 0.05)
    return tmp_path


def test_runs_become_an_array_of_jobs_and_what_left_no_result_is_named(commands):
    tasks = tasks_of(commands / "runs", [0, 1])
    cluster = Cluster(folder=commands / "slurm", partition="gpu", minutes=90, gpus=2, memory_gb=40, at_once=1)
    failed = Slurm(cluster, perform).do(tasks)
    assert failed == {
        str(task.folder): f"job 7_{number} ended without a result; see {commands}/slurm/7_{number}_*"
        for number, task in enumerate(tasks)
    }
    script = (commands / "script").read_text()
    asked = ["array=0-1%1", "partition=gpu", "time=90", "gpus-per-node=2", "ntasks-per-node=2", "mem=40GB"]
    for option in [*asked, "signal=USR2@90"]:
        assert f"#SBATCH --{option}\n" in script
    assert "export OMP_NUM_THREADS=1" in script


def test_jobs_that_an_earlier_command_queued_are_waited_for(commands, monkeypatch):
    tasks = tasks_of(commands / "runs", [0, 1])
    executor = Slurm(Cluster(folder=commands / "slurm"), perform)
    (commands / "queue").write_text("7_0\n7_1\n")

    def interrupted(seconds):
        raise Preempted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(slurm.time, "sleep", interrupted)
        with pytest.raises(Preempted):
            executor.do(tasks)

    def done(seconds):
        for task in tasks:
            perform(task)
        (commands / "queue").write_text("")

    monkeypatch.setattr(slurm.time, "sleep", done)
    assert executor.do(tasks) == {}
    assert (commands / "submitted").read_text() == "\n"  # once
    assert executor.do(tasks) == {}


def test_a_job_does_its_task_and_tells_what_went_wrong(tmp_path):
    good, bad = tasks_of(tmp_path, [0, 101])
    assert pickle.loads(pickle.dumps(Job(good, perform)))() is None
    assert Job(bad, perform)() == "the loss is not finite at step 3"
    assert attempts(tmp_path) == [0, 101]


class Requeued(SystemExit):
    pass


@pytest.fixture
def handlers():
    """The signal handlers that submitit sets."""

    def requeue(number, frame):
        raise Requeued

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, requeue)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def makes_way(number, listening):
    """A run that receives a signal, and saves if it handles SIGTERM."""

    def save(task):
        saved: list[int] = []
        before = signal.getsignal(signal.SIGTERM)
        if listening:
            signal.signal(signal.SIGTERM, lambda number, frame: saved.append(number))
        os.kill(os.getpid(), number)
        signal.signal(signal.SIGTERM, before)
        assert saved
        raise Preempted("stopped, and saved")

    return save


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("listening", [True, False])
def test_a_job_that_is_to_make_way_saves_and_is_queued_again(tmp_path, listening):
    (task,) = tasks_of(tmp_path, [0])
    with pytest.raises(Requeued):
        Job(task, makes_way(signal.SIGUSR2, listening))()
    assert isinstance(Job(task, perform).checkpoint(), submitit.helpers.DelayedSubmission)


@pytest.mark.usefixtures("handlers")
def test_a_job_that_is_cancelled_saves_and_is_not_queued_again(tmp_path):
    (task,) = tasks_of(tmp_path, [0])
    with pytest.raises(SystemExit) as ended:
        Job(task, makes_way(signal.SIGTERM, True))()
    assert ended.value.code == 75


def test_where_there_is_no_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="squeue is not found; run on a Slurm machine, or use --executor local"):
        Slurm(Cluster(folder=tmp_path / "slurm")).do(tasks_of(tmp_path, [0]))


def test_a_slurm_that_does_not_answer(commands):
    Path(commands / "bin" / "squeue").write_text("#!/bin/sh\necho slurmctld is down >&2; exit 1\n")
    with pytest.raises(ValueError, match=r"squeue failed \(slurmctld is down\)"):
        Slurm(Cluster(folder=commands / "slurm")).do(tasks_of(commands, [0]))
