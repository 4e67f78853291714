"""A function or a network that is ready to be measured, with its inputs and a mode."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config

from saprof.compiling import compiling
from saprof.measure.memory import predicted_peak_bytes, saved_bytes, weighed
from saprof.measure.trace import backward_range
from saprof.models.inputs import arguments, copied, replaced, tensors


class Refused(Exception):
    """Something that must not be timed: a status of rows and a reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Prepared:
    """`function` is called with `inputs`: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
    `own` holds its parameters and buffers."""

    function: Callable[..., Any]
    inputs: Any
    own: tuple[Tensor, ...] = ()
    mode: str = "forward"
    device: str = "cpu"

    def call(self) -> Callable[[], object]:
        """The call that is timed: one forward, one backward, or one training step without the optimiser.

        A backward starts from all tensors of the output that require gradients, and computes those of all inputs and
        parameters that do. Raises Refused if there are none.
        """
        function, (args, kwargs) = self.function, arguments(self.inputs)
        if self.mode == "backward":
            graph = self.with_copies()  # another forward may change the inputs that this graph has saved
            leaves, outputs = graph._leaves(), graph._outputs(graph.output())
            directions = [torch.randn_like(x) for x in outputs]
            return lambda: torch.autograd.grad(outputs, leaves, directions, retain_graph=True, allow_unused=True)
        trains, steps = self.mode != "forward", self.mode == "train_step"

        def call() -> object:
            with torch.set_grad_enabled(trains):
                output = function(*args, **kwargs)
                return self.gradients(output) if steps else output

        return call

    def run(self) -> object:
        """The result of `call`."""
        return self.call()()

    def output(self) -> object:
        """The output of one forward, with a graph for the backward if the mode has gradients."""
        return replace(self, mode="forward" if self.mode == "forward" else "train_forward").run()

    def gradients(self, output: object) -> Sequence[Tensor | None]:
        """The gradients of the sum of an output; None for what it does not depend on."""
        leaves, outputs = self._leaves(), self._outputs(output)
        ones = [torch.ones_like(x) for x in outputs]
        with backward_range():
            return torch.autograd.grad(outputs, leaves, ones, allow_unused=True)

    def _outputs(self, output: object) -> list[Tensor]:
        found = [x for x in tensors(output) if x.requires_grad]
        if not found:
            reason = f"mode {self.mode} needs an output that requires gradients; expected one, or mode forward"
            raise Refused("error", reason)
        return found

    def _leaves(self) -> list[Tensor]:
        found = [x for x in (*tensors(self.inputs), *self.own) if x.requires_grad]
        if not found:
            reason = (
                f"mode {self.mode} needs parameters or inputs that require gradients; expected some, or mode forward"
            )
            raise Refused("error", reason)
        return found

    def forward(self) -> object:
        """The output of one forward on copies of the inputs, without gradients."""
        with torch.no_grad():
            return replace(self, mode="forward").with_copies().run()

    def with_copies(self) -> Prepared:
        """The same with copies of the inputs, which a call may change in place."""
        return replace(self, inputs=copied(self.inputs))


def module_of(function: Callable[..., Any]) -> nn.Module | None:
    """The module that a function is, or whose method it is; None for any other function."""
    module = getattr(function, "__self__", function)
    return module if isinstance(module, nn.Module) else None


def prepared_for(function: Callable[..., Any], inputs: Any, mode: str, device: str) -> Prepared:
    """A function, a module, or a method of a module, with the parameters and buffers of the module."""
    module = module_of(function)
    own = () if module is None else (*module.parameters(), *module.buffers())
    return Prepared(function, inputs, own, mode, device)


def predicted_peak(prepared: Prepared) -> int:
    """The peak of a call in bytes, predicted from shapes. The inputs may be fake tensors, which have no memory."""

    def run(*stand_ins: Tensor) -> object:
        return replace(prepared, inputs=replaced(prepared.inputs, stand_ins)).run()

    return predicted_peak_bytes(run, tensors(prepared.inputs))


def refuse_what_cannot_fit(needed: int, beside: str, device: str, held: int = 0) -> None:
    """Raise Refused if `needed` bytes are more than what is free once `held` bytes are allocated."""
    cuda = torch.device(device).type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    free -= held
    if needed > free:
        reason = f"would take {needed / 1e9:.1f} GB{beside}; {free / 1e9:.1f} GB are free"
        raise Refused("predicted_oom", reason)


def check_finite(output: object) -> None:
    """A network has no reference, but its output must be finite; else raises Refused."""
    if not all(x.isfinite().all() for x in tensors(output)):
        raise Refused("incorrect", "its output is not all finite")


def compiled(prepared: Prepared, fullgraph: bool) -> tuple[Prepared, float]:
    """The same through torch.compile, and the seconds of its first call, which compiles.

    Its output, and its gradients if the mode has some, must equal the eager ones to half their digits. If they are
    random, both draw the same numbers for this check, and what is timed is compiled once more. `fullgraph` refuses
    breaks of the graph. Without it, which is for networks that are not ours, a tensor is compared with at least
    `LEAST_COMPARED` of the largest value.
    """
    functorch_config.enable_autograd_cache = False  # it is on disk, and a changed backend does not invalidate it
    mode = "forward" if prepared.mode == "forward" else "train_step"
    eager = replace(prepared, mode=mode)
    expected = _seeded(eager.with_copies(), 0)
    if _off(expected, _seeded(eager.with_copies(), 1), _least_share(fullgraph)) is not None:
        with inductor_config.patch(fallback_random=True):
            _compile(eager, fullgraph, expected)
        expected = None
    function, seconds = _compile(eager, fullgraph, expected)
    return replace(prepared, function=function), seconds


def _compile(eager: Prepared, fullgraph: bool, expected: object) -> tuple[Callable[..., Any], float]:
    """The compiled function, and the seconds of its first call; its result is compared unless `expected` is None."""
    torch._dynamo.reset()
    compiled = replace(eager, function=torch.compile(eager.function, fullgraph=fullgraph)).with_copies()
    start = time.perf_counter()
    with compiling(f"{_name(eager.function)} with torch.compile", "for this process", kernels=0):
        got = _seeded(compiled, 0)
        if torch.device(eager.device).type == "cuda":
            torch.cuda.synchronize(eager.device)
    seconds = time.perf_counter() - start
    if expected is not None and (found := _off(expected, got, _least_share(fullgraph))) is not None:
        raise Refused("incorrect", f"compiled {eager.mode} is {found}")
    return compiled.function, seconds


def _name(function: Callable[..., Any]) -> str:
    """The name of a function, or of the class of the module that it is or whose method it is."""
    module = module_of(function)
    return getattr(function, "__name__", "the function") if module is None else type(module).__name__


def _seeded(prepared: Prepared, seed: int) -> object:
    torch.manual_seed(seed)
    return prepared.run()


LEAST_COMPARED = 1 / 30
"""In a network that is not ours, a gradient may be zero except for rounding, such as that of a bias before a batch
norm. The digits of such a gradient do not agree."""


def _least_share(fullgraph: bool) -> float:
    return 0.0 if fullgraph else LEAST_COMPARED


def _off(expected: object, got: object, share: float) -> str | None:
    """The error of a result, in words, if it differs from the eager one in more than half of the digits; else None.
    Each tensor is compared with its own largest value, or with at least this share of the largest of all."""
    largest = max((float(x.abs().max()) for x in tensors(expected) if x.is_floating_point() and x.numel()), default=0.0)
    least = max(share * largest, 1e-30)
    for want, have in zip(tensors(expected), tensors(got), strict=True):
        if not (want.is_floating_point() or want.is_complex()):
            if not torch.equal(want, have):
                return "off the eager one; expected equal whole numbers"
        elif want.numel():
            error = float((have - want).abs().max() / want.abs().max().clamp_min(least))
            allowed = torch.finfo(want.dtype).eps ** 0.5
            if not error <= allowed:
                return f"{error:.1e} off the eager one; expected at most {allowed:.1e}"
    return None


def weigh(prepared: Prepared, call: Callable[[], object]) -> tuple[dict[str, Any], float]:
    """The fields of a row about memory, and the seconds of the call that was weighed."""
    found = weighed(call, prepared.device)
    weights, output = {"peak_bytes": found.peak}, found.output
    if prepared.mode in ("train_forward", "train_step"):
        forward, kept = replace(prepared, mode="train_forward").call(), []
        known = tensors(prepared.inputs)
        weights["saved_bytes"] = saved_bytes(lambda *_: kept.append(forward()) or kept[0], known, prepared.own)
        output = kept[0]
    elif prepared.mode == "backward":
        output = prepared.output()
    return weights | {"output_bytes": sum(x.numel() * x.element_size() for x in tensors(output))}, found.seconds
