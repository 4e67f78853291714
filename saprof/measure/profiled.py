"""A module with its inputs and a mode, ready to be profiled. Its state is restored after the profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from saprof.layers import LocalAttention
from saprof.measure.cells import PROFILED_MODES
from saprof.measure.prepared import Prepared
from saprof.models.inputs import arguments, dtype_of, tensors
from saprof.models.state import attributes_kept
from saprof.text import unknown


@dataclass(frozen=True)
class Profiled:
    """A module in one mode. A training step is a forward and a backward of the sum of all outputs, without a loss
    function and without an optimizer."""

    name: str
    module: nn.Module
    inputs: Any
    mode: str = "forward"

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            got = type(self.module).__name__
            raise ValueError(f"{self.name} is of type {got}; expected an nn.Module, whose layers can be profiled")
        if self.mode not in PROFILED_MODES:
            raise ValueError(unknown("mode", self.mode, PROFILED_MODES))
        arguments(self.inputs)
        if any(is_lazy(x) for x in [*self.module.parameters(), *self.module.buffers()]):
            raise ValueError(f"{self.name} has parameters without a shape; expected a network that has run once")
        devices = {x.device for x in [*self.module.parameters(), *self.module.buffers(), *tensors(self.inputs)]}
        if len(devices) > 1 or torch.device("meta") in devices:
            found = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"{self.name} and its inputs are on {found}; expected all of them on one device with data")

    @property
    def device(self) -> str:
        known = [*tensors(self.inputs), *self.module.parameters(), *self.module.buffers()]
        return str(known[0].device) if known else "cpu"

    @property
    def dtype(self) -> str:
        """That of the first floating-point tensor of the module, or of its inputs."""
        return str(dtype_of([*self.module.parameters(), *tensors(self.inputs)])).removeprefix("torch.")

    @cached_property
    def call(self) -> Callable[[], object]:
        """One forward without gradients, or one training step."""
        return Prepared(self.module, self.inputs, tuple(self.module.parameters()), self.mode, self.device).call()

    def unchanged(self) -> AbstractContextManager[None]:
        """Put the module into the state of the mode, and restore its own state afterwards."""
        return unchanged(self.module, self.mode, self.device)


@contextmanager
def unchanged(module: nn.Module, mode: str, device: str) -> Iterator[None]:
    """Put a module into the state of a mode. Afterwards restore its training flags, its attributes, the values of its
    buffers, such as running statistics, and torch's random numbers.

    A forward runs in evaluation mode. Every other mode runs in training mode; if the module itself is in training mode
    already, the flags of the modules inside stay, so that a frozen batch norm stays frozen.
    """
    # scripts that are frozen have no mode
    flags = {inside: inside.training for inside in module.modules() if hasattr(inside, "training")}
    buffers = [(x, x.detach().clone()) for x in module.buffers()]
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    try:
        with torch.random.fork_rng(cuda), attributes_kept(module):
            if mode == "forward":
                module.eval()
            elif not flags.get(module, True):
                module.train()
            yield
    finally:
        for inside, training in flags.items():
            inside.training = training
        for x, before in buffers:
            with torch.inference_mode(x.is_inference()), torch.no_grad():  # which alone may change such a tensor
                x.copy_(before)


@contextmanager
def composed(module: nn.Module) -> Iterator[None]:
    """In this context, the attention layers of a network are composed: their parts run one after the other."""
    before = [(layer, layer.attention) for layer in module.modules() if isinstance(layer, LocalAttention)]
    try:
        for layer, _ in before:
            layer.attention = "composed"
        yield
    finally:
        for layer, chosen in before:
            layer.attention = chosen
