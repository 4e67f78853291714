"""Attention in the place of a convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saprof.layers.block import ATTENTION
from saprof.layers.config import AttentionConfig
from saprof.layers.local import LocalAttention
from saprof.layers.parts import expect, linear
from saprof.operators import FAMILIES
from saprof.operators.footprint import Footprint, positive
from saprof.text import unknown

_FIELDS = tuple(field.name for field in fields(AttentionConfig) if field.name not in ("family", "relation"))
_PAIR = "a positive integer, or two: rows, columns"


class LocalAttention2d(nn.Module):
    """Attention over a footprint that takes the place of an `nn.Conv2d` with padding.

    Shapes: input (n, in_channels, h, w); output (n, out_channels, ⌈h / stride⌉, ⌈w / stride⌉), as of a convolution
    with the padding (k − 1) / 2.

    `footprint` is a size such as 7, text such as "disk:9", or a Footprint. `family` is `pairwise`, `patchwise` or
    `stand_alone`. `fields` are those of AttentionConfig, such as `heads=4`. `boundary` applies to a size; None is
    `reflect` as in SAN, or `exclude` as in SASA for stand-alone attention. `bias` adds a bias to the projections of
    stand-alone attention, and to the linear layer after any attention. `stride` is one number, or two for rows and
    columns.

    Queries, keys and values of stand-alone attention are maps from `in_channels` to `out_channels`. In the other
    families, φ, ψ and β have out_channels / r channels, where r is the reduction, and a linear layer follows. The
    default of a field is the paper's value, or the next smaller value that divides the channels.

    Raises ValueError for an unknown name, or a value that does not fit the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        footprint: Footprint | int | str = 7,
        family: str = "pairwise",
        relation: str | None = None,
        stride: int | tuple[int, int] = 1,
        *,
        boundary: str | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = (
            positive("in_channels", in_channels),
            positive("out_channels", out_channels),
        )
        self.stride = _pair(stride)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype is {dtype!r}; expected a floating-point dtype such as torch.float32")
        config = _config(self.out_channels, {"family": family, "relation": relation, "bias": bias, **fields})
        taps = bounded(footprint, boundary, config.family)
        with nullcontext() if device is None else torch.device(device):
            self.attention: LocalAttention = ATTENTION[config.family](self.in_channels, taps, config, self.out_channels)
            # ceil_mode, because a strided convolution rounds an odd side up
            self.pool = nn.AvgPool2d(self.stride, ceil_mode=True) if self.stride != (1, 1) else None
            values = self.attention.value_channels
            self.linear = linear(values, self.out_channels, bias) if values != self.out_channels else None
        if dtype is not None:
            self.to(dtype)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"input of LocalAttention2d is {tuple(x.shape)}; expected (n, {self.in_channels}, h, w)")
        y = self.attention(x)
        if self.pool is not None:
            y = self.pool(y)
        if self.linear is not None:
            return self.linear(y)
        # a fused attention saves its output for the backward, and nn.ReLU(inplace=True) often follows a convolution
        saved = self.pool is None and y.requires_grad and str(self.attention.ran).startswith("fused")
        return y.clone() if saved and not torch.compiler.is_compiling() else y

    def extra_repr(self) -> str:
        stride = f", stride={self.stride}" if self.stride != (1, 1) else ""
        return f"{self.in_channels}, {self.out_channels}{stride}"


def _pair(stride: object) -> tuple[int, int]:
    """The stride along rows and columns."""
    sides = [*stride] if isinstance(stride, Sequence) and not isinstance(stride, str) else [stride, stride]
    if len(sides) != 2:
        raise ValueError(f"stride is {stride!r}; expected {_PAIR}")
    rows, columns = (positive("stride", side) for side in sides)
    return rows, columns


def _usual(family: str) -> str:
    """The boundary of the family's paper."""
    return "exclude" if family == "stand_alone" else "reflect"


def bounded(footprint: Footprint | int | str, boundary: str | None, family: str) -> Footprint:
    """The footprint; a size gets this boundary, or by default that of the paper of the family."""
    found = Footprint.of(footprint, _usual(family) if boundary is None else boundary)
    if boundary not in (None, found.boundary):
        raise ValueError(
            f"boundary is {boundary!r}; expected {found.boundary!r}, that of footprint {found}, or text such as "
            f"'disk:9 boundary={boundary}' as footprint"
        )
    return found


def read(given: Mapping[str, Any]) -> tuple[AttentionConfig, dict[str, Any]]:
    """The config of these fields, and those of them that are not None, as far as the family reads them. It need not
    fit the channels. `bias` is one of them. Raises ValueError for an unknown name or value."""
    for name in given:
        if name not in (*_FIELDS, "family", "relation"):
            raise ValueError(unknown("argument of LocalAttention2d", name, _FIELDS))
    if not isinstance(given["bias"], bool):
        raise ValueError(f"bias is {given['bias']!r}; expected True or False")
    expect("family", given["family"], FAMILIES)
    found = {name: value for name, value in given.items() if value is not None}
    if found["family"] != "stand_alone":
        del found["bias"]  # there, it is that of the linear layer after the attention
    return AttentionConfig(**found), found


def _config(channels: int, fields: Mapping[str, Any]) -> AttentionConfig:
    """The config for a layer of `channels` output channels. What is not given, or None, is chosen to divide them."""
    config, given = read(fields)
    choose = _of_heads if config.family == "stand_alone" else _of_vectors
    chosen = choose(channels, config, given)
    return replace(config, **{name: value for name, value in chosen.items() if name not in given})


def _of_heads(channels: int, config: AttentionConfig, given: dict[str, Any]) -> dict[str, int]:
    reduction = given.get("value_reduction", 1)  # SASA's
    width = channels // reduction
    if config.position == "relative" and width % 2 and channels % reduction == 0:
        raise ValueError(
            f"out_channels / value_reduction is {width}; expected an even number, since half of a head's channels "
            "embed the row of a tap and half its column; or position='none' or 'absolute'"
        )
    return {
        "value_reduction": reduction,
        "heads": _divisor(width // (1 + (config.position == "relative")), config.heads),
    }


def _of_vectors(channels: int, config: AttentionConfig, given: dict[str, Any]) -> dict[str, int]:
    assert config.relation_reduction is not None
    reduction = given.get("value_reduction", _divisor(channels, config.value_reduction))
    shared = config.transformations == "shared"
    return {
        "value_reduction": reduction,
        "relation_reduction": reduction if shared else _divisor(channels, config.relation_reduction),
        "share": _divisor(channels // reduction, config.share),
    }


def _divisor(size: int, usual: int) -> int:
    """The largest divisor of `size` that is not more than `usual`."""
    return next((divisor for divisor in range(usual, 0, -1) if size % divisor == 0), 1)
