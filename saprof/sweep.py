"""`python -m saprof.sweep`: cost, latency and memory over footprints, relations, sizes and backends.

`--footprint 3,5,7,9,11` alone reproduces SAN Table 7 beside what this machine measures: SAN10 of both families, their
attention at the second stage, and the aggregation alone.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

from saprof import command, text
from saprof.measure.cells import MODES, Cell, Network
from saprof.operators import BACKENDS, OPERATORS, RELATIONS, Operator
from saprof.operators.attention import CHOICES
from saprof.operators.footprint import BOUNDARIES, Footprint
from saprof.operators.workload import ITEMSIZE, STAGES, Workload
from saprof.paper.summary import figure, summarise
from saprof.records import calibration
from saprof.records.rows import MEASURED, Row
from saprof.records.runs import Run

DEFAULT_OPERATORS = ("pairwise_attention", "patchwise_attention", "aggregation")
DEFAULT_MODELS = ("resnet26", "san10_pairwise", "san10_patchwise")
LARGEST_CONVOLUTION = 49
"""Taps up to which the paper tries convolutions (SAN Table 7); the default sweep goes no further."""
DEFAULT_STAGE = 2
DEFAULT_FOOTPRINT = "7"

Group = list[Cell]
"""Cells that are measured side by side: alike but for who computes them."""


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    groups = plan(arguments)
    if arguments.list:
        print("\n".join(str(cell) for group in groups for cell in group))
        return command.OK
    if arguments.dry_run:
        print(_planned(groups, arguments.format))
        return command.OK
    return _run(groups, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m saprof.sweep",
        description="Measure operators and networks; lists are separated by commas, ranges read 3:11:2.",
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--model", help="whole networks, or all (default: SAN10 of both families, unless an operator is chosen)"
    )
    what.add_argument("--operator", help="operators by full name, or all")
    what.add_argument("--family", help=f"{', '.join(RELATIONS)}: their relations")
    what.add_argument("--relation", help="relations by name, in the families chosen")
    what.add_argument(
        "--footprint",
        help="sizes, ranges, or square:7, cross:13, disk:9, random:49@seed1, … (default 7; of models, their own)",
    )
    what.add_argument("--boundary", default="reflect", help=", ".join(BOUNDARIES))
    what.add_argument("--dilation", default="1", help="of square footprints")
    what.add_argument("--stride", default="1", help="of operators' footprints")
    what.add_argument("--stage", help=f"stages of SAN, 1 to {len(STAGES)} (default {DEFAULT_STAGE})")
    what.add_argument("--channels", help="C of operators, instead of a stage's")
    what.add_argument("--size", help="map side of operators instead of a stage's, or image side of models")
    what.add_argument("--batch", default="1")
    what.add_argument("--dtype", default="float32", help=", ".join(ITEMSIZE))
    how = parser.add_argument_group("how")
    how.add_argument("--backend", default="all", help=f"{', '.join(BACKENDS)}, auto or all (default)")
    how.add_argument("--attention", default="auto", help=f"of networks: {', '.join(CHOICES)} (default auto)")
    how.add_argument("--mode", default="forward", help=", ".join(MODES))
    how.add_argument("--compile", default="no", choices=("no", "yes", "both"), help="with torch.compile")
    how.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    how.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's own)")
    how.add_argument(
        "--seconds", type=float, default=2.0, help="longest time per cell, a few rounds at least (default 2)"
    )
    how.add_argument(
        "--roofs", default="measure", choices=("measure", "skip"), help="first see what the machine can do (seconds)"
    )
    how.add_argument("--time-budget", type=float, help="start no new cell after this many seconds")
    how.add_argument("--isolate", action="store_true", help="measure each group in a process of its own")
    how.add_argument("--timeout", type=float, help="give a group up after this many seconds (implies --isolate)")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, help="run folder (default runs/<time>)")
    output.add_argument("--resume", action="store_true", help="go on with an interrupted run in --output")
    output.add_argument("--format", default="table", choices=("table", "md", "csv", "json"))
    output.add_argument("--list", action="store_true", help="print the cells and stop")
    output.add_argument("--dry-run", action="store_true", help="print the cells with their declared costs and stop")
    return parser


def plan(arguments: argparse.Namespace) -> list[Group]:
    """The groups of cells that the arguments ask for; ValueError for what nobody knows."""
    backends = command.choices("backend", arguments.backend, tuple(BACKENDS), extra=("auto",))
    compiled = {"no": (False,), "yes": (True,), "both": (False, True)}[arguments.compile]
    axes = product(
        command.integers("batch", arguments.batch),
        command.choices("dtype", arguments.dtype, tuple(ITEMSIZE)),
        command.choices("mode", arguments.mode, MODES),
    )
    attention = command.choices("attention", arguments.attention, CHOICES)
    groups = []
    for batch, dtype, mode in axes:
        for subject in [*_networks(arguments, batch, dtype), *_workloads(arguments, batch, dtype)]:
            network = isinstance(subject, Network)
            choosable = not network or subject.attends
            groups.append(
                [
                    Cell(subject, mode, arguments.device, backend, is_compiled, how)
                    for backend in (backends if choosable else ["auto"])
                    for how in (attention if network and choosable else ["auto"])
                    for is_compiled in compiled
                ]
            )
    return [list(group) for group in dict.fromkeys(map(tuple, groups))]  # `3,square:3` is one footprint


def _networks(arguments: argparse.Namespace, batch: int, dtype: str) -> Iterator[Network]:
    if arguments.model is None and _chooses_operators(arguments):
        return
    names = DEFAULT_MODELS if arguments.model is None else _model_names(arguments.model)
    sizes = command.integers("size", arguments.size) if arguments.size else [224]
    footprints = _footprints(arguments) if arguments.footprint is not None else [None]
    for name, footprint, size in product(names, footprints, sizes):
        network = Network(name, footprint, batch, size, dtype)
        if network.attends or footprint is None:
            yield network
        elif _convolvable(footprint):
            if arguments.model or footprint.taps <= LARGEST_CONVOLUTION:
                yield network
        elif arguments.model not in (None, "all"):
            raise ValueError(
                f"footprint of {name} is {footprint}; expected an odd square, as its convolutions have one"
            )


def _convolvable(footprint: Footprint) -> bool:
    """Whether a ResNet has it: an odd square without dilation."""
    return footprint.lattice is not None and footprint.offsets == Footprint.square(footprint.lattice[0][0] | 1).offsets


def _model_names(asked: str) -> list[str]:
    """A comma list, whose names are checked when torch is there; `all` asks torch for them."""
    if asked != "all":
        return [name.strip() for name in asked.split(",")]
    from saprof.models import list_models

    return list_models()


def _workloads(arguments: argparse.Namespace, batch: int, dtype: str) -> Iterator[Workload]:
    if arguments.model is not None and not _chooses_operators(arguments):
        return
    strides = command.integers("stride", arguments.stride)
    shapes = list(_shapes(arguments))
    for operator, (channels, size), footprint, stride in product(
        _operators(arguments), shapes, _footprints(arguments), strides
    ):
        yield replace(Workload.stage(operator, footprint.with_(stride=stride), channels, size, batch), dtype=dtype)


def _chooses_operators(arguments: argparse.Namespace) -> bool:
    return any((arguments.operator, arguments.family, arguments.relation, arguments.stage, arguments.channels))


def _operators(arguments: argparse.Namespace) -> list[Operator]:
    if not (arguments.operator or arguments.family or arguments.relation):
        return [OPERATORS[name] for name in DEFAULT_OPERATORS]
    named = command.choices("operator", arguments.operator, tuple(OPERATORS)) if arguments.operator else []
    if arguments.family or arguments.relation:
        families = command.choices("family", arguments.family or "all", tuple(RELATIONS))
        known = tuple(dict.fromkeys(relation for family in families for relation in RELATIONS[family]))
        relations = command.choices("relation", arguments.relation or "all", known)
        named += [f"{f}_{r}" for f, r in product(families, relations) if r in RELATIONS[f]]
    return [OPERATORS[name] for name in dict.fromkeys(named)]


def _shapes(arguments: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """(C, map side) of operators: of SAN's stages, or as given."""
    stages = command.integers("stage", arguments.stage or str(DEFAULT_STAGE))
    if max(stages) > len(STAGES):
        raise ValueError(f"stage is {max(stages)}; expected 1 to {len(STAGES)}")
    for stage in stages:
        channels, size = STAGES[stage - 1]
        yield from product(
            command.integers("channels", arguments.channels) if arguments.channels else [channels],
            command.integers("size", arguments.size) if arguments.size else [size],
        )


def _footprints(arguments: argparse.Namespace) -> list[Footprint]:
    """Every footprint, dilation and boundary asked for."""
    asked = DEFAULT_FOOTPRINT if arguments.footprint is None else arguments.footprint
    boundaries = command.choices("boundary", arguments.boundary, BOUNDARIES)
    found = footprints(asked, arguments.dilation)
    return [footprint.with_(boundary=boundary) for footprint, boundary in product(found, boundaries)]


def footprints(asked: str, dilation: str = "1") -> list[Footprint]:
    """Read a comma list of sizes and ranges, each at every dilation, and of what `Footprint.parse` reads."""
    dilations = command.integers("dilation", dilation)
    found: list[Footprint] = []
    for part in _parts(asked):
        if all(bound.strip().isdigit() for bound in part.split(":")):
            sizes = command.integers("footprint", part)
            found += [Footprint.square(size, apart) for size, apart in product(sizes, dilations)]
        elif dilations != [1]:
            raise ValueError(f"dilation is {dilation} with footprint {part}; expected a size such as 7")
        else:
            found.append(Footprint.parse(part))
    return found


def _parts(asked: str) -> list[str]:
    """What commas part, but for those of offsets."""
    pair = r"-?\d+,-?\d+"
    return re.findall(rf"((?:offsets:{pair}(?:;{pair})*|[^,])*),", f"{asked},")


def _run(groups: list[Group], arguments: argparse.Namespace) -> int:
    """Measure what is not yet measured, then print and draw it."""
    from saprof.records import environment

    if arguments.resume and arguments.output is None:
        raise ValueError("--resume goes on with a run; expected its folder as --output")
    if arguments.seconds <= 0:
        raise ValueError(f"seconds is {arguments.seconds}; expected a positive number")
    threads = _set_up_torch(arguments, groups)
    where = environment.provenance(arguments.device, threads)
    folder = arguments.output or Path("runs") / datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    run = Run(folder, where, resume=arguments.resume)
    fingerprint = run.fingerprint
    calibrating = arguments.roofs == "measure" and any(c.key(fingerprint) not in run.done for g in groups for c in g)
    if calibrating:
        _calibrate(run.folder, groups, arguments)
    started = time.monotonic()
    try:
        with _progress(groups) as progress:
            for group in groups:
                progress.set_postfix_str(str(group[0]), refresh=sys.stderr.isatty())
                spent = time.monotonic() - started
                missing = [cell for cell in group if cell.key(fingerprint) not in run.done]
                if missing and (arguments.time_budget is None or spent < arguments.time_budget):
                    rows = _measure(group, fingerprint, arguments)
                    run.append([row for cell, row in zip(group, rows, strict=True) if cell in missing])
                progress.update()
    except KeyboardInterrupt:
        print(f"\nwhat is done is kept; go on with --resume --output {folder}", file=sys.stderr)
        raise
    rows = run.rows(cell.key(fingerprint) for group in groups for cell in group)
    if calibrating:
        _note_drift(run.folder, arguments.device)
    print(summarise(rows, arguments.format, calibration.read(run.folder)))
    left = sum(map(len, groups)) - len(rows)
    if left:
        print(f"{left} cells left when the time budget ran out; go on with --resume --output {folder}", file=sys.stderr)
    _draw(rows, run.folder, where)
    fine = {*MEASURED, "unsupported"} if arguments.backend == "all" else {*MEASURED}
    found = {row.status for row in rows}
    return command.OK if found & {*MEASURED} and found <= fine and not left else command.FAILED


def _set_up_torch(arguments: argparse.Namespace, groups: list[Group]) -> int:
    """Fix the threads, and refuse a device or model that is not there; returns the number of threads."""
    import torch

    from saprof.backends import check_device
    from saprof.models import list_models

    check_device(arguments.device)
    networks = {cell.subject.name for group in groups for cell in group if isinstance(cell.subject, Network)}
    command.choices("model", ",".join(sorted(networks)) or "all", tuple(list_models()))
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"threads is {arguments.threads}; expected a positive integer")
        torch.set_num_threads(arguments.threads)
    return torch.get_num_threads()


def _calibrate(folder: Path, groups: list[Group], arguments: argparse.Namespace) -> None:
    """Keep what the machine can do beside the rows, unless it is known from when the run began."""
    from saprof.measure.calibrate import calibrate

    if calibration.read(folder) is None:
        dtypes = dict.fromkeys(cell.subject.dtype for group in groups for cell in group)
        calibration.write(folder, calibrate(arguments.device, list(dtypes)))


def _note_drift(folder: Path, device: str) -> None:
    """Keep how far the machine has drifted since the run began, or was gone on with."""
    from saprof.measure.calibrate import anchor

    if roofs := calibration.read(folder):
        calibration.write(folder, calibration.with_anchor(roofs, anchor(device)))


def _measure(group: Group, fingerprint: str, arguments: argparse.Namespace) -> list[Row]:
    from saprof.measure.cell import measure, measure_apart

    if arguments.isolate or arguments.timeout:
        return measure_apart(group, fingerprint, arguments.seconds, arguments.timeout, arguments.threads)
    return measure(group, fingerprint, arguments.seconds)


def _progress(groups: list[Group]):
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=len(groups), file=sys.stderr, unit="cell", mininterval=interval, dynamic_ncols=True)


def _draw(rows: list[Row], folder: Path, where: dict[str, Any]) -> None:
    """The figure beside the rows, for what has a latency; the table names what no backend can run."""
    rows = [row for row in rows if row.status != "unsupported"]
    if not any(row.status in MEASURED and row.taps for row in rows):
        print(f"rows in {folder}; no cell has a footprint and a latency, so there is no figure", file=sys.stderr)
        return
    from saprof.plots import footprint_figure, frame, write
    from saprof.records import environment

    paths = write(footprint_figure(frame(rows), environment.caption(where)), folder / "footprint")
    print(f"rows in {folder}, figure in {' and '.join(map(str, paths))}", file=sys.stderr)


def _planned(groups: list[Group], form: str) -> str:
    """The cells with what their declarations tell."""
    cells = [cell for group in groups for cell in group]
    if form in ("csv", "json"):
        return text.records([cell.what | cell.costs for cell in cells], form)
    fields = ("macs", "flops_hardware", "compulsory_bytes")
    lines = [[str(cell), *(figure(cell.costs[name] / 1e6) if cell.costs else "" for name in fields)] for cell in cells]
    table = text.align(["cell", "MMACs", "MFLOPs (hardware)", "least MB"], lines, form)
    return f"{table}\n\n{len(cells)} cells in {len(groups)} groups; nothing was measured"


if __name__ == "__main__":
    command.run(main)
