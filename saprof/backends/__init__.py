"""The backends, which compute the operators, and the dispatcher entry of each operator.

A backend is a module with three functions. `kernel(operator)` returns the function that computes the operator from its
inputs and a footprint, or None if there is none. `statistics(attention)` returns the function that computes the
statistics of a fused attention. A backend may also have `training(attention, device)`, which returns the function that
computes a fused attention in training, or None. `why_not` returns the reason why the backend cannot compute, or None.
A backend computes or raises; only `backend="auto"` may choose another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from saprof import operators
from saprof.backends.tables import computes
from saprof.operators import Operator, for_every_operator
from saprof.operators.attention import Attention
from saprof.operators.footprint import Footprint
from saprof.text import unknown

BACKENDS: dict[str, ModuleType] = {name: import_module(f"saprof.backends.{name}") for name in operators.BACKENDS}
"""The backends by name, in the order in which `auto` tries them."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Function = TypeVar("Function", bound=Callable[..., Any])


class Unsupported(ValueError):
    """The backend cannot compute this operator on these inputs."""


def constant(function: Function) -> Function:
    """`torch.compiler.assume_constant_result` without the import of the compiler, which takes two seconds. The compiler
    calls the function while it traces, and keeps the result."""
    function.__dict__["_dynamo_marked_constant"] = True
    return function


def run(operator: Operator, *inputs: Tensor, footprint: Footprint | int | str, backend: str = "auto") -> Tensor:
    """Compute `operator` on `inputs`, given in the order of its declaration. The footprint may also be a size such as 7
    or text such as "disk:9". `backend="auto"` uses the first that can compute it.

    Raises ValueError if the inputs do not fit the declaration or each other (number, axes, dtype, device), or if the
    backend is unknown; Unsupported, with the backends' reasons, if none can run it.
    """
    if not isinstance(operator, Operator):
        raise ValueError(f"operator is {operator!r}; expected a declaration, such as saprof.operators.aggregation")
    operator.check_count(inputs)
    named = [(name, x) for (name, _), x in zip(operator.inputs, inputs, strict=True)]
    checked = _check(operator, named, backend)
    return _dispatch(operator.name, checked, _text(operator, footprint), backend)


def run_statistics(
    operator: Attention, *inputs: Tensor, footprint: Footprint | int | str, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the input of a batch norm of γ, over images, centres and, if pairwise, taps.

    `inputs` are the maps of the operator without β, then scale, shift and weight of each step before that norm. Raises
    like `run`.
    """
    expected = [entry for entry in operator.inputs if entry[0] != "beta"]
    named = [(name, x) for (name, _), x in zip(expected, inputs, strict=False)]
    maps = operator.maps - 1
    if not 0 <= len(inputs) - maps <= len(expected) - maps - 4 or (len(inputs) - maps) % 3:
        raise ValueError(
            f"{operator.name}: got {len(inputs)} inputs of its statistics; expected "
            f"{', '.join(name for name, _ in expected[:maps])}, then the steps before the norm, of three each"
        )
    checked = _check(operator, named, backend)
    return _dispatch(f"{operator.name}_statistics", [checked], _text(operator, footprint), backend)


def run_in_training(
    operator: Attention, *inputs: Tensor, eps: Sequence[float], footprint: Footprint | int | str, backend: str = "auto"
) -> list[Tensor]:
    """The attention whose batch norms use the statistics of the batch, then the mean and the biased variance of every
    norm.

    `inputs` are those of `run`, with the weight and bias of each norm in place of its scale and shift; `eps` has the ε
    of each norm. Raises like `run`, and Unsupported where `in_parts` is false.
    """
    operator.check_count(inputs)
    checked = _check(operator, [(name, x) for (name, _), x in zip(operator.inputs, inputs, strict=True)], backend)
    return _dispatch(f"{operator.name}_training", [checked, list(eps)], _text(operator, footprint), backend)


@constant
def in_parts(backend: str, operator: Attention, device: str) -> bool:
    """Whether `backend` computes the attention in training by `run_in_training`, without a second run of γ's layers."""
    module = BACKENDS[backend]
    return hasattr(module, "training") and module.training(operator, device) is not None


def why_not(backend: str, operator: Operator, dtype: torch.dtype, device: str, footprint: Footprint) -> str | None:
    """The reason why `backend` cannot compute `operator` on such inputs, or None."""
    if backend not in BACKENDS:
        raise ValueError(unknown("backend", backend, [*BACKENDS, "auto"]))
    module = BACKENDS[backend]
    reason = module.why_not(operator, dtype, torch.device(device).type, footprint)
    if reason is None and module.kernel(operator) is None:
        return f"no kernel for {operator.name}"
    return reason


def choose(operator: Operator, dtype: torch.dtype, device: str, footprint: Footprint, backend: str = "auto") -> str:
    """The backend that will run: the named one, or with `auto` the first that can. Raises Unsupported with the
    reasons."""
    reasons = []
    for name in BACKENDS if backend == "auto" else (backend,):
        reason = why_not(name, operator, dtype, device, footprint)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise Unsupported(f"{operator.name}: " + "; ".join(reasons))


def computed_in(backend: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the products and sums of `backend`: at least float32 in kernels, and `dtype` itself in
    `unfold`, where the gradient of F.unfold adds up in half precision."""
    return dtype if backend == "unfold" else torch.promote_types(dtype, torch.float32)


def check_device(device: str) -> None:
    """Raises ValueError unless torch sees `device` on this machine."""
    count = torch.cuda.device_count()
    here = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if device not in here:
        raise ValueError(f"device is {device!r}; expected one that torch sees here: {', '.join(here)}")


def _text(operator: Operator, footprint: Footprint | int | str) -> str:
    """The footprint as `Footprint.parse` reads it."""
    if isinstance(footprint, Footprint):
        return str(footprint)
    try:
        return _read(footprint)
    except ValueError as error:
        raise ValueError(f"{operator.name}: {error}") from None


@constant
def _read(footprint: int | str) -> str:
    """The text of a footprint that is given as a size or as text. torch.compile calls this and does not trace it."""
    return str(Footprint.of(footprint))


def _check(operator: Operator, named: Sequence[tuple[str, Tensor]], backend: str) -> list[Tensor]:
    """The inputs (given with their names), checked against each other; under autocast, cast to its dtype."""
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(unknown("backend", backend, [*BACKENDS, "auto"]))
    _check_tensors(operator, named)
    if _casts(named[0][1]):
        named = [(name, x if name in operator.own_dtype else _cast(x)) for name, x in named]
    _check_alike(operator, named)
    return [x for _, x in named]


def _dispatch(name: str, inputs: Sequence[Any], footprint: str, backend: str) -> Any:
    """Call a dispatcher entry. Autocast is disabled inside, so that no part of a backend is cast separately."""
    # an exported program then has the operators inside the entry: with unfold, it runs without saprof
    exports = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    entry = _entries[name] if exports else getattr(torch.ops.saprof, name)  # modes see no call of an overload
    first = inputs[0][0] if isinstance(inputs[0], list) else inputs[0]
    if not _casts(first):
        return entry(*inputs, footprint, backend)
    with torch.autocast(first.device.type, enabled=False):
        return entry(*inputs, footprint, backend)


def _casts(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _check_tensors(operator: Operator, named: Sequence[tuple[str, Tensor]]) -> None:
    for name, x in named:
        if not isinstance(x, Tensor):
            raise ValueError(f"{operator.name}: {name} is a {type(x).__name__}; expected a torch.Tensor")
        if x.dtype not in DTYPES:
            names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise ValueError(f"{operator.name}: dtype of {name} is {x.dtype}; expected one of {names}")


def _cast(x: Tensor) -> Tensor:
    """The tensor with the autocast dtype, like the input of a convolution."""
    return x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(x.device.type))


def _check_alike(operator: Operator, named: Sequence[tuple[str, Tensor]]) -> None:
    like, first = named[0]
    for name, x in named:
        for what, got, expected in (("dtype", x.dtype, first.dtype), ("device", x.device, first.device)):
            if got != expected and not (what == "dtype" and name in operator.own_dtype):
                raise ValueError(f"{operator.name}: {what} of {name} is {got}; expected {expected}, as of {like}")


# The adapter. `saprof::<operator>` is a composite operator: tracers and fvcore see one call with the declared name,
# while autograd and torch.compile see the backend's own operators.

_libraries: dict[str, torch.library.Library] = {}
_entries: dict[str, Callable[..., Any]] = {}
"""The functions that compute the dispatcher entries, by the name of the entry."""


def register(operator: Operator) -> None:
    """Register the operator's dispatcher entry."""

    checked = lru_cache(maxsize=1024)(lambda text, *shapes: operator.bind(shapes, Footprint.parse(text)))

    def compute(*arguments) -> Tensor:
        *inputs, text, backend = arguments
        footprint = Footprint.parse(text)
        shapes = [x.shape for x in inputs]
        if computes(inputs[0]):
            checked(text, *shapes)
        else:  # sizes may be symbols
            operator.bind(shapes, footprint)  # here, since torch.compile does not trace it
        chosen = choose(operator, inputs[0].dtype, inputs[0].device.type, footprint, backend)
        return BACKENDS[chosen].kernel(operator)(*inputs, footprint)

    _libraries[operator.name] = library = torch.library.Library("saprof", "FRAGMENT")
    library.define(operator.schema)
    _compose(library, operator.name, compute)
    if isinstance(operator, Attention):
        _register_statistics(library, operator)
        if operator.family == "patchwise":
            _register_training(library, operator)


def _register_statistics(library: torch.library.Library, operator: Attention) -> None:
    name = f"{operator.name}_statistics"

    def compute(inputs: list[Tensor], text: str, backend: str) -> tuple[Tensor, Tensor]:
        footprint = Footprint.parse(text)
        given = [entry for entry in operator.inputs if entry[0] != "beta"][: len(inputs)]
        replace(operator, inputs=tuple(given)).bind([x.shape for x in inputs], footprint)
        chosen = choose(operator, inputs[0].dtype, inputs[0].device.type, footprint, backend)
        return BACKENDS[chosen].statistics(operator)(*inputs, footprint)

    library.define(f"{name}(Tensor[] inputs, str footprint, str backend) -> (Tensor, Tensor)")
    _compose(library, name, compute)


def _compose(library: torch.library.Library, name: str, compute: Callable[..., Any]) -> None:
    """Compute `name` by other operators, which torch.func then transforms one by one."""
    _entries[name] = compute
    for key in ("CompositeImplicitAutograd", "FuncTorchDynamicLayerFrontMode"):
        library.impl(name, compute, key)


def _register_training(library: torch.library.Library, operator: Attention) -> None:
    name = f"{operator.name}_training"

    def compute(inputs: list[Tensor], eps: list[float], text: str, backend: str) -> list[Tensor]:
        footprint = Footprint.parse(text)
        operator.bind([x.shape for x in inputs], footprint)
        device = inputs[0].device.type
        chosen = choose(operator, inputs[0].dtype, device, footprint, backend)
        if not in_parts(chosen, operator, device):
            raise Unsupported(f"{name}: {chosen} has no kernels for it; expected run_statistics and run")
        return BACKENDS[chosen].training(operator, device)(*inputs, eps, footprint)

    library.define(f"{name}(Tensor[] inputs, float[] eps, str footprint, str backend) -> Tensor[]")
    _compose(library, name, compute)


for_every_operator(register)
