"""What can be chosen of some rows. Each choice narrows what the later ones offer, so that none leads to nothing."""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from saprof.plots.metrics import AXES, FOLLOWERS, WAYS, shape

Values = tuple[Any, ...]


@dataclass(frozen=True)
class Offer:
    """The values of a column that can be chosen, and those that are."""

    options: Values
    picked: Values

    @property
    def is_everything(self) -> bool:
        return len(self.options) > 1 and self.picked == self.options


def narrowed(
    rows: pd.DataFrame, across: str, before: Mapping[str, Offer] | None = None
) -> tuple[pd.DataFrame, dict[str, Offer]]:
    """The chosen rows, and what each column of AXES offers. There is always a row.

    `before` is what was chosen so far: it stays as far as it is still offered. If that was everything, it is
    everything again. Otherwise a few rows are chosen that answer one question: one name along the axis `across`, with
    all backends.
    """
    offers: dict[str, Offer] = {}
    for column in AXES:
        options = _options(rows, column)
        old = (before or {}).get(column)
        kept = tuple(one for one in options if old and len(old.options) > 1 and one in old.picked)
        picked = options if old and old.is_everything else kept or _first(rows, column, across, options)
        offers[column] = Offer(options, picked)
        if len(picked) < len(options):
            rows = rows.loc[rows[column].isin(picked)]
    return rows, offers


def _options(rows: pd.DataFrame, column: str) -> Values:
    """The values of a column; footprints by taps, maps by size, numbers by value, others as they come."""
    if column == "footprint":
        rows = rows.sort_values(["taps", "footprint"])
    elif column == "map":
        rows = rows.sort_values(["h", "w"], ascending=False)
    elif column in ("n", "threads", "compiled"):
        rows = rows.sort_values(column)
    return tuple(value.item() if hasattr(value, "item") else value for value in rows[column].unique())


def _first(rows: pd.DataFrame, column: str, across: str, options: Values) -> Values:
    """The first choice: all values of the axis and of what computed a row; of other columns the forward, or the value
    that most rows have."""
    if column in (across, "run", "threads", *WAYS, *FOLLOWERS.get(across, ())) and column != "kind":
        return _of_one_shape(rows, options) if column == across == "footprint" else options
    if "forward" in options:
        return ("forward",)
    if column == "name":
        return (_most_telling(rows, across),)
    counts = rows[column].value_counts(sort=False)
    return (max(options, key=lambda one: counts.get(one, 0)),)


def _of_one_shape(rows: pd.DataFrame, options: Values) -> Values:
    """The footprints of the shape that has most sizes, such as the squares."""
    sizes = rows.groupby(rows["footprint"].map(shape), sort=False)["taps"].nunique()
    return tuple(one for one in options if shape(one) == sizes.idxmax())


def _most_telling(rows: pd.DataFrame, across: str) -> Any:
    """The name with the most points along the axis, measured in the most ways."""
    found = rows.groupby("name", sort=False)
    points = found[across].nunique() * found["ran"].nunique()
    return points.idxmax()


def shared(offers: Mapping[str, Offer]) -> dict[str, Any]:
    """The columns that have one value, with that value."""
    return {name: offer.options[0] for name, offer in offers.items() if len(offer.options) == 1}
