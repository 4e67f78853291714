"""Budgets of latency, memory, parameters and FLOPs: reading them, and the best network within them."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportReturnType=false

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saprof.command import NUMBER
from saprof.paper import evidence
from saprof.quantities import LATENCY, MEMORY, PAPER_FLOPS, PARAMS, Quantity

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Limited:
    """A quantity that a budget limits, and the units in which people write the limit."""

    quantity: Quantity
    name: str
    """The name, as in `--max-latency`."""
    noun: str
    units: Mapping[str, float] = field(hash=False)
    """A count may be without a unit. A latency may not, because 200 could be seconds or, as in the tables, ms."""
    example: str

    @property
    def column(self) -> str:
        return self.quantity.column

    @property
    def names(self) -> str:
        """The units in words."""
        return ", ".join(unit or "units of 1" for unit in self.units)

    def read(self, written: str) -> float:
        """`30ms` in SI units; ValueError for anything but a positive amount."""
        match = re.fullmatch(rf"({NUMBER})\s*(\D*)", written.strip())
        scale = self.units.get(match[2]) if match else None
        if match is None or scale is None or not 0 < float(match[1]) * scale < float("inf"):
            raise ValueError(
                f"--max-{self.name} is {written!r}; expected a positive number in {self.names}, such as {self.example}"
            )
        return float(match[1]) * scale


_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6}  # the micro sign, and the Greek letter
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
LIMITED = (
    Limited(LATENCY, "latency", "latency", _SECONDS, "30ms"),
    Limited(MEMORY, "memory", "peak memory", _BYTES, "100MB"),
    Limited(PARAMS, "params", "number of parameters", _COUNTS, "12M"),
    Limited(PAPER_FLOPS, "flops", "number of FLOPs", _COUNTS, "2G"),
)
Budget = Mapping[Limited, float]


def within(lines: pd.DataFrame, budget: Budget) -> pd.DataFrame:
    """The lines of evidence within the budget; for a latency the median counts."""
    for limited, most in budget.items():
        lines = lines[lines[limited.column] <= most]
    return lines


def judge(lines: pd.DataFrame, budget: Budget) -> pd.DataFrame:
    """The lines within the budget, the most accurate first, with three more columns: `on_front`, `dominated_by` (the
    first line of the front that dominates it, or None) and `recommended`. All lines agree in `evidence.ALIKE`."""
    kept = within(lines, budget).sort_values(["top1", "latency_s"], ascending=[False, True])
    front, ahead = evidence.front(kept).to_numpy(), evidence.dominance(kept)
    records = kept.to_dict("records")
    dominated_by = [
        next((_beaten_by(records[i], line) for i in range(len(records)) if front[i] and ahead[i, j]), None)
        for j, line in enumerate(records)
    ]
    best = recommend(kept) if len(kept) else None
    return kept.assign(on_front=front, dominated_by=dominated_by, recommended=[label == best for label in kept.index])


def recommend(lines: pd.DataFrame) -> Hashable:
    """The index of the line to recommend, which is on the front.

    It is the fastest of the most accurate ones. Lines whose median is within its 95 % interval count as equally fast;
    of these, it is the one with the least memory, then the fewest FLOPs, then the fewest parameters.
    """
    best = lines[lines["top1"] == lines["top1"].max()]
    fastest = best.loc[best["latency_s"].idxmin()]
    as_fast = best[best["latency_s"] <= fastest["latency_high_s"]]
    return as_fast.sort_values(["peak_bytes", "flops_paper", "params", "latency_s"]).index[0]


def misses(lines: pd.DataFrame, budget: Budget) -> list[str]:
    """For a budget that no line meets: the smallest value of each limited quantity. It is the smallest within the other
    limits if a line meets those. Otherwise a limit that some line meets is left out, unless this leaves out all."""
    found = {}
    for limited, most in budget.items():
        others = {other: limit for other, limit in budget.items() if other != limited}
        pool = within(lines, others)
        among = " within the other limits" if others and len(pool) else ""
        pool = pool if len(pool) else lines
        least = pool.loc[pool[limited.column].idxmin()]
        found[
            f"the smallest {limited.noun}{among} is {limited.quantity.text_with_unit(least[limited.column])}, "
            f"where {limited.quantity.text_with_unit(most)} is the limit: {evidence.label(least)}"
        ] = least[limited.column] > most
    return [sentence for sentence, missed in found.items() if missed] or list(found)


def _beaten_by(one: Mapping[Hashable, Any], other: Mapping[Hashable, Any]) -> str:
    """The label of the better line, and whether the intervals of the latencies overlap."""
    doubt = " (their latencies overlap)" if one["latency_high_s"] >= other["latency_low_s"] else ""
    return f"{evidence.label(one)}{doubt}"
