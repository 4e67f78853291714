"""Compilation of the CPU kernels ahead of their first use, in other processes, which leave them on disk.

Numba compiles one kernel at a time in a process, so each core has a process of its own. These processes call the
kernels on tiny tensors through the operators, so that a kernel is compiled for exactly what later calls pass to it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

import kernels_numba
import saprof
from saprof.backends import in_parts, numba, run, run_in_training, run_statistics
from saprof.backends.numba.told import where_kept
from saprof.compiling import SILENT, compiling
from saprof.operators import OPERATORS, Operator
from saprof.operators.attention import Attention
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload
from saprof.text import counted

MODES = ("forward", "training")
"""`forward` needs the kernels of a forward in eval mode, `training` also those of statistics and gradients."""
DTYPES = ("float32", "float64")
"""The dtypes that the kernels compute in; float16 and bfloat16 are computed in float32."""
PROCESS_BYTES = 800 << 20
"""The memory that a process takes while it compiles."""
LONGEST = ("pairwise_attention_backward", "patchwise_attention_backward", "patchwise_statistics_backward")
"""The kernels that take longest; they are compiled first."""


class Kernel(NamedTuple):
    """The entry point of a kernel in `kernels_numba.cpu`, and the dtype that it computes in."""

    name: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} for {self.dtype}"


class CannotBuild(OSError):
    """Kernels could not be compiled or kept; the message says why and what to do."""

    code = 1


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


class Build:
    """The compilation of kernels in other processes, as a context that ends them. It starts at once."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        """CannotBuild if no folder for compiled kernels can be written to."""
        self.kernels = sorted(dict.fromkeys(kernels), key=lambda kernel: kernel.name not in LONGEST)
        self.compiled: list[Kernel] = []
        self.folder = folder() if kernels else ""
        self._todo = queue.SimpleQueue[Kernel]()
        self._done = queue.SimpleQueue[tuple[Kernel, str | None]]()
        self._processes: list[subprocess.Popen[str]] = []
        self._ended = False
        for kernel in self.kernels:
            self._todo.put(kernel)
        for _ in range(min(len(self.kernels), _most_processes())):
            threading.Thread(target=self._work, daemon=True).start()

    def __enter__(self) -> Build:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def wait(self) -> Iterator[Kernel]:
        """Yield each kernel when it is compiled. CannotBuild if one could not be compiled or kept."""
        while len(self.compiled) < len(self.kernels):
            kernel, error = self._done.get()
            if error:
                raise CannotBuild(f"{kernel} could not be compiled: {error}")
            self.compiled.append(kernel)
            yield kernel

    def end(self) -> None:
        """End the processes. What they have compiled stays on disk."""
        self._ended = True
        for process in self._processes:
            process.kill()

    def _work(self) -> None:
        """Let one process compile kernel after kernel. This is the target of a thread."""
        with tempfile.TemporaryFile("w+") as errors:
            process = _start(errors)
            self._processes.append(process)
            with process:
                while not self._ended:
                    try:
                        kernel = self._todo.get_nowait()
                    except queue.Empty:
                        break
                    self._done.put((kernel, _compile(process, kernel, errors)))
                with suppress(OSError):
                    process.communicate()


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
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        raise CannotBuild(
            f"compiled kernels cannot be written to {path} ({error.strerror}); set NUMBA_CACHE_DIR to a folder "
            "that can be written to and has room"
        ) from error
    return where_kept(str(path))


def _most_processes() -> int:
    """The largest number of processes: one per core, and fewer if the memory does not suffice."""
    return max(1, min(len(os.sched_getaffinity(0)), psutil.virtual_memory().available // PROCESS_BYTES))


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


def _start(errors: Any) -> subprocess.Popen[str]:
    """Start a process that compiles the kernels whose names it reads. It ends when its input ends."""
    root = str(Path(saprof.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    settings = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", SILENT: "1"}
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
    )  # fmt: skip


def _compile(process: subprocess.Popen[str], kernel: Kernel, errors: Any) -> str | None:
    """Let the process compile a kernel; return the error, if there is one."""
    assert process.stdin
    assert process.stdout
    with suppress(OSError):  # the process has ended
        process.stdin.write(f"{json.dumps(kernel)}\n")
        process.stdin.flush()
        if reply := process.stdout.readline():
            return json.loads(reply)
    errors.seek(0)
    lines = errors.read().strip().splitlines()
    return f"the process that compiled it has ended with code {process.wait()}: {lines[-1] if lines else 'no message'}"


def _serve() -> None:
    """Compile the kernels whose names are on stdin, and answer each with its error, or null."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
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
