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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from saprof.operators import cost_table
from saprof.operators.axes import Sizes
from saprof.operators.declaration import Operator
from saprof.text import unknown

if TYPE_CHECKING:
    import pandas as pd

CONVENTIONS = ("paper", "mac", "flop2", "hardware")


class Uncounted(NamedTuple):
    """An operator that was called, but whose cost is not known."""

    operator: str
    """Its full name, such as `mylib::op`."""
    module: str
    """The path of the module that called it; "" is the network itself."""
    times: int


@dataclass(frozen=True)
class Cost:
    """Counts of one operation, or of a network and its parts. `reads` and `writes` are compulsory bytes: each input
    read once, each output written once. `params` are all parameters, also those that are not trained."""

    macs: int = 0
    elementwise: int = 0
    paper: int = 0
    reads: int = 0
    writes: int = 0
    params: int = 0
    layers: Mapping[str, Cost] = field(default_factory=dict, repr=False)
    """The cost by module path, children included; empty for a single operation."""
    operators: Mapping[str, Cost] = field(default_factory=dict, repr=False)
    """The cost by kind of operation, such as `conv2d` or `aggregation`."""
    uncounted: Sequence[Uncounted] = ()
    """What else ran, if `count` was asked to list it."""

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

    def __str__(self) -> str:
        return cost_table.line(self)

    def table(self, depth: int = 2, *, format: str = "table") -> str:
        """The cost of the modules down to `depth`, as text: aligned (`table`) or Markdown (`md`). A module contains its
        children. The first line is the whole network."""
        _check_table(depth, format)
        return cost_table.table(self, depth, format)

    def frame(self) -> pd.DataFrame:
        """A row per module, with the whole network first, as a pandas DataFrame of exact integers."""
        import pandas as pd

        rows = [{"module": path, **part.figures} for path, part in {"": self, **self.layers}.items()]
        return pd.DataFrame(rows).set_index("module")

    def _repr_html_(self) -> str:
        return cost_table.html(self, 2)

    @property
    def figures(self) -> dict[str, int]:
        """The counts by name; the names are those of the fields of rows."""
        return {"params": self.params, **self.operations}

    @property
    def operations(self) -> dict[str, int]:
        """The counts of operations and bytes, without the parameters."""
        return {
            "macs": self.macs,
            "flops_paper": self.paper,
            "flops_hardware": self.flops("hardware"),
            "compulsory_bytes": self.bytes,
        }

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


def _check_table(depth: int, form: str) -> None:
    if not isinstance(depth, int) or depth < 0:
        raise ValueError(f"depth is {depth!r}; expected an integer of at least 0")
    if form not in ("table", "md"):
        raise ValueError(unknown("format", form, ("table", "md")))


def operator_cost(operator: Operator, sizes: Sizes, itemsize: int = 4) -> Cost:
    """The cost of one operator at `sizes`, for elements of `itemsize` bytes."""
    return Cost(
        macs=operator.count("macs", sizes),
        elementwise=operator.count("elementwise", sizes),
        paper=operator.count("paper", sizes),
        reads=itemsize * sum(map(math.prod, operator.input_shapes(sizes))),
        writes=itemsize * math.prod(operator.output_shape(sizes)),
    )


def backward_cost(operator: Operator, sizes: Sizes, needs: Sequence[bool], itemsize: int = 4) -> Cost:
    """The cost of the backward of one operator, given which inputs need a gradient.

    An attention computes both gradients of each of its products, and so costs twice its forward. Any other operator
    costs as often its forward as there are gradients. The `paper` convention counts no backward. The operator reads its
    inputs and the gradient of its output, and writes the gradients of its inputs.
    """
    forward = operator_cost(operator, sizes, itemsize)
    times = 2 * any(needs) if operator.masked or len(needs) > 2 else sum(needs)
    gradients = (math.prod(shape) for shape, need in zip(operator.input_shapes(sizes), needs, strict=True) if need)
    return Cost(
        macs=times * forward.macs,
        elementwise=times * forward.elementwise,
        reads=forward.reads + forward.writes,
        writes=itemsize * sum(gradients),
    )
