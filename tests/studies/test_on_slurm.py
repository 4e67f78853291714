"""`--executor slurm` on a real Slurm with one node, this machine, and two processors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saprof.command import FAILED, OK
from studies import reproduce
from studies.config import Config
from studies.failures import Preempted
from studies.reproduction import slurm
from studies.reproduction.executors import Task
from studies.reproduction.slurm import Cluster, Slurm
from studies.training import session

pytestmark = pytest.mark.slurm

SCRIPT = Path(__file__).parents[1] / "slurm" / "cluster.sh"
RUN = Config(model="resnet_mini", epochs=3, checkpoint_every=4, device="cpu")
"""Long enough to be interrupted."""


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") or os.getuid() != 0:
        pytest.skip("needs slurmctld and root; apt-get install -y --no-install-recommends slurm-wlm munge")
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(slurm, "POLL", 0.5)
        try:
            _done(SCRIPT, "start", folder)
            yield
        finally:
            _done(SCRIPT, "stop", folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of RUN without interruptions."""
    return session.train(_task(tmp_path_factory.mktemp("alone")).config, progress=False)["weights_sha256"]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("study") / "slurm"
    assert _reproduce(output, "slurm") == OK
    return output


def test_the_weights_are_those_of_runs_on_this_machine(reproduced, tmp_path):
    assert _reproduce(tmp_path, "local") == OK
    assert len(_weights(reproduced)) == 4  # two that choose learning rates, two that are reported
    assert _weights(reproduced) == _weights(tmp_path)


def test_what_is_finished_is_not_queued_again(reproduced):
    before = _ever_queued()
    assert _reproduce(reproduced, "slurm") == OK
    assert _ever_queued() == before != ""


def test_a_dry_run_queues_nothing(tmp_path):
    before = _ever_queued()
    assert _reproduce(tmp_path / "study", "slurm", "--dry-run") == OK
    assert not (tmp_path / "study").exists()
    assert _ever_queued() == before


def test_a_run_that_fails_is_named_and_the_others_go_on(reproduced, tmp_path, capsys):
    output = tmp_path / "study"
    shutil.copytree(reproduced, output)
    fine, faulty = sorted((output / "runs").glob("*-seed0-*"))
    for folder in (fine, faulty):
        shutil.rmtree(folder)
    faulty.mkdir()
    (faulty / "ckpt").touch()  # where its checkpoints were to be
    assert _reproduce(output, "slurm") == FAILED
    assert f"failed: {faulty}: cannot write to {faulty}" in capsys.readouterr().err
    assert _weights(output) == {name: sha for name, sha in _weights(reproduced).items() if name != faulty.name}


def test_jobs_that_are_interrupted_go_on_where_they_stopped(weights, tmp_path):
    tasks = back, late, cancelled = [_task(tmp_path / name) for name in ("back", "late", "cancelled")]
    at_first_checkpoints = [
        (back, lambda: _done("scontrol", "requeue", _job(tmp_path, back))),
        (late, lambda: _done("scancel", "--signal=USR2", _job(tmp_path, late))),  # what Slurm sends before time is up
        (cancelled, lambda: _done("scancel", _job(tmp_path, cancelled))),
    ]
    failed = _interrupted(_slurm(tmp_path), tasks, at_first_checkpoints)
    assert list(failed) == [str(cancelled.folder)]
    assert "ended without a result" in failed[str(cancelled.folder)]
    assert _slurm(tmp_path).do(tasks) == {}
    assert [_result(task)["weights_sha256"] for task in tasks] == [weights] * 3
    assert all(map(_resumed, tasks))


def test_a_command_that_is_stopped_leaves_jobs_that_the_next_one_finds(weights, tmp_path):
    task = _task(tmp_path / "run")
    with pytest.raises(Preempted):
        _interrupted(_slurm(tmp_path), [task], [(task, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    before = _ever_queued()
    assert _slurm(tmp_path).do([task]) == {}
    assert _ever_queued() == before
    assert _result(task)["weights_sha256"] == weights
    assert not _resumed(task)


def test_a_run_of_two_processes_makes_way_too(tmp_path):
    task = _task(tmp_path / "run")
    stop = (task, lambda: _done("scancel", "--signal=USR2", _job(tmp_path, task)))
    assert _interrupted(_slurm(tmp_path, gpus=2), [task], [stop]) == {}
    assert _resumed(task)
    assert [session["processes"] for session in _sessions(task)] == [2, 2]


def _reproduce(output: Path, executor: str, *more: str) -> int:
    """Two networks: a run each to choose the learning rate and one that is reported."""
    options = ["--smoke", "--device", "cpu", "--jobs", "2", "--executor", executor, "--output", str(output)]
    return reproduce.main(["sec5.3", *options, *more])


def _weights(output: Path) -> dict[str, str]:
    results = (output / "runs").glob("*/result.json")
    return {path.parent.name: json.loads(path.read_text())["weights_sha256"] for path in results}


def _task(folder: Path) -> Task:
    return Task(config=replace(RUN, output=folder))


def _slurm(folder: Path, gpus: int = 0) -> Slurm:
    return Slurm(Cluster(folder=folder / "slurm", minutes=60, memory_gb=1, gpus=gpus))


def _interrupted(on: Slurm, tasks: list[Task], what: Sequence[tuple[Task, Callable[[], object]]]) -> dict[str, str]:
    """The failures of the tasks; `what` is done to some of them as soon as they have a checkpoint."""

    def watch(task: Task, do: Callable[[], object]) -> None:
        deadline = time.monotonic() + 240
        while not list(task.folder.glob("ckpt/*")):
            assert time.monotonic() < deadline, f"{task.folder} has no checkpoint"
            time.sleep(0.05)
        do()

    with ThreadPoolExecutor(len(what)) as pool:
        watching = [pool.submit(watch, *pair) for pair in what]
        try:
            return on.do(tasks)
        finally:
            for one in watching:
                one.result()


def _ever_queued() -> str:
    """All jobs of the last minutes, finished ones too."""
    return _done("squeue", "--noheader", "--array", "--states=all", "--format=%i", "--sort=i")


def _job(folder: Path, task: Task) -> str:
    return json.loads((folder / "slurm" / "jobs.json").read_text())[str(task.folder)]


def _result(task: Task) -> dict[str, Any]:
    return json.loads((task.folder / "result.json").read_text())


def _sessions(task: Task) -> list[dict[str, Any]]:
    return json.loads((task.folder / "manifest.json").read_text())["sessions"]


def _resumed(task: Task) -> bool:
    """Whether a second session resumed at a later step."""
    return [session["step"] > 0 for session in _sessions(task)] == [False, True]


def _done(*command: object) -> str:
    return subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout
