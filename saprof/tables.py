"""SAN Tables 3 to 8 and the row of Sec. 5.3: what we count beside what is printed.

    python -m saprof.tables [--table 3,4,sec5.3] [--format table|md|csv|json] [--output FILE]

FLOPs follow the `paper` convention (see `saprof.cost`). Accuracies are the paper's own, as printed. The exit code is 0
when every figure agrees, 1 when one does not, 2 when the command line is at fault.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saprof import atomic, text
from saprof.command import FAILED, OK, choices

if TYPE_CHECKING:
    from saprof.cost import Cost

FIGURES = {"params": "params_M", "flops_paper": "flops_paper_G"}
"""What is compared: the exact count, and its name as the paper rounds it."""


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One printed row, and the model that it is about."""

    family: str
    """`convolution`, `pairwise`, `patchwise` or `stand_alone`."""
    network: str
    setting: str | int | None = None
    """The value of what the table varies; None is the baseline, or a table that varies the network alone."""
    model: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """With `model`, the arguments of `saprof.create_model`."""
    top1: float
    top5: float
    params_M: float
    flops_G: float


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    caption: str
    evaluation_set: str
    varies: str | None
    rows: tuple[PaperRow, ...]


@cache
def paper() -> dict[str, PaperTable]:
    """The printed tables by name: `3` to `8` and `sec5.3`."""
    tables = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))["tables"]
    return {
        name: PaperTable(**table | {"rows": tuple(PaperRow(**row) for row in table["rows"])})
        for name, table in tables.items()
    }


def rows(table: str | int) -> tuple[PaperRow, ...]:
    """The printed rows of one table; ValueError for a table that is not among them."""
    name = str(table)
    if name not in paper():
        raise ValueError(f"unknown table {name!r}; expected {', '.join(paper())}")
    return paper()[name].rows


def printed_params(params: int) -> Decimal:
    """Parameters in millions, as the tables print them: halves up, one decimal."""
    return _round(Decimal(params).scaleb(-6), "0.1")


def printed_flops(flops: int) -> Decimal:
    """FLOPs in G, as the tables print them: what the authors' counter shows with two decimals, rounded once more."""
    return _round(_round(Decimal(flops).scaleb(-9), "0.01"), "0.1")


def _round(value: Decimal, to: str) -> Decimal:
    return value.quantize(Decimal(to), ROUND_HALF_UP)


def compute(tables: Iterable[str | int] | None = None) -> list[dict[str, Any]]:
    """The rows of `tables` (all by default), flat, with the computed figures beside the printed ones."""
    names = paper() if tables is None else map(str, tables)
    return [_compute(name, row) for name in names for row in rows(name)]


def _compute(name: str, row: PaperRow) -> dict[str, Any]:
    overrides = json.dumps(row.overrides)
    cost = _cost(row.model, overrides)
    flops = cost.flops("paper")
    params_M, flops_G = printed_params(cost.params), printed_flops(flops)
    return {
        "table": name,
        "evaluation_set": paper()[name].evaluation_set,
        "family": row.family,
        "network": row.network,
        "varies": paper()[name].varies,
        "setting": row.setting,
        "model": row.model,
        "overrides": overrides,
        "params": cost.params,
        "params_M": float(params_M),
        "params_M_printed": row.params_M,
        "params_agree": params_M == Decimal(str(row.params_M)),
        "flops_paper": flops,
        "flops_paper_G": float(flops_G),
        "flops_paper_G_printed": row.flops_G,
        "flops_paper_agree": flops_G == Decimal(str(row.flops_G)),
        "top1_printed": row.top1,
        "top5_printed": row.top5,
    }


@cache
def _cost(model: str, overrides: str) -> Cost:
    from saprof.counting import blueprint, count

    return count(blueprint(model, **json.loads(overrides)))


def render(computed: Sequence[Mapping[str, Any]], form: str) -> str:
    """The rows of `compute` in one of `saprof.text.FORMATS`."""
    if form in ("csv", "json"):
        return text.records(computed, form)
    names = dict.fromkeys(row["table"] for row in computed)
    sections = [_section([row for row in computed if row["table"] == name], form) for name in names]
    return "\n\n".join([*sections, _summary(computed)])


def _section(computed: Sequence[Mapping[str, Any]], form: str) -> str:
    table = paper()[computed[0]["table"]]
    varies = [] if table.varies is None else [table.varies]
    header = ["network", "family", *varies, "params", "M", "printed", "FLOPs (paper convention)", "G", "printed"]
    header += ["top-1 as printed", "top-5 as printed"]
    body = [_cells(row) for row in computed]
    title = f"{'## ' if form == 'md' else ''}{table.caption} (accuracy as printed, ImageNet {table.evaluation_set})"
    return f"{title}\n\n{text.align(header, body, form)}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [row["network"], row["family"]]
    if row["varies"] is not None:
        cells.append("" if row["setting"] is None else str(row["setting"]))
    for figure, rounded in FIGURES.items():
        mark = "✓" if row[f"{figure}_agree"] else "✗"
        cells += [f"{row[figure]:,}", f"{row[rounded]}", f"{row[f'{rounded}_printed']} {mark}"]
    return [*cells, f"{row['top1_printed']}", f"{row['top5_printed']}"]


def _summary(computed: Sequence[Mapping[str, Any]]) -> str:
    models = {(row["model"], row["overrides"]) for row in computed}
    figures, wrong = len(FIGURES) * len(computed), len(disagreements(computed))
    return (
        f"{figures - wrong} of {figures} printed figures agree, over {len(models)} models. Compared as the paper "
        "rounds, halves up: FLOPs to 2 decimals and then to 1, parameters to 1."
    )


def disagreements(computed: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence per printed figure that the computed one does not round to."""
    return [
        f"table {row['table']}, {row['model']} {row['overrides']}: {figure} is {row[rounded]} (exactly "
        f"{row[figure]:,}); the paper prints {row[f'{rounded}_printed']}"
        for row in computed
        for figure, rounded in FIGURES.items()
        if not row[f"{figure}_agree"]
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m saprof.tables",
        description="Recompute Params and FLOPs of SAN Tables 3 to 8 and Sec. 5.3 beside the printed figures.",
    )
    parser.add_argument("--table", default="all", help=f"comma list of {', '.join(paper())}; default all")
    parser.add_argument("--format", default="table", help=f"{', '.join(text.FORMATS)}; default %(default)s")
    parser.add_argument("--output", type=Path, help="file to write instead of the terminal")
    arguments = parser.parse_args(argv)
    tables = choices("table", arguments.table, tuple(paper()))
    if arguments.format not in text.FORMATS:
        raise ValueError(f"unknown format {arguments.format!r}; expected {', '.join(text.FORMATS)}")
    _load_torch()
    computed = compute(tables)
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
    """Import torch, whose objects stay: to walk them again and again takes the garbage collector a sixth of the run."""
    import saprof.counting  # noqa: F401

    gc.freeze()


if __name__ == "__main__":
    from saprof.command import run

    run(main)
