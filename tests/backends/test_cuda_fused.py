"""The CUDA kernels of the fused attentions, compiled for the CPU (cuda_on_host), against the oracle of cores.py."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cores
import pytest
import torch
from cuda_on_host.host import Host, build, build_library
from torch import Tensor

import kernels_cuda
from saprof.backends import cuda as backend
from saprof.backends.cores import KERNELS, PairwiseOptions, PatchwiseOptions, StandAloneOptions
from saprof.operators.footprint import Footprint

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""Relative to the largest element. Sums have at most some hundred products. float16 and bfloat16 are rounded once, to
2⁻¹¹ and 2⁻⁸, but the gradient of the softmax also uses a rounded y."""


@dataclass(frozen=True)
class Case:
    text: str
    e: int = 5
    hidden: tuple[int, ...] = (6,)
    g: int = 2
    share: int = 2
    n: int = 2
    h: int = 5
    w: int = 6
    rectified: bool = True
    factor: bool = True

    def __str__(self) -> str:
        return f"{self.text} {self.e}-{'-'.join(map(str, self.hidden))}-{self.g}"

    @property
    def footprint(self) -> Footprint:
        return Footprint.parse(self.text)

    @property
    def centres(self) -> int:
        oh, ow = self.footprint.output_size(self.h, self.w)
        return oh * ow


@dataclass(frozen=True)
class Heads:
    """A case of the stand-alone attention: each head has `depth` channels, and `share` channels of β. `given` lists the
    inputs that exist."""

    text: str
    depth: int = 3
    g: int = 2
    share: int = 2
    n: int = 2
    h: int = 5
    w: int = 6
    given: tuple[str, ...] = ("key", "relative")

    def __str__(self) -> str:
        return f"{self.text} {self.g}x{self.depth} {'+'.join(self.given)}"

    @property
    def footprint(self) -> Footprint:
        return Footprint.parse(self.text)


STAND_ALONE = (
    Heads("3"),
    Heads("7 boundary=zero", depth=8, share=8, h=6, w=8, n=1),
    Heads("3 boundary=exclude", depth=1, g=3, share=4, given=("key",)),
    Heads("5 stride=2 boundary=exclude", depth=9, h=8, w=9, n=1),
    Heads("disk:5 boundary=circular", depth=5, share=1, given=("relative",)),
    Heads("7 boundary=replicate", depth=4, h=2, w=3, n=3),
    Heads("7", h=3, w=2, given=("key",)),
    Heads("offsets:9,9;0,1;-1,0;2,-2 boundary=exclude", depth=17, share=5, g=1, h=4, w=4),
    Heads("dilated:3x2 stride=2 boundary=zero", share=3, h=7, w=5),
    Heads("rectangle:1x17 boundary=exclude", h=3, w=12),
    Heads("3", depth=40, g=1, share=30, n=1, h=3, w=9),
)
PAIRWISE = (
    Case("3"),
    Case("3 boundary=exclude", e=3, hidden=(), g=3, share=1, rectified=False, factor=False),
    Case("5 stride=2 boundary=zero", e=36, hidden=(7, 5), n=1),
    Case("disk:5 boundary=circular", hidden=(9,), g=4, share=3, factor=False),
    Case("7 boundary=replicate", e=4, h=2, w=3, n=3, rectified=False),
    Case("7", e=2, h=3, w=2),
    Case("offsets:9,9;0,1;-1,0;2,-2 boundary=exclude", h=4, w=4, share=5),
    Case("dilated:3x2 stride=2 boundary=exclude", e=34, h=7, w=5),
)
PATCHWISE = (
    Case("3"),
    Case("3 stride=2 boundary=zero", hidden=(), g=3, share=1),
    Case("disk:3 boundary=circular", e=3, hidden=(36, 5), g=2, share=3),
    Case("5 boundary=replicate", e=2, h=2, w=3, n=3),
    Case("offsets:9,9;0,1;-1,0;2,-2 boundary=exclude", h=4, w=4, share=5),
    Case("5 stride=2", e=2, hidden=(4,), h=7, w=5, n=1),
)
KINDS = ("concatenation", "star_product", "clique_product")


class Tensors:
    """Random tensors, with the same values in each test."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(1)

    def __call__(self, *sizes: int) -> Tensor:
        return torch.randn(sizes, generator=self._generator, dtype=torch.float64)


def widths_of(case: Case, inputs: int, outputs: int) -> list[int]:
    return [inputs, *case.hidden, outputs]


def parameters_of(new: Tensors, widths: list[int]) -> Tensor:
    parts = [new(o, i) / i**0.5 for i, o in pairwise(widths)]
    return torch.cat([x for w in parts for x in (w.flatten(), new(len(w)))]) if parts else new(0)


@contextmanager
def kernels_in(host, **constants):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backend.LAUNCH, "cpu", host.run)
        for name, value in constants.items():
            patch.setattr(kernels_cuda if name == "WORKERS" else backend, name, value)
        yield


def stored(x: Tensor | None, dtype: torch.dtype, exact: bool) -> Tensor | None:
    """The inputs as a core takes them: maps in `dtype`, parameters in the dtype of sums."""
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    return None if x is None else x.detach().to(sums if exact else dtype).contiguous()


EXACT = {"parameters", "scale", "shift", "lse", "mean", "variance", "d_mean", "d_variance"}


def options_of(name, widths, flag):
    """The options of a core; `flag` is None if the core has only widths."""
    options = {"pairwise": PairwiseOptions, "patchwise": PatchwiseOptions, "stand_alone": StandAloneOptions}
    return options[KERNELS[name].family](tuple(widths), *([] if flag is None else [flag]))


def judge(name, inputs, outputs, widths, flag, footprint, dtype, needed=None):
    """Run a core on the inputs and compare its outputs, by name, with the expected ones."""
    given = [stored(x, dtype, key in EXACT) for key, x in inputs.items()]
    got = {}
    for key, x in outputs.items():
        exact = key.removeprefix("d_") in EXACT
        wanted = x is not None and (needed is None or key in needed)
        got[key] = torch.full_like(stored(x, dtype, exact), torch.nan) if wanted else None
    backend.run_core(name, [*given, *got.values()], options_of(name, widths, flag), footprint)
    for key, x in got.items():
        if x is None:
            continue
        want = outputs[key]
        error = ((x.double() - want).abs().max() / want.abs().max().clamp(min=0.1)).item() if x.numel() else 0.0
        assert error <= TOLERANCE[dtype], f"{name}: {key} is off by {error:.2g}"
    return got


def leaves(inputs):
    return {key: None if x is None else x.clone().requires_grad_() for key, x in inputs.items()}


def gradients(output, given, names, seeds):
    """d_name for each name; None if the input is absent, or its gradient is not needed."""
    there = [name for name in names if given[name] is not None]
    found = torch.autograd.grad(output, [given[name] for name in there], seeds, allow_unused=True)
    found = dict(zip(there, found, strict=True))
    return {f"d_{name}": found.get(name) for name in names}


def rounded(inputs, dtype):
    """The values that the kernels read, in float64."""
    return {k: None if x is None else stored(x, dtype, k in EXACT).double() for k, x in inputs.items()}


def pairwise_inputs(case: Case, widths: list[int], dtype=torch.float64):
    new = Tensors()
    offset = new(case.n, case.e, case.centres)
    factor = new(case.n, case.e, case.centres) if case.factor else None
    map_, beta = new(case.n, case.e, case.h, case.w), new(case.n, case.g * case.share, case.h, case.w)
    inputs = {"offset": offset, "factor": factor, "map": map_, "beta": beta}
    return new, rounded(inputs | {"parameters": parameters_of(new, widths)}, dtype)


def check_pairwise_attention(case: Case, dtype=torch.float64, needed=None):
    widths, footprint = widths_of(case, case.e, case.g), case.footprint
    new, inputs = pairwise_inputs(case, widths, dtype)
    given = leaves(inputs)
    y, lse = cores.pairwise_attention(*given.values(), widths, case.rectified, footprint)
    judge("pairwise_attention", inputs, {"y": y, "lse": lse}, widths, case.rectified, footprint, dtype)
    gradient = stored(new(*y.shape), dtype, False).double()
    want = gradients(y, given, list(inputs), gradient)
    backward = {"gradient": gradient, "y": y, "lse": lse} | inputs
    return judge("pairwise_attention_backward", backward, want, widths, case.rectified, footprint, dtype, needed=needed)


def check_pairwise_statistics(case: Case, layers: int, dtype=torch.float64, needed=None):
    widths, footprint = widths_of(case, case.e, case.g)[: 1 + layers], case.footprint
    new, inputs = pairwise_inputs(case, widths, dtype)
    del inputs["beta"]
    given = leaves(inputs)
    mean, variance = cores.pairwise_statistics(*given.values(), widths, case.rectified, footprint)
    outputs = {"mean": mean, "variance": variance}
    judge("pairwise_statistics", inputs, outputs, widths, case.rectified, footprint, dtype)
    seeds = [new(len(mean)), new(len(mean))]
    want = gradients([mean, variance], given, list(inputs), seeds)
    backward = {"d_mean": seeds[0], "d_variance": seeds[1], "mean": mean} | inputs
    name = "pairwise_statistics_backward"
    return judge(name, backward, want, widths, case.rectified, footprint, dtype, needed=needed)


def stand_alone_inputs(case: Heads, dtype=torch.float64):
    new, oh_ow = Tensors(), case.footprint.output_size(case.h, case.w)
    e = case.depth * case.g
    inputs = {
        "query": new(case.n, e, oh_ow[0] * oh_ow[1]) / case.depth**0.5,
        "key": new(case.n, e, case.h, case.w) if "key" in case.given else None,
        "relative": new(e, case.footprint.taps) if "relative" in case.given else None,
        "beta": new(case.n, case.g * case.share, case.h, case.w),
    }
    return new, rounded(inputs, dtype)


def check_stand_alone(case: Heads, dtype=torch.float64, needed=None):
    widths, footprint = [case.depth, case.g], case.footprint
    new, inputs = stand_alone_inputs(case, dtype)
    given = leaves(inputs)
    y, lse = cores.stand_alone_attention(*given.values(), widths, footprint)
    judge("stand_alone_attention", inputs, {"y": y, "lse": lse}, widths, None, footprint, dtype)
    gradient = stored(new(*y.shape), dtype, False).double()
    want = gradients(y, given, list(inputs), gradient)
    backward = {"gradient": gradient, "y": y, "lse": lse} | inputs
    return judge("stand_alone_attention_backward", backward, want, widths, None, footprint, dtype, needed=needed)


def patchwise_inputs(kind: str, case: Case, widths: list[int], dtype=torch.float64):
    new, k = Tensors(), case.footprint.taps
    map_, beta = new(case.n, case.e, case.h, case.w), new(case.n, case.g * case.share, case.h, case.w)
    centres = new(case.n, case.e, case.centres) if kind != "clique_product" else new(*map_.shape)
    rows = {"concatenation": case.e * k, "star_product": k, "clique_product": k * k}[kind]
    inputs = {"centres": centres, "map": map_, "beta": beta, "scale": new(rows), "shift": new(rows)}
    return new, rounded(inputs | {"parameters": parameters_of(new, widths)}, dtype)


def relation_rows(kind: str, case: Case) -> int:
    k = case.footprint.taps
    return {"concatenation": case.e * (k + 1), "star_product": k, "clique_product": k * k}[kind]


def check_patchwise_attention(kind: str, case: Case, dtype=torch.float64, needed=None):
    footprint = case.footprint
    widths = widths_of(case, relation_rows(kind, case), case.g * footprint.taps)
    new, inputs = patchwise_inputs(kind, case, widths, dtype)
    given = leaves(inputs)
    y = cores.patchwise_attention(kind, *given.values(), widths, footprint)
    judge("patchwise_attention", inputs, {"y": y}, widths, kind, footprint, dtype)
    gradient = stored(new(*y.shape), dtype, False).double()
    want = gradients(y, given, list(inputs), gradient)
    return judge(
        "patchwise_attention_backward", {"gradient": gradient} | inputs, want, widths, kind, footprint, dtype, needed
    )


def check_patchwise_statistics(kind: str, case: Case, layers: int, dtype=torch.float64, needed=None):
    footprint = case.footprint
    widths = widths_of(case, relation_rows(kind, case), 7)[: 1 + layers]
    if layers == 0 and kind == "concatenation":
        widths = [case.e * footprint.taps]
    new, inputs = patchwise_inputs(kind, case, widths, dtype)
    del inputs["beta"]
    given = leaves(inputs)
    mean, variance = cores.patchwise_statistics(kind, *given.values(), widths, footprint)
    judge("patchwise_statistics", inputs, {"mean": mean, "variance": variance}, widths, kind, footprint, dtype)
    seeds = [new(len(mean)), new(len(mean))]
    want = gradients([mean, variance], given, list(inputs), seeds)
    backward = {"d_mean": seeds[0], "d_variance": seeds[1], "mean": mean} | inputs
    return judge("patchwise_statistics_backward", backward, want, widths, kind, footprint, dtype, needed)


def check_all(pairwise: Case, patchwise: Case, dtype=torch.float64):
    """Check each core once, and once without a layer."""
    check_pairwise_attention(pairwise, dtype)
    for layers in (0, 1):
        check_pairwise_statistics(pairwise, layers, dtype)
    for kind in KINDS:
        check_patchwise_attention(kind, patchwise, dtype)
        for layers in (0, 1):
            check_patchwise_statistics(kind, patchwise, layers, dtype)


@pytest.fixture(scope="module")
def host(cuda_on_host):
    return cuda_on_host


@pytest.mark.parametrize("case", PAIRWISE, ids=str)
class TestPairwise:
    def test_attention(self, case, host):
        with kernels_in(host):
            check_pairwise_attention(case)
            check_pairwise_attention(case, torch.float32)

    def test_statistics(self, case, host):
        with kernels_in(host):
            for layers in range(len(case.hidden) + 2):
                check_pairwise_statistics(case, layers)
            check_pairwise_statistics(case, 1, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", STAND_ALONE, ids=str)
class TestStandAlone:
    def test_attention(self, case, dtype, host):
        with kernels_in(host):
            check_stand_alone(case, dtype)

    @pytest.mark.parametrize("shared_bytes", [2048, 4096, 8192])
    def test_with_little_shared_memory(self, case, dtype, shared_bytes, host):
        """With ever less shared memory: fewer rows, then a few channels or pieces at a time, then no frames."""
        with kernels_in(host, SHARED_BYTES=shared_bytes, WORKERS=2):
            check_stand_alone(case, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", PATCHWISE, ids=str)
class TestPatchwise:
    def test_attention(self, case, kind, host):
        with kernels_in(host):
            check_patchwise_attention(kind, case)
            check_patchwise_attention(kind, case, torch.float32)

    def test_statistics(self, case, kind, host):
        with kernels_in(host):
            for layers in range(len(case.hidden) + 1):
                check_patchwise_statistics(kind, case, layers)
            check_patchwise_statistics(kind, case, 1, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, host):
    with kernels_in(host):
        check_all(PAIRWISE[0], PATCHWISE[0], dtype)


@pytest.mark.parametrize("shared_bytes", [6 << 10, 8 << 10])
def test_little_shared_memory(shared_bytes, host):
    """Small tiles, many chunks and panels, and only two workers."""
    with kernels_in(host, SHARED_BYTES=shared_bytes, WORKERS=2):
        check_all(Case("5 stride=2 boundary=zero", e=40, hidden=(7,), h=7), PATCHWISE[2])
        check_all(PAIRWISE[6], Case("3 boundary=exclude", hidden=(37,), g=5, w=9), torch.float32)


def test_too_little_shared_memory(host):
    message = r"needs \d+ bytes of shared memory; expected at most 64"
    with kernels_in(host, SHARED_BYTES=64):
        with pytest.raises(RuntimeError, match=f"pairwise attention {message}"):
            check_pairwise_attention(PAIRWISE[0])
        with pytest.raises(RuntimeError, match=f"stand-alone attention {message}"):
            check_stand_alone(STAND_ALONE[0])
        for kind in KINDS:
            with pytest.raises(RuntimeError, match=f"patchwise attention {message}"):
                check_patchwise_attention(kind, PATCHWISE[2])


@pytest.mark.deep
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_watched(sanitizer, request):
    """No thread accesses memory out of bounds, or at the same time as another one."""
    small = Case("3 boundary=exclude", e=3, hidden=(5,), n=2, h=4, w=5)
    with (
        Host(build(sanitizer, request.config.cache.mkdir("cuda_on_host"))) as host,
        kernels_in(host, SHARED_BYTES=6 << 10, WORKERS=2),
    ):
        check_all(small, Case("offsets:0,0;0,1;2,-1 stride=2", e=2, hidden=(3, 5), n=2, h=4, w=5), torch.float32)
        check_pairwise_attention(Case("3 stride=2", e=34, hidden=(5, 3), n=1, h=3, w=3), torch.bfloat16)
        check_stand_alone(Heads("3 boundary=exclude", depth=5, w=8), torch.float32)
        check_stand_alone(Heads("5 stride=2", depth=9, h=6), torch.float32)
        with kernels_in(host, SHARED_BYTES=2 << 10, WORKERS=2):
            check_stand_alone(Heads("disk:5 boundary=circular", depth=9, w=12), torch.float32)
            check_stand_alone(Heads("5 boundary=zero", depth=17, share=5, w=7), torch.float32)


class TestOutputs:
    """Outputs that are not needed are None."""

    @pytest.mark.parametrize("needed", ["offset", "factor", "map", "beta", "parameters"])
    def test_pairwise(self, needed, host):
        with kernels_in(host):
            check_pairwise_attention(PAIRWISE[0], needed=[f"d_{needed}"])
            if needed != "beta":
                check_pairwise_statistics(PAIRWISE[0], 1, needed=[f"d_{needed}"])

    @pytest.mark.parametrize("needed", ["query", "key", "relative", "beta"])
    def test_stand_alone(self, needed, host):
        with kernels_in(host):
            check_stand_alone(STAND_ALONE[0], needed=[f"d_{needed}"])

    @pytest.mark.parametrize("needed", ["centres", "map", "beta", "scale", "shift", "parameters"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_patchwise(self, kind, needed, host):
        with kernels_in(host):
            check_patchwise_attention(kind, PATCHWISE[0], needed=[f"d_{needed}"])
            if needed != "beta":
                check_patchwise_statistics(kind, PATCHWISE[0], 1, needed=[f"d_{needed}"])

    def test_the_same_bits_twice(self, host):
        with kernels_in(host, WORKERS=3):
            for check, case in (
                (check_pairwise_attention, PAIRWISE[0]),
                (check_stand_alone, STAND_ALONE[0]),
                *((lambda case, kind=kind: check_patchwise_attention(kind, case), PATCHWISE[0]) for kind in KINDS),
            ):
                once, again = check(case), check(case)
                assert all(torch.equal(once[key], again[key]) for key in once)

    def test_of_no_images(self):
        """The gradients are 0, and no kernel is launched."""
        with kernels_in(SimpleNamespace(run=lambda *_: pytest.fail("a kernel was asked for"))):
            case = Case("3", n=0)
            widths = widths_of(case, case.e, case.g)
            inputs = pairwise_inputs(case, widths)[1]
            y, lse = torch.empty(0, 4, 30), torch.empty(0, 2, 30)
            gradients = [x if x is None else torch.full_like(x, torch.nan) for x in inputs.values()]
            tensors = [y, y, lse, *inputs.values(), *gradients]
            backend.run_core(
                "pairwise_attention_backward", tensors, PairwiseOptions(tuple(widths), rectified=True), case.footprint
            )
            assert not gradients[-1].any()


THROUGH_TORCH = """
import sys

import test_cuda_fused as tests
import torch

torch.ops.load_library(sys.argv[1])
launch, keys = torch.ops.saprof_kernels.launch.default, torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
tests.backend.LAUNCH["cpu"] = lambda *arguments: launch.redispatch(keys, *arguments)
tests.check_pairwise_attention(tests.PAIRWISE[1])
tests.check_patchwise_statistics("star_product", tests.PATCHWISE[0], 0)
try:
    options = tests.PairwiseOptions((1,), rectified=False)
    tests.backend.run_core("pairwise_statistics", [torch.ones(1, 1, 1, 1)], options, tests.PAIRWISE[0].footprint)
except (RuntimeError, ValueError) as error:
    print(str(error).rpartition("saprof_kernels: ")[2].splitlines()[0])
"""


@pytest.mark.deep
def test_through_torch(request):
    """The library as torch calls it, except that tensors are on the CPU."""
    library = build_library(request.config.cache.mkdir("cuda_on_host"))
    command = [sys.executable, "-c", THROUGH_TORCH, str(library)]
    path = os.pathsep.join([str(Path(cores.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, env=environment)
    assert done.returncode == 0, done.stderr
    expected = "pairwise_statistics got 2 arrays; expected 6 and scratch memory, and 4 numbers at least"
    assert done.stdout.splitlines() == [expected]


def test_the_variance_of_values_far_from_zero(host):
    """The variance is right in float32, although the squares of the values leave no digits for it."""
    footprint, new = Footprint.square(3), Tensors()
    inputs = {"offset": 4096 + new(2, 3, 30), "factor": None, "map": new(2, 3, 5, 6), "parameters": new(0)}
    inputs = rounded(inputs, torch.float32)
    mean, variance = cores.pairwise_statistics(*inputs.values(), [3], False, footprint)
    with kernels_in(host):
        got = [torch.empty(3), torch.empty(3)]
        given = [x if x is None else x.float() for x in inputs.values()]
        backend.run_core("pairwise_statistics", [*given, *got], PairwiseOptions((3,), rectified=False), footprint)
    assert (got[0] - mean).abs().max() < 1e-2
    assert ((got[1] - variance) / variance).abs().max() < 1e-3


def test_operators_and_cores_are_told_apart():
    assert not {"pairwise_attention", "patchwise_statistics"} & kernels_cuda.operators()
    assert len(kernels_cuda.operators()) == 9
    assert kernels_cuda.cores()["patchwise_statistics_backward"] == 8


def test_arrays_of_several_dtypes_are_refused(host):
    """Kernels take the dtype of one array for that of all."""
    alpha, beta, y = torch.ones(1, 1, 9, 30), torch.ones(1, 1, 5, 6), torch.empty(1, 1, 30)
    tables, numbers = backend.lookups_of(Footprint.square(3), 5, 6, torch.device("cpu"))
    for wrong, index in (([alpha, beta.double(), y], 1), ([alpha, beta, y.half()], 2)):
        message = f"aggregation: array {index} has another dtype than array 0; expected the same"
        with pytest.raises(RuntimeError, match=message):
            host.run("aggregation", wrong, tables, [*numbers, backend.SHARED_BYTES])
    given = [x.double() for x in (y, beta, beta)]
    with pytest.raises(RuntimeError, match="array 2 has another dtype than array 1; expected the same"):
        host.run(
            "stand_alone_attention", [given[0], given[1], beta.half(), y], tables, [*numbers, 49152, 0, 0, 1, 1, 1]
        )
