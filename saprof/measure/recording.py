"""torch's profiler, of which a process can run one at a time: a second one takes the events of the first, or ends the
process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.profiler import profile

_autograd: Any = torch.autograd
ALONE = RLock()
"""Held by the thread that measures. Another thread waits for it."""


@contextmanager
def recording(on_gpu: bool = False, memory: bool = False) -> Iterator[profile]:
    """Run torch's profiler in this context. ValueError if the caller already runs one."""
    refuse_a_second_one()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise it prints to stderr when it starts and stops
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with ALONE, profile(activities=activities, profile_memory=memory) as profiler:
        yield profiler


def refuse_a_second_one() -> None:
    """ValueError if a profiler of torch is active in this thread."""
    if _autograd._profiler_enabled():
        raise ValueError(
            "a profiler of torch is active, and saprof needs it itself; expected the call outside of that profiler"
        )
