"""What studies with a single page have in common: they do their runs, keep the results, and show the page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saprof import atomic, command, terminal
from studies.config import Config
from studies.reproduction import records
from studies.reproduction.executors import Executor, Task
from studies.reproduction.records import Results


def do(
    tasks: Sequence[Task],
    recipe: Config,
    executor: Executor,
    folder: Path,
    *,
    study: Mapping[str, Any],
    learning_rates: Mapping[str, Any] | None = None,
) -> Results:
    """Do the runs that the folder has not recorded, and record the results of all."""
    from studies.training.requirements import check_data

    check_data(recipe)  # reports a problem once, and not in every run
    records.prepare(folder)
    path = folder / records.FILE
    before = records.read(path) if path.exists() else None
    with executor:
        executor.do(records.unrecorded(tasks, before))
    results = records.collect(study, learning_rates, tasks, before)
    records.write(path, results)
    return results


def show(page: str, first: Sequence[str], missing: Sequence[str], output: Path, source: Path) -> int:
    """Write the page to a folder, print it, and name missing runs; the exit code. A narrow terminal shows the columns
    `first`; `source` is the folder of the results."""
    records.prepare(output)
    atomic.write(output / "README.md", f"{page}\n".encode())
    print(terminal.page(page, first) if sys.stdout.isatty() else page)
    print(f"page in {output / 'README.md'}, figures in {source / records.FILE}", file=sys.stderr)
    for sentence in missing:
        print(f"failed: {sentence}", file=sys.stderr)
    return command.FAILED if missing else command.OK
