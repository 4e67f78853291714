"""The memory bandwidth of the aggregation beside that of a plain copy, computed from the bytes that it must move:
`gb_per_s` in the saved results (`--benchmark-json`)."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from saprof.backends import run, why_not
from saprof.measure.latency import interleave
from saprof.operators import BACKENDS, aggregation
from saprof.operators.cost import operator_cost
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload
from saprof.records import environment

WORKLOAD = Workload.stage(aggregation, Footprint.square(7), 256, 56, batch=8)


def least_bytes(workload):
    return operator_cost(workload.operator, workload.sizes, workload.itemsize).bytes


@pytest.mark.benchmark(group="bandwidth")
@pytest.mark.parametrize("what", ["copy", "aggregation"])
def test_bandwidth(what, benchmark):
    inputs = WORKLOAD.tensors()
    source = torch.randn(16 << 20)  # larger than the caches
    target = torch.empty_like(source)
    if what == "copy":
        nbytes = source.nbytes + target.nbytes
        benchmark.pedantic(lambda: target.copy_(source), rounds=30, warmup_rounds=3)
    else:
        nbytes = least_bytes(WORKLOAD)
        benchmark.pedantic(lambda: run(aggregation, *inputs, footprint=WORKLOAD.footprint), rounds=30, warmup_rounds=3)
    benchmark.extra_info |= {"bytes": nbytes, "gb_per_s": nbytes / benchmark.stats.stats.median / 1e9}


@pytest.mark.gpu
@pytest.mark.benchmark(group="bandwidth of a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bandwidth_of_a_gpu(dtype, benchmark):
    """All candidates run in the same rounds. pytest-benchmark prints the seconds of the whole comparison."""
    workload = replace(WORKLOAD, n=32, dtype=dtype)
    inputs = workload.tensors("cuda")
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    calls, nbytes = {"copy": lambda: target.copy_(source)}, {"copy": source.nbytes + target.nbytes}
    for backend in BACKENDS:
        if why_not(backend, aggregation, inputs[0].dtype, "cuda", workload.footprint) is None:
            calls[backend] = partial(run, aggregation, *inputs, footprint=workload.footprint, backend=backend)
            nbytes[backend] = least_bytes(workload)
    with torch.no_grad():
        latencies = benchmark.pedantic(interleave, (calls, "cuda", 1.0 * len(calls)), rounds=1)
    found = {name: {"bytes": nbytes[name], "gb_per_s": nbytes[name] / x.median / 1e9} for name, x in latencies.items()}
    where = environment.provenance("cuda", torch.get_num_threads())
    benchmark.extra_info |= {"dtype": dtype, "candidates": found, "where": where}
    print(f"\n{dtype}", *(f"{name}: {f['gb_per_s']:.0f} GB/s" for name, f in found.items()), sep="\n")
