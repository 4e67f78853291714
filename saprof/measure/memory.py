"""Memory: the peak of a call, what the call keeps for the backward pass, and the peak predicted from shapes.

Only the memory of torch's allocator is counted; the kernels of saprof allocate nothing elsewhere.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saprof.measure.recording import recording

Function = Callable[..., Any]


class Weighed(NamedTuple):
    """One call: the most bytes that it had allocated at any time, its output, and its seconds."""

    peak: int
    output: object
    seconds: float


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes that one call has allocated at any time: with its output, without its inputs."""
    return weighed(call, device).peak


def weighed(call: Callable[[], object], device: str = "cpu") -> Weighed:
    """The peak of a call, as in `peak_bytes`, with its output and its time."""
    return _weighed_on_cuda(call, device) if torch.device(device).type == "cuda" else _weighed_on_cpu(call)


def saved_bytes(function: Function, inputs: Sequence[Tensor], own: Sequence[Tensor] = ()) -> int:
    """The bytes that `function(*inputs)` saves for its backward pass, without its inputs and its `own` parameters."""
    return sum(saved_by(lambda: function(*inputs), [*inputs, *own], lambda: "").values())


def saved_by(call: Callable[[], object], known: Sequence[Tensor], where: Callable[[], str]) -> dict[str, int]:
    """The bytes that a call saves for its backward pass, without those of `known` tensors, by `where()` at the time
    when they are saved first."""
    storages = {x.untyped_storage().data_ptr() for x in known}
    kept: dict[int, tuple[str, int]] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in storages:
            kept.setdefault(storage.data_ptr(), (where(), storage.nbytes()))
        return x

    # a compiled region would compile the hook as well; without the compiler's module, nothing is compiled
    hook: Any = torch.compiler.disable(pack) if "torch._dynamo" in sys.modules else pack
    with torch.autograd.graph.saved_tensors_hooks(hook, lambda x: x):
        output = call()  # kept until all is counted: a freed address may be used again
    found: dict[str, int] = {}
    for place, size in kept.values():
        found[place] = found.get(place, 0) + size
    del output
    return found


def predicted_peak_bytes(function: Function, inputs: Sequence[Tensor]) -> int:
    """`peak_bytes` of `function(*inputs)`, from shapes alone: nothing is allocated and nothing is computed.

    It is exact where PyTorch's operators allocate no scratch memory, as in every forward of `unfold` here.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        stand_ins = [_stand_in(x) for x in inputs]
        with _Allocations(stand_ins) as allocations:
            output = function(*stand_ins)
        del output
    return allocations.peak


def _stand_in(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device, requires_grad=x.requires_grad)


def _weighed_on_cpu(call: Callable[[], object]) -> Weighed:
    with recording(memory=True) as profiler:
        start = time.perf_counter()
        output = call()
        seconds = time.perf_counter() - start
    recorded: Any = profiler.profiler  # the running sum of its memory events is exact, and no public API has it
    events = sorted((e.start_ns(), e.nbytes()) for e in recorded.kineto_results.events() if e.name() == "[memory]")
    held = peak = 0
    for _, change in events:
        held += change
        peak = max(peak, held)
    return Weighed(peak, output, seconds)


def _weighed_on_cuda(call: Callable[[], object], device: str) -> Weighed:
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before, start = torch.cuda.memory_allocated(device), time.perf_counter()
    output = call()
    torch.cuda.synchronize(device)
    return Weighed(torch.cuda.max_memory_allocated(device) - before, output, time.perf_counter() - start)


class _Allocations(TorchDispatchMode):
    """Counts the bytes of the storages that are allocated and freed while it is active."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._seen = weakref.WeakSet(x.untyped_storage() for x in known)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = _normed(func, args) or func(*args, **(kwargs or {}))
        for x in tree_leaves(output):
            if isinstance(x, Tensor) and x.untyped_storage() not in self._seen:
                storage = x.untyped_storage()
                self._seen.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return output

    def _change(self, nbytes: int) -> None:
        self.held += nbytes
        self.peak = max(self.peak, self.held)


def _normed(func: object, args: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor] | None:
    """What a batch norm in evaluation mode returns; None for any other operator. For stand-ins torch computes each of
    its steps, which takes longer than all other operators of a network together."""
    batch_norm = torch.ops.aten.native_batch_norm.default
    if func is not batch_norm or args[5]:  # in training mode
        return None
    return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
