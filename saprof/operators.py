"""The operators of the two papers, each declared once.

A declaration is a function at one position: its name is the operator's name everywhere, its parameters say what it
reads (`phi_i` at the centre, `psi_j` at one tap, `psi_R` at all taps of the footprint, as rows), its body is the
literal reference, its docstring the equation. The decorator adds the named axes and what the operation costs.
Input checks, dispatch, cost, conformance tests, benchmarks and sweep columns are read off this.

Axes: n image, r channels of φ and ψ, v channels of β, g weight groups, h w map, oh ow centres, p = oh·ow, k taps.
A returned tuple is the concatenation [a, b] of its flattened parts.

To add a relation, declare it here and add a kernel of that name to each backend (`backends/unfold.py`, …).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from saprof.footprint import Footprint

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Operator:
    """What one operator is. Calling it runs it: `pairwise_subtraction(phi, psi, footprint=Footprint.square(7))`."""

    name: str
    equation: str
    source: str
    inputs: tuple[tuple[str, str], ...]
    """(name, axes) of each input, such as ("phi", "n r h w")."""
    output: str
    """Axes of the output; an axis is a product or sum of sizes, such as `2*r`."""
    body: Callable[..., Any]
    """The operator at one position, in any precision: what every backend is judged by."""
    macs: str = "0"
    """Multiply-adds, as axes whose product they are."""
    elementwise: str = "0"
    """Additions, subtractions and multiplications outside of multiply-adds, likewise."""
    paper: str = "0"
    """What the FLOP counter of the SAN authors counts of it, likewise."""

    @property
    def family(self) -> str:
        """`pairwise`, `patchwise`, or the operator's own name."""
        return self.name.partition("_")[0]

    @property
    def relation(self) -> str:
        """The relation's name within its family."""
        return self.name.partition("_")[2]

    @property
    def schema(self) -> str:
        """torch.library schema."""
        tensors = ", ".join(f"Tensor {name}" for name, _ in self.inputs)
        return f"{self.name}({tensors}, str footprint, str backend) -> Tensor"

    def __call__(self, *inputs: Tensor, footprint: Footprint, backend: str = "auto") -> Tensor:
        """Run on `inputs`, in the order of the declaration; `backend="auto"` takes the best that can.

        Raises ValueError (axes, dtype, device, unknown backend), BackendUnavailable, or Unsupported.
        """
        from saprof.backends import call  # here: calling an operator is what loads torch

        return call(self, inputs, footprint, backend)

    def bind(self, shapes: Sequence[Sequence[int]], footprint: Footprint) -> dict[str, int]:
        """Sizes of all named axes, from the shapes of the inputs; ValueError names the axis that does not fit."""
        if len(shapes) != len(self.inputs):
            names = ", ".join(name for name, _ in self.inputs)
            raise ValueError(f"{self.name}: got {len(shapes)} inputs; expected {len(self.inputs)}: {names}")
        sizes: dict[str, int] = {}
        first: dict[str, str] = {}
        for (name, axes), shape in zip(self.inputs, shapes, strict=True):
            letters = axes.split()
            if len(shape) != len(letters):
                raise ValueError(
                    f"{self.name}: {name} has {len(shape)} axes {tuple(shape)}; expected {len(letters)}: {axes}"
                )
            for letter, size in zip(letters, shape, strict=True):
                if sizes.setdefault(letter, size) != size:
                    raise ValueError(
                        f"{self.name}: axis {letter} of {name} is {size}; "
                        f"expected {sizes[letter]}, as in {first[letter]}"
                    )
                first.setdefault(letter, name)
        _check_map(self.name, sizes)
        oh, ow = footprint.output_size(sizes["h"], sizes["w"])
        derived = {
            "k": (footprint.taps, f"the taps of footprint {footprint}"),
            "p": (oh * ow, f"the centres of footprint {footprint} on a {sizes['h']}×{sizes['w']} map"),
        }
        for letter, (size, why) in derived.items():
            if sizes.setdefault(letter, size) != size:
                raise ValueError(
                    f"{self.name}: axis {letter} of {first[letter]} is {sizes[letter]}; expected {size}, {why}"
                )
        if "g" in sizes and (sizes["g"] < 1 or sizes["v"] % sizes["g"]):
            raise ValueError(
                f"{self.name}: axis g of {first['g']} is {sizes['g']}; expected a divisor of v = {sizes['v']}, "
                "since v = g·share"
            )
        return sizes | {"oh": oh, "ow": ow}

    def input_shapes(self, sizes: Sizes) -> list[tuple[int, ...]]:
        return [shape(axes, sizes) for _, axes in self.inputs]

    def output_shape(self, sizes: Sizes) -> tuple[int, ...]:
        return shape(self.output, sizes)

    def count(self, what: str, sizes: Sizes) -> int:
        """How many `macs`, `elementwise` or `paper` operations at these sizes."""
        return math.prod(shape(getattr(self, what), sizes))


def shape(axes: str, sizes: Sizes) -> tuple[int, ...]:
    """Evaluate axes such as `n 2*r k p`."""
    return tuple(eval(axis, {"__builtins__": {}}, dict(sizes)) for axis in axes.split())


def _check_map(name: str, sizes: Sizes) -> None:
    for letter in "hw":
        if sizes[letter] < 1:
            raise ValueError(f"{name}: axis {letter} is {sizes[letter]}; expected a map of at least one position")


OPERATORS: dict[str, Operator] = {}
"""Every declared operator, by name, in order of declaration."""


def operator(*, axes: str, source: str, **costs: str) -> Callable[[Callable[..., Any]], Operator]:
    """Declare the decorated function as an operator; `axes` reads `n r h w, n r h w -> n r k p`."""
    inputs, output = axes.split("->")

    def declare(body: Callable[..., Any]) -> Operator:
        names = [parameter.rpartition("_")[0] for parameter in inspect.signature(body).parameters]
        declared = Operator(
            name=body.__name__,
            equation=(body.__doc__ or "").strip(),
            source=source,
            inputs=tuple(zip(names, (axes.strip() for axes in inputs.split(",")), strict=True)),
            output=output.strip(),
            body=body,
            **costs,
        )
        object.__setattr__(declared, "__doc__", _describe(declared))
        return OPERATORS.setdefault(declared.name, declared)

    return declare


def _describe(op: Operator) -> str:
    inputs = "; ".join(f"{name}: {axes}" for name, axes in op.inputs)
    return f"{op.equation} ({op.source})\n\n({inputs}) → {op.output}"


@operator(
    axes="n r h w, n r h w -> n r k p",
    elementwise="n r k p",
    paper="n r k p",
    source="SAN Sec. 3.1, summation",
)
def pairwise_summation(phi_i, psi_j):
    """δ_ij = φ_i + ψ_j"""
    return phi_i + psi_j


@operator(
    axes="n r h w, n r h w -> n r k p",
    elementwise="n r k p",
    paper="n r k p",
    source="SAN Sec. 3.1, subtraction",
)
def pairwise_subtraction(phi_i, psi_j):
    """δ_ij = φ_i − ψ_j"""
    return phi_i - psi_j


@operator(
    axes="n r h w, n r h w -> n r k p",
    elementwise="n r k p",
    paper="n r k p",
    source="SAN Sec. 3.1, Hadamard product",
)
def pairwise_hadamard_product(phi_i, psi_j):
    """δ_ij = φ_i ⊙ ψ_j"""
    return phi_i * psi_j


@operator(axes="n r h w, n r h w -> n 2*r k p", source="SAN Sec. 3.1, concatenation")
def pairwise_concatenation(phi_i, psi_j):
    """δ_ij = [φ_i, ψ_j]"""
    return phi_i, psi_j


@operator(axes="n r h w, n r h w -> n 1 k p", macs="n r k p", source="SAN Sec. 3.1, dot product")
def pairwise_dot_product(phi_i, psi_j):
    """δ_ij = φ_iᵀ ψ_j"""
    return phi_i @ psi_j


@operator(axes="n r h w, n r h w -> n k 1 p", macs="n r k p", source="SAN Sec. 3.2, star-product")
def patchwise_star_product(phi_i, psi_R):
    """δ_i = [φ_iᵀ ψ_j] for all j in R(i)"""
    return psi_R @ phi_i


@operator(axes="n r h w, n r h w -> n k*k 1 p", macs="n r k k p", source="SAN Sec. 3.2, clique-product")
def patchwise_clique_product(phi_R, psi_R):
    """δ_i = [φ_jᵀ ψ_l] for all j, l in R(i), channel j·k + l"""
    return phi_R @ psi_R.T


@operator(axes="n r h w, n r h w -> n r*(k+1) 1 p", source="SAN Sec. 3.2, concatenation")
def patchwise_concatenation(phi_i, psi_R):
    """δ_i = [φ_i, [ψ_j] for all j in R(i)], the taps of channel c at r + c·k + j"""
    return phi_i, psi_R.T


@operator(axes="n g k p, n v h w -> n v oh ow", macs="n v k p", paper="n v k p", source="SAN Eq. 2 and 4")
def aggregation(alpha_i, beta_R):
    """y_i[c] = Σ_j α_ij[c mod g] β_j[c]"""
    share = beta_R.shape[1] // alpha_i.shape[0]
    return (alpha_i.tile(share, 1) * beta_R.T).sum(1)


RELATIONS = {
    family: tuple(op.relation for op in OPERATORS.values() if op.family == family)
    for family in ("pairwise", "patchwise")
}
"""The relations of each family, as the models know them."""
