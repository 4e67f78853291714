"""`python -m saprof.sweep`: cost, latency and memory over footprints, relations, sizes and backends.

`--footprint 3,5,7,9,11` alone reproduces SAN Table 7 beside what this machine measures: SAN10 of both families, their
attention at the second stage, and the aggregation alone.
"""

from __future__ import annotations

import argparse
import gc
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saprof import command, text
from saprof.measure.cells import MODES
from saprof.measure.plan import Group, left_out, plan, runnable
from saprof.measure.request import AGAIN, DEFAULT_STAGE, How, Request, read_request
from saprof.models.named import OTHERS
from saprof.operators import BACKENDS, RELATIONS
from saprof.operators.attention import CHOICES
from saprof.operators.footprint import BOUNDARIES
from saprof.operators.workload import ITEMSIZE, STAGES
from saprof.paper.shown import planned
from saprof.paper.summary import summarise
from saprof.quantities import HARDWARE_FLOPS, LEAST_BYTES, MACS
from saprof.records import calibration
from saprof.records.rows import MEASURED, Row
from saprof.records.runs import Run


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    request = read_request(arguments)
    groups = plan(request)
    if arguments.list:
        print("\n".join(str(cell) for group in groups for cell in group))
        return command.OK
    if arguments.dry_run:
        if impossible := left_out(groups):
            print(impossible, file=sys.stderr)
        print(_planned(groups, request.output.form))
        return command.OK
    return _run(groups, request)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m saprof.sweep",
        description="Measure operators and networks. Separate the entries of a "
        "list by commas; write a range as 3:11:2.",
    )
    what = options.add_argument_group("what")
    what.add_argument(
        "--model",
        help=f"networks by name, {', '.join(OTHERS)}, or all of saprof (default: SAN10 of both families and ResNet26, "
        "unless an operator is chosen)",
    )
    what.add_argument("--operator", help="operators by full name, or all")
    what.add_argument("--family", help=f"{', '.join(RELATIONS)}: all relations of these families")
    what.add_argument("--relation", help="relations by name, of the chosen families")
    what.add_argument(
        "--footprint",
        help="sizes, ranges, or square:7, cross:13, disk:9, random:49@seed1, … (default 7; for models, their own)",
    )
    what.add_argument("--boundary", default="reflect", help=", ".join(BOUNDARIES))
    what.add_argument("--dilation", default="1", help="dilation of square footprints")
    what.add_argument("--stride", default="1", help="stride of the operators' footprints")
    what.add_argument("--stage", help=f"stages of SAN, 1 to {len(STAGES)} (default {DEFAULT_STAGE})")
    what.add_argument("--channels", help="channels C of operators, instead of those of a stage")
    what.add_argument(
        "--size",
        help="side of the operators' map, instead of that of a stage, or side of the networks' images, instead of "
        "their own",
    )
    what.add_argument("--batch", default="1")
    what.add_argument("--dtype", default="float32", help=", ".join(ITEMSIZE))
    how = options.add_argument_group("how")
    how.add_argument("--backend", default="all", help=f"{', '.join(BACKENDS)}, auto or all (default)")
    how.add_argument(
        "--attention", default="auto", help=f"how networks compute their attention: {', '.join(CHOICES)} (default auto)"
    )
    how.add_argument("--mode", default="forward", help=", ".join(MODES))
    how.add_argument("--compile", default="no", choices=("no", "yes", "both"), help="whether to use torch.compile")
    how.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    how.add_argument("--threads", help="CPU threads (default: as many as torch uses)")
    how.add_argument(
        "--seconds",
        default="2",
        help="time per cell after the first rounds; a cell also gets the time that the others of its group do not need "
        "(default 2)",
    )
    how.add_argument(
        "--roofs",
        default="measure",
        choices=("measure", "skip"),
        help="whether to measure the roofs of the machine first, which takes some seconds",
    )
    how.add_argument("--time-budget", metavar="SECONDS", help="start no new cell after this many seconds")
    how.add_argument("--isolate", action="store_true", help="measure each group in a process of its own")
    how.add_argument("--timeout", metavar="SECONDS", help="stop a group after this many seconds (implies --isolate)")
    output = options.add_argument_group("output")
    output.add_argument("--output", type=command.path, help="run folder (default runs/<time>)")
    output.add_argument("--resume", action="store_true", help="continue an interrupted run in --output")
    output.add_argument("--again", metavar=AGAIN, help="with --resume, measure the doubtful rows of the run again")
    output.add_argument("--format", default="table", choices=("table", "md", "csv", "json"))
    output.add_argument("--list", action="store_true", help="print the cells and stop")
    output.add_argument("--dry-run", action="store_true", help="print the cells with their declared costs and stop")
    return options


def _run(groups: list[Group], request: Request) -> int:
    """Print what is counted, measure the remaining cells, then print and draw all of them."""
    how, output = request.how, request.output
    threads = _set_up_torch(how)
    _print_counts(groups, output.form)

    from saprof.measure.execute import execute  # imports what the counts do not need
    from saprof.records import environment

    where = environment.provenance(how.device, threads)
    folder = output.folder or Path("runs") / datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    with Run(folder, where, resume=output.resume) as run:
        print("\n".join(filter(None, [_understood(groups, where), left_out(groups)])), file=sys.stderr)
        rows = execute(groups, run, how, output.again)
        print(summarise(rows, output.form, calibration.read(folder)))
        left = sum(map(len, groups)) - len(rows)
        if left:
            hint = f"continue with --resume --output {folder}"
            print(f"{text.counted(left, 'cell')} left when the time budget ran out; {hint}", file=sys.stderr)
        _draw(rows, folder, where)
    fine = {*MEASURED, "unsupported"} if how.every_backend else {*MEASURED}
    found = {row.status for row in rows}
    return command.OK if found & {*MEASURED} and found <= fine and not left else command.FAILED


def _set_up_torch(how: How) -> int:
    """Import torch, set the number of threads, and return it; ValueError if torch does not see the device."""
    import torch

    from saprof.backends import check_device

    gc.freeze()  # else garbage collection goes through the objects of torch while networks are counted
    check_device(how.device)
    if how.threads is not None:
        torch.set_num_threads(how.threads)
    return torch.get_num_threads()


def _print_counts(groups: list[Group], form: str) -> None:
    """Print what can be counted before anything is measured. Rows for programs must stay alone on stdout."""
    from saprof.paper.counted import counted

    for_people = form in ("table", "md")
    known = counted((cell for group in groups for cell in group), form if for_people else "table")
    print(known, end="", file=sys.stdout if for_people else sys.stderr, flush=True)


def _understood(groups: list[Group], where: dict[str, Any]) -> str:
    """One line that says what will be measured, and where."""
    cells = [cell.what for cell in runnable(groups)]
    axes = {
        "": [cell["name"] for cell in cells],
        "footprint ": [cell["footprint"] for cell in cells],
        "map or image ": [f"{cell['h']}×{cell['w']}" for cell in cells if cell["h"]],
        "v = ": [str(cell["v"]) for cell in cells if "v" in cell],
        "n = ": [str(cell["n"]) for cell in cells],
        **{f"{axis} ": [cell[axis] for cell in cells] for axis in ("dtype", "mode", "backend")},
    }
    listed = "; ".join(f"{axis}{text.shortened(values)}" for axis, values in axes.items() if values)
    measured = [group for group in groups if runnable([group])]
    count = f"{text.counted(len(cells), 'cell')} in {text.counted(len(measured), 'group')}"
    return f"{count}: {listed}; on {where['device']}, {text.counted(where['threads'], 'thread')}"


def _draw(rows: list[Row], folder: Path, where: dict[str, Any]) -> None:
    """Draw the figure beside the rows. Cells that no backend supports are only in the table."""
    rows = [row for row in rows if row.status != "unsupported"]
    if not any(row.status in MEASURED and row.taps for row in rows):
        print(f"rows in {folder}; no cell has a footprint and a latency, so there is no figure", file=sys.stderr)
        return
    if absent := [name for name in ("matplotlib", "pandas", "seaborn") if find_spec(name) is None]:
        print(f"rows in {folder}; no figure without {', '.join(absent)}", file=sys.stderr)
        return
    from saprof.plots import footprint_figure, frame, write
    from saprof.records import environment

    paths = write(
        footprint_figure(frame(rows, calibration.read(folder)), environment.caption(where)), folder / "footprint"
    )
    print(f"rows in {folder}, figure in {' and '.join(map(str, paths))}", file=sys.stderr)


def _planned(groups: list[Group], form: str) -> str:
    """The cells with their declared costs."""
    cells = runnable(groups)
    if form in ("csv", "json"):
        return text.records([cell.what | cell.costs for cell in cells], form)
    if form == "table":
        table = planned([cell.what | cell.costs for cell in cells])
    else:
        costs = (MACS, HARDWARE_FLOPS, LEAST_BYTES)
        lines = [[str(cell), *(quantity.text(cell.costs.get(quantity.column)) for quantity in costs)] for cell in cells]
        table = text.align(["cell", "MMACs", "MFLOPs (hardware)", "least MB"], lines, form)
    many = f"{text.counted(len(cells), 'cell')} in {text.counted(len(groups), 'group')}"
    return f"{table}\n\n{many}; nothing was measured"


if __name__ == "__main__":
    command.run(main)
