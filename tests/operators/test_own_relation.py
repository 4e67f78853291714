"""A user's own relation: a declaration and one kernel function are enough for everything below."""

import re

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

import saprof
from saprof import backends, sweep, teach_fvcore, verify
from saprof.backends import BACKENDS, Unsupported, taps, unfold
from saprof.layers import AttentionConfig, PairwiseAttention
from saprof.measure.cells import benchmark_cells
from saprof.measure.conformance import check
from saprof.operators import DECLARED, OPERATORS, RELATIONS, operator
from saprof.operators.cost import operator_cost
from saprof.operators.footprint import Footprint
from saprof.operators.workload import ITEMSIZE, Workload, edge
from saprof.records.rows import read_rows

FOOTPRINT = Footprint.square(3)


@pytest.fixture
def squared_difference(monkeypatch):
    monkeypatch.setitem(RELATIONS, "pairwise", RELATIONS["pairwise"])

    @operator(
        axes="n r h w, n r h w -> n r k p",
        elementwise="2*n*r*k*p",
        paper="n*r*k*p",
        source="nobody's paper",
    )
    def pairwise_squared_difference(phi_i, psi_j):
        """δ_ij = (φ_i − ψ_j)²"""
        return (phi_i - psi_j) ** 2

    def kernel(phi, psi, footprint):
        return (taps.centre(phi, footprint) - taps.gather(psi, footprint)).square()

    monkeypatch.setattr(unfold, "pairwise_squared_difference", kernel, raising=False)
    yield pairwise_squared_difference
    del OPERATORS["pairwise_squared_difference"], DECLARED["pairwise_squared_difference"]
    if "pairwise_squared_difference" in backends._libraries:
        backends._libraries.pop("pairwise_squared_difference")._destroy()


@pytest.fixture
def inputs():
    return [x.requires_grad_() for x in torch.randn(2, 1, 3, 5, 5).unbind()]


def test_is_called_like_any_other(squared_difference, inputs):
    phi, psi = inputs
    output = saprof.run(squared_difference, phi, psi, footprint=FOOTPRINT)
    assert output.shape == (1, 3, 9, 25)
    centre, right = 12, 5
    torch.testing.assert_close(output[0, :, right, centre], (phi[0, :, 2, 2] - psi[0, :, 2, 3]) ** 2)


def test_checks_its_inputs(squared_difference, inputs):
    phi, psi = inputs
    message = "pairwise_squared_difference: axis r of psi is 2; expected 3, as in phi"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        saprof.run(squared_difference, phi, psi[:, :2], footprint=FOOTPRINT)
    with pytest.raises(ValueError, match="unknown backend 'triton'"):
        saprof.run(squared_difference, phi, psi, footprint=FOOTPRINT, backend="triton")


def test_describes_itself(squared_difference):
    assert squared_difference.__doc__ == (
        "δ_ij = (φ_i − ψ_j)² (nobody's paper)\n\n(phi: n r h w; psi: n r h w) → n r k p"
    )
    assert (squared_difference.family, squared_difference.relation) == ("pairwise", "squared_difference")


def test_costs_what_was_declared(squared_difference):
    workload = Workload(squared_difference, FOOTPRINT, n=2, r=3, h=5, w=5)
    cost = operator_cost(squared_difference, workload.sizes)
    elements = 2 * 3 * 9 * 25
    assert (cost.macs, cost.elementwise, cost.paper) == (0, 2 * elements, elements)
    assert (cost.reads, cost.writes) == (4 * 2 * (2 * 3 * 25), 4 * elements)


def test_is_judged_like_any_other(squared_difference, monkeypatch):
    for workload in edge(squared_difference):
        verdict = check(workload, "unfold")
        assert verdict.ok, verdict.message
        assert verdict.gradients
    monkeypatch.setattr(unfold, "pairwise_squared_difference", unfold.pairwise_subtraction)
    assert not check(Workload(squared_difference, FOOTPRINT), "unfold").ok


def test_has_a_line_in_verify(squared_difference, capsys):
    assert verify.main(["--operator", "pairwise_squared_difference", "--dtype", "all"]) == 0
    count = len(list(edge(squared_difference)))
    out = capsys.readouterr().out
    table = [line.split(maxsplit=6) for line in out.splitlines()]
    assert [line[2:4] for line in table if line[1:2] == ["unfold"]] == [
        [dtype, f"{count}/{count}"] for dtype in ITEMSIZE
    ]
    assert "no kernel for pairwise_squared_difference" in out
    assert not [line for line in table if line[1:2] == ["numba"]], "what cannot run is in one sentence"


def test_has_no_opaque_kernel(squared_difference, inputs):
    """No backend has a compiled kernel for it; `auto` uses the one that can compute it."""
    how = squared_difference, torch.float32, "cpu", FOOTPRINT
    assert backends.why_not("numba", *how) == "no kernel for pairwise_squared_difference"
    assert not hasattr(torch.ops.saprof_numba, "pairwise_squared_difference")
    assert backends.choose(*how) == "unfold"
    with pytest.raises(Unsupported, match=r"^pairwise_squared_difference: numba: no kernel for pairwise_squared_diff"):
        saprof.run(squared_difference, *inputs, footprint=FOOTPRINT, backend="numba")


def test_is_counted_by_fvcore(squared_difference, inputs):
    class Both(nn.Module):
        def forward(self, phi, psi):
            return saprof.run(squared_difference, phi, psi, footprint=FOOTPRINT)

    analysis = teach_fvcore(FlopCountAnalysis(Both(), tuple(x.detach() for x in inputs)))
    assert analysis.total() == 0  # it has no multiply-adds
    assert not analysis.unsupported_ops()


def test_passes_opcheck(squared_difference, inputs):
    entry = torch.ops.saprof.pairwise_squared_difference.default
    torch.library.opcheck(entry, (*inputs, str(FOOTPRINT), "unfold"))


def test_compiles_even_when_it_was_never_called(squared_difference, inputs, compiler):
    compiled = compiler(
        lambda *x: saprof.run(squared_difference, *x, footprint=FOOTPRINT), fullgraph=True, backend="aot_eager"
    )
    output = compiled(*inputs)
    gradients = torch.autograd.grad(output.sum(), inputs)
    eager = saprof.run(squared_difference, *inputs, footprint=FOOTPRINT)
    torch.testing.assert_close(output, eager)
    for got, want in zip(gradients, torch.autograd.grad(eager.sum(), inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_is_a_relation_of_the_layers(squared_difference):
    layer = PairwiseAttention(64, FOOTPRINT, AttentionConfig(relation="squared_difference"))
    assert layer(torch.randn(2, 64, 5, 5)).shape == (2, 16, 5, 5)
    assert layer.ran == "composed on unfold+numba"
    layer.attention = "fused"
    message = "fused attention: pairwise_squared_difference has no fused attention; expected attention='composed' or "
    with pytest.raises(Unsupported, match=f"^{message}"):
        layer(torch.randn(2, 64, 5, 5))


def test_leaves_nothing_behind():
    assert "pairwise_squared_difference" not in {**OPERATORS, **DECLARED}
    assert "squared_difference" not in RELATIONS["pairwise"]
    assert not hasattr(torch.ops.saprof, "pairwise_squared_difference")


@pytest.mark.deep
def test_has_a_row_in_the_sweep(squared_difference, tmp_path):
    cell = ["--relation", "squared_difference", "--channels", "32", "--size", "6", "--footprint", "3"]
    how = ["--backend", "unfold", "--mode", "train_step", "--seconds", "0.02"]
    assert sweep.main([*cell, *how, "--output", str(tmp_path)]) == 0
    (row,) = read_rows(tmp_path)
    assert (row.name, row.backend) == ("pairwise_squared_difference", "unfold")
    assert row.flops_hardware == 2 * 2 * 9 * 36
    assert row.error < 1
    assert row.latency_s > 0


def test_has_benchmarks(squared_difference):
    names = [cell.subject.operator.name for cell in benchmark_cells()]
    assert names.count("pairwise_squared_difference") == 2 * 2 * 5 * len(BACKENDS)  # modes, batches, stages


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"axes": "n r h w, n r h w -> n z k p"}, "axis z of the output is 'z'; expected only sizes of"),
        ({"axes": "n r h w, n r h w -> n r^2 k p"}, "axis r^2 of the output: cannot read"),
        ({"axes": "n r h w, n r h w -> "}, "expected those of phi, psi -> those of the output"),
        ({"degree": 3}, "degree is 3; expected 1, 2 or None"),
        ({"macs": 0}, "macs is 0; expected a product of sizes as text"),
    ],
)
def test_a_wrong_declaration_is_refused(changed, message):
    def pairwise_wrong(phi_i, psi_j):
        return phi_i

    facts = {"axes": "n r h w, n r h w -> n r k p", "source": "ours"} | changed
    with pytest.raises(ValueError, match=re.escape(message)):
        operator(**facts)(pairwise_wrong)
    assert "pairwise_wrong" not in DECLARED


def test_only_a_declaration_is_run(inputs):
    with pytest.raises(ValueError, match=r"operator is <function .* expected a declaration"):
        saprof.run(saprof.pairwise_subtraction, *inputs, footprint=FOOTPRINT)
