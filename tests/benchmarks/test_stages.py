"""`pytest --benchmark-only`: every operator at SAN10's five stages, forward and training step, on every backend.

Rounds of one benchmark follow each other; the sweep, which interleaves them, is what compares backends.
"""

import pytest
import torch

from saprof.backends import BACKENDS, why_not
from saprof.cells import Cell
from saprof.measure.cell import prepare
from saprof.measure.environment import device_name
from saprof.operators import OPERATORS
from saprof.workload import stages

CELLS = [
    Cell(workload, mode, "cpu", backend)
    for operator in OPERATORS.values()
    for workload in stages(operator)
    for mode in ("forward", "train_step")
    for backend in BACKENDS
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_operator(cell, benchmark):
    workload = cell.subject
    reason = why_not(cell.backend, workload.operator, torch.float32, cell.device, workload.footprint)
    if reason is not None:
        pytest.skip(reason)
    prepared, facts = prepare(cell)
    benchmark.group = f"{workload} {cell.mode}"
    benchmark.extra_info |= (
        {"device": device_name(cell.device), "threads": torch.get_num_threads()} | facts | cell.costs
    )
    benchmark.pedantic(prepared.call(), rounds=7, warmup_rounds=1)
