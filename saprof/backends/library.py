"""The one adapter to torch.library, for kernels that torch cannot trace: they read and write contiguous arrays.

Each `Opaque` operator becomes one of torch.library with a fake kernel, a backward that is an operator too, derivatives
and a FLOP formula. torch.compile, autograd and FlopCounterMode then treat it like an operator of torch itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from saprof.operators import Operator
from saprof.operators.footprint import Footprint

Shape = Sequence[int]


class Plan(NamedTuple):
    """What follows from the shapes of an operator's inputs and from its options."""

    outputs: Sequence[Shape]
    """The shapes of the outputs."""
    macs: int
    """Multiply-adds of the forward."""
    arguments: Sequence[Any]
    """What the kernels take after their arrays."""
    stride: int = 1
    """The step between the centres of the map."""


@dataclass(frozen=True, kw_only=True)
class Opaque:
    """The declaration of an operator whose kernels torch cannot trace."""

    name: str
    inputs: tuple[str, ...]
    options: str
    """The arguments after the tensors, in the schema language of torch, such as `str footprint`."""
    plan: Callable[..., Plan]
    """Computes the plan from the shapes of the inputs, None for a missing one, and the options."""
    optional: frozenset[str] = frozenset()
    """The inputs that may be None."""
    at_centres: frozenset[str] = frozenset()
    """The maps that kernels read at the centres only. A kernel gets their centres along one axis."""
    returns_map: bool = False
    """Whether the output is a map. A kernel gets its positions along one axis."""
    outputs: int = 1
    differentiable: int = 1
    """The number of outputs with gradients. These are the first ones."""
    saved: tuple[int, ...] = ()
    """The outputs that the backward needs."""
    given: tuple[str, ...] = ("gradient",)
    """The tensors that the backward takes before the inputs: the gradients of the outputs, then the saved outputs."""
    backward_macs: Callable[[Sequence[bool]], int] = sum
    """The multiply-adds of the backward as a multiple of those of the forward, given which gradients are needed."""
    degree: int | None = None
    """1 if linear in all inputs together, 2 if in each of two inputs, None if there is no second derivative."""
    instead: str = ""
    """What to do where there is no second derivative."""

    @property
    def backward(self) -> str:
        """The name of the operator that computes the gradients."""
        return f"{self.name}_backward"

    @property
    def schema(self) -> str:
        return f"{self.name}({self._tensors}, {self.options}) -> ({_returned(self.outputs)})"

    @property
    def backward_schema(self) -> str:
        given, count = ", ".join(f"Tensor {name}" for name in self.given), len(self.inputs)
        arguments = f"{given}, {self._tensors}, {self.options}, bool[{count}] needs"
        return f"{self.backward}({arguments}) -> ({_returned(count)})"

    @property
    def _tensors(self) -> str:
        return ", ".join(f"Tensor{'?' * (name in self.optional)} {name}" for name in self.inputs)

    def split(self, arguments: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """The inputs and the options among the arguments of the operator."""
        return arguments[: len(self.inputs)], arguments[len(self.inputs) :]

    def split_backward(self, arguments: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any], Any]:
        """The given tensors, the inputs, the options, and which gradients are needed."""
        given = len(self.given)
        return arguments[:given], *self.split(arguments[given:-1]), arguments[-1]


def _returned(count: int) -> str:
    return ", ".join(["Tensor"] * count)


def opaque(operator: Operator) -> Opaque:
    """The declaration of an operator for which each backend has its own kernel."""

    def plan(shapes: Sequence[Shape], text: str) -> Plan:
        footprint = Footprint.parse(text)
        sizes = operator.bind(shapes, footprint)
        outputs = [operator.output_shape(sizes)]
        return Plan(outputs, operator.count("macs", sizes), (footprint, sizes), footprint.stride)

    reads = zip(operator.inputs, operator.reads, strict=True)
    return Opaque(
        name=operator.name,
        inputs=tuple(name for name, _ in operator.inputs),
        options="str footprint",
        plan=plan,
        at_centres=frozenset(name for (name, axes), read in reads if read == "i" and axes.endswith("h w")),
        returns_map=operator.output.endswith("oh ow"),
        degree=operator.degree,
        instead="its declaration to say degree=",
    )


@dataclass(frozen=True)
class Kernels:
    """The kernels of a backend, for one or more operators."""

    backend: str
    run: Callable[..., None]
    """Calls the kernel `name` as run(name, arrays, *arguments). The arrays are inputs, then outputs, all contiguous.
    The inputs of a backward kernel are what `Opaque.given` names, then those of the operator; its outputs are their
    gradients. None stands for a missing input, or for a gradient that is not needed."""
    working: Callable[[Tensor], torch.dtype] = lambda x: x.dtype
    """The dtype in which the kernels read a tensor."""
    empty: Callable[[Sequence[int], Tensor], Tensor] = lambda shape, like: like.new_empty(shape)
    """Allocates an output of a shape, with the dtype and the device of a tensor."""


def why_not(operator: Operator) -> str | None:
    """The reason why no opaque kernel can compute the operator in this context, or None."""
    if torch.onnx.is_in_onnx_export():
        return "ONNX has no operators for compiled kernels; only backend='unfold' exports to it"
    if operator.masked and _needs_more_than_gradients():
        return "fused attentions have first gradients alone: no second gradients, and no forward-mode AD"
    return None


def _needs_more_than_gradients() -> bool:
    """Whether forward-mode AD is active, or torch.func computes second derivatives."""
    levels = [level.key() for level in get_interpreter_stack() or ()]
    twice = levels.count(TransformType.Grad) > 1
    return twice or TransformType.Jvp in levels or forward_ad._current_level >= 0


_libraries: list[torch.library.Library] = []


def register(kernels: Kernels, opaque: Opaque) -> Callable[..., Any]:
    """Define `saprof_<backend>::<operator>`, which is returned, and `saprof_<backend>::<operator>_backward`.

    The latter returns the needed gradients, and an empty tensor for each of the others.
    """
    library = torch.library.Library(f"saprof_{kernels.backend}", "FRAGMENT")
    _libraries.append(library)
    library.define(opaque.schema)
    library.define(opaque.backward_schema)
    _implement(library, kernels, opaque)
    _fake(library, opaque)
    _differentiate(library, opaque)
    _count(library, opaque)
    return getattr(getattr(torch.ops, library.ns), opaque.name).default


def register_operator(kernels: Kernels, operator: Operator) -> Callable[..., Tensor]:
    """Define an operator for which the backend has a kernel; return it as a function of tensors and a footprint.

    The kernel runs as run(name, arrays, footprint, sizes), with the sizes of all named axes.
    """
    function = register(kernels, opaque(operator))
    return lambda *arguments: function(*arguments[:-1], str(arguments[-1]))


def _implement(library: torch.library.Library, kernels: Kernels, opaque: Opaque) -> None:
    plan = lru_cache(maxsize=1024)(opaque.plan)

    def plan_of(inputs: Sequence[Tensor | None], options: Sequence[Any]) -> Plan:
        return plan(_shapes(inputs), *(tuple(x) if isinstance(x, list) else x for x in options))

    def forward(*arguments: Any) -> Any:
        inputs, options = opaque.split(arguments)
        planned = plan_of(inputs, options)
        arrays = _prepare(kernels, opaque, inputs, planned.stride)
        outputs = [kernels.empty(shape, arrays[0]) for shape in planned.outputs]
        if len(arrays[0]):
            written = [x.flatten(2) for x in outputs] if opaque.returns_map else outputs
            kernels.run(opaque.name, [*arrays, *written], *planned.arguments)
        return _one_or_tuple([_of_dtype(x, inputs[0].dtype) for x in outputs])

    def backward(*arguments: Any) -> Any:
        given, inputs, options, needs = opaque.split_backward(arguments)
        planned = plan_of(inputs, options)
        for gradient, shape in zip(given, planned.outputs[: opaque.differentiable], strict=False):
            if gradient.shape != tuple(shape):
                got, expected = tuple(gradient.shape), tuple(shape)
                raise ValueError(f"{opaque.name}: the gradient of the output is {got}; expected {expected}")
        arrays = _prepare(kernels, opaque, inputs, planned.stride)
        arriving = [_array(x, arrays[0].dtype) for x in given]
        if opaque.returns_map:
            arriving = [x.flatten(2) for x in arriving]
        wanted = zip(arrays, needs, strict=True)
        gradients = [kernels.empty(x.shape, x) if x is not None and need else None for x, need in wanted]
        if len(arrays[0]):
            kernels.run(opaque.backward, [*arriving, *arrays, *gradients], *planned.arguments)
        else:
            gradients = [x if x is None else x.zero_() for x in gradients]
        return _one_or_tuple(
            [
                (inputs[0] if x is None else x).new_empty(0)
                if found is None
                else _of_dtype(_at_every_position(found, x.shape, planned.stride), x.dtype)
                for found, x in zip(gradients, inputs, strict=True)
            ]
        )

    for device in ("CPU", "CUDA"):
        library.impl(opaque.name, forward, device)
        library.impl(opaque.backward, backward, device)


def _shapes(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The shapes of the inputs, which are tensors or None."""
    return tuple(None if x is None else x.shape for x in inputs)


def _one_or_tuple(outputs: Sequence[Tensor]) -> Any:
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _prepare(kernels: Kernels, opaque: Opaque, inputs: Sequence[Tensor | None], stride: int) -> list[Any]:
    """The arrays that the kernels read: contiguous, in the working dtype, only the centres where this suffices."""
    prepared = []
    for name, x in zip(opaque.inputs, inputs, strict=True):
        if x is not None and name in opaque.at_centres:
            x = x[:, :, ::stride, ::stride].flatten(2)
        prepared.append(None if x is None else _array(x, kernels.working(x)))
    return prepared


def _array(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, contiguous, in this dtype and detached. Checks avoid steps without effect, which take longer."""
    x = _of_dtype(x, dtype)
    if not x.is_contiguous():
        x = x.contiguous()
    return x.detach() if x.requires_grad else x


def _of_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def _at_every_position(gradient: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """The gradient of an input of this shape; it is 0 where the kernel has not read the input."""
    if gradient.numel() == shape.numel():
        return gradient.view(shape)
    map_ = gradient.new_zeros(shape)
    centres = map_[:, :, ::stride, ::stride]
    centres.copy_(gradient.view_as(centres))
    return map_


def _fake(library: torch.library.Library, opaque: Opaque) -> None:
    def outputs(*arguments: Any) -> Any:
        inputs, options = opaque.split(arguments)
        return _one_or_tuple([inputs[0].new_empty(shape) for shape in opaque.plan(_shapes(inputs), *options).outputs])

    def gradients(*arguments: Any) -> Any:
        _, inputs, _, needs = opaque.split_backward(arguments)
        return _one_or_tuple(
            [
                (inputs[0] if x is None else x).new_empty(x.shape if x is not None and need else 0)
                for x, need in zip(inputs, needs, strict=True)
            ]
        )

    torch.library.register_fake(f"{library.ns}::{opaque.name}", outputs, lib=library)
    torch.library.register_fake(f"{library.ns}::{opaque.backward}", gradients, lib=library)


class Derivatives(NamedTuple):
    """The derivatives of an operator: `setup_context`, `backward` and `jvp` of a torch.autograd.Function."""

    save: Callable[..., None]
    gradients: Callable[..., Any]
    tangents: Callable[..., Any]


def _differentiate(library: torch.library.Library, opaque: Opaque) -> None:
    ns = getattr(torch.ops, library.ns)
    entries = getattr(ns, opaque.name).default, getattr(ns, opaque.backward).default
    _use(library, opaque.name, _of_forward(opaque, *entries))
    _use(library, opaque.backward, _of_backward(opaque, *entries))


def _use(library: torch.library.Library, name: str, derivatives: Derivatives) -> None:
    """Let autograd, forward-mode AD and torch.func use these derivatives of the operator `name`.

    torch.library.register_autograd does not support forward mode: its tangents are 0, without an error.
    """
    entry = getattr(getattr(torch.ops, library.ns), name).default

    def forward(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return entry(*arguments)

    def vmap(info: Any, axes: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        """Computes the slices one by one."""
        pairs = list(zip(arguments, axes, strict=True))
        found = [
            entry(*(x.select(axis, number) if isinstance(axis, int) else x for x, axis in pairs))
            for number in range(info.batch_size)
        ]
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * len(found[0])

    parts = dict(zip(("setup_context", "backward", "jvp"), derivatives, strict=True), forward=forward, vmap=vmap)
    methods = {part: staticmethod(function) for part, function in parts.items()}
    function = type(f"{library.ns}_{name}", (torch.autograd.Function,), methods)
    apply = super(torch.autograd.Function, function).apply  # pyright: ignore[reportAttributeAccessIssue]

    def derive(*arguments: Any) -> Any:
        """Do the same as `Function.apply`, without its work for torch.func and for keyword arguments."""
        if torch._C._are_functorch_transforms_active():
            return function.apply(*arguments)
        arguments = unwrap_dead_wrappers(arguments)
        if forward_ad._current_level < 0 and not (torch.is_grad_enabled() and any(map(_learns, arguments))):
            return forward(*arguments)
        return apply(*arguments)

    for key in ("Autograd", "FuncTorchDynamicLayerFrontMode"):  # torch.func dispatches to the second
        library.impl(name, derive, key)


def _learns(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.requires_grad


def _of_forward(opaque: Opaque, forward: Callable[..., Any], backward: Callable[..., Any]) -> Derivatives:
    """The derivatives of F(a, b), where F is the operator."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors, ctx.options = opaque.split(inputs)
        outputs = output if opaque.outputs > 1 else (output,)
        _keep(ctx, [*(outputs[number] for number in opaque.saved), *tensors])

    def gradients(ctx: Any, *arriving: Tensor) -> tuple[Any, ...]:
        needs = list(ctx.needs_input_grad[: len(opaque.inputs)])
        found = backward(*arriving[: opaque.differentiable], *ctx.saved_tensors, *ctx.options, needs)
        return *_needed(found, needs), *[None] * len(ctx.options)

    def tangents(ctx: Any, *arriving: Tensor | None) -> Any:
        if opaque.degree is None:
            raise NotImplementedError(f"{opaque.name} has no forward-mode derivative; expected {opaque.instead}")
        inputs, (moved, _) = ctx.saved_tensors, opaque.split(arriving)
        if opaque.degree == 1:
            return forward(*map(_or_zeros, moved, inputs), *ctx.options)
        (a, b), (u, v) = inputs, moved
        return sum(forward(*pair, *ctx.options) for pair in ((u, b), (a, v)) if all(x is not None for x in pair))

    return Derivatives(save, gradients, tangents)


def _of_backward(opaque: Opaque, forward: Callable[..., Any], backward: Callable[..., Any]) -> Derivatives:
    """The derivatives of the gradients B(G, a, b) of F(a, b), where G is the gradient of F.

    Let u, v be the gradients of B's two outputs. If F is linear in each input, the gradient of G is F(u, b) + F(a, v),
    and those of a, b are B(G, u, v). If F is linear in both together, B depends on G alone: the gradient of G is
    F(u, v), and a, b have none.
    """

    def refuse(ctx: Any, *arriving: Tensor) -> Any:
        raise NotImplementedError(f"{opaque.name} has no second derivative; expected {opaque.instead}")

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        (gradient,), tensors, ctx.options, ctx.needs = opaque.split_backward(inputs)
        _keep(ctx, [gradient, *tensors])

    def gradients(ctx: Any, *arriving: Tensor) -> tuple[Any, ...]:
        gradient, *inputs = ctx.saved_tensors
        found = zip(arriving, ctx.needs, inputs, strict=True)
        arrived = [x if need else torch.zeros_like(like) for x, need, like in found]
        others = [None] * (len(ctx.options) + 1)
        if opaque.degree == 1:
            return forward(*arrived, *ctx.options), *[None] * len(inputs), *others
        (a, b), (u, v), (to_u, to_v) = inputs, arrived, ctx.needs
        terms = [forward(u, b, *ctx.options)] * to_u + [forward(a, v, *ctx.options)] * to_v
        needs = [to_v and ctx.needs_input_grad[1], to_u and ctx.needs_input_grad[2]]
        return sum(terms), *_needed(backward(gradient, u, v, *ctx.options, needs), needs), *others

    def tangents(ctx: Any, moved: Tensor | None, *arriving: Tensor | None) -> tuple[Tensor, ...]:
        gradient, *inputs = ctx.saved_tensors
        how = *ctx.options, ctx.needs
        found = backward(_or_zeros(moved, gradient), *inputs, *how)
        if opaque.degree == 1:
            return found
        directions = map(_or_zeros, opaque.split(arriving)[0], inputs)
        return tuple(x + y for x, y in zip(found, backward(gradient, *directions, *how), strict=True))

    if opaque.degree is None:
        return Derivatives(lambda ctx, inputs, output: None, refuse, refuse)
    return Derivatives(save, gradients, tangents)


def _keep(ctx: Any, tensors: Sequence[Tensor | None]) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _or_zeros(direction: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if direction is None else direction


def _needed(gradients: Tensor | Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    gradients = [gradients] if isinstance(gradients, Tensor) else gradients
    return [x if need else None for x, need in zip(gradients, needs, strict=True)]


def _count(library: torch.library.Library, opaque: Opaque) -> None:
    """Two operations per multiply-add. Both functions get the shapes of the tensors."""
    ns = getattr(torch.ops, library.ns)

    def flops(*arguments: Any, out_shape: Any = None, **kwargs: Any) -> int:
        shapes, options = opaque.split(arguments)
        return 2 * opaque.plan(shapes, *options).macs

    def backward_flops(*arguments: Any, out_shape: Any = None, **kwargs: Any) -> int:
        _, shapes, options, needs = opaque.split_backward(arguments)
        return opaque.backward_macs(needs) * flops(*shapes, *options)

    register_flop_formula(getattr(ns, opaque.name))(flops)
    register_flop_formula(getattr(ns, opaque.backward))(backward_flops)
