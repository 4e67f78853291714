"""In place of psutil where it is not installed, on Linux: what saprof reads of the machine."""

import os
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace


class Error(Exception):
    pass


class NoSuchProcess(Error):
    pass


_Times = namedtuple("_Times", "user nice system idle iowait irq softirq steal guest guest_nice")


def cpu_count(logical: bool = True) -> int | None:
    return os.cpu_count()


def cpu_times() -> _Times:
    ticks = Path("/proc/stat").read_text().splitlines()[0].split()[1:11]
    return _Times(*(int(tick) / os.sysconf("SC_CLK_TCK") for tick in ticks))


def virtual_memory() -> SimpleNamespace:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    sizes = {name: int(size) << 10 for name, size, *_ in lines}
    return SimpleNamespace(total=sizes["MemTotal:"], available=sizes["MemAvailable:"])


class Process:
    def __init__(self, pid: int | None = None) -> None:
        self.folder = Path(f"/proc/{os.getpid() if pid is None else pid}")
        if not self.folder.exists():
            raise NoSuchProcess(pid)

    def create_time(self) -> float:
        return self.folder.stat().st_mtime
