"""How an operator is declared: `Operator`, and the decorator that makes one of a function.

The declarations are in `relations`, `attention` and `stand_alone`.

A declaration is a function at one position. Its name is the name of the operator everywhere. Its parameters name the
inputs and where they are read: `phi_i` at the centre, `psi_j` at one tap, `psi_R` at all taps, as rows. A parameter
without such an ending, such as `relative`, is read as a whole. `inside` comes first if the operator has a softmax over
the taps that the boundary keeps. The body is the literal reference, and the docstring is the equation. The decorator
adds the named axes and the cost. Input checks, dispatch, cost, conformance tests, benchmarks and the columns of the
sweep are derived from the declaration. docs/fused_attention.md says what NaN and infinities reach.

Axes: n image, r channels of φ and ψ, v channels of β, g weight groups or heads, d channels of a head, h w map, oh ow
centres, p = oh·ow, k taps.
A returned tuple is the concatenation [a, b] of its flattened parts.

To add a relation, declare it, in `relations` or in your own code, and add a kernel of the same name to each backend
that is to compute it (`backends/unfold.py`, …).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from saprof.operators.axes import Expression, Sizes, parse, shape_of

if TYPE_CHECKING:
    from saprof.operators.footprint import Footprint

NONE = parse("0")
"""The count of an operator that has no operations of a kind."""
COUNTS = ("macs", "elementwise", "paper")


@dataclass(frozen=True)
class Operator:
    """What one operator is. `saprof.run(operator, *inputs, footprint=…)` computes it."""

    name: str
    equation: str
    source: str
    inputs: tuple[tuple[str, str], ...]
    """(name, axes) of each input, such as ("phi", "n r h w")."""
    output: str
    """Axes of the output; an axis may be an expression of sizes, such as `2*r`."""
    body: Callable[..., Any]
    """The operator at one position, in any precision. Every backend is compared with it."""
    macs: Expression = NONE
    """Multiply-adds."""
    elementwise: Expression = NONE
    """Additions, subtractions and multiplications that are not part of a multiply-add."""
    paper: Expression = NONE
    """What the FLOP counter of the SAN authors counts."""
    degree: int | None = None
    """1 if linear in all inputs together, 2 if linear in each of two inputs, for second derivatives of compiled
    kernels."""
    implied: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The sizes of the axes that a workload does not name, as expressions of those that it names."""
    heads: int | None = None
    """g in the paper's networks, if it does not grow with their channels."""
    masked: bool = False
    """Whether the first argument of the body is the mask of the taps in the softmax."""

    @property
    def family(self) -> str:
        """One of FAMILIES, or the name of the operator if it has none."""
        return next((family for family in FAMILIES if self.name.startswith(f"{family}_")), self.name)

    @property
    def relation(self) -> str:
        """The relation's name within its family."""
        return self.name.removeprefix(self.family).removeprefix("_")

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Where the body reads each input: `i` at the centre, `j` at one tap, `R` at all taps; `` for a parameter."""
        return tuple(read for _, read in _parameters(self.body))

    @property
    def own_dtype(self) -> frozenset[str]:
        """The inputs that may have another dtype than the others: the parameters."""
        return frozenset(name for (name, _), read in zip(self.inputs, self.reads, strict=True) if not read)

    @property
    def schema(self) -> str:
        """The torch.library schema."""
        tensors = ", ".join(f"Tensor {name}" for name, _ in self.inputs)
        return f"{self.name}({tensors}, str footprint, str backend) -> Tensor"

    def __reduce__(self) -> tuple[Callable[[str], Operator], tuple[str]]:
        """Pickle and copy an operator as its name."""
        return _named, (self.name,)

    def bind(self, shapes: Sequence[Sequence[int]], footprint: Footprint) -> dict[str, int]:
        """The sizes of all named axes, from the shapes of the inputs. Raises ValueError that names the axis that does
        not fit."""
        self.check_count(shapes)
        sizes: dict[str, int] = {}
        composed: list[tuple[str, str, int]] = []
        for (name, axes), shape in zip(self.inputs, shapes, strict=True):
            letters = axes.split()
            if len(shape) != len(letters):
                raise ValueError(
                    f"{self.name}: {name} has {len(shape)} axes {tuple(shape)}; expected {len(letters)}: {axes}"
                )
            for letter, size in zip(letters, shape, strict=True):
                if not letter.isalpha():
                    composed.append((letter, name, size))
                elif sizes.setdefault(letter, size) != size:
                    raise self._misfit(letter, name, size, f"{sizes[letter]}, as in {self._first(letter)}")
        for letter, size in sizes.items():
            if letter in "rvgdefhw" and size < 1:
                raise self._misfit(letter, self._first(letter), size, "at least 1")
        oh, ow = footprint.output_size(sizes["h"], sizes["w"])
        if sizes.setdefault("k", footprint.taps) != footprint.taps:
            why = f"{footprint.taps}, the taps of footprint {footprint}"
            raise self._misfit("k", self._first("k"), sizes["k"], why)
        if sizes.setdefault("p", oh * ow) != oh * ow:
            why = f"{oh * ow}, the centres of footprint {footprint} on a {sizes['h']}×{sizes['w']} map"
            raise self._misfit("p", self._first("p"), sizes["p"], why)
        if "g" in sizes and sizes["v"] % sizes["g"]:
            why = f"a divisor of v = {sizes['v']}, since v = g·share"
            raise self._misfit("g", self._first("g"), sizes["g"], why)
        sizes["oh"], sizes["ow"] = oh, ow
        for axis, name, size in composed:
            (expected,) = shape_of(axis, sizes)
            if size != expected:
                raise self._misfit(axis, name, size, str(expected))
        return sizes

    def check_count(self, inputs: Sequence[object]) -> None:
        """Raise ValueError unless there is one input for each declared one."""
        if len(inputs) != len(self.inputs):
            names = ", ".join(name for name, _ in self.inputs)
            raise ValueError(f"{self.name}: got {len(inputs)} inputs; expected {len(self.inputs)}: {names}")

    def _first(self, letter: str) -> str:
        """The first input that has this axis."""
        return next(name for name, axes in self.inputs if letter in axes.split())

    def _misfit(self, letter: str, name: str, size: int, expected: str) -> ValueError:
        return ValueError(f"{self.name}: axis {letter} of {name} is {size}; expected {expected}")

    def input_shapes(self, sizes: Sizes) -> list[tuple[int, ...]]:
        return [shape_of(axes, sizes) for _, axes in self.inputs]

    def output_shape(self, sizes: Sizes) -> tuple[int, ...]:
        return shape_of(self.output, sizes)

    def count(self, what: str, sizes: Sizes) -> int:
        """The number of `macs`, `elementwise` or `paper` operations at these sizes."""
        return getattr(self, what).at(sizes)


FAMILIES = ("pairwise", "patchwise", "stand_alone")
"""The families. The name of an operator starts with its family, except that of the aggregation."""


BACKENDS = ("cuda", "numba", "unfold")
"""The backends, the best first; each is a module of `saprof.backends`."""

DEVICES = {"cuda": ("cuda",), "numba": ("cpu", "cuda"), "unfold": ("cpu", "cuda")}
"""The kinds of devices for which each backend has kernels."""


def no_kernels(device: str) -> str:
    """The reason why a backend cannot compute on a kind of device that is not among its DEVICES."""
    return f"no kernels for {device} tensors"


OPERATORS: dict[str, Operator] = {}
"""The operators that are verified, measured and tested one by one, by name, in the order of their declarations."""

DECLARED: dict[str, Operator] = {}
"""Every operator, by name: those of OPERATORS and the variants of the fused attentions."""


def _named(name: str) -> Operator:
    return DECLARED[name]


_listeners: list[Callable[[Operator], None]] = []


def for_every_operator(do: Callable[[Operator], None]) -> None:
    """Call `do` with each operator, those declared so far and those declared later."""
    for declared in DECLARED.values():
        do(declared)
    _listeners.append(do)


def declare(operator: Operator, *, variant: bool = False) -> None:
    """Add an operator to DECLARED, and to OPERATORS unless it is a variant. Raise ValueError if its name is taken."""
    if operator.name in DECLARED:
        raise ValueError(
            f"{operator.name}: already declared, as {DECLARED[operator.name].equation}; expected a new name"
        )
    DECLARED[operator.name] = operator
    if not variant:
        OPERATORS[operator.name] = operator
    for tell in _listeners:
        tell(operator)


RELATIONS: dict[str, tuple[str, ...]] = {"pairwise": (), "patchwise": ()}
"""The names of the relations of each family; a declaration adds its own."""


def operator(
    *, axes: str, source: str, degree: int | None = None, variant: bool = False, **facts: Any
) -> Callable[[Callable[..., Any]], Operator]:
    """Declare the decorated function as an operator; `axes` reads `n r h w, n r h w -> n r k p`.

    Raises ValueError where the declaration does not fit the function, or its name is taken.
    """
    inputs, _, output = axes.partition("->")
    if degree not in (None, 1, 2):
        raise ValueError(f"degree is {degree!r}; expected 1, 2 or None")

    def make(body: Callable[..., Any]) -> Operator:
        name = body.__name__
        names = [name for name, _ in _parameters(body)]
        shapes = [part.strip() for part in inputs.split(",")]
        counts: dict[str, Any] = {
            what: _count(f"{name}: {what}", facts[what], inputs) for what in COUNTS if what in facts
        }
        if len(names) != len(shapes) or not output.strip():
            raise ValueError(f"{name}: axes are {axes!r}; expected those of {', '.join(names)} -> those of the output")
        for axis in output.split():
            _count(f"{name}: axis {axis} of the output", axis, inputs)
        declared = Operator(
            name=name,
            equation=(body.__doc__ or "").strip(),
            source=source,
            inputs=tuple(zip(names, shapes, strict=True)),
            output=output.strip(),
            body=body,
            degree=degree,
            masked="inside" in inspect.signature(body).parameters,
            **facts | counts,
        )
        if not set(declared.reads) <= {"i", "j", "R", ""}:
            raise ValueError(f"{name}: parameters are read at {', '.join(declared.reads)}; expected _i, _j or _R each")
        object.__setattr__(declared, "__doc__", describe(declared))
        declare(declared, variant=variant)
        if declared.family in RELATIONS:
            RELATIONS[declared.family] += (declared.relation,)
        return declared

    return make


def _count(what: str, text: str, axes: str) -> Expression:
    """A declared count, which is an expression of the sizes of the inputs' axes, of the taps and of the centres."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is {text!r}; expected a product of sizes as text, such as 'n*r*k*p'")
    try:
        count = parse(text)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    known = {*re.findall("[a-z]+", axes), "k", "p", "oh", "ow"}
    if unknown := sorted(count.names - known):
        raise ValueError(f"{what} is {text!r}; expected only sizes of {', '.join(sorted(known))}, not {unknown[0]}")
    return count


def _parameters(body: Callable[..., Any]) -> list[tuple[str, str]]:
    """The name of each input of a body, and where the body reads it."""
    names = [name.rpartition("_") for name in inspect.signature(body).parameters if name != "inside"]
    return [(name, read) if at else (read, "") for name, at, read in names]


def describe(op: Operator) -> str:
    """The docstring of an operator."""
    inputs = "; ".join(f"{name}: {axes}" for name, axes in op.inputs)
    return f"{op.equation} ({op.source})\n\n({inputs}) → {op.output}"
