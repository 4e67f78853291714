"""The Numba backend beyond the requirements on every backend, which test_operators.py tests."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_footprint import FOOTPRINTS
from test_operators import each_of_two, each_operator, run_backward
from torch.utils.flop_counter import FlopCounterMode

import kernels_numba
from kernels_numba.cpu import relations
from saprof.backends import choose, library, run, why_not
from saprof.backends.numba import lookups
from saprof.backends.numba.lookups import FRAME_BYTES, longest_run
from saprof.measure.conformance import check
from saprof.measure.memory import peak_bytes, saved_bytes
from saprof.operators import aggregation, pairwise_subtraction, pairwise_summation
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload, stages

NEEDS = [[True, True], [True, False], [False, True]]
DISK = Footprint.disk(3, stride=2, boundary="exclude")

each_footprint = pytest.mark.parametrize("footprint", [Footprint.square(3), DISK], ids=str)
each_need = pytest.mark.parametrize("needs", NEEDS, ids=["both", "first", "second"])


def numba_(op, footprint):
    """The operator as a function of its inputs alone."""
    return lambda *inputs: run(op, *inputs, footprint=footprint, backend="numba")


def alone(code: str, *arguments: str, **environment: str) -> list[str]:
    """The lines that a new process prints, without the settings of these tests."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "OMP_"))}
        | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class TestDispatcher:
    @each_of_two
    @each_footprint
    def test_opcheck_of_the_forward(self, op, footprint):
        inputs = [x.requires_grad_() for x in Workload(op, footprint, h=4, w=3).tensors()]
        torch.library.opcheck(getattr(torch.ops.saprof_numba, op.name).default, (*inputs, str(footprint)))

    @pytest.mark.deep
    @each_of_two
    @each_footprint
    @each_need
    def test_opcheck_of_the_backward(self, op, footprint, needs):
        workload = Workload(op, footprint, h=4, w=3)
        inputs = [x.requires_grad_() for x in workload.tensors()]
        gradient = torch.randn(op.output_shape(workload.sizes), requires_grad=True)
        entry = getattr(torch.ops.saprof_numba, f"{op.name}_backward").default
        torch.library.opcheck(entry, (gradient, *inputs, str(footprint), needs))

    @pytest.mark.deep
    @each_of_two
    @each_need
    def test_derivatives_of_the_backward(self, op, needs):
        """With respect to the gradient and both inputs, even if only one input has a gradient."""
        workload = Workload(op, DISK, r=2, h=3, w=1, dtype="float64")
        gradient = torch.randn(op.output_shape(workload.sizes), dtype=torch.float64)
        backward = getattr(torch.ops.saprof_numba, f"{op.name}_backward")

        def function(*inputs):
            return [x for x, need in zip(backward(*inputs, str(DISK), needs), needs, strict=True) if need]

        assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in (gradient, *workload.tensors())])

    @each_of_two
    @each_need
    def test_gradients_nobody_needs_are_empty_and_free(self, op, needs):
        workload = Workload(op, DISK, n=2)
        inputs = workload.tensors()
        gradient = torch.randn(op.output_shape(workload.sizes))
        backward = getattr(torch.ops.saprof_numba, f"{op.name}_backward")
        with FlopCounterMode(display=False) as counter:
            found = backward(gradient, *inputs, str(DISK), needs)
        assert [x.shape for x in found] == [x.shape if need else (0,) for x, need in zip(inputs, needs, strict=True)]
        assert counter.get_total_flops() == sum(needs) * 2 * op.count("macs", workload.sizes)
        both = backward(gradient, *inputs, str(DISK), [True, True])
        assert all(torch.equal(x, want) for x, want, need in zip(found, both, needs, strict=True) if need)

    def test_auto_chooses_it_for_what_lies_in_memory(self):
        how = aggregation, torch.float32
        assert choose(*how, "cpu", DISK) == "numba"
        assert choose(*how, "meta", DISK) == "unfold"
        assert why_not("numba", *how, "meta", DISK) == "no kernels for meta tensors"

    def test_is_loaded_by_the_first_kernel(self):
        """Neither a model nor a command loads Numba. The kernel is one that compiles fast."""
        code = (
            "import runpy, sys, saprof; "
            "sys.argv = ['tables', '--table', '3']; "
            "saprof.create_model('san10_pairwise', channels=(32,), blocks=(1,), footprints=(3,)); "
            "loaded = ['numba' in sys.modules]; "
            "\ntry: runpy.run_module('saprof.tables', run_name='__main__')"
            "\nexcept SystemExit: pass"
            "\nloaded.append('numba' in sys.modules)"
            "\nx = __import__('torch').zeros(1, 1, 8, 8)"
            "\nsaprof.pairwise_summation(x, x, footprint=saprof.Footprint.square(3), backend='numba')"
            "\nprint(*loaded, 'numba' in sys.modules)"
        )
        assert alone(code)[-1] == "False False True"


class TestValues:
    @each_of_two
    def test_do_not_depend_on_threads(self, op):
        """Bit by bit, although tiles and portions depend on the threads: the order of every sum is fixed."""
        for footprint, r in ((Footprint.square(5, boundary="zero"), 9), (Footprint.disk(3, stride=2), 1)):
            workload = Workload(op, footprint, r=r, v=18, g=2, h=23, w=19)  # threads share a map
            inputs = [x.requires_grad_() for x in workload.tensors()]
            cotangent = torch.randn(op.output_shape(workload.sizes))
            try:
                results = []
                for threads in (1, 2, 3, 2):
                    torch.set_num_threads(threads)
                    results.append(run_backward(numba_(op, footprint), inputs, cotangent))
            finally:
                torch.set_num_threads(1)
            for others in zip(*results, strict=True):
                assert all(torch.equal(x, others[0]) for x in others)

    @each_operator
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_of_half_types_are_those_of_float32_rounded_once(self, op, dtype):
        workload = Workload(op, DISK, n=2, r=5, v=8, h=9, w=8)
        half = [x.to(dtype).requires_grad_() for x in workload.tensors()]
        cotangent = torch.randn(op.output_shape(workload.sizes)).to(dtype)
        got = run_backward(numba_(op, DISK), half, cotangent)
        single = [x.detach().float().requires_grad_() for x in half]
        want = run_backward(numba_(op, DISK), single, cotangent.float())
        for x, exact in zip(got, want, strict=True):
            assert x.dtype == dtype
            assert torch.equal(x, exact.to(dtype))


class TestMemory:
    @pytest.mark.parametrize("workload", list(stages(aggregation))[:3], ids=str)
    def test_of_an_aggregation_is_its_output_and_a_frame_per_thread(self, workload):
        inputs = workload.tensors()
        output_bytes = 4 * np.prod(aggregation.output_shape(workload.sizes))
        peak = peak_bytes(lambda: numba_(aggregation, workload.footprint)(*inputs))
        assert output_bytes <= peak <= output_bytes + FRAME_BYTES + 1024

    @each_of_two
    def test_nothing_is_kept_but_inputs(self, op):
        workload = Workload(op, Footprint.square(5), h=9, w=9)
        inputs = [x.requires_grad_() for x in workload.tensors()]
        assert saved_bytes(numba_(op, workload.footprint), inputs) == 0


class TestLookups:
    @given(FOOTPRINTS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 10))
    def test_a_frame_reads_what_the_tables_say(self, footprint, height, width, tile):
        frame = footprint.frame(height, width, tile)
        rows, columns = footprint.rows(height), footprint.columns(width)
        oh, ow = footprint.output_size(height, width)
        assert len(frame.rows) == -(-oh // tile)
        assert frame.taps.shape == (footprint.taps,)
        for y in range(oh):
            at, place = divmod(y, tile)
            for x in range(ow):
                elements = frame.taps + place * len(frame.columns) + x
                q, u = elements // len(frame.columns), elements % len(frame.columns)
                assert (frame.rows[at][q] == rows[:, y]).all()
                assert (frame.columns[u] == columns[:, x]).all()

    @given(st.lists(st.integers(-1, 6), min_size=1, max_size=12))
    def test_the_longest_run_has_no_gap_and_nothing_outside(self, columns):
        begin, end = longest_run(np.array(columns))
        assert 0 <= begin <= end <= len(columns)

        def is_run(run):
            return -1 not in run and all(after == before + 1 for before, after in pairwise(run))

        assert is_run(columns[begin:end])
        spans = [(i, j) for i in range(len(columns)) for j in range(i, len(columns) + 1)]
        longest = max(j - i for i, j in spans if is_run(columns[i:j]))
        assert end - begin == longest or end - begin < longest == 1  # which need not be copied as a run

    def test_the_longest_run_of_a_reflected_map(self):
        assert longest_run(np.array([2, 1, 0, 1, 2, 3, 2, 1])) == (2, 6)
        assert longest_run(np.array([-1, -1])) == (0, 0)


class TestErrors:
    def test_a_kernel_that_breaks_off_leaves_threads_as_they_were(self, monkeypatch):
        seen = []

        def breaks(*_):
            seen.append(numba.get_num_threads())
            raise FloatingPointError("halfway")

        workload = Workload(pairwise_summation, DISK)
        numba_(pairwise_summation, DISK)(*workload.tensors())
        monkeypatch.setattr(relations, "pairwise_summation", breaks)
        before = numba.get_num_threads(), torch.get_num_threads()
        with pytest.raises(FloatingPointError, match=r"^halfway$"):
            numba_(pairwise_summation, DISK)(*workload.tensors())
        assert seen == [1]  # torch's, which conftest.py sets
        assert (numba.get_num_threads(), torch.get_num_threads()) == before == (numba.config.NUMBA_NUM_THREADS, 1)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda phi, psi: (phi, psi[:, :1]), "axis r of psi is 1; expected 3, as in phi"),
            (lambda phi, psi: (phi, psi[..., :4]), "axis w of psi is 4; expected 5, as in phi"),
            (lambda phi, psi: (phi[0], psi), r"phi has 3 axes \(3, 5, 5\); expected 4: n r h w"),
            (lambda phi, psi: (phi[:, :, :0], psi[:, :, :0]), "axis h of phi is 0; expected at least 1"),
        ],
        ids=["channels", "width", "axes", "empty"],
    )
    def test_no_kernel_starts_on_what_does_not_fit(self, monkeypatch, change, message):
        started = []
        monkeypatch.setattr(relations, "pairwise_subtraction", lambda *_: started.append(True))
        inputs = change(*Workload(pairwise_subtraction, DISK).tensors())
        with pytest.raises(ValueError, match=f"^pairwise_subtraction: {message}$"):
            numba_(pairwise_subtraction, DISK)(*inputs)
        with pytest.raises(ValueError, match=f"^pairwise_subtraction: {message}$"):
            torch.ops.saprof_numba.pairwise_subtraction(*inputs, str(DISK))
        assert not started


SETTINGS = """
import torch, saprof

def settings():
    import numba
    return torch.get_num_threads(), numba.get_num_threads()

x = torch.randn(1, 8, 30, 30)
kernel = lambda: saprof.pairwise_summation(x, x, footprint=saprof.Footprint.square(3), backend="numba")
torch.set_num_threads(1)
kernel()
import numba
assert settings() == (1, numba.config.NUMBA_NUM_THREADS), settings()
torch.set_num_threads(3)
kernel()
assert settings() == (3, numba.config.NUMBA_NUM_THREADS), settings()
numba.set_num_threads(1)
kernel()
assert settings() == (3, 1), settings()
print("kept")
"""

ONE_POOL = """
import contextlib
import psutil, torch, saprof

with contextlib.suppress(ImportError):
    import scipy.linalg  # Numba loads it where it is, and its BLAS has a thread of its own, which sleeps
torch.set_num_threads(2)
big = torch.randn(1500, 1500)
x = torch.randn(1, 64, 56, 56)
step = lambda: (big @ big, torch.add(big, big), torch.sort(big))
step()
before = psutil.Process().num_threads()
for _ in range(3):
    saprof.pairwise_summation(x, x, footprint=saprof.Footprint.square(3), backend="numba")
    step()
import numba
print(psutil.Process().num_threads() - before, numba.threading_layer())
"""

AT_ONCE = """
import threading, warnings
import torch, saprof

warnings.simplefilter("ignore")
torch.set_num_threads(2)
footprint = saprof.Footprint.square(5)
x = torch.randn(1, 32, 56, 56)
ready, outputs = threading.Barrier(2), []

def work():
    ready.wait()
    for _ in range(10):
        outputs.append(saprof.pairwise_summation(x, x, footprint=footprint, backend="numba"))

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
want = saprof.pairwise_summation(x, x, footprint=footprint, backend="unfold")
import numba
print(numba.threading_layer(), len(outputs), all(torch.equal(output, want) for output in outputs))
"""

WARNED = """
import warnings
import torch, saprof

torch.set_num_threads(2)
x = torch.randn(1, 8, 30, 30)
run = lambda backend: saprof.pairwise_summation(x, x, footprint=saprof.Footprint.square(3), backend=backend)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    results = [run("numba") for _ in range(2)]
assert all(torch.equal(result, run("unfold")) for result in results)
for warning in caught:
    print(warning.category.__name__, warning.message)
"""


@pytest.mark.deep
class TestThreads:
    def test_settings_are_respected_and_left_alone(self):
        assert alone(SETTINGS) == ["kept"]

    def test_are_torchs_own(self):
        """Two pools would compete for the cores."""
        assert alone(ONE_POOL) == ["0 omp"]

    @pytest.mark.parametrize("layer", ["omp", "workqueue"])
    def test_python_threads_may_start_kernels_at_once(self, layer):
        """Even the first kernels: two Python threads inside `workqueue` end the process."""
        assert alone(AT_ONCE, NUMBA_THREADING_LAYER=layer) == [f"{layer} 20 True"]

    def test_a_pool_beside_torchs_is_warned_of_once(self):
        (line,) = alone(WARNED, NUMBA_THREADING_LAYER="workqueue")
        assert line.startswith("RuntimeWarning Numba's kernels run in threads of its layer 'workqueue', beside the ")
        assert "several times slower" in line
        assert "libgomp1" in line
        assert "set OMP_WAIT_POLICY=passive" in line
        assert alone(WARNED, NUMBA_THREADING_LAYER="workqueue", OMP_WAIT_POLICY="passive") == []
        assert alone(WARNED) == []


COMPILE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from kernels_numba.cpu import relations

assert relations.__file__.startswith(sys.argv[1]), relations.__file__
taps, centres = np.ones((1, 2, 3, 5), np.float32), np.zeros((1, 2, 5), np.float32)
relations.sum_taps(2, taps, 0, 3, centres)
assert (centres == 3).all()
stats = relations.sum_taps.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


@pytest.mark.deep
class TestCache:
    def test_a_second_process_compiles_nothing_until_a_file_changes(self, tmp_path):
        """Kernels inline functions of other files, which Numba itself does not check for changes."""
        package = tmp_path / "kernels_numba"
        shutil.copytree(Path(kernels_numba.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))

        def compile_() -> tuple[str, set[str]]:
            (line,) = alone(COMPILE, str(tmp_path), NUMBA_CACHE_DIR=str(tmp_path / "cache"))
            return line, {path.name for path in (tmp_path / "cache").rglob("*.nbc")}

        cold, kept = compile_()
        assert cold == "0 1"
        assert kept
        assert compile_() == ("1 0", kept)
        with (package / "cpu" / "simd.py").open("a") as file:
            file.write("# changed\n")
        changed, _ = compile_()
        assert changed == "0 1"
        assert compile_()[0] == "1 0"

    def test_what_is_damaged_is_compiled_again(self, tmp_path):
        """For example after a full disk."""
        package, cache = str(Path(kernels_numba.__file__).parents[1]), {"NUMBA_CACHE_DIR": str(tmp_path)}
        printing = "import warnings; warnings.simplefilter('always'); warnings.showwarning = lambda *a: print(a[0])"
        assert alone(COMPILE, package, **cache) == ["0 1"]
        for what, kept in ("nbi", 0), ("nbc", 30):
            for path in tmp_path.rglob(f"*.{what}"):
                path.write_bytes(path.read_bytes()[:kept])
            *warned, last = alone(printing + COMPILE, package, **cache)
            assert last == "0 1", (what, kept)
            assert warned, (what, kept)
            assert all("is damaged" in line and str(tmp_path) in line for line in warned)
        assert alone(COMPILE, package, **cache) == ["1 0"]


class TestTiles:
    """Frames of only a few rows, as on large maps."""

    @pytest.mark.parametrize("frame_bytes", [1, 2000])
    @each_of_two
    def test_any_number_of_tiles_computes_the_same(self, op, frame_bytes, monkeypatch):
        monkeypatch.setattr(lookups, "FRAME_BYTES", frame_bytes)
        lookups.tiles_that_fit.cache_clear()
        for footprint in (Footprint.square(3), Footprint.disk(5, stride=2, boundary="exclude"), Footprint.cross(7)):
            verdict = check(Workload(op, footprint, n=2, r=9, v=18, h=7, w=11), "numba")
            assert verdict.ok, verdict.message
            assert verdict.gradients
        lookups.tiles_that_fit.cache_clear()


def test_a_gradient_of_another_shape_is_refused():
    phi = torch.zeros(1, 2, 5, 5)
    message = r"^pairwise_subtraction: the gradient of the output is \(1, 2, 9, 24\); expected \(1, 2, 9, 25\)$"
    with pytest.raises(ValueError, match=message):
        torch.ops.saprof_numba.pairwise_subtraction_backward(
            torch.zeros(1, 2, 9, 24), phi, phi, "square:3", [True, True]
        )


def test_an_unknown_degree_has_no_second_derivative():
    unknown = replace(library.opaque(aggregation), degree=None)
    function = library.register(library.Kernels("made_up", lambda *_: None), unknown)
    inputs = [x.requires_grad_() for x in Workload(aggregation, Footprint.square(3)).tensors()]
    output = function(*inputs, str(Footprint.square(3)))
    (gradient,) = torch.autograd.grad(output.sum(), inputs[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="aggregation has no second derivative"):
        gradient.sum().backward()
