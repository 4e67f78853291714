"""SAN Tables 9 and 10 as printed: networks evaluated on rotated and on attacked images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar


@dataclass(frozen=True, kw_only=True)
class Turned:
    """Accuracy in percent under one manipulation. A drop is in points below the accuracy on clean images; the paper
    prints it in brackets."""

    top1: float
    top5: float
    top1_drop: float | None = None
    top5_drop: float | None = None


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """In percent: how often the attack reached its target, and how often the prediction was still right."""

    success_rate: float
    top1: float


@dataclass(frozen=True, kw_only=True)
class TurnedRow:
    family: str
    network: str
    model: str
    manipulations: Mapping[str, Turned]
    """By the names of studies.judging.perturbations.MANIPULATIONS."""


@dataclass(frozen=True, kw_only=True)
class AttackedRow:
    family: str
    network: str
    model: str
    top1: float
    """The accuracy on clean images."""
    attacks: Mapping[str, Attacked]
    """By the names of `attacks()`."""


Row = TypeVar("Row", TurnedRow, AttackedRow)


@dataclass(frozen=True, kw_only=True)
class PaperTable(Generic[Row]):
    caption: str
    evaluation_set: str
    rows: tuple[Row, ...]

    def row(self, model: str) -> Row | None:
        """The row of a model, if the table has one."""
        return next((row for row in self.rows if row.model == model), None)


def turned() -> PaperTable[TurnedRow]:
    """Table 9."""
    return _table("9", TurnedRow, "manipulations", Turned)


def attacked() -> PaperTable[AttackedRow]:
    """Table 10."""
    return _table("10", AttackedRow, "attacks", Attacked)


def attacks() -> dict[str, dict[str, Any]]:
    """Radius, step and number of steps of the attacks of Table 10, by their names here."""
    return _printed()["10"]["attacks"]


@cache
def _printed() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("robustness.json").read_text(encoding="utf-8"))["tables"]


def _table(name: str, row: type[Row], cells: str, cell: type[Any]) -> PaperTable[Row]:
    table = _printed()[name]
    rows = [fields | {cells: {key: cell(**value) for key, value in fields[cells].items()}} for fields in table["rows"]]
    return PaperTable(
        caption=table["caption"],
        evaluation_set=table["evaluation_set"],
        rows=tuple(row(**fields) for fields in rows),
    )
