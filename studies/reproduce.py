"""Reproduce the accuracy tables of a paper: SAN, or SASA.

    python -m studies.reproduce table4 --data digits --seeds 6
    python -m studies.reproduce --paper sasa --data fashion
    python -m studies.reproduce all --data folder --root /data/imagenet \\
        --executor slurm --gpus 8 --partition gpu
    python -m studies.reproduce all --from studies/recorded/digits

Every row is trained with every seed. A network that is in several tables is trained once, and SAN's Tables 9 and 10
judge the networks of its Table 3 on rotated and attacked images. OUTPUT/runs keeps every run: a finished run is not
repeated, and an unfinished one is resumed. OUTPUT/README.md is the summary, OUTPUT/tables has the pages, and
OUTPUT/results.json is enough to draw them again. They are also written when a signal stops the command. With --record
FOLDER, a later session needs only that folder, and not the runs, to go on.

Exit codes: 0 complete, 1 some runs failed, 2 wrong input, 75 stopped by a signal after saving.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from saprof import command
from saprof.command import OK, alone
from saprof.operators.footprint import positive
from saprof.text import unknown
from studies.config import DEVICES
from studies.failures import until_stopped
from studies.reproduction import rates, records
from studies.reproduction.budget import BANDWIDTH
from studies.reproduction.executors import EXECUTORS, Executor, Local, cores
from studies.reproduction.grid import TABLES, table_name
from studies.reproduction.paper_tables import SMOKE_FACTS, Plan, Request, carry_out, describe, plan, redraw, so_far
from studies.reproduction.study import DATA, Study

SMOKE = {"seeds": 1, "epochs": 2, "candidates": (0.1,), "tuning_seeds": (1000,)}


def main(argv: list[str] | None = None) -> int:
    parser = options()
    arguments = parser.parse_args(argv)
    alone(parser, arguments, "from_", beside=("tables", "output"))
    arguments = _checked(arguments)
    return until_stopped(lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    if arguments.from_:
        return redraw(arguments.from_, arguments.output, arguments.tables)
    planned = plan(_request(arguments))
    processes = max(1, arguments.gpus) if arguments.executor == "slurm" else 1
    if warning := planned.request.study.recipe.unlike_recipe(processes):
        print(warning, file=sys.stderr)
    if arguments.dry_run:
        print(describe(planned, _jobs(arguments), arguments.gpus, arguments.bandwidth))
        return OK
    if arguments.so_far:
        return so_far(planned)
    return carry_out(planned, _executor(arguments, planned))


def options() -> argparse.ArgumentParser:
    """The parser of the command line."""
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m studies.reproduce",
        description=description,
        epilog=rest,
        formatter_class=command.Prose,
    )
    names = "; ".join(f"of {of.upper()}: {', '.join(map(table_name, tables))}" for of, tables in TABLES.items())
    parser.add_argument("tables", nargs="?", default="all", help=f"comma list of tables, {names}; or all (default)")
    parser.add_argument("--paper", default="san", help=f"{' or '.join(TABLES)}; default %(default)s")
    runs = parser.add_argument_group("runs")
    runs.add_argument("--data", default="digits", help=f"{', '.join(DATA)}; default %(default)s")
    runs.add_argument(
        "--root",
        type=command.path,
        help="folder of the data set; digits and digits16 need none, and fashion none if Debian's package is installed",
    )
    runs.add_argument("--seeds", type=command.whole, default=6, help="runs per row, seeds 0, 1, …; default %(default)s")
    runs.add_argument("--epochs", type=command.whole, help="default: the recipe's")
    candidates = ",".join(map(str, rates.CANDIDATES))
    runs.add_argument("--candidates", help=f"learning rates to try for each family; default {candidates}")
    runs.add_argument("--tune", action="store_true", help="tune the learning rates at full scale too")
    runs.add_argument(
        "--smoke",
        action="store_true",
        help="1 seed and 2 epochs, to check that everything runs; its accuracies mean nothing",
    )
    execution = parser.add_argument_group("execution")
    execution.add_argument("--executor", default="local", help=f"{' or '.join(EXECUTORS)}; default %(default)s")
    execution.add_argument(
        "--jobs", type=command.whole, help="runs at a time; default: one per core, 1 at full scale, 64 on Slurm"
    )
    execution.add_argument("--device", default="auto", help="auto, cpu or cuda; default %(default)s")
    execution.add_argument(
        "--workers", type=command.whole, help="processes that load images, per training process; default: the recipe's"
    )
    execution.add_argument(
        "--accumulate",
        type=command.whole,
        help="pieces into which each process divides the images of a step, to need less memory; default: the recipe's",
    )
    execution.add_argument("--dry-run", action="store_true", help="print runs, hours and memory, and stop")
    execution.add_argument(
        "--bandwidth", type=float, default=BANDWIDTH, help="memory bandwidth of a GPU, GB/s; default %(default)s"
    )
    cluster = parser.add_argument_group("Slurm")
    cluster.add_argument("--partition")
    cluster.add_argument("--time", type=command.whole, default=1440, help="minutes per job; default %(default)s")
    cluster.add_argument("--gpus", type=command.whole, default=0, help="GPUs per run; default %(default)s")
    cluster.add_argument("--mem", type=command.whole, default=8, help="GB per job; default %(default)s")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=command.path,
        help="folder; default runs/reproduce-<data>, and of SASA runs/reproduce-sasa-<data>",
    )
    output.add_argument(
        "--record",
        type=command.path,
        help="a second folder for results and pages, small enough to be kept; runs recorded there are not repeated",
    )
    output.add_argument(
        "--so-far", action="store_true", help="record the runs that are finished, write the pages, and stop"
    )
    output.add_argument(
        "--from", dest="from_", type=command.path, metavar="FOLDER", help="write the pages again from its results.json"
    )
    return parser


def _checked(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments with tables, candidates and folder resolved. Raises ValueError for wrong ones."""
    if arguments.from_:
        arguments.paper = records.read(arguments.from_ / records.FILE).paper
    if arguments.paper not in TABLES:
        raise ValueError(unknown("paper", arguments.paper, [*TABLES]))
    arguments.tables = _tables(arguments.tables, arguments.paper)
    for option, got, valid in (("data set", arguments.data, DATA), ("executor", arguments.executor, EXECUTORS)):
        if got not in valid:
            raise ValueError(unknown(option, got, valid))
    arguments.tuning_seeds = rates.SEEDS
    arguments.candidates = _candidates(arguments.candidates)
    if arguments.smoke:
        vars(arguments).update(SMOKE)
    for field in ("seeds", "epochs", "jobs", "time", "mem", "accumulate"):
        if getattr(arguments, field) is not None:
            positive(field, getattr(arguments, field))
    if not (math.isfinite(arguments.bandwidth) and arguments.bandwidth > 0):
        raise ValueError(f"bandwidth is {arguments.bandwidth}; expected GB/s, such as {BANDWIDTH:g}")
    if arguments.gpus < 0 or (arguments.workers or 0) < 0:
        raise ValueError(f"gpus is {arguments.gpus}, workers {arguments.workers}; expected none or more")
    if arguments.seeds > min(rates.SEEDS):
        raise ValueError(f"seeds is {arguments.seeds}; expected at most {min(rates.SEEDS)}, where tuning seeds begin")
    if arguments.device not in DEVICES:
        raise ValueError(unknown("device", arguments.device, DEVICES))
    of = "" if arguments.paper == "san" else f"-{arguments.paper}"
    default = f"reproduce{of}-{arguments.data}" + "-smoke" * arguments.smoke
    arguments.output = arguments.output or arguments.from_ or Path("runs") / default
    return arguments


def _tables(names: str, of: str) -> list[str]:
    known = TABLES[of]
    if names == "all":
        return list(known)
    by_name = {table_name(table): table for table in known} | {table: table for table in known}
    parts = [part.strip() for part in names.split(",")]
    for part in parts:
        if part not in by_name:
            raise ValueError(unknown("table", part, [*map(table_name, known), "all"]))
    return [table for table in known if table in {by_name[part] for part in parts}]


def _candidates(numbers: str | None) -> tuple[float, ...]:
    try:
        found = rates.CANDIDATES if numbers is None else tuple(sorted({float(part) for part in numbers.split(",")}))
        if not all(math.isfinite(rate) and rate > 0 for rate in found):
            raise ValueError
    except ValueError:
        raise ValueError(f"candidates is {numbers!r}; expected positive numbers such as 0.05,0.1,0.2") from None
    return found


def _request(arguments: argparse.Namespace) -> Request:
    study = Study(
        paper=arguments.paper,
        data=arguments.data,
        epochs=arguments.epochs,
        root=arguments.root,
        device=arguments.device,
        workers=arguments.workers,
        accumulate=arguments.accumulate,
        backend="unfold" if arguments.smoke else None,  # it does not need to be compiled
        facts=SMOKE_FACTS.get(arguments.data, {}) if arguments.smoke else {},
    )
    return Request(
        study=study,
        output=arguments.output,
        tables=arguments.tables,
        seeds=arguments.seeds,
        smoke=arguments.smoke,
        tune=arguments.tune,
        candidates=arguments.candidates,
        tuning_seeds=arguments.tuning_seeds,
        record=arguments.record,
    )


def _executor(arguments: argparse.Namespace, planned: Plan) -> Executor:
    if arguments.executor == "local":
        from studies.training.distributed import device

        device(arguments.device)  # reports a missing device before anything is written
        return Local(_jobs(arguments))
    from studies.reproduction.slurm import Cluster, Slurm

    return Slurm(
        Cluster(
            folder=arguments.output / "slurm",
            partition=arguments.partition,
            minutes=arguments.time,
            gpus=arguments.gpus,
            memory_gb=arguments.mem,
            cpus=1 + planned.request.study.recipe.workers,
            at_once=_jobs(arguments),
        )
    )


def _jobs(arguments: argparse.Namespace) -> int:
    if arguments.jobs:
        return arguments.jobs
    if arguments.executor == "slurm":
        return 64
    return 1 if arguments.data == "folder" else cores()


if __name__ == "__main__":
    from saprof.command import run

    run(main)
