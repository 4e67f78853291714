"""Compilation of the CPU kernels ahead of their first use, in other processes, which leave them on disk.

Numba compiles one kernel at a time in a process, so each core has a process of its own. These processes call the
kernels on tiny tensors through the operators, so that a kernel is compiled for exactly what later calls pass to it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

import kernels_numba
from saprof.backends import in_parts, numba, run, run_in_training, run_statistics
from saprof.backends.numba.processes import CannotBuild, Kernel, Processes, check_folder
from saprof.backends.numba.told import where_kept
from saprof.compiling import compiling
from saprof.operators import OPERATORS, Operator
from saprof.operators.attention import Attention
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload
from saprof.text import counted

MODES = ("forward", "training")
"""`forward` needs the kernels of a forward in eval mode, `training` also those of statistics and gradients."""
DTYPES = ("float32", "float64")
"""The dtypes that the kernels compute in; float16 and bfloat16 are computed in float32."""


def kernels_for(operators: Iterable[Operator], dtypes: Iterable[str], mode: str = "training") -> list[Kernel]:
    """The kernels that the operators call in these dtypes. ValueError for an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; expected {' or '.join(MODES)}")
    found = [kernels_of_call(lambda op=op, dtype=dtype: _use(op, dtype, mode)) for dtype in dtypes for op in operators]
    return list(dict.fromkeys(kernel for kernels in found for kernel in kernels))


def kernels_of_call(function: Callable[[], object]) -> list[Kernel]:
    """The kernels that a function would run on a CPU, such as a forward of a network, or a training step.

    The function is called, but no kernel runs, and what it computes is undefined.
    """
    with numba.recorded() as calls:
        function()
    return list(dict.fromkeys(Kernel(call.name, call.dtype) for call in calls))


def missing(kernels: Iterable[Kernel]) -> list[Kernel]:
    """Those kernels that are neither loaded nor on disk. The others are loaded, and run on tiny tensors."""
    return [kernel for kernel in kernels if not _is_there(kernel)]


class Build(Processes):
    """The compilation of kernels in as many processes as there are cores."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        """CannotBuild if no folder for compiled kernels can be written to."""
        super().__init__(kernels, folder() if kernels else "")


def build(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Compile the kernels that are missing, in as many processes as there are cores, and return them.

    The progress is printed on stderr, as in `saprof.compiling`. CannotBuild if one could not be compiled or kept.
    """
    wanted = missing(kernels)
    if not wanted:
        return []
    with Build(wanted) as started, compiling(counted(len(wanted), "kernel"), started.folder, kernels=0) as progress:
        for kernel in started.wait():
            progress(f"{len(started.compiled)} of {len(wanted)}, {kernel}")
    return wanted


def folder() -> str:
    """The words about the folder where compiled kernels are kept. CannotBuild if no folder can be written to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        path = numba.kernels_of("cpu", "frames").fold_tiles._cache.cache_path
    if path is None:
        raise CannotBuild(next(iter(str(warning.message) for warning in caught), "no folder can be written to"))
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen and not Path(path).is_relative_to(chosen):
        raise CannotBuild(f"NUMBA_CACHE_DIR is {chosen}, which cannot be written to; expected one that can be")
    check_folder(str(path))
    return where_kept(str(path))


def _use(operator: Operator, dtype: str, mode: str) -> None:
    """Call an operator with tiny tensors."""
    footprint = Footprint.square(3)
    trains = mode == "training"
    inputs = [x.requires_grad_(trains) for x in Workload(operator, footprint, dtype=dtype).tensors()]
    outputs = [run(operator, *inputs, footprint=footprint, backend="numba")]
    if trains and isinstance(operator, Attention):
        maps = [x for (name, _), x in zip(operator.inputs, inputs, strict=True) if name != "beta"]
        maps = maps[: operator.maps - 1 + 3]
        outputs += run_statistics(operator, *maps, footprint=footprint, backend="numba")
        if in_parts("numba", operator, "cpu"):
            norms = sum(name.startswith("scale") for name, _ in operator.inputs)
            outputs += run_in_training(operator, *inputs, eps=[1e-5] * norms, footprint=footprint, backend="numba")
    if trains:
        torch.autograd.grad([x.sum() for x in outputs], inputs, allow_unused=True)


@cache
def _calls(dtype: str) -> dict[str, numba.Call]:
    """A tiny call of each kernel, by its name."""
    with numba.recorded() as calls:
        for operator in OPERATORS.values():
            _use(operator, dtype, "training")
    return {call.name: call for call in calls}


def _is_there(kernel: Kernel) -> bool:
    class Absent(Exception):
        pass

    @contextmanager
    def refuse(*_: Any) -> Iterator[None]:
        raise Absent
        yield

    before, kernels_numba.announce = kernels_numba.announce, refuse
    try:
        _calls(kernel.dtype)[kernel.name].run()
    except Absent:
        return False
    finally:
        kernels_numba.announce = before
    return True


def _end_with(parent: int) -> None:
    """End this process when its parent has ended. This is the target of a thread."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def _serve() -> None:
    """Compile the kernels whose names are on stdin, and answer each with its error, or null."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    replies, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        kernel, error = Kernel(*json.loads(line)), None
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", RuntimeWarning)
                _calls(kernel.dtype)[kernel.name].run()
            told = [str(warning.message) for warning in caught]
            error = next((text for text in told if text.startswith("compiled kernels ")), None)
        except Exception as failure:  # the parent reports it
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:500]}"
        replies.write(f"{json.dumps(error)}\n")
        replies.flush()


if __name__ == "__main__":
    _serve()
