"""Whether the threads of torch and of Numba fight: done in turns, their work should take as long as both parts alone.

Where each library has threads of its own (`NUMBA_THREADING_LAYER=workqueue`), it takes longer, and the kernel alone
several times as long.
"""

import pytest
import torch

from saprof.backends import run
from saprof.operators import aggregation
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload


@pytest.mark.benchmark(group="thread pools")
@pytest.mark.parametrize("what", ["torch", "numba", "in turns"])
def test_pools(what, benchmark):
    workload = Workload.stage(aggregation, Footprint.square(7), 256, 56)
    inputs, matrix = workload.tensors(), torch.randn(384, 384)

    def work():
        if what != "numba":
            torch.mm(matrix, matrix)
        if what != "torch":
            run(aggregation, *inputs, footprint=workload.footprint, backend="numba")

    benchmark.pedantic(work, rounds=50, warmup_rounds=5)
