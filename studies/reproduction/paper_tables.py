"""The study of the paper's accuracy tables: its runs, its learning rates, and its pages."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saprof import terminal
from saprof.command import FAILED, OK
from studies.reproduction import rates, records
from studies.reproduction.budget import budget
from studies.reproduction.executors import Executor, Task
from studies.reproduction.grid import ROBUSTNESS, TABLES, Cell, cells, table_name, unique
from studies.reproduction.study import Study, by_seed

SMOKE_IMAGES = 20
"""The number of images that a smoke test rotates and attacks."""
SMOKE_FACTS = {"held_out": 100}
"""Settings that leave few of the digits to train on."""
LEARNING_RATES = "learning_rates.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The tables to reproduce, and their runs."""

    study: Study
    """With the recipe's learning rates."""
    output: Path
    tables: Sequence[str]
    seeds: int
    smoke: bool
    tune: bool
    """Whether learning rates are chosen at full scale too."""
    candidates: tuple[float, ...]
    tuning_seeds: tuple[int, ...]

    @property
    def tuned(self) -> bool:
        """Whether learning rates are chosen."""
        return not self.study.full or self.tune

    @property
    def rates_path(self) -> Path:
        return self.output / LEARNING_RATES


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a request."""

    request: Request
    tables: Sequence[str]
    """The tables of the request, and those that the folder has already."""
    chosen: Mapping[str, Any]
    """Learning rates that were chosen before, by family."""
    tuning: rates.Tuning
    """The families whose learning rates are still to be chosen."""

    def cells(self, study: Study, tables: Sequence[str] | None = None) -> list[Cell]:
        return [cell for table in tables or self.tables for cell in cells(table, study)]

    def tasks(self, every: Sequence[Cell]) -> list[Task]:
        """One run per network and seed; those of Tables 9 and 10 are also judged for robustness."""
        judged = {cell.key for cell in every if cell.table in ROBUSTNESS}
        images = SMOKE_IMAGES if self.request.smoke else None
        distinct = unique(every)
        configs = by_seed([cell.config for cell in distinct], self.request.seeds, self.request.output / "runs")
        keys = [cell.key for cell in distinct] * self.request.seeds
        return [
            Task(config=config, judged=key in judged, images=images) for config, key in zip(configs, keys, strict=True)
        ]


def plan(request: Request) -> Plan:
    """The runs that a request needs. Raises ValueError if its folder holds another study."""
    tables = _with_earlier(request)
    every = [cell for table in tables for cell in cells(table, request.study)]
    families = tuple(dict.fromkeys(cell.row.family for cell in every)) if request.tuned else ()
    tuning = rates.Tuning(
        study=request.study,
        runs=request.output / "runs",
        families=families,
        candidates=request.candidates,
        seeds=request.tuning_seeds,
    )
    chosen = rates.read(request.rates_path, tuning) if request.tuned else {}
    tuning = replace(tuning, families=tuple(family for family in families if family not in chosen))
    return Plan(request=request, tables=tables, chosen=chosen, tuning=tuning)


def _with_earlier(request: Request) -> Sequence[str]:
    """The tables of the request, and those that its folder has already. Raises ValueError if these are of another
    study."""
    path = request.output / records.FILE
    if not path.exists():
        return request.tables
    before = records.read(path).study
    now = {"data": request.study.data, "epochs": request.study.recipe.epochs, "smoke": request.smoke}
    changed = [f"{key} {before[key]!r}, not {value!r}" for key, value in now.items() if before[key] != value]
    if changed:
        raise ValueError(f"{path} is of a study with {'; '.join(changed)}; choose another --output")
    return [table for table in TABLES if table in {*before["tables"], *request.tables}]


def describe(planned: Plan, jobs: int, gpus: int, bandwidth: float) -> str:
    """The runs of a plan and their cost. Learning rates that are not chosen yet count as the recipe's."""
    request, tuning = planned.request, planned.tuning
    every = planned.cells(request.study.with_rates(planned.chosen))
    tasks = [*tuning.tasks(), *planned.tasks(every)]
    counts = f"{len(every)} rows, {len(unique(every))} networks, {request.seeds} seeds"
    parts = [f"tables {', '.join(planned.tables)}: {counts}"]
    parts.append(budget(tasks, jobs=jobs, gpus=gpus, bandwidth=bandwidth))
    if tuning.families:
        parts.append(f"{len(tuning.tasks())} of these runs choose the learning rates of {', '.join(tuning.families)}")
    elif request.study.full:
        parts.append("learning rates: the recipe's; --tune tries candidates")
    return "\n".join([*parts, "nothing was run"])


def carry_out(planned: Plan, executor: Executor) -> int:
    """Do the runs of a plan, record their results, and draw the pages; the exit code."""
    from studies.training.requirements import check_data

    request, chosen = planned.request, planned.chosen
    check_data(request.study.recipe)  # reports a problem once, and not in every run
    records.prepare(request.output)
    with executor:
        if planned.tuning.families:
            executor.do(planned.tuning.tasks(), "learning rates")
            chosen = rates.choose(planned.tuning, request.rates_path)
        study = request.study.with_rates(chosen)
        failed = executor.do(planned.tasks(planned.cells(study, request.tables)), "runs")
    facts = {"data": study.data, "epochs": study.recipe.epochs, "backend": study.backend, "seeds": request.seeds}
    facts |= {"tables": planned.tables, "smoke": request.smoke}
    kept = json.loads(request.rates_path.read_text(encoding="utf-8")) if request.tuned else None
    results = records.collect(facts, kept, planned.tasks(planned.cells(study)))
    records.write(request.output / records.FILE, results)
    return draw(request.output, results, request.tables, failed)


FIRST = ("family", "setting", "our top-1, mean [95 % over seeds]", "our Δ [Holm]", "verdict")
"""The columns of a page that a narrow terminal shows first."""


def redraw(source: Path, output: Path, tables: Sequence[str]) -> int:
    """Draw the pages of a folder's results, without training; the exit code."""
    results = records.read(source / records.FILE)
    found = [table for table in tables if table in results.study["tables"]]
    if not found:
        has = ", ".join(table_name(table) for table in results.study["tables"])
        raise ValueError(f"{source} has none of the tables asked for; it has {has}")
    return draw(output, results, found, {})


def draw(output: Path, results: records.Results, tables: Sequence[str], failed: Mapping[str, str]) -> int:
    """Write all pages, print those of `tables`, and name what failed; the exit code."""
    from studies.reproduction import report, summary

    pages = summary.write(output, results)
    for page in pages:
        if page.table in tables:
            shown = report.render(page, "md")
            print((terminal.page(shown, FIRST) if sys.stdout.isatty() else shown) + "\n")
    print(f"pages in {output / 'tables'}, all claims in {output / 'README.md'}", file=sys.stderr)
    for folder, sentence in failed.items():
        print(f"failed: {folder}: {sentence}", file=sys.stderr)
    return FAILED if failed or any(page.missing for page in pages if page.table in tables) else OK
