"""The cores of the fused attentions: the part of an attention that a backend computes in one kernel, declared here.

    pairwise    y_i = Σ_j softmax_j (γ(ρ(offset_i + factor_i ⊙ map_j))) ⊙ β_j, and lse, the logarithm of the
                denominator of the softmax. ρ is ReLU if the rows are `rectified`, else the identity. A missing `factor`
                is 1.
    stand_alone y_i = Σ_j softmax_j (Σ_d query_i (key_j + relative_j)) ⊙ β_j, and lse as above. Channel c of each tensor
                belongs to head c mod g. `widths` are the channels of a head and the number of heads. `key` or
                `relative` may be missing.
    patchwise   y_i = Σ_j γ(rows_i)_j ⊙ β_j. The rows are max(0, scale ⊙ δ + shift). For the concatenation δ_i is
                ψ_R(i), and the rows start with `centres`, unchanged. For the star product `centres` are φ at the
                centres; for the clique product they are the whole map φ.
    parts       In training, the statistics of γ's second layer need the outputs of the first, (n, e, p). The patchwise
                attention is then two cores: `hidden` gives the outputs of the first linear, `weighted` computes
                y_i = Σ_j (W·hidden_i + b)_j ⊙ β_j. Torch computes what is between them.
    statistics  Mean and biased variance of γ over images, centres and, if pairwise, taps. Without linears they are
                those of the rows before ρ, or of δ.

γ consists of linears W x + b, with a ReLU between two of them. `parameters` holds W and b of each linear, one after the
other; `widths` are the inputs of the first linear and the outputs of every linear. `offset`, `factor`, `query` and
`centres` have the shape (n, -, p), except those of the clique product; `relative` has (-, k). Kernels read contiguous
tensors of float32 or float64. No tensor has an element per tap and centre.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from saprof.backends.library import Kernels, Opaque, Plan, Shape, register
from saprof.operators.footprint import Footprint


class PairwiseOptions(NamedTuple):
    """The options of a pairwise core, as its kernels take them."""

    widths: tuple[int, ...]
    rectified: bool


class PatchwiseOptions(NamedTuple):
    """The options of a patchwise core, as its kernels take them."""

    widths: tuple[int, ...]
    relation: str


class StandAloneOptions(NamedTuple):
    """The options of a stand-alone core, as its kernels take them."""

    widths: tuple[int, ...]


class WeightedOptions(NamedTuple):
    """The options of the second part of a patchwise core, as its kernels take them."""

    widths: tuple[int, ...]


Options = PairwiseOptions | PatchwiseOptions | StandAloneOptions | WeightedOptions


@dataclass(frozen=True, kw_only=True)
class Core(Opaque):
    """The declaration of a core."""

    family: str


OPTIONAL = frozenset({"factor", "key", "relative"})
"""The inputs that may be missing."""


def _core(
    family: str, what: str, inputs: str, flag: str, plan: Callable[..., Plan], *, gradients: int = 1, saved: int = 0
) -> Core:
    """A core with the argument `flag` after the widths, if any; its first `gradients` outputs have gradients, and its
    backward needs the first `saved` outputs."""
    names = tuple(inputs.split())
    return Core(
        name=f"{family}_{what}",
        family=family,
        inputs=names,
        options=", ".join(["int[] widths", *([flag] if flag else []), "str footprint"]),
        plan=plan,
        optional=OPTIONAL & set(names),
        outputs=max(gradients, saved),
        differentiable=gradients,
        saved=tuple(range(saved)),
        given=tuple(f"given_{number}" for number in range(gradients + saved)),
        backward_macs=lambda needs: 2 * any(needs),  # each factor of a product has a gradient
        instead="backend='unfold', or attention='composed' in a layer",
    )


def _attention(beta: Shape, options: Options, text: str, macs_of_gamma: int) -> Plan:
    """The plan of an attention, from the multiply-adds of the weights of one centre."""
    footprint = Footprint.parse(text)
    n, v, h, w = beta
    p = math.prod(footprint.output_size(h, w))
    outputs = [(n, v, p), *([] if isinstance(options, PatchwiseOptions) else [(n, options.widths[-1], p)])]
    return Plan(outputs, n * p * (macs_of_gamma + footprint.taps * v), (options, footprint))


def _statistics(options: Options, text: str) -> Plan:
    """The plan of statistics. It counts no multiply-adds, because the attention repeats the same products."""
    return Plan([(options.widths[-1],)] * 2, 0, (options, Footprint.parse(text)))


def _pairwise_attention(shapes: Sequence[Shape], widths: Sequence[int], rectified: bool, text: str) -> Plan:
    first, *others = (inputs * outputs for inputs, outputs in pairwise(widths))
    if not rectified:  # the first linear adds up the terms of a dot product, and copies the position
        first = widths[0] - widths[1] + 1
    taps = Footprint.parse(text).taps
    return _attention(shapes[3], PairwiseOptions(tuple(widths), rectified), text, taps * sum(others, first))


def _pairwise_statistics(shapes: Sequence[Shape], widths: Sequence[int], rectified: bool, text: str) -> Plan:
    return _statistics(PairwiseOptions(tuple(widths), rectified), text)


def _patchwise_attention(shapes: Sequence[Shape], widths: Sequence[int], relation: str, text: str) -> Plan:
    macs = sum(inputs * outputs for inputs, outputs in pairwise(widths))
    if relation != "concatenation":  # each row is an inner product over the channels of the map
        macs += widths[0] * shapes[1][1]
    return _attention(shapes[2], PatchwiseOptions(tuple(widths), relation), text, macs)


def _patchwise_statistics(shapes: Sequence[Shape], widths: Sequence[int], relation: str, text: str) -> Plan:
    return _statistics(PatchwiseOptions(tuple(widths), relation), text)


def _stand_alone_attention(shapes: Sequence[Shape | None], widths: Sequence[int], text: str) -> Plan:
    _, key, relative, beta = shapes
    assert beta is not None
    terms = sum(x is not None for x in (key, relative))
    macs = Footprint.parse(text).taps * terms * math.prod(widths)
    return _attention(beta, StandAloneOptions(tuple(widths)), text, macs)


def _patchwise_hidden(shapes: Sequence[Shape], widths: Sequence[int], relation: str, text: str) -> Plan:
    footprint, (n, r, h, w) = Footprint.parse(text), shapes[1]
    p, (rows, outputs) = math.prod(footprint.output_size(h, w)), widths
    macs = rows * (outputs + (0 if relation == "concatenation" else r))
    return Plan([(n, outputs, p)], n * p * macs, (PatchwiseOptions(tuple(widths), relation), footprint))


def _patchwise_weighted(shapes: Sequence[Shape], widths: Sequence[int], text: str) -> Plan:
    footprint, (n, v, h, w), (depth, outputs) = Footprint.parse(text), shapes[1], widths
    p = math.prod(footprint.output_size(h, w))
    macs = depth * outputs + footprint.taps * v
    return Plan([(n, v, p)], n * p * macs, (WeightedOptions(tuple(widths)), footprint))


_PAIRWISE, _PATCHWISE = "bool rectified", "str kind"

CORES = (
    _core(
        "pairwise",
        "attention",
        "offset factor map beta parameters",
        _PAIRWISE,
        _pairwise_attention,
        saved=2,
    ),
    _core("stand_alone", "attention", "query key relative beta", "", _stand_alone_attention, saved=2),
    _core("patchwise", "attention", "centres map beta scale shift parameters", _PATCHWISE, _patchwise_attention),
    _core(
        "pairwise",
        "statistics",
        "offset factor map parameters",
        _PAIRWISE,
        _pairwise_statistics,
        gradients=2,
        saved=1,
    ),
    _core(
        "patchwise",
        "statistics",
        "centres map scale shift parameters",
        _PATCHWISE,
        _patchwise_statistics,
        gradients=2,
        saved=1,
    ),
)

PARTS = (
    _core("patchwise", "hidden", "centres map scale shift parameters", _PATCHWISE, _patchwise_hidden),
    _core("patchwise", "weighted", "hidden beta parameters", "", _patchwise_weighted),
)
"""The two parts of the patchwise attention in training, for backends on a CPU."""

KERNELS = {kernel: core for core in (*CORES, *PARTS) for kernel in (core.name, core.backward)}
"""The core that each kernel belongs to, by the name of the kernel."""


def register_all(kernels: Kernels, *, parts: bool = False) -> None:
    """Define the cores of a backend, and the `parts` of the patchwise attention if it has kernels for them. It runs a
    kernel as run(name, arrays, options, footprint)."""
    for core in (*CORES, *(PARTS if parts else ())):
        register(kernels, core)


def map_of(tensors: Sequence[Tensor | None]) -> Tensor:
    """The first map among the tensors of a core or of its backward; only maps have four axes."""
    return next(x for x in tensors if x is not None and x.dim() == 4)
