"""Measuring cells: each is compared with the reference, then timed beside the others, then its memory is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from saprof.backends import choose, run
from saprof.measure.cells import Cell, Network
from saprof.measure.conformance import check, sample_positions
from saprof.measure.latency import MIN_ROUNDS
from saprof.measure.network import Runnable, network, what_runs
from saprof.measure.prepared import (
    Prepared,
    Refused,
    check_finite,
    compiled,
    predicted_peak,
    prepared_for,
    refuse_what_cannot_fit,
)
from saprof.measure.rounds import Ready, failure, ready, timed_together
from saprof.models.inputs import tensors
from saprof.models.named import REGISTERED, place
from saprof.operators.workload import Workload
from saprof.records.rows import Row

TIMING = "timing"
"""The first word of a step during which nothing else may run on the machine."""
Say = Callable[[Cell, str], None]
"""Is called with the cell and the step that begin now: `checking`, `compiling`, `measuring memory` or `timing round 3
of 9`."""


def measure(
    cells: Sequence[Cell], fingerprint: str, max_seconds: float = 2.0, say: Say = lambda cell, step: None
) -> list[Row]:
    """One row per cell. The cells that can run are timed in interleaved rounds, and compared with the first of them."""
    found: dict[str, dict[str, Any]] = {}
    by_name = {str(cell): cell for cell in cells}
    can_run: dict[str, Ready] = {}

    def watch(name: str, done: int, most: int) -> None:
        say(by_name[name], f"{TIMING} round {done} of {'' if most == MIN_ROUNDS else 'at most '}{most}")

    for cell in cells:
        try:
            prepared, found[str(cell)] = _checked(cell, partial(say, cell))
            say(cell, "measuring memory")
            can_run[str(cell)] = ready(prepared)
        except Exception as error:  # a cell that fails becomes a row, and the others are still measured
            others = isinstance(cell.subject, Network) and cell.subject.about.kind != REGISTERED
            found[str(cell)] = failure(error, place(error) if others else None)
    try:
        for name, measured in timed_together(can_run, max_seconds, watch).items():
            found[name] |= measured
    except Exception as error:  # a cell that ran alone may fail beside the others
        found |= {name: failure(error) for name in can_run}
    return [row(cell, fingerprint, **found[str(cell)]) for cell in cells]


def prepare(cell: Cell) -> tuple[Prepared, dict[str, Any]]:
    """The cell, ready to be called, and the fields of its row that are known so far."""
    runnable = _runnable(cell)
    return prepared_for(runnable.function, runnable.inputs(), cell.mode, cell.device), runnable.facts


def row(cell: Cell, fingerprint: str, **found: Any) -> Row:
    """The row of a cell: its facts, and the measured fields."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known: dict[str, Any] = cell.what | cell.costs | found
    return Row(key=cell.key(fingerprint), fingerprint=fingerprint, time=now, **known)


def _checked(cell: Cell, say: Callable[[str], None]) -> tuple[Prepared, dict[str, Any]]:
    """The cell after a call that was right, and the fields of its row so far. Raises if it cannot run, is wrong, or
    does not fit into memory."""
    say("checking")
    refuse_what_cannot_fit(cell.costs.get("compulsory_bytes", 0), "", cell.device)
    runnable = _runnable(cell)
    facts: dict[str, Any] = {**runnable.facts, **_predicted(cell, runnable)}
    prepared = prepared_for(runnable.function, runnable.inputs(), cell.mode, cell.device)
    if isinstance(cell.subject, Workload):
        facts["error"] = _check_operator(cell.subject, cell, facts["backend"])
    else:
        check_finite(prepared.run() if cell.mode == "forward" and not cell.compiled else prepared.forward())
        if cell.mode != "forward" and not cell.compiled:
            prepared.run()
        facts |= what_runs(
            runnable.function,  # pyright: ignore[reportArgumentType]
            getattr(torch, cell.subject.dtype),
            cell.device,
        )
    if cell.compiled:
        say("compiling")
        prepared, facts["first_call_s"] = compiled(prepared, runnable.fullgraph)
    return prepared, facts


def _predicted(cell: Cell, runnable: Runnable) -> dict[str, int]:
    """The predicted peak of memory, if it can be predicted; raises Refused if it does not fit."""
    with FakeTensorMode(allow_non_fake_inputs=True):  # its tensors have no memory
        inputs = runnable.inputs()
    held = sum(x.numel() * x.element_size() for x in tensors(inputs))
    refuse_what_cannot_fit(held, "", cell.device)
    function = None if cell.mode == "backward" else runnable.stand_in()  # the graph of a backward already exists
    if function is None:
        return {}
    imagined = prepared_for(function, inputs, cell.mode, cell.device)
    try:
        peak = predicted_peak(imagined)
    except Exception:
        if runnable.predictable:
            raise
        return {}
    refuse_what_cannot_fit(peak, " beside its inputs", cell.device, held)
    return {"predicted_peak_bytes": peak}


def _runnable(cell: Cell) -> Runnable:
    if isinstance(cell.subject, Network):
        return network(cell, cell.subject)
    workload = cell.subject
    operator, footprint = workload.operator, workload.footprint
    backend = choose(operator, getattr(torch, workload.dtype), cell.device, footprint, cell.backend)

    def function(*inputs: Tensor) -> Tensor:
        return run(operator, *inputs, footprint=footprint, backend=backend)

    def inputs() -> tuple[Tensor, ...]:
        return tuple(x.requires_grad_(cell.mode != "forward") for x in workload.tensors(cell.device))

    return Runnable(function, inputs, facts={"backend": backend})


def _check_operator(workload: Workload, cell: Cell, backend: str) -> float:
    """The worst error at sampled positions, as a fraction of its tolerance; it includes gradients if the mode has
    them."""
    verdict = check(workload, backend, cell.device, cell.mode != "forward", sample_positions(workload))
    if not verdict.ok:
        raise Refused("incorrect", verdict.message)
    return verdict.fraction
