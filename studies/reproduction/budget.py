"""The cost of a study before it is run: runs, hours, memory per GPU.

Hours are computed from finished runs in the same folder. Without one, the hours of SASA's miniatures are computed from
steps that were timed once, and the hours of networks at full size are estimated, within a factor of two: this assumes
that a training step moves 6 times the bytes that it keeps for its backward pass, at three quarters of the GPU's peak
memory bandwidth.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

from saprof.models.catalogue import named_model
from saprof.terminal import laid_out, paragraphs
from studies.config import Config
from studies.reproduction import pilot
from studies.reproduction.executors import Task
from studies.reproduction.miniatures import SIDES

TRAFFIC = 6
"""Bytes moved in a training step, relative to those kept for the backward pass."""
REACHED = 0.75
"""The fraction of the peak bandwidth that a training step reaches."""
BANDWIDTH = 3350.0
"""The memory bandwidth of an H100 SXM in GB/s."""
BY_RUNS = "by the seconds of finished runs"
"""The basis of an estimate."""
COPIES = 4
"""Tensors of the size of the weights: weights, gradients, momentum, and one for the update."""
TRAINING_IMAGES = 1_281_167
CLASSES = 1000
"""Images and classes of ImageNet, for which hours are estimated."""


@cache
def saved_per_image(model: str, options: str, side: int) -> tuple[int, int]:
    """The bytes that the forward pass of one image keeps for the backward pass, with composed attention, and the number
    of parameters. Both are computed from shapes."""
    import torch

    from saprof.models.counting import blueprint

    composed = {"attention": "composed"} if named_model(model).attends else {}
    network = blueprint(model, **composed | json.loads(options))
    own = {x.untyped_storage()._cdata for x in network.parameters()}
    kept: dict[int, Any] = {}

    def pack(x: Any) -> Any:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # a reference, so that the address is not used again
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = network.train()(torch.empty(2, 3, side, side, device="meta"))  # a batch norm of a 1 × 1 map needs two
    total = sum(storage.nbytes() for storage in kept.values())
    del output
    return total // 2, sum(p.numel() for p in network.parameters())


def memory(config: Config, gpus: int = 1) -> int:
    """Bytes that training needs on each GPU."""
    saved, params = _saved(config)
    itemsize = 8 if config.precision == "fp64" else 4
    return saved * max(1, config.batch // (config.accumulate * max(1, gpus))) + COPIES * itemsize * params


def seconds(config: Config, bandwidth: float) -> float:
    """Estimated seconds of training on one GPU with a memory of `bandwidth` GB/s."""
    held_out = config.held_out * CLASSES if config.protocol == "val-split" else 0
    images = (TRAINING_IMAGES - held_out) * config.epochs
    return TRAFFIC * _saved(config)[0] * images / (REACHED * bandwidth * 1e9)


def _saved(config: Config) -> tuple[int, int]:
    side = SIDES.get(config.data, config.image_size)
    return saved_per_image(config.model, json.dumps(config.facts()["options"]), side)


@dataclass(frozen=True)
class Estimate:
    """The seconds that the runs of a study still need."""

    left: Mapping[str, float | None]
    """Seconds of every unfinished run, by fingerprint; None if they are unknown."""
    finished: int
    basis: str
    """The measurement or the rule behind the seconds; empty if they are unknown."""

    @property
    def known(self) -> bool:
        return None not in self.left.values()

    @property
    def seconds(self) -> float:
        return sum(each or 0.0 for each in self.left.values())

    def of(self, fingerprints: Iterable[str]) -> Estimate:
        """The estimate of some of the runs."""
        distinct = set(fingerprints)
        left = {key: each for key, each in self.left.items() if key in distinct}
        return Estimate(left, len(distinct) - len(left), self.basis)

    @property
    def hours(self) -> str:
        return f"{self.seconds / 3600:.2f}" if self.known else ""


def estimate(tasks: Sequence[Task], recorded: Mapping[str, Mapping[str, Any]], bandwidth: float) -> Estimate:
    """The seconds left, by the mean of finished runs of the same network, or else of the study. Without a finished run,
    those of miniatures are by timed steps, and those at full scale by the bandwidth. `recorded` are runs of earlier
    sessions by fingerprint."""
    found = {
        key: recorded[key] if task.recorded_in(recorded) else task.result()
        for task in tasks
        for key in [task.config.fingerprint()]
    }
    measured = [run["train_seconds"] for run in found.values() if run]
    small = tasks[0].config.data in SIDES
    left: dict[str, float | None] = {}
    for group in grouped(tasks).values():
        keys = [task.config.fingerprint() for task in group]
        spent = [run["train_seconds"] for key in keys if (run := found[key])] or measured
        for key, task in zip(keys, group, strict=True):
            if found[key] is None:
                if spent:
                    left[key] = fmean(spent)
                else:
                    left[key] = pilot.seconds(task.config) if small else seconds(task.config, bandwidth)
    by_bandwidth = (
        f"an estimate, within a factor of two: traffic of {TRAFFIC} times what is kept for the backward pass, "
        f"{REACHED:.0%} of {bandwidth:g} GB/s"
    )
    basis = BY_RUNS if measured else pilot.BASIS if small else by_bandwidth
    return Estimate(left, len(found) - len(left), basis if None not in left.values() else "")


def grouped(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    """The runs of every network."""
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        groups[f"{task.config.model} {json.dumps(task.config.facts()['options'], ensure_ascii=False)}"].append(task)
    return groups


def budget(
    tasks: Sequence[Task], recorded: Mapping[str, Mapping[str, Any]], *, jobs: int, gpus: int, bandwidth: float
) -> str:
    """The cost of `tasks` as text; `recorded` are runs of earlier sessions by fingerprint."""
    whole, small = estimate(tasks, recorded, bandwidth), tasks[0].config.data in SIDES
    body = []
    for name, group in grouped(tasks).items():
        part = whole.of(task.config.fingerprint() for task in group)
        gib = f"{memory(group[0].config, gpus) / 2**30:.2f}"
        body.append([name, f"{len(group)}", f"{len(part.left)}", part.hours, gib])
    place = "per GPU" if not small else "per run"
    table = laid_out(["network", "runs", "left", "hours left", f"GiB {place}"], body, "table")
    lines = [table, "", f"{len(tasks)} runs: {whole.finished} finished, {len(tasks) - whole.finished} left"]
    lines.append(_hours(whole, small, jobs))
    lines.append("memory: kept for the backward pass, attention composed, and 4 times the weights; from shapes alone")
    return "\n".join([lines[0], *map(paragraphs, lines[1:])])


def _hours(whole: Estimate, small: bool, jobs: int) -> str:
    if not whole.known:
        return "hours: unknown, no run is finished here"
    hours = whole.seconds / 3600
    if not small and whole.basis != BY_RUNS:
        return f"{hours:,.0f} GPU hours; {whole.basis}"
    return f"{hours:.2f} hours of runs, {hours / jobs:.2f} with {jobs} at a time, {whole.basis}"
