"""The tables of parameters and FLOPs in the papers: our counts beside the printed figures.

    python -m saprof.tables [--paper san|sasa] [--table 3,4,sec5.3] [--format table|md|csv|json] [--output FILE]

SAN's FLOPs follow the `paper` convention, SASA's `flop2` (see `saprof.operators.cost`). Accuracies are the printed
ones. For some figures of SASA no known convention gives the printed value; the command prints the difference. The
exit code is 0 if every other figure agrees, 1 if one does not, 2 if the command line is wrong.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from saprof import atomic, text
from saprof.command import FAILED, OK, choices, path
from saprof.paper.printed import AP, PAPERS, Claim, claims, figures, paper
from saprof.paper.recount import compute, disagreements, saved
from saprof.terminal import Column, Table, fitted, paragraphs

RANKS = {"top-1": 1, "M": 2, "G": 3, "FLOPs": 4, "params": 5, "top-5": 6}
"""The columns that a narrow terminal may lack, by the first words of their heads. What the paper prints stays."""


def render(computed: Sequence[Mapping[str, Any]], form: str) -> str:
    """The rows of `compute` in one of `saprof.text.FORMATS`."""
    if form in ("csv", "json"):
        return text.records(computed, form)
    names = dict.fromkeys(row["table"] for row in computed)
    sections = [_section([row for row in computed if row["table"] == name], form) for name in names]
    of = computed[0]["paper"]
    lines = [_claimed(claim, computed) for claim in claims(of) if claim.table in names]
    below = [*(["\n".join(lines)] if lines else []), _summary(computed)]
    return "\n\n".join([*sections, *(below if form == "md" else map(paragraphs, below))])


def _section(computed: Sequence[Mapping[str, Any]], form: str) -> str:
    of = computed[0]["paper"]
    table = paper(of)[computed[0]["table"]]
    varies = [] if table.varies is None else [table.varies]
    header = ["network", "family", *varies, "params", "M", "printed", f"FLOPs ({PAPERS[of][2]})", "G", "printed"]
    title = f"{'## ' if form == 'md' else ''}{table.caption}"
    header += [f"{column} as printed" for column in _accuracies(computed[0])]
    if table.evaluation_set:
        title += f" (accuracy as printed, ImageNet {table.evaluation_set})"
    body = [_cells(row) for row in computed]
    if form == "md":
        return f"{title}\n\n{text.align(header, body, form)}"
    columns = [
        Column(_title(header, place), [line[place] for line in body], _rank(head)) for place, head in enumerate(header)
    ]
    return fitted(Table(columns, title))


def _rank(head: str) -> int:
    return RANKS.get(head.partition(" ")[0], max(RANKS.values()) + 1 if head.endswith(" as printed") else 0)


def _title(header: Sequence[str], place: int) -> str:
    """The head of a column; that of a printed figure has its unit."""
    return f"{header[place - 1]} printed" if header[place] == "printed" else header[place]


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [row["network"], row["family"]]
    if row["varies"] is not None:
        cells.append("" if row["setting"] is None else str(row["setting"]))
    for figure, rounded in figures(row["paper"]).items():
        decimals = 0 if isinstance(row[f"{rounded}_printed"], int) else 1
        cells += [f"{row[figure]:,}", f"{row[rounded]:.{decimals}f}", _beside(row, figure, rounded)]
    return cells + [f"{value}" for value in _accuracies(row).values()]


def _accuracies(row: Mapping[str, Any]) -> dict[str, float]:
    """The printed accuracies, by the titles of their columns."""
    columns = {"top-1": "top1_printed", "top-5": "top5_printed"} | {name: f"{name}_printed" for name in AP}
    return {title: row[column] for title, column in columns.items() if row.get(column) is not None}


def _beside(row: Mapping[str, Any], figure: str, rounded: str) -> str:
    """The printed figure, and whether it agrees; if not, also how much larger the exact count is."""
    printed = row[f"{rounded}_printed"]
    if printed is None:
        return "-"
    if row[f"{figure}_agree"]:
        return f"{printed} ✓"
    residual = row[figure] / (1e6 if figure == "params" else 1e9) - printed
    return f"{printed} ✗ {residual:+.2f}".replace("-", "−")


def _claimed(claim: Claim, computed: Sequence[Mapping[str, Any]]) -> str:
    """A claim of an abstract beside the same figure from exact counts."""
    here = saved(claim, computed)
    mark = "✓" if round(here) == claim.percent else "✗"
    what = {"params": "parameters", "flops": "FLOPs"}[claim.figure]
    return f"{claim.about}: {here:.1f} % fewer {what}; the abstract says {claim.percent} % {mark}"


def _summary(computed: Sequence[Mapping[str, Any]]) -> str:
    of = computed[0]["paper"]
    models = {(row["model"], row["overrides"]) for row in computed}
    agree = [row[f"{figure}_agree"] for row in computed for figure in figures(of)]
    right, all_ = agree.count(True), len(agree) - agree.count(None)
    rounding = {
        "san": "Compared as the paper rounds, halves up: FLOPs to 2 decimals and then to 1, parameters to 1.",
        "sasa": "Compared at the digits printed. Beside ✗ is what the exact count leaves over; no convention that we "
        "know gives these figures together with the others.",
    }
    return f"{right} of {all_} printed figures agree, over {len(models)} models. {rounding[of]}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m saprof.tables",
        description="Recompute the parameters and FLOPs of a paper's tables beside the printed figures.",
    )
    parser.add_argument("--paper", default="san", help=f"{' or '.join(PAPERS)}; default %(default)s")
    listed = "; ".join(f"{name}: {', '.join(paper(name))}" for name in PAPERS)
    parser.add_argument("--table", default="all", help=f"comma list ({listed}); default all")
    parser.add_argument("--format", default="table", help=f"{', '.join(text.FORMATS)}; default %(default)s")
    parser.add_argument("--output", type=path, help="file to write instead of the terminal")
    arguments = parser.parse_args(argv)
    of = arguments.paper
    if of not in PAPERS:
        raise ValueError(text.unknown("paper", of, [*PAPERS]))
    tables = choices("table", arguments.table, tuple(paper(of)))
    if arguments.format not in text.FORMATS:
        raise ValueError(text.unknown("format", arguments.format, text.FORMATS))
    _load_torch()
    computed = compute(tables, of)
    rendered = render(computed, arguments.format) + "\n"
    if arguments.output is None:
        sys.stdout.write(rendered)
    else:
        atomic.write(arguments.output, rendered.encode())
    wrong = disagreements(computed)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return FAILED if wrong else OK


def _load_torch() -> None:
    """Import torch and exclude its objects from garbage collection, which would take a sixth of the run."""
    import saprof.models.counting  # noqa: F401

    gc.freeze()


if __name__ == "__main__":
    from saprof.command import run

    run(main)
