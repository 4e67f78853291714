"""Many training runs: several at a time on this machine, or as an array of Slurm jobs.

A run is a folder. One that holds its result is never repeated, one that does not is gone on with.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from studies.config import Config
from studies.failures import Preempted
from studies.training.run import Run

EXECUTORS = ("local", "slurm")
GRACE = 60.0
"""Seconds in which a run that was asked to stop saves its state."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run, and whether it is judged for robustness when it is trained."""

    config: Config
    """With its folder."""
    judged: bool = False
    images: int | None = None
    """How many images robustness is judged on; None is all."""

    @property
    def folder(self) -> Path:
        assert self.config.output is not None
        return self.config.output

    @property
    def run(self) -> Run:
        return Run(self.folder)

    def left(self) -> bool:
        """Whether there is something to do."""
        return self.result() is None or (self.judged and self.robustness() is None)

    def result(self) -> dict[str, Any] | None:
        """What came of the run, if it is finished; ValueError if that is of another config."""
        found, asked = self.run.result(), self.config.fingerprint()
        if found is not None and found["fingerprint"] != asked:
            path = self.folder / "result.json"
            raise ValueError(f"{path} is of another run ({found['fingerprint']}); expected {asked}")
        return found

    def robustness(self) -> dict[str, Any] | None:
        """The content of the run's robustness.json, if it is judged under all that tables tell of."""
        from studies.judging.robustness import Conditions, judged

        return judged(self.folder, self.images, Conditions.from_parts())


Perform = Callable[[Task], None]


def perform(task: Task) -> None:
    """Train, and judge, what is not."""
    from studies.training.session import train

    _wait(task.folder / ".lock")
    train(task.config, progress=False)
    if task.judged and task.robustness() is None and os.environ.get("RANK", "0") == "0":
        from studies.judging.robustness import Execution, judge

        judge(task.folder, execution=Execution(device=task.config.device), images=task.images)


def _wait(lock: Path) -> None:
    """Until a killed command's process, on its way out, has let go of the run."""
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
    """Processes on this machine, each of which does one task after the other; a context, at whose end they end."""

    def __init__(self, jobs: int, perform: Perform = perform) -> None:
        self.jobs, self.perform = jobs, perform
        self._workers: list[_Worker] = []

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        _stop(self._workers)

    def do(self, tasks: Sequence[Task], label: str = "runs") -> dict[str, str]:
        """Do what is left of `tasks`; the sentences of those that failed, by folder.

        Raises Preempted on SIGTERM and SIGINT, when the processes have saved and stopped.
        """
        left = deque(task for task in tasks if task.left())
        failed: dict[str, str] = {}
        if not left:
            return failed
        from studies.training.distributed import device

        for name in {task.config.device for task in left}:
            device(name)  # says once that there is none, and not in every run
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
                _stop(self._workers)  # while signals are held off
                raise
        return failed

    def _give(self, left: deque[Task]) -> None:
        """Have every process that is idle, or could be started, take one."""
        self._workers = [worker for worker in self._workers if worker.task or worker.process.is_alive()]
        idle = deque(worker for worker in self._workers if worker.task is None)
        while left and (idle or len(self._workers) < self.jobs):
            if not idle:
                self._workers.append(_Worker(self.perform))
            worker = idle.popleft() if idle else self._workers[-1]
            worker.give(left.popleft())

    def _answers(self) -> list[tuple[Task, str | None]]:
        """What has been done since, after a moment."""
        busy = [worker for worker in self._workers if worker.task]
        connection.wait([x for worker in busy for x in (worker.ours, worker.process.sentinel)], timeout=5.0)
        return [answer for worker in busy if (answer := worker.answer()) is not None]


class _Worker:
    """A process that does one task after the other."""

    def __init__(self, perform: Perform) -> None:
        context = get_context("spawn")
        self.ours, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, perform, os.getpid()))
        self.process.start()
        theirs.close()
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        self.task = task
        with suppress(BrokenPipeError):  # its death is what `answer` tells
            self.ours.send(task)

    def answer(self) -> tuple[Task, str | None] | None:
        """The task that it has done, with what went wrong, if it has done one; it may have died of it."""
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
    """Do what comes through the pipe, until it closes or the parent is gone."""
    with suppress(OSError):
        os.setpgid(0, 0)  # Ctrl-C is the parent's, who then asks us to stop
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    try:
        while True:
            theirs.send(attempt(theirs.recv(), perform))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Preempted:
        sys.exit(Preempted.code)


def _watch(parent: int) -> None:
    """Ask our own process to save and stop when its parent is gone, and end it if it does not."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(Preempted.code)


def attempt(task: Task, perform: Perform) -> str | None:
    """Do a task; what went wrong, which is kept in the run's folder as well. Preempted passes."""
    try:
        perform(task)
    except Exception as error:  # whatever it is, it is this run's alone
        if isinstance(error, Preempted):
            raise
        return task.run.fail(type(error).__name__, str(error), traceback.format_exc())
    task.run.forgive()
    return None


def _stop(workers: Sequence[_Worker]) -> None:
    """End the processes: those at work save first."""
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
    """SIGTERM and SIGINT raise Preempted, the first time."""

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
    """Processes that start under it have one thread each: torch reads this when it is imported."""
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
