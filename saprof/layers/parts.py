"""Parts of layers, and the checks of their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saprof.operators.footprint import Footprint
from saprof.text import unknown


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    """A linear layer at every position."""
    return nn.Conv2d(inputs, outputs, kernel_size=1, bias=bias)


def coordinates(size: Sequence[int], like: Tensor) -> Float[Tensor, "1 2 h w"]:
    """Horizontal, then vertical position on a map, each from −1 to 1 (SAN Sec. 3.1, position encoding).

    On a side of 1 the position is −1.
    """
    h, w = size
    ys, xs = (_from_minus_one_to_one(side, like) for side in (h, w))
    return torch.cat([xs.expand(1, 1, h, w), ys[:, None].expand(1, 1, h, w)], dim=1)


def _from_minus_one_to_one(side: int, like: Tensor) -> Float[Tensor, " side"]:
    if not torch.compiler.is_compiling():
        return torch.linspace(-1, 1, side, device=like.device, dtype=like.dtype)
    # linspace would make a dynamic side a constant of the traced graph
    steps = torch.arange(side, device=like.device, dtype=torch.float64)
    return (2 * steps / torch.sym_max(side - 1, 1) - 1).to(like.dtype)


def block_footprint(footprint: Footprint | int | str, boundary: str) -> Footprint:
    """The footprint of a residual block; `boundary` applies to a size. ValueError if the footprint has a stride."""
    footprint = Footprint.of(footprint, boundary)
    if footprint.stride != 1:
        raise ValueError(f"footprint {footprint} has stride {footprint.stride}; expected 1 inside a residual block")
    return footprint


def expect(what: str, got: str | None, valid: Sequence[str]) -> None:
    """ValueError unless `got` is one of `valid`."""
    if got not in valid:
        raise ValueError(unknown(what, str(got), valid))


def divide(what: str, size: int, by: str, divisor: int | None) -> int:
    """size / divisor. Raises ValueError unless it is an integer."""
    if divisor is None or size % divisor:
        raise ValueError(f"{by} is {divisor}; expected a divisor of {what} = {size}")
    return size // divisor


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
