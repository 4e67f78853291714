"""The roofs of this machine (copies, inner products, FMAs and matrix products), and its noise.

They are measured with the same clock and the same interleaved rounds as rows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from saprof.backends import numba
from saprof.measure.latency import CONTENDED, Call, Latency, Usage, interleave
from saprof.records.calibration import TENSOR_CORES, WIDER, Anchor, Calibration
from saprof.records.environment import cpu_name, device_name
from saprof.records.ratios import within_rounds
from saprof.text import counted

SMALLEST, STEP = 64 << 10, 4
"""The bytes of the first working set, and the factor from each set to the next."""
LARGEST = {"cpu": 256 << 20, "cuda": 4 << 30}
"""The least bytes of the last working set; it has more where four times the last-level cache is more."""
GEMM_S = 10e-3
"""The approximate time of a matrix product on a CPU, much longer than the time to start it."""
GEMM_SIDE = {"cpu": 4096, "cuda": 8192}
"""The side of the matrices: on a GPU always this, on a CPU at most this."""
ANCHOR_BYTES = 64 << 20
ANCHOR_SIDE = {"cpu": 768, "cuda": 4096}
"""The side of the matrices that an anchor multiplies. It is always the same, so that anchors can be compared."""
BLOCKS = 2
"""The number of blocks of rounds in which an anchor is measured, one after the other."""
UNDISTURBED = 10
"""The percentile of the times that gives a roof."""
FMA_DTYPES = ("float32", "float64")
HIGHEST = "highest"
"""The precision of torch in which products in float32 do not run on tensor cores."""
TRIES = 3
"""The largest number of measurements. Impossible roofs are measured again."""


Say = Callable[[str], object]
"""Is called with what is timed now."""


def calibrate(
    device: str, dtypes: Sequence[str], seconds_each: float = 0.2, say: Say = lambda step: None
) -> Calibration:
    """Measure the roofs of `device` with torch's threads: streams over working sets from L1 to memory; an FMA loop and
    a matrix product for each of `dtypes`, and for the dtypes in which kernels may compute these; each for about
    `seconds_each`; then the first anchor.

    A roof is the rate of an undisturbed device, so it follows from the 10th percentile of the times. The median of a
    row is compared with it, so every disturbance of a row lowers its share of the roof. Impossible roofs
    are measured again, and the highest rates count. ValueError if less memory is free than four times the smallest
    working set.
    """
    kind = torch.device(device).type
    name, threads = device_name(device), torch.get_num_threads()
    print(f"measuring the roofs of {name}{_with(threads, kind)} …", file=sys.stderr)
    started = time.perf_counter()
    dtypes = list(dict.fromkeys([*dtypes, *(WIDER[dtype] for dtype in dtypes if dtype in WIDER)]))
    if missing := _why_no_fma(kind):
        print(f"without an FMA loop: {missing}", file=sys.stderr)
    usage = Usage()
    found = _measure(device, dtypes, seconds_each, say)
    for _ in range(1, TRIES):
        if not found.impossible():
            break
        print(f"{'; '.join(found.impossible())}: measuring again", file=sys.stderr)
        found = _higher(found, _measure(device, dtypes, seconds_each, say))
    found = replace(found, anchors=(_beside(found.anchors[0], usage.since()[2]),))
    if kind == "cuda":
        torch.cuda.empty_cache()  # the cells need the memory
    if warning := found.warning():
        print(warning, file=sys.stderr)
    print(f"… in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return found


def _measure(device: str, dtypes: Sequence[str], seconds_each: float, say: Say) -> Calibration:
    say(f"FMAs in {' and '.join(dtypes)}")
    fma = {dtype: _fma_rate(device, dtype, seconds_each) for dtype in dtypes if dtype in FMA_DTYPES}
    streams = _streams(device, seconds_each, say)
    say(f"matrix products in {' and '.join(dtypes)}")
    with _without_tensor_cores():
        gemm = {dtype: _gemm_rate(device, dtype, seconds_each) for dtype in dtypes}
    if "float32" in gemm and torch.device(device).type == "cuda" and torch.get_float32_matmul_precision() != HIGHEST:
        gemm[TENSOR_CORES] = _gemm_rate(device, "float32", seconds_each)
    say("the noise of identical calls")
    return Calibration(
        device=device_name(device),
        threads=torch.get_num_threads(),
        cpu=cpu_name(),
        torch=torch.__version__,
        time=_now(),
        streams=streams,
        fma={dtype: rate for dtype, rate in fma.items() if rate is not None},
        gemm=gemm,
        anchors=(anchor(device, seconds_each),),
    )


def _higher(one: Calibration, other: Calibration) -> Calibration:
    """The second calibration, with the higher of the two rates of each roof."""
    return replace(
        other,
        streams={name: _highest(stream, one.streams[name]) for name, stream in other.streams.items()},
        fma=_highest(other.fma, one.fma),
        gemm=_highest(other.gemm, one.gemm),
    )


def _highest(one: Mapping[Any, float], other: Mapping[Any, float]) -> dict[Any, float]:
    return {name: max(rate, other.get(name, rate)) for name, rate in one.items()}


def _beside(first: Anchor, others_cpu: float) -> Anchor:
    """The anchor; it is contended too if other processes used many cores while the roofs were measured."""
    return replace(
        first, others_cpu=max(first.others_cpu, others_cpu), contended=first.contended or others_cpu > CONTENDED
    )


def anchor(device: str, seconds_each: float = 0.2) -> Anchor:
    """The noise at this time: a copy of 64 MiB and a float32 matrix product, each called twice per round, in two blocks
    of interleaved rounds."""
    copy = _copy(*_buffer(device, ANCHOR_BYTES).chunk(2))
    calls = {"copy": copy, "gemm": _square_product(device, "float32", ANCHOR_SIDE[torch.device(device).type])}
    twins = {**calls, **{f"{name} again": call for name, call in calls.items()}}
    blocks = [interleave(twins, device, len(twins) * seconds_each / BLOCKS, seed) for seed in range(BLOCKS)]
    pairs = {name: [(block[name], block[f"{name} again"]) for block in blocks] for name in calls}
    worst = max((latency for block in blocks for latency in block.values()), key=lambda latency: latency.others_cpu)
    return Anchor(
        time=_now(),
        blocks_s={name: tuple(map(_median, of_call)) for name, of_call in pairs.items()},
        ratios={name: _interval(of_call) for name, of_call in pairs.items()},
        others_cpu=worst.others_cpu,
        contended=worst.status == "contended",
    )


def _median(pair: tuple[Latency, Latency]) -> float:
    return float(np.median(np.concatenate([latency.samples for latency in pair])))


def _interval(pairs: Sequence[tuple[Latency, Latency]]) -> tuple[float, float]:
    """The 95 % interval of the ratios within rounds, over all blocks."""
    in_both = [rounds for one, other in pairs for rounds in zip(one.samples, other.samples, strict=False)]
    found = within_rounds(*zip(*in_both, strict=True))
    return found.low, found.high


def _streams(device: str, seconds_each: float, say: Say = lambda step: None) -> dict[str, dict[int, float]]:
    """Bytes/s by the bytes moved, of a copy and of an inner product. The inner product only reads, uses all threads,
    and is faster on a CPU than torch's sums."""
    sizes = list(_working_sets(device))
    buffer = _buffer(device, sizes[-1])
    rates: dict[str, dict[int, float]] = {"copy": {}, "read": {}}
    for size in sizes:
        say(f"a copy and a read of {size >> 10:,} KiB")
        halves = buffer[: size // 4].chunk(2)
        calls = {"copy": _copy(*halves), "read": partial(torch.dot, *halves)}
        for name, latency in interleave(calls, device, len(calls) * seconds_each).items():
            rates[name][size] = size / latency.percentile(UNDISTURBED)
    return rates


def _working_sets(device: str) -> Iterator[int]:
    """Bytes: 64 KiB, four times as many, and so on to well beyond the caches; at most a quarter of the free memory."""
    kind = torch.device(device).type
    free = torch.cuda.mem_get_info(device)[0] if kind == "cuda" else psutil.virtual_memory().available
    cache = torch.cuda.get_device_properties(device).L2_cache_size if kind == "cuda" else _last_level_cache()
    last = min(max(LARGEST[kind], 4 * cache), free // 4) // 8 * 8
    if last < SMALLEST:
        raise ValueError(f"{free} bytes are free on {device}; expected at least {4 * SMALLEST} to measure its roofs")
    size = SMALLEST
    while size < last:
        yield size
        size *= STEP
    yield last


def _last_level_cache(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """The bytes of all last-level caches together; 0 if the system does not report them."""
    levels: dict[int, dict[str, int]] = {}
    for cache in cpus.glob("cpu[0-9]*/cache/index*"):
        try:
            level, shared, size = ((cache / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
            levels.setdefault(int(level), {})[shared] = int(size.removesuffix("K")) << 10
        except (OSError, ValueError):  # some virtual machines report caches in another form
            continue
    return sum(levels[max(levels)].values()) if levels else 0


def _buffer(device: str, size: int) -> Tensor:
    """A tensor of this many bytes, written once."""
    return torch.zeros(size // 4, device=device)


def _copy(source: Tensor, target: Tensor) -> Call:
    return lambda: target.copy_(source)


def _gemm_rate(device: str, dtype: str, seconds: float) -> float:
    side, call = _product(device, dtype)
    return 2 * side**3 / _undisturbed(call, device, seconds)


@contextmanager
def _without_tensor_cores() -> Iterator[None]:
    """Compute products of float32 matrices in float32 throughout."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(HIGHEST)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _product(device: str, dtype: str) -> tuple[int, Call]:
    """The side and the call of a product of square matrices that takes about GEMM_S."""
    kind = torch.device(device).type
    side = GEMM_SIDE[kind] if kind == "cuda" else 256
    call = _square_product(device, dtype, side)
    while kind == "cpu" and side < GEMM_SIDE[kind] and _seconds(call) < GEMM_S / 3:  # the next takes 8 times as long
        side *= 2
        call = _square_product(device, dtype, side)
    return side, call


def _square_product(device: str, dtype: str, side: int) -> Call:
    a, b = torch.randn(2, side, side, device=device).to(getattr(torch, dtype))
    product = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=product)


def _seconds(call: Call) -> float:
    """The shortest of three calls."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _undisturbed(call: Call, device: str, seconds: float) -> float:
    return interleave({"call": call}, device, seconds)["call"].percentile(UNDISTURBED)


def _why_no_fma(kind: str) -> str | None:
    return numba.why_no_gpu() if kind == "cuda" else numba.why_no_threads()


def _fma_rate(device: str, dtype: str, seconds: float) -> float | None:
    """FLOP/s, 2 per FMA; None if Numba has no kernels for the device."""
    kind = torch.device(device).type
    if _why_no_fma(kind):
        return None
    flops, call = (_fma_on_gpu if kind == "cuda" else _fma_on_cpu)(device, getattr(torch, dtype))
    return flops / _undisturbed(call, device, seconds)


def _fma_on_cpu(device: str, dtype: torch.dtype, steps: int = 1 << 20) -> tuple[int, Call]:
    """The FLOPs and the call of a loop that takes some milliseconds."""
    rates, threads = import_module("kernels_numba.cpu.rates"), torch.get_num_threads()
    values = np.ones((threads, rates.CHAINS * rates.BYTES // dtype.itemsize), str(dtype).removeprefix("torch."))

    def call() -> None:
        with numba.threads_set_to(threads):
            rates.iterate(len(values), values, 0.5, 1.0, steps)

    return 2 * values.size * steps, call


def _fma_on_gpu(device: str, dtype: torch.dtype, steps: int = 1 << 14) -> tuple[int, Call]:
    """The FLOPs and the call of a loop in as many threads as the device can hold. It takes about a millisecond."""
    rates = import_module("kernels_numba.gpu.rates")
    properties = torch.cuda.get_device_properties(device)
    threads = properties.multi_processor_count * properties.max_threads_per_multi_processor
    values = torch.ones(rates.CHAINS, threads, dtype=dtype, device=device)

    def call() -> None:
        with numba.on_stream(values.device) as stream:
            rates.iterate(numba.as_array(values), 0.5, 1.0, steps, stream)

    return 2 * values.numel() * steps, call


def _with(threads: int, kind: str) -> str:
    return f" with {counted(threads, 'thread')}" if kind == "cpu" else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
