"""Many training runs, several at a time, on this machine.

A run is a folder. A run whose folder holds its result is not repeated; any other run is resumed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, Protocol

from saprof.kept_memory import keep_memory
from studies.config import Config
from studies.failures import Preempted
from studies.training.run import Run

EXECUTORS = ("local", "slurm")
GRACE = 60.0
"""Seconds that a run has to save its state after it was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run, and whether it is judged for robustness after training."""

    config: Config
    """The config, with the run's folder."""
    judged: bool = False
    images: int | None = None
    """The number of images to judge robustness on; None for all images."""

    @property
    def folder(self) -> Path:
        assert self.config.output is not None
        return self.config.output

    @property
    def run(self) -> Run:
        return Run(self.folder)

    def left(self) -> bool:
        """Whether the task is unfinished."""
        return self.result() is None or (self.judged and self.robustness() is None)

    def recorded_in(self, runs: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether these recorded runs, by fingerprint, have all results of the task."""
        found = runs.get(self.config.fingerprint())
        return found is not None and (not self.judged or found.get("robustness") is not None)

    def result(self) -> dict[str, Any] | None:
        """The result of the run, if it is finished. Raises ValueError if the result is of another config."""
        found, expected = self.run.result(), self.config.fingerprint()
        if found is not None and found["fingerprint"] != expected:
            path = self.folder / "result.json"
            raise ValueError(f"{path} is of another run ({found['fingerprint']}); expected {expected}")
        return found

    def robustness(self) -> dict[str, Any] | None:
        """The content of the run's robustness.json, if it has all conditions of the tables."""
        from studies.judging.robustness import Conditions, judged

        return judged(self.folder, self.images, Conditions.from_parts())


Perform = Callable[[Task], None]


class Executor(Protocol):
    """Does tasks, on this machine or on a cluster; a context manager."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *_: object) -> None: ...

    def do(self, tasks: Sequence[Task], label: str = "runs") -> dict[str, str]:
        """Do the unfinished tasks; the reasons of those that failed, by folder."""
        ...


def perform(task: Task) -> None:
    """Train the run and judge its robustness, unless that is done already."""
    from studies.training.session import train

    _wait(task.folder / ".lock")
    train(task.config, progress=False)
    if task.judged and task.robustness() is None and os.environ.get("RANK", "0") == "0":
        from studies.judging.robustness import Execution, judge

        judge(task.folder, execution=Execution(device=task.config.device), images=task.images)


def _wait(lock: Path) -> None:
    """Wait until the process of a killed command, which may still be saving, releases the run."""
    from filelock import FileLock, Timeout

    if "RANK" not in os.environ and lock.exists():
        with suppress(Timeout), FileLock(lock).acquire(timeout=GRACE):
            pass


def cores() -> int:
    """Physical cores that this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


class Local:
    """Processes on this machine; each does tasks one after the other. They end with the context."""

    def __init__(self, jobs: int, perform: Perform = perform) -> None:
        self.jobs, self.perform = jobs, perform
        self._workers: list[_Worker] = []

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        _stop(self._workers)

    def do(self, tasks: Sequence[Task], label: str = "runs") -> dict[str, str]:
        """Do the unfinished tasks; the reasons of those that failed, by folder.

        Raises Preempted on SIGTERM and SIGINT, after the processes have saved and stopped.
        """
        left = deque(task for task in tasks if task.left())
        failed: dict[str, str] = {}
        if not left:
            return failed
        from studies.training.distributed import device

        for name in {task.config.device for task in left}:
            device(name)  # reports a missing device once, and not in every run
        with stopped_by_signals(), _one_thread(), bar(len(left), label) as shown:
            try:
                while left or any(worker.task for worker in self._workers):
                    self._give(left)
                    for task, sentence in self._answers():
                        if sentence is not None:
                            failed[str(task.folder)] = sentence
                        shown.update()
                    running = sum(worker.task is not None for worker in self._workers)
                    shown.set_postfix_str(f"{running} running, {len(failed)} failed", refresh=sys.stderr.isatty())
            except BaseException:
                _stop(self._workers)  # while signals are ignored
                raise
        return failed

    def _give(self, left: deque[Task]) -> None:
        """Give a task to every idle process, and to new processes up to `jobs`."""
        self._workers = [worker for worker in self._workers if worker.task or worker.process.is_alive()]
        idle = deque(worker for worker in self._workers if worker.task is None)
        while left and (idle or len(self._workers) < self.jobs):
            if not idle:
                self._workers.append(_Worker(self.perform))
            worker = idle.popleft() if idle else self._workers[-1]
            worker.give(left.popleft())

    def _answers(self) -> list[tuple[Task, str | None]]:
        """Wait a moment; return the tasks that ended since, each with its failure or None."""
        busy = [worker for worker in self._workers if worker.task]
        connection.wait([x for worker in busy for x in (worker.ours, worker.process.sentinel)], timeout=5.0)
        return [answer for worker in busy if (answer := worker.answer()) is not None]


class _Worker:
    """A process that does tasks one after the other."""

    def __init__(self, perform: Perform) -> None:
        context = get_context("spawn")
        self.ours, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, perform, os.getpid()))
        self.process.start()
        theirs.close()
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        self.task = task
        with suppress(BrokenPipeError):  # `answer` reports a dead process
            self.ours.send(task)

    def answer(self) -> tuple[Task, str | None] | None:
        """The task that ended, with its failure or None; None while the process is working."""
        task = self.task
        if task is None:
            return None
        with suppress(EOFError, OSError):
            if self.ours.poll():
                sentence = self.ours.recv()
                self.task = None
                return task, sentence
        if self.process.is_alive():
            return None
        self.task = None
        return task, task.run.fail("ProcessDied", f"its process ended with code {self.process.exitcode} and no answer")


def _serve(theirs: connection.Connection, perform: Perform, parent: int) -> None:
    """Do the tasks that arrive through the pipe, until it closes or the parent process has ended."""
    with suppress(OSError):
        os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which then stops this process
    keep_memory()
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    try:
        while True:
            theirs.send(attempt(theirs.recv(), perform))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Preempted:
        sys.exit(Preempted.code)


def _watch(parent: int) -> None:
    """Stop this process when its parent is gone: request a save first, and end the process if it does not stop."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(Preempted.code)


def attempt(task: Task, perform: Perform) -> str | None:
    """Do a task. If it fails, return the reason, which is also written to the run's folder. Preempted is raised."""
    try:
        perform(task)
    except Exception as error:  # any failure of one run must not stop the others
        if isinstance(error, Preempted):
            raise
        return task.run.fail(type(error).__name__, str(error), traceback.format_exc())
    task.run.forgive()
    return None


def _stop(workers: Sequence[_Worker]) -> None:
    """End the processes; those that are working save first."""
    for worker in workers:
        worker.ours.close()
        if worker.task is not None:
            worker.process.terminate()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """The first SIGTERM or SIGINT raises Preempted."""

    def stop(number: int, frame: Any) -> None:
        for name in handled:
            signal.signal(name, signal.SIG_IGN)
        raise Preempted(f"stopped by {signal.Signals(number).name}")

    handled = (signal.SIGTERM, signal.SIGINT)
    before = {name: signal.signal(name, stop) for name in handled}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that start in this context have one thread each; torch reads the variables when it is imported."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def bar(total: int, label: str) -> Any:
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=label, file=sys.stderr, unit="run", mininterval=interval, dynamic_ncols=True)
