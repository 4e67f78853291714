"""Numba's CUDA kernels of the fused attentions' cores without a GPU: Numba simulates one. The expected values are those
of cores.py.

Blocks and panels are so small that tiny maps have several of each. The simulator starts a Python thread for each thread
of a block, and polls whether all of them wait. A shorter switch interval between threads makes it several times faster.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import test_cuda_fused as fused
import torch
from test_cuda_fused import KINDS, Case, Heads

from saprof.backends.cores import KERNELS
from saprof.backends.numba.lookups import tables

pytestmark = pytest.mark.simulated

PAIRWISE = (
    Case("3 boundary=exclude", e=4, hidden=(5,), g=2, share=2, n=2, h=3, w=3),
    Case("3 stride=2", e=2, hidden=(), g=1, share=3, n=1, h=3, w=2, rectified=False, factor=False),
    Case("offsets:9,9;0,1;-1,0 boundary=exclude", e=5, hidden=(3, 4), g=2, share=1, n=1, h=2, w=3),
)
PATCHWISE = (
    Case("offsets:0,0;0,1;-1,0;2,0 boundary=exclude", e=3, hidden=(5,), g=2, share=2, n=2, h=3, w=3),
    Case("cross:3 stride=2", e=2, hidden=(), g=1, share=5, n=1, h=2, w=3),
)
STAND_ALONE = (
    Heads("3 boundary=exclude", depth=3, g=2, share=2, n=2, h=2, w=2),
    Heads("3 stride=2 boundary=zero", depth=2, g=1, share=3, n=1, h=3, w=2, given=("key",)),
    Heads("offsets:9,9;0,1;-1,0 boundary=exclude", depth=1, g=3, share=1, n=1, h=2, w=3, given=("relative",)),
    Heads("offsets:0,0;2,1", depth=4, g=1, share=2, n=2, h=2, w=3),
)
SMALLEST_HEADS = Heads("offsets:0,0;0,1", depth=2, g=1, share=1, n=1, h=2, w=2)
SMALLEST = Case("offsets:0,0;0,1", e=2, hidden=(2,), g=1, share=1, n=1, h=2, w=2)


@pytest.fixture(scope="module", autouse=True)
def _often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The simulator computes the calls of `test_cuda_fused` to the CUDA backend. Returns the constants, so that tests
    can change them."""
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here, and with it no simulator")

    from kernels_numba.gpu import launch, mapping, patchwise

    def set_(module, **constants):
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)

    monkeypatch.setattr(fused, "backend", SimpleNamespace(run_core=run))
    set_(launch, WORKERS=2)
    set_(mapping, MOST_COLUMNS=16, MOST_ROWS=3)
    set_(patchwise, TILE=8, OUTPUTS=4, INPUTS=4)
    return set_


def run(name, tensors, options, footprint):
    """A core's arrays are torch's tensors, and its scratch memory is full of NaN."""
    from kernels_numba.gpu.launch import Lookups

    map_ = next(x for x in tensors if x is not None and x.dim() == 4)
    arrays = tables(footprint, *map_.shape[2:], map_.device)
    lookups = SimpleNamespace(
        **Lookups(*(x.numpy() for x in arrays), 0)._asdict(),
        excludes=footprint.boundary == "exclude",
        empty=lambda *shape: map_.new_full(shape, torch.nan).numpy(),
    )
    arrays = [None if x is None else x.numpy() for x in tensors]
    family = import_module(f"kernels_numba.gpu.{KERNELS[name].family}")
    getattr(family, name)(*arrays, *options, lookups)


@pytest.mark.parametrize("case", PAIRWISE, ids=str)
class TestPairwise:
    def test_attention(self, case):
        fused.check_pairwise_attention(case)

    @pytest.mark.deep_unless(case=lambda case: case != PAIRWISE[0])
    def test_statistics(self, case):
        for layers in (0, len(case.hidden) + 1):
            fused.check_pairwise_statistics(case, layers)


@pytest.mark.parametrize("case", STAND_ALONE, ids=str)
def test_stand_alone(case):
    fused.check_stand_alone(case)


@pytest.mark.deep_unless(case=lambda case, kind: (case == PATCHWISE[0]) == (kind == "star_product"))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", PATCHWISE, ids=str)
class TestPatchwise:
    def test_attention(self, case, kind):
        fused.check_patchwise_attention(kind, case)

    def test_statistics(self, case, kind):
        for layers in {0, len(case.hidden)}:
            fused.check_patchwise_statistics(kind, case, layers)


def test_three_layers():
    fused.check_patchwise_attention("star_product", Case("offsets:0,0;0,1", e=2, hidden=(5, 3), n=1, h=2, w=3))


@pytest.mark.deep
def test_in_float32():
    fused.check_all(SMALLEST, SMALLEST, torch.float32)
    fused.check_stand_alone(SMALLEST_HEADS, torch.float32)


@pytest.mark.deep
def test_little_shared_memory(small):
    """Fewer columns, outputs and rows than possible."""

    from kernels_numba.gpu import launch, mapping, patchwise

    small(mapping, MOST_COLUMNS=128, MOST_ROWS=32)
    small(patchwise, TILE=64, OUTPUTS=32, INPUTS=64)
    small(launch, SHARED_BYTES=1 << 10)
    fused.check_pairwise_attention(Case("3", e=2, hidden=(3,), g=1, share=1, n=1, h=2, w=3))
    fused.check_patchwise_attention("clique_product", Case("offsets:0,0;0,1;1,0", e=14, hidden=(7,), n=1, h=2, w=3))
    fused.check_stand_alone(Heads("3", depth=9, g=1, share=9, n=1, h=2, w=3))


def test_too_little_shared_memory(small):

    from kernels_numba.gpu import launch

    message = r"needs \d+ bytes of shared memory; expected at most 64"
    small(launch, SHARED_BYTES=64)
    with pytest.raises(ValueError, match=f"pairwise attention {message}"):
        fused.check_pairwise_attention(SMALLEST)
    with pytest.raises(ValueError, match=f"stand-alone attention {message}"):
        fused.check_stand_alone(SMALLEST_HEADS)
    for kind in KINDS:
        with pytest.raises(ValueError, match=f"patchwise attention {message}"):
            fused.check_patchwise_attention(kind, SMALLEST)


def test_too_many_layers():
    with pytest.raises(ValueError, match="a mapping has 10 widths; expected 1 to 9"):
        fused.check_pairwise_attention(Case("3", hidden=(2,) * 8))


class TestOutputs:
    """Outputs that are not needed are None."""

    @pytest.mark.parametrize("needed", ["offset", "factor", "map", "beta", "parameters"])
    def test_pairwise(self, needed):
        fused.check_pairwise_attention(SMALLEST, needed=[f"d_{needed}"])

    @pytest.mark.parametrize("needed", ["query", "key", "relative", "beta"])
    def test_stand_alone(self, needed):
        fused.check_stand_alone(SMALLEST_HEADS, needed=[f"d_{needed}"])

    @pytest.mark.deep_unless(case=lambda kind: kind == "star_product")
    @pytest.mark.parametrize("needed", ["centres", "map", "beta", "scale", "shift", "parameters"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_patchwise(self, kind, needed):
        fused.check_patchwise_attention(kind, SMALLEST, needed=[f"d_{needed}"])


def test_the_same_bits_twice():
    for check in (
        lambda: fused.check_pairwise_attention(SMALLEST),
        lambda: fused.check_patchwise_attention(KINDS[0], SMALLEST),
        lambda: fused.check_stand_alone(SMALLEST_HEADS),
    ):
        once, again = check(), check()
        assert all(torch.equal(once[key], again[key]) for key in once)
