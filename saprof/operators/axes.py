"""Axes and counts as expressions of named sizes, such as `r*(k+1)` or `2*n*r*k*p`.

There is one spelling: `*` for products, `+` for sums, `//` for quotients, and parentheses. An expression has no spaces;
a space separates two axes.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce

Sizes = Mapping[str, int]
"""The size of each named axis."""

_OPERATIONS = {"+": operator.add, "*": operator.mul, "//": operator.floordiv}


@dataclass(frozen=True)
class Expression:
    """A sum, product or quotient of integers, named sizes and expressions; expressions can be added and multiplied."""

    operation: str
    parts: tuple[Expression | str | int, ...]

    def at(self, sizes: Sizes) -> int:
        """The value at these sizes."""
        return reduce(_OPERATIONS[self.operation], (_value(part, sizes) for part in self.parts))

    @property
    def names(self) -> frozenset[str]:
        """The named sizes in it."""
        inner = (part.names for part in self.parts if isinstance(part, Expression))
        return frozenset(part for part in self.parts if isinstance(part, str)).union(*inner)

    def __add__(self, other: Expression | int) -> Expression:
        return Expression("+", (self, other))

    def __mul__(self, other: Expression | int) -> Expression:
        return Expression("*", (self, other))

    __radd__ = __add__
    __rmul__ = __mul__


def _value(part: Expression | str | int, sizes: Sizes) -> int:
    if isinstance(part, Expression):
        return part.at(sizes)
    return sizes[part] if isinstance(part, str) else part


@cache
def parse(text: str) -> Expression:
    """Read an expression; ValueError for any other spelling."""
    tokens = re.findall(r"[a-z]+|[0-9]+|//|[*+()]", text)
    try:
        if "".join(tokens) != text:
            raise ValueError
        expression = _sum(tokens)
        if tokens:
            raise ValueError
    except (ValueError, IndexError):
        raise ValueError(
            f"cannot read {text!r}; expected sizes joined by *, + or //, without spaces, such as n*r*k*p or r*(k+1)"
        ) from None
    return expression


def _sum(tokens: list[str]) -> Expression:
    """Take a sum from the front of the tokens."""
    expression = _product(tokens)
    while tokens and tokens[0] == "+":
        tokens.pop(0)
        expression += _product(tokens)
    return expression


def _product(tokens: list[str]) -> Expression:
    """Take a product or quotient from the front of the tokens."""
    expression = _factor(tokens)
    while tokens and tokens[0] in ("*", "//"):
        expression = Expression(tokens.pop(0), (expression, _factor(tokens)))
    return expression


def _factor(tokens: list[str]) -> Expression:
    """Take an integer, a named size or an expression in parentheses from the front of the tokens."""
    token = tokens.pop(0)
    if token == "(":
        expression = _sum(tokens)
        if tokens.pop(0) != ")":
            raise ValueError
        return expression
    if not token.isalnum():
        raise ValueError
    return Expression("+", (int(token) if token.isdigit() else token,))


@cache
def split(axes: str) -> tuple[Expression, ...]:
    """The axes in a list such as `n 2*r k p`."""
    return tuple(map(parse, axes.split()))


def shape_of(axes: str, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a tensor with these axes."""
    return tuple(axis.at(sizes) for axis in split(axes))
