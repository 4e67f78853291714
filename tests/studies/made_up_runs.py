"""Made-up runs: results without training, and tasks whose outcome depends on their seed."""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saprof import atomic
from studies.config import Config
from studies.failures import NonFinite, Preempted
from studies.reproduction.executors import Task
from studies.reproduction.records import Results

WHERE = {
    "versions": {"saprof": "1", "torch": "2"},
    "device": "a CPU",
    "threads": 1,
    "cores": 2,
    "platform": "Linux",
    "python": "3",
    "commit": None,
    "dirty": False,
    "code": "abc",
}
"""A provenance."""
FIGURES = {
    "top5": 99.0,
    "loss": 0.5,
    "n": 500,
    "params": 11_194,
    "steps": 1,
    "train_seconds": 10.0,
    "weights_sha256": "00",
}
"""The figures of a result, apart from its top-1."""
FAILING, DYING, ENDLESS = 101, 102, 103
"""Seeds of tasks that raise an exception, that end their process, and that run until SIGTERM."""


def study(seeds: int, **more: Any) -> dict[str, Any]:
    """The study of Results, on digits with the default recipe."""
    return {"data": "digits", "epochs": Config().epochs, "backend": None, "seeds": seeds} | more


def results(
    configs: Sequence[Config], top1: Callable[[int, int], float | None], study: dict[str, Any], **changed: Any
) -> Results:
    """Results in which `top1` returns the accuracy for the number of a config and a seed, or None for a failed run."""
    runs, failed = {}, {}
    for number, config in enumerate(configs):
        for seed in range(study["seeds"]):
            seeded = replace(config, seed=seed)
            value = top1(number, seed)
            if value is None:
                failed[seeded.fingerprint()] = "the loss is not finite"
            else:
                runs[seeded.fingerprint()] = FIGURES | {"top1": value, "where": 0, "facts": seeded.facts()}
    given = {"study": study, "learning_rates": None, "where": [WHERE], "failed": failed} | changed
    return Results(runs=runs, **given)


def tasks(folder: Path, seeds: Sequence[int]) -> list[Task]:
    """One task per seed, with existing folders."""
    for seed in seeds:
        (folder / f"{seed}").mkdir(parents=True, exist_ok=True)
    return [Task(config=Config(seed=seed, output=folder / f"{seed}")) for seed in seeds]


def perform(task: Task) -> None:
    """Replaces training; the seed of the task decides how it ends."""
    with (task.folder.parent / "log").open("a") as log:
        print(task.config.seed, file=log)
    if task.config.seed == FAILING:
        raise NonFinite("the loss is not finite\nat step 3")
    if task.config.seed == DYING:
        os._exit(9)
    if task.config.seed == ENDLESS:
        signal.signal(signal.SIGTERM, lambda *_: (task.folder / "saved").touch())
        (task.folder / "listening").touch()
        while not (task.folder / "saved").exists():
            time.sleep(0.05)
        raise Preempted("stopped")
    finish(task)


def attempts(folder: Path) -> list[int]:
    """The seeds of the tasks that `perform` was called with."""
    return [int(line) for line in (folder / "log").read_text().split()]


def finish(task: Task, top1: float = 90.0, loss: float = 0.5) -> None:
    """Write the result and the manifest of a finished run."""
    task.folder.mkdir(parents=True, exist_ok=True)
    identity = {"schema": 1, "fingerprint": task.config.fingerprint()}
    result = identity | FIGURES | {"top1": top1, "loss": loss, "train_seconds": 1.0}
    atomic.write(task.folder / "manifest.json", json.dumps({"schema": 1, "sessions": [WHERE]}).encode())
    atomic.write(task.folder / "result.json", json.dumps(result).encode())
