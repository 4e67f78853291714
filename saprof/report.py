"""`python -m saprof.report RUN`: a page about a run, with every possible figure, tables and provenance.

The page is one file: it needs no network and none of the files beside it, and it can be read without scripts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from saprof import atomic, command, text
from saprof.markup import Html, tag
from saprof.paper import summary
from saprof.plots import page, profile_page, provenance
from saprof.plots.downloads import rows_as_csv
from saprof.plots.page import Figure, Part, Section, Table
from saprof.records import calibration
from saprof.records.rows import DOUBTFUL, HOST_BOUND, MEASURED, Row
from saprof.records.runs import Recorded, read_run

GENERATOR = "saprof.report"
PAGE = "index.html"
EXAMPLES = 3
"""A warning about more rows than these is folded."""

HOW_TO_READ = (
    "A latency is the median of many calls; its 95 % interval says how well that median is known, not how much calls "
    "differ. Backends of one cell were timed in the same interleaved rounds, so that their ratio holds even where the "
    "machine was disturbed; latencies of different cells were taken at different times.",
    "Rows that are hollow in figures, and ○ and grey in tables, are unstable (calls differed too much for the interval "
    "to close) or contended (other processes ran meanwhile). Believe their order of magnitude, and measure them again "
    "before you draw a conclusion from them.",
    "FLOPs never go without their convention: paper counts as the authors of SAN do, hardware counts 2 per "
    "multiply-add and 1 per other operation.",
)


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.output is None and len(arguments.run) > 1:
        raise ValueError("a report on several runs has no default folder; expected its folder as --output")
    runs = [read_run(folder) for folder in arguments.run]
    print(write(runs, arguments.output or arguments.run[0] / "report"))
    return command.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m saprof.report",
        description="Write a page about recorded runs: figures as SVG and PNG, and "
        "an index.html that needs no other file.",
    )
    parser.add_argument("run", nargs="+", type=command.path, help="run folder of saprof.sweep or saprof.profile")
    parser.add_argument(
        "--output", type=command.path, help="folder of the report (default: report, in the run's folder)"
    )
    return parser


def write(runs: Sequence[Recorded], folder: Path) -> Path:
    """Write the page and its figures; returns the path of the page. The folder is written whole or not at all. An older
    report in it is replaced; ValueError if the folder has other content, or cannot be written."""
    folder = folder.resolve()
    if folder.exists() and not _replaceable(folder):
        raise ValueError(f"{folder} is neither empty nor a report; choose another folder with --output")
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("tmp", "old"))
    try:
        new.mkdir(parents=True)
        (new / PAGE).write_text(render(runs, new), encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise atomic.WriteError.of(folder, error, "; choose another with --output") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder / PAGE


def _replaceable(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    written = folder / PAGE
    return (
        written.is_file() and f'content="{GENERATOR}"' in written.read_text(encoding="utf-8", errors="replace")[:1000]
    )


def render(runs: Sequence[Recorded], folder: Path) -> str:
    """The page. Its figures are also written to the folder."""
    several = len(runs) > 1
    title = f"{len(runs)} runs" if several else runs[0].name
    guide = Section("How to read this", [tag("p", one) for one in HOW_TO_READ])
    found: list[Part] = [guide] if several else []
    for number, run in enumerate(runs, start=1):
        anchor = f"run-{number}"
        shown, missing = _draw(run, folder, f"{anchor}-" if several else "")
        parts = _parts(run, shown, missing, None if several else guide)
        found += [Section(run.name, parts, anchor)] if several else parts
    return page.document(
        f"saprof: {title}",
        GENERATOR,
        profile_page.css(),
        tag("header", tag("p", "saprof", class_="overline"), tag("h1", title)),
        found,
        profile_page.script() if any(run.profiles for run in runs) else "",
    )


def _draw(run: Recorded, folder: Path, prefix: str) -> tuple[list[Figure], dict[str, list[str]]]:
    """The figures of a run, and the reasons why others could not be drawn."""
    from saprof.plots import write
    from saprof.plots.gallery import drawings

    shown: list[Figure] = []
    missing: dict[str, list[str]] = {}
    for drawing in () if run.profiles else drawings(run.rows, run.calibration, run.caption):
        print(f"{run.name}: {drawing.title}", file=sys.stderr)
        try:
            figure = drawing.draw()
        except ValueError as error:
            missing.setdefault(str(error), []).append(drawing.title)
        else:
            _, svg = write(figure, folder / (prefix + drawing.stem))
            shown.append(Figure(drawing.title, svg.read_bytes(), figure.alt, drawing.caption, figure.notes))
    return shown, missing


def _parts(run: Recorded, shown: Sequence[Figure], missing: dict[str, list[str]], guide: Section | None) -> list[Part]:
    """The parts of the page about one run."""
    found = _profiled(run) if run.profiles else _swept(run, shown, missing, guide)
    measured_by = profile_page.GENERATOR if run.profiles else "saprof.sweep"
    return [
        *found,
        Section("Noise and roofs", _roofs(run)),
        Section("Where this was measured", [provenance.facts(run.provenance, measured_by)]),
    ]


def _profiled(run: Recorded) -> list[Part]:
    return [tag("p", tag("b", profile_page.title(run.profiles))), *profile_page.parts(run.profiles)]


def _swept(run: Recorded, shown: Sequence[Figure], missing: dict[str, list[str]], guide: Section | None) -> list[Part]:
    from saprof.plots import frame
    from saprof.plots.findings import extremes

    found = extremes(frame(run.rows), "unfold")
    return [
        tag("p", _lead(run), class_="lead"),
        page.warning(_doubts(run)),
        *([Section("In short", [page.items(found)])] if found else []),
        *([guide] if guide else []),
        Section("Figures", [*shown, _not_drawn(missing)]),
        *_tables(run),
        *_not_run(run.rows),
    ]


def _lead(run: Recorded) -> str:
    measured = [row for row in run.rows if row.status in MEASURED]
    names = {kind: len({row.name for row in run.rows if row.kind == kind}) for kind in ("model", "operator")}
    spelled = {"model": "network", "operator": "operator"}
    what = " and ".join(f"{count} {spelled[kind]}{'s' * (count > 1)}" for kind, count in names.items() if count)
    threads = text.counted(run.provenance.get("threads", 0), "thread")
    return (
        f"{what} on {run.provenance.get('device')}, {threads}: "
        f"{text.counted(len(run.rows), 'cell')}, of which {len(measured) or 'none'} ran. {_times(run.rows)}"
    )


def _times(rows: Sequence[Row]) -> str:
    times = sorted(row.time.replace("T", " ")[:16] for row in rows if row.time)
    if not times:
        return "The rows have no time of measurement."
    return f"Measured {times[0]}" + (f" to {times[-1]}" if times[-1] != times[0] else "") + " UTC."


def _doubts(run: Recorded) -> list[str]:
    """Reasons why results may be wrong."""
    measured = [row for row in run.rows if row.status in MEASURED]
    doubts = [
        _named(f"{len(some)} of {len(measured)} latencies {'is' if len(some) == 1 else 'are'} {status}", some)
        for status in reversed(DOUBTFUL)
        if (some := [row for row in measured if row.status == status])
    ]
    if bound := [row for row in measured if row.status == HOST_BOUND]:
        what = (
            f"{len(bound)} of {len(measured)} rows: the host takes longer to start the work than the GPU to do it, so "
        )
        doubts.append(_named(f"{what}calls one after the other take longer than the latency", bound))
    if wrong := [row for row in run.rows if row.status == "incorrect"]:
        doubts.append(_named(f"{text.counted(len(wrong), 'cell')} did not agree with the reference: not timed", wrong))
    if run.calibration and (warning := run.calibration.warning(row.dtype for row in run.rows)):
        doubts.append(warning)
    if run.calibration and (above := [row for row in measured if calibration.above_roof(row, run.calibration)]):
        what = f"{text.counted(len(above), 'row')} faster than the machine allows, a measurement error"
        doubts.append(_named(what, above))
    if run.provenance.get("dirty"):
        doubts.append("the code had uncommitted changes, so nobody else can run the same code")
    return doubts


def _named(what: str, rows: Sequence[Row]) -> str:
    """What is the matter with some rows, and all of their names; many are folded."""
    if len(rows) <= EXAMPLES:
        return f"{what}: {'; '.join(map(_cell, rows))}"
    return page.folded(what, page.items([_cell(row) for row in rows]))


def _cell(row: Row) -> str:
    """The cell of a row: `aggregation square:3 forward numba, 1×56×56 float32`."""
    return f"{row.name} {row.footprint} {row.mode} {row.ran_on}, {row.n}×{row.h}×{row.w} {row.dtype}"


def _not_drawn(missing: dict[str, list[str]]) -> Html:
    if not missing:
        return Html("")
    reasons = [f"{', '.join(dict.fromkeys(titles))}: {reason}" for reason, titles in missing.items()]
    return tag("div", tag("p", "Figures that could not be drawn:"), page.items(reasons))


def _tables(run: Recorded) -> list[Section]:
    tried = [row for row in run.rows if row.status != "unsupported"]
    found = []
    for title, header, body in summary.tables(run.rows, run.calibration):
        rows = [row for row in tried if row.kind == ("operator" if header[0] == "operator" else "model")]
        looks = ["doubtful" if row.status in DOUBTFUL else "" for row in rows]
        note = page.DOUBTFUL_ROWS if any(looks) else ""
        kept = _without_empty(header, body)
        found.append(Section(title, [Table(title, *kept, looks, note, rows_as_csv(rows, run.calibration))]))
    return found


def _without_empty(header: Sequence[str], body: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The table without its empty columns."""
    kept = [column for column in range(len(header)) if any(line[column] for line in body)]
    return [header[i] for i in kept], [[line[i] for i in kept] for line in body]


def _not_run(rows: Sequence[Row]) -> list[Section]:
    """The cells without a latency, folded by reason, the most frequent one first."""
    left: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.status not in MEASURED:
            left.setdefault((row.status, row.backend, _why(row)), []).append(row)
    if not left:
        return []
    by_count = sorted(left.items(), key=lambda one: -len(one[1]))
    reasons = [
        page.folded(
            f"{text.counted(len(some), 'cell')} {status} on {backend}: {why}", page.items(list(map(_cell, some)))
        )
        for (status, backend, why), some in by_count
    ]
    failed = [row for row in rows if row.status not in MEASURED]
    link = tag("p", page.download("what-did-not-run.csv", rows_as_csv(failed)), class_="tools")
    return [Section("What did not run", [*reasons, link])]


def _why(row: Row) -> str:
    """The reason, without the names of the operator and of the backend."""
    reason = row.reason or ""
    return reason.rpartition(f"{row.backend}: ")[2] if row.status == "unsupported" else reason


def _roofs(run: Recorded) -> list[Html]:
    """The noise and the roofs; or the command that measures the roofs."""
    roofs = run.calibration
    if roofs is None:
        calibrate = tag("code", f"python -m saprof.roofline {run.folder} --calibrate")
        return [tag("p", "Neither was measured with this run. On the same machine, ", calibrate, " adds its roofs.")]
    return provenance.roofs(roofs)


if __name__ == "__main__":
    command.run(main)
