"""The study of a paper's accuracy tables: its runs, its learning rates, and its pages."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saprof import terminal, text
from saprof.command import FAILED, OK
from studies.failures import Preempted
from studies.reproduction import rates, records
from studies.reproduction.budget import Estimate, budget, estimate
from studies.reproduction.executors import Executor, Task
from studies.reproduction.grid import ROBUSTNESS, TABLES, Cell, cells, table_name, unique
from studies.reproduction.records import Results
from studies.reproduction.study import Study, by_seed

SMOKE_IMAGES = 20
"""The number of images that a smoke test rotates and attacks."""
SMOKE_FACTS = {"digits": {"held_out": 100, "train_per_class": 20}, "fashion": {"held_out": 50, "train_per_class": 200}}
"""Settings that leave few images to train on, by data set."""
ROBUST_IMAGES = {"fashion": 1000}
"""The number of images that are rotated and attacked, for data sets with many."""
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
    record: Path | None = None
    """A second folder for results and pages, without runs. Runs that are recorded there are not repeated."""

    @property
    def results_paths(self) -> list[Path]:
        """The files of earlier results: that in `record`, and that in `output`."""
        recorded = [folder / records.FILE for folder in (self.record, self.output) if folder is not None]
        return [path for path in recorded if path.exists()]

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
    before: Results | None = None
    """The results of earlier sessions."""

    @property
    def seeds(self) -> int:
        """The seeds of the request, or of an earlier session if it had more."""
        return max(self.request.seeds, 0 if self.before is None else self.before.study["seeds"])

    def left(self, study: Study) -> list[Task]:
        """The runs of the requested tables that earlier sessions have not recorded."""
        every = self.tasks(self.cells(study, self.request.tables), self.request.seeds)
        return records.unrecorded(every, self.before)

    def cells(self, study: Study, tables: Sequence[str] | None = None) -> list[Cell]:
        return [cell for table in tables or self.tables for cell in cells(table, study)]

    def tasks(self, every: Sequence[Cell], seeds: int) -> list[Task]:
        """One run per network and seed; those of Tables 9 and 10 are also judged for robustness."""
        judged = {cell.key for cell in every if cell.paper == "san" and cell.table in ROBUSTNESS}
        images = SMOKE_IMAGES if self.request.smoke else ROBUST_IMAGES.get(self.request.study.data)
        distinct = unique(every)
        configs = by_seed([cell.config for cell in distinct], seeds, self.request.output / "runs")
        keys = [cell.key for cell in distinct] * seeds
        return [
            Task(config=config, judged=key in judged, images=images) for config, key in zip(configs, keys, strict=True)
        ]


def plan(request: Request) -> Plan:
    """The runs that a request needs. Raises ValueError if its folder holds another study."""
    before = _earlier(request)
    tables = _with_earlier(request, before)
    if before is not None and before.learning_rates is not None:
        request = replace(request, tune=True)  # a session without --tune goes on with the rates that were chosen
    every = [cell for table in tables for cell in cells(table, request.study)]
    families = tuple(dict.fromkeys(cell.group for cell in every)) if request.tuned else ()
    tuning = rates.Tuning(
        study=request.study,
        runs=request.output / "runs",
        families=families,
        candidates=request.candidates,
        seeds=request.tuning_seeds,
    )
    recorded = before and before.learning_rates
    chosen = rates.read(request.rates_path, tuning, recorded) if request.tuned else {}
    tuning = replace(tuning, families=tuple(family for family in families if family not in chosen))
    planned = Plan(request=request, tables=tables, chosen=chosen, tuning=tuning, before=before)
    if before is not None:
        _keep_all(planned, before)
    return planned


def _earlier(request: Request) -> Results | None:
    """The results of earlier sessions, in both folders. Raises ValueError if they are of another study."""
    found = None
    for path in request.results_paths:
        results = records.read(path)
        before = {**results.study, "paper": results.paper}
        now = {"paper": request.study.paper, "data": request.study.data}
        now |= {"epochs": request.study.recipe.epochs, "smoke": request.smoke}
        changed = [f"{key} {before[key]!r}, not {value!r}" for key, value in now.items() if before[key] != value]
        if changed:
            raise ValueError(f"{path} is of a study with {'; '.join(changed)}; choose another --output")
        found = results if found is None else records.merged(found, results)
    return found


def _with_earlier(request: Request, before: Results | None) -> Sequence[str]:
    """The tables of the request, and those of earlier sessions."""
    earlier = () if before is None else before.study["tables"]
    return [table for table in TABLES[request.study.paper] if table in {*earlier, *request.tables}]


def _keep_all(planned: Plan, before: Results) -> None:
    """Raise ValueError if the plan lacks runs of earlier sessions, which its record would then drop."""
    request = planned.request
    if request.tuned and before.learning_rates is None and before.runs:
        raise ValueError(
            f"{request.results_paths[0]} has runs with the recipe's learning rates; omit --tune, or choose another "
            "--output"
        )
    every = planned.cells(request.study.with_rates(planned.chosen))
    expected = [task.config.fingerprint() for task in planned.tasks(every, planned.seeds)]
    records.keep_all(request.results_paths[0], before, expected)


def describe(planned: Plan, jobs: int, gpus: int, bandwidth: float) -> str:
    """The runs of a plan and their cost. Learning rates that are not chosen yet count as the recipe's."""
    request, tuning = planned.request, planned.tuning
    every = planned.cells(request.study.with_rates(planned.chosen))
    tasks = [*tuning.tasks(), *planned.tasks(every, request.seeds)]
    recorded = {} if planned.before is None else planned.before.runs
    counts = f"{len(every)} rows, {len(unique(every))} networks, {request.seeds} seeds"
    parts = [f"tables {', '.join(planned.tables)}: {counts}"]
    parts.append(_by_table(planned, every, estimate(tasks, recorded, bandwidth)))
    parts.append(budget(tasks, recorded, jobs=jobs, gpus=gpus, bandwidth=bandwidth))
    if tuning.families:
        parts.append(f"{len(tuning.tasks())} of these runs choose the learning rates of {', '.join(tuning.families)}")
    elif request.study.full:
        parts.append("learning rates: the recipe's; --tune tries candidates")
    return "\n".join([*parts, "nothing was run"])


def _by_table(planned: Plan, every: Sequence[Cell], whole: Estimate) -> str:
    """The runs of every table, and their hours. Runs that tables share are in each of them."""
    body = []
    for table in planned.tables:
        of_table = [cell for cell in every if cell.table == table]
        runs = planned.tasks(of_table, planned.request.seeds)
        part = whole.of(task.config.fingerprint() for task in runs)
        body.append([table_name(table), f"{len(of_table)}", f"{len(runs)}", f"{len(part.left)}", part.hours])
    if tuning := planned.tuning.tasks():
        part = whole.of(task.config.fingerprint() for task in tuning)
        body.append(["learning rates", "", f"{len(tuning)}", f"{len(part.left)}", part.hours])
    return text.align(["table", "rows", "runs", "left", "hours left"], body, "table")


def carry_out(planned: Plan, executor: Executor) -> int:
    """Do the runs of a plan, record their results, and draw the pages; the exit code."""
    from studies.training.requirements import check_data

    request, chosen = planned.request, planned.chosen
    check_data(request.study.recipe)  # reports a problem once, and not in every run
    records.prepare(request.output)
    with executor:
        if planned.tuning.families:
            with recorded_anyway(planned):
                executor.do(planned.tuning.tasks(), "learning rates")
            chosen = rates.choose(planned.tuning, request.rates_path, planned.chosen)
        with recorded_anyway(planned):
            failed = executor.do(planned.left(request.study.with_rates(chosen)), "runs")
    results = record(planned, chosen)
    draw(request.output, results, request.tables, failed)
    absent = any(not task.recorded_in(results.runs) for task in planned.left(request.study.with_rates(chosen)))
    return FAILED if failed or absent else OK


@contextmanager
def recorded_anyway(planned: Plan) -> Iterator[None]:
    """Record the finished runs if an exception ends the `with` block."""
    try:
        yield
    except Preempted:
        so_far(planned)
        raise
    except BaseException as error:
        try:
            so_far(planned)
        except Exception as another:  # the first reason is the one to report
            error.add_note(f"what is finished could not be recorded: {another}")
        raise


def so_far(planned: Plan) -> int:
    """Record the runs that are finished, and write the pages, without training; the exit code."""
    request, finished = planned.request, planned.tuning.finished()
    records.prepare(request.output)
    chosen = planned.chosen
    if finished.families:
        chosen = rates.choose(finished, request.rates_path, chosen)
    results = record(planned, chosen)
    summary_of(request.output, results)
    print(f"{len(results.runs)} finished runs recorded in {request.output}", file=sys.stderr)
    return OK


def record(planned: Plan, chosen: Mapping[str, Any]) -> Results:
    """Write the results of this and of earlier sessions."""
    request, before = planned.request, _earlier(planned.request)  # read again: another session may have written
    if before is not None:
        chosen = {**chosen, **(before.learning_rates or {}).get("families", {})}
        planned = replace(planned, before=before, chosen=chosen, tables=_with_earlier(request, before))
        _keep_all(planned, before)
    study = request.study.with_rates(chosen)
    facts = {"data": study.data, "epochs": study.recipe.epochs, "backend": study.backend, "seeds": planned.seeds}
    facts |= {"tables": planned.tables, "smoke": request.smoke, "paper": study.paper}
    kept = planned.tuning.rule() | {"families": dict(chosen)} if request.tuned else None
    results = records.collect(facts, kept, planned.tasks(planned.cells(study), planned.seeds), before)
    records.write(request.output / records.FILE, results)
    if request.record is not None:
        records.prepare(request.record)
        records.write(request.record / records.FILE, results)
        summary_of(request.record, results, ("md",))
    return results


def summary_of(folder: Path, results: Results, forms: Sequence[str] = ("md", "csv", "json")) -> None:
    """Write the pages of results."""
    from studies.reproduction import summary

    summary.write(folder, results, forms)


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
