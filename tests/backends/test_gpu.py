"""Tests of the opaque kernels that need a GPU: streams, graphs, several devices, memory, size.

test_operators.py tests their values and gradients.
"""

import pytest
import torch

from saprof.backends import run, why_not
from saprof.measure.conformance import check
from saprof.measure.memory import peak_bytes
from saprof.operators import OPERATORS, aggregation, pairwise_subtraction
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload, stages

pytestmark = pytest.mark.gpu

FOOTPRINT = Footprint.square(5, boundary="circular")

each_operator = pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)


@pytest.fixture(params=["cuda", "numba"])
def backend(request):
    reason = why_not(request.param, aggregation, torch.float32, "cuda", FOOTPRINT)
    return pytest.skip(f"{request.param}: {reason}") if reason else request.param


def workload(op):
    return Workload(op, FOOTPRINT, n=2, r=8, v=16, g=4, h=14, w=28)


def step(op, inputs, backend):
    """The output and the gradients."""
    output = run(op, *inputs, footprint=FOOTPRINT, backend=backend)
    return [output, *torch.autograd.grad(output, inputs, output.detach())]


def same(ones, others):
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


@each_operator
def test_the_same_bits_twice(op, backend):
    inputs = [x.requires_grad_() for x in workload(op).tensors("cuda")]
    assert same(step(op, inputs, backend), step(op, inputs, backend))


@each_operator
def test_in_the_current_stream(op, backend):
    """The kernel waits for work that is already queued in the stream."""
    inputs = workload(op).tensors("cuda")
    want = run(op, *inputs, footprint=FOOTPRINT, backend=backend)
    late = [torch.zeros_like(x) for x in inputs]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        for x, value in zip(late, inputs, strict=True):
            x.copy_(value)
        got = run(op, *late, footprint=FOOTPRINT, backend=backend)
    torch.cuda.synchronize()
    assert torch.equal(got, want)


@each_operator
def test_in_a_graph(op, backend):
    """Recorded once, replayed on other values."""
    inputs = workload(op).tensors("cuda")
    run(op, *inputs, footprint=FOOTPRINT, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(op, *inputs, footprint=FOOTPRINT, backend=backend)
    for x in inputs:
        x.normal_()
    graph.replay()
    assert torch.equal(output, run(op, *inputs, footprint=FOOTPRINT, backend=backend))


@each_operator
def test_on_a_device_that_is_not_the_current_one(op, backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    verdict = check(workload(op), backend, "cuda:1")
    assert verdict.ok, verdict.message
    assert torch.cuda.current_device() == 0


@each_operator
def test_nothing_but_the_output_takes_memory(op, backend):
    """An attention may also allocate a few maps, but no array of the size of the footprint."""
    for case in stages(op):
        inputs = case.tensors("cuda")
        output = run(op, *inputs, footprint=case.footprint, backend=backend)
        peak = peak_bytes(lambda: run(op, *inputs, footprint=case.footprint, backend=backend), "cuda")  # noqa: B023
        maps = 4 * sum(x.nbytes for x in inputs) if op.masked else 512 * len(inputs)  # torch deals out 512 at a time
        assert peak <= output.nbytes + maps, case


def test_more_elements_than_an_int_counts(backend):
    """2.4 · 10⁹ elements: the last image alone gives the same as all images together."""
    footprint = Footprint.square(7)
    phi, psi = torch.randn(2, 8, 128, 224, 224, device="cuda", dtype=torch.float16)
    output = run(pairwise_subtraction, phi, psi, footprint=footprint, backend=backend)
    assert output.numel() > 2**31
    last = run(pairwise_subtraction, phi[-1:], psi[-1:], footprint=footprint, backend=backend)
    assert torch.equal(output[-1:], last)
