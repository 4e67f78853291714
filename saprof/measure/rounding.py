"""The rounding errors of a computation, estimated by computing it again with random errors.

An estimate from the size of the result alone is wrong where large terms cancel, as in the gradient of a softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten

EXACT = {
    aten.where, aten.index, aten.cat, aten.stack, aten.clone, aten.repeat, aten.neg, aten.relu, aten.amax,
    aten._unsafe_view, aten.threshold_backward, aten.select_backward, aten.slice_backward, aten.new_zeros,
    aten.scalar_tensor,
}  # fmt: skip
"""Functions that only select, move or negate elements."""
PARTS = {
    aten._softmax: lambda x, axis: _share((x - x.amax(axis, keepdim=True)).exp(), axis),
    aten._softmax_backward_data: lambda gradient, y, axis: y * (gradient - (y * gradient).sum(axis, keepdim=True)),
}
"""Functions that are computed in parts, because an error of one part changes several results."""
PRODUCTS = {aten.mm, aten.bmm, aten.mv, aten.dot}
SUMS = {*PRODUCTS, aten.sum, aten.index_put}
WALK = 0.25
"""Partial sum i of L random terms has the size √i, and is rounded by 0.2 eps of it, as a root mean square. These errors
add up to 0.14 · √L · eps of the size of the sum, or to 0.12 · √L · eps if all terms have the same sign."""


def _share(x: Tensor, axis: int) -> Tensor:
    return x / x.sum(axis, keepdim=True)


class Rounding(TorchDispatchMode):
    """While it is active, every result has a random error, about as large as in a computation in `dtype`.

    A result x, and each product in a sum, has the error ± eps/2 · |x|. A sum of L terms t has the error
    ± WALK · √(L − 1) · eps · (√Σt² + |Σt|) as well.
    """

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        of_dtype = torch.finfo(dtype)
        self._eps, self._smallest = of_dtype.eps, of_dtype.tiny
        self._random = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PARTS:
            with self:
                return PARTS[func.overloadpacket](*args[:-1])
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in EXACT or func.is_view or func._schema.is_mutable:
            return result
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        size = self._size(func, args, kwargs or {}, result).where(result.isfinite(), 0)
        signs = torch.randint(0, 2, result.shape, generator=self._random, dtype=result.dtype).mul_(2).sub_(1)
        return result.addcmul(size, signs.to(result.device))

    def _size(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> Tensor:
        """The size of the error of each element."""
        size = self._eps / 2 * result.abs().clamp_min(self._smallest)
        packet = func.overloadpacket
        if packet in SUMS:

            def of_each(change: Callable[[Tensor], Tensor]) -> Tensor:
                """The same sum, with other terms."""
                changed = tree_map_only(Tensor, lambda x: change(x) if x.is_floating_point() else x, (args, kwargs))
                return func(*changed[0], **changed[1])

            terms = of_each(torch.square).sqrt()
            additions = (of_each(torch.ones_like) - 1).clamp_min(0)
            size += WALK * self._eps * additions.sqrt() * (terms + result.abs())
            if packet in PRODUCTS:
                size += self._eps / 2 * terms
        return size
