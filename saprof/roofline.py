"""`python -m saprof.roofline RUN`: the share of the roofs of the machine that each row of a run reaches.

`--calibrate` measures the roofs of this machine now: without a run, or for a run that has none.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saprof import atomic, command, lock, text
from saprof.operators.workload import ITEMSIZE
from saprof.paper.shown import cell_columns
from saprof.quantities import LATENCY, digits, factor, who_ran
from saprof.records import calibration as roofs
from saprof.records.calibration import Bound, Calibration
from saprof.records.rows import Row
from saprof.records.runs import Recorded, read_run
from saprof.records.verdicts import doubt
from saprof.terminal import Column, Table, fitted, laid_out, paragraphs

COLUMNS = (
    "what", "footprint", "map", "mode", "ran on", "FLOP/byte", "bound by", "least ms", "latency ms", "% of roof",
    "speed-up", "at most", "note",
)  # fmt: skip
ALIKE = ("name", "footprint", "n", "h", "w", "r", "v", "g", "dtype", "device", "mode")
"""The fields in which rows must agree before their latencies are compared."""


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.run is None:
        if not arguments.calibrate:
            raise ValueError("expected a run folder, or --calibrate for the roofs of this machine alone")
        if arguments.output is not None:
            raise ValueError("--output has no effect without a run folder; omit it")
        print(_roofs_here(arguments.format))
        return command.OK
    run = read_run(arguments.run)
    calibration = _calibrate_run(run) if arguments.calibrate else run.calibration
    if calibration is None:
        raise ValueError(f"{run.folder} has no {roofs.FILE}; measure the roofs now with --calibrate")
    lines = place(run.rows, calibration)
    print(render(lines, run.rows, calibration, arguments.format))
    warning = calibration.warning(row.dtype for row in run.rows)
    if warning and arguments.format in ("csv", "json"):
        print(warning, file=sys.stderr)
    _draw(run, calibration, arguments.output or run.folder)
    return command.OK if lines and not any(line["note"] for line in lines) else command.FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m saprof.roofline",
        description="Compare the rows of a run with the roofs of its machine: % of roof, and a figure.",
    )
    parser.add_argument("run", nargs="?", type=command.path, help="run folder of saprof.sweep")
    parser.add_argument("--calibrate", action="store_true", help="measure the roofs now, on this machine")
    parser.add_argument("--format", default="table", choices=text.FORMATS)
    parser.add_argument("--output", type=command.path, help="folder of roofline.png and .svg (default: the run's)")
    return parser


def place(rows: Sequence[Row], calibration: Calibration) -> list[dict[str, Any]]:
    """A flat record for each row that can be compared with the roofs; SI units are in the names."""
    slowest = _slowest(rows)
    return [
        _record(row, bound, slowest.get(_same(row)))
        | {"note": _error(row, calibration) if roofs.above_roof(row, calibration) else ""}
        for row in rows
        if roofs.why_not(row, calibration) is None and (bound := roofs.bound(row, calibration))
    ]


def _same(row: Row) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in ALIKE)


def _slowest(rows: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    """The slowest row of each group that was measured in the same rounds. Every row of such a group except the first
    has a ratio to the first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.latency_s is not None:
            groups.setdefault(_same(row), []).append(row)
    return {
        same: max(group, key=lambda row: row.ratio or 1)
        for same, group in groups.items()
        if len(group) > 1 and sum(row.ratio is None for row in group) == 1
    }


def _record(row: Row, bound: Bound, slowest: Row | None) -> dict[str, Any]:
    latency = row.latency_s or 0.0
    intensity = None
    if row.kind == "operator" and row.flops_hardware is not None and row.compulsory_bytes:
        intensity = row.flops_hardware / row.compulsory_bytes
    compared = slowest if slowest is not row else None
    return {
        **{name: getattr(row, name) for name in ALIKE},
        "backend": row.backend,
        "attention": row.attention,
        "compiled": row.compiled,
        "flop_hardware_per_byte": intensity,
        "bound_by": bound.by,
        "bound_s": bound.seconds,
        "latency_s": latency,
        "roof_share": bound.seconds / latency,
        "slowest": compared.ran_on if compared else None,
        "speed_up": (compared.ratio or 1) / (row.ratio or 1) if compared else None,
        "speed_up_at_most": (compared.latency_s or 0) / bound.seconds if compared else None,
        "doubt": doubt(row) or (compared and doubt(compared) and f"{compared.ran_on} is {compared.status}") or "",
    }


def _error(row: Row, calibration: Calibration) -> str:
    return f"measurement error: {roofs.share(row, calibration) or 0:.0%} of the roof"


def render(lines: Sequence[Mapping[str, Any]], rows: Sequence[Row], calibration: Calibration, form: str) -> str:
    """The records of `place`. The formats for people also have the origin of the roofs, and why other rows are
    missing."""
    if form in ("csv", "json"):
        return text.records(lines, form)
    left = Counter(reason for row in rows if (reason := roofs.why_not(row, calibration)))
    above, below = [_origin(rows, calibration)], []
    if warning := calibration.warning({row.dtype for row in rows} or None):
        above.append(warning)
    if left:
        below += ["\n".join(f"not placed, {count} of {len(rows)} rows: {reason}" for reason, count in left.items())]
    if wrong := sum(bool(line["note"]) for line in lines):
        below += [f"{wrong} of {len(lines)} rows are faster than the roofs allow: measurement error"]
    if form == "md":
        return "\n\n".join([*above, *([text.align(COLUMNS, [*map(_cells, lines)], form)] if lines else []), *below])
    tables = [fitted(_table(lines))] if lines else []
    return "\n\n".join([*map(paragraphs, above), *tables, *map(paragraphs, below)])


def _table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """The records of `place` for the terminal, with a remark beside each latency that should not be believed."""
    cells: list[dict[str, str]] = [dict(zip(COLUMNS, _cells(line), strict=True)) for line in lines]
    measured = ("FLOP/byte", 3), ("bound by", 4), ("least ms", 2), ("latency ms", 0), ("% of roof", 0)
    return Table(
        [
            *cell_columns(lines, "name"),
            Column("ran on", [cell["ran on"] for cell in cells], 0, "{}"),
            *(Column(title, [cell[title] for cell in cells], rank) for title, rank in measured),
            Column("speed-up", [cell["speed-up"] for cell in cells], 1),
            Column("at most", [cell["at most"] for cell in cells], 5),
        ],
        notes=[line["note"] or line["doubt"] for line in lines],
    )


def _origin(rows: Sequence[Row], calibration: Calibration) -> str:
    times = sorted(row.time for row in rows if row.time)
    threads = text.counted(calibration.threads, "thread") if calibration.kind == "cpu" else "a GPU"
    when = f"; rows of {times[0]} to {times[-1]}" if times else ""
    late = ", before the roofs" if times and times[-1] < calibration.time else ""
    noise = f"identical calls differed by ± {calibration.noise_within:.1%} in the same rounds, "
    noise += f"by {calibration.noise_between:.1%} from time to time"
    return f"Roofs of {calibration.device} ({threads}), measured {calibration.time}{when}{late}; {noise}"


def _cells(line: Mapping[str, Any]) -> list[str]:
    intensity = line["flop_hardware_per_byte"]
    compared = line["slowest"] is not None and not line["doubt"]
    return [
        line["name"],
        line["footprint"],
        f"{line['n']}×{line['h']}×{line['w']}",
        line["mode"],
        who_ran(line["backend"], line["attention"], line["compiled"]),
        "" if intensity is None else digits(intensity),
        line["bound_by"],
        LATENCY.text(line["bound_s"]),
        LATENCY.text(line["latency_s"]),
        digits(100 * line["roof_share"]),
        f"{factor(line['speed_up'])} {line['slowest']}" if compared else "",
        factor(line["speed_up_at_most"]) if compared else "",
        line["note"] or line["doubt"],
    ]


def _calibrate_run(run: Recorded) -> Calibration:
    """Measure the roofs of the machine of a run, if that is this machine, and write them to the run folder."""
    if run.calibration:
        raise ValueError(f"{run.folder} has roofs of {run.calibration.time}; delete its {roofs.FILE} to measure others")
    import torch

    from saprof.backends import check_device
    from saprof.measure.calibrate import calibrate
    from saprof.records import environment

    device, where = run.rows[0].device, run.provenance
    check_device(device)
    here = {"device": environment.device_name(device), "threads": torch.get_num_threads()}
    differ = [f"{name} was {where[name]!r} and is {is_!r}" for name, is_ in here.items() if where[name] != is_]
    if differ:
        raise ValueError(
            f"{run.folder} was measured under other conditions: {', '.join(differ)}; calibrate under its conditions"
        )
    with lock.held(run.folder):
        calibration = calibrate(device, sorted({row.dtype for row in run.rows}))
        roofs.write(run.folder, calibration)
    return calibration


def _roofs_here(form: str) -> str:
    """The roofs of this machine's CPU, and of its GPU if it has one."""
    import torch

    from saprof.measure.calibrate import calibrate

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    found = [calibrate(device, tuple(ITEMSIZE)) for device in devices]
    if form in ("csv", "json"):
        return text.records([record for calibration in found for record in _records_of(calibration)], form)
    parts = [
        part
        for calibration in found
        for part in (_origin([], calibration), calibration.warning(), _tables_of(calibration, form))
        if part
    ]
    return "\n\n".join(parts if form == "md" else map(paragraphs, parts))


def _records_of(calibration: Calibration) -> list[dict[str, Any]]:
    device = {"device": calibration.device, "threads": calibration.threads, "time": calibration.time}
    streams = [
        device | {"roof": name, "bytes": moved, "dtype": None, "bytes_per_s": rate, "flop_per_s": None}
        for name, stream in calibration.streams.items()
        for moved, rate in stream.items()
    ]
    computing = [
        device | {"roof": name, "bytes": None, "dtype": dtype, "bytes_per_s": None, "flop_per_s": rate}
        for name, rates in (("fma", calibration.fma), ("gemm", calibration.gemm))
        for dtype, rate in rates.items()
    ]
    return streams + computing


def _tables_of(calibration: Calibration, form: str) -> str:
    streams = [
        [f"{moved / 2**20:g}", *(digits(stream[moved] / 1e9) for stream in calibration.streams.values())]
        for moved in next(iter(calibration.streams.values()))
    ]
    rates = [
        [
            dtype,
            *(digits(rates[dtype] / 1e9) if dtype in rates else "" for rates in (calibration.fma, calibration.gemm)),
        ]
        for dtype in calibration.gemm
    ]
    tables = (
        (["MiB moved", *(f"{name} GB/s" for name in calibration.streams)], streams),
        (["dtype", "FMA GFLOP/s", "GEMM GFLOP/s"], rates),
    )
    return "\n\n".join(laid_out(header, body, form) for header, body in tables)


def _draw(run: Recorded, calibration: Calibration, folder: Path) -> None:
    placed = [row for row in run.rows if row.kind == "operator" and roofs.why_not(row, calibration) is None]
    if not placed:
        print("no operator has a place under the roofs, so there is no figure", file=sys.stderr)
        return
    from saprof.plots import frame, roofline_figure, write

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.WriteError.of(folder, error, "; choose another with --output") from None
    paths = write(roofline_figure(frame(placed), calibration, run.caption), folder / "roofline")
    print(f"figure in {' and '.join(map(str, paths))}", file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
