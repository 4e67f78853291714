"""What the host needs for a call of an operator, with the launch of its kernels replaced by nothing.

On a GPU a short kernel cannot run more often than the host starts it, and on a CPU the same work precedes a kernel.
"""

import pytest
import torch

from saprof.backends import cuda, numba, run
from saprof.measure.latency import interleave
from saprof.operators import OPERATORS
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload

NAMES = ("pairwise_subtraction", "aggregation", "pairwise_attention", "patchwise_attention", "stand_alone_attention")


@pytest.mark.benchmark(group="host")
@pytest.mark.parametrize("backend", ["cuda", "numba"])
def test_host(backend, benchmark, monkeypatch):
    monkeypatch.setitem(cuda.LAUNCH, "cpu", lambda *_: None)
    monkeypatch.setattr(numba.Call, "run", lambda _: None)
    calls = {}
    for name in NAMES:
        workload = Workload(OPERATORS[name], Footprint.square(7), n=1, h=7, w=7)
        for mode in ("forward", "training"):
            inputs = [x.requires_grad_(mode == "training") for x in workload.tensors()]
            calls[name, mode] = lambda workload=workload, inputs=inputs: _step(workload, inputs, backend)
    latencies = benchmark.pedantic(interleave, (calls, "cpu", 0.5 * len(calls)), rounds=1)
    micros = {f"{name} {mode}": latency.median * 1e6 for (name, mode), latency in latencies.items()}
    benchmark.extra_info |= {"microseconds": micros}
    print(f"\n{backend}, microseconds:", *(f"\n{name}: {time:.1f}" for name, time in micros.items()), end="")


def _step(workload, inputs, backend):
    y = run(workload.operator, *inputs, footprint=workload.footprint, backend=backend)
    if y.requires_grad:
        torch.autograd.grad(y, inputs, y.detach())
