"""The output shapes of the torch functions that our networks call.

torch's meta kernels compute shapes too, but those written in Python take longer than the whole count, and their import
takes longer still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

Shape = Sequence[int]


def output_shape(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """The shape of the output of a torch function; None if it is not known here, and the function must run."""
    if name not in _SHAPES:
        return None
    try:
        return _SHAPES[name](*args, **kwargs)
    except (TypeError, ValueError):  # an unusual form of the call, or a wrong one, for which torch raises its own error
        return None


def _same(x: Tensor, *_: Any, dim: int = 0, inplace: bool = False, **batch_norm: Any) -> Shape:
    return x.shape


def _broadcast(x: Tensor, other: Tensor) -> Shape | None:
    return np.broadcast_shapes(x.shape, other.shape) if x.dtype == other.dtype else None


def _concatenated(parts: Sequence[Tensor], dim: int = 0) -> Shape | None:
    shape = list(parts[0].shape)
    if any(part.dim() != len(shape) or part.dtype != parts[0].dtype for part in parts):
        return None
    shape[dim] = sum(part.shape[dim] for part in parts)
    return shape


def _convolved(
    x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Shape | None:
    if x.dim() != 4 or x.shape[1] != groups * weight.shape[1]:
        return None
    return (len(x), len(weight), *_windows(x, weight.shape[2:], stride, padding, dilation))


def _pooled(
    x: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Shape | None:
    if x.dim() != 4 or ceil_mode or return_indices:
        return None
    return (*x.shape[:2], *_windows(x, kernel_size, stride, padding, dilation))


def _averaged(x: Tensor, output_size: int) -> Shape | None:
    return (*x.shape[:-2], output_size, output_size) if isinstance(output_size, int) else None


def _mapped(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    return (*x.shape[:-1], len(weight)) if x.shape[-1] == weight.shape[1] else None


def _multiplied(a: Tensor, b: Tensor) -> Shape | None:
    if min(a.dim(), b.dim()) < 2 or a.shape[-1] != b.shape[-2]:
        return None
    return (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])


def _linspace(start: float, end: float, steps: int, *, dtype: Any, device: Any) -> Shape:
    return (steps,)


def _windows(x: Tensor, size: Any, stride: Any, padding: Any, dilation: Any) -> list[int]:
    """The number of windows of a convolution or a pool along each axis of the map."""
    settings = zip(*(v if isinstance(v, Sequence) else (v, v) for v in (size, stride, padding, dilation)), strict=True)
    return [
        (side + 2 * padding - dilation * (size - 1) - 1) // stride + 1
        for side, (size, stride, padding, dilation) in zip(x.shape[2:], settings, strict=True)
    ]


_SHAPES: dict[str, Callable[..., Shape | None]] = {
    "conv2d": _convolved,
    "batch_norm": _same,
    "relu": _same,
    "softmax": _same,
    "add": _broadcast,
    "cat": _concatenated,
    "max_pool2d": _pooled,
    "adaptive_avg_pool2d": _averaged,
    "linear": _mapped,
    "matmul": _multiplied,
    "linspace": _linspace,
}
