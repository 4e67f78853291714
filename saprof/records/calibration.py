"""The roofs of a device, measured when a run was made, and the least time that they allow for a row of the run.

A run folder has the measured rates in `calibration.json`; this module computes noise and bounds from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saprof import atomic
from saprof.records.rows import Row

SCHEMA = 1
FILE = "calibration.json"
FORWARD = ("forward", "train_forward")
"""The modes that do the declared work: costs are those of one forward."""
WIDER = {"float16": "float32", "bfloat16": "float32"}
"""For each dtype, the dtype in which kernels may compute it, if that is faster."""

TENSOR_CORES = "tf32"
"""The name of the rate of float32 matrix products on tensor cores, where torch was allowed to use them."""

NOISE = 0.05
"""The share by which noise may make a rate lower than one that it must at least reach."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """The same calls at one time of a run; interleaved rounds call each of them twice."""

    time: str
    blocks_s: Mapping[str, tuple[float, ...]]
    """`copy`, `gemm`: the median of each block of consecutive rounds."""
    ratios: Mapping[str, tuple[float, float]]
    """`copy`, `gemm`: the 95 % interval of the ratio of the two times of a call in a round. Without noise it is 1."""
    others_cpu: float
    """The CPU cores that other processes used at the same time."""
    contended: bool
    """Whether other processes used too many cores for a valid measurement."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The roofs of a device when a run was made, and its noise."""

    device: str
    """The model name, as in `run.json`."""
    threads: int
    cpu: str
    torch: str
    """The version of torch."""
    time: str
    streams: Mapping[str, Mapping[int, float]]
    """By stream (`copy`, `read`) and by the bytes that a call moves: bytes/s. A copy moves each byte twice."""
    fma: Mapping[str, float]
    """FLOP/s by dtype, 2 FLOPs per FMA; a dtype may be missing."""
    gemm: Mapping[str, float]
    """FLOP/s by dtype, 2 FLOPs per multiply-add."""
    anchors: tuple[Anchor, ...]

    def __post_init__(self) -> None:
        rates = [*self.fma.values(), *self.gemm.values(), *(x for s in self.streams.values() for x in s.values())]
        times = [x for anchor in self.anchors for block in anchor.blocks_s.values() for x in block]
        if not any(self.streams.values()) or not times or not all(0 < x < math.inf for x in [*rates, *times]):
            raise ValueError("expected streams, and an anchor, with positive and finite rates and times")

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`, as in the devices of rows."""
        return "cpu" if self.device == self.cpu else "cuda"

    @property
    def noise_within(self) -> float:
        """How far identical calls in the same interleaved rounds differ; 0.013 means ± 1.3 %."""
        return max(abs(x - 1) for anchor in self.anchors for interval in anchor.ratios.values() for x in interval)

    @property
    def noise_between(self) -> float:
        """The difference between the medians of identical calls at different times of the run, as a share of the
        shorter."""
        return max(max(times) / min(times) for times in self.anchored_s.values()) - 1

    @property
    def anchored_s(self) -> dict[str, list[float]]:
        """The medians of each call of the anchors, over the whole run."""
        medians: dict[str, list[float]] = {}
        for anchor in self.anchors:
            for call, blocks in anchor.blocks_s.items():
                medians.setdefault(call, []).extend(blocks)
        return medians

    @property
    def contended(self) -> bool:
        """Whether other processes used the CPU while the roofs were measured."""
        return self.anchors[0].contended

    def impossible(self, dtypes: Iterable[str] | None = None) -> list[str]:
        """A sentence for each rate that is too low: that of an FMA loop below that of the matrix product on the same
        units, and that of the caches below that of the memory. If `dtypes` are given, only their FMA loops are
        compared.

        On a GPU, products in other dtypes than float32 run on tensor cores, and small copies are limited by the time to
        start them.
        """
        used = self.fma if dtypes is None else dict.fromkeys(WIDER.get(dtype, dtype) for dtype in dtypes)
        slow = list(filter(None, map(self.slow_loop, used)))
        pairs = []
        for name, stream in self.streams.items() if self.kind == "cpu" else ():
            *smaller, largest = sorted(stream)
            if smaller:
                fastest = max(stream[moved] for moved in smaller)
                pairs.append((f"a {name} in the caches", fastest, f"a {name} in memory", stream[largest], "GB/s"))
        return [*slow, *(_too_low(*pair) for pair in pairs if pair[1] < (1 - NOISE) * pair[3])]

    def slow_loop(self, dtype: str) -> str | None:
        """The sentence about an FMA loop in `dtype` that is slower than the matrix product on the same units; None if
        there is none. Such a loop is no roof."""
        if dtype not in self.fma or dtype not in self.gemm or not (self.kind == "cpu" or dtype == "float32"):
            return None
        fma, gemm = self.fma[dtype], self.gemm[dtype]
        if fma >= (1 - NOISE) * gemm:
            return None
        return _too_low(f"the FMA loop in {dtype}", fma, f"the {dtype} matrix product", gemm, "GFLOP/s")

    def why_too_low(self, dtypes: Iterable[str] | None = None) -> str | None:
        """The reasons why the roofs of `dtypes`, or all roofs, are too low; None if there is no reason. Shares of such
        roofs are too high."""
        reasons = [*(["other processes ran meanwhile"] if self.contended else []), *self.impossible(dtypes)]
        return "; ".join(reasons) or None

    def warning(self, dtypes: Iterable[str] | None = None) -> str | None:
        """The sentence about roofs that are too low, with the reasons of `why_too_low`; None without a reason."""
        reason = self.why_too_low(dtypes)
        return reason and f"the roofs are too low, and shares of them too high: {reason}"

    def bandwidth(self, size: float) -> float:
        """The most bytes/s for `size` bytes: the rate of the fastest stream that moves as many bytes or more, or of the
        largest one that moves fewer. Streams of still fewer bytes fit into a faster cache."""
        sets = sorted({moved for stream in self.streams.values() for moved in stream})
        start = max((moved for moved in sets if moved <= size), default=sets[0])
        return max(rate for stream in self.streams.values() for moved, rate in stream.items() if moved >= start)

    def flop_rate(self, dtype: str) -> float | None:
        """The most FLOP/s for elements of `dtype`, by FMAs or by matrix products; None if neither was measured."""
        if dtype not in self.fma and dtype not in self.gemm:
            return None
        computed_in = {dtype, WIDER.get(dtype, dtype), *([TENSOR_CORES] if dtype == "float32" else [])}
        return max(rates[name] for rates in (self.fma, self.gemm) for name in computed_in & rates.keys())


def _too_low(what: str, rate: float, of_what: str, other: float, unit: str) -> str:
    return f"{what} reached {rate / 1e9:.3g} {unit}, less than the {other / 1e9:.3g} of {of_what}"


@dataclass(frozen=True)
class Bound:
    """The least time that the roofs allow, and the roof that gives it."""

    seconds: float
    by: str
    """`memory` or `compute`."""


def bound(row: Row, calibration: Calibration) -> Bound | None:
    """The least time that the roofs allow a row: t ≥ max(bytes / bandwidth(bytes), FLOPs / rate); None if
    `why_not` has a reason other than a missing latency.

    Bytes are the compulsory ones; FLOPs follow the `hardware` convention. For a network only the second term counts,
    times the images, because a layer may find its input in a cache. A library that computes convolutions with fewer
    multiply-adds than their definition has (Winograd) can be faster than the bound.
    """
    rate = calibration.flop_rate(row.dtype)
    if _why_no_bound(row, calibration) or rate is None or row.flops_hardware is None:
        return None
    if row.kind == "model":
        return Bound(row.n * row.flops_hardware / rate, "compute")
    size = row.compulsory_bytes or 0
    memory, compute = size / calibration.bandwidth(size), row.flops_hardware / rate
    return Bound(memory, "memory") if memory >= compute else Bound(compute, "compute")


def share(row: Row, calibration: Calibration) -> float | None:
    """The share of its roof that a row reaches: least time over measured time; None if `why_not` has a reason."""
    least = bound(row, calibration)
    return None if least is None or row.latency_s is None else least.seconds / row.latency_s


def above_roof(row: Row, calibration: Calibration) -> bool:
    """Whether the whole confidence interval of a row is faster than the roofs allow, which is a measurement error.

    It is False if the roofs are too low to show this.
    """
    least = bound(row, calibration)
    if least is None or row.latency_high_s is None or calibration.why_too_low([row.dtype]):
        return False
    return row.latency_high_s < least.seconds


def why_not(row: Row, calibration: Calibration) -> str | None:
    """The reason why a row cannot be compared with the roofs; None if it can."""
    if row.latency_s is None:
        return f"{row.status}, so without a latency"
    return _why_no_bound(row, calibration)


def _why_no_bound(row: Row, calibration: Calibration) -> str | None:
    if row.device.partition(":")[0] != calibration.kind:
        return f"ran on {row.device}; the roofs are those of {calibration.device}"
    if row.kind == "layer":
        return "a layer; saprof.profile shows its share of the roof"
    if row.mode not in FORWARD:
        return f"mode {row.mode}; declared costs are of one forward"
    if row.flops_hardware is None:
        return "no declared costs"
    if calibration.flop_rate(row.dtype) is None:
        return f"no FLOP/s were measured for {row.dtype}"
    if slow := calibration.slow_loop(WIDER.get(row.dtype, row.dtype)):
        return f"no roof of FLOP/s: {slow}; measure the roofs again"
    return None


def with_anchor(calibration: Calibration, anchor: Anchor) -> Calibration:
    """The calibration with one more anchor."""
    return replace(calibration, anchors=(*calibration.anchors, anchor))


def write(folder: str | Path, calibration: Calibration) -> None:
    """Write the calibration to a run folder: the whole file or none."""
    text = json.dumps(content(calibration), indent=1, ensure_ascii=False, allow_nan=False)
    atomic.write(Path(folder) / FILE, text.encode() + b"\n")


def read(folder: str | Path) -> Calibration | None:
    """The calibration of a run folder; None if there is none, ValueError if it is damaged."""
    path = Path(folder) / FILE
    try:
        return parse(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}); delete it, and calibrate again") from None


def content(calibration: Calibration) -> dict[str, Any]:
    """The calibration as JSON, with units in the names."""
    return {
        "schema": SCHEMA,
        **{name: getattr(calibration, name) for name in _PLAIN},
        **{name: getattr(calibration, field) for name, (field, _) in _WITH_UNITS.items()},
        "anchors": [vars(anchor) for anchor in calibration.anchors],
    }


def parse(content: Any) -> Calibration:
    """The calibration from what `content` returned; ValueError for anything else."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"expected a calibration of schema {SCHEMA}")
    try:
        return Calibration(
            **{name: content[name] for name in _PLAIN},
            **{field: read_as(content[name]) for name, (field, read_as) in _WITH_UNITS.items()},
            anchors=tuple(_anchor(anchor) for anchor in content["anchors"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a calibration: {error!r}") from None


def _rates(content: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(rate) for name, rate in content.items()}


def _streams(content: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    return {name: {int(moved): float(rate) for moved, rate in stream.items()} for name, stream in content.items()}


def _anchor(content: Mapping[str, Any]) -> Anchor:
    return Anchor(
        time=content["time"],
        blocks_s={call: _floats(blocks) for call, blocks in content["blocks_s"].items()},
        ratios={call: (float(low), float(high)) for call, (low, high) in content["ratios"].items()},
        others_cpu=float(content["others_cpu"]),
        contended=bool(content["contended"]),
    )


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))


_PLAIN = ("device", "threads", "cpu", "torch", "time")
_WITH_UNITS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "streams_bytes_per_s": ("streams", _streams),
    "fma_flop_per_s": ("fma", _rates),
    "gemm_flop_per_s": ("gemm", _rates),
}
"""Name in the file: the field of Calibration, and the function that reads it."""
