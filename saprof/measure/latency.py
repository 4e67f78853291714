"""Latency, by interleaved rounds.

Each round calls every candidate once, in a new random order, so that a disturbance of the machine affects all of them.
A candidate whose interval is narrow, or whose time is over, leaves; the others go on. Candidates are compared within
the rounds that both have. All samples are kept; a latency is their median, with a bootstrap confidence interval.
"""

from __future__ import annotations

import math
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
from saprof.records.rows import HOST_BOUND

Call = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """A candidate that times itself: `seconds(calls)` is the mean time of that many calls. `call` warms it up."""

    call: Call
    seconds: Callable[[int], float]


@dataclass(frozen=True)
class Warm:
    """A candidate that has just run, which took `once` seconds. If that is long, it needs no other warm-up."""

    call: Call
    once: float


Candidate = Call | Timed | Warm

Watch = Callable[[str, int, int], None]
"""Is called before each sample, with the name of the candidate, the number of the round, and how many rounds it will
have at most."""

MIN_ROUNDS = 7
MAX_ROUNDS = 200
NARROW = 0.02
"""A candidate leaves when its confidence interval is within ± this share of the median."""
UNSTABLE = 0.10
"""If the interval is wider than ± this share of the median at the end, the latency is unstable."""
CONTENDED = 0.15
"""If other processes use more CPU cores than this, the latency is contended."""
SAMPLE_S = 1e-3
"""On a CPU, a shorter call is repeated within a sample, so that the clock and the loop take less than 0.1 % of it."""
SLEEP_S = 0.5e-3
"""On a GPU, the device sleeps at least this long before a sample, while the host queues the calls."""
LEAD = 1.5
"""The sleep is at least this many times as long as the host needs to queue the calls."""
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
        if high - low > 2 * UNSTABLE * self.median:
            return "unstable"
        return HOST_BOUND if self.host_s is not None and self.host_s > self.median else "ok"


def interleave(
    candidates: Mapping[str, Candidate],
    device: str = "cpu",
    max_seconds: float = 2.0,
    seed: int = 0,
    watch: Watch = lambda name, done, most: None,
) -> dict[str, Latency]:
    """Measure all candidates, each in at least `MIN_ROUNDS` rounds, after a warm-up of each.

    After these rounds a candidate leaves if its interval is narrow, or if both its share of `max_seconds` and all of
    `max_seconds` are used: what the others leave over goes to the candidates that need it.
    """
    clock = _CudaClock(device) if torch.device(device).type == "cuda" else _CpuClock()
    timings = {name: _Timing(candidate, clock) for name, candidate in candidates.items()}
    rng, usage, budget = random.Random(seed), Usage(), _Budget(max_seconds, len(timings))
    order = list(timings)
    for done in range(1, MAX_ROUNDS + 1):
        rng.shuffle(order)
        for name in order:
            timing = timings[name]
            watch(name, done, budget.rounds(timing))
            budget.spent += timing.sample()
        for name in list(order):
            timings[name].stopped = budget.why_stop(timings[name])
            if timings[name].stopped:
                order.remove(name)
        if not order:
            break
    of_all = usage.since()
    return {name: timing.latency(*of_all) for name, timing in timings.items()}


def ratio(one: Latency, other: Latency) -> Ratio:
    """one / other, over the rounds that both have."""
    return within_rounds(one.samples, other.samples)


def _narrow(samples: Sequence[float]) -> bool:
    low, high = median_interval(samples, resamples=200)
    return high - low <= 2 * NARROW * float(np.median(samples))


class _Sample(NamedTuple):
    """The number of calls in a sample."""

    untimed: int
    timed: int


class _Timing:
    """A candidate with its samples. It is warmed up when this is created."""

    def __init__(self, candidate: Candidate, clock: _CpuClock | _CudaClock) -> None:
        self.candidate, self.clock = candidate, clock
        self.call = candidate.call if isinstance(candidate, Timed | Warm) else candidate
        self.plan = _warm_up(candidate, self.call, clock)
        self.samples: list[float] = []
        self.seconds = 0.0
        """The time of all samples, with their untimed calls."""
        self.stopped = ""

    def sample(self) -> float:
        """Take a sample, and return the seconds that it took."""
        start = time.perf_counter()
        if isinstance(self.candidate, Timed):
            for _ in range(self.plan.untimed):
                self.call()
            self.samples.append(self.candidate.seconds(self.plan.timed))
        else:
            self.samples.append(self.clock.time(self.call, self.plan))
        took = time.perf_counter() - start
        self.seconds += took
        return took

    def latency(self, switches: int, cpu_per_wall: float, others_cpu: float) -> Latency:
        usage = (switches, cpu_per_wall, others_cpu)
        return Latency(tuple(self.samples), self.plan.timed, self.stopped, *usage, self.clock.host(self.call))


class _Budget:
    """The time of some candidates. Each has its share of it, and the time that the others leave over."""

    def __init__(self, seconds: float, candidates: int) -> None:
        self.seconds, self.share = seconds, seconds / max(candidates, 1)
        self.spent = 0.0

    def why_stop(self, timing: _Timing) -> str:
        """Why a candidate leaves after this round; nothing if it goes on."""
        if len(timing.samples) < MIN_ROUNDS:
            return ""
        if _narrow(timing.samples):
            return "narrow"
        if self._left(timing) <= 0:
            return "time"
        return "rounds" if len(timing.samples) >= MAX_ROUNDS else ""

    def rounds(self, timing: _Timing) -> int:
        """The largest number of rounds that a candidate will have, as far as is known."""
        done = len(timing.samples)
        each = timing.seconds / done if done else math.inf
        most = done + 1 + int(max(self._left(timing), 0.0) / max(each, 1e-9))
        return min(MAX_ROUNDS, max(MIN_ROUNDS, most))

    def _left(self, timing: _Timing) -> float:
        return max(self.share - timing.seconds, self.seconds - self.spent)


def _warm_up(candidate: Candidate, call: Call, clock: _CpuClock | _CudaClock) -> _Sample:
    """Call until caches, allocator and lazy set-up have settled; returns the plan of a sample."""
    if isinstance(candidate, Warm) and clock.is_long(candidate.once):
        return clock.plan(candidate.once)
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

    def is_long(self, once: float) -> bool:
        """Whether a call of this time, which was perhaps a slow one, is certainly a sample of its own."""
        return once > 2 * SETTLE_S

    def host(self, call: Call) -> None:
        return None


class _CudaClock:
    """A sample by CUDA events on the current stream around work that is queued in advance, after the L2 cache of the
    device was overwritten."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.cycles_per_s = self._cycles_per_s()
        self.hosts: dict[Call, float] = {}
        """For each call, the seconds until it returns."""
        l2 = torch.cuda.get_device_properties(self.device).L2_cache_size
        self.flush = torch.empty(2 * l2, dtype=torch.uint8, device=self.device)

    def time(self, call: Call, sample: _Sample) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        lead = max(SLEEP_S, LEAD * sample.timed * self.host(call))
        with torch.cuda.device(self.device):
            self.flush.zero_()
            torch.cuda._sleep(round(lead * self.cycles_per_s))  # meanwhile the host queues the calls
            start.record()
            for _ in range(sample.timed):
                call()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) * 1e-3 / sample.timed

    def _cycles_per_s(self) -> float:
        """The rate at which `torch.cuda._sleep` counts."""
        cycles = 10_000_000
        with torch.cuda.device(self.device):
            torch.cuda._sleep(cycles)  # wakes the device
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            torch.cuda._sleep(cycles)
            end.record()
            end.synchronize()
        return cycles / (start.elapsed_time(end) * 1e-3)

    def plan(self, once: float) -> _Sample:
        return _Sample(0, 1)  # a second call would read its inputs from L2

    def is_long(self, once: float) -> bool:
        return False

    def host(self, call: Call) -> float:
        if call not in self.hosts:
            self.hosts[call] = self._until_it_returns(call)
        return self.hosts[call]

    def _until_it_returns(self, call: Call) -> float:
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
