"""Measure the memory of what was prepared, and time it in interleaved rounds: the measured fields of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import time_ns
from typing import Any, NamedTuple

import torch

from saprof.backends import Unsupported
from saprof.measure.latency import Latency, Warm, Watch, interleave, ratio
from saprof.measure.prepared import Prepared, Refused, weigh
from saprof.records.rows import key_of


class Ready(NamedTuple):
    """What has run, and can be timed."""

    call: Callable[[], object]
    device: str
    weights: dict[str, Any]
    """The fields of its row about memory."""
    once: float
    """The seconds of the last call."""


def ready(prepared: Prepared) -> Ready:
    """What was prepared, after a call that measures its memory. It should have run once, in some other way."""
    call = prepared.call()
    return Ready(call, prepared.device, *weigh(prepared, call))


def warm(prepared: Prepared) -> Ready:
    """What was prepared, after a first call, and one that measures its memory."""
    prepared.run()
    return ready(prepared)


def timed_together(
    candidates: Mapping[str, Ready], max_seconds: float, watch: Watch = lambda name, done, most: None
) -> dict[str, dict[str, Any]]:
    """The measured fields of rows, by the same names. All are timed in the same rounds, for about `max_seconds` each,
    and compared with the first."""
    if not candidates:
        return {}
    calls = {name: Warm(one.call, one.once) for name, one in candidates.items()}
    device = next(iter(candidates.values())).device
    latencies = interleave(calls, device, max_seconds * len(calls), watch=watch)
    first, *others = latencies
    together = {"rounds": key_of([*calls], time_ns())}
    measured = {name: timed(latencies[name]) | together | one.weights for name, one in candidates.items()}
    for name in others:
        measured[name] |= _compared(latencies[name], latencies[first])
    return measured


def timed(latency: Latency) -> dict[str, Any]:
    """The fields of a row about its latency."""
    low, high = latency.interval
    return {
        "status": latency.status,
        "latency_s": latency.median,
        "latency_low_s": low,
        "latency_high_s": high,
        "latency_p10_s": latency.percentile(10),
        "latency_p90_s": latency.percentile(90),
        "samples_s": list(latency.samples),
        "calls_per_sample": latency.calls_per_sample,
        "stopped": latency.stopped,
        "host_s": latency.host_s,
        "cpu_per_wall": latency.cpu_per_wall,
        "others_cpu": latency.others_cpu,
        "involuntary_switches": latency.involuntary_switches,
    }


def _compared(latency: Latency, first: Latency) -> dict[str, Any]:
    compared = ratio(latency, first)
    return {
        "ratio": compared.median,
        "ratio_low": compared.low,
        "ratio_high": compared.high,
        "verdict": compared.verdict(),
    }


def failure(error: Exception, place: str | None = None) -> dict[str, Any]:
    """Status and reason of a cell that raised an exception. `place` is the file and line in the code of the user."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    match error:
        case Refused():
            return {"status": error.status, "reason": reason}
        case Unsupported():
            return {"status": "unsupported", "reason": reason}
        case torch.OutOfMemoryError() | MemoryError():
            return {"status": "oom", "reason": reason}
        case RuntimeError() if "allocate" in reason:  # the message of the CPU allocator
            return {"status": "oom", "reason": reason}
    return {"status": "error", "reason": f"{type(error).__name__}: {reason}" + (f" ({place})" if place else "")}
