"""The layers of a profiled network as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from saprof.records.rows import Row

LEAST_CHANGE = 0.005
"""Differences between layers are not shown if they are a smaller share of the network."""


@dataclass
class Layer:
    """A module of a profiled network."""

    row: Row
    layers: list[Layer] = field(default_factory=list)
    """The modules inside, in the order of their first call."""
    operations: list[Row] = field(default_factory=list)
    """The operators that the module itself calls."""

    @property
    def path(self) -> str:
        return self.row.layer or ""

    def walk(self, depth: int | None = None, least_s: float = 0.0, level: int = 0) -> Iterator[tuple[int, Layer | Row]]:
        """This layer, then the layers and operators inside it, each with its level, down to `depth` (None: all levels).

        Operators that take less than `least_s` seconds are left out. If `depth` is given, the operators of a module
        without modules inside are left out too, unless the module is compiled.
        """
        yield level, self
        if depth is not None and level >= depth:
            return
        for layer in self.layers:
            yield from layer.walk(depth, least_s, level + 1)
        for row in self.operations if self.layers or depth is None or self.row.compiled else []:
            if (row.latency_s or 0) >= least_s:
                yield level + 1, row


def tree(rows: Iterable[Row]) -> Layer:
    """The tree of the layers of one network, from its rows. ValueError if no row has the path "", which is that of the
    network itself."""
    layers: dict[str, Layer] = {}
    rows = [row for row in rows if row.kind == "layer"]
    for row in rows:
        if row.operation is None:
            layers.setdefault(row.layer or "", Layer(row))
    if "" not in layers:
        raise ValueError("the rows have no layer with the path ''; expected the rows of a whole profile")
    for path, layer in layers.items():
        if path:
            layers[_parent(path, layers)].layers.append(layer)
    for row in rows:
        if row.operation is not None:
            layers[row.layer or ""].operations.append(row)
    return layers[""]


def _parent(path: str, layers: dict[str, Layer]) -> str:
    """The nearest module around a module that has a row."""
    while path:
        path = path.rpartition(".")[0]
        if path in layers:
            return path
    return ""
