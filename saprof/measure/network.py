"""Networks of a sweep: built, moved to their device and dtype, and counted."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from saprof.layers import LocalAttention
from saprof.measure.cells import Cell, Network
from saprof.models.counting import blueprint, count
from saprof.models.inputs import first, image_channels, images, moved, sizes
from saprof.models.named import REGISTERED

_uncounted: set[str] = set()
"""The networks for which the message that they cannot be counted was printed."""


@dataclass(frozen=True)
class Runnable:
    """The function or module of a cell, before it is called."""

    function: Callable[..., Any]
    inputs: Callable[[], Any]
    """Makes the inputs, the same every time."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The fields of its row that are known before it runs."""
    fullgraph: bool = True
    """Whether it must compile without a break of the graph: everything of ours does."""
    predictable: bool = True
    """Whether it must run with tensors that have shapes and no data: everything of ours does."""

    def stand_in(self) -> Callable[..., Any] | None:
        """The function that predicts the memory. For a network that is not ours it is a copy, since such a network may
        keep what it has computed; None if it cannot be copied."""
        return self.function if self.predictable else _copy(self.function)


def network(cell: Cell, subject: Network) -> Runnable:
    """The network of a cell."""
    torch.manual_seed(0)
    about, training, dtype = subject.about, cell.mode != "forward", getattr(torch, subject.dtype)
    chosen = {"backend": cell.backend, "attention": cell.attention} if about.has_choices else {}
    built = about.build(**subject.overrides, **chosen)
    model = built.module.to(cell.device, dtype).train(training)
    ours = about.kind == REGISTERED

    channels = image_channels(model)

    def inputs() -> Any:
        if built.inputs is None:
            return images(subject.batch, subject.size, channels).to(cell.device, dtype)
        return moved(built.inputs, cell.device, dtype)

    cost = figures(subject) if ours else counts(subject.name, model, _one(subject, channels, built.inputs))
    return Runnable(
        model,
        inputs,
        facts=what_runs(model, dtype, cell.device) | cost,
        fullgraph=ours,
        predictable=ours,
    )


def figures(subject: Network) -> dict[str, int]:
    """The counts of a registered network for one image; each is counted once in a process."""
    return dict(_figures(replace(subject, batch=1)))


@cache
def _figures(subject: Network) -> dict[str, int]:
    model = blueprint(subject.name, **subject.overrides).to(getattr(torch, subject.dtype))
    return count(model, inputs=_one(subject, image_channels(model))).figures


def _one(subject: Network, channels: int, own: Any = None) -> Any:
    """One image without values, or the inputs that a network has of its own."""
    sizes = (1, channels, subject.size, subject.size)
    return torch.empty(sizes, dtype=getattr(torch, subject.dtype), device="meta") if own is None else own


def what_runs(model: nn.Module, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The attentions and backends of a model's attention layers, each joined by `+`; `torch` for a model without
    any. For a layer that has run, this is what ran; for any other, it is the plan."""
    layers = [layer for layer in model.modules() if isinstance(layer, LocalAttention)]
    plans = [layer.ran.split(" on ") if layer.ran else layer.plan(dtype, device) for layer in layers]
    if not plans:
        return {"backend": "torch"}
    attentions, backends = ("+".join(dict.fromkeys(parts)) for parts in zip(*plans, strict=True))
    return {"backend": "+".join(dict.fromkeys(backends.split("+"))), "attention": attentions}


def counts(name: str, model: nn.Module, inputs: Any) -> dict[str, Any]:
    """The counts of a network that is not registered, for the first entry of its inputs if they have a batch in common.
    If it cannot be counted, the reason is printed once, and only its parameters are returned."""
    params = {"params": sum(parameter.numel() for parameter in model.parameters())}
    counted = _copy(model)  # since a network may keep what it computes, which has no data here
    try:
        if counted is None:
            raise ValueError("it cannot be copied")
        return count(counted, inputs=inputs if sizes(inputs).n is None else first(inputs)).figures | params
    except Exception as error:  # a network of a user can raise anything
        if name not in _uncounted:
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"{name} has no counts of operations: {reason}", file=sys.stderr)
        _uncounted.add(name)
        return params


def _copy(model: Any) -> Any:
    try:
        return copy.deepcopy(model)
    except Exception:  # a network of a user can contain anything
        return None
