"""Gradients, and the guarantees of kernels for them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients(output, inputs, cotangent=None):
    """The gradients of all inputs, 0 where there is none."""
    cotangent = torch.ones_like(output) if cotangent is None else cotangent
    return torch.autograd.grad(output, inputs, cotangent, allow_unused=True, materialize_grads=True)


def same_whatever_the_threads(run: Callable[[], Sequence[Tensor]], reads: Sequence[str]) -> None:
    """Outputs and gradients are equal to the bit in two calls. On two threads this holds for all that are not sums over
    all centres."""
    once, again = run(), run()
    try:
        torch.set_num_threads(2)
        on_two, on_two_again = run(), run()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(on_two, on_two_again, strict=True))
    maps = [True, *map(bool, reads)]
    assert all(torch.equal(a, b) for a, b, is_map in zip(once, on_two, maps, strict=True) if is_map)
