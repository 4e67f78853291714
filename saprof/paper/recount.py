"""The printed tables counted again: exact parameters and FLOPs of every row, beside what the paper prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from saprof.paper.printed import (
    AP,
    PAPERS,
    Claim,
    PaperRow,
    figures,
    paper,
    printed_flops,
    printed_params,
    rounded,
    rows,
)

if TYPE_CHECKING:
    from saprof.operators.cost import Cost


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
    for (figure, short), count, printed in zip(figures(of).items(), exact, (row.params_M, row.flops_G), strict=True):
        here = _as_printed(of, figure, count, printed)
        facts |= {
            figure: count,
            short: float(here),
            f"{short}_printed": printed,
            f"{figure}_agree": None if printed is None else here == Decimal(str(printed)),
            f"{figure}_reproducible": figure.partition("_")[0] not in row.unreproduced,
        }
    precision = {f"{name}_printed": value for name, value in zip(AP, row.ap or (), strict=row.ap is not None)}
    return facts | {"top1_printed": row.top1, "top5_printed": row.top5} | precision


def _as_printed(of: str, figure: str, count: int, printed: float | None) -> Decimal:
    """A count, rounded as in the paper: FLOPs of SAN twice, all others once, to as many decimals as are printed."""
    if of == "san":
        return printed_params(count) if figure == "params" else printed_flops(count)
    decimals = "1" if isinstance(printed, int) else "0.1"
    return rounded(Decimal(count).scaleb(-6 if figure == "params" else -9), decimals)


@cache
def _cost(model: str, overrides: str, *input_size: int) -> Cost:
    from saprof.models.counting import blueprint, count

    return count(blueprint(model, **json.loads(overrides)), input_size)


def saved(claim: Claim, computed: Sequence[Mapping[str, Any]]) -> float:
    """The percentage that follows from the exact counts."""
    table = [row for row in computed if row["table"] == claim.table]
    figure = next(name for name in figures(table[0]["paper"]) if name.startswith(claim.figure))
    return 100 * (1 - table[claim.row][figure] / table[claim.against][figure])


def disagreements(computed: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence per printed figure that differs from the rounded count, although its convention is known."""
    return [
        f"table {row['table']}, {row['model']} {row['overrides']}: {figure} is {row[rounded]} (exactly "
        f"{row[figure]:,}); the paper prints {row[f'{rounded}_printed']}"
        for row in computed
        for figure, rounded in figures(row["paper"]).items()
        if row[f"{figure}_agree"] is False and row[f"{figure}_reproducible"]
    ]
