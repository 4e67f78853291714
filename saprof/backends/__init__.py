"""The backends: who computes an operator, and the one adapter to torch.library.

A backend is a module with a function per operator, of the operator's name, and `why_not`. It computes or it raises;
only `backend="auto"` may choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from saprof.backends import unfold
from saprof.footprint import Footprint
from saprof.operators import OPERATORS, Operator

BACKENDS: dict[str, ModuleType] = {"unfold": unfold}
"""By name, the best first: the order in which `auto` asks."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class BackendUnavailable(RuntimeError):
    """The backend cannot run on this machine."""


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
    inputs = _autocast(inputs)
    _check(operator, inputs, footprint)
    if operator.name not in _registered:
        register(operator)
    return getattr(torch.ops.saprof, operator.name)(*inputs, str(footprint), backend)


def why_not(backend: str, operator: Operator, dtype: torch.dtype, device: str, footprint: Footprint) -> str | None:
    """The reason why `backend` cannot compute `operator` there, or None if it can."""
    module = BACKENDS[backend]
    if not hasattr(module, operator.name):
        return f"{backend} has no kernel for {operator.name}"
    return module.why_not(operator.name, dtype, torch.device(device).type, footprint)


def choose(operator: Operator, dtype: torch.dtype, device: str, footprint: Footprint, backend: str = "auto") -> str:
    """The backend that will run: the named one, or under `auto` the first that can; else Unsupported, with reasons."""
    candidates = list(BACKENDS) if backend == "auto" else [backend]
    reasons = {name: why_not(name, operator, dtype, device, footprint) for name in candidates}
    for name, reason in reasons.items():
        if reason is None:
            return name
    raise Unsupported(f"{operator.name}: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def unknown(what: str, got: str, valid: Sequence[str]) -> str:
    """The sentence for a name nobody knows."""
    *most, last = (repr(name) for name in valid)
    return f"unknown {what} {got!r}; expected {', '.join(most) + ' or ' if most else ''}{last}"


def _autocast(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Under autocast an operator computes in the autocast type, like a convolution; float64 stays."""
    if not all(isinstance(x, Tensor) for x in inputs):
        return inputs  # the check below has the better words
    device = inputs[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return inputs
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in inputs]


def _check(operator: Operator, inputs: Sequence[Tensor], footprint: Footprint) -> None:
    for (name, _), x in zip(operator.inputs, inputs, strict=False):
        if not isinstance(x, Tensor):
            raise ValueError(f"{operator.name}: {name} is a {type(x).__name__}; expected a torch.Tensor")
        if x.dtype not in DTYPES:
            names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise ValueError(f"{operator.name}: dtype of {name} is {x.dtype}; expected one of {names}")
        for what in ("dtype", "device"):
            if getattr(x, what) != getattr(inputs[0], what):
                raise ValueError(
                    f"{operator.name}: {what} of {name} is {getattr(x, what)}; "
                    f"expected {getattr(inputs[0], what)}, as of {operator.inputs[0][0]}"
                )
    operator.bind([x.shape for x in inputs], footprint)


# The adapter. `saprof::<operator>` is a composite: tracers and fvcore see one call by its declared name, while autograd
# and torch.compile see what the backend does.

LIBRARY = torch.library.Library("saprof", "FRAGMENT")
_registered: set[str] = set()


def register(operator: Operator) -> None:
    """Give `operator` its dispatcher entry; done on import for every operator of `saprof.operators`."""

    def compute(*arguments) -> Tensor:
        *inputs, text, backend = arguments
        footprint = Footprint.parse(text)
        name = choose(operator, inputs[0].dtype, inputs[0].device.type, footprint, backend)
        return getattr(BACKENDS[name], operator.name)(*inputs, footprint)

    LIBRARY.define(operator.schema)
    LIBRARY.impl(operator.name, compute, "CompositeImplicitAutograd")
    _registered.add(operator.name)


for _operator in OPERATORS.values():
    register(_operator)
