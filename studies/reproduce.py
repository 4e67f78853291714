"""Every accuracy table of the paper from one command.

    python -m studies.reproduce table4 --data digits --seeds 6
    python -m studies.reproduce all --data folder --root /data/imagenet --executor slurm --gpus 8 --partition gpu
    python -m studies.reproduce all --from studies/recorded/digits

Every row is trained over the seeds, rows of several tables that are one network once; Tables 9 and 10 judge those of
Table 3 on turned and attacked images. OUTPUT/runs keeps every run: a finished one is never repeated, an unfinished one
is gone on with. OUTPUT/README.md tells what came of it, OUTPUT/tables has the pages, OUTPUT/results.json suffices to
draw them again.

Exit codes: 0 all is there, 1 some runs failed, 2 the input was at fault, 75 asked to stop, and saved.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saprof.command import FAILED, OK, alone
from saprof.operators.footprint import positive
from saprof.text import unknown
from studies.config import DEVICES
from studies.failures import until_stopped
from studies.reproduction import rates, records
from studies.reproduction.budget import BANDWIDTH, budget
from studies.reproduction.executors import EXECUTORS, Local, Task, cores
from studies.reproduction.grid import DATA, ROBUSTNESS, TABLES, Cell, Study, cells, unique

SMOKE_IMAGES = 20
"""How many images of a smoke test are turned and attacked."""
SMOKE_FACTS = {"held_out": 100}
"""Leaves few of the digits to train on."""
SMOKE = {"seeds": 1, "epochs": 2, "candidates": (0.1,), "tuning_seeds": (1000,)}


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    alone(parser, arguments, "from_", beside=("tables", "output"))
    arguments = _checked(arguments)
    work = _redraw if arguments.from_ else _reproduce
    return until_stopped(lambda: work(arguments))


def _parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m studies.reproduce",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "tables", nargs="?", default="all", help=f"comma list of {', '.join(map(name, TABLES))}; or all (default)"
    )
    what = parser.add_argument_group("what")
    what.add_argument("--data", default="digits", help=f"{', '.join(DATA)}; default %(default)s")
    what.add_argument("--root", type=Path, help="where the data are, if they are not embedded")
    what.add_argument("--seeds", type=int, default=6, help="runs per row, seeds 0, 1, …; default %(default)s")
    what.add_argument("--epochs", type=int, help="default: the recipe's")
    what.add_argument(
        "--candidates", help=f"learning rates that are tried per family; default {','.join(map(str, rates.CANDIDATES))}"
    )
    what.add_argument("--tune", action="store_true", help="choose learning rates at full scale too")
    what.add_argument("--smoke", action="store_true", help="1 seed and 2 epochs, to see that all works; no figures")
    how = parser.add_argument_group("how")
    how.add_argument("--executor", default="local", help=f"{' or '.join(EXECUTORS)}; default %(default)s")
    how.add_argument("--jobs", type=int, help="runs at a time; default: cores here, 1 at full scale, 64 on Slurm")
    how.add_argument("--device", default="auto", help="auto, cpu or cuda; default %(default)s")
    how.add_argument(
        "--workers", type=int, help="processes that load images, per training process; default: the recipe's"
    )
    how.add_argument("--dry-run", action="store_true", help="print runs, hours and memory, and stop")
    how.add_argument("--bandwidth", type=float, default=BANDWIDTH, help="of a GPU's memory, GB/s; default %(default)s")
    cluster = parser.add_argument_group("Slurm")
    cluster.add_argument("--partition")
    cluster.add_argument("--time", type=int, default=1440, help="minutes per job; default %(default)s")
    cluster.add_argument("--gpus", type=int, default=0, help="per run; default %(default)s")
    cluster.add_argument("--mem", type=int, default=8, help="GB per job; default %(default)s")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, help="folder; default runs/reproduce-<data>")
    output.add_argument("--from", dest="from_", type=Path, metavar="FOLDER", help="draw its results.json again")
    return parser


def name(table: str) -> str:
    """What the command line calls a table."""
    return f"table{table}" if table.isdigit() else table


def _checked(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments, tables by their own names; ValueError for what does not fit."""
    arguments.tables = _tables(arguments.tables)
    for what, got, valid in (("data set", arguments.data, DATA), ("executor", arguments.executor, EXECUTORS)):
        if got not in valid:
            raise ValueError(unknown(what, got, valid))
    arguments.tuning_seeds = rates.SEEDS
    arguments.candidates = _candidates(arguments.candidates)
    if arguments.smoke:
        vars(arguments).update(SMOKE)
    for field in ("seeds", "epochs", "jobs", "time", "mem"):
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
    arguments.output = arguments.output or arguments.from_ or Path("runs") / _default_folder(arguments)
    return arguments


def _default_folder(arguments: argparse.Namespace) -> str:
    return f"reproduce-{arguments.data}" + "-smoke" * arguments.smoke


def _tables(asked: str) -> list[str]:
    if asked == "all":
        return list(TABLES)
    called = {name(table): table for table in TABLES} | {table: table for table in TABLES}
    parts = [part.strip() for part in asked.split(",")]
    for part in parts:
        if part not in called:
            raise ValueError(f"{unknown('table', part, [name(table) for table in TABLES])}, or all")
    return [table for table in TABLES if table in {called[part] for part in parts}]


def _candidates(asked: str | None) -> tuple[float, ...]:
    try:
        found = rates.CANDIDATES if asked is None else tuple(sorted({float(part) for part in asked.split(",")}))
        if not all(math.isfinite(rate) and rate > 0 for rate in found):
            raise ValueError
    except ValueError:
        raise ValueError(f"candidates is {asked!r}; expected positive numbers such as 0.05,0.1,0.2") from None
    return found


def _reproduce(arguments: argparse.Namespace) -> int:
    output, runs = arguments.output, arguments.output / "runs"
    study = Study(
        data=arguments.data,
        epochs=arguments.epochs,
        root=arguments.root,
        device=arguments.device,
        workers=arguments.workers,
        backend="unfold" if arguments.smoke else None,  # which need not be compiled
        facts=SMOKE_FACTS if arguments.smoke and arguments.data == "digits" else {},
    )
    tables = _with_earlier(arguments, study)
    every = [cell for table in tables for cell in cells(table, study)]
    families = tuple(dict.fromkeys(cell.row.family for cell in every))
    tuning = rates.Tuning(
        study=study, runs=runs, families=families, candidates=arguments.candidates, seeds=arguments.tuning_seeds
    )
    tuned = not study.full or arguments.tune
    path = output / "learning_rates.json"
    chosen = rates.read(path, tuning) if tuned else {}
    tuning = replace(tuning, families=tuple(family for family in families if family not in chosen) if tuned else ())
    if arguments.dry_run:
        print(_planned(arguments, tuning, _with_rates(study, chosen), tables))
        return OK

    from studies import data

    data.load(study.recipe)  # says what is wrong with it once, and not in every run
    records.prepare(output)
    with _executor(arguments, study.recipe.workers) as executor:
        if tuning.families:
            executor.do(tuning.tasks(), "learning rates")
            chosen = rates.choose(tuning, path)
        study = _with_rates(study, chosen)
        asked = _tasks([cell for table in arguments.tables for cell in cells(table, study)], arguments)
        failed = executor.do(asked, "runs")
    asked_for = {"data": study.data, "epochs": study.recipe.epochs, "backend": study.backend, "seeds": arguments.seeds}
    kept = json.loads(path.read_text(encoding="utf-8")) if tuned else None
    everything = _tasks([cell for table in tables for cell in cells(table, study)], arguments)
    results = records.collect(asked_for | {"tables": tables, "smoke": arguments.smoke}, kept, everything)
    records.write(output / records.FILE, results)
    return _draw(output, results, arguments.tables, failed)


def _with_earlier(arguments: argparse.Namespace, study: Study) -> list[str]:
    """The tables asked for, and those that the folder has already; ValueError if these are of another study."""
    path = arguments.output / records.FILE
    if not path.exists():
        return arguments.tables
    before = records.read(path).study
    now = {"data": study.data, "epochs": study.recipe.epochs, "smoke": arguments.smoke}
    changed = [f"{key} {before[key]!r}, not {value!r}" for key, value in now.items() if before[key] != value]
    if changed:
        raise ValueError(f"{path} is of a study with {'; '.join(changed)}; choose another --output")
    return [table for table in TABLES if table in {*before["tables"], *arguments.tables}]


def _with_rates(study: Study, chosen: Mapping[str, Any]) -> Study:
    return replace(study, rates={family: choice["chosen"] for family, choice in chosen.items()})


def _tasks(every: Sequence[Cell], arguments: argparse.Namespace) -> list[Task]:
    """One run per network and seed; those of Tables 9 and 10 are judged for robustness too. Seed by seed, so that a
    study that is stopped has few rows half done."""
    judged = {cell.key for cell in every if cell.table in ROBUSTNESS}
    images = SMOKE_IMAGES if arguments.smoke else None
    runs = arguments.output / "runs"
    return [
        Task(config=rates.placed(replace(cell.config, seed=seed), runs), judged=cell.key in judged, images=images)
        for seed in range(arguments.seeds)
        for cell in unique(every)
    ]


def _executor(arguments: argparse.Namespace, workers: int) -> Any:
    if arguments.executor == "local":
        return Local(_jobs(arguments))
    from studies.reproduction.slurm import Cluster, Slurm

    return Slurm(
        Cluster(
            folder=arguments.output / "slurm",
            partition=arguments.partition,
            minutes=arguments.time,
            gpus=arguments.gpus,
            memory_gb=arguments.mem,
            cpus=1 + workers,
            at_once=_jobs(arguments),
        )
    )


def _jobs(arguments: argparse.Namespace) -> int:
    if arguments.jobs:
        return arguments.jobs
    if arguments.executor == "slurm":
        return 64
    return 1 if arguments.data == "folder" else cores()


def _planned(arguments: argparse.Namespace, tuning: rates.Tuning, study: Study, tables: Sequence[str]) -> str:
    """What --dry-run prints. Rates that are not chosen yet stand at the recipe's."""
    every = [cell for table in tables for cell in cells(table, study)]
    tasks = _tasks(every, arguments)
    rows = f"tables {', '.join(tables)}: {len(every)} rows, {len(unique(every))} networks, {arguments.seeds} seeds"
    how = {"jobs": _jobs(arguments), "gpus": arguments.gpus, "bandwidth": arguments.bandwidth}
    parts = [rows, budget([*tuning.tasks(), *tasks], **how)]
    if tuning.families:
        parts.append(f"{len(tuning.tasks())} of these runs choose the learning rates of {', '.join(tuning.families)}")
    elif study.full:
        parts.append("learning rates: the recipe's; --tune tries candidates")
    return "\n".join([*parts, "nothing was run"])


def _redraw(arguments: argparse.Namespace) -> int:
    """The pages of a folder's results, without training."""
    results = records.read(arguments.from_ / records.FILE)
    tables = [table for table in arguments.tables if table in results.study["tables"]]
    if not tables:
        has = ", ".join(name(table) for table in results.study["tables"])
        raise ValueError(f"{arguments.from_} has none of the tables asked for; it has {has}")
    return _draw(arguments.output, results, tables, {})


def _draw(output: Path, results: records.Results, tables: Sequence[str], failed: Mapping[str, str]) -> int:
    """Write the pages, print those asked for, and name what failed."""
    from studies.reproduction import report, summary

    pages = summary.write(output, results)
    for page in pages:
        if page.table in tables:
            print(report.render(page, "md") + "\n")
    print(f"pages in {output / 'tables'}, all claims in {output / 'README.md'}", file=sys.stderr)
    for folder, sentence in failed.items():
        print(f"failed: {folder}: {sentence}", file=sys.stderr)
    return FAILED if failed or any(page.missing for page in pages if page.table in tables) else OK


if __name__ == "__main__":
    from saprof.command import run

    run(main)
