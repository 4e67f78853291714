"""`saprof.measure`: any function or module, measured as the sweep measures its cells."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, overload

import torch
from torch import nn

from saprof.backends import check_device
from saprof.command import MOST_THREADS, check_seconds
from saprof.markup import tag
from saprof.measure.cells import MODES
from saprof.measure.network import counts, what_runs
from saprof.measure.prepared import Prepared, Refused, module_of, prepared_for
from saprof.measure.profiled import unchanged
from saprof.measure.rounds import Ready, timed_together, warm
from saprof.models.inputs import arguments, copied, dtype_of, moved, sizes, tensors
from saprof.quantities import IMAGES, LATENCY, MEMORY, SAVED
from saprof.records.ratios import Ratio
from saprof.records.rows import Row, key_of
from saprof.records.verdicts import doubt, in_words
from saprof.text import unknown

Function = Callable[..., Any]


@dataclass(frozen=True, kw_only=True, repr=False)
class Measured(Row):
    """A row of a run folder, which is printed as one line."""

    def __repr__(self) -> str:
        return f"{self.name}: {', '.join(self._facts().values())}"

    def _repr_html_(self) -> str:
        return _table([self])

    def _facts(self) -> dict[str, str]:
        """The text of each fact, by the head of its column in a table."""
        low, high = LATENCY.text(self.latency_low_s), LATENCY.text(self.latency_high_s)
        facts = {
            "latency": f"{LATENCY.text(self.latency_s)} ms [{low}, {high}]",
            "status": self.status,
            "peak": f"peak {MEMORY.text_with_unit(self.peak_bytes or 0)}",
        }
        if self.saved_bytes is not None:
            facts["saved"] = f"saved {SAVED.text_with_unit(self.saved_bytes)}"
        if self.images_per_s is not None:
            facts["images"] = f"{IMAGES.text(self.images_per_s)} images/s"
        if self.ratio is not None and self.ratio_low is not None and self.ratio_high is not None and not doubt(self):
            facts["ratio"] = in_words(self.name, "the first", Ratio(self.ratio, self.ratio_low, self.ratio_high))
        return facts


class AllMeasured(tuple[Measured, ...]):
    """The rows of several candidates, which are printed as one line each. The others are compared with the first."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))

    def _repr_html_(self) -> str:
        return _table(self)


@overload
def measure(
    function: Function,
    inputs: Any = ...,
    *,
    name: str | None = ...,
    mode: str = ...,
    device: str | None = ...,
    seconds: float = ...,
    threads: int | None = ...,
) -> Measured: ...
@overload
def measure(
    function: Mapping[str, Function],
    inputs: Any = ...,
    *,
    mode: str = ...,
    device: str | None = ...,
    seconds: float = ...,
    threads: int | None = ...,
) -> AllMeasured: ...
def measure(
    function: Function | Mapping[str, Function],
    inputs: Any = (),
    *,
    name: str | None = None,
    mode: str = "forward",
    device: str | None = None,
    seconds: float = 2.0,
    threads: int | None = None,
) -> Measured | AllMeasured:
    """Measure the latency and the memory of a function or a module, as the sweep does.

    `inputs` are a tensor, a tuple of positional arguments, or a dict of keyword arguments; the calls get copies of
    their tensors. The result is a row: `latency_s` with its 95 % interval, `status` (`ok`, or `contended` or `unstable`
    if it cannot be trusted), `peak_bytes`, `saved_bytes`, all samples, and the counts of a module. Several candidates,
    as a dict by name, are timed in the same interleaved rounds; the `ratio` and `verdict` of each compare it with the
    first.

    `mode` is one of `forward` (without gradients), `train_forward`, `backward` and `train_step`. A backward computes
    the gradients of the parameters of a module, and of the inputs that require them. A module runs in evaluation mode
    in `forward`, else in training mode; its own mode and buffers are restored afterwards. The default `device` is that
    of the inputs; a module on another device is copied. `seconds` is the most seconds of timing for each candidate,
    after the first rounds. `threads` is the number of CPU threads.

    Raises ValueError for wrong arguments, and what the function raises.
    """
    several = isinstance(function, Mapping)
    candidates = dict(function) if isinstance(function, Mapping) else {name or _name(function): function}
    if several and name is not None:
        raise ValueError(f"name is {name!r}, but the keys of the dict are the names; omit name")
    _check(candidates, mode, seconds, threads)
    arguments(inputs)
    with ExitStack() as stack:
        stack.enter_context(_threads(threads))
        rows = _measure(candidates, inputs, mode, device, seconds, stack)
    return AllMeasured(rows) if several else rows[0]


def _measure(
    candidates: Mapping[str, Function], inputs: Any, mode: str, device: str | None, seconds: float, stack: ExitStack
) -> list[Measured]:
    where = device or _device(inputs, *candidates.values())
    check_device(where)
    facts: dict[str, dict[str, Any]] = {}
    ready: dict[str, Ready] = {}
    for name, candidate in candidates.items():
        prepared = _prepared(_placed(candidate, where), inputs, mode, where)
        stack.enter_context(unchanged(_module(prepared.function), mode, where))
        try:
            ready[name] = warm(prepared)
        except Refused as refused:
            raise ValueError(f"{name}: {refused}") from None
        except Exception as error:
            error.add_note(f"raised by the first call of {name!r}, in mode {mode}")
            raise
        facts[name] = _facts(name, prepared)
    measured = timed_together(ready, seconds)
    return [Measured(**_identity(name, facts[name]), **facts[name], **measured[name]) for name in candidates]


def _check(candidates: Mapping[str, Any], mode: str, seconds: float, threads: int | None) -> None:
    if not candidates:
        raise ValueError("got no candidates; expected a function, a module, or a dict of them by name")
    for name, candidate in candidates.items():
        if not isinstance(name, str) or not callable(candidate):
            got = f"{name!r}: an object of type {type(candidate).__name__}"
            raise ValueError(f"got {got}; expected a function or a module, or a dict of them by name")
    if mode not in MODES:
        raise ValueError(unknown("mode", mode, MODES))
    check_seconds(seconds)
    if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS):
        raise ValueError(f"threads is {threads!r}; expected a positive integer, {MOST_THREADS} at most")


def _prepared(function: Function, inputs: Any, mode: str, device: str) -> Prepared:
    """The function with copies of the inputs on the device."""
    here = all(x.device.type == torch.device(device).type for x in tensors(inputs))
    own = copied(inputs) if here else moved(inputs, device)
    return prepared_for(function, own, mode, device)


def _placed(candidate: Function, device: str) -> Function:
    """The candidate; if it is a module on another device, a copy there."""
    if not isinstance(candidate, nn.Module):
        return candidate
    elsewhere = [
        x for x in (*candidate.parameters(), *candidate.buffers()) if x.device.type != device.partition(":")[0]
    ]
    return copy.deepcopy(candidate).to(device) if elsewhere else candidate


def _facts(name: str, prepared: Prepared) -> dict[str, Any]:
    """The fields of the row that are known before it is timed."""
    module = _module(prepared.function)
    dtype = dtype_of([*tensors(prepared.inputs), *prepared.own])
    facts: dict[str, Any] = {"kind": "function", "backend": "torch"}
    if module is prepared.function:
        facts = {"kind": "model"} | what_runs(module, dtype, prepared.device) | counts(name, module, prepared.inputs)
    return facts | {
        "footprint": "default",
        **sizes(prepared.inputs).fields,
        "dtype": str(dtype).removeprefix("torch."),
        "device": prepared.device,
        "mode": prepared.mode,
    }


def _identity(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"key": key_of(name, facts), "name": name, "time": now}


def _module(function: Function) -> nn.Module:
    """The module that a function is, or whose method it is; an empty one for any other function."""
    return module_of(function) or nn.Module()


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _device(inputs: Any, *candidates: Function) -> str:
    known = tensors(inputs) + [x for function in candidates for x in _module(function).parameters()]
    return str(known[0].device) if known else "cpu"


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)


def _table(rows: Any) -> str:
    heads = list(dict.fromkeys(head for row in rows for head in row._facts()))
    lines = [[row.name, *(row._facts().get(head, "") for head in heads)] for row in rows]
    body = [tag("tr", *(tag("td", cell) for cell in line)) for line in lines]
    return tag("table", tag("tbody", *body))
