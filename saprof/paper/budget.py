"""Budgets of latency, memory, parameters and FLOPs: how people write them, and what is best within them."""

# What an index into a DataFrame gives is beyond pandas' annotations:
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportReturnType=false

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saprof.paper import evidence

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Quantity:
    """Something that a budget limits, its column in evidence, and how people write it."""

    name: str
    """As in `--max-latency`."""
    noun: str
    column: str
    units: Mapping[str, float] = field(hash=False)
    unit: str
    example: str

    def read(self, written: str) -> float:
        """`30ms` in SI units; ValueError for what is no positive amount of this."""
        match = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\D*)", written.strip())
        scale = {"": 1.0, **self.units}.get(match[2]) if match else None
        if match is None or scale is None or not 0 < float(match[1]) * scale < float("inf"):
            raise ValueError(
                f"--max-{self.name} is {written!r}; expected a positive number in {', '.join(self.units)}, or without "
                f"a unit, such as {self.example}"
            )
        return float(match[1]) * scale

    def show(self, value: float) -> str:
        """In the usual unit, three digits."""
        return f"{value / self.units[self.unit]:.3g} {self.unit}"


_COUNTS = {"k": 1e3, "M": 1e6, "G": 1e9}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6}  # the micro sign, and the Greek letter
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
QUANTITIES = (
    Quantity("latency", "latency", "latency_s", _SECONDS, "ms", "30ms"),
    Quantity("memory", "peak memory", "peak_bytes", _BYTES, "MB", "100MB"),
    Quantity("params", "number of parameters", "params", _COUNTS, "M", "12M"),
    Quantity("flops", "number of FLOPs", "flops_paper", _COUNTS, "G", "2G"),
)
Budget = Mapping[Quantity, float]


def within(lines: pd.DataFrame, budget: Budget) -> pd.DataFrame:
    """The lines of evidence that keep to the budget; a latency is judged by its median."""
    for quantity, most in budget.items():
        lines = lines[lines[quantity.column] <= most]
    return lines


def judge(lines: pd.DataFrame, budget: Budget) -> pd.DataFrame:
    """Of lines that are alike in `evidence.ALIKE`, those within the budget, the most accurate first, with the columns
    `on_front`, `dominated_by` (the first of the front that does, None where none does) and `recommended`."""
    kept = within(lines, budget).sort_values(["top1", "latency_s"], ascending=[False, True])
    front, ahead = evidence.front(kept).to_numpy(), evidence.dominance(kept)
    told = kept.to_dict("records")
    dominated_by = [
        next((_beaten_by(told[i], line) for i in range(len(told)) if front[i] and ahead[i, j]), None)
        for j, line in enumerate(told)
    ]
    best = recommend(kept) if len(kept) else None
    return kept.assign(on_front=front, dominated_by=dominated_by, recommended=[label == best for label in kept.index])


def recommend(lines: pd.DataFrame) -> Hashable:
    """The index of the line to take: of the most accurate ones, the fastest; of those whose median is within its 95 %
    interval, so as fast, the one with the least memory, then FLOPs, then parameters. It is on the front."""
    best = lines[lines["top1"] == lines["top1"].max()]
    fastest = best.loc[best["latency_s"].idxmin()]
    as_fast = best[best["latency_s"] <= fastest["latency_high_s"]]
    return as_fast.sort_values(["peak_bytes", "flops_paper", "params", "latency_s"]).index[0]


def misses(lines: pd.DataFrame, budget: Budget) -> list[str]:
    """Where nothing keeps to the budget: the least of what is limited, within the other limits if something keeps to
    them; of limits that can be kept alone nothing is said, unless all can."""
    found = {}
    for quantity, most in budget.items():
        others = {other: limit for other, limit in budget.items() if other != quantity}
        pool = within(lines, others)
        among = " within the other limits" if others and len(pool) else ""
        pool = pool if len(pool) else lines
        least = pool.loc[pool[quantity.column].idxmin()]
        found[
            f"the smallest {quantity.noun}{among} is {quantity.show(least[quantity.column])}, "
            f"where {quantity.show(most)} is the limit: {evidence.label(least)}"
        ] = least[quantity.column] > most
    return [told for told, missed in found.items() if missed] or list(found)


def _beaten_by(one: Mapping[Hashable, Any], other: Mapping[Hashable, Any]) -> str:
    """The one in words, and whether its latency may as well be the longer."""
    doubt = " (their latencies overlap)" if one["latency_high_s"] >= other["latency_low_s"] else ""
    return f"{evidence.label(one)}{doubt}"
