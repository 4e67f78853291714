"""Measures the groups of a plan that a run folder does not have yet, and those with doubtful rows again."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from saprof.atomic import WriteError
from saprof.measure.calibrate import anchor, calibrate
from saprof.measure.cell import TIMING, Say, measure, row
from saprof.measure.cells import Cell
from saprof.measure.compiled_first import compile_first
from saprof.measure.own_process import measure_in_own_process
from saprof.measure.plan import Group, runnable, short_names, ways, why_not_here
from saprof.measure.progress import Progress, line_of
from saprof.measure.request import How
from saprof.records import calibration
from saprof.records.rows import DOUBTFUL, Row
from saprof.records.runs import Run, read_provenance
from saprof.text import counted

AGAIN_SHARE = 0.2
"""Without a time budget, doubtful rows are measured again for at most this share of the time of the sweep."""


def execute(groups: list[Group], run: Run, how: How, again: bool = False) -> list[Row]:
    """Measure the cells that the run does not have, within the time budget, then the groups with doubtful rows again.
    Returns the rows of all cells that the run has at the end.

    With a time budget, groups are measured again while it lasts. Without one, `again` measures all of them again.
    Otherwise only the groups of this sweep are measured again, for at most `AGAIN_SHARE` of the time that they took. If
    anything is measured, the machine is calibrated before it, and an anchor is measured after it.
    """
    sweep = _Sweep(groups, run, how)
    missing = [group for group in groups if sweep.missing(group)]
    doubtful = [group for group in groups if again and sweep.doubtful(group)]
    if again and not missing and not doubtful:
        sweep.refuse_others()
        print("nothing to measure again: no row is doubtful", file=sys.stderr)
    sweep.add_impossible()
    calibrating = how.roofs and bool(missing or doubtful)
    if missing or doubtful:
        with Progress(len(runnable(groups))).open() as progress:
            compile_first(runnable([*missing, *doubtful]), progress)
            if calibrating:
                _calibrate(run.folder, groups, how.device, progress)
    try:
        sweep.measure(missing)
        sweep.measure_again(groups if again else missing, all_of_them=again)
    except (KeyboardInterrupt, WriteError):
        print(f"\nfinished cells are kept; continue with --resume --output {run.folder}", file=sys.stderr)
        raise
    if calibrating:
        _note_drift(run.folder, how.device)
    return run.rows(cell.key(run.fingerprint) for group in groups for cell in group)


class _Sweep:
    """The groups of a plan, and the run folder that their rows belong to."""

    def __init__(self, groups: list[Group], run: Run, how: How) -> None:
        self.groups, self.run, self.how = groups, run, how
        self.keys = {cell: cell.key(run.fingerprint) for group in groups for cell in group}
        self.names = short_names(groups)
        self.started = time.monotonic()
        self.took: dict[int, float] = {}
        """The seconds of each group that was measured, by its id."""

    def row_of(self, cell: Cell) -> Row | None:
        return self.run.done.get(self.keys[cell])

    def missing(self, group: Group) -> list[Cell]:
        return [cell for cell in runnable([group]) if self.row_of(cell) is None]

    def doubtful(self, group: Group) -> list[Cell]:
        return [cell for cell in group if (known := self.row_of(cell)) is not None and known.status in DOUBTFUL]

    def refuse_others(self) -> None:
        """ValueError if only cells that were not requested have doubtful rows."""
        keys = set(self.keys.values())
        others = [one for key, one in self.run.done.items() if one.status in DOUBTFUL and key not in keys]
        if others:
            raise ValueError(
                f"{self.run.folder} has {counted(len(others), 'doubtful row')} of cells that were not requested; "
                f"expected the options of that run: {shlex.join(read_provenance(self.run.folder).get('argv', []))}"
            )

    def add_impossible(self) -> None:
        """Append a row for each cell that certainly cannot run here."""
        cells = [(cell, why_not_here(cell)) for group in self.groups for cell in group if self.row_of(cell) is None]
        reasons = [(cell, f"{cell.what['name']}: {reason}") for cell, reason in cells if reason is not None]
        facts = {"status": "unsupported"}
        self.run.append([row(cell, self.run.fingerprint, **facts, reason=reason) for cell, reason in reasons])

    def measure(self, groups: list[Group]) -> None:
        """Measure the missing cells of these groups, until the time budget is used."""
        if not groups:
            return
        self.started = time.monotonic()
        with Progress(len(runnable(self.groups))).open() as progress:
            progress.finish(sum(self.row_of(cell) is not None for cell in runnable(self.groups)))
            for group in groups:
                if self.how.time_budget is not None and self._spent >= self.how.time_budget:
                    break
                rows = self._measured(group, progress)
                missing = self.missing(group)
                self._keep({cell: rows[cell] for cell in missing}, progress)
                progress.finish(len(missing))

    def measure_again(self, groups: list[Group], all_of_them: bool) -> None:
        """Measure these groups again if one of their rows is doubtful, the quickest first, while there is time."""
        doubtful = [group for group in groups if self.doubtful(group)]
        if not doubtful:
            return
        limit = self.how.time_budget
        if limit is None and not all_of_them:
            limit = self._spent * (1 + AGAIN_SHARE)
        doubtful.sort(key=lambda group: self.took.get(id(group), 0.0))
        chosen = list(self._within(doubtful, limit))
        cells, measured = (sum(len(self.doubtful(group)) for group in some) for some in (doubtful, chosen))
        print(_about_again(cells, cells - measured, self.run.folder), file=sys.stderr)
        with Progress(len(runnable(chosen))).open() as progress:
            for place, group in enumerate(chosen):
                if limit is not None and self._spent >= limit:
                    left = sum(len(self.doubtful(one)) for one in chosen[place:])
                    hint = f"continue with --resume --output {self.run.folder} --again doubtful"
                    print(f"{counted(left, 'row')} in doubt left when the time budget ran out; {hint}", file=sys.stderr)
                    break
                self._keep(self._measured(group, progress), progress)
                progress.finish(len(runnable([group])))

    def _within(self, groups: Iterable[Group], limit: float | None) -> Iterable[Group]:
        """The groups that can be measured again until `limit`, if each takes as long as before."""
        then = self._spent
        for group in groups:
            then += self.took.get(id(group), 0.0)
            if limit is None or then <= limit:
                yield group

    def _measured(self, group: Group, progress: Progress) -> dict[Cell, Row]:
        """The rows of the cells of a group that may run here."""

        def say(cell: Cell, step: str) -> None:
            progress.at(" ".join(filter(None, [self.names[cell], ways(cell)])), step)

        started, cells = time.monotonic(), runnable([group])
        rows = measure_group(cells, self.run.fingerprint, self.how, say)
        self.took[id(group)] = time.monotonic() - started
        return dict(zip(cells, rows, strict=True))

    def _keep(self, rows: dict[Cell, Row], progress: Progress) -> None:
        """Append rows to the run, and print them."""
        self.run.append(list(rows.values()))
        for cell, one in rows.items():
            progress.above(line_of(one, self.names[cell]))

    @property
    def _spent(self) -> float:
        return time.monotonic() - self.started


def _about_again(cells: int, left: int, folder: Path) -> str:
    """The message before doubtful rows are measured again."""
    if left == cells:
        return f"{counted(cells, 'doubtful row')}; measure again with --resume --output {folder} --again doubtful"
    rest = f"; there is no time for {left}: --resume --output {folder} --again doubtful" if left else ""
    return f"{counted(cells, 'doubtful row')}; measuring {cells - left} again{rest}"


def measure_group(group: Group, fingerprint: str, how: How, say: Say = lambda cell, step: None) -> list[Row]:
    """One row per cell, measured in this process or in one of its own."""
    if how.isolate:
        return measure_in_own_process(group, fingerprint, how, say)
    return measure(group, fingerprint, how.seconds, say)


def _calibrate(folder: Path, groups: list[Group], device: str, progress: Progress) -> None:
    """Keep the roofs of the machine beside the rows, unless the folder has them since the run began."""
    if calibration.read(folder) is None:
        dtypes = dict.fromkeys(cell.subject.dtype for group in groups for cell in group)
        found = calibrate(device, list(dtypes), say=lambda step: progress.at("roofs", f"{TIMING} {step}"))
        calibration.write(folder, found)


def _note_drift(folder: Path, device: str) -> None:
    """Record one more anchor, which shows the drift of the machine since the first one."""
    if roofs := calibration.read(folder):
        calibration.write(folder, calibration.with_anchor(roofs, anchor(device)))
