"""`python -m saprof.info`: versions, processor, GPU, threads, backends, caches and roofs of this machine.

It changes nothing, compiles nothing and measures nothing. Add its output to a problem report.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kernels_cuda
import kernels_numba
from kernels_cuda import build, compiler
from saprof import command, kept_memory
from saprof.operators import BACKENDS, OPERATORS
from saprof.operators.footprint import Footprint
from saprof.records import calibration, environment
from saprof.records.runs import RECORDED
from saprof.text import counted

if TYPE_CHECKING:
    import torch

RUNS = Path("runs")
"""The folder in which the sweep creates runs by default."""
Facts = dict[str, str]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m saprof.info",
        description="Print versions, processor, GPU, threads, backends, caches and roofs of this machine.",
    )
    parser.parse_args(argv)
    import torch

    where = environment.provenance("cpu", torch.get_num_threads())
    sections = {
        "Versions": _versions(where),
        "Extras": dict(_extras()),
        "Machine": _machine(where, torch.cuda.is_available()),
        "Backends (float32)": dict(_backends(torch.float32)),
        "Caches": _caches(),
        "Runs": _runs(),
    }
    width = max(len(name) for facts in sections.values() for name in facts) + 2
    print("\n\n".join("\n".join([title, *_lines(facts, width)]) for title, facts in sections.items()))
    return command.OK


def _lines(facts: Facts, width: int) -> Iterator[str]:
    for name, text in facts.items():
        yield from (f"  {name if not n else '':{width}}{line}" for n, line in enumerate(text.splitlines()))


def _versions(where: dict[str, Any]) -> Facts:
    found = {name: number or "not installed" for name, number in where["versions"].items()}
    commit = {} if where["commit"] is None else {"commit": where["commit"][:10] + " + changes" * where["dirty"]}
    return {**found, **commit, "Python": where["python"], "nvcc": compiler.nvcc_version() or "none found"}


def _extras() -> Iterator[tuple[str, str]]:
    """The optional packages, as the metadata of the installed project lists them."""
    try:
        described = metadata("saprof")
    except PackageNotFoundError:
        yield "none known", "saprof runs from its sources and is not installed"
        return
    for extra in described.get_all("Provides-Extra") or []:
        names = [
            name[0]
            for line in described.get_all("Requires-Dist") or []
            if re.search(rf"extra == ['\"]{extra}['\"]", line) and (name := re.match(r"[\w.-]+", line))
        ]
        missing = [name for name in names if not _installed(name)]
        yield extra, f"missing: {', '.join(missing)}" if missing else "complete"


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _machine(where: dict[str, Any], has_gpu: bool) -> Facts:
    facts = {
        "processor": where["cpu"],
        "cores": f"{where['cores']}, of which torch uses {counted(where['threads'], 'thread')}",
        "memory": f"{where['memory_bytes'] / 1e9:.1f} GB",
        "freed memory": "kept by the commands" if where["kept_memory"] else f"given back: {kept_memory.why_not()}",
        "system": where["platform"],
        "settings": "\n".join(f"{name}={value}" for name, value in where["flags"].items()) or "none",
        "GPU": "torch sees none",
    }
    return facts | (_gpu() if has_gpu else {})


def _gpu() -> Facts:
    import torch

    names = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        capability = f"{about.major}.{about.minor}"
        names.append(f"cuda:{index}  {about.name}, {about.total_memory / 1e9:.0f} GB, compute capability {capability}")
    driver = environment.provenance("cuda", torch.get_num_threads())["driver"]
    return {"GPU": "\n".join(names), "driver": f"{driver or 'unknown'}, torch is built for CUDA {torch.version.cuda}"}


def _backends(dtype: torch.dtype) -> Iterator[tuple[str, str]]:
    """The operators that each backend computes on each device, and the reasons for the others."""
    import torch

    from saprof.backends import why_not

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for backend in BACKENDS:
        lines = []
        for device in devices:
            reasons = [why_not(backend, op, dtype, device, Footprint.square(7)) for op in OPERATORS.values()]
            done = f"{device}: {reasons.count(None)} of {len(reasons)} operators"
            lines.append("; ".join([done, *dict.fromkeys(reason for reason in reasons if reason)]))
        if len(devices) == 1:
            lines.append("cuda: torch sees no CUDA device")
        yield backend, "\n".join(lines)


def _caches() -> Facts:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    numba = Path(chosen) if chosen else Path(kernels_numba.__file__).parent
    return {
        "Numba's kernels": _contents(numba, "*.nbc"),
        "CUDA library": "\n".join(_contents(folder, "*.so") for folder in build.folders()),
        "CUDA sources": str(kernels_cuda.CSRC),
    }


def _contents(folder: Path, pattern: str) -> str:
    files = [path for path in folder.rglob(pattern) if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return f"{folder}: {counted(len(files), 'file')}, {size / 1e6:.1f} MB" if files else f"{folder}: nothing yet"


def _runs() -> Facts:
    return {"recorded": str(RECORDED), "last roofs": _last_roofs() or f"none in {RUNS}/; saprof roofline --calibrate"}


def _last_roofs() -> str | None:
    """The most recently measured roofs of the runs in RUNS."""
    found = [(folder, calibration.read(folder)) for folder in RUNS.glob("*/") if (folder / calibration.FILE).exists()]
    known = [(folder, roofs) for folder, roofs in found if roofs is not None]
    if not known:
        return None
    folder, roofs = max(known, key=lambda entry: entry[1].time)
    largest = max(moved for stream in roofs.streams.values() for moved in stream)
    rates = {dtype: roofs.flop_rate(dtype) for dtype in dict.fromkeys([*roofs.fma, *roofs.gemm])}
    return "\n".join(
        [
            f"{folder}, {roofs.time}",
            *filter(None, [roofs.warning()]),
            f"{roofs.device}, {counted(roofs.threads, 'thread')}",
            f"memory {roofs.bandwidth(largest) / 1e9:.1f} GB/s",
            *(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items() if rate),
        ]
    )


if __name__ == "__main__":
    command.run(main)
