"""What the kernels of a library need of a GPU, as ptxas prints it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_RESOURCES = re.compile(
    r"Compiling entry function '(.+)' for '(.+)'\n.*Function properties for \1\n"
    r" *(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r".*Used (\d+) registers(?:.*?(\d+) bytes smem)?"
)
_RESOURCE_LINE = re.compile(r"(?m)^(ptxas info *: (\d|Compil|Function|Used)| *\d+ bytes stack frame).*\n?")


class Kernel(NamedTuple):
    """What a kernel needs: registers and bytes per thread, and bytes of static shared memory per block."""

    name: str
    arch: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int


def without_resources(output: str) -> str:
    return _RESOURCE_LINE.sub("", output).strip()


def kernels_of(log: str) -> Iterator[Kernel]:
    for name, arch, stack, stores, loads, registers, shared in _RESOURCES.findall(log):
        yield Kernel(name, arch, int(registers), int(stores), int(loads), int(stack), int(shared or 0))


def demangled(names: list[str]) -> list[str]:
    """The names as they are in the source, if a tool that demangles them is installed."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if not tool:
        return names
    told = subprocess.run([tool, "-p"], input="\n".join(names), capture_output=True, text=True).stdout.splitlines()
    return told if len(told) == len(names) else names


def table(kernels: Sequence[Kernel]) -> str:
    rows: list[tuple[str, ...]] = [("kernel", "arch", "registers", "spill bytes", "shared", "stack")]
    for k in kernels:
        rows.append((k.name, k.arch, *map(str, (k.registers, k.spill_stores + k.spill_loads, k.shared, k.stack))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    fields = [zip(row, widths, "<<>>>>", strict=True) for row in rows]
    return "\n".join("  ".join(f"{text:{side}{width}}" for text, width, side in row) for row in fields)
