"""Compilation of the other kernels of a training step while the first one is compiled, in processes beside this one.

An operator whose inputs require gradients needs more kernels than the one that it runs: those of the gradients, and of
the other parts of a fused attention. When the first of them is not on disk, other processes compile the others. This
process waits for a kernel that another one is compiling, and compiles a kernel that none has started.

The first kernel of a process takes longer than the later ones, because every process compiles the functions that the
kernels share. Therefore each further core gets one process for all kernels, and no process is started later.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from saprof.backends import moments
from saprof.backends.numba.processes import ALONE, CannotBuild, Kernel, Processes, check_folder, most_processes
from saprof.backends.numba.told import operator_here, tell_of, where_kept
from saprof.compiling import compiling
from saprof.operators import Operator
from saprof.operators.attention import Attention


class _Here(threading.local):
    """What the current thread runs."""

    step: tuple[Operator, str] | None = None
    """An operator and its part, if gradients are wanted."""


_here = _Here()
_started: Processes | None = None
_tried: set[Kernel] = set()
"""The kernels that this process compiles, or has given to other processes. Each is given once."""
_forked = False


def in_training(operator: Operator, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that computes a part of the operator: "forward", "statistics" or "training". If gradients are
    wanted, and one kernel of its training step is missing, the others are compiled in other processes."""

    def compute(*arguments: Any) -> Any:
        if not torch.is_grad_enabled() or not any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
            return function(*arguments)
        _here.step = operator, part
        try:
            return function(*arguments)
        finally:
            _here.step = None

    return compute


def kernels_of_step(operator: Operator, part: str) -> list[str]:
    """The kernels of a training step that begins with this part of the operator: those of the gradients, then those of
    the forward."""
    if not operator.masked:
        names = [operator.name]
    else:
        family = operator.family if isinstance(operator, Attention) else "stand_alone"
        parts = {"forward": ["attention"], "statistics": ["statistics", "attention"]}.get(part, ["hidden", "weighted"])
        if isinstance(operator, Attention) and operator.mapping == "l" and moments.are_sums(operator):
            parts = [name for name in parts if name != "statistics"]
        if part == "training" and isinstance(operator, Attention) and operator.delta.relation != "concatenation":
            parts = ["statistics", *parts]
        names = [f"{family}_{what}" for what in parts]
    return [*(f"{name}_backward" for name in reversed(names)), *names]


def announce(kernel: str, dtype: str, folder: str | None) -> AbstractContextManager[object]:
    """The context in which a kernel is compiled, as `kernels_numba.announce`."""
    if _here.step and dtype and folder:
        _tried.add(Kernel(operator_here() or kernel, dtype))
        _start([Kernel(name, dtype) for name in kernels_of_step(*_here.step)], folder)
    return tell_of(kernel, dtype, folder)


def wait_for(name: str, dtype: str) -> None:
    """Wait while another process compiles this kernel."""
    global _started
    processes, kernel = _started, Kernel(name, dtype)
    if processes is None:
        return
    if kernel in processes.kernels and not processes.take(kernel) and not processes.ended(kernel):
        with compiling(str(kernel), processes.folder):
            processes.ended(kernel, None)
    if processes.all_ended:
        _started = None


def is_started() -> bool:
    """Whether other processes compile, or will."""
    return _started is not None


def _start(kernels: Sequence[Kernel], folder: str) -> None:
    """Let other processes compile the kernels, unless they do so already, or this process compiles alone."""
    global _started
    kernels = [kernel for kernel in kernels if kernel not in _tried]
    if _started is not None or not kernels or _is_alone():
        return
    _tried.update(kernels)
    try:
        check_folder(folder)
    except CannotBuild:
        return
    _started = Processes(kernels, where_kept(folder), spare=1)


def _is_alone() -> bool:
    """Whether this process does not start others: it is one of several, or has no core to spare for them."""
    return (
        os.environ.get(ALONE, "") not in ("", "0")
        or _forked
        or multiprocessing.parent_process() is not None
        or os.environ.get("WORLD_SIZE", "1") != "1"
        or not sys.executable
        or getattr(sys, "frozen", False)
        or not most_processes(spare=1)
    )


def _end() -> None:
    global _started
    if _started:
        _started.end()
        _started = None


def _after_in_child() -> None:
    global _started, _forked
    _started, _forked = None, True


atexit.register(_end)
os.register_at_fork(after_in_child=_after_in_child)
