"""The Numba backend: the kernels of `kernels_numba` on torch's tensors.

On a CPU the kernels run in torch's own threads, as many as torch uses, and compute float16 and bfloat16 in float32; the
conversions take time and memory. On a GPU the kernels run in torch's current stream, and only bfloat16 is converted.

`cpu` and `gpu` prepare lookups and memory for a call, `lookups` makes both from a footprint, `threads` shares torch's
threads with Numba, `installed` imports it, `told` reports what is compiled. `ahead` compiles kernels before they are
used, `beside` those that a training step needs later, both in other `processes`. Kernels themselves are in
`kernels_numba`. No module here imports Numba before the first call of `why_not`, or of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

import kernels_numba
from saprof.backends import cores, fused, library
from saprof.backends.library import Kernels, register_operator
from saprof.backends.numba import beside
from saprof.backends.numba.cpu import cpu_work, empty
from saprof.backends.numba.gpu import as_array, gpu_work, on_stream, why_no_gpu
from saprof.backends.numba.installed import starting
from saprof.backends.numba.threads import threads_set_to, why_no_threads
from saprof.backends.numba.told import wanted_by
from saprof.operators import OPERATORS, Operator, no_kernels
from saprof.operators.attention import Attention
from saprof.operators.footprint import Footprint

__all__ = [
    "DEVICES",
    "Call",
    "as_array",
    "kernel",
    "kernels_of",
    "on_stream",
    "recorded",
    "statistics",
    "threads_set_to",
    "training",
    "why_no_gpu",
    "why_no_threads",
    "why_not",
]


class Device(NamedTuple):
    """How kernels run on a kind of device."""

    folder: str
    """Where in `kernels_numba` the kernels are."""
    converted: tuple[torch.dtype, ...]
    """The dtypes that the kernels cannot read; they compute them in float32."""
    work: Callable[[Footprint, tuple[int, int], Tensor], AbstractContextManager[Any]]
    """The last argument of an entry point, for a footprint, the size of a map, and a tensor of the call's dtype."""


DEVICES = {
    "cpu": Device("cpu", (torch.float16, torch.bfloat16), cpu_work),
    "cuda": Device("gpu", (torch.bfloat16,), gpu_work),
}


def why_not(operator: Operator, dtype: torch.dtype, device: str, footprint: Footprint) -> str | None:
    if device not in DEVICES:
        return no_kernels(device)
    return (why_no_gpu() if device == "cuda" else why_no_threads()) or library.why_not(operator)


def kernel(operator: Operator) -> Callable[..., Tensor] | None:
    function = fused.kernel("numba", operator) or _KERNELS.get(operator.name)
    return function and beside.in_training(operator, "forward", function)


def statistics(operator: Attention) -> Callable[..., tuple[Tensor, Tensor]]:
    return beside.in_training(operator, "statistics", fused.statistics("numba", operator))


def training(operator: Attention, device: str) -> Callable[..., list[Tensor]] | None:
    """The function that computes the attention in training in two parts, or None."""
    in_parts = operator.family == "patchwise" and operator.mapping != "l" and device == "cpu"
    return beside.in_training(operator, "training", fused.training("numba", operator)) if in_parts else None


@cache
def kernels_of(folder: str, family: str) -> ModuleType:
    """The module of a family's kernels in a folder of `kernels_numba`, imported by the first call."""
    with starting:
        return import_module(f"kernels_numba.{folder}.{family}")


def _working(x: Tensor) -> torch.dtype:
    """The dtype in which the kernels read a tensor."""
    if x.dtype in (torch.float32, torch.float64):
        return x.dtype
    return torch.float32 if x.dtype in DEVICES[x.device.type].converted else x.dtype


def _run(name: str, tensors: Sequence[Tensor | None], footprint: Footprint, sizes: Mapping[str, int]) -> None:
    like = next(x for x in tensors if x is not None)
    _call("relations", name, tensors, (), (footprint, (sizes["h"], sizes["w"]), like))


def _run_core(name: str, tensors: Sequence[Tensor | None], options: cores.Options, footprint: Footprint) -> None:
    map_ = cores.map_of(tensors)
    _call(cores.KERNELS[name].family, name, tensors, options, (footprint, (map_.shape[2], map_.shape[3]), map_))


class Call(NamedTuple):
    """A call of a kernel's entry point in `kernels_numba`."""

    family: str
    name: str
    tensors: Sequence[Tensor | None]
    options: tuple[Any, ...]
    work: tuple[Footprint, tuple[int, int], Tensor]
    """The footprint, the size of the map, and a tensor of the call's dtype."""

    @property
    def dtype(self) -> str:
        """The dtype that the kernel computes in."""
        return str(self.work[2].dtype).removeprefix("torch.")

    def run(self) -> None:
        """Run the entry point. Its arguments are the memory of the tensors, then the options, then the work."""
        if beside.is_started() and self.work[2].is_cpu:
            beside.wait_for(self.name, self.dtype)
        device = DEVICES[self.work[2].device.type]
        with device.work(*self.work) as work, wanted_by(self.name):
            arrays = [None if x is None else as_array(x) for x in self.tensors]
            getattr(kernels_of(device.folder, self.family), self.name)(*arrays, *self.options, work)


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Record the calls of this process inside the `with` block, in place of running them. What they would compute is
    undefined."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


_record: list[Call] | None = None


def _call(family: str, name: str, tensors: Sequence[Tensor | None], *facts: Any) -> None:
    if _record is None:
        Call(family, name, tensors, *facts).run()
    else:  # an output requires gradients once autograd has returned it
        _record.append(Call(family, name, [None if x is None else x.detach() for x in tensors], *facts))


kernels_numba.announce = beside.announce

_KERNELS = {
    name: register_operator(Kernels("numba", _run, _working, empty), OPERATORS[name])
    for name in kernels_numba.OPERATORS
}
"""The operators with a kernel of their own, by name."""

cores.register_all(Kernels("numba", _run_core, empty=empty), parts=True)
