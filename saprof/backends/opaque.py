"""The adapter of kernels that torch cannot look into: they know contiguous arrays, read and written once.

Each operator becomes one of torch.library, with a fake, a backward that is an operator too, derivatives of any order
and a FLOP formula: torch.compile, autograd and FlopCounterMode treat it like one of torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from saprof.operators import Operator
from saprof.operators.footprint import Footprint


@dataclass(frozen=True)
class Kernels:
    """What a backend has to give."""

    backend: str
    run: Callable[[str, Sequence[Tensor | None], Footprint, Mapping[str, int]], None]
    """Call the kernel of that name on inputs and outputs, contiguous, centres along one axis; sizes are those of all
    named axes. Of `<operator>_backward` the inputs are the output's gradient and the operator's own, the outputs their
    gradients, None for one that nobody needs."""
    working: Callable[[Tensor], torch.dtype]
    """The type in which the kernels read such a tensor."""
    empty: Callable[[Sequence[int], Tensor], Tensor] = lambda shape, like: like.new_empty(shape)
    """Memory for an output of that shape, of such a type and on such a device."""


_libraries: list[torch.library.Library] = []


def register(kernels: Kernels, operator: Operator) -> None:
    """Define `saprof_<backend>::<operator>` and its `_backward`, which returns the gradients of the inputs in need of
    one, and an empty tensor for the others."""
    name, count = operator.name, len(operator.inputs)
    library = torch.library.Library(f"saprof_{kernels.backend}", "FRAGMENT")
    _libraries.append(library)
    tensors = ", ".join(f"Tensor {name}" for name, _ in operator.inputs)
    library.define(f"{name}({tensors}, str footprint) -> Tensor")
    gradients = ", ".join(["Tensor"] * count)
    library.define(f"{name}_backward(Tensor gradient, {tensors}, str footprint, bool[{count}] needs) -> ({gradients})")
    for device in ("CPU", "CUDA"):
        library.impl(name, lambda *a: _forward(kernels, operator, a[:-1], Footprint.parse(a[-1])), device)
        library.impl(
            f"{name}_backward",
            lambda gradient, *a: tuple(_backward(kernels, operator, gradient, a[:-2], Footprint.parse(a[-2]), a[-1])),
            device,
        )
    _fake(library, operator)
    _differentiate(library, operator)
    _count(library, operator)


def entry(backend: str, name: str) -> Callable[..., Tensor] | None:
    """The registered operator, as a function of tensors and a footprint; None if there is none of that name."""
    function = getattr(getattr(torch.ops, f"saprof_{backend}"), name, None)
    return function and (lambda *arguments: function(*arguments[:-1], str(arguments[-1])))


def _forward(kernels: Kernels, operator: Operator, inputs: Sequence[Tensor], footprint: Footprint) -> Tensor:
    """The operator's output."""
    sizes, shape = _plan(operator, tuple(x.shape for x in inputs), footprint)
    arrays = _prepare(kernels, operator, inputs, footprint)
    output = kernels.empty(shape, arrays[0])
    if sizes["n"]:
        kernels.run(operator.name, [*arrays, _flatten(output, operator.output)], footprint, sizes)
    return output.to(inputs[0].dtype)


def _backward(
    kernels: Kernels,
    operator: Operator,
    gradient: Tensor,
    inputs: Sequence[Tensor],
    footprint: Footprint,
    needs: Sequence[bool],
) -> list[Tensor]:
    """The gradients of the inputs in need of one, given the output's; an empty tensor for the others."""
    sizes, shape = _plan(operator, tuple(x.shape for x in inputs), footprint)
    if gradient.shape != shape:
        raise ValueError(f"{operator.name}: the gradient of the output is {tuple(gradient.shape)}; expected {shape}")
    arrays = _prepare(kernels, operator, inputs, footprint)
    gradients = [kernels.empty(x.shape, x) if need else None for x, need in zip(arrays, needs, strict=True)]
    arriving = _flatten(gradient.to(arrays[0].dtype).contiguous(), operator.output)
    if sizes["n"]:
        kernels.run(f"{operator.name}_backward", [arriving, *arrays, *gradients], footprint, sizes)
    return [
        x.new_empty(0) if got is None else _uncentre(got, x.shape, footprint.stride).to(x.dtype)
        for got, x in zip(gradients, inputs, strict=True)
    ]


@lru_cache(maxsize=1024)
def _plan(
    operator: Operator, shapes: tuple[torch.Size, ...], footprint: Footprint
) -> tuple[dict[str, int], tuple[int, ...]]:
    """Sizes of all axes, and the output's shape."""
    sizes = operator.bind(shapes, footprint)
    return sizes, operator.output_shape(sizes)


def _prepare(kernels: Kernels, operator: Operator, inputs: Sequence[Tensor], footprint: Footprint) -> list[Tensor]:
    """What the kernels read: contiguous, of a type that they compute in; of a map read at the centres only these."""
    prepared = []
    for x, read, (_, axes) in zip(inputs, operator.reads, operator.inputs, strict=True):
        if read == "i" and axes.endswith("h w"):
            x = x[:, :, :: footprint.stride, :: footprint.stride].flatten(2)
        prepared.append(x.to(kernels.working(x)).contiguous().detach())
    return prepared


def _flatten(output: Tensor, axes: str) -> Tensor:
    """Centres along one axis."""
    return output.flatten(2) if axes.endswith("oh ow") else output


def _uncentre(gradient: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """The gradient of an input, of which the kernel may have seen only the centres: 0 elsewhere."""
    if gradient.numel() == shape.numel():
        return gradient.view(shape)
    map_ = gradient.new_zeros(shape)
    centres = map_[:, :, ::stride, ::stride]
    centres.copy_(gradient.view_as(centres))
    return map_


def _fake(library: torch.library.Library, operator: Operator) -> None:
    def output(*arguments: Any) -> Tensor:
        *inputs, footprint = arguments
        sizes = operator.bind([x.shape for x in inputs], Footprint.parse(footprint))
        return inputs[0].new_empty(operator.output_shape(sizes))

    def gradients(gradient: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *inputs, _, needs = arguments
        return tuple(x.new_empty(x.shape if need else 0) for x, need in zip(inputs, needs, strict=True))

    torch.library.register_fake(f"{library.ns}::{operator.name}", output, lib=library)
    torch.library.register_fake(f"{library.ns}::{operator.name}_backward", gradients, lib=library)


def _differentiate(library: torch.library.Library, operator: Operator) -> None:
    """The gradients of F(a, b), and of these again: with G for what arrives at F, and u, v at its gradients B(G, a, b).

    If F is linear in each input, G receives F(u, b) + F(a, v), and a, b receive B(G, u, v). If it is linear in both at
    once, so that B needs G alone, G receives F(u, v), and a, b nothing.
    """
    ns = getattr(torch.ops, library.ns)
    forward, backward = getattr(ns, operator.name), getattr(ns, f"{operator.name}_backward")
    count = len(operator.inputs)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.footprint = inputs
        ctx.save_for_backward(*tensors)

    def gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        needs = list(ctx.needs_input_grad[:count])
        found = backward(gradient, *ctx.saved_tensors, ctx.footprint, needs)
        return *(x if need else None for x, need in zip(found, needs, strict=True)), None

    def save_again(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.footprint, ctx.needs = inputs
        ctx.save_for_backward(*tensors)

    def gradients_again(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        if operator.degree is None:
            raise NotImplementedError(
                f"{operator.name} has no second derivative; expected its declaration to say degree="
            )
        gradient, *inputs = ctx.saved_tensors
        arrived = [
            x if need else torch.zeros_like(like) for x, need, like in zip(cotangents, ctx.needs, inputs, strict=True)
        ]
        if operator.degree == 1:
            return forward(*arrived, ctx.footprint), *[None] * count, None, None
        (a, b), (u, v), (to_u, to_v) = inputs, arrived, ctx.needs
        terms = [forward(u, b, ctx.footprint)] * to_u + [forward(a, v, ctx.footprint)] * to_v
        needs = [to_v and ctx.needs_input_grad[1], to_u and ctx.needs_input_grad[2]]
        found = backward(gradient, u, v, ctx.footprint, needs)
        return sum(terms), *(x if need else None for x, need in zip(found, needs, strict=True)), None, None

    name = f"{library.ns}::{operator.name}"
    torch.library.register_autograd(name, gradients, setup_context=save, lib=library)
    torch.library.register_autograd(f"{name}_backward", gradients_again, setup_context=save_again, lib=library)


def _count(library: torch.library.Library, operator: Operator) -> None:
    """Two operations per multiply-add, of the forward and as many of each gradient."""
    ns = getattr(torch.ops, library.ns)

    def flops(*arguments: Any, out_shape: Any = None, **_: Any) -> int:
        *shapes, footprint = arguments
        return 2 * operator.count("macs", operator.bind(shapes, Footprint.parse(footprint)))

    def backward_flops(gradient: Any, *arguments: Any, out_shape: Any = None, **_: Any) -> int:
        *forward, needs = arguments
        return sum(needs) * flops(*forward)

    register_flop_formula(getattr(ns, operator.name))(flops)
    register_flop_formula(getattr(ns, f"{operator.name}_backward"))(backward_flops)
