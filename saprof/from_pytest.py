"""`python -m saprof.from_pytest FILE --output RUN`: a file of pytest-benchmark as a run that other commands read.

    pytest --benchmark-only --benchmark-json FILE tests/benchmarks/test_stages.py

pytest-benchmark does not interleave benchmarks, so the rows have no ratio and no verdict. `--benchmark-autosave` keeps
samples only with `--benchmark-save-data`; without them a row has only a median and is `unstable`. The calibration at
the beginning shows whether other processes ran; the same is assumed for all rows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from saprof import command
from saprof.measure.cells import Cell
from saprof.operators import OPERATORS
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload
from saprof.records import calibration
from saprof.records.environment import fingerprint
from saprof.records.rows import Row
from saprof.records.runs import Run

SOURCE = "tests/benchmarks/test_stages.py"
PROVENANCE = ("versions", "device", "cpu", "cores", "threads", "code", "commit", "dirty")
"""The entries that `machine_info["saprof"]` must have."""
NAMED = 3
"""The number of omitted benchmarks that are named."""


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    saved = _read(arguments.file)
    where = _provenance(arguments.file, saved["machine_info"])
    ours = [benchmark for benchmark in saved["benchmarks"] if _is_ours(benchmark)]
    others = [benchmark for benchmark in saved["benchmarks"] if not _is_ours(benchmark)]
    if not ours:
        raise ValueError(
            f"{arguments.file}: none of {len(others)} benchmarks says which cell it measured; expected some of {SOURCE}"
        )
    time = _time(arguments.file, saved.get("datetime"))
    rows = [_row(benchmark, fingerprint(where), time) for benchmark in ours]
    roofs = _roofs(arguments.file, saved.get("calibration"))
    if roofs is not None and roofs.contended:
        rows = [replace(row, status="contended", reason="other processes ran during the calibration") for row in rows]
    with Run(arguments.output, where) as run:
        run.append(rows)
        if roofs is not None:
            calibration.write(run.folder, roofs)
    if others:
        names = ", ".join(str(benchmark.get("name")) for benchmark in others[:NAMED])
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        print(f"left out, since they do not say which cell they measured: {names}{more}", file=sys.stderr)
    print(f"{run.folder}: {len(rows)} of {len(saved['benchmarks'])} benchmarks")
    return command.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m saprof.from_pytest",
        description=f"Turn the results that pytest-benchmark saved for {SOURCE} into a run folder.",
    )
    parser.add_argument(
        "file", type=command.path, help="file of --benchmark-json, --benchmark-autosave or --benchmark-save"
    )
    parser.add_argument("--output", type=command.path, required=True, help="run folder")
    return parser


def _read(path: Path) -> dict[str, Any]:
    """The content of a file of pytest-benchmark; ValueError for any other file."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); expected a file of pytest-benchmark") from None
    parts = {"benchmarks": list, "machine_info": dict}
    if not isinstance(saved, dict) or not all(isinstance(saved.get(name), kind) for name, kind in parts.items()):
        raise ValueError(f"{path} is no file of pytest-benchmark; expected its {' and '.join(parts)}")
    return saved


def _provenance(path: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    where = machine.get("saprof")
    missing = [name for name in PROVENANCE if not isinstance(where, dict) or name not in where]
    if not isinstance(where, dict) or missing:
        raise ValueError(
            f"{path} does not tell where it was measured: machine_info['saprof'] lacks {', '.join(missing)}; expected "
            f"what the benchmarks beside {SOURCE} record"
        )
    return where


def _is_ours(benchmark: Any) -> bool:
    info = benchmark.get("extra_info") if isinstance(benchmark, dict) else None
    return isinstance(info, dict) and info.get("kind") == "operator"


def _time(path: Path, saved: Any) -> str:
    """The time of the whole file, in the format of rows."""
    try:
        return datetime.fromisoformat(saved).isoformat(timespec="seconds")
    except (TypeError, ValueError):
        raise ValueError(f"{path} says datetime {saved!r}; expected what pytest-benchmark writes") from None


def _row(benchmark: Mapping[str, Any], fingerprint: str, time: str) -> Row:
    name, info = benchmark.get("name"), benchmark["extra_info"]
    try:
        cell, measured = _cell(info), _measured(benchmark["stats"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"benchmark {name} is damaged ({error!r}); expected what {SOURCE} records") from None
    known: dict[str, Any] = {field.name: info[field.name] for field in fields(Row) if field.name in info} | measured
    known |= {"key": cell.key(fingerprint), "fingerprint": fingerprint, "time": time}
    return Row(**known)


def _cell(info: Mapping[str, Any]) -> Cell:
    """The cell that a benchmark describes. Raises KeyError, TypeError or ValueError if there is none."""
    sizes = {axis: info[axis] for axis in "nrvghw"}
    workload = Workload(OPERATORS[info["name"]], Footprint.parse(info["footprint"]), **sizes, dtype=info["dtype"])
    cell = Cell(workload, info["mode"], info["device"], info["backend"], info["compiled"])
    differ = [field for field, value in cell.what.items() if info.get(field) != value]
    if differ:
        raise ValueError(f"{', '.join(differ)} do not fit the other fields")
    return cell


def _measured(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row that follow from the statistics of pytest-benchmark, whose times are seconds per call."""
    found = {"calls_per_sample": stats["iterations"], "stopped": "rounds", "latency_s": float(stats["median"])}
    samples = stats.get("data")
    if not all(0 < seconds < math.inf for seconds in samples or [found["latency_s"]]):
        raise ValueError("expected times above zero")
    if not samples:
        return found | {"status": "unstable", "reason": "its samples were not saved, so it has no interval"}
    import numpy as np

    from saprof.measure.latency import UNSTABLE
    from saprof.records.ratios import median_interval

    median, p10, p90 = (float(x) for x in np.percentile(samples, (50, 10, 90)))
    low, high = median_interval(samples)
    return found | {
        "status": "unstable" if high - low > 2 * UNSTABLE * median else "ok",
        "latency_s": median,
        "latency_low_s": low,
        "latency_high_s": high,
        "latency_p10_s": p10,
        "latency_p90_s": p90,
        "samples_s": samples,
    }


def _roofs(path: Path, content: Any) -> calibration.Calibration | None:
    """The calibration, if it was recorded."""
    try:
        return None if content is None else calibration.parse(content)
    except ValueError as error:
        raise ValueError(f"{path}: its calibration is damaged ({error}); measure again") from None


if __name__ == "__main__":
    command.run(main)
