"""The Numba backend's CUDA kernels without a GPU: Numba simulates one, and its memory are torch's CPU tensors.

If there is a GPU, test_operators.py runs the kernels on it, and these tests are skipped.
"""

from dataclasses import replace

import pytest
import torch
from test_operators import OF_TWO, each_of_two

from saprof.backends import numba as backend
from saprof.backends import run, why_not
from saprof.measure.conformance import check
from saprof.operators import aggregation, pairwise_subtraction
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload, edge, tiny

pytestmark = pytest.mark.simulated


@pytest.fixture(autouse=True)
def _simulator(monkeypatch):
    """The CUDA kernels compute the calls for the CPU."""
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here; test_operators.py runs these kernels on it")
    monkeypatch.setitem(backend.DEVICES, "cpu", backend.DEVICES["cuda"])


def workloads(make, *dtypes):
    cases = [replace(w, dtype=dtype) for op in OF_TWO.values() for w in make(op) for dtype in dtypes]
    return pytest.mark.parametrize("workload", cases, ids=str)


def one_boundary_each(op):
    """The workloads of `edge` beyond `tiny`, the boundaries in turn."""
    beyond = [w for w in edge(op) if w not in set(tiny(op))]
    count = len(beyond) // 5
    return [beyond[i % 5 * count + i] for i in range(count)]


QUICK = {workload for op in OF_TWO.values() for workload in one_boundary_each(op)[::3]}
"""Every boundary once for each operator."""


@pytest.mark.deep_unless(case=lambda workload: workload in QUICK)
@workloads(one_boundary_each, "float32")
def test_edge(workload):
    verdict = check(workload, "numba")
    assert verdict.ok, verdict.message
    assert verdict.gradients


@pytest.mark.deep_unless(case=lambda workload: workload.operator is aggregation)
@workloads(lambda op: [next(tiny(op))], "float64", "float16", "bfloat16")
def test_other_types(workload):
    """On a GPU only bfloat16 is converted; kernels read float16."""
    verdict = check(workload, "numba")
    assert verdict.ok, verdict.message
    assert verdict.gradients


@each_of_two
def test_the_same_bits_twice(op):
    workload = Workload(op, Footprint.square(3, boundary="replicate"))
    runs = []
    for _ in range(2):
        inputs = [x.requires_grad_() for x in workload.tensors()]
        output = run(op, *inputs, footprint=workload.footprint, backend="numba")
        runs.append([output, *torch.autograd.grad(output, inputs, output.detach())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("needed", [0, 1])
def test_a_gradient_that_nobody_needs_is_not_computed(needed, monkeypatch):

    from kernels_numba.gpu import relations

    kernels = {0: "correlate", 1: "distribute"}
    monkeypatch.setattr(relations, kernels[1 - needed], lambda *_: pytest.fail("an unneeded gradient was computed"))
    inputs = Workload(aggregation, Footprint.square(3)).tensors()
    inputs[needed].requires_grad_()
    run(aggregation, *inputs, footprint=Footprint.square(3), backend="numba").sum().backward()
    assert inputs[needed].grad is not None


def test_an_empty_batch_launches_nothing(monkeypatch):
    monkeypatch.setattr(backend, "as_array", lambda _: pytest.fail("an array was made for a kernel"))
    workload = Workload(pairwise_subtraction, Footprint.square(3), n=0)
    assert run(pairwise_subtraction, *workload.tensors(), footprint=workload.footprint, backend="numba").numel() == 0


def test_without_a_gpu_the_reason_is_said():
    reason = why_not("numba", aggregation, torch.float32, "cuda", Footprint.square(3))
    assert reason == "torch sees no CUDA device"
