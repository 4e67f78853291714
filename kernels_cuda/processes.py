"""Commands that run at the same time, with their progress on stderr."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

from kernels_cuda.compiler import BuildError
from kernels_cuda.report import without_resources


def run_all(commands: dict[str, list[str]], scratch: Path, task: str = "") -> dict[str, str]:
    """The output of each command, by name. If `task` is given, progress is printed to stderr.

    The first command that fails ends the others and raises BuildError.
    """
    outputs: dict[str, str] = {}
    start, finished = time.monotonic(), _finished(commands, scratch)
    try:
        for name, code in finished:
            if name:
                outputs[name] = (scratch / f"{name}.log").read_text(errors="replace")
            if code:
                raise BuildError(_failure(name, code, outputs[name]))
            if task:
                _tell(task, name, f"{len(outputs)}/{len(commands)}, {time.monotonic() - start:.0f} s")
    finally:
        finished.close()
        if task and sys.stderr.isatty():
            print(file=sys.stderr)
    return outputs


def _tell(task: str, name: str, done: str) -> None:
    """Print progress: in one line if stderr is a terminal, otherwise in a line for each command."""
    if sys.stderr.isatty():
        print(f"\x1b[K{task}: {done}", end="\r", file=sys.stderr, flush=True)
    elif name:
        print(f"{task}: {name} {done}", file=sys.stderr, flush=True)


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
