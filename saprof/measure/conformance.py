"""Whether a backend computes what the reference computes. Tests, `verify` and the sweep use this check."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saprof.backends import computed_in, run
from saprof.measure.expected import Question, Result, cotangent, expect
from saprof.operators.workload import Workload


@dataclass(frozen=True)
class Verdict:
    """The result of a check: the comparison that used most of its tolerance, or the reason why none was possible."""

    ok: bool
    error: float
    """The difference from the reference that uses most of its tolerance; infinite if a value is not finite, or is
    missing."""
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
    chosen = None if positions is None else tuple(positions)
    question = Question(workload, workload.seed, gradients, chosen, computed_in(backend, inputs[0].dtype))
    value, *of_inputs = expect(question)
    got = output if positions is None else output.flatten(value.exact.dim() - 1)[..., list(positions)]
    yield (verdict := _compare("value", got, inputs[0], value))
    if not gradients or not verdict.ok:
        return
    if not output.requires_grad:
        yield _refuse("the output requires no gradient, though the inputs do")
        return
    gots = torch.autograd.grad(got, inputs, cotangent(workload, got.shape).to(device), allow_unused=True)
    for (name, _), got, x, want in zip(operator.inputs, gots, inputs, of_inputs, strict=True):
        yield _compare(f"gradient of {name}", got, x, want)


def _compare(what: str, got: Tensor | None, like: Tensor, want: Result) -> Verdict:
    """Compare `got`, which must have the dtype and device of `like`, with `want`."""
    if got is None:
        return _refuse(f"there is no {what}")
    if (got.dtype, got.device) != (like.dtype, like.device):
        return _refuse(f"{what} is {got.dtype} on {got.device}; expected {like.dtype} on {like.device}")
    if not want.exact.numel():
        return Verdict(True, 0.0, 1.0, f"{what} is empty")
    got = got.detach().cpu().double()
    if not got.isfinite().all():
        return _refuse(f"{what} has {int((~got.isfinite()).sum())} elements that are not finite")
    errors = (got - want.exact).abs()
    tolerances = want.tolerances(like.dtype)
    worst = (errors / tolerances).argmax()
    where = tuple(int(i) for i in torch.unravel_index(worst, errors.shape))
    error, tolerance = float(errors[where]), float(tolerances[where])
    return Verdict(
        error <= tolerance,
        error,
        tolerance,
        f"{what} is off by {error:.3g} (tolerance {tolerance:.3g}) at {where}: "
        f"{float(got[where]):.6g}, expected {float(want.exact[where]):.6g}",
    )


def _refuse(problem: str) -> Verdict:
    return Verdict(False, math.inf, 1.0, problem)
