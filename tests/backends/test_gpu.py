"""Tests of the opaque kernels that need a GPU: streams, graphs, several devices, memory, size.

test_operators.py tests their values and gradients.
"""

from dataclasses import replace

import pytest
import torch

from saprof.backends import run, why_not
from saprof.layers import AttentionConfig, PairwiseAttention, PatchwiseAttention, StandAloneAttention
from saprof.measure.conformance import check
from saprof.measure.memory import peak_bytes
from saprof.operators import OPERATORS, aggregation, pairwise_subtraction
from saprof.operators.attention import pairwise_attention
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
def test_tables_that_a_capture_needs_first(op, backend):
    """A map of a new size inside a capture: its tables are neither in the graph nor in its memory pool."""
    run(op, *workload(op).tensors("cuda"), footprint=FOOTPRINT, backend=backend)  # loads the kernels
    case = replace(workload(op), h=13, w=24)
    inputs = case.tensors("cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(op, *inputs, footprint=FOOTPRINT, backend=backend)
    for height in range(3, 40):  # other tables do not take the place of those that the graph reads
        run(op, *replace(case, h=height).tensors("cuda"), footprint=FOOTPRINT, backend=backend)
    graph.replay()
    assert torch.equal(output, run(op, *inputs, footprint=FOOTPRINT, backend=backend))
    graph.replay()


@pytest.mark.parametrize("text", ["5", "5 boundary=exclude", "3 stride=2", "disk:5"])
@pytest.mark.parametrize("op", [aggregation, pairwise_subtraction, pairwise_attention], ids=lambda op: op.name)
def test_compiled_with_graphs(op, text, backend, compiler):
    """mode="reduce-overhead": several steps, of which the first ones warm up and record."""
    case = replace(workload(op), footprint=Footprint.parse(text), h=11, w=20)
    inputs = [x.requires_grad_() for x in case.tensors("cuda")]

    def step(*inputs):
        return run(op, *inputs, footprint=case.footprint, backend=backend).square().sum()

    want = torch.autograd.grad(step(*inputs), inputs)
    compiled = compiler(step, mode="reduce-overhead")
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        got = torch.autograd.grad(compiled(*inputs), inputs)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("attention", ["fused", "composed"])
@pytest.mark.parametrize("kind", [PairwiseAttention, PatchwiseAttention, StandAloneAttention])
def test_a_layer_compiled_with_graphs(kind, attention, backend, compiler):
    config = AttentionConfig(family=kind.family, attention=attention, backend=backend)
    layer = kind(64, Footprint.square(5, boundary="exclude"), config).cuda().eval()
    x = torch.randn(2, 64, 14, 14, device="cuda")
    compiled = compiler(layer, mode="reduce-overhead")
    with torch.no_grad():
        want = layer(x)
        for _ in range(4):
            torch.testing.assert_close(compiled(x), want)


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
