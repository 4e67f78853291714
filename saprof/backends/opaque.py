"""The adapter of kernels that torch cannot look into. Each becomes an operator of torch.library, with a fake, a
backward that is an operator too, derivatives of any order and a FLOP formula: torch.compile, autograd and
FlopCounterMode treat it like one of torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from saprof.footprint import Footprint
from saprof.operators import Operator

Forward = Callable[[Operator, Sequence[Tensor], Footprint], Tensor]
Backward = Callable[[Operator, Tensor, Sequence[Tensor], Footprint, Sequence[bool]], Sequence[Tensor]]

_libraries: list[torch.library.Library] = []


def register(backend: str, operator: Operator, forward: Forward, backward: Backward) -> None:
    """Define `saprof_<backend>::<operator>` and its `_backward`, which returns the gradients of the inputs in need of
    one, and an empty tensor for the others."""
    name, count = operator.name, len(operator.inputs)
    library = torch.library.Library(f"saprof_{backend}", "FRAGMENT")
    _libraries.append(library)
    tensors = ", ".join(f"Tensor {name}" for name, _ in operator.inputs)
    library.define(f"{name}({tensors}, str footprint) -> Tensor")
    gradients = ", ".join(["Tensor"] * count)
    library.define(f"{name}_backward(Tensor gradient, {tensors}, str footprint, bool[{count}] needs) -> ({gradients})")
    for device in ("CPU", "CUDA"):
        library.impl(name, lambda *a: forward(operator, a[:-1], Footprint.parse(a[-1])), device)
        library.impl(
            f"{name}_backward",
            lambda gradient, *a: tuple(backward(operator, gradient, a[:-2], Footprint.parse(a[-2]), a[-1])),
            device,
        )
    _fake(library, operator)
    _differentiate(library, operator)
    _count(library, operator)


def entry(backend: str, name: str) -> Callable[..., Tensor] | None:
    """The registered operator, as a function of tensors and a footprint; None if there is none of that name."""
    function = getattr(getattr(torch.ops, f"saprof_{backend}"), name, None)
    return function and (lambda *arguments: function(*arguments[:-1], str(arguments[-1])))


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
