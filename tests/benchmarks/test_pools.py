"""Whether the threads of torch and of Numba disturb each other. In turns, both should take the sum of their times.

If each library has its own threads (`NUMBA_THREADING_LAYER=workqueue`), they take longer, and the kernel alone takes
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
