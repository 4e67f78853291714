"""The share of torch's matrix-product rate that the fused attentions reach, computed from their declared multiply-adds,
and the growth of their cost with the map and the footprint.

The tests print both and store them in `extra_info` of the saved results (`--benchmark-json`).
"""

import math
from functools import partial

import pytest
import torch

from saprof.backends import choose, run
from saprof.measure.latency import interleave
from saprof.models import create_model
from saprof.operators import OPERATORS
from saprof.operators.footprint import Footprint
from saprof.operators.workload import STAGES, Workload, stages
from saprof.records import environment

ATTENTIONS = [operator for operator in OPERATORS.values() if operator.masked]
each_attention = pytest.mark.parametrize("operator", ATTENTIONS, ids=lambda operator: operator.name)
SIDE = 1024
"""Rows and columns of the matrices that are multiplied for comparison."""


def measured(benchmark, calls):
    """The median of each call in seconds, from interleaved rounds. pytest-benchmark prints the seconds of all calls."""
    with torch.no_grad():
        latencies = benchmark.pedantic(interleave, (calls, "cpu", 1.0 * len(calls)), rounds=1)
    benchmark.extra_info["where"] = environment.provenance("cpu", torch.get_num_threads())
    return {name: latency.median for name, latency in latencies.items()}


def slope(costs):
    """The slope of log cost over log size, by least squares."""
    points = [(math.log(size), math.log(cost)) for size, cost in costs.items()]
    x, y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


@pytest.mark.benchmark(group="share of the rate of matrix products")
@pytest.mark.parametrize("batch", [1, 8])
@each_attention
def test_share_of_the_matrix_product_rate(operator, batch, benchmark):
    a, b = torch.randn(2, SIDE, SIDE)
    workloads = {f"C = {r * 16}": w for (r, w) in ((w.r, w) for w in stages(operator, batch))}
    calls = {"product": lambda: a @ b}
    for name, workload in workloads.items():
        assert choose(operator, torch.float32, "cpu", workload.footprint) != "unfold"
        calls[name] = partial(run, operator, *workload.tensors(), footprint=workload.footprint)
    seconds = measured(benchmark, calls)
    rate = SIDE**3 / seconds["product"]
    shares = {name: operator.count("macs", w.sizes) / seconds[name] / rate for name, w in workloads.items()}
    benchmark.extra_info |= {"seconds": seconds, "share": shares}
    print(
        f"\n{operator.name}, n = {batch}, of {2e-9 * rate:.0f} GFLOP/s:", *(f"{n}: {s:.0%}" for n, s in shares.items())
    )


@pytest.mark.benchmark(group="growth")
@pytest.mark.parametrize("channels", [channels for channels, _ in STAGES[1:]])
@each_attention
def test_growth_with_the_footprint(operator, channels, benchmark):
    side = dict(STAGES)[channels]
    calls, taps = {}, {}
    for k in range(3, 12, 2):
        workload = Workload.stage(operator, Footprint.square(k), channels, side)
        calls[f"{k} × {k}"] = partial(run, operator, *workload.tensors(), footprint=workload.footprint)
        taps[f"{k} × {k}"] = k * k
    seconds = measured(benchmark, calls)
    found = slope({taps[name]: seconds[name] for name in taps})
    benchmark.extra_info |= {"seconds": seconds, "slope": found}
    print(f"\n{operator.name}, C = {channels}: taps to the power of {found:.2f}")


@pytest.mark.benchmark(group="growth")
@pytest.mark.parametrize("name", ["san10_pairwise", "san10_patchwise", "san10_stand_alone"])
def test_growth_with_the_image(name, benchmark):
    model = create_model(name).eval()
    calls = {side: partial(model, torch.randn(1, 3, side, side)) for side in (112, 224, 448, 896)}
    seconds = measured(benchmark, {str(side): call for side, call in calls.items()})
    found = slope({side * side: seconds[str(side)] for side in calls})
    benchmark.extra_info |= {"seconds": seconds, "slope": found}
    print(f"\n{name}: pixels to the power of {found:.2f}")
