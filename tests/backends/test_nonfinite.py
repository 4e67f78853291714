"""NaN and infinities reach exactly what depends on them, in outputs and gradients, on every backend.

The reference says what depends on a number. Each test plants one in one place of one input.
"""

from __future__ import annotations

import math
import sys

import pytest
import torch
from derivatives import gradients

from saprof.backends import numba, run, run_statistics
from saprof.operators import OPERATORS
from saprof.operators.attention import Attention, pairwise_attention, patchwise_attention
from saprof.operators.footprint import Footprint
from saprof.operators.reference import reference
from saprof.operators.stand_alone import stand_alone_attention
from saprof.operators.workload import Workload

BACKENDS = ("unfold", "numba", "cuda")
VALUES = (math.nan, math.inf, -math.inf)
SIZES = {"n": 1, "h": 4, "w": 5}
EXCLUDE = Footprint.square(3, boundary="exclude")
SPARSE = Footprint.from_offsets([(0, 1), (2, 0), (2, 2)], boundary="exclude")
"""Some centres have no tap inside the map, and no centre reads the first pixel."""
STRIDED = Footprint.from_offsets([(0, 0), (2, 1), (-1, 0)], stride=2, boundary="exclude")
FOOTPRINTS = [Footprint.square(3, boundary=b) for b in ("reflect", "zero", "replicate", "circular")]
FOOTPRINTS += [EXCLUDE, SPARSE, STRIDED]

DEFAULTS = (pairwise_attention, patchwise_attention, stand_alone_attention)


def same(what, got, expected, tolerance, only_finite=False):
    """NaN, ∞ and −∞ are in the same places, and the other numbers agree; if `only_finite`, ∞ may be NaN."""
    got = got.double()
    for kind in (torch.isfinite,) if only_finite else (torch.isnan, torch.isposinf, torch.isneginf):
        found, wanted = kind(got), kind(expected)
        assert torch.equal(found, wanted), f"{what}: {kind.__name__} for {found.sum()}; expected {wanted.sum()}"
    finite = expected.isfinite()
    torch.testing.assert_close(got[finite], expected[finite], rtol=tolerance, atol=tolerance, msg=what)


def check(op, footprint, backend, where, value, dtype="float32", sizes=SIZES):
    """Plant the value in element `place` of an input; `where` is (index of the input, place)."""
    index, place = where
    inputs = Workload(op, footprint, dtype=dtype, **sizes).tensors()
    inputs[index].view(-1)[place] = value
    exact = [x.double().requires_grad_() for x in inputs]
    given = [x.requires_grad_() for x in inputs]
    got, expected = run(op, *given, footprint=footprint, backend=backend), reference(op, exact, footprint)
    tolerance = 1e-3 if dtype == "float32" else 1e-8
    name = op.inputs[index][0]
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=expected.dtype)
    fused = backend != "unfold" and isinstance(op, Attention) and math.isinf(value)
    if fused and name.startswith("scale"):
        # Inf − Inf is NaN where the norm is folded into two sums
        assert not (got.isfinite() & ~expected.isfinite()).any()
        return
    what = f"{op.name} {footprint} {name}[{place}] = {value}"
    same(f"{what}: output", got, expected, tolerance)
    found = gradients(got, given, cotangent.to(got.dtype))
    for (of, _), one, other in zip(op.inputs, found, gradients(expected, exact, cotangent), strict=True):
        same(f"{what}: gradient of {of}", one, other, tolerance, only_finite=fused and of.startswith("scale"))


def wheres(op, footprint, sizes=SIZES):
    """The first, middle and last element of each input."""
    for index, x in enumerate(Workload(op, footprint, **sizes).tensors()):
        yield from ((index, place) for place in sorted({0, x.numel() // 2, x.numel() - 1}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", DEFAULTS, ids=lambda op: op.name)
def test_in_each_input(op, backend):
    footprint = SPARSE if op.family == "patchwise" else EXCLUDE
    for index in range(len(op.inputs)):
        check(op, footprint, backend, (index, 0), VALUES[index] if index < 3 else math.nan)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", VALUES)
def test_of_a_tap_outside_the_map(value, backend):
    """A dropped tap contributes nothing, not even 0 · NaN: to the embeddings of a query at the border, to the query of
    an embedding, and to the parameters by a centre without a tap."""
    for index in (0, 2):
        check(stand_alone_attention, EXCLUDE, backend, (index, 0), value)
    check(pairwise_attention, SPARSE, backend, (0, -1), value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_logits(backend):
    """Logits of ±10⁴, −∞ at one tap and at all, and ∞."""
    footprint = EXCLUDE
    for relative in ({3: 1e4}, {3: -1e4}, {3: -math.inf}, dict.fromkeys(range(9), -math.inf), {3: math.inf}):
        inputs = Workload(stand_alone_attention, footprint, **SIZES).tensors()
        query, embedding = inputs[0], inputs[2]
        query.abs_().add_(0.1), embedding.zero_()
        for tap, logit in relative.items():
            embedding[..., tap] = logit
        exact = reference(stand_alone_attention, [x.double() for x in inputs], footprint)
        got = run(stand_alone_attention, *inputs, footprint=footprint, backend=backend)
        same(f"logits {relative}", got, exact, 1e-3)


@pytest.mark.deep
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
def test_everywhere(op, backend):
    for footprint in FOOTPRINTS:
        for where in wheres(op, footprint):
            for value in VALUES:
                check(op, footprint, backend, where, value, dtype="float64")


@pytest.mark.deep
@pytest.mark.parametrize("backend", ["numba", "cuda"])
@pytest.mark.parametrize("op", [op for op in DEFAULTS if isinstance(op, Attention)], ids=lambda op: op.name)
def test_statistics(op, backend):
    for footprint in (FOOTPRINTS[1], STRIDED):
        for index, place in wheres(op, footprint):
            inputs = Workload(op, footprint, dtype="float64", **SIZES).tensors()
            inputs[index].view(-1)[place] = math.nan
            maps, parameters = [*inputs[:2], *inputs[3 : op.maps]], inputs[op.maps : -1]
            for before in range(0, len(parameters), 3):
                given = [x.clone().requires_grad_() for x in (*maps, *parameters[:before])]
                got, expected = (
                    run_statistics(op, *given, footprint=footprint, backend=b) for b in (backend, "unfold")
                )
                pairs = [*zip(got, expected, strict=True)]
                pairs += zip(
                    gradients(sum(map(sum, got)), given), gradients(sum(map(sum, expected)), given), strict=True
                )
                for number, (one, other) in enumerate(pairs):
                    same(f"{op.name} {op.inputs[index][0]}[{place}]: {before} {number}", one, other, 1e-8)


@pytest.fixture
def simulated(monkeypatch):
    """Numba's simulator of a GPU computes the calls of the backend numba."""
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here, and with it no simulator")
    monkeypatch.setitem(numba.DEVICES, "cpu", numba.DEVICES["cuda"])
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


TWO = Footprint.from_offsets([(0, 0), (0, 1)], boundary="exclude")
SMALL = {"n": 1, "h": 1, "w": 3}


@pytest.mark.simulated
@pytest.mark.usefixtures("simulated")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy's scalars, which compute in place of a GPU
@pytest.mark.parametrize("op", DEFAULTS, ids=lambda op: op.name)
class TestSimulated:
    def test_the_last_pixel(self, op):
        check(op, TWO, "numba", (1, -1), math.nan, sizes=SMALL)

    @pytest.mark.deep
    def test_everywhere(self, op):
        for footprint in (TWO, SPARSE, FOOTPRINTS[1]):
            for where in wheres(op, footprint, SMALL):
                check(op, footprint, "numba", where, math.nan, dtype="float64", sizes=SMALL)
