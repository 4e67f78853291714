"""The tables that the papers print: parameters, FLOPs and accuracies, from san.json and sasa.json.

SAN Tables 9 and 10, on rotated and attacked images, are in `saprof.paper.robustness`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import Any

from saprof.text import unknown

PAPERS = {"san": ("san.json", "paper", "paper convention"), "sasa": ("sasa.json", "flop2", "2 per multiply-add")}
"""The file of the printed tables, and the convention of their FLOPs, by name and in words."""

AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""The columns of average precision, in the names of COCO: the mean over thresholds of the intersection over union from
0.50 to 0.95, at 0.50, and at 0.75; then the mean of small, of medium and of large objects."""


def figures(paper: str) -> dict[str, str]:
    """The columns that are compared: the exact count, and the count as the paper rounds it."""
    convention = PAPERS[paper][1]
    return {"params": "params_M", f"flops_{convention}": f"flops_{convention}_G"}


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One printed row, and its model."""

    family: str
    """`convolution`, `pairwise`, `patchwise` or `stand_alone`."""
    network: str
    setting: str | int | None = None
    """The value of the setting that the table varies; None in the row of the baseline, or in a table that varies only
    the network."""
    model: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Together with `model`, the arguments of `saprof.create_model`."""
    top1: float | None = None
    top5: float | None = None
    ap: tuple[float, ...] | None = None
    """The average precision of a detector, one value for each name in AP."""
    params_M: float | None
    flops_G: float
    unreproduced: tuple[str, ...] = ()
    """Which of `params` and `flops` no known convention reproduces."""


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    caption: str
    evaluation_set: str = ""
    """The images of ImageNet on which accuracy was measured, if the table has accuracies of classifiers. SASA's
    `validation` images are 4 % of the training set; the figures of its `test` fit ImageNet's validation set."""
    varies: str | None
    input_size: tuple[int, ...] = (3, 224, 224)
    """The size of the images for which FLOPs are counted."""
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of an abstract: how much one network saves compared with another."""

    about: str
    figure: str
    """`params` or `flops`."""
    table: str
    row: int
    """The number of the row of the network, from 0."""
    against: int
    """The number of the row of the other network."""
    percent: int
    unreproduced: bool = False


@cache
def paper(name: str = "san") -> dict[str, PaperTable]:
    """The printed tables of a paper, by name."""
    return {
        number: PaperTable(**table | {"rows": tuple(_row(row) for row in table["rows"])})
        for number, table in _printed(name)["tables"].items()
    }


def _row(printed: Mapping[str, Any]) -> PaperRow:
    row = PaperRow(**printed)
    return row if row.ap is None else replace(row, ap=tuple(row.ap))


@cache
def claims(name: str) -> tuple[Claim, ...]:
    """The claims of the abstract of a paper about parameters and FLOPs."""
    return tuple(Claim(**claim) for claim in _printed(name).get("claims", ()))


def _printed(name: str) -> dict[str, Any]:
    return json.loads(Path(__file__).with_name(PAPERS[name][0]).read_text(encoding="utf-8"))


def rows(table: str | int, of: str = "san") -> tuple[PaperRow, ...]:
    """The printed rows of one table of a paper; ValueError for an unknown table."""
    name = str(table)
    if name not in paper(of):
        raise ValueError(unknown("table", name, [*paper(of)]))
    return paper(of)[name].rows


def printed_params(params: int) -> Decimal:
    """Parameters in millions, as the tables print them: halves up, one decimal."""
    return rounded(Decimal(params).scaleb(-6), "0.1")


def printed_flops(flops: int) -> Decimal:
    """FLOPs in G, as the tables print them: rounded to two decimals, as by the authors' counter, then to one."""
    return rounded(rounded(Decimal(flops).scaleb(-9), "0.01"), "0.1")


def rounded(value: Decimal, to: str) -> Decimal:
    """The value with as many decimals as `to`; halves are rounded up."""
    return value.quantize(Decimal(to), ROUND_HALF_UP)
