"""What the reference expects of an operator, and the rounding errors that a right kernel may have.

The reference is computed again with random errors in every step (see rounding). Tolerances follow from the largest
effect of these errors on a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from saprof.measure.rounding import Rounding
from saprof.operators.reference import reference
from saprof.operators.workload import Workload

FACTOR = 3
"""A tolerance is 1.1 eps of the expected value, and this many times the largest random error of its tensor."""
DRAWS = 8
"""The number of random errors of each element. The largest may all be at one position, where terms are large."""
TOGETHER = 100_000
"""Copies of the inputs with at most so many elements in all are computed in one call."""


class Question(NamedTuple):
    """A workload, and which results of it are to be computed."""

    workload: Workload
    seed: int
    """The seed of the workload. Two workloads are equal if only their seeds differ, so the seed is here too."""
    gradients: bool
    positions: tuple[int, ...] | None
    computed_in: torch.dtype
    """The dtype of products and sums; results are rounded to the dtype of the workload."""


@dataclass(frozen=True)
class Result:
    """The output of an operator, or the gradient of an input."""

    exact: Tensor
    error: float
    """The largest random error of an element, less the rounding of the element itself."""

    def tolerances(self, dtype: torch.dtype) -> Tensor:
        """How far each element may be from the exact one."""
        of_dtype = torch.finfo(dtype)
        return of_dtype.tiny + 1.1 * of_dtype.eps * self.exact.abs() + FACTOR * self.error


@lru_cache(maxsize=4)  # backends are judged one after the other
def expect(question: Question) -> list[Result]:
    """The output, then the gradients of the inputs if the question asks for them."""
    inputs = [x.double() for x in question.workload.tensors()]
    exact = _compute(question, inputs)
    errors = [0.0 for _ in exact]
    copies = min(DRAWS, 1 + TOGETHER // (1 + sum(x.numel() for x in inputs)))
    with Rounding(question.computed_in, question.seed):
        drawn = [_compute(question, inputs, copies) for _ in range(0, DRAWS, copies)]
    for draw in drawn:
        errors = [
            max(pair) for pair in zip(errors, map(partial(_beyond, question.computed_in), draw, exact), strict=True)
        ]
    return [Result(*pair) for pair in zip(exact, errors, strict=True)]


def cotangent(workload: Workload, shape: Sequence[int]) -> Tensor:
    """The gradient of the output. It has no negative numbers, so that sums grow, and their errors in half precision."""
    generator = torch.Generator().manual_seed(workload.seed + 1)
    return torch.randn(shape, generator=generator).abs().to(getattr(torch, workload.dtype))


def _compute(question: Question, inputs: Sequence[Tensor], copies: int = 1) -> list[Tensor]:
    """The results from the inputs; from several copies of them, along a new first axis."""
    workload = question.workload

    def function(*inputs: Tensor) -> Tensor:
        return reference(workload.operator, inputs, workload.footprint, question.positions)

    if copies > 1:
        function, inputs = torch.vmap(function), [x.expand(copies, *x.shape) for x in inputs]
    leaves = [x.detach().requires_grad_(question.gradients) for x in inputs]
    output = function(*leaves)
    if not question.gradients:
        return [output]
    shape = output.shape[1:] if copies > 1 else output.shape
    cotangents = cotangent(workload, shape).double().expand_as(output)
    gradients = torch.autograd.grad(output, leaves, cotangents, allow_unused=True, materialize_grads=True)
    return [output.detach(), *gradients]


def _beyond(dtype: torch.dtype, drawn: Tensor, exact: Tensor) -> float:
    """The largest error of an element, less the rounding of the element itself."""
    errors = (drawn - exact).abs() - torch.finfo(dtype).eps / 2 * exact.abs()
    return float(errors.clamp_min(0).max()) if errors.numel() else 0.0
