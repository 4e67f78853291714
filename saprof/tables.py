"""The papers' tables of parameters and FLOPs: what we count beside what is printed.

    python -m saprof.tables [--paper san|sasa] [--table 3,4,sec5.3] [--format table|md|csv|json] [--output FILE]

SAN's FLOPs follow the `paper` convention, SASA's `flop2` (see `saprof.cost`). Accuracies are SAN's own, as printed.
Some of SASA's figures come of no convention that we know: they are shown with what is left over. The exit code is 0
when every other figure agrees, 1 when one does not, 2 when the command line is at fault.
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

PAPERS = {"san": ("san.json", "paper", "paper convention"), "sasa": ("sasa.json", "flop2", "2 per multiply-add")}
"""Where the printed tables are, and the convention of their FLOPs, by name and in words."""


def figures(paper: str) -> dict[str, str]:
    """What is compared: the exact count, and its name as the paper rounds it."""
    convention = PAPERS[paper][1]
    return {"params": "params_M", f"flops_{convention}": f"flops_{convention}_G"}


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
    top1: float | None = None
    top5: float | None = None
    params_M: float | None
    flops_G: float
    unreproduced: tuple[str, ...] = ()
    """Of `params` and `flops` what no convention that we know gives."""


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    caption: str
    evaluation_set: str = ""
    """What accuracies are of, if there are any."""
    varies: str | None
    input_size: tuple[int, ...] = (3, 224, 224)
    """Of the images that FLOPs are counted for."""
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an abstract says a network saves against another."""

    about: str
    figure: str
    """`params` or `flops`."""
    table: str
    row: int
    """The number of the network's row, from 0 on."""
    against: int
    """That of the other's."""
    percent: int
    unreproduced: bool = False


@cache
def paper(name: str = "san") -> dict[str, PaperTable]:
    """The printed tables of a paper by their names."""
    return {
        number: PaperTable(**table | {"rows": tuple(PaperRow(**row) for row in table["rows"])})
        for number, table in _printed(name)["tables"].items()
    }


@cache
def claims(name: str) -> tuple[Claim, ...]:
    """What the abstract of a paper claims, where that is about parameters and FLOPs."""
    return tuple(Claim(**claim) for claim in _printed(name).get("claims", ()))


def _printed(name: str) -> dict[str, Any]:
    return json.loads(Path(__file__).with_name(PAPERS[name][0]).read_text(encoding="utf-8"))


def rows(table: str | int, of: str = "san") -> tuple[PaperRow, ...]:
    """The printed rows of one table of a paper; ValueError for a table that is not among them."""
    name = str(table)
    if name not in paper(of):
        raise ValueError(f"unknown table {name!r}; expected {', '.join(paper(of))}")
    return paper(of)[name].rows


def printed_params(params: int) -> Decimal:
    """Parameters in millions, as the tables print them: halves up, one decimal."""
    return _round(Decimal(params).scaleb(-6), "0.1")


def printed_flops(flops: int) -> Decimal:
    """FLOPs in G, as the tables print them: what the authors' counter shows with two decimals, rounded once more."""
    return _round(_round(Decimal(flops).scaleb(-9), "0.01"), "0.1")


def _round(value: Decimal, to: str) -> Decimal:
    return value.quantize(Decimal(to), ROUND_HALF_UP)


def compute(tables: Iterable[str | int] | None = None, of: str = "san") -> list[dict[str, Any]]:
    """The rows of `tables` (all by default) of a paper, flat, with the computed figures beside the printed ones."""
    names = paper(of) if tables is None else map(str, tables)
    return [_compute(of, name, row) for name in names for row in rows(name, of)]


def _compute(of: str, name: str, row: PaperRow) -> dict[str, Any]:
    overrides = json.dumps(row.overrides)
    table = paper(of)[name]
    cost = _cost(row.model, overrides, *table.input_size)
    facts = {
        "paper": of,
        "table": name,
        "evaluation_set": table.evaluation_set,
        "family": row.family,
        "network": row.network,
        "varies": table.varies,
        "setting": row.setting,
        "model": row.model,
        "overrides": overrides,
    }
    exact = cost.params, cost.flops(PAPERS[of][1])
    for (figure, rounded), count, printed in zip(figures(of).items(), exact, (row.params_M, row.flops_G), strict=True):
        here = _as_printed(of, figure, count, printed)
        facts |= {
            figure: count,
            rounded: float(here),
            f"{rounded}_printed": printed,
            f"{figure}_agree": None if printed is None else here == Decimal(str(printed)),
            f"{figure}_reproducible": figure.partition("_")[0] not in row.unreproduced,
        }
    return facts | {"top1_printed": row.top1, "top5_printed": row.top5}


def _as_printed(of: str, figure: str, count: int, printed: float | None) -> Decimal:
    """A count as the paper rounds: SAN's FLOPs twice, all others once, to as many decimals as are printed."""
    if of == "san":
        return printed_params(count) if figure == "params" else printed_flops(count)
    decimals = "1" if isinstance(printed, int) else "0.1"
    return _round(Decimal(count).scaleb(-6 if figure == "params" else -9), decimals)


@cache
def _cost(model: str, overrides: str, *input_size: int) -> Cost:
    from saprof.counting import blueprint, count

    return count(blueprint(model, **json.loads(overrides)), input_size)


def render(computed: Sequence[Mapping[str, Any]], form: str) -> str:
    """The rows of `compute` in one of `saprof.text.FORMATS`."""
    if form in ("csv", "json"):
        return text.records(computed, form)
    names = dict.fromkeys(row["table"] for row in computed)
    sections = [_section([row for row in computed if row["table"] == name], form) for name in names]
    of = computed[0]["paper"]
    lines = [_claimed(claim, computed) for claim in claims(of) if claim.table in names]
    return "\n\n".join([*sections, *(["\n".join(lines)] if lines else []), _summary(computed)])


def _section(computed: Sequence[Mapping[str, Any]], form: str) -> str:
    of = computed[0]["paper"]
    table = paper(of)[computed[0]["table"]]
    varies = [] if table.varies is None else [table.varies]
    header = ["network", "family", *varies, "params", "M", "printed", f"FLOPs ({PAPERS[of][2]})", "G", "printed"]
    title = f"{'## ' if form == 'md' else ''}{table.caption}"
    if table.evaluation_set:
        header += ["top-1 as printed", "top-5 as printed"]
        title += f" (accuracy as printed, ImageNet {table.evaluation_set})"
    return f"{title}\n\n{text.align(header, [_cells(row) for row in computed], form)}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [row["network"], row["family"]]
    if row["varies"] is not None:
        cells.append("" if row["setting"] is None else str(row["setting"]))
    for figure, rounded in figures(row["paper"]).items():
        decimals = 0 if isinstance(row[f"{rounded}_printed"], int) else 1
        cells += [f"{row[figure]:,}", f"{row[rounded]:.{decimals}f}", _beside(row, figure, rounded)]
    return cells if row["top1_printed"] is None else [*cells, f"{row['top1_printed']}", f"{row['top5_printed']}"]


def _beside(row: Mapping[str, Any], figure: str, rounded: str) -> str:
    """The printed figure, and whether it agrees; of one that does not, how far off the exact count is."""
    printed = row[f"{rounded}_printed"]
    if printed is None:
        return "-"
    if row[f"{figure}_agree"]:
        return f"{printed} ✓"
    residual = row[figure] / (1e6 if figure == "params" else 1e9) - printed
    return f"{printed} ✗ {residual:+.2f}".replace("-", "−")


def _claimed(claim: Claim, computed: Sequence[Mapping[str, Any]]) -> str:
    """What an abstract's claim comes to."""
    here = saved(claim, computed)
    mark = "✓" if round(here) == claim.percent else "✗"
    what = {"params": "parameters", "flops": "FLOPs"}[claim.figure]
    return f"{claim.about}: {here:.1f} % fewer {what}; the abstract says {claim.percent} % {mark}"


def saved(claim: Claim, computed: Sequence[Mapping[str, Any]]) -> float:
    """The percentage that the exact counts give."""
    table = [row for row in computed if row["table"] == claim.table]
    figure = next(name for name in figures(table[0]["paper"]) if name.startswith(claim.figure))
    return 100 * (1 - table[claim.row][figure] / table[claim.against][figure])


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


def disagreements(computed: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence per printed figure that the computed one does not round to, though it is known how it came about."""
    return [
        f"table {row['table']}, {row['model']} {row['overrides']}: {figure} is {row[rounded]} (exactly "
        f"{row[figure]:,}); the paper prints {row[f'{rounded}_printed']}"
        for row in computed
        for figure, rounded in figures(row["paper"]).items()
        if row[f"{figure}_agree"] is False and row[f"{figure}_reproducible"]
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m saprof.tables",
        description="Recompute the parameters and FLOPs of a paper's tables beside the printed figures.",
    )
    parser.add_argument("--paper", default="san", help=f"{' or '.join(PAPERS)}; default %(default)s")
    listed = "; ".join(f"{name}: {', '.join(paper(name))}" for name in PAPERS)
    parser.add_argument("--table", default="all", help=f"comma list ({listed}); default all")
    parser.add_argument("--format", default="table", help=f"{', '.join(text.FORMATS)}; default %(default)s")
    parser.add_argument("--output", type=Path, help="file to write instead of the terminal")
    arguments = parser.parse_args(argv)
    of = arguments.paper
    if of not in PAPERS:
        raise ValueError(text.unknown("paper", of, [*PAPERS]))
    tables = choices("table", arguments.table, tuple(paper(of)))
    if arguments.format not in text.FORMATS:
        raise ValueError(f"unknown format {arguments.format!r}; expected {', '.join(text.FORMATS)}")
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
    """Import torch, whose objects stay: to walk them again and again takes the garbage collector a sixth of the run."""
    import saprof.counting  # noqa: F401

    gc.freeze()


if __name__ == "__main__":
    from saprof.command import run

    run(main)
