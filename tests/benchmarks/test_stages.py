"""`pytest --benchmark-only`: every operator at SAN10's five stages, on every backend.

All rounds of one benchmark run before the next benchmark. To compare backends, use the sweep, which interleaves rounds.
The saved results (`--benchmark-json`) hold the fields of a row, and its share of the roof.
"""

import pytest
import torch

from saprof.backends import why_not
from saprof.measure.cell import prepare, row
from saprof.measure.cells import benchmark_cells
from saprof.measure.conformance import check, sample_positions
from saprof.records.calibration import share


@pytest.mark.parametrize("cell", list(benchmark_cells()), ids=str)
def test_operator(cell, benchmark, roofs):
    workload = cell.subject
    reason = why_not(cell.backend, workload.operator, torch.float32, cell.device, workload.footprint)
    if reason is not None:
        pytest.skip(reason)
    verdict = check(workload, cell.backend, cell.device, cell.mode != "forward", sample_positions(workload))
    assert verdict.ok, verdict.message
    prepared, facts = prepare(cell)
    facts["error"] = verdict.fraction
    benchmark.group = f"{workload} {cell.mode}"
    benchmark.extra_info |= cell.what | cell.costs | facts
    benchmark.pedantic(prepared.call(), rounds=7, warmup_rounds=1)
    measured = row(cell, "benchmark", **facts, status="ok", latency_s=benchmark.stats.stats.median)
    benchmark.extra_info["roof_share"] = share(measured, roofs)
