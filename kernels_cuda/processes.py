"""Commands that run at the same time, with their progress on stderr."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kernels_cuda.compiler import BuildError
from kernels_cuda.report import without_resources

Tell = Callable[[str, int, int], object]
"""Is called with the name of a command that has finished, or an empty one in between; how many have finished, and how
many there are."""


def run_all(commands: dict[str, list[str]], scratch: Path, tell: Tell = lambda *_: None) -> dict[str, str]:
    """The output of each command, by name; `tell` is called with the progress.

    The first command that fails ends the others and raises BuildError.
    """
    outputs: dict[str, str] = {}
    finished = _finished(commands, scratch)
    try:
        for name, code in finished:
            if name:
                outputs[name] = (scratch / f"{name}.log").read_text(errors="replace")
            if code:
                raise BuildError(_failure(name, code, outputs[name]))
            tell(name, len(outputs), len(commands))
    finally:
        finished.close()
    return outputs


@contextmanager
def printed(what: str, folder: str) -> Iterator[Tell]:
    """Print the progress to stderr: in one line if it is a terminal, otherwise in a line for each command."""
    start, terminal = time.monotonic(), sys.stderr.isatty()

    def tell(name: str, finished: int, of: int) -> None:
        done = f"{finished}/{of}, {time.monotonic() - start:.0f} s"
        if terminal:
            print(f"\x1b[Ksaprof: compiling {what}: {done}", end="\r", file=sys.stderr, flush=True)
        elif name:
            print(f"saprof: compiling {what}: {name} {done}", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if terminal:
            print(file=sys.stderr)


def _finished(commands: dict[str, list[str]], scratch: Path) -> Generator[tuple[str, int], None, None]:
    """Run the commands, as many at a time as there are cores, and yield the name and exit code of each that has
    finished.

    In between it yields an empty name. Closing the generator ends the commands that run.
    """
    waiting, running = list(commands), dict[str, subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                name = waiting.pop(0)
                running[name] = _start(commands[name], scratch, name)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                yield name, running.pop(name).returncode
            time.sleep(0.02)
            yield "", 0
    finally:
        for process in running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(command: list[str], scratch: Path, name: str) -> subprocess.Popen[bytes]:
    """Start a command in `scratch`, in a process group of its own, since nvcc starts other processes."""
    environment = {**os.environ, "TMPDIR": str(scratch), "LC_ALL": "C"}
    with (scratch / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=scratch, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )


def _failure(name: str, code: int, output: str) -> str:
    told = without_resources(output)
    if "No such file" in told:
        told += "\nhint: torch's and CUDA's headers are needed; is torch, or the CUDA toolkit, installed without them?"
    return f"nvcc failed at {name}, exit code {code}:\n{told}"
