"""The inputs of a network: one tensor, a tuple of positional arguments, or a dict of keyword arguments.

The arguments themselves may be nested: tuples, lists and dicts of tensors and other values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

EXPECTED = "a tensor, a tuple of positional arguments, or a dict of keyword arguments"


class Sizes(NamedTuple):
    """The batch and the map of some inputs."""

    n: int | None
    """The first side of every tensor; None if they differ."""
    h: int | None
    w: int | None
    """Rows and columns of the first tensor with four axes; None if there is none."""

    @property
    def fields(self) -> dict[str, int]:
        """The fields of a row: 1 for no common batch, 0 × 0 for no map."""
        return {"n": self.n or 1, "h": self.h or 0, "w": self.w or 0}


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of a call. Raises ValueError if `inputs` is none of the three kinds."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, tuple):
        return tuple(inputs), {}
    if isinstance(inputs, dict) and all(isinstance(name, str) for name in inputs):
        return (), dict(inputs)
    got = "names that are not strings" if isinstance(inputs, dict) else f"type {type(inputs).__name__}"
    raise ValueError(f"got inputs of {got}; expected {EXPECTED}")


def tensors(values: Any) -> list[Tensor]:
    """The tensors in some inputs, or in the output of a network, in order. Dataclasses are opened too."""
    found: list[Tensor] = []
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors(list(vars(leaf).values()))
    return found


def sizes(inputs: Any) -> Sizes:
    """The batch and the map of some inputs."""
    found = tensors(inputs)
    batches = {x.shape[0] if x.dim() else None for x in found}
    maps = [x.shape[2:] for x in found if x.dim() == 4]
    return Sizes(batches.pop() if len(batches) == 1 else None, *(maps[0] if maps else (None, None)))


def dtype_of(found: Iterable[Tensor]) -> torch.dtype:
    """The dtype of the first floating-point tensor."""
    return next((x.dtype for x in found if x.is_floating_point()), torch.get_default_dtype())


def first(inputs: Any) -> Any:
    """The same inputs with a batch of one: the first entry of every tensor."""
    return _each(inputs, lambda x: x[:1])


def copied(inputs: Any) -> Any:
    """Copies of the tensors, which a call may change; they require gradients if the originals do."""
    return _each(inputs, lambda x: x.detach().clone().requires_grad_(x.requires_grad))


def replaced(inputs: Any, others: Iterable[Tensor]) -> Any:
    """The same inputs with other tensors, in the order of `tensors`."""
    rest = iter(others)
    return _each(inputs, lambda _: next(rest))


def moved(inputs: Any, device: str, dtype: torch.dtype | None = None) -> Any:
    """Copies of the inputs on a device; the tensors of real numbers have the dtype, if it is given. They require
    gradients if the originals do."""

    def move(x: Tensor) -> Tensor:
        copied = x.detach().to(device, dtype if dtype and x.is_floating_point() else x.dtype, copy=True)
        return copied.requires_grad_(x.requires_grad)

    return _each(inputs, move)


def _each(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, inputs)


def image_channels(network: nn.Module) -> int:
    """The channels of the images that a network takes: those of its config, or else 3."""
    channels = getattr(getattr(network, "config", None), "in_channels", None)
    return channels if isinstance(channels, int) else 3


def images(batch: int, side: int, channels: int = 3) -> Tensor:
    """Random normal images, shape (batch, channels, side, side), the same every time."""
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))
