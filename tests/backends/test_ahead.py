"""Kernels that are compiled before their first use: which ones, in which processes, and what goes wrong.

No kernel is compiled here, except in the deep test: the processes are made up.
"""

import errno
import os
import subprocess
import sys

import pytest
import torch

import kernels_numba.build as command
import saprof
from saprof import build as both
from saprof.backends import cores, numba
from saprof.backends.numba import ahead
from saprof.backends.numba import processes as made
from saprof.backends.numba.ahead import Kernel
from saprof.compiling import heard_by
from saprof.operators import OPERATORS

FUSED = [op for op in OPERATORS.values() if op.masked]


def names(operators, mode="training"):
    return {kernel.name for kernel in ahead.kernels_for(operators, ["float32"], mode)}


def test_all_operators_in_training_need_every_kernel():
    relations = [name for name in OPERATORS if not OPERATORS[name].masked]
    expected = {*relations, *(f"{name}_backward" for name in relations), *cores.KERNELS}
    assert names(OPERATORS.values()) == expected


def test_a_forward_needs_neither_statistics_nor_gradients():
    assert names(OPERATORS.values(), "forward") == {*OPERATORS}


def test_a_dtype_is_that_of_the_kernels():
    found = ahead.kernels_for([OPERATORS["aggregation"]], ["float64", "float32"], "forward")
    assert found == [Kernel("aggregation", "float64"), Kernel("aggregation", "float32")]
    assert str(found[0]) == "aggregation for float64"


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="unknown mode 'train'; expected forward or training"):
        ahead.kernels_for([], [], "train")


def test_a_function_tells_its_kernels_without_running_them(monkeypatch):
    monkeypatch.setattr(numba.Call, "run", None)
    a, b = torch.randn(2, 1, 2, 6, 6, dtype=torch.bfloat16)
    found = ahead.kernels_of_call(lambda: saprof.pairwise_summation(a, b, footprint=3, backend="numba"))
    assert found == [Kernel("pairwise_summation", "float32")]


def test_calls_are_run_again_after_an_error():
    with pytest.raises(ZeroDivisionError):
        ahead.kernels_of_call(lambda: 1 / 0)
    assert numba._record is None


PROCESS = """
import json, sys, time
for line in sys.stdin:
    name, dtype = json.loads(line)
    {}
    print("null", flush=True)
"""


@pytest.fixture
def processes(monkeypatch, tmp_path):
    """Processes that run a line of Python in place of compiling; the value is the list of those that were started."""
    started = []

    def use(line):
        def start(errors):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
            started.append(subprocess.Popen([sys.executable, "-c", PROCESS.format(line)], **pipes))
            return started[-1]

        monkeypatch.setattr(made, "_start", start)
        monkeypatch.setattr(ahead, "folder", lambda: "once; kept in /folder")
        monkeypatch.setattr(ahead, "missing", lambda kernels: list(kernels))
        monkeypatch.setattr(made, "most_processes", lambda spare: 2)
        return started

    return use


SOME = [Kernel(name, "float32") for name in ("a", "b", "pairwise_attention_backward", "c", "d")]


def test_kernels_are_shared_out_and_told_of(processes):
    started, heard = processes("pass"), []
    with heard_by(heard.append):
        assert ahead.build(SOME) == SOME
    assert len(started) == 2
    assert [process.wait(60) for process in started] in ([0, 0], [0, -9], [-9, 0], [-9, -9])
    assert heard[0] == "compiling 5 kernels"
    assert heard[1].startswith("compiling 5 kernels, 1 of 5, ")
    assert heard[5].startswith("compiling 5 kernels, 5 of 5, ")
    assert heard[6] is None


def test_the_longest_is_compiled_first():
    with_none = ahead.Build([])
    assert not [*with_none.wait()]
    order = sorted(SOME, key=lambda kernel: kernel.name not in made.LONGEST)
    assert order[0].name == "pairwise_attention_backward"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sys.exit('no room')", "could not be compiled: the process that compiled it has ended with code 1: no room"),
        ("import os; os.abort()", "has ended with code -6: no message"),
        ("print(json.dumps('TypingError: no'), flush=True); continue", "a for float32 could not be compiled: TypingEr"),
    ],
    ids=["exit", "abort", "error"],
)
def test_an_error_is_one_sentence_and_ends_the_others(processes, line, message):
    started = processes(line if "print" not in line else f"if name == 'a': {line}")
    with pytest.raises(ahead.CannotBuild, match=message) as raised, heard_by(lambda text: None):
        ahead.build(SOME)
    assert "\n" not in str(raised.value)
    assert all(process.wait(60) is not None for process in started)


def test_an_interrupt_ends_the_processes(processes, monkeypatch):
    started = processes("time.sleep(600)")

    def interrupted(self):
        while not started:
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(ahead.Build, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt), heard_by(lambda text: None):
        ahead.build(SOME)
    assert all(process.wait(60) is not None for process in started)


class TestFolder:
    @pytest.fixture(autouse=True)
    def _path(self, monkeypatch, tmp_path):
        self.cache = numba.kernels_of("cpu", "frames").fold_tiles._cache
        self.path = tmp_path / "new"
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(type(self.cache), "cache_path", property(lambda cache: self.path and str(self.path)))

    def test_is_made(self):
        assert ahead.folder() == f"once; kept in {self.path.parent} (NUMBA_CACHE_DIR)"
        assert not [*self.path.iterdir()]

    def test_that_is_a_file_cannot_be_written(self):
        self.path.write_text("")
        with pytest.raises(ahead.CannotBuild, match=r"cannot be written to .*new \(File exists\); set NUMBA_CACHE_DIR"):
            ahead.folder()

    def test_without_room_cannot_be_written(self, monkeypatch):
        def full(dir):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(made.tempfile, "TemporaryFile", full)
        with pytest.raises(ahead.CannotBuild, match=r"\(No space left on device\); set NUMBA_CACHE_DIR"):
            ahead.folder()

    def test_other_than_the_chosen_one_is_refused(self, monkeypatch):
        monkeypatch.setenv("NUMBA_CACHE_DIR", "/chosen")
        with pytest.raises(ahead.CannotBuild, match="NUMBA_CACHE_DIR is /chosen, which cannot be written to"):
            ahead.folder()

    def test_that_does_not_exist_cannot_be_written(self):
        self.path = None
        with pytest.raises(ahead.CannotBuild, match="no folder can be written to"):
            ahead.folder()


class TestCommand:
    @pytest.fixture(autouse=True)
    def _nothing_compiles(self, monkeypatch):
        self.built = []
        monkeypatch.setattr(ahead, "folder", lambda: "once; kept in /folder")
        monkeypatch.setattr(ahead, "build", lambda kernels: self.built.extend(kernels) or self.result)
        monkeypatch.setattr(ahead, "missing", lambda kernels: list(kernels)[:1])
        self.result = []

    def test_compiles_all_operators_in_float32(self, capsys):
        self.result = [Kernel("a", "float32")]
        assert command.main([]) == 0
        assert {kernel.name for kernel in self.built} == names(OPERATORS.values())
        assert {kernel.dtype for kernel in self.built} == {"float32"}
        assert capsys.readouterr().out.startswith(f"compiled 1 of {len(self.built)} kernels in ")

    def test_says_that_all_are_compiled(self, capsys):
        assert command.main(["--operator", "aggregation", "--dtype", "all", "--mode", "forward"]) == 0
        assert self.built == [Kernel("aggregation", "float32"), Kernel("aggregation", "float64")]
        assert capsys.readouterr().out == "all 2 kernels are compiled already, once; kept in /folder\n"

    def test_lists_what_is_compiled_and_compiles_nothing(self, capsys):
        assert command.main(["--list", "--operator", "aggregation"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "missing   aggregation for float32",
            "compiled  aggregation_backward for float32",
            "1 of 2 kernels are compiled, once; kept in /folder",
        ]
        assert not self.built

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--operator", "agregation"], r"unknown operator 'agregation'; expected .*did you mean 'aggregation'\?"),
            (["--operator", ""], "unknown operator ''"),
            (["--dtype", "float16"], "unknown dtype 'float16'; expected float32, float64 or all"),
            (["--dtype", "float32,,float64"], "unknown dtype ''"),
        ],
        ids=str,
    )
    def test_nonsense_is_one_sentence(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            command.main(arguments)
        assert not self.built

    def test_without_numba_the_reason_is_given(self, monkeypatch):
        monkeypatch.setattr(numba, "why_no_threads", lambda: "NUMBA_DISABLE_JIT is set")
        with pytest.raises(ahead.CannotBuild, match="NUMBA_DISABLE_JIT is set"):
            command.main([])


class TestBoth:
    """`saprof build` chooses the backend, and gives its options to the build of that backend."""

    @pytest.fixture(autouse=True)
    def _mains(self, monkeypatch):
        self.calls = []
        for backend, module in both.COMMANDS.items():
            monkeypatch.setattr(module, "main", lambda argv, backend=backend: self.calls.append((backend, argv)) or 0)

    @pytest.mark.parametrize(
        ("arguments", "calls"),
        [
            (["--operator", "all"], [("numba", ["--operator", "all"])]),
            (["--arch", "8.0"], [("cuda", ["--arch", "8.0"])]),
            (["--arch=8.0"], [("cuda", ["--arch=8.0"])]),
            (["--report"], [("cuda", ["--report"])]),
            (["--backend", "cuda"], [("cuda", [])]),
            (["--backend", "numba", "--list"], [("numba", ["--list"])]),
            (["--nonsense"], [("numba", ["--nonsense"])]),
        ],
        ids=str,
    )
    def test_the_options_choose(self, arguments, calls):
        assert both.main(arguments) == 0
        assert self.calls == calls

    @pytest.mark.parametrize(("gpu", "backends"), [(False, ["numba"]), (True, ["numba", "cuda"])])
    def test_without_options_it_builds_what_can_run(self, monkeypatch, gpu, backends):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        assert both.main([]) == 0
        assert [backend for backend, _ in self.calls] == backends

    def test_help_has_the_options_of_both(self, capsys):
        assert both.main(["--help"]) == 0
        told = capsys.readouterr().out
        assert "--operator" in told
        assert "--arch" in told
        assert not self.calls


@pytest.mark.deep
def test_what_was_built_is_not_compiled_again(tmp_path):
    """Two real kernels; the second process finds all on disk, also for larger tensors."""
    settings = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    how = {"env": settings, "capture_output": True, "text": True, "check": True, "timeout": 600}
    build = [sys.executable, "-m", "kernels_numba.build", "--operator", "pairwise_subtraction"]
    assert subprocess.run(build, **how).stdout.startswith("compiled 2 of 2 kernels in ")
    again = subprocess.run(build, **how)
    assert again.stdout.startswith("all 2 kernels are compiled already, once; kept in ")
    assert again.stderr == ""
    use = """
import torch, saprof
from kernels_numba.cpu import relations
a, b = (torch.randn(3, 8, 20, 24, requires_grad=True) for _ in range(2))
saprof.pairwise_subtraction(a, b, footprint="disk:9", backend="numba").sum().backward()
used = [k for k in vars(relations).values() if hasattr(k, "stats")]
print(sum(sum(k.stats.cache_misses.values()) for k in used), sum(sum(k.stats.cache_hits.values()) for k in used))
"""
    misses, hits = subprocess.run([sys.executable, "-c", use], **how).stdout.split()
    assert (misses, hits) == ("0", "3")
