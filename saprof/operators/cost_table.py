"""Costs as text and HTML: one line, and a table by module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from saprof.markup import tag
from saprof.terminal import laid_out
from saprof.text import counted


class Counts(Protocol):
    """What is shown of a cost."""

    @property
    def figures(self) -> Mapping[str, int]:
        """The counts, in the order of `HEADER`."""
        ...

    @property
    def layers(self) -> Mapping[str, Any]:
        """The same by module path."""
        ...

    @property
    def uncounted(self) -> Sequence[Any]:
        """The calls without a known cost, each with its `times`."""
        ...


HEADER = ("module", "parameters", "multiply-adds", "FLOPs (paper)", "FLOPs (hardware)", "bytes")


def line(cost: Counts) -> str:
    """The cost in one line."""
    figures = [f"{scaled(number)} {name}" for name, number in zip(HEADER[1:], _figures(cost), strict=True)]
    if cost.uncounted:
        figures.append(f"and {counted(sum(entry.times for entry in cost.uncounted), 'call')} without a known cost")
    return ", ".join(figures)


def table(cost: Counts, depth: int, form: str) -> str:
    """The network, then its modules down to `depth`, each with its children; `form` is `table` or `md`."""
    body = [["  " * level + name, *map(scaled, _figures(part))] for level, name, part in _parts(cost, depth)]
    return laid_out(HEADER, body, form)


def html(cost: Counts, depth: int) -> str:
    """The same table in HTML."""
    head = tag("tr", *(tag("th", name) for name in HEADER))
    body = [
        tag(
            "tr",
            tag("td", name, style=f"text-align:left;padding-left:{level + 0.5}em"),
            *(tag("td", scaled(number)) for number in _figures(part)),
        )
        for level, name, part in _parts(cost, depth)
    ]
    return tag("table", tag("thead", head), tag("tbody", *body))


def scaled(number: int) -> str:
    """A count with three significant digits: `2.53 G`."""
    for unit, size in (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip(".") + f" {unit}"
    return str(number)


def _figures(cost: Counts) -> tuple[int, ...]:
    return tuple(cost.figures.values())


def _parts(cost: Counts, depth: int) -> Iterator[tuple[int, str, Counts]]:
    """Level, last part of the path, and cost of each module."""
    yield 0, "all", cost
    for path, part in cost.layers.items():
        level = path.count(".") + 1
        if level <= depth:
            yield level, path.rpartition(".")[2], part
