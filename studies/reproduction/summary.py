"""The summary of the paper's tables: every claim with its verdict, the learning rates, and where the runs were made."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from saprof import atomic, text
from studies.judging.statistics import VERDICTS
from studies.reproduction.markdown import VERDICT_NOTE, Row, number, probability
from studies.reproduction.records import Results
from studies.reproduction.report import JUDGED, SMOKE, Page, page, render


def summary(pages: Sequence[Page], results: Results) -> str:
    """The page as Markdown."""
    return "\n\n".join(_sections(pages, results))


def _sections(pages: Sequence[Page], results: Results) -> Iterator[str]:
    yield f"# Accuracy tables of {results.paper.upper()}, {results.study['data']}"
    yield f"**{pages[0].caution}**"
    if results.study["smoke"]:
        yield f"{SMOKE}. Every table was trained and judged for too short a time to say anything."
    yield from _claims(pages)
    yield "## Learning rates"
    yield _rates(results)
    yield "## Runs"
    yield _runs(pages, results)
    yield "## Where"
    yield "\n".join(_where(results))


def _claims(pages: Sequence[Page]) -> Iterator[str]:
    yield "## Claims"
    claims = [(shown, row) for shown in pages for row in shown.rows if row["against"] and row["paper"] is not None]
    counted = Counter(row["verdict"].partition(" (")[0] for _, row in claims)
    if not any(shown.smoke for shown in pages):
        yield ", ".join(f"{counted[verdict]} {verdict}" for verdict in VERDICTS) + f", of {len(claims)} comparisons."
        yield VERDICT_NOTE
    for protocol, images in JUDGED.items():
        judged = [(shown, row) for shown, row in claims if shown.protocol == protocol]
        if judged:
            yield f"### Judged on {images} ({protocol})"
            yield _compared(judged)
    if not claims:
        yield "These tables compare nothing."


def _compared(claims: Sequence[tuple[Page, Row]]) -> str:
    """The table of claims that are judged on the same images."""
    header = [
        "table",
        "what",
        "against",
        "measure",
        "paper's Δ",
        "our Δ",
        "p (Holm)",
        "resolvable Δ",
        "verdict",
        "note",
    ]
    body = [
        [
            f"[{shown.table}](tables/{shown.name}.md)",
            f"{row['network']} {row['family']}" + (f", {row['setting']}" if row["setting"] else ""),
            row["against"],
            row["measure"],
            number(row["paper_difference"], "+"),
            number(row.get("difference"), "+"),
            probability(row.get("p_holm")),
            number(row.get("resolvable")),
            row["verdict"],
            row["note"],
        ]
        for shown, row in claims
    ]
    return text.align(header, body, "md")


def _rates(results: Results) -> str:
    kept = results.learning_rates
    if kept is None:
        return "That of the recipe for every family; none was tuned (--tune does)."
    seeds = ", ".join(map(str, kept["seeds"]))
    header = ["family", "chosen", *(f"top-1 at {rate:g}" for rate in kept["candidates"]), "remark"]
    body = []
    for family, choice in kept["families"].items():
        edge = "at the edge of the candidates" if choice["at_the_edge_of_candidates"] else ""
        figures = ["failed" if it["top1"] is None else _shown(it["top1"], results) for it in choice["candidates"]]
        body.append([family, f"{choice['chosen']:g}", *figures, edge])
    return f"Rule: {kept['rule']}. Tuning seeds: {seeds}.\n\n{text.align(header, body, 'md')}"


def _shown(top1: float, results: Results) -> str:
    return "smoke" if results.study["smoke"] else f"{top1:.2f}"


def _runs(pages: Sequence[Page], results: Results) -> str:
    seconds: dict[str, list[float]] = defaultdict(list)
    names: dict[str, Any] = {}
    for run in results.runs.values():
        options = {name: value for name, value in run["facts"]["options"].items() if name != "attention"}
        shown = ", ".join(f"{name} {value}" for name, value in options.items())
        key = f"{run['facts']['model']}" + (f" ({shown})" if shown else "")
        seconds[key].append(run["train_seconds"])
        names[key] = run["params"]
    missing = sorted({sentence for shown in pages for sentence in shown.missing})
    body = [[key, f"{names[key]:,}", f"{len(each)}", f"{fmean(each):.1f}"] for key, each in seconds.items()]
    table = text.align(["network", "params", "runs", "seconds per run"], body, "md") if body else ""
    total = sum(map(sum, seconds.values()))
    head = f"{len(results.runs)} runs finished, {total / 3600:.2f} hours of training; {len(missing)} missing."
    return "\n\n".join(filter(None, [head, table, "\n".join(f"- {sentence}" for sentence in missing)]))


def _where(results: Results) -> Iterator[str]:
    count = Counter(run["where"] for run in results.runs.values())
    for number_, place in enumerate(results.where):
        versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items() if version)
        commit = (place["commit"] or "no commit")[:10] + (" with changes" if place["dirty"] else "")
        threads = f"{text.counted(place['threads'], 'thread')} per run"
        yield (
            f"- {count[number_]} runs: {place['device']}, {threads}, {place['platform']}, Python {place['python']}, "
            f"{versions}, commit {commit}, code {place['code']}"
        )


def write(output: Path, results: Results, forms: Sequence[str] = ("md", "csv", "json")) -> list[Page]:
    """Write all pages of a study in these forms, and their summary."""
    pages = [page(table, results) for table in results.study["tables"]]
    (output / "tables").mkdir(parents=True, exist_ok=True)
    for shown in pages:
        for form in forms:
            atomic.write(output / "tables" / f"{shown.name}.{form}", (render(shown, form) + "\n").encode())
    atomic.write(output / "README.md", (summary(pages, results) + "\n").encode())
    return pages
