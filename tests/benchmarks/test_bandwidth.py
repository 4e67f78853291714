"""How much of the memory bandwidth, as a plain copy has it, the aggregation reaches, by the bytes that it must move:
`gb_per_s` in the saved results (`--benchmark-json`)."""

import pytest
import torch

from saprof.cost import operator_cost
from saprof.footprint import Footprint
from saprof.operators import aggregation
from saprof.workload import Workload

WORKLOAD = Workload.stage(aggregation, Footprint.square(7), 256, 56, batch=8)


@pytest.mark.benchmark(group="bandwidth")
@pytest.mark.parametrize("what", ["copy", "aggregation"])
def test_bandwidth(what, benchmark):
    inputs = WORKLOAD.tensors()
    source = torch.randn(16 << 20)  # more than caches hold
    target = torch.empty_like(source)
    if what == "copy":
        nbytes = source.nbytes + target.nbytes
        benchmark.pedantic(lambda: target.copy_(source), rounds=30, warmup_rounds=3)
    else:
        nbytes = operator_cost(WORKLOAD.operator, WORKLOAD.sizes, WORKLOAD.itemsize).bytes
        benchmark.pedantic(lambda: aggregation(*inputs, footprint=WORKLOAD.footprint), rounds=30, warmup_rounds=3)
    benchmark.extra_info |= {"bytes": nbytes, "gb_per_s": nbytes / benchmark.stats.stats.median / 1e9}
