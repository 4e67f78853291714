"""The runs that are in some folders, also those that cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from saprof.records.rows import ROWS
from saprof.records.runs import HEADER, RECORDED, Recorded, read_run
from saprof.text import counted

RUNS = "runs"
"""The folder in which commands create runs."""


@dataclass(frozen=True)
class Found:
    """A folder that looks like a run: the run, or the reason why it cannot be read."""

    folder: Path
    run: Recorded | None
    reason: str = ""
    """Why it cannot be read; or what was left out of it."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def time(self) -> str:
        """The time of its newest row, such as `2026-11-22T03:19`; empty if it has none."""
        return max((row.time or "" for row in self.run.rows), default="")[:16] if self.run else ""

    @property
    def label(self) -> str:
        """Its name, its date, and what is in it."""
        if self.run is None:
            return f"{self.name} (cannot be read)"
        what = "profile" if self.run.profiles else counted(len(self.run.cells), "cell")
        return " · ".join(filter(None, [self.name, self.time.replace("T", " "), what]))


def usual_folders() -> list[Path]:
    """The folders in which runs usually are: `runs` here or in a folder above, and the recorded runs."""
    here = Path.cwd()
    above = [folder / RUNS for folder in (here, *here.parents)]
    nearest = [next((folder for folder in above if folder.is_dir()), above[0])]
    return list(dict.fromkeys([*nearest, RECORDED.parents[1] / RUNS, RECORDED]))


def find_runs(folders: Iterable[str | Path]) -> list[Found]:
    """The runs in these folders and below, the newest first; a folder may also be a run itself. Folders that do not
    exist are left out, and those that cannot be read are at the end."""
    places = {place.resolve() for folder in folders for place in _places(Path(folder))}
    found = [_read(place, _changed(place)) for place in sorted(places)]
    return sorted(found, key=lambda one: (one.run is not None, one.time), reverse=True)


def _places(folder: Path) -> Iterator[Path]:
    for name in (HEADER, ROWS):
        yield from (path.parent for path in folder.rglob(name))


def _changed(folder: Path) -> tuple[float, ...]:
    """When the files of a run were changed."""
    return tuple(path.stat().st_mtime for path in sorted(folder.glob("*.json*")))


@cache
def _read(folder: Path, _changed: tuple[float, ...]) -> Found:
    """The run in a folder, which is read anew only after a change."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            run = read_run(folder)
            _ = run.profiles, run.caption
        except ValueError as error:
            return Found(folder, None, str(error))
    return Found(folder, run, "; ".join(str(one.message) for one in warned))
