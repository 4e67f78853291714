"""The cost of a study before it is run: runs, hours, memory per GPU.

Hours are computed from finished runs in the same folder. Without one, the hours of networks at full size are estimated,
within a factor of two: the estimate assumes that a training step moves 6 times the bytes that it keeps for its backward
pass, at three quarters of the GPU's peak memory bandwidth.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from statistics import fmean
from typing import Any

from saprof.models.catalogue import named_model
from saprof.terminal import laid_out, paragraphs
from studies.config import Config
from studies.reproduction.executors import Task
from studies.reproduction.miniatures import SIDES

TRAFFIC = 6
"""Bytes moved in a training step, relative to those kept for the backward pass."""
REACHED = 0.75
"""The fraction of the peak bandwidth that a training step reaches."""
BANDWIDTH = 3350.0
"""The memory bandwidth of an H100 SXM in GB/s."""
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
        output = network.train()(torch.empty(1, 3, side, side, device="meta"))
    total = sum(storage.nbytes() for storage in kept.values())
    del output
    return total, sum(p.numel() for p in network.parameters())


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


def budget(
    tasks: Sequence[Task], recorded: Mapping[str, Mapping[str, Any]], *, jobs: int, gpus: int, bandwidth: float
) -> str:
    """The cost of `tasks` as text; `recorded` are runs of earlier sessions by fingerprint."""
    found = {
        key: recorded[key] if task.recorded_in(recorded) else task.result()
        for task in tasks
        for key in [task.config.fingerprint()]
    }
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        groups[f"{task.config.model} {json.dumps(task.config.facts()['options'], ensure_ascii=False)}"].append(task)
    measured = [r["train_seconds"] for r in found.values() if r]
    small = tasks[0].config.data in SIDES
    body, total, finished = [], 0.0, 0
    for name, group in groups.items():
        done = [found[t.config.fingerprint()] for t in group]
        spent = [it["train_seconds"] for it in done if it] or measured
        each = fmean(spent) if spent else None
        if each is None and not small:
            each = fmean(seconds(t.config, bandwidth) for t in group)
        left = sum(it is None for it in done)
        finished += len(done) - left
        total += left * (each or 0.0)
        hours = "" if each is None else f"{left * each / 3600:.2f}"
        body.append([name, f"{len(group)}", f"{left}", hours, f"{memory(group[0].config, gpus) / 2**30:.2f}"])
    place = "per GPU" if not small else "per run"
    table = laid_out(["network", "runs", "left", "hours left", f"GiB {place}"], body, "table")
    known = bool(measured) or not small
    lines = [table, "", f"{len(tasks)} runs: {finished} finished, {len(tasks) - finished} left"]
    lines.append(_hours(total, bool(measured), jobs, bandwidth) if known else "hours: unknown, no run is finished here")
    lines.append("memory: kept for the backward pass, attention composed, and 4 times the weights; from shapes alone")
    return "\n".join([lines[0], *map(paragraphs, lines[1:])])


def _hours(total: float, measured: bool, jobs: int, bandwidth: float) -> str:
    hours = total / 3600
    if measured:
        return f"{hours:.2f} hours of runs, {hours / jobs:.2f} with {jobs} at a time, by the seconds of finished runs"
    return (
        f"{hours:,.0f} GPU hours; an estimate, within a factor of two: traffic of {TRAFFIC} times what is kept for the "
        f"backward pass, {REACHED:.0%} of {bandwidth:g} GB/s"
    )
