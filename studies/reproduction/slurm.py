"""Training runs as an array of Slurm jobs, through submitit.

The study's folder records which jobs are queued, so that the command finds them again after it was killed. A job that
Slurm preempts saves its state, is queued again, and resumes where it stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saprof import atomic
from studies.failures import Preempted
from studies.reproduction.executors import Perform, Task, attempt, bar, perform, stopped_by_signals

POLL = 5.0
"""Seconds between two queries of the queue."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The resources of a job."""

    folder: Path
    """The folder of jobs and logs; all nodes must see it."""
    partition: str | None = None
    minutes: int = 1440
    gpus: int = 0
    """GPUs per run, with one process each; 0 runs on a CPU."""
    memory_gb: int = 8
    cpus: int = 1
    """CPU cores per process."""
    at_once: int = 64
    """Jobs of the array that may run at the same time."""


class Job:
    """The function that runs on the node; submitit pickles it."""

    def __init__(self, task: Task, perform: Perform) -> None:
        self.task, self.perform = task, perform

    def __call__(self) -> str | None:
        """Do the task, in as many processes as Slurm started; return the reason if it failed."""
        import submitit

        if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        requeue, default = signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGTERM)
        preempted: list[int] = []

        def preempt(number: int, frame: Any) -> None:
            """Requeue the job; if a run is training, and so handles SIGTERM, let it save first."""
            preempted.append(number)
            if signal.getsignal(signal.SIGTERM) == default:
                _call(requeue, number)
            else:
                os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGUSR2, preempt)
        try:
            return attempt(self.task, self.perform)
        except Preempted:
            if preempted:  # a cancelled job is not requeued
                _call(requeue, signal.SIGUSR2)
            sys.exit(Preempted.code)

    def checkpoint(self) -> Any:
        """The job that submitit queues again: the same one, which resumes from its folder."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _call(handler: Any, number: int) -> None:
    if callable(handler):
        handler(number, None)


class Slurm:
    """Jobs on a cluster. Leaving the context does not end them."""

    def __init__(self, cluster: Cluster, perform: Perform = perform) -> None:
        self.cluster, self.perform = cluster, perform

    def __enter__(self) -> Slurm:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def do(self, tasks: Sequence[Task], label: str = "runs") -> dict[str, str]:
        """Do the unfinished tasks as jobs, and wait for them; the reasons of those that failed, by folder.

        Raises Preempted on SIGTERM and SIGINT; the jobs continue, and the same command waits for them again.
        """
        waiting = [task for task in tasks if task.left()]
        failed: dict[str, str] = {}
        if not waiting:
            return failed
        jobs = self._queue(waiting)
        gone: set[str] = set()
        with stopped_by_signals(), bar(len(waiting), label) as shown:
            while waiting:
                time.sleep(POLL)
                queued = _queued()
                for task in [task for task in waiting if jobs[str(task.folder)] not in queued]:
                    folder = str(task.folder)
                    if task.left() and folder not in gone:
                        gone.add(folder)  # its files may appear here a little later
                        continue
                    waiting.remove(task)
                    shown.update()
                    if task.left():
                        logs = f"{self.cluster.folder}/{jobs[folder]}_*"
                        failed[folder] = task.run.failure() or f"job {jobs[folder]} ended without a result; see {logs}"
                shown.set_postfix_str(f"{len(waiting)} in the queue, {len(failed)} failed", refresh=sys.stderr.isatty())
        return failed

    def _queue(self, tasks: Sequence[Task]) -> dict[str, str]:
        """The job of every task, by folder; tasks that no earlier command queued are queued now."""
        listing = self.cluster.folder / "jobs.json"
        known: dict[str, str] = json.loads(listing.read_text()) if listing.exists() else {}
        queued = _queued()
        new = [task for task in tasks if known.get(str(task.folder)) not in queued]
        if new:
            known |= _submit(new, self.cluster, self.perform)
            atomic.write(listing, json.dumps(known, indent=1).encode())
        return known


def _submit(tasks: Sequence[Task], cluster: Cluster, perform: Perform) -> dict[str, str]:
    """Queue an array of jobs; return their ids by folder."""
    try:
        import submitit
    except ImportError:
        raise ValueError("submitit is not installed; pip install -e '.[slurm]', or use --executor local") from None
    cluster.folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder=cluster.folder.resolve(), max_num_timeout=1000)
    executor.update_parameters(
        job_name="saprof",
        time=cluster.minutes,
        nodes=1,
        ntasks_per_node=max(1, cluster.gpus),
        cpus_per_task=cluster.cpus,
        mem=f"{cluster.memory_gb}GB",
        array_parallelism=cluster.at_once,
        setup=["export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1"],
        **({"partition": cluster.partition} if cluster.partition else {}),
        **({"gpus_per_node": cluster.gpus} if cluster.gpus else {}),
    )
    with executor.batch():
        jobs = [executor.submit(Job(task, perform)) for task in tasks]
    return {str(task.folder): str(job.job_id) for task, job in zip(tasks, jobs, strict=True)}


def _queued() -> set[str]:
    """Ids of this user's waiting and running jobs. Raises ValueError if there is no Slurm."""
    command = ["squeue", "--noheader", "--array", "--format=%i", "--user", str(os.getuid())]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError:
        raise ValueError("squeue is not found; run on a Slurm machine, or use --executor local") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"squeue failed ({error.stderr.strip()}); expected Slurm to answer") from None
    return set(answer.stdout.split())
