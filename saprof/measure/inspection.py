"""What one call of a network does, place by place: its operations, and what it saves for the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from saprof.layers.running import Running
from saprof.measure.memory import saved_by
from saprof.measure.profiled import Profiled
from saprof.measure.trace import Place
from saprof.models.inputs import tensors
from saprof.operators.cost import Cost


@dataclass(frozen=True)
class Counted:
    """The operations of one call."""

    costs: Mapping[Place, Cost] = field(default_factory=dict)
    calls: Mapping[Place, int] = field(default_factory=dict)
    """How often each counted operator ran."""
    uncounted: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """How often operators without a known cost ran, by operator and module."""


def counted(subject: Profiled) -> Counted:
    """Count one call."""
    return Counted()


def saved(subject: Profiled) -> dict[str, int]:
    """The bytes that each module saves for the backward pass in one training step."""
    known = [*tensors(subject.inputs), *subject.module.parameters(), *subject.module.buffers()]
    with Running(subject.module, compiled_apart=True) as running:
        return saved_by(subject.call, known, lambda: running.path)
