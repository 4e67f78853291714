"""Whether a backend computes what the reference computes. Tests, `verify` and the sweep use this check."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from saprof.backends import run
from saprof.operators import aggregation
from saprof.operators.footprint import Footprint
from saprof.operators.reference import reference
from saprof.operators.workload import Workload


@dataclass(frozen=True)
class Verdict:
    """The result of a check: the comparison that used most of its tolerance, or the reason why none was possible."""

    ok: bool
    error: float
    """The largest difference from the reference; infinite if a value is not finite or is missing."""
    tolerance: float
    message: str
    """A sentence with the workload and the quantity that was compared."""
    gradients: bool = False
    """Whether the gradient of every input was compared, and agreed."""

    @property
    def fraction(self) -> float:
        """The error as a fraction of its tolerance."""
        return self.error / self.tolerance


def check(
    workload: Workload,
    backend: str,
    device: str = "cpu",
    gradients: bool = True,
    positions: Sequence[int] | None = None,
) -> Verdict:
    """Run `workload` on `backend` and compare its output, and the gradients of its inputs, with the reference.

    With `positions`, only these positions of the output are compared, and the gradients are those of these positions
    alone; both are exact on a map of any size. An exception of the backend is not caught.
    """
    verdicts = list(_judge(workload, backend, device, gradients, positions))
    worst = max(verdicts, key=lambda verdict: (not verdict.ok, verdict.fraction))
    agree = len(verdicts) == 1 + len(workload.operator.inputs) and all(verdict.ok for verdict in verdicts[1:])
    return replace(worst, message=f"{workload} on {backend}: {worst.message}", gradients=agree)


def sample_positions(workload: Workload, count: int = 32) -> list[int]:
    """At most `count` centres: all centres of a small map. For a large map they are the corners, then random ones: half
    of them near the border, where taps are outside the map."""
    oh, ow = workload.footprint.output_size(workload.h, workload.w)
    if oh * ow <= count:
        return list(range(oh * ow))
    reach = [max(map(abs, span)) // workload.footprint.stride + 1 for span in workload.footprint.reach]

    def near_border(p: int) -> bool:
        return any(
            min(at, side - 1 - at) < depth for at, side, depth in zip(divmod(p, ow), (oh, ow), reach, strict=True)
        )

    draw = random.Random(workload.seed)
    positions = draw.sample(range(oh * ow), oh * ow)
    corners = [0, ow - 1, (oh - 1) * ow, oh * ow - 1]
    border = list(filter(near_border, positions))[: count // 2]
    return sorted(list(dict.fromkeys([*corners, *border, *positions]))[:count])


# Rounding errors of a sum of L products of normals, which has size √L: each partial sum i, of size √i, is rounded by at
# most eps/2 of it, and these errors add up like a random walk to (eps/2)·√(Σ i) ≈ 0.35·eps·L, that is 0.35·eps·√L of
# the sum's size; roundings of the products and of the result add a constant. The largest error among many elements is a
# few times this size; the largest value and the factors in this formula allow for it:
#
#     tolerance = eps · (4 + √L) · max(√L, max |reference|)
#
# L counts products, or plain terms where there are none, and is at least 1.
def _tolerance(dtype: torch.dtype, length: float, largest: float) -> float:
    root = math.sqrt(max(length, 1))
    return torch.finfo(dtype).eps * (4 + root) * max(root, largest)


def _lengths(workload: Workload, positions: Sequence[int] | None) -> list[float]:
    """L of the output, then of the gradient of each input: a product in the output adds a product to the gradient of
    each of its factors."""
    operator = workload.operator
    one = workload.sizes | dict.fromkeys(("n", "h", "w", "p", "oh", "ow"), 1)
    outputs = math.prod(operator.output_shape(one))
    terms = max(operator.count("macs", one), outputs)
    lengths = [terms / outputs]
    for shape, read in zip(operator.input_shapes(one), operator.reads, strict=True):
        per_read = terms / math.prod(shape)
        if not read:
            centres = workload.sizes["p"] if positions is None else len(positions)
            per_read *= workload.n * centres
        elif read != "i":
            chosen = None if positions is None else tuple(positions)
            per_read *= _busiest(workload.footprint, workload.h, workload.w, chosen) / workload.footprint.taps
        lengths.append(per_read)
    return lengths


@lru_cache(maxsize=64)
def _busiest(footprint: Footprint, h: int, w: int, positions: tuple[int, ...] | None) -> float:
    """The largest number of taps that read the same position. The reference counts them by aggregating ones."""
    oh, ow = footprint.output_size(h, w)
    beta = torch.ones(1, 1, h, w, dtype=torch.float64, requires_grad=True)
    total = reference(aggregation, [torch.ones(1, 1, footprint.taps, oh * ow), beta], footprint, positions).sum()
    return float(torch.autograd.grad(total, beta)[0].max())


def _judge(
    workload: Workload, backend: str, device: str, gradients: bool, positions: Sequence[int] | None
) -> Iterator[Verdict]:
    """A verdict on the output, then on each input's gradient."""
    operator, footprint = workload.operator, workload.footprint
    inputs = [x.requires_grad_(gradients) for x in workload.tensors(device)]
    output = run(operator, *inputs, footprint=footprint, backend=backend)
    shape = operator.output_shape(workload.sizes)
    if output.shape != shape:
        yield _refuse(f"shape is {tuple(output.shape)}; expected {shape}")
        return
    exact = [x.detach().cpu().double().requires_grad_(gradients) for x in inputs]
    want = reference(operator, exact, footprint, positions)
    got = output if positions is None else output.flatten(want.dim() - 1)[..., list(positions)]
    length, *lengths = _lengths(workload, positions)
    yield (value := _compare("value", got, want, inputs[0], length))
    if not gradients or not value.ok:
        return
    if not output.requires_grad:
        yield _refuse("the output requires no gradient, though the inputs do")
        return
    generator = torch.Generator().manual_seed(workload.seed + 1)
    cotangent = torch.randn(want.shape, generator=generator).to(got.dtype)
    gots = torch.autograd.grad(got, inputs, cotangent.to(got.device), allow_unused=True)
    wants = torch.autograd.grad(want, exact, cotangent.double(), allow_unused=True, materialize_grads=True)
    for (name, _), x, got, want, length in zip(operator.inputs, inputs, gots, wants, lengths, strict=True):
        yield _compare(f"gradient of {name}", got, want, x, length)


def _compare(what: str, got: Tensor | None, want: Tensor, like: Tensor, length: float) -> Verdict:
    """Compare `got`, which must have the dtype and device of `like`, with `want`. Each element is a sum of `length`
    terms."""
    if got is None:
        return _refuse(f"there is no {what}")
    if (got.dtype, got.device) != (like.dtype, like.device):
        return _refuse(f"{what} is {got.dtype} on {got.device}; expected {like.dtype} on {like.device}")
    if not want.numel():
        return Verdict(True, 0.0, _tolerance(got.dtype, length, 0.0), f"{what} is empty")
    got, want = got.detach().cpu().double(), want.detach()
    if not got.isfinite().all():
        return _refuse(f"{what} has {int((~got.isfinite()).sum())} elements that are not finite")
    difference = (got - want).abs()
    error, tolerance = float(difference.max()), _tolerance(like.dtype, length, float(want.abs().max()))
    where = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    return Verdict(
        error <= tolerance,
        error,
        tolerance,
        f"{what} is off by {error:.3g} (tolerance {tolerance:.3g}) at {where}: "
        f"{float(got[where]):.6g}, expected {float(want[where]):.6g}",
    )


def _refuse(problem: str) -> Verdict:
    return Verdict(False, math.inf, 1.0, problem)
