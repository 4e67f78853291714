"""The CUDA backend without a GPU: its kernels are compiled for the CPU (cuda_on_host) and run under sanitizers, with
and without frames.

test_operators.py compares the kernels of all backends with the reference, on a CPU and on a GPU. test_cuda_fused.py
tests those of the fused attentions.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cuda_on_host.host import WATCHED, Host, build, build_library
from test_operators import each_of_two

from kernels_cuda import CSRC
from saprof import backends
from saprof.backends import cuda as backend
from saprof.backends import run, why_not
from saprof.measure.conformance import check
from saprof.operators import OPERATORS, aggregation, pairwise_subtraction
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload, edge, tiny

WAYS = {"frames": {}, "tiles of one row": {"FRAME_BYTES": 1}, "no frames": {"SHARED_BYTES": 512}}
"""The ways in which kernels process a footprint, and the constants that select them on small maps."""

each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def cache_folder(request):
    return request.config.cache.mkdir("cuda_on_host")


@pytest.fixture(
    scope="module",
    params=["", *(pytest.param(name, marks=pytest.mark.deep) for name in ("address", "thread"))],
    ids=lambda name: name or "plain",
)
def watched_host(request, cache_folder):
    with Host(build(request.param, cache_folder)) as host:
        yield host


@contextmanager
def kernels_in(host, **constants):
    """The backend computes on the CPU, in the process of `host`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backend.LAUNCH, "cpu", host.run)
        for name, value in constants.items():
            patch.setattr(backend, name, value)
        backend.lookups_of.cache_clear()
        yield
    backend.lookups_of.cache_clear()


def judge(host, workloads, way="frames"):
    with kernels_in(host, **WAYS[way]):
        verdicts = [check(workload, "cuda") for workload in workloads]
    assert not [verdict.message for verdict in verdicts if not verdict.ok]
    assert all(verdict.gradients for verdict in verdicts)


def with_dtype(workloads, *dtypes):
    return [replace(workload, dtype=dtype) for dtype in dtypes for workload in workloads]


def in_turn(workloads):
    """The workloads, alternating between the dtypes that are compiled with sanitizers."""
    for i, workload in enumerate(workloads):
        yield replace(workload, dtype=WATCHED[(i + i // 2) % 2])


def wide(op):
    """Maps with several vectors in a row, and several tiles; and all kinds of pieces of a footprint."""
    footprints = [3, 4, 5, 7, 9, 11, "5 stride=2", "disk:9", "cross:13", "dilated:3x4", "rectangle:1x17"]
    for text in footprints:
        footprint = Footprint.parse(text)
        if op.name != "patchwise_clique_product" or footprint.taps < 30:
            yield Workload(op, footprint, n=2, r=5, v=20, g=2, h=6, w=16)
            yield Workload(op, footprint.with_(boundary="zero"), r=2, v=3, g=3, h=5, w=8)


@each_of_two
@each_way
def test_values_and_gradients(op, way, watched_host):
    """Also, no thread accesses memory out of bounds, or at the same time as another one."""
    judge(watched_host, with_dtype(wide(op), "float32"), way)
    judge(watched_host, in_turn(tiny(op)), way)


@each_of_two
def test_edge(op, watched_host):
    judge(watched_host, with_dtype(edge(op), "bfloat16"))


@pytest.mark.deep
@each_of_two
def test_arrays_that_no_vector_is_aligned_to(op, cache_folder):
    with Host([*build("address", cache_folder), "shifted"]) as host:
        judge(host, with_dtype(wide(op), *WATCHED))


@each_of_two
def test_sums_in_float32(op, cuda_on_host):
    """Every gradient of a map has 121 terms; sums in half precision would lose the digits of the small ones."""
    workload = Workload(op, Footprint.square(11, boundary="circular"), r=3, v=4, g=2, h=4, w=4)
    judge(cuda_on_host, with_dtype([workload], "bfloat16", "float16"))


@each_of_two
def test_the_same_bits_twice(op, cuda_on_host):
    workload = Workload(op, Footprint.square(3, boundary="replicate"))
    runs = []
    for _ in range(2):
        inputs = [x.requires_grad_() for x in workload.tensors()]
        with kernels_in(cuda_on_host):
            output = run(op, *inputs, footprint=workload.footprint, backend="cuda")
            runs.append([output, *torch.autograd.grad(output, inputs, output.detach())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("needed", [0, 1])
def test_a_gradient_that_nobody_needs_has_no_memory(needed, cuda_on_host):
    sizes = []

    def launch(name, arrays, tables, numbers):
        sizes.append([x.numel() for x in arrays[-2:]])
        cuda_on_host.run(name, arrays, tables, numbers)

    workload = Workload(aggregation, Footprint.square(3))
    inputs = workload.tensors()
    inputs[needed].requires_grad_()
    with kernels_in(SimpleNamespace(run=launch)):
        run(aggregation, *inputs, footprint=workload.footprint, backend="cuda").sum().backward()
    assert sizes[-1][needed] == inputs[needed].numel()
    assert sizes[-1][1 - needed] == 0
    assert inputs[needed].grad is not None


THROUGH_TORCH = """
import sys
from dataclasses import replace

import torch

from saprof.backends import cuda
from saprof.measure.conformance import check
from saprof.operators import OPERATORS
from saprof.operators.workload import ITEMSIZE, tiny

torch.ops.load_library(sys.argv[1])
launch, keys = torch.ops.saprof_kernels.launch.default, torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
cuda.LAUNCH["cpu"] = lambda *arguments: launch.redispatch(keys, *arguments)
for operator in OPERATORS.values():
    for workload in tiny(operator) if operator.degree else ():
        for dtype in ITEMSIZE:
            verdict = check(replace(workload, dtype=dtype), "cuda")
            assert verdict.ok, verdict.message

table = torch.ones(2, dtype=torch.int32)
for arguments in (
    ("aggregation", [torch.ones(2, 2).T], [table] * 8, [1] * 8),
    ("aggregation", [table.long()], [table] * 8, [1] * 8),
    ("aggregation", [table.float()] * 3, [table] * 7, [1] * 8),
    ("aggregation", [], [], []),
    ("nonsense", [table.float()], [table] * 8, [1] * 8),
):
    try:
        cuda.LAUNCH["cpu"](*arguments)
    except (RuntimeError, ValueError) as error:
        print(str(error).rpartition("saprof_kernels: ")[2].splitlines()[0])
"""


@pytest.mark.deep
def test_through_torch(cache_folder):
    """The library as torch calls it, except that tensors are on the CPU: results and error messages."""
    command = [sys.executable, "-c", THROUGH_TORCH, str(build_library(cache_folder))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "expected contiguous tensors",
        "expected float64, float32, float16, bfloat16 or int32",
        "a footprint has 8 tables and 8 numbers; got 7 and 8",
        "expected the lookups of a footprint",
        "there are no kernels of nonsense",
    ]


def test_an_empty_batch_starts_nothing(monkeypatch):
    monkeypatch.setitem(backend.LAUNCH, "cpu", lambda *_: pytest.fail("a kernel was asked for"))
    workload = Workload(pairwise_subtraction, Footprint.square(3), n=0)
    assert run(pairwise_subtraction, *workload.tensors(), footprint=workload.footprint, backend="cuda").numel() == 0


def test_a_map_that_is_too_wide_is_refused(cuda_on_host):
    workload = Workload(pairwise_subtraction, Footprint.square(3), h=3, w=70)
    phi, psi = (x.requires_grad_() for x in workload.tensors())
    with kernels_in(cuda_on_host, SHARED_BYTES=256):
        output = run(pairwise_subtraction, phi, psi, footprint=workload.footprint, backend="cuda")
        with pytest.raises(RuntimeError, match="has 72 columns; expected at most 64"):
            output.sum().backward()


@pytest.mark.deep
class TestTheSanitizersSee:
    """A planted mistake in a kernel must be reported."""

    @pytest.mark.parametrize(
        ("sanitizer", "right", "wrong", "report"),
        [
            ("thread", "  __syncthreads();\n  for", "  for", "data race"),
            (
                "address",
                "rows + y) * lookups.all_columns + u];",
                "rows + y) * lookups.all_columns + u + 1];",
                "buffer-overflow",
            ),
            ("address", "map[(int64_t(d)", "map[-1 + (int64_t(d)", "buffer-overflow"),
        ],
        ids=["a missing barrier", "a write beyond the shared memory", "a write beyond an array"],
    )
    def test_a_planted_mistake(self, sanitizer, right, wrong, report, cache_folder, tmp_path):
        build(sanitizer, cache_folder)  # of which only one file must be compiled again
        shutil.copytree(cache_folder, tmp_path / "built", ignore=shutil.ignore_patterns("tmp*"))
        shutil.copytree(CSRC, tmp_path / "csrc")
        source = tmp_path / "csrc" / "relations_map_gradient.cu"
        text = source.read_text()
        assert text.count(right) == 1
        source.write_text(text.replace(right, wrong))
        with (
            Host(build(sanitizer, tmp_path / "built", tmp_path / "csrc")) as host,
            pytest.raises(RuntimeError, match=report) as raised,
        ):
            judge(host, [Workload(pairwise_subtraction, Footprint.square(3))])
        assert "spread" in str(raised.value)


COUNT_CONFLICTS = """
#include "frames.h"

// Threads that shared memory serves at once must find what they read, each for its V centres, in different banks.
template <typename T, int V, int W>
void check() {
  constexpr int at_once = 128 / sizeof(Pack<T, W>);
  for (int vectors = 1; vectors <= 40; ++vectors)
    for (int border : {0, 2, 6, 10, 30})
      for (int height : {1, 3, 8}) {
        Lookups at = {};
        at.ow = vectors * V, at.all_columns = at.ow + border, at.height = height, at.picked = height + border;
        const Layout layout = layout_of<T, V, W>(at);
        for (int thread = 0; thread + at_once <= 3 * height * vectors; thread += at_once) {
          bool taken[at_once] = {};
          for (int lane = 0; lane < at_once; ++lane) {
            const int t = (thread + lane) % vectors, y = (thread + lane) / vectors % height;
            const int bank = ((thread + lane) / vectors / height * layout.frame + y * layout.row + t) % at_once;
            if (taken[bank]) throw std::runtime_error("a conflict at " + std::to_string(at.ow) + " columns");
            taken[bank] = true;
          }
        }
      }
}

void launch(const std::string&, const std::vector<Array>&, const std::vector<Array>&, const std::vector<int64_t>&,
            cudaStream_t) {
  check<float, 1, 1>(), check<float, 2, 1>(), check<float, 4, 1>(), check<c10::Half, 8, 1>();
  check<float, 1, 4>(), check<float, 2, 4>(), check<float, 4, 4>(), check<double, 1, 2>(), check<double, 2, 2>();
}
"""


def test_neighbouring_threads_read_different_banks(tmp_path):
    (tmp_path / "csrc").mkdir()
    for header in CSRC.glob("*.h"):
        shutil.copy(header, tmp_path / "csrc")
    (tmp_path / "csrc" / "count.cu").write_text(COUNT_CONFLICTS)
    with Host(build("", tmp_path, tmp_path / "csrc", ["count.cu"])) as host:
        host.run("", [], [], [], inputs=0)


class TestLookups:
    """The pieces of a footprint."""

    @staticmethod
    def pieces(text):
        tables, numbers = backend.lookups_of(Footprint.parse(text), 9, 9, torch.device("cpu"))
        return [tuple(piece) for piece in tables[3][:, :3].tolist()], numbers[4]

    def test_of_squares(self):
        assert self.pieces(3) == ([(0, 1, 3), (3, 1, 3), (6, 1, 3)], 3)
        assert self.pieces(7) == ([(7 * row, 1, 7) for row in range(7)], 7)
        assert self.pieces("rectangle:1x17") == ([(0, 1, 5), (5, 1, 6), (11, 1, 6)], 0)

    def test_of_taps_in_another_order(self):
        assert self.pieces("offsets:0,2;0,1;0,0;1,0") == ([(2, -1, 3), (3, 1, 1)], 0)
        assert self.pieces("offsets:0,0;0,1;0,3;0,2") == ([(0, 1, 2), (3, -1, 2)], 2)

    def test_of_a_stride(self):
        """Columns of one phase follow each other."""
        assert self.pieces("rectangle:1x5 stride=2") == ([(0, 2, 3), (1, 2, 2)], 0)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("7", (1, 3)),
            ("11", (2, 5)),
            ("rectangle:3x9", (2, 1)),
            ("offsets:0,0;1,0", (1, 0)),
            ("offsets:1,0;2,0", (0, 0)),  # the centre's row is not among them
            ("3 stride=2", (0, 0)),
            ("dilated:3x2", (0, 0)),
            ("disk:9", (0, 0)),
        ],
    )
    def test_of_rectangles(self, text, expected):
        _, (*_, in_rows, shift) = backend.lookups_of(Footprint.parse(text), 9, 9, torch.device("cpu"))
        assert (in_rows, shift) == expected

    @pytest.mark.parametrize("text", ["7", "disk:9", "dilated:5x3", "square:5 stride=2", "offsets:3,1;-2,0;3,2;0,0"])
    def test_every_tap_is_in_one(self, text):
        pieces, _ = self.pieces(text)
        taps = Counter(tap + i * step for tap, step, length in pieces for i in range(length))
        assert taps == Counter(range(Footprint.parse(text).taps))
        assert max(length for *_, length in pieces) <= backend.LONGEST

    def test_tiles_are_as_large_as_a_frame_may_be(self):
        heights = {}
        for size in (7, 14, 28, 56, 112, 896):
            tables, (height, *_) = backend.lookups_of(Footprint.square(7), size, size, torch.device("cpu"))
            rows, columns, picks, *_ = tables
            heights[size] = height
            assert height == 1 or len(picks) * 4 * len(columns) <= backend.FRAME_BYTES
            assert len(rows) == size + 6
        assert heights == {7: 7, 14: 14, 28: 14, 56: 10, 112: 4, 896: 1}


def test_the_longest_piece_is_what_registers_hold():
    assert re.search(rf"constexpr int BLOCK = {backend.LONGEST};", (CSRC / "frames.h").read_text())


class TestReasons:
    FOOTPRINT = Footprint.square(3)

    def test_without_a_gpu(self):
        reason = why_not("cuda", aggregation, torch.float32, "cpu", self.FOOTPRINT)
        assert reason == "no kernels for cpu tensors"
        if not torch.cuda.is_available():
            reason = why_not("cuda", aggregation, torch.float32, "cuda", self.FOOTPRINT)
            assert reason == "torch sees no CUDA device"

    def test_without_a_compiler(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr("kernels_cuda.build.why_not", lambda: "there is no nvcc")
        monkeypatch.setattr(backend, "why_no_library", backend.why_no_library.__wrapped__)
        with pytest.raises(backends.Unsupported, match="aggregation: cuda: there is no nvcc"):
            backends.choose(aggregation, torch.float32, "cuda", self.FOOTPRINT, "cuda")

    def test_there_are_kernels_of_every_operator(self):
        assert all(map(backend.kernel, OPERATORS.values()))
        assert backend.kernel(replace(aggregation, name="pairwise_squared_difference")) is None
