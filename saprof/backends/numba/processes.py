"""The processes that compile CPU kernels and leave them on disk. Each compiles one kernel at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import saprof
from saprof.compiling import SILENT

ALONE = "SAPROF_ALONE"
"""The environment variable that keeps a process from compiling in other processes beside itself."""
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


class Processes:
    """The compilation of kernels in other processes, as a context that ends them. It starts at once."""

    def __init__(self, kernels: Sequence[Kernel], folder: str, spare: int = 0) -> None:
        """`folder` says in words where the kernels are kept; `spare` cores get no process."""
        self.kernels = sorted(dict.fromkeys(kernels), key=lambda kernel: kernel.name not in LONGEST)
        self.compiled: list[Kernel] = []
        self.folder = folder
        self._todo = deque(self.kernels)
        self._ends = {kernel: threading.Event() for kernel in self.kernels}
        self._done = SimpleQueue[tuple[Kernel, str | None]]()
        self._processes: list[subprocess.Popen[str]] = []
        self._ended = False
        for _ in range(min(len(self.kernels), most_processes(spare))):
            threading.Thread(target=self._work, daemon=True).start()

    def __enter__(self) -> Processes:
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

    def take(self, kernel: Kernel) -> bool:
        """Take a kernel from those that no process has begun with, and return whether it was one of them. The caller
        compiles it."""
        try:
            self._todo.remove(kernel)
        except ValueError:
            return False
        self._ends[kernel].set()
        return True

    def take_any(self) -> Kernel | None:
        """Take the next kernel that no process has begun with, if there is one."""
        with suppress(IndexError):
            kernel = self._todo.popleft()
            self._ends[kernel].set()
            return kernel
        return None

    def ended(self, kernel: Kernel, timeout: float | None = 0.0) -> bool:
        """Wait until no process works on this kernel any more, `timeout` seconds at most (None: without limit), and
        return whether that is so. Then the kernel is on disk, unless its process failed or the caller has taken it."""
        return self._ends[kernel].wait(timeout)

    @property
    def all_ended(self) -> bool:
        """Whether nothing is left to do."""
        return all(end.is_set() for end in self._ends.values())

    def end(self) -> None:
        """End the processes. What they have compiled stays on disk."""
        self._ended = True
        for process in self._processes:
            process.kill()

    def _work(self) -> None:
        """Let one process compile kernel after kernel. This is the target of a thread."""
        try:
            with tempfile.TemporaryFile("w+") as errors, _start(errors) as process:
                self._processes.append(process)
                while not self._ended:
                    try:
                        kernel = self._todo.popleft()
                    except IndexError:
                        break
                    try:
                        self._done.put((kernel, _compile(process, kernel, errors)))
                    finally:
                        self._ends[kernel].set()
                process.kill()  # it is idle; closing its input may not end it, since a forked process may hold it open
        except OSError as error:  # no process could be started
            self._done.put((self.kernels[0], str(error)))
            while self.take_any():
                pass


def most_processes(spare: int = 0) -> int:
    """The largest number of processes: one per core, without `spare` cores; fewer if memory is short, but at least one
    if no core is spare."""
    import psutil  # not when saprof is imported

    cores, memory = len(os.sched_getaffinity(0)) - spare, psutil.virtual_memory().available // PROCESS_BYTES
    return max(0 if spare else 1, min(cores, memory))


def check_folder(path: str) -> None:
    """CannotBuild if compiled kernels cannot be written to this folder."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        raise CannotBuild(
            f"compiled kernels cannot be written to {path} ({error.strerror}); set NUMBA_CACHE_DIR to a folder "
            "that can be written to and has room"
        ) from error


def _start(errors: Any) -> subprocess.Popen[str]:
    """Start a process that compiles the kernels whose names it reads. It ends with this process."""
    root = str(Path(saprof.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    settings = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", SILENT: "1", ALONE: "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "saprof.backends.numba.ahead", str(os.getpid())],
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
