"""The Numba backend on machines as they are: without a folder for its cache, without a compiler, and after a fork."""

import errno
import os
import pickle
import re
import shutil
import signal
import tomllib
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target
from test_numba import alone

import kernels_numba
import saprof
from kernels_numba import compiled, whole
from saprof.backends import numba as numba_backend
from saprof.backends.numba import installed, threads, told
from saprof.compiling import heard_by

ROOT = Path(__file__).parent.parent.parent
FOOTPRINT = saprof.Footprint.square(3)


def entries():
    """A cache of Numba with its entries in memory, and a dispatcher that uses it."""
    stored = {}
    file = SimpleNamespace(load=stored.get, save=stored.__setitem__, flush=stored.clear, _dump=pickle.dumps)
    cache = SimpleNamespace(
        cache_path="/folder",
        _cache_file=file,
        flush=lambda: cache._cache_file.flush(),
        load_overload=lambda key: cache._cache_file.load(key),
        save_overload=lambda key, data: cache._cache_file.save(key, data),
    )
    dispatcher = SimpleNamespace(_cache=cache, enable_caching=lambda: None, py_func=entries)
    return stored, dispatcher


@pytest.fixture
def warned(monkeypatch):
    """The warnings since the start of the test, in a process that has not warned before."""
    monkeypatch.setattr(compiled, "_warned", set())
    monkeypatch.setattr(compiled.numba.config, "CACHE_DIR", "")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(warning.message) for warning in caught]


class TestCache:
    def test_returns_what_was_stored(self, warned):
        _, dispatcher = entries()
        cache = compiled.kept_on_disk(dispatcher)._cache
        cache.save_overload("float32", [1, 2])
        assert cache.load_overload("float32") == [1, 2]
        assert cache.load_overload("float64") is None
        assert not warned()

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), PermissionError(), EOFError()], ids=repr)
    def test_a_kernel_that_cannot_be_stored_is_warned_of_once(self, warned, error):
        def fails(*_):
            raise error

        for _ in range(3):
            _, dispatcher = entries()
            dispatcher._cache._cache_file.save = fails
            compiled.kept_on_disk(dispatcher)._cache.save_overload("float32", [1, 2])
        (message,) = warned()
        assert message.startswith(f"compiled kernels cannot be written to /folder ({error})")
        assert "set NUMBA_CACHE_DIR to a folder" in message

    @pytest.mark.parametrize(
        "damage",
        [
            lambda stored: stored.update(float32=stored["float64"]),  # two processes wrote at once
            lambda stored: stored.update(
                float32=(stored["float32"][0], stored["float32"][1].replace(b"code", b"core"))
            ),
            lambda stored: stored.update(float32=stored["float32"][:1]),
            lambda stored: stored.update(float32=b"\0\0\0"),
        ],
        ids=["another", "changed", "cut", "zeros"],
    )
    def test_what_is_damaged_is_compiled_again(self, warned, damage):
        stored, dispatcher = entries()
        cache = compiled.kept_on_disk(dispatcher)._cache
        for key in ("float32", "float64"):
            cache.save_overload(key, f"the code for {key}, of some length")
        damage(stored)
        assert cache.load_overload("float32") is None
        assert cache.load_overload("float32") is None
        (message,) = warned()
        assert message.startswith("a compiled kernel in /folder is damaged or cannot be read (")

    def test_code_of_other_sources_is_compiled_again(self, warned, monkeypatch):
        """A process that was killed between the index and the code leaves the code of the version before."""
        _, dispatcher = entries()
        cache = compiled.kept_on_disk(dispatcher)._cache
        cache.save_overload("float32", "the code")
        monkeypatch.setattr(compiled, "SOURCE_STAMP", "changed")
        assert cache.load_overload("float32") is None
        assert len(warned()) == 1

    def test_without_a_folder_kernels_are_compiled(self, warned):
        def fails():
            raise RuntimeError("cannot cache function 'entries': no locator available")

        for _ in range(3):
            _, dispatcher = entries()
            dispatcher.enable_caching = fails
            assert compiled.kept_on_disk(dispatcher) is dispatcher
        (message,) = warned()
        assert "no locator available" in message
        assert f"make {Path(__file__).parent / '__pycache__'} writable, or set NUMBA_CACHE_DIR" in message

    def test_another_folder_than_the_chosen_one_is_named(self, warned, monkeypatch):
        monkeypatch.setattr(compiled.numba.config, "CACHE_DIR", "/chosen")
        compiled.kept_on_disk(entries()[1])
        assert warned() == [
            "NUMBA_CACHE_DIR is /chosen, which cannot be written to; compiled kernels are kept in /folder"
        ]
        monkeypatch.setattr(compiled.numba.config, "CACHE_DIR", "/")
        compiled.kept_on_disk(entries()[1])
        assert len(warned()) == 1


class TestWhole:
    """A kernel with a part, which no other test compiles."""

    @pytest.fixture
    def translated(self, monkeypatch):
        """The names of the functions that were translated for the processor since the start of the test."""
        names, finalize = [], JITCodeLibrary._finalize_specific

        def record(library):
            names.append(library.name.rpartition(".")[2])
            finalize(library)

        monkeypatch.setattr(JITCodeLibrary, "_finalize_specific", record)
        monkeypatch.setattr(kernels_numba, "announce", None)
        return names

    def kernel(self):
        @compiled.part
        def halved(x):
            return x / 2

        @compiled.announced
        @compiled.numba.njit
        def kernel(x):
            for i in range(x.size):
                x[i] = halved(x[i]) + x.sum()
            return x

        return kernel

    def test_only_the_kernel_is_translated(self, translated):
        assert self.kernel()(np.array([2.0, 4.0])).tolist() == [7, 13]
        assert translated == ["kernel"]

    def test_an_unknown_numba_compiles_in_its_own_way(self, translated, monkeypatch):
        monkeypatch.setattr(whole, "KNOWN", ())
        assert self.kernel()(np.array([2.0, 4.0])).tolist() == [7, 13]
        assert {"halved", "kernel"} <= {*translated}

    def test_the_constraints_install_a_known_numba(self):
        version = re.search(r"^numba==(\d+)\.(\d+)", (ROOT / "constraints.txt").read_text(), re.M)
        assert version
        assert (int(version[1]), int(version[2])) in whole.KNOWN

    def test_an_error_leaves_numba_as_it_was(self, translated):
        @compiled.announced
        @compiled.numba.njit
        def wrong(x):
            return x.nothing

        with pytest.raises(compiled.numba.TypingError):
            wrong(1.0)
        codegen = cpu_target.target_context.codegen()
        assert codegen._library_class is JITCodeLibrary
        assert "set_env" not in vars(codegen)

    def test_a_part_is_used_again_by_another_kernel_and_by_a_function(self, translated):
        @compiled.part
        def tripled(x):
            return 3 * x

        kernels = []
        for _ in range(2):

            @compiled.announced
            @compiled.numba.njit
            def kernel(x):
                return tripled(x) + 1

            kernels.append(kernel)
        function = compiled.numba.njit(lambda x: tripled(x) + 2)
        assert [f(2.0) for f in (*kernels, function)] == [7, 7, 8]
        assert translated.count("kernel") == 2


class TestAnnouncements:
    """A made-up dispatcher that looks on disk and then compiles, as Numba's do."""

    SIGNATURE = "(Inputs(array(int64, 1d, C), array(float32, 4d, C)), array(float64, 1d, C))"

    def dispatcher(self, monkeypatch, found=None, folder="/folder"):
        order = []

        @contextmanager
        def announce(*what):
            order.append(what)
            yield
            order.append("ended")

        def compile(signature):
            if made._cache.load_overload(signature, "context") is None:
                order.append("compiles")
            return "entry point"

        monkeypatch.setattr(kernels_numba, "announce", announce)
        cache = SimpleNamespace(load_overload=lambda signature, context: found, cache_path=folder)
        made = SimpleNamespace(py_func=compiled._checksum, compile=compile, _cache=cache)
        return compiled.announced(made), order

    def test_tells_what_is_compiled_and_where_it_is_kept(self, monkeypatch):
        made, order = self.dispatcher(monkeypatch)
        assert made.compile(self.SIGNATURE) == "entry point"
        assert order == [("compiled_checksum", "float32", "/folder"), "compiles", "ended"]

    def test_a_kernel_that_is_found_on_disk_is_not_told_of(self, monkeypatch):
        made, order = self.dispatcher(monkeypatch, found="code")
        assert made.compile(self.SIGNATURE) == "entry point"
        assert not order

    def test_without_a_folder_there_is_none(self, monkeypatch):
        made, order = self.dispatcher(monkeypatch, folder=None)
        made.compile("(int64,)")
        assert order[0] == ("compiled_checksum", "", None)

    def test_nothing_is_told_without_saprof(self, monkeypatch):
        made, order = self.dispatcher(monkeypatch)
        monkeypatch.setattr(kernels_numba, "announce", None)
        made.compile(self.SIGNATURE)
        assert order == ["compiles"]

    def test_saprof_names_the_operator_and_the_folder(self, monkeypatch):
        heard = []
        monkeypatch.setenv("NUMBA_CACHE_DIR", "/cache")
        with heard_by(heard.append), told.tell_of("combine", "float32", "/cache/cpu_1"):
            pass
        with heard_by(heard.append), told.wanted_by("aggregation"), told.tell_of("aggregate", "float64", None):
            pass
        assert heard == ["compiling combine for float32", None, "compiling aggregation for float64", None]
        assert told.where_kept("/cache/cpu_1") == "once; kept in /cache (NUMBA_CACHE_DIR)"
        assert told.where_kept("/cache_of_others/cpu_1") == "once; kept in /cache_of_others/cpu_1"
        assert told.where_kept("/home/me/cpu_1") == "once; kept in /home/me/cpu_1"
        assert told.where_kept(None).startswith("in every process again; set NUMBA_CACHE_DIR to")

    @pytest.mark.parametrize("family", ["relations", "pairwise", "patchwise", "stand_alone", "frames", "rates"])
    def test_every_kernel_is_told_of(self, family):
        module = numba_backend.kernels_of("cpu", family)
        kernels = [x for x in vars(module).values() if hasattr(x, "py_func") and x._cache.cache_path]
        assert kernels
        assert all("announced" in x.compile.__qualname__ for x in kernels)


class TestReasons:
    def test_the_oldest_numba_is_that_of_the_package(self):
        project = tomllib.loads((Path(saprof.__file__).parents[1] / "pyproject.toml").read_text())["project"]
        assert f"numba>={kernels_numba.NUMBA}" in project["dependencies"]

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (ModuleNotFoundError("No module named 'numba'"), "(No module named 'numba'); expected Numba "),
            (ImportError("Numba needs NumPy 2.2 or less. Got NumPy 2.4."), "(Numba needs NumPy 2.2 or less."),
            (OSError("libllvmlite.so: no such file\nand more"), "(libllvmlite.so: no such file); expected"),
            (AttributeError(), "(AttributeError); expected"),
        ],
        ids=repr,
    )
    def test_an_import_that_fails(self, monkeypatch, error, reason):
        def fails(_):
            raise error

        monkeypatch.setattr(installed, "import_module", fails)
        assert reason in installed.why_not_imported.__wrapped__("numba")

    @pytest.mark.parametrize("version", ["0.60.0", "0.9", "0.58.1rc1"])
    def test_an_old_numba(self, monkeypatch, version):
        monkeypatch.setattr(installed, "import_module", lambda _: SimpleNamespace(__version__=version))
        expected = f"Numba is {version}; expected Numba {kernels_numba.NUMBA} or later"
        assert installed.why_not_imported.__wrapped__("numba") == expected

    @pytest.mark.parametrize("version", ["0.61", "0.61.0dev0+3.g1", "0.100.2", "1.0"])
    def test_a_numba_that_will_do(self, monkeypatch, version):
        monkeypatch.setattr(installed, "import_module", lambda _: SimpleNamespace(__version__=version))
        assert installed.why_not_imported.__wrapped__("numba") is None

    def test_numba_without_a_compiler(self, monkeypatch):
        monkeypatch.setattr(compiled.numba.config, "DISABLE_JIT", 1)
        assert threads.why_no_threads.__wrapped__().startswith("NUMBA_DISABLE_JIT is set")

    def test_a_layer_that_does_not_start(self, monkeypatch):
        def fails():
            raise ValueError("No threading layer could be loaded.\nHINT:\nIntel TBB is required")

        monkeypatch.setattr(threads, "_start_threads", fails)
        monkeypatch.setattr(compiled.numba.config, "THREADING_LAYER", "tbb")
        assert threads.why_no_threads.__wrapped__() == (
            "Numba's threads do not start (No threading layer could be loaded. HINT: Intel TBB is required); "
            "NUMBA_THREADING_LAYER is 'tbb'; expected 'omp', 'workqueue' or 'default'"
        )


def in_child(check):
    """Whether `check` is true in a forked process, which has 60 seconds."""
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
class TestFork:
    @staticmethod
    def equal(backend="numba"):
        x = torch.linspace(-1, 1, 64 * 1600).reshape(1, 64, 40, 40)
        got = saprof.pairwise_summation(x, x, footprint=FOOTPRINT, backend=backend)
        return torch.equal(got, saprof.pairwise_summation(x, x, footprint=FOOTPRINT, backend="unfold"))

    def test_a_child_computes_in_threads_of_its_own(self):
        """GNU OpenMP would wait for the threads of the parent for ever, and Numba would end the child."""
        for _ in range(3):
            assert self.equal()
            assert in_child(lambda: self.equal() and in_child(self.equal) == 0) == 0
            assert self.equal()

    def test_a_child_that_cannot_raises_an_error(self, monkeypatch):
        monkeypatch.setattr(threads, "_release_pool", lambda: False)
        x = torch.zeros(1, 64, 40, 40)

        def refused():
            with pytest.raises(RuntimeError, match="expected the start method 'spawn' or 'forkserver'"):
                saprof.pairwise_summation(x, x, footprint=FOOTPRINT, backend="numba")
            return True

        assert self.equal()
        assert in_child(refused) == 0
        assert self.equal()


SEVERAL = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
if sys.argv[2:]:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
import torch, saprof, kernels_numba

assert kernels_numba.__file__.startswith(sys.argv[1])
x, footprint = torch.randn(1, 2, 8, 8), saprof.Footprint.square(3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for operator in (saprof.pairwise_summation, saprof.pairwise_concatenation):
        got, want = (operator(x, x, footprint=footprint, backend=backend) for backend in ("auto", "unfold"))
        assert torch.equal(got, want)
for warning in caught:
    print(warning.category.__name__, warning.message)
"""

REASON = """
import torch, saprof
from saprof.backends import choose, why_not

how = saprof.operators.pairwise_summation, torch.float32, "cpu", saprof.Footprint.square(3)
x = torch.randn(1, 2, 8, 8)
got, want = (saprof.pairwise_summation(x, x, footprint=how[3], backend=backend) for backend in ("auto", "unfold"))
assert torch.equal(got, want)
try:
    saprof.pairwise_summation(x, x, footprint=how[3], backend="numba")
except saprof.Unsupported as error:
    assert str(error) == f"pairwise_summation: numba: {why_not('numba', *how)}"
print(choose(*how), why_not("numba", *how))
"""

FORKS = """
import concurrent.futures, multiprocessing, threading
import torch, saprof
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(2)
footprint = saprof.Footprint.square(3)
x = torch.randn(2, 32, 40, 40)

def compute(_=0):
    large = torch.ones(400, 400, requires_grad=True)
    (large @ large).sum().backward()  # by torch's threads
    leaf = x.clone().requires_grad_()
    output = saprof.pairwise_subtraction(leaf, x, footprint=footprint, backend="numba")
    output.square().sum().backward()
    half = saprof.pairwise_subtraction(x.bfloat16(), x.bfloat16(), footprint=footprint, backend="numba")
    return output.detach(), leaf.grad, half, large.grad

class Data(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return compute()

def in_a_thread(_=0):
    results = []
    thread = threading.Thread(target=lambda: results.append(compute()))
    thread.start()
    thread.join()
    return results[0]

def in_a_pool(function=compute):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map_async(function, range(2)).get(60)

def in_an_executor():
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(compute, range(2), timeout=60))

def while_a_thread_computes():
    done = threading.Event()
    def work():
        while not done.is_set():
            compute()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        return [result for _ in range(3) for result in in_a_pool()]
    finally:
        done.set()
        thread.join()

if __name__ == "__main__":
    torch.multiprocessing.set_sharing_strategy("file_system")
    want = compute()
    def same(results):
        return all(torch.equal(a, b) for result in results for a, b in zip(result, want, strict=True))
    for _ in range(3):
        assert same(in_a_pool()) and same(in_a_pool(in_a_thread)) and same(in_an_executor()) and same([compute()])
        assert same(DataLoader(Data(), num_workers=2, batch_size=None, timeout=60))
    assert same(while_a_thread_computes())
    import numba
    print(numba.threading_layer())
"""

BEHIND_PYTHON = """
import ctypes, os, signal
import torch, saprof

x = torch.ones(1, 2, 8, 8)
run = lambda: saprof.pairwise_summation(x, x, footprint=saprof.Footprint.square(3), backend="numba")
run()
if not ctypes.PyDLL(None).fork():  # as a server in C forks
    signal.alarm(60)
    try:
        run()
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
run()
"""


@pytest.mark.deep
class TestMachines:
    @pytest.fixture
    def read_only(self, tmp_path):
        """A copy of the kernels in which Numba cannot create folders, not even for root."""
        package = tmp_path / "package" / "kernels_numba"
        shutil.copytree(Path(kernels_numba.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        for folder in (package, package / "cpu"):
            (folder / "__pycache__").touch()
        return str(package.parent)

    def test_without_a_folder_for_the_cache(self, read_only):
        (line,) = alone(SEVERAL, read_only, HOME="/dev/null", PYTHONPATH=str(Path(saprof.__file__).parents[1]))
        assert line.startswith("RuntimeWarning compiled kernels are not kept on disk (cannot cache function")
        assert "set NUMBA_CACHE_DIR" in line

    def test_on_a_full_disk(self, tmp_path):
        """A limit of the size of files stands for it: the index of a cache is written, and the code is not."""
        sources = str(Path(saprof.__file__).parents[1])
        (line,) = alone(SEVERAL, sources, "2000", NUMBA_CACHE_DIR=str(tmp_path))
        assert line.startswith(f"RuntimeWarning compiled kernels cannot be written to {tmp_path}")
        assert alone(SEVERAL, sources, NUMBA_CACHE_DIR=str(tmp_path)) == []

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("NUMBA_DISABLE_JIT", "1", "NUMBA_DISABLE_JIT is set, so Numba compiles nothing"),
            ("NUMBA_THREADING_LAYER", "none", "Numba's threads do not start (The threading layer requested 'none'"),
            ("NUMBA_NUM_THREADS", "0", "cannot be imported (Number of threads specified must be > 0.)"),
        ],
    )
    def test_auto_takes_the_next_backend_where_numba_cannot(self, name, value, reason):
        (line,) = alone(REASON, **{name: value})
        assert line.startswith("unfold ")
        assert reason in line

    @pytest.mark.parametrize("layer", ["omp", "workqueue"])
    def test_forked_processes_compute_the_same(self, tmp_path, layer):
        (tmp_path / "forks.py").write_text(FORKS)
        code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
        environment = {"NUMBA_THREADING_LAYER": layer, "OMP_WAIT_POLICY": "passive"}
        assert alone(code, str(tmp_path / "forks.py"), **environment) == [layer]

    def test_a_fork_behind_python_is_an_error(self):
        (line,) = alone(BEHIND_PYTHON)
        assert line.startswith("this process was forked after a Numba kernel")
        assert "'spawn' or 'forkserver'" in line
