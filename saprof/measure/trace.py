"""One call under torch's profiler: the time and the memory of every module and operator.

Every module that runs is a range of the trace. A time belongs to the innermost range around it. The operators that
torch's dispatcher runs inside a range belong to its module. An operator of the backward pass belongs to the module
whose forward created its autograd node; the sequence number of the node identifies this module.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from saprof.layers.running import Running
from saprof.measure.recording import recording

RANGE = "saprof:"
"""The start of the name of a range; the number of a place follows."""
MARK = "saprof mark "
"""The start of the name of a range that a caller sets to find its place; a number follows."""
NODE = "autograd::engine::evaluate_function: "
"""The start of the name of a range of torch: one autograd node of the backward pass."""
_internal: Any = torch._C
"""This part of torch has the numbers of autograd nodes, and ranges that cost little time. No public API has them (torch
2.11 to 2.13)."""


class Place(NamedTuple):
    """Where time is spent or memory is allocated: in a module, in one of its operators, in the forward or backward."""

    path: str
    """The module."""
    operation: str | None
    """The operator that the module called; None for the time between operators."""
    backward: bool


@dataclass
class Trace:
    """The time and memory of one call, or the mean of several."""

    seconds: dict[Place, float]
    """By place; their sum is the time of the whole call. On a GPU it is the time of the kernels."""
    calls: dict[str, int]
    """How often each module ran in the forward pass."""
    operations: dict[Place, int]
    """How often each operator ran."""
    peak_bytes: int = 0
    held: dict[Place, int] = field(default_factory=dict)
    """The bytes that are allocated at the moment of the peak, by the place that allocated them."""
    peaks: dict[str, int] = field(default_factory=dict)
    """The most bytes that are allocated while a module runs, in its forward or backward."""
    marks: dict[int, Place] = field(default_factory=dict)
    """The places of the ranges that the caller has set."""


class Ranges(Running):
    """Marks the running modules in a trace, and notes the autograd nodes that each creates."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__(root, skip_compiled=True)
        self.numbers: dict[str, int] = {}
        """The number in the name of each range, by its path."""
        self._starts: list[int] = []
        self._owners: list[str] = []
        self.calls: defaultdict[str, int] = defaultdict(int)

    def __enter__(self) -> Ranges:
        super().__enter__()
        self._note("")
        return self

    def entered(self, path: str, known: bool) -> object:
        self.calls[path] += known
        self._note(path)
        opened = recorded(f"{RANGE}{self.numbers.setdefault(path, len(self.numbers))}")
        opened.__enter__()
        return opened

    def left(self, opened: Any) -> None:
        opened.__exit__(None, None, None)
        self._note(self.path)

    def _note(self, path: str) -> None:
        """The autograd nodes that are created from now on belong to this module."""
        self._starts.append(_internal._autograd._get_sequence_nr())
        self._owners.append(path)

    def owner(self, sequence: int) -> str:
        """The module in whose forward the autograd node with this sequence number was created."""
        index = bisect_right(self._starts, sequence) - 1
        return self._owners[index] if index >= 0 else ""


def recorded(name: str) -> AbstractContextManager[object]:
    """A range of the trace."""
    return _internal._profiler._RecordFunctionFast(name)


def backward_range() -> AbstractContextManager[object]:
    """The range of a backward pass."""
    return recorded(f"{RANGE}backward")


def trace(
    root: nn.Module,
    call: Callable[[], object],
    device: str = "cpu",
    *,
    repeats: int = 1,
    memory: bool = False,
    inside: AbstractContextManager[object] | None = None,
) -> Trace:
    """Call `repeats` times under torch's profiler; returns the mean trace.

    With `memory`, the allocations are traced too. The context `inside` is open during the calls.
    """
    on_gpu = torch.device(device).type == "cuda"
    with recording(on_gpu, memory) as profiler, Ranges(root) as ranges, inside or nullcontext():
        for _ in range(repeats):
            with recorded(f"{RANGE}call"):
                call()
        if on_gpu:
            torch.cuda.synchronize(device)
    recorder: Any = profiler.profiler
    results = recorder.kineto_results  # no public API has the tree of events with their memory
    kernels = _kernels(results) if on_gpu else None
    reader = _Reader(ranges, kernels, device)
    for event in results.experimental_event_tree():
        reader.read(event, Place("", None, False))
    return reader.result(repeats)


def _kernels(results: Any) -> dict[int, float]:
    """Seconds of the kernels that each operator launched, by the number that links them to it."""
    seconds: defaultdict[int, float] = defaultdict(float)
    for event in results.events():
        if event.device_type() == _internal._autograd.DeviceType.CUDA and not event.is_user_annotation():
            seconds[event.linked_correlation_id()] += event.duration_ns() * 1e-9
    return dict(seconds)


class _Reader:
    """Adds up the events of a trace."""

    def __init__(self, ranges: Ranges, kernels: dict[int, float] | None, device: str) -> None:
        self.ranges = ranges
        self.paths = list(ranges.numbers)
        self.kernels = kernels
        self.device_type = torch.device(device).type
        self.seconds: defaultdict[Place, float] = defaultdict(float)
        self.operations: defaultdict[Place, int] = defaultdict(int)
        self.changes: list[tuple[int, int, int, Place]] = []
        """Allocations: the time, the address, the bytes (negative if they are freed), and the place."""
        self.marks: dict[int, Place] = {}

    def read(self, event: Any, place: Place, inside: bool = False) -> None:
        """Add an event, and the events inside it; `inside` is whether a call is running."""
        name = event.name
        inside = inside or name == f"{RANGE}call" or name.startswith(NODE)  # a GPU's backward has a thread of its own
        if name == "[memory]":
            fields = event.extra_fields
            if inside and str(fields.device).partition(":")[0] == self.device_type:
                self.changes.append((event.start_time_ns, fields.ptr, fields.alloc_size, place))
            return
        if not str(event.tag).endswith("TorchOp"):  # calls of the CUDA runtime, and the like
            return
        if name.startswith(MARK):
            self.marks[int(name.removeprefix(MARK))] = place
        within = self._place(name, event, place)
        if inside and within.operation is not None and place.operation is None:
            self.operations[within] += 1
        children = event.children
        if inside and self.kernels is None:
            own = event.duration_time_ns - sum(c.duration_time_ns for c in children if str(c.tag).endswith("TorchOp"))
            self.seconds[within] += max(own, 0) * 1e-9
        elif inside and self.kernels is not None:
            self.seconds[within] += self.kernels.get(event.correlation_id, 0.0)
        for child in children:
            self.read(child, within, inside)

    def _place(self, name: str, event: Any, place: Place) -> Place:
        if name.startswith(RANGE):
            number = name.removeprefix(RANGE)
            if number == "backward":
                return Place("", None, True)
            return place._replace(path=self.paths[int(number)], operation=None) if number.isdigit() else place
        if name.startswith(NODE):
            return Place(self.ranges.owner(event.extra_fields.sequence_number), None, True)
        if name.startswith((MARK, "torch::autograd::")):
            return place
        if place.operation is None and ("::" in name or " " in name):
            return place._replace(operation=operator_name(name))
        return place

    def result(self, repeats: int) -> Trace:
        found = Trace(
            {place: seconds / repeats for place, seconds in self.seconds.items()},
            {path: count // repeats for path, count in self.ranges.calls.items()},
            {place: count // repeats for place, count in self.operations.items()},
            marks=self.marks,
        )
        if self.changes:
            _weigh(sorted(self.changes), found)
        return found


def operator_name(event: str) -> str:
    """`conv2d` for the event `aten::conv2d`; `saprof::aggregation` for ours, whatever backend has registered it."""
    if event.startswith("## Call CompiledFxGraph"):  # a hash follows
        return "compiled graph"
    namespace, _, name = event.rpartition("::")
    if namespace == "aten":
        return name
    return f"saprof::{name}" if namespace.startswith("saprof") else event


def _weigh(changes: list[tuple[int, int, int, Place]], found: Trace) -> None:
    """Fill the memory of a trace from its allocations, in the order of time."""
    total = 0
    alive: dict[int, tuple[int, Place]] = {}
    at_peak: list[tuple[int, Place]] = []
    for _, address, size, place in changes:
        if size > 0:
            alive[address] = size, place
        elif address in alive:  # not what was allocated before the call
            size = -alive.pop(address)[0]
        else:
            continue
        total += size
        found.peaks[place.path] = max(found.peaks.get(place.path, 0), total)
        if total > found.peak_bytes:
            found.peak_bytes, at_peak = total, list(alive.values())
    for size, place in at_peak:
        found.held[place] = found.held.get(place, 0) + size


class _Labelled(Running):
    """Names the running modules in a trace for people, on a GPU with NVTX as well."""

    def __init__(self, root: nn.Module, name: str, on_gpu: bool) -> None:
        super().__init__(root, skip_compiled=True)
        self.name, self.on_gpu = name, on_gpu

    def entered(self, path: str, known: bool) -> object:
        label = path or self.name
        opened = torch.profiler.record_function(label)
        opened.__enter__()
        if self.on_gpu:
            torch.cuda.nvtx.range_push(label)
        return opened

    def left(self, opened: Any) -> None:
        if self.on_gpu:
            torch.cuda.nvtx.range_pop()
        opened.__exit__(None, None, None)


def chrome_trace(root: nn.Module, name: str, call: Callable[[], object], device: str = "cpu") -> bytes:
    """One call as a Chrome trace, in which every module is a range with its path; `name` is the root's."""
    on_gpu = torch.device(device).type == "cuda"
    with recording(on_gpu, memory=True) as profiler, _Labelled(root, name, on_gpu):
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return path.read_bytes()
