"""Profiles of networks: where the time, the memory and the operations go, layer by layer.

The network itself and the network under a profiler are called in the same interleaved rounds, so that the difference is
the profiler's overhead. The parts of fused attention are timed apart: the network runs in further rounds with composed
attention, and the rows of the parts come from these rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from saprof import text
from saprof.command import check_seconds
from saprof.layers import LocalAttention
from saprof.measure.found import Found, paths
from saprof.measure.inspection import counted, saved
from saprof.measure.latency import Candidate, Latency, Timed, interleave, ratio
from saprof.measure.layer_rows import Rows
from saprof.measure.prepared import Refused
from saprof.measure.profiled import Profiled, composed
from saprof.measure.recording import ALONE, refuse_a_second_one
from saprof.measure.trace import Trace, trace
from saprof.models.inputs import copied
from saprof.records import environment
from saprof.records.calibration import Calibration
from saprof.records.profiles import Profile

SECONDS = 3.0
"""The most seconds of timing for one network, after the first rounds."""
APART_SECONDS = 1.0
"""The most seconds of the further rounds with composed attention."""


def profile(
    module: nn.Module | Mapping[str, Any],
    inputs: Any = None,
    *,
    mode: str = "forward",
    name: str | None = None,
    seconds: float = SECONDS,
    apart: bool = True,
    roofs: Calibration | None = None,
    progress: bool = True,
) -> Profile | dict[str, Profile]:
    """Measure where the time, the memory and the operations of a network go, layer by layer.

    `inputs` are a tensor, a tuple of positional arguments or a dict of keyword arguments. `mode` is `forward`, in
    evaluation mode without gradients, or `train_step`: a forward and a backward in training mode. The network keeps its
    weights, buffers and training flags. A dict of networks, or of pairs of a network and its inputs, is measured in the
    same interleaved rounds; the result is a dict of profiles.

    `seconds` is the most seconds of timing for each network, after the first rounds. With `apart`, the parts of fused
    attention are timed too, in further rounds with composed attention. `roofs` is the result of
    `saprof.measure.calibrate.calibrate`; without it the profile has no shares of a roof. `progress` shows a bar on
    stderr.

    Raises ValueError for inputs that do not fit; what the network raises is passed on.
    """
    _check(name, seconds, roofs)
    if isinstance(module, nn.Module):
        one = Profiled(name or type(module).__name__, module, copied(inputs), mode)
        return profile_all([one], seconds, apart=apart, roofs=roofs, progress=progress)[0]
    if not isinstance(module, Mapping) or not module:
        raise ValueError(f"module is of type {type(module).__name__}; expected an nn.Module, or a dict of them by name")
    pairs = {key: one if isinstance(one, tuple) else (one, inputs) for key, one in module.items()}
    for key, pair in pairs.items():
        if len(pair) != 2:
            raise ValueError(
                f"{key} is a tuple of {len(pair)}; expected a network, or a pair of a network and its inputs"
            )
    subjects = [Profiled(str(key), network, copied(given), mode) for key, (network, given) in pairs.items()]
    found = profile_all(subjects, seconds, apart=apart, roofs=roofs, progress=progress)
    return dict(zip(map(str, module), found, strict=True))


def _check(name: object, seconds: object, roofs: object) -> None:
    if name is not None and not isinstance(name, str):
        raise ValueError(f"name is {name!r}; expected text")
    check_seconds(seconds)
    if roofs is not None and not isinstance(roofs, Calibration):
        expected = "what saprof.measure.calibrate.calibrate returns"
        raise ValueError(f"roofs is of type {type(roofs).__name__}; expected {expected}")


def profile_all(
    subjects: Sequence[Profiled],
    seconds: float = SECONDS,
    *,
    apart: bool = True,
    roofs: Calibration | None = None,
    progress: bool = False,
) -> list[Profile]:
    """The profiles of several networks, measured in the same interleaved rounds."""
    how = {"bar_format": "{elapsed} {desc}", "dynamic_ncols": True, "leave": False}
    bar = tqdm(file=sys.stderr, disable=not progress, **how)
    say: Callable[[str], object] = bar.set_description_str
    device = subjects[0].device
    refuse_a_second_one()
    with ExitStack() as stack:
        stack.enter_context(ALONE)
        stack.enter_context(bar)
        for subject in subjects:
            stack.enter_context(subject.unchanged())
        for subject in subjects:
            say(f"{subject.name}: first call")
            try:
                subject.call()
            except Refused as refused:
                raise ValueError(f"{subject.name}: {refused}") from None
        measured = [_Measured(subject, bar.update) for subject in subjects]
        for one in measured:
            say(f"{one.subject.name}: counting, and memory")
            one.inspect()
        bar.bar_format = "{elapsed} {desc}, {n} done"
        say(f"timing {' and '.join(subject.name for subject in subjects)} in interleaved rounds")
        candidates = {
            name: one for number, of in enumerate(measured) for name, one in of.candidates(f"{number}").items()
        }
        latencies = interleave(candidates, device, seconds * len(subjects))
        for number, one in enumerate(measured):
            one.latencies = {what: latencies[f"{number} {what}"] for what in ("plain", "traced")}
            if apart and one.fused:
                say(f"{one.subject.name}: timing the parts of {text.counted(len(one.fused), 'fused attention')} apart")
                one.time_apart(APART_SECONDS)
    return [one.profile(roofs) for one in measured]


class _Measured:
    """The measurements of one network, step by step."""

    def __init__(self, subject: Profiled, after_round: Callable[[], object]) -> None:
        self.subject = subject
        self._after_round = after_round
        self.rounds: list[Trace] = []
        self.apart_rounds: list[Trace] = []
        self.latencies: dict[str, Latency] = {}

    def inspect(self) -> None:
        """Costs, allocations and saved tensors, each from one call."""
        subject = self.subject
        self.counted = counted(subject)
        self.weighed = trace(subject.module, subject.call, subject.device, memory=True)
        self.saved = saved(subject) if subject.mode == "train_step" else {}
        self.ran = {
            path: layer.ran or "" for path, layer in subject.module.named_modules() if isinstance(layer, LocalAttention)
        }

    @property
    def fused(self) -> list[str]:
        """The paths of the attentions that ran as one operator."""
        return [path for path, ran in self.ran.items() if ran.startswith("fused")]

    def candidates(self, key: str) -> dict[str, Candidate]:
        """The network, and the network under the profiler."""
        return {f"{key} plain": self.subject.call, f"{key} traced": self._traced(self.rounds)}

    def _traced(self, rounds: list[Trace]) -> Timed:
        subject = self.subject

        def seconds(calls: int) -> float:
            found = trace(subject.module, subject.call, subject.device, repeats=calls)
            rounds.append(found)
            self._after_round()
            return sum(found.seconds.values())

        return Timed(subject.call, seconds)

    def time_apart(self, seconds: float) -> None:
        """Time the network with composed attention, in rounds of its own."""
        with composed(self.subject.module):
            self.counted_apart = counted(self.subject)
            candidate = self._traced(self.apart_rounds)
            self.latencies["apart"] = interleave({"apart": candidate}, self.subject.device, seconds)["apart"]

    def profile(self, roofs: Calibration | None) -> Profile:
        """The rows, those of the modules first in the order of their calls."""
        plain, traced = self.latencies["plain"], self.latencies["traced"]
        found = Found(self.rounds, self.counted, _status(traced), self.weighed, self.saved)
        where = environment.provenance(self.subject.device, torch.get_num_threads())
        build = Rows(self.subject, self.ran, roofs, environment.fingerprint(where))
        notes = "\n".join(self._notes(found))
        rows = [build.network(found, plain), *build.layers(found, ratio(traced, plain), notes)]
        if self.apart_rounds:
            apart = Found(self.apart_rounds, self.counted_apart, _status(self.latencies["apart"]))
            rows += build.apart(apart, found, self.fused)
        return Profile(tuple(rows), where, roofs)

    def _notes(self, found: Found) -> Iterator[str]:
        """The remarks about the tree: modules without calls, and operators without a known cost."""
        ran = set(paths(found))
        own = {
            path: sum(x.numel() for x in m.parameters(recurse=False)) for path, m in self.subject.module.named_modules()
        }
        left = [path for path in own if own[path] and path not in ran and not self._is_fused(path)]
        if left:
            yield (
                f"{text.counted(len(left), 'module')} with {sum(own[path] for path in left):,} parameters had no "
                f"calls: {text.shortened(left)}; a compiled region, a fast path, or nothing computes them"
            )
        for (operator, path), times in self.counted.uncounted.items():
            yield f"no cost is known for {operator}, {times} times in {path or 'the network itself'}"

    def _is_fused(self, path: str) -> bool:
        return any(path.startswith(f"{attention}.") for attention in self.fused)


def _status(latency: Latency) -> str:
    return "contended" if latency.status == "contended" else "ok"
