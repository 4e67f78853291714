"""The outputs of the aten operators that our networks call, on the meta device.

torch's meta kernels compute them too, but those written in Python take longer than the whole count, and their import
takes longer still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten


def output_of(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the operator returns. On the meta device, these are empty tensors if their shapes are known here."""
    if func is aten.linspace.default and str(kwargs.get("device")) == "meta" and kwargs.get("dtype") is not None:
        return torch.empty(args[2], dtype=kwargs["dtype"], device="meta")
    known = _KNOWN.get(func)
    if known is not None and not kwargs:
        first = args[0][0] if isinstance(args[0], list) else args[0]
        if first.is_meta:
            try:
                output = known(*args)
            except (TypeError, ValueError):  # a wrong call, for which torch raises its own error
                output = None
            if output is not None:
                return output
    return func(*args, **kwargs)


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _same(x: Tensor, *_: Any) -> Tensor:
    return _empty(x, x.shape)


def _itself(x: Tensor) -> Tensor:
    return x


def _broadcast(x: Tensor, other: Any) -> Tensor | None:
    if not isinstance(other, Tensor):
        return _same(x) if x.is_floating_point() and isinstance(other, int | float) else None
    if x.dtype != other.dtype or x.requires_grad or other.requires_grad:
        return None
    return _empty(x, x.shape if x.shape == other.shape else np.broadcast_shapes(x.shape, other.shape))


def _concatenated(parts: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    shape = list(parts[0].shape)
    dim %= len(shape)
    for part in parts:
        if part.dtype != parts[0].dtype or len(part.shape) != len(shape):
            return None
        if any(axis != dim and n != shape[axis] for axis, n in enumerate(part.shape)):
            return None
    shape[dim] = sum(part.shape[dim] for part in parts)
    return _empty(parts[0], shape)


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor | None:
    if transposed or x.dim() != weight.dim() or x.shape[1] != groups * weight.shape[1] or x.dtype != weight.dtype:
        return None
    sides = _windows(x, weight.shape[2:], stride, padding, dilation)
    return _empty(x, (len(x), len(weight), *sides)) if min(sides) > 0 else None


def _pooled(
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Any:
    if x.dim() != 4 or ceil_mode:
        return None
    sides = _windows(x, size, stride or size, padding, dilation)
    if min(sides) <= 0:
        return None
    y = _empty(x, (*x.shape[:2], *sides))
    return y, torch.empty(y.shape, dtype=torch.int64, device="meta")


def _windows(
    x: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The number of windows of a convolution or a pool along each axis of the map."""
    settings = zip(x.shape[2:], size, stride, padding, dilation, strict=True)
    return [(n + 2 * pad - step * (k - 1) - 1) // by + 1 for n, k, by, pad, step in settings]


def _averaged(x: Tensor, axes: Sequence[int], keep: bool = False) -> Tensor | None:
    if not keep or sorted(axes) != [-2, -1] or not x.is_floating_point():
        return None
    return _empty(x, (*x.shape[:-2], 1, 1))


def _normed(x: Tensor, *others: Any) -> Any:
    training = others[4]
    return None if x.dim() < 2 or training else (_same(x), _empty(x, (0,)), _empty(x, (0,)))


def _mapped(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
    if x.shape[1] != weight.shape[0] or x.dtype != weight.dtype:
        return None
    return _empty(x, (len(x), weight.shape[1]))


def _multiplied(a: Tensor, b: Tensor) -> Tensor | None:
    if a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2] or a.dtype != b.dtype:
        return None
    return _empty(a, (*a.shape[:-1], b.shape[-1]))


_KNOWN: Mapping[OpOverload, Callable[..., Any]] = {
    aten.convolution.default: _convolved,
    aten.native_batch_norm.default: _normed,
    aten.relu.default: _same,
    aten.relu_.default: _itself,
    aten._softmax.default: lambda x, dim, half: None if half else _same(x),
    aten.add.Tensor: _broadcast,
    aten.sub.Tensor: _broadcast,
    aten.mul.Tensor: _broadcast,
    aten.cat.default: _concatenated,
    aten.max_pool2d_with_indices.default: _pooled,
    aten.mean.dim: _averaged,
    aten.addmm.default: _mapped,
    aten.mm.default: _multiplied,
    aten.bmm.default: _multiplied,
}
