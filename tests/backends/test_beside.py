"""The other kernels of a training step are compiled in other processes. Nothing is compiled here, except in the deep
test: the processes are made up."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest
import torch

from saprof.backends import numba, run, run_statistics
from saprof.backends.numba import ahead, beside, processes
from saprof.backends.numba.processes import Kernel
from saprof.compiling import heard_by
from saprof.operators import OPERATORS
from saprof.operators.attention import ATTENTIONS, Attention
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload

PROCESS = """
import json, sys, time
for line in sys.stdin:
    name, dtype = json.loads(line)
    {}
    print("null", flush=True)
"""
SUMMATION = OPERATORS["pairwise_summation"]
PAIRWISE = OPERATORS["pairwise_attention"]


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Compile a kernel inside a training step, with a line of Python in place of other processes' compilation; returns
    the processes that were started."""
    made = []
    monkeypatch.setattr(beside, "tell_of", lambda *_: nullcontext())
    monkeypatch.setattr(beside, "_started", None)
    monkeypatch.setattr(beside, "_tried", set())
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.delenv("SAPROF_ALONE")

    def use(line="pass", part="statistics", wanted="pairwise_statistics", gradients=True):
        def process(errors):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
            made.append(subprocess.Popen([sys.executable, "-c", PROCESS.format(line)], **pipes))
            return made[-1]

        def function(x):
            with numba.wanted_by(wanted):
                beside.announce("kernel", "float32", str(tmp_path))

        monkeypatch.setattr(processes, "_start", process)
        beside.in_training(PAIRWISE, part, function)(torch.ones(1, requires_grad=gradients))
        return made

    yield use
    if beside._started:
        beside._started.end()


def started():
    assert beside._started
    return beside._started


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("operator", [*OPERATORS.values(), *ATTENTIONS.values()], ids=lambda operator: operator.name)
def test_the_kernels_of_a_step_are_those_that_it_calls(operator):
    inputs = [x.requires_grad_() for x in Workload(operator, Footprint.square(3)).tensors()]
    how = {"footprint": 3, "backend": "numba"}

    def forward():
        torch.autograd.grad(run(operator, *inputs, **how).sum(), inputs, allow_unused=True)

    called = {kernel.name for kernel in ahead.kernels_of_call(forward)}
    assert called == {*beside.kernels_of_step(operator, "forward")}
    if isinstance(operator, Attention):
        maps = [x for (name, _), x in zip(operator.inputs, inputs, strict=True) if name != "beta"]
        given = maps[: operator.maps - 1 + 3 * (operator.mapping != "l")]
        statistics = ahead.kernels_of_call(lambda: run_statistics(operator, *given, **how))
        called |= {name for kernel in statistics for name in (kernel.name, f"{kernel.name}_backward")}
        assert called == {*beside.kernels_of_step(operator, "statistics")}
        if numba.training(operator, "cpu"):
            parts = {kernel.name for kernel in ahead.kernels_for([operator], ["float32"])}
            parts -= {"patchwise_attention", "patchwise_attention_backward"}
            if operator.delta.relation == "concatenation":
                parts -= {"patchwise_statistics", "patchwise_statistics_backward"}
            assert parts == {*beside.kernels_of_step(operator, "training")}


def test_one_process_beside_this_one_begins_with_the_longest(start):
    made = start("time.sleep(600)")
    until(lambda: made and len(started()._todo) == 2)
    assert len(made) == 1
    assert [kernel.name for kernel in started()._todo] == ["pairwise_statistics_backward", "pairwise_attention"]


def test_a_kernel_in_the_queue_is_taken_and_one_in_work_is_waited_for(start, tmp_path):
    free = tmp_path / "free"
    made = start(f"import os\n    while not os.path.exists({str(free)!r}): time.sleep(0.01)")
    until(lambda: len(started()._todo) == 2)
    heard, group = [], started()
    with heard_by(heard.append):
        beside.wait_for("pairwise_statistics", "float32")
        beside.wait_for("pairwise_attention", "float32")
        beside.wait_for("pairwise_statistics_backward", "float32")
        assert not heard
        threading.Timer(0.1, free.touch).start()
        beside.wait_for("pairwise_attention_backward", "float32")
    assert heard == ["compiling pairwise_attention_backward for float32", None]
    assert group._done.get(timeout=60) == (Kernel("pairwise_attention_backward", "float32"), None)
    assert not beside.is_started()
    assert made[0].wait(60) in (0, -9)


@pytest.mark.parametrize("line", ["import os; os.abort()", "time.sleep(600)"], ids=["abort", "killed"])
def test_a_process_that_dies_keeps_nobody_waiting_and_is_not_followed(start, line):
    made = start(line)
    until(lambda: made)
    threading.Timer(0.1, made[0].kill).start()
    for name in beside.kernels_of_step(PAIRWISE, "statistics"):
        beside.wait_for(name, "float32")
    assert not beside.is_started()
    start(line)
    assert len(made) == 1


def test_processes_that_cannot_start_keep_nobody_waiting(start, monkeypatch, tmp_path):
    def fail(errors):
        raise OSError("no room")

    monkeypatch.setattr(processes, "_start", fail)
    beside._start([Kernel("a", "float32"), Kernel("b", "float32")], str(tmp_path))
    until(lambda: started().all_ended)
    beside.wait_for("a", "float32")
    assert not beside.is_started()


def test_an_error_of_the_start_is_told():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes.subprocess, "Popen", lambda *_, **__: exec("raise OSError('no room')"))
        with pytest.raises(ahead.CannotBuild, match="a for float32 could not be compiled: no room"):
            list(processes.Processes([Kernel("a", "float32")], "").wait())


def test_none_is_started_without_gradients(start):
    assert not start(gradients=False)
    with torch.no_grad():
        assert not start()
    assert not beside.is_started()
    assert beside._here.step is None


def raise_full(path):
    raise processes.CannotBuild("no room")


@pytest.mark.parametrize(
    "alone",
    [
        lambda patch: patch.setenv("SAPROF_ALONE", "1"),
        lambda patch: patch.setenv("WORLD_SIZE", "2"),
        lambda patch: patch.setattr(processes.os, "sched_getaffinity", lambda _: {0}),
        lambda patch: patch.setattr(multiprocessing, "parent_process", lambda: "a process"),
        lambda patch: patch.setattr(beside, "_forked", True),
        lambda patch: patch.setattr(sys, "frozen", True, raising=False),
        lambda patch: patch.setattr(beside, "check_folder", raise_full),
    ],
    ids=["chosen", "torchrun", "one core", "a worker", "forked", "frozen", "no folder"],
)
def test_this_process_compiles_alone(start, monkeypatch, alone):
    alone(monkeypatch)
    assert not start()
    assert not beside.is_started()


def test_the_processes_compile_alone(monkeypatch):
    given = []
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *_, **how: given.append(how["env"]))
    processes._start(None)
    assert given[0]["SAPROF_ALONE"] == "1"


def test_a_forked_process_forgets_them(start):
    start("time.sleep(600)")
    with started(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(beside, "_forked", False)
        beside._after_in_child()
        assert not beside.is_started()
        assert beside._is_alone()


@pytest.mark.parametrize("others", [False, True])
def test_a_kernel_waits_before_it_runs(monkeypatch, others):
    waited = []
    monkeypatch.setattr(beside, "is_started", lambda: others)
    monkeypatch.setattr(beside, "wait_for", lambda *kernel: waited.append(kernel))
    a, b = torch.randn(2, 1, 2, 6, 6)
    run(SUMMATION, a, b, footprint=3, backend="numba")
    assert waited == [("pairwise_summation", "float32")] * others


STEP = """
import torch, saprof
torch.manual_seed(0)
a, b = (torch.randn(2, 4, 6, 6, requires_grad=True) for _ in range(2))
y = saprof.pairwise_subtraction(a, b, footprint=3, backend="numba")
y.square().sum().backward()
print([x.double().sum().item() for x in (y, a.grad, b.grad)])
"""


@pytest.mark.deep
def test_real_processes_give_the_same(tmp_path):
    printed = []
    for alone in ("0", "1"):
        settings = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / alone), "SAPROF_ALONE": alone}
        how = {"env": settings, "capture_output": True, "text": True, "check": True, "timeout": 300}
        printed.append(subprocess.run([sys.executable, "-c", STEP], **how).stdout)
    assert printed[0] == printed[1]
