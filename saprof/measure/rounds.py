"""Time what is ready in interleaved rounds, and measure its memory: the measured fields of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from saprof.backends import Unsupported
from saprof.measure.latency import Latency, interleave, ratio
from saprof.measure.prepared import Prepared, Refused, weigh

Ready = tuple[Prepared, Callable[[], object]]
"""What was prepared, and its call, which has run once."""


def warm(prepared: Prepared) -> Ready:
    """What was prepared, after one call."""
    call = prepared.call()
    call()
    return prepared, call


def time_and_weigh(ready: Mapping[str, Ready], max_seconds: float) -> dict[str, dict[str, Any]]:
    """The measured fields of rows, by the same names. All are timed in the same rounds, for at most `max_seconds` each,
    and compared with the first."""
    calls = {name: call for name, (_, call) in ready.items()}
    device = next((prepared.device for prepared, _ in ready.values()), "cpu")
    latencies = interleave(calls, device, max_seconds * len(calls)) if calls else {}
    first = next(iter(latencies.values()), None)
    measured = {}
    for name, (prepared, call) in ready.items():
        measured[name] = timed(latencies[name]) | weigh(prepared, call)
        if first is not None and latencies[name] is not first:
            measured[name] |= _compared(latencies[name], first)
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
