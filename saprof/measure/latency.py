"""Latency, by interleaved rounds.

Each round calls every candidate once, in a new random order, so that a disturbance of the machine affects all of them.
Candidates are compared within rounds. All samples are kept; a latency is their median, with a bootstrap confidence
interval.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import psutil
import torch

from saprof.records.ratios import Ratio, median_interval, within_rounds

Call = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """A candidate that times itself: `seconds(calls)` is the mean time of that many calls. `call` warms it up."""

    call: Call
    seconds: Callable[[int], float]


Candidate = Call | Timed

MIN_ROUNDS = 7
MAX_ROUNDS = 200
NARROW = 0.02
"""Measuring stops when the confidence interval is within ± this share of the median."""
UNSTABLE = 0.10
"""If the interval is wider than ± this share of the median at the end, the latency is unstable."""
CONTENDED = 0.15
"""If other processes use more CPU cores than this, the latency is contended."""
SAMPLE_S = 1e-3
"""On a CPU, a shorter call is repeated within a sample, so that the clock and the loop take less than 0.1 % of it."""
SETTLE_S = 0.1
"""On a CPU, a shorter call is timed after an untimed one. The candidate before may have emptied the caches and returned
memory to the system. That made a call of half a millisecond seven milliseconds longer; for a long call it is
negligible."""


@dataclass(frozen=True)
class Latency:
    """The samples of one candidate, in seconds per call, one per round."""

    samples: tuple[float, ...]
    calls_per_sample: int
    stopped: str
    """Why measuring stopped: `narrow` (the interval is narrow enough), `time` or `rounds`."""
    involuntary_switches: int
    cpu_per_wall: float
    """CPU seconds of this process per second, over all rounds."""
    others_cpu: float
    """CPU cores that other processes used during the measurement."""
    host_s: float | None = None
    """GPU only: the median time until the call returns, while its work is still queued."""

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap confidence interval of the median."""
        return median_interval(self.samples)

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.samples, q))

    @property
    def status(self) -> str:
        if self.others_cpu > CONTENDED:
            return "contended"
        low, high = self.interval
        return "unstable" if high - low > 2 * UNSTABLE * self.median else "ok"


def interleave(
    candidates: Mapping[str, Candidate], device: str = "cpu", max_seconds: float = 2.0, seed: int = 0
) -> dict[str, Latency]:
    """Measure all candidates for up to `max_seconds` in total, but at least `MIN_ROUNDS` rounds, after a warm-up of
    each."""
    clock = _CudaClock(device) if torch.device(device).type == "cuda" else _CpuClock()
    calls = {name: one.call if isinstance(one, Timed) else one for name, one in candidates.items()}
    plans = {name: _warm_up(call, clock) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    rng = random.Random(seed)
    usage = Usage()
    deadline = time.perf_counter() + max_seconds
    stopped = "rounds"
    for done in range(1, MAX_ROUNDS + 1):
        rng.shuffle(order)
        for name in order:
            samples[name].append(_sample(candidates[name], plans[name], clock))
        if done < MIN_ROUNDS:
            continue
        if all(_narrow(values) for values in samples.values()):
            stopped = "narrow"
            break
        if time.perf_counter() > deadline:
            stopped = "time"
            break
    switches, cpu_per_wall, others = usage.since()
    return {
        name: Latency(
            tuple(values), plans[name].timed, stopped, switches, cpu_per_wall, others, clock.host(calls[name])
        )
        for name, values in samples.items()
    }


def ratio(one: Latency, other: Latency) -> Ratio:
    """one / other, over the rounds of both."""
    return within_rounds(one.samples, other.samples)


def _narrow(samples: Sequence[float]) -> bool:
    low, high = median_interval(samples, resamples=200)
    return high - low <= 2 * NARROW * float(np.median(samples))


class _Sample(NamedTuple):
    """The number of calls in a sample."""

    untimed: int
    timed: int


def _sample(candidate: Candidate, plan: _Sample, clock: _CpuClock | _CudaClock) -> float:
    if not isinstance(candidate, Timed):
        return clock.time(candidate, plan)
    for _ in range(plan.untimed):
        candidate.call()
    return candidate.seconds(plan.timed)


def _warm_up(call: Call, clock: _CpuClock | _CudaClock) -> _Sample:
    """Call until caches, allocator and lazy set-up have settled; returns the plan of a sample."""
    call()
    return clock.plan(min(clock.time(call, _Sample(0, 1)) for _ in range(2)))


class _CpuClock:
    def time(self, call: Call, sample: _Sample) -> float:
        for _ in range(sample.untimed):
            call()
        start = time.perf_counter()
        for _ in range(sample.timed):
            call()
        return (time.perf_counter() - start) / sample.timed

    def plan(self, once: float) -> _Sample:
        return _Sample(int(once < SETTLE_S), max(1, round(SAMPLE_S / max(once, 1e-9))))

    def host(self, call: Call) -> None:
        return None


class _CudaClock:
    """A sample by CUDA events on the current stream around work that is queued in advance, after the L2 cache of the
    device was overwritten."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        l2 = torch.cuda.get_device_properties(self.device).L2_cache_size
        self.flush = torch.empty(2 * l2, dtype=torch.uint8, device=self.device)

    def time(self, call: Call, sample: _Sample) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(self.device):
            self.flush.zero_()
            torch.cuda._sleep(1_000_000)  # about half a millisecond, in which the host queues the calls
            start.record()
            for _ in range(sample.timed):
                call()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) * 1e-3 / sample.timed

    def plan(self, once: float) -> _Sample:
        return _Sample(0, 1)  # a second call would read its inputs from L2

    def host(self, call: Call) -> float:
        times = []
        for _ in range(MIN_ROUNDS):
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        torch.cuda.synchronize(self.device)
        return float(np.median(times))


class Usage:
    """Measures the CPU time of this process and of all others since its creation."""

    def __init__(self) -> None:
        self.start = self._now()

    def since(self) -> tuple[int, float, float]:
        """Involuntary context switches, the CPU seconds per second of this process, and the cores that others used."""
        switches, own, busy, wall = (now - then for now, then in zip(self._now(), self.start, strict=True))
        wall = max(wall, 1e-9)
        return int(switches), own / wall, max(0.0, busy - own) / wall

    @staticmethod
    def _now() -> tuple[float, float, float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return usage.ru_nivcsw, usage.ru_utime + usage.ru_stime, sum(times[:8]) - idle, time.perf_counter()
