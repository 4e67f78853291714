"""The operations of one call of a network, by place, and the bytes that each module saves for the backward pass."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from saprof.layers.running import UNSEEN, Running
from saprof.measure.memory import saved_by
from saprof.measure.profiled import Profiled
from saprof.measure.trace import MARK, Place, recorded, trace
from saprof.models.counter import Counter, Key
from saprof.models.inputs import tensors
from saprof.operators import DECLARED
from saprof.operators.cost import Cost


@dataclass(frozen=True)
class Counted:
    """The operations of one call."""

    costs: Mapping[Place, Cost] = field(default_factory=dict)
    calls: Mapping[Place, int] = field(default_factory=dict)
    """How often each counted operator ran."""
    uncounted: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """How often operators without a known cost ran, by operator and module."""


class _Marking(Counter):
    """A counter that also marks every counted call in a trace."""

    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__(where)
        self.found: list[tuple[Key, Cost]] = []

    def add(self, key: Key, cost: Cost) -> None:
        super().add(key, cost)
        with recorded(f"{MARK}{len(self.found)}"):
            self.found.append((key, cost))


def counted(subject: Profiled) -> Counted:
    """Count one call, and find the operator of each count in the trace. Compiled modules run eagerly, because a counter
    does not see the operators of compiled code."""
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with eager, Running(subject.module) as running:
        counter = _Marking(lambda: running.path)
        seen = trace(subject.module, subject.call, subject.device, inside=counter)
    costs: defaultdict[Place, Cost] = defaultdict(Cost)
    calls: defaultdict[Place, int] = defaultdict(int)
    for number, (key, cost) in enumerate(counter.found):
        place = _place(key, seen.marks[number])
        costs[place] += cost
        calls[place] += 1
    uncounted = {(key.kind, key.path): times for key, times in counter.uncounted.items()}
    return Counted(costs, calls, uncounted | {(UNSEEN, path): times for path, times in running.unseen.items()})


def _place(key: Key, mark: Place) -> Place:
    """The place of a count. The counter knows the module; the trace knows the operator that the module called."""
    kind = key.kind
    ours = f"saprof::{kind}" if kind.removesuffix("_backward") in DECLARED else kind
    return Place(key.path, mark.operation or ours, mark.backward or kind.endswith("_backward"))


def saved(subject: Profiled) -> dict[str, int]:
    """The bytes that each module saves for the backward pass in one training step."""
    known = [*tensors(subject.inputs), *subject.module.parameters(), *subject.module.buffers()]
    with Running(subject.module, skip_compiled=True) as running:
        return saved_by(subject.call, known, lambda: running.path)
