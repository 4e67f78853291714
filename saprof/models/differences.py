"""The differences between a network and the one that its config builds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from saprof.operators import Operator

_STATE = frozenset(vars(nn.Module())) | {"_compiled_call_impl", "ran", "why_composed"}
"""The attributes that torch keeps in every module, and those in which saprof's modules store how they ran."""
SHOWN = 8
"""The largest number of reasons in a message."""


def listed(reasons: list[str]) -> str:
    """The first reasons, and the number of the others."""
    more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    return "; ".join(reasons[:SHOWN]) + more


def differences(model: nn.Module, expected: nn.Module, *, values: bool = True) -> list[str]:
    """Why `model` may compute something else than `expected`, a sentence for each reason.

    Modules, their types, settings and tensors must be equal, and no hook may run with a forward. Without `values`, the
    contents and dtypes of tensors may differ, and so may `backend` and `attention`.
    """
    theirs = dict(expected.named_modules(remove_duplicate=False))
    ours = dict(model.named_modules(remove_duplicate=False))
    found = [f"{name} is missing" for name in theirs if name not in ours]
    for name, module in ours.items():
        where = name or type(model).__name__
        if name not in theirs:
            found.append(f"{where} is unexpected")
        else:
            found += (f"{where} {reason}" for reason in _of_module(module, theirs[name], values))
    return found + [f"{names} are one tensor; expected one each" for names in sorted(_shared(model))]


def _of_module(module: nn.Module, expected: nn.Module, values: bool) -> Iterator[str]:
    if type(module) is not type(expected):
        yield f"is a {type(module).__name__}; expected a {type(expected).__name__}"
        return
    if module._forward_hooks or module._forward_pre_hooks:
        yield "has hooks that run with its forward; expected none"
    if list(module._modules) != list(expected._modules) and module._modules.keys() == expected._modules.keys():
        yield "has its modules in another order"
    skipped = _STATE if values else _STATE | {"backend", "attention"}
    ours, theirs = ({name: x for name, x in vars(m).items() if name not in skipped} for m in (module, expected))
    for name in ours.keys() - theirs.keys():
        if hasattr(type(module), name):
            yield f"has its own {name}; expected that of its class"
    for name, value in theirs.items():
        if name not in ours:
            yield f"has no {name}; expected {_named(value)}"
        elif not _equal(ours[name], value):
            yield f"has {name}={_named(ours[name])}; expected {_named(value)}"
    for kind in ("_parameters", "_buffers"):
        yield from _of_tensors(getattr(module, kind), getattr(expected, kind), values)


def _of_tensors(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None], values: bool) -> Iterator[str]:
    for name in ours.keys() | theirs.keys():
        if name not in theirs or name not in ours:
            yield f"has {'an unexpected' if name in ours else 'no'} {name}"
        elif values and (misfit := _of_tensor(ours[name], theirs[name])) is not None:
            yield f"has {misfit} {name}"


def _of_tensor(ours: Tensor | None, theirs: Tensor | None) -> str | None:
    if ours is None or theirs is None:
        return None if ours is theirs else "an unexpected" if theirs is None else "no"
    if any(x.layout is not torch.strided for x in (ours, theirs)) or (ours.shape, ours.dtype) != (
        theirs.shape,
        theirs.dtype,
    ):
        return "another kind of"
    bits = (x.detach().cpu().clone(memory_format=torch.contiguous_format).flatten() for x in (ours, theirs))
    return None if torch.equal(*(x.view(torch.uint8) for x in bits)) else "other values of"


def _shared(model: nn.Module) -> set[str]:
    """The names of every tensor, or of its memory, that has several."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, x in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        in_memory = x.layout is torch.strided and not x.is_meta and x.numel()
        names[x.data_ptr() if in_memory else id(x)].append(name)
    return {" and ".join(several) for several in names.values() if len(several) > 1}


def _named(value: object) -> object:
    return value.name if isinstance(value, Operator) else value


def _equal(a: object, b: object) -> bool:
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # such as tensors of several elements, which have no truth value
        return False
