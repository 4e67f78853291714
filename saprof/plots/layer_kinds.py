"""Kinds of layers and operators, such as convolutions, attention and normalisation, and what each kind takes."""

from __future__ import annotations

import re
from collections.abc import Callable

from saprof.records.layers import Layer
from saprof.records.profiles import Profile
from saprof.records.rows import Row

KINDS = {
    "attention": "attention|^saprof::|sdpa",
    "convolution": "conv",
    "product": "linear|matmul|addmm|bmm|^mm$|einsum|^dot$",
    "normalisation": "norm",
    "pooling": "pool|interpolate|upsample",
    "elementwise": (
        "relu|gelu|silu|swish|sigmoid|tanh|softmax|threshold|dropout|^(add|sub|mul|div|neg|exp|sum|mean|maximum|minimum|"
        "clamp|pow|sqrt|rsqrt|addcmul|addcdiv|where)_?$"
    ),
}
"""Regular expressions for the names of operators and the classes of modules, in lower case. The first
that matches is the kind."""
OTHER = "other"
"""Operators that move data, and all operators that match no expression."""
BETWEEN = "between"
"""The time of modules that is in no operator and in no module inside."""
MODULE = "module"
"""A module with modules inside."""
SPELLED = {
    "attention": "attention",
    "convolution": "convolutions",
    "product": "linear layers and matrix products",
    "normalisation": "normalisation",
    "pooling": "pooling",
    "elementwise": "elementwise operations and sums",
    OTHER: "other operators, such as copies",
    BETWEEN: "between operators",
}
COLOURS = {
    "attention": "#f3b38d",
    "convolution": "#a9c3e6",
    "product": "#c3d69a",
    "normalisation": "#ead98f",
    "pooling": "#9fd3cd",
    "elementwise": "#dcbfdd",
    OTHER: "#cfcdc6",
    MODULE: "#e6e3da",
}
"""The colours of boxes; dark text is readable on each of them."""


def kind(node: Layer | Row) -> str:
    """The kind of an operator or of a module; `module` for a module with modules inside. If the class of a module
    matches no kind, the kind of its slowest operator is taken."""
    if isinstance(node, Row):
        return _named(node.operation or node.module or "")
    if any(not inside.row.apart for inside in node.layers):
        return MODULE
    by_class = _named(node.row.module or "")
    longest = max(node.operations, key=lambda row: row.latency_s or 0, default=None)
    return by_class if by_class != OTHER or longest is None else kind(longest)


def _named(name: str) -> str:
    return next((found for found, pattern in KINDS.items() if re.search(pattern, name.lower())), OTHER)


def by_kind(profile: Profile, value: Callable[[Row], float]) -> dict[str, float]:
    """The total of each kind, in the order of `SPELLED`. A module may have more than the sum of its operators and of
    the modules inside. This rest has the kind of the module if it has no parts, else the kind `BETWEEN`."""
    found = dict.fromkeys(SPELLED, 0.0)
    for _, node in profile.root.walk():
        if isinstance(node, Row):
            if not node.apart:
                found[kind(node)] += value(node)
        elif not node.row.apart:
            parts = [*(x.row for x in node.layers), *node.operations]
            inside = [value(part) for part in parts if not part.apart]
            own = kind(node) if not any(inside) else BETWEEN
            found[BETWEEN if own == MODULE else own] += value(node.row) - sum(inside)
    return {name: amount for name, amount in found.items() if amount > 0}
