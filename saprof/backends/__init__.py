"""The backends: who computes an operator, and the one adapter to torch.library.

A backend is a module with `kernel(name)`, the function that computes the operator of that name from its inputs and a
footprint, or None, and `why_not`, which says what it cannot compute. It computes or it raises; only `backend="auto"`
may choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from saprof import operators
from saprof.footprint import Footprint
from saprof.operators import Operator, for_every_operator

BACKENDS: dict[str, ModuleType] = {name: import_module(f"saprof.backends.{name}") for name in operators.BACKENDS}
"""By name, the best first: the order in which `auto` asks."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Unsupported(ValueError):
    """The backend cannot compute this operator on these inputs."""


def call(operator: Operator, inputs: Sequence[Tensor], footprint: Footprint, backend: str = "auto") -> Tensor:
    """Check the inputs at the border, then run `operator` through its dispatcher entry `saprof::<name>`."""
    if not isinstance(footprint, Footprint):
        raise ValueError(
            f"{operator.name}: footprint is {footprint!r}; expected a Footprint, such as Footprint.square(7)"
        )
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(unknown("backend", backend, [*BACKENDS, "auto"]))
    _check_tensors(operator, inputs)
    device = inputs[0].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # in the autocast type, like a convolution; inside, no part of a backend is cast on its own
        inputs = _cast(inputs, torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return call(operator, inputs, footprint, backend)
    _check_alike(operator, inputs)
    operator.bind([x.shape for x in inputs], footprint)
    return getattr(torch.ops.saprof, operator.name)(*inputs, str(footprint), backend)


def why_not(backend: str, operator: Operator, dtype: torch.dtype, device: str, footprint: Footprint) -> str | None:
    """The reason why `backend` cannot compute `operator` there, or None if it can."""
    module = BACKENDS[backend]
    reason = module.why_not(operator.name, dtype, torch.device(device).type, footprint)
    if reason is None and module.kernel(operator.name) is None:
        return f"no kernel for {operator.name}"
    return reason


def choose(operator: Operator, dtype: torch.dtype, device: str, footprint: Footprint, backend: str = "auto") -> str:
    """The backend that will run: the named one, or under `auto` the first that can; else Unsupported, with reasons."""
    reasons = []
    for name in BACKENDS if backend == "auto" else (backend,):
        reason = why_not(name, operator, dtype, device, footprint)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise Unsupported(f"{operator.name}: " + "; ".join(reasons))


def check_device(device: str) -> None:
    """ValueError unless torch sees `device` here."""
    count = torch.cuda.device_count()
    here = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if device not in here:
        raise ValueError(f"device is {device!r}; expected one that torch sees here: {', '.join(here)}")


def unknown(what: str, got: str, valid: Sequence[str]) -> str:
    """The sentence for a name nobody knows."""
    *most, last = (repr(name) for name in valid)
    return f"unknown {what} {got!r}; expected {', '.join(most) + ' or ' if most else ''}{last}"


def _check_tensors(operator: Operator, inputs: Sequence[Tensor]) -> None:
    operator.check_count(inputs)
    for (name, _), x in zip(operator.inputs, inputs, strict=True):
        if not isinstance(x, Tensor):
            raise ValueError(f"{operator.name}: {name} is a {type(x).__name__}; expected a torch.Tensor")
        if x.dtype not in DTYPES:
            names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise ValueError(f"{operator.name}: dtype of {name} is {x.dtype}; expected one of {names}")


def _cast(inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x if x.dtype == torch.float64 else x.to(dtype) for x in inputs]


def _check_alike(operator: Operator, inputs: Sequence[Tensor]) -> None:
    first = inputs[0]
    for (name, _), x in zip(operator.inputs, inputs, strict=True):
        for what, got, expected in (("dtype", x.dtype, first.dtype), ("device", x.device, first.device)):
            if got != expected:
                raise ValueError(
                    f"{operator.name}: {what} of {name} is {got}; expected {expected}, as of {operator.inputs[0][0]}"
                )


# The adapter. `saprof::<operator>` is a composite: tracers and fvcore see one call by its declared name, while autograd
# and torch.compile see what the backend does.

_libraries: dict[str, torch.library.Library] = {}


def register(operator: Operator) -> None:
    """Give the operator its dispatcher entry."""

    def compute(*arguments) -> Tensor:
        *inputs, text, backend = arguments
        footprint = Footprint.parse(text)
        chosen = choose(operator, inputs[0].dtype, inputs[0].device.type, footprint, backend)
        return BACKENDS[chosen].kernel(operator.name)(*inputs, footprint)

    _libraries[operator.name] = library = torch.library.Library("saprof", "FRAGMENT")
    library.define(operator.schema)
    library.impl(operator.name, compute, "CompositeImplicitAutograd")


for_every_operator(register)
