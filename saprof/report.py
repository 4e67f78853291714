"""`python -m saprof.report RUN`: a page about a run, with every possible figure, tables and provenance.

The page is one file: it needs no network, no script, and none of the files beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from saprof import atomic, command
from saprof.markup import Html, tag
from saprof.paper import summary
from saprof.plots import page, profile_page, provenance
from saprof.records import calibration
from saprof.records.rows import DOUBTFUL, MEASURED, Row
from saprof.records.runs import Recorded, read_run

GENERATOR = "saprof.report"
PAGE = "index.html"
EXAMPLES = 6
"""The number of rows that a warning names."""

HOW_TO_READ = (
    "A latency is the median of many calls; its 95 % interval says how well that median is known, not how much calls "
    "differ. Backends of one cell were timed in the same interleaved rounds, so that their ratio holds even where the "
    "machine was disturbed; latencies of different cells were taken at different times.",
    "Rows marked * are unstable (calls differed too much for the interval to close) or contended (other processes ran "
    "meanwhile). Believe their order of magnitude, and measure them again before you rest anything on them.",
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
    anchors = [f"run-{number}" for number in range(1, len(runs) + 1)]
    links = [tag("a", run.name, href=f"#{anchor}") for run, anchor in zip(runs, anchors, strict=True)]
    guide = page.section("How to read this", *(tag("p", text) for text in HOW_TO_READ), level=3)
    sections = [guide] if several else []
    first = 1
    for run, anchor in zip(runs, anchors, strict=True):
        shown, missing = _draw(run, folder, f"{anchor}-" if several else "", first)
        parts = _parts(run, shown, missing, Html("") if several else guide)
        sections.append(page.section(run.name, *parts, anchor=anchor) if several else tag("section", *parts))
        first += len(shown)
    return page.document(
        f"saprof: {title}",
        GENERATOR,
        profile_page.css(),
        tag("header", tag("p", "saprof", class_="overline"), tag("h1", title)),
        tag("nav", page.items(links)) if several else Html(""),
        tag("main", *sections),
    )


def _draw(run: Recorded, folder: Path, prefix: str, first: int) -> tuple[list[Html], dict[str, list[str]]]:
    """The figures of a run, numbered from `first`, and the reasons why others could not be drawn."""
    from saprof.plots import write
    from saprof.plots.gallery import drawings

    shown: list[Html] = []
    missing: dict[str, list[str]] = {}
    for drawing in () if run.profiles else drawings(run.rows, run.calibration, run.caption):
        print(f"{run.name}: {drawing.title}", file=sys.stderr)
        try:
            figure = drawing.draw()
        except ValueError as error:
            missing.setdefault(str(error), []).append(drawing.title)
        else:
            _, svg = write(figure, folder / (prefix + drawing.stem))
            shown.append(page.picture(svg.read_bytes(), drawing.alt, drawing.caption, first + len(shown)))
    return shown, missing


def _parts(run: Recorded, shown: Sequence[Html], missing: dict[str, list[str]], guide: Html) -> list[Html]:
    """The parts of the page about one run."""
    found = _profiled(run) if run.profiles else _swept(run, shown, missing, guide)
    measured_by = profile_page.GENERATOR if run.profiles else "saprof.sweep"
    return [
        *found,
        page.section("Noise and roofs", *_roofs(run), level=3),
        page.section("Where this was measured", provenance.facts(run.provenance, measured_by), level=3),
    ]


def _profiled(run: Recorded) -> list[Html]:
    return [tag("p", tag("b", profile_page.title(run.profiles))), *profile_page.parts(run.profiles, level=3)]


def _swept(run: Recorded, shown: Sequence[Html], missing: dict[str, list[str]], guide: Html) -> list[Html]:
    from saprof.plots import frame
    from saprof.plots.gallery import extremes

    found = extremes(frame(run.rows), "unfold")
    return [
        tag("p", _lead(run), class_="lead"),
        _doubts(run),
        page.section("In short", page.items(found), level=3) if found else Html(""),
        guide,
        page.section("Figures", *shown, _not_drawn(missing), level=3),
        *_tables(run),
        _not_run(run.rows),
    ]


def _lead(run: Recorded) -> str:
    measured = [row for row in run.rows if row.status in MEASURED]
    names = {kind: len({row.name for row in run.rows if row.kind == kind}) for kind in ("model", "operator")}
    spelled = {"model": "network", "operator": "operator"}
    what = " and ".join(f"{count} {spelled[kind]}{'s' * (count > 1)}" for kind, count in names.items() if count)
    return (
        f"{what} on {run.provenance.get('device')}, {run.provenance.get('threads')} threads: "
        f"{len(run.rows)} cells, of which {len(measured) or 'none'} ran. {_times(run.rows)}"
    )


def _times(rows: Sequence[Row]) -> str:
    times = sorted(row.time.replace("T", " ")[:16] for row in rows if row.time)
    if not times:
        return "The rows have no time of measurement."
    return f"Measured {times[0]}" + (f" to {times[-1]}" if times[-1] != times[0] else "") + " UTC."


def _doubts(run: Recorded) -> Html:
    """Warnings about results that may be wrong."""
    measured = [row for row in run.rows if row.status in MEASURED]
    doubts = [
        f"{len(some)} of {len(measured)} latencies {'is' if len(some) == 1 else 'are'} {status}: {_named(some)}"
        for status in reversed(DOUBTFUL)
        if (some := [row for row in measured if row.status == status])
    ]
    if wrong := [row for row in run.rows if row.status == "incorrect"]:
        doubts.append(f"{len(wrong)} cells differ from the reference, and were not timed: {_named(wrong)}")
    if run.calibration and (reason := run.calibration.why_too_low(row.dtype for row in run.rows)):
        doubts.append(f"the roofs are too low, and shares of them too high: {reason}")
    if run.calibration and (above := [row for row in measured if calibration.above_roof(row, run.calibration)]):
        doubts.append(f"{len(above)} rows are faster than the machine allows, a measurement error: {_named(above)}")
    if run.provenance.get("dirty"):
        doubts.append("the code had uncommitted changes, so nobody else can run the same code")
    if not doubts:
        return Html("")
    return tag("div", tag("p", "Treat with care"), page.items(doubts), class_="doubt", role="note")


def _named(rows: Sequence[Row]) -> str:
    names = [f"{row.name} {row.footprint} {row.mode} {row.backend}" for row in rows[:EXAMPLES]]
    return "; ".join(names) + (f"; and {len(rows) - EXAMPLES} more" if len(rows) > EXAMPLES else "")


def _not_drawn(missing: dict[str, list[str]]) -> Html:
    if not missing:
        return Html("")
    reasons = [f"{', '.join(dict.fromkeys(titles))}: {reason}" for reason, titles in missing.items()]
    return tag("div", tag("p", "Figures that could not be drawn:"), page.items(reasons))


def _tables(run: Recorded) -> list[Html]:
    return [
        page.section(title, page.table(*_without_empty(header, body), title), level=3)
        for title, header, body in summary.tables(run.rows, run.calibration)
    ]


def _without_empty(header: Sequence[str], body: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The table without its empty columns."""
    kept = [column for column in range(len(header)) if any(line[column] for line in body)]
    return [header[i] for i in kept], [[line[i] for i in kept] for line in body]


def _not_run(rows: Sequence[Row]) -> Html:
    """The number of cells without a latency, by reason."""
    left = Counter((row.status, row.backend, _why(row)) for row in rows if row.status not in MEASURED)
    if not left:
        return Html("")
    body = [[f"{count}", *what] for what, count in left.most_common()]
    table = page.table(["cells", "status", "backend", "why"], body, "Cells that did not run")
    return page.section("What did not run", table, level=3)


def _why(row: Row) -> str:
    """The reason, without the name of the operator."""
    reason = row.reason or ""
    return reason.removeprefix(f"{row.name}: ") if row.status == "unsupported" else reason


def _roofs(run: Recorded) -> list[Html]:
    """The noise and the roofs; or the command that measures the roofs."""
    roofs = run.calibration
    if roofs is None:
        calibrate = tag("code", f"python -m saprof.roofline {run.folder} --calibrate")
        return [tag("p", "Neither was measured with this run. On the same machine, ", calibrate, " adds its roofs.")]
    return provenance.roofs(roofs)


if __name__ == "__main__":
    command.run(main)
