"""The cores of the fused attentions as operators of torch.library, with fakes, derivatives and FLOP formulas.

    pairwise    y_i = Σ_j softmax_j (γ(ρ(offset_i + factor_i ⊙ map_j))) ⊙ β_j, and lse, the logarithm of the softmax's
                denominator; ρ is ReLU where rows are `rectified`. Without `factor` it is 1.
    stand_alone y_i = Σ_j softmax_j (Σ_d query_i (key_j + relative_j)) ⊙ β_j, and lse likewise. Channel c of all is of
                head c mod g, and `widths` are the channels of a head and the heads. `key` or `relative` may be missing.
    patchwise   y_i = Σ_j γ(rows_i)_j ⊙ β_j. The rows are max(0, scale ⊙ δ + shift), for the concatenation δ_i = ψ_R(i)
                behind the `centres` as they are; for the star product `centres` are φ at the centres, for the clique
                product φ.
    statistics  Mean and biased variance of γ over images, centres and, pairwise, taps; without linears, of the rows
                before ρ, or of δ.

γ is linears W x + b with a ReLU between each two; W and b of each lie one behind the other in `parameters`, `widths`
are the inputs of the first and the outputs of all. `offset`, `factor`, `query` and `centres` are (n, -, p), but for
the clique product's; `relative` is (-, k). What kernels see is contiguous, float32 or float64, and nothing is
footprint-sized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from saprof.operators import family_of
from saprof.operators.footprint import Footprint

Flag = bool | str | None


@dataclass(frozen=True)
class Core:
    """One core, as torch.library is told of it."""

    name: str
    inputs: tuple[str, ...]
    flag: str = ""
    """Its argument beside tensors, widths and footprint, with the type; none if empty."""
    outputs: int = 2
    gradients: int = 1
    """How many outputs have gradients: the first ones."""
    saved: tuple[int, ...] = ()
    """The outputs that the backward needs."""

    @property
    def family(self) -> str:
        return family_of(self.name)

    @property
    def given(self) -> int:
        """How many tensors its backward is given before the inputs: gradients of outputs, and outputs."""
        return self.gradients + len(self.saved)

    @property
    def schema(self) -> str:
        return f"{self.name}({self._arguments}, str footprint) -> ({_tensors(self.outputs)})"

    @property
    def backward_schema(self) -> str:
        given = ", ".join(f"Tensor given_{number}" for number in range(self.given))
        count = len(self.inputs)
        arguments = f"{given}, {self._arguments}, str footprint, bool[{count}] needs"
        return f"{self.name}_backward({arguments}) -> ({_tensors(count)})"

    @property
    def _arguments(self) -> str:
        tensors = (f"Tensor{'?' * (name in OPTIONAL)} {name}" for name in self.inputs)
        return ", ".join((*tensors, "int[] widths", *([self.flag] if self.flag else [])))

    def output_shapes(self, inputs: Sequence[Any], widths: Sequence[int], footprint: Footprint) -> list[Sequence[int]]:
        """Of the inputs' shapes, given as such or as tensors."""
        shapes = {name: getattr(x, "shape", x) for name, x in zip(self.inputs, inputs, strict=True)}
        if "beta" not in shapes:
            return [(widths[-1],)] * 2
        n, v = shapes["beta"][:2]
        p = math.prod(footprint.output_size(*shapes["beta"][-2:]))
        return [(n, v, p), (n, widths[-1], p)][: self.outputs]

    def macs(self, inputs: Sequence[Any], widths: Sequence[int], flag: Flag, footprint: Footprint) -> int:
        """Multiply-adds of an attention; statistics are made of what it multiplies again."""
        if "beta" not in self.inputs:
            return 0
        (n, v, p), k = self.output_shapes(inputs, widths, footprint)[0], footprint.taps
        if self.family == "stand_alone":
            terms = sum(x is not None for x in inputs[1:3])  # key, relative
            return n * p * k * (terms * math.prod(widths) + v)
        products = sum(i * o for i, o in pairwise(widths))
        if flag is False:  # the first linear adds up the terms of a dot product, and hands the position on
            products += widths[0] - widths[1] + 1 - widths[0] * widths[1]
        if flag in ("star_product", "clique_product"):
            map_: Any = inputs[self.inputs.index("map")]
            products += widths[0] * getattr(map_, "shape", map_)[1]
        return n * p * (products * (k if self.family == "pairwise" else 1) + v * k)


def _tensors(count: int) -> str:
    return ", ".join(["Tensor"] * count)


OPTIONAL = ("factor", "key", "relative")
"""Inputs that there need not be."""

_PAIRWISE, _PATCHWISE = ("offset", "factor", "map"), ("centres", "map")
_PARAMETERS = {"pairwise": ("parameters",), "patchwise": ("scale", "shift", "parameters")}

CORES = (
    Core("pairwise_attention", (*_PAIRWISE, "beta", *_PARAMETERS["pairwise"]), "bool rectified", saved=(0, 1)),
    Core("stand_alone_attention", ("query", "key", "relative", "beta"), saved=(0, 1)),
    Core("patchwise_attention", (*_PATCHWISE, "beta", *_PARAMETERS["patchwise"]), "str kind", outputs=1),
    Core("pairwise_statistics", (*_PAIRWISE, *_PARAMETERS["pairwise"]), "bool rectified", gradients=2, saved=(0,)),
    Core("patchwise_statistics", (*_PATCHWISE, *_PARAMETERS["patchwise"]), "str kind", gradients=2, saved=(0,)),
)


@dataclass(frozen=True)
class Kernels:
    """What a backend has to give."""

    backend: str
    run: Callable[[str, Sequence[Tensor | None], Sequence[int], Flag, Footprint], None]
    """Call the kernel of that name on inputs and outputs, with widths and flag, None if it has none. Of
    `<core>_backward` the inputs are the gradients of outputs, the outputs that it needs and the core's inputs, the
    outputs their gradients, None for one that nobody needs."""
    empty: Callable[[Sequence[int], Tensor], Tensor] = lambda shape, like: like.new_empty(shape)
    """Memory for an output of that shape, of such a type and on such a device."""


def map_of(tensors: Sequence[Tensor | None]) -> Tensor:
    """The first map among the tensors of a core, or of its backward; nothing else has four axes."""
    return next(x for x in tensors if x is not None and x.dim() == 4)


_libraries: list[torch.library.Library] = []


def register(kernels: Kernels) -> None:
    """Define all cores of a backend in `saprof_<backend>`."""
    library = torch.library.Library(f"saprof_{kernels.backend}", "FRAGMENT")
    _libraries.append(library)
    for core in CORES:
        library.define(core.schema)
        library.define(core.backward_schema)
        _implement(library, kernels, core)
        _fake(library, core)
        _differentiate(library, core)
        _count(library, core)


def _implement(library: torch.library.Library, kernels: Kernels, core: Core) -> None:
    count = len(core.inputs)
    given = core.given + count

    def forward(*arguments: Any) -> Any:
        inputs, (widths, *flag, text) = arguments[:count], arguments[count:]
        footprint = Footprint.parse(text)
        arrays: list[Any] = [None if x is None else x.contiguous().detach() for x in inputs]
        outputs = [kernels.empty(shape, arrays[0]) for shape in core.output_shapes(arrays, widths, footprint)]
        if len(arrays[0]):
            kernels.run(core.name, [*arrays, *outputs], widths, _only(flag), footprint)
        return tuple(outputs) if core.outputs > 1 else outputs[0]

    def backward(*arguments: Any) -> tuple[Tensor, ...]:
        tensors, (widths, *flag, text, needs) = arguments[:given], arguments[given:]
        arrays: list[Any] = [None if x is None else x.contiguous().detach() for x in tensors]
        inputs = arrays[-count:]
        wanted = zip(inputs, needs, strict=True)
        gradients = [kernels.empty(x.shape, x) if x is not None and need else None for x, need in wanted]
        if len(inputs[0]):
            footprint = Footprint.parse(text)
            kernels.run(f"{core.name}_backward", [*arrays, *gradients], widths, _only(flag), footprint)
        else:
            gradients = [x if x is None else x.zero_() for x in gradients]
        return tuple(inputs[0].new_empty(0) if x is None else x for x in gradients)

    for device in ("CPU", "CUDA"):
        library.impl(core.name, forward, device)
        library.impl(f"{core.name}_backward", backward, device)


def _only(flag: Sequence[Flag]) -> Flag:
    """The flag, of a core that has one."""
    return flag[0] if flag else None


def _fake(library: torch.library.Library, core: Core) -> None:
    count = len(core.inputs)

    def outputs(*arguments: Any) -> Any:
        inputs, (widths, *_, footprint) = arguments[:count], arguments[count:]
        shapes = core.output_shapes(inputs, widths, Footprint.parse(footprint))
        found = tuple(inputs[0].new_empty(shape) for shape in shapes)
        return found if core.outputs > 1 else found[0]

    def gradients(*arguments: Any) -> tuple[Tensor, ...]:
        inputs, needs = arguments[core.given : core.given + count], arguments[-1]
        like = inputs[0]
        return tuple(
            like.new_empty(x.shape if x is not None and need else 0) for x, need in zip(inputs, needs, strict=True)
        )

    torch.library.register_fake(f"{library.ns}::{core.name}", outputs, lib=library)
    torch.library.register_fake(f"{library.ns}::{core.name}_backward", gradients, lib=library)


def _differentiate(library: torch.library.Library, core: Core) -> None:
    backward_of = getattr(getattr(torch.ops, library.ns), f"{core.name}_backward")
    count = len(core.inputs)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if core.outputs > 1 else (output,)
        ctx.facts = inputs[count:]
        ctx.save_for_backward(*(outputs[number] for number in core.saved), *inputs[:count])

    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        needs = list(ctx.needs_input_grad[:count])
        found = backward_of(*cotangents[: core.gradients], *ctx.saved_tensors, *ctx.facts, needs)
        return *(x if need else None for x, need in zip(found, needs, strict=True)), *[None] * len(ctx.facts)

    def no_more(ctx: Any, *cotangents: Tensor) -> Any:
        raise NotImplementedError(
            f"{core.name} has no second derivative; expected a composed attention, attention='composed'"
        )

    name = f"{library.ns}::{core.name}"
    torch.library.register_autograd(name, backward, setup_context=save, lib=library)
    torch.library.register_autograd(f"{name}_backward", no_more, lib=library)


def _count(library: torch.library.Library, core: Core) -> None:
    """Two operations per multiply-add, of the forward and, as each factor has a gradient, twice as many backwards."""
    ns = getattr(torch.ops, library.ns)
    count = len(core.inputs)

    def flops(*arguments: Any, out_shape: Any = None, **_: Any) -> int:
        inputs, (widths, *flag, footprint) = arguments[:count], arguments[count:]
        return 2 * core.macs(inputs, widths, _only(flag), Footprint.parse(footprint))

    def backward_flops(*arguments: Any, out_shape: Any = None, **_: Any) -> int:
        return 2 * flops(*arguments[core.given : -1]) if any(arguments[-1]) else 0

    register_flop_formula(getattr(ns, core.name))(flops)
    register_flop_formula(getattr(ns, f"{core.name}_backward"))(backward_flops)
