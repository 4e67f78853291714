"""The cost of an operation, counted from its declaration; it does not depend on the backend.

Four conventions, always named:

- `paper`: what the SAN authors' counter counts (one per multiply-add of a convolution, plus one per bias; batch norm 2
  and ReLU 1 per element; pooling 1 per input element; the classifier without bias; elementwise relations and
  aggregation 1 per element and tap). It does not count inner products, softmax, residual additions or concatenations.
- `mac`: multiply-adds.
- `flop2`: 2 per multiply-add; what torch's FlopCounterMode reports.
- `hardware`: 2 per multiply-add and 1 per other arithmetic operation, every tap of the border included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from saprof.operators.axes import Sizes
from saprof.operators.declaration import Operator

CONVENTIONS = ("paper", "mac", "flop2", "hardware")


@dataclass(frozen=True)
class Cost:
    """Counts of one operation, or of a network and its parts. `reads` and `writes` are compulsory bytes: each input
    read once, each output written once."""

    macs: int = 0
    elementwise: int = 0
    paper: int = 0
    reads: int = 0
    writes: int = 0
    params: int = 0
    layers: Mapping[str, Cost] = field(default_factory=dict)
    """The cost by module path, children included; empty for a single operation."""
    operators: Mapping[str, Cost] = field(default_factory=dict)
    """The cost by kind of operation, such as `conv2d` or `aggregation`."""

    def flops(self, convention: str) -> int:
        """The FLOPs under one of `CONVENTIONS`."""
        match convention:
            case "paper":
                return self.paper
            case "mac":
                return self.macs
            case "flop2":
                return 2 * self.macs
            case "hardware":
                return 2 * self.macs + self.elementwise
            case _:
                raise ValueError(f"unknown convention {convention!r}; expected one of {', '.join(CONVENTIONS)}")

    @property
    def bytes(self) -> int:
        return self.reads + self.writes

    def __add__(self, other: Cost) -> Cost:
        """The sum of two operations; parts are not carried over."""
        return Cost(
            self.macs + other.macs,
            self.elementwise + other.elementwise,
            self.paper + other.paper,
            self.reads + other.reads,
            self.writes + other.writes,
            self.params + other.params,
        )


def operator_cost(operator: Operator, sizes: Sizes, itemsize: int = 4) -> Cost:
    """The cost of one operator at `sizes`, for elements of `itemsize` bytes."""
    return Cost(
        macs=operator.count("macs", sizes),
        elementwise=operator.count("elementwise", sizes),
        paper=operator.count("paper", sizes),
        reads=itemsize * sum(map(math.prod, operator.input_shapes(sizes))),
        writes=itemsize * math.prod(operator.output_shape(sizes)),
    )
