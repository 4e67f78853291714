"""The sweep as a user runs it: every planned cell has a row, even if it fails, and none is measured twice."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import saprof
from saprof import backends, sweep
from saprof.atomic import WriteError
from saprof.backends import unfold
from saprof.measure import cell as cells
from saprof.measure import execute, prepared, rounds
from saprof.measure.cells import Cell, Network
from saprof.measure.latency import MIN_ROUNDS
from saprof.measure.plan import plan as plan_of
from saprof.measure.request import read_request
from saprof.operators import BACKENDS, DEVICES, OPERATORS
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload
from saprof.records import calibration
from saprof.records.rows import DOUBTFUL, MEASURED, read_rows

SMALL = [
    "--channels",
    "32",
    "--size",
    "6",
    "--footprint",
    "3",
    "--seconds",
    "0.02",
    "--backend",
    "unfold",
    "--roofs",
    "skip",
]
"""Use one backend, for tests of the sweep rather than of the backends. A later --backend overrides it."""


@pytest.fixture(autouse=True)
def _each_cell_once(monkeypatch):
    """Rows of these short sweeps are often in doubt; do not measure them again."""
    monkeypatch.setattr(execute, "AGAIN_SHARE", 0)


def run(folder, *arguments):
    return sweep.main([*SMALL, "--output", str(folder), *arguments])


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "saprof.sweep", *arguments], capture_output=True, text=True, timeout=300
    )


def plan(*arguments):
    return plan_of(read_request(sweep.parser().parse_args(arguments)))


def test_one_row_per_cell_with_figure_and_provenance(tmp_path, capsys):
    assert run(tmp_path, "--operator", "aggregation,patchwise_star_product", "--mode", "forward,train_step") == 0
    rows = read_rows(tmp_path)
    assert [(row.name, row.mode) for row in rows] == [
        (name, mode) for mode in ("forward", "train_step") for name in ("aggregation", "patchwise_star_product")
    ]
    for row in rows:
        assert row.status in MEASURED
        assert row.backend == "unfold"
        assert row.latency_low_s <= row.latency_s <= row.latency_high_s
        assert row.latency_p10_s <= row.latency_s <= row.latency_p90_s
        assert row.peak_bytes >= row.output_bytes > 0
        assert row.error < 1
        assert (row.saved_bytes is not None) == (row.mode == "train_step")
    assert rows[0].macs == 8 * 9 * 36
    assert json.loads((tmp_path / "run.json").read_text())["versions"]["torch"] == torch.__version__
    assert (tmp_path / "footprint.png").stat().st_size > 10_000
    assert (tmp_path / "footprint.svg").exists()
    output = capsys.readouterr()
    assert "patchwise_star_product" in output.out
    assert output.out.startswith("Operators, as declared\n\n"), "what is declared comes before what is measured"
    understood, *_ = output.err.splitlines()
    assert understood.startswith(
        "4 cells in 4 groups: aggregation, patchwise_star_product; footprint square:3; map or image 6×6; v = 8; n = 1; "
        "dtype float32; mode forward, train_step; backend unfold; on "
    )


@pytest.mark.deep
def test_roofs_are_measured_with_the_run(tmp_path, capsys):
    arguments = ["--operator", "aggregation", "--roofs", "measure"]
    assert run(tmp_path, *arguments) == 0
    roofs = calibration.read(tmp_path)
    assert len(roofs.anchors) == 2, "one before the cells, one after them"
    (row,) = read_rows(tmp_path)
    assert calibration.share(row, roofs) > 0
    output = capsys.readouterr().out
    assert "% of roof" in output
    run(tmp_path, *arguments, "--resume", "--mode", "forward,train_forward", "--format", "json")
    resumed = calibration.read(tmp_path)
    assert (resumed.streams, resumed.gemm) == (roofs.streams, roofs.gemm), "the roofs are those of the run's beginning"
    assert len(resumed.anchors) == 3
    shares = [row["roof_share"] for row in json.loads(capsys.readouterr().out)]
    assert shares == [calibration.share(row, resumed) for row in read_rows(tmp_path)]
    run(tmp_path, *arguments, "--resume", "--mode", "forward,train_forward")
    assert calibration.read(tmp_path) == resumed, "a run that is done measures nothing"


@pytest.mark.parametrize("form", ["csv", "json", "md"])
def test_formats(tmp_path, capsys, form):
    run(tmp_path, "--operator", "aggregation", "--format", form)
    text = capsys.readouterr().out
    if form == "json":
        assert json.loads(text)[0]["name"] == "aggregation"
    else:
        assert {"csv": "latency_s", "md": "| ---"}[form] in text


@pytest.mark.deep
def test_networks_beside_table_7(tmp_path, capsys):
    arguments = ["--model", "san10_patchwise,resnet26", "--footprint", "3", "--size", "32", "--seconds", "0.02"]
    assert sweep.main([*arguments, "--backend", "numba,unfold", "--output", str(tmp_path)]) == 0
    rows = read_rows(tmp_path)
    assert [(row.name, row.backend, row.attention, row.params) for row in rows] == [
        ("san10_patchwise", "numba", "fused", 10_742_564),
        ("san10_patchwise", "unfold", "composed", 10_742_564),
        ("resnet26", "torch", None, 13_696_552),
    ]
    assert "10.7" in capsys.readouterr().out


@pytest.mark.deep
def test_a_network_fused_beside_composed(tmp_path, capsys):
    """Cells of one group have the same cost. Requested cells that did not run are reported too."""
    arguments = ["--model", "san10_pairwise", "--footprint", "3", "--size", "32", "--seconds", "0.02"]
    how = ["--backend", "numba", "--attention", "composed,fused,auto"]
    assert sweep.main([*arguments, *how, "--output", str(tmp_path / "numba")]) == 0
    rows = read_rows(tmp_path / "numba")
    assert [(row.backend, row.attention) for row in rows] == [
        ("numba", "composed"),
        ("numba", "fused"),
        ("numba", "fused"),
    ]
    assert len({row.key for row in rows}) == 3
    assert len({(row.params, row.macs, row.flops_paper) for row in rows}) == 1
    assert rows[1].peak_bytes < rows[0].peak_bytes
    assert "numba fused" in capsys.readouterr().out
    how = ["--backend", "unfold", "--attention", "fused"]
    assert sweep.main([*arguments, *how, "--output", str(tmp_path / "unfold")]) == 1
    (row,) = read_rows(tmp_path / "unfold")
    assert (row.status, row.attention) == ("unsupported", "fused")
    assert row.reason == "fused attention: unfold computes it by its parts; expected attention='composed' or 'auto'"


def test_only_networks_with_attention_have_a_choice_of_it():
    groups = plan("--model", "san10_pairwise,resnet26", "--attention", "composed,fused", "--backend", "numba,unfold")
    assert [[(cell.backend, cell.attention) for cell in group] for group in groups] == [
        [("numba", "composed"), ("numba", "fused"), ("unfold", "composed"), ("unfold", "fused")],
        [("auto", "auto")],
    ]
    (group,) = plan("--operator", "pairwise_attention", "--attention", "composed", "--backend", "numba")
    assert [cell.attention for cell in group] == ["auto"]
    (*_, cell), _ = groups
    assert str(cell).endswith(" forward unfold fused on cpu")


@pytest.mark.deep
@pytest.mark.parametrize("mode", ["train_forward", "backward", "train_step"])
def test_networks_train(tmp_path, mode):
    network = Network("san10_pairwise", Footprint.square(3), batch=2, size=64)
    (row,) = cells.measure([Cell(network, mode)], "f", max_seconds=0.02)
    assert row.status in MEASURED, row.reason
    assert row.peak_bytes > 4 * row.params if mode != "train_forward" else row.saved_bytes > 0


def test_backends_beside_each_other(tmp_path, capsys):
    """The others are compared with the first one. `auto` is a separate cell that records its choice."""
    assert run(tmp_path, "--operator", "aggregation", "--backend", "unfold,numba,auto") == 0
    first, *others = read_rows(tmp_path)
    assert [row.backend for row in (first, *others)] == ["unfold", "numba", "numba"]
    assert first.ratio is None
    assert all(row.ratio_low <= row.ratio <= row.ratio_high for row in others)
    assert len({row.rounds for row in (first, *others)}) == 1, "they should have been timed in the same rounds"
    assert all(len(row.samples_s) >= MIN_ROUNDS for row in (first, *others))
    assert all(row.peak_bytes < first.peak_bytes for row in others)


@pytest.mark.deep
def test_compiled_beside_eager(tmp_path):
    assert run(tmp_path, "--operator", "pairwise_hadamard_product", "--compile", "both") == 0
    eager, compiled = read_rows(tmp_path)
    assert (eager.compiled, compiled.compiled) == (False, True)
    assert eager.ratio is None
    assert compiled.ratio_low <= compiled.ratio <= compiled.ratio_high
    assert compiled.first_call_s > compiled.latency_s


def test_a_network_whose_logits_are_no_numbers_is_not_timed(monkeypatch):
    right = unfold.aggregation
    monkeypatch.setattr(unfold, "aggregation", lambda *x: right(*x) / 0)
    (row,) = cells.measure([Cell(Network("san10_pairwise", Footprint.square(3), size=32), backend="unfold")], "f")
    assert (row.status, row.reason) == ("incorrect", "its output is not all finite")


def test_an_incorrect_kernel_is_not_timed(tmp_path, monkeypatch):
    right = unfold.aggregation
    monkeypatch.setattr(unfold, "aggregation", lambda *x: right(*x) * 1.01)
    assert run(tmp_path, "--operator", "aggregation,pairwise_summation") == 1
    wrong, other = read_rows(tmp_path)
    assert (wrong.status, wrong.latency_s) == ("incorrect", None)
    assert "value is off by" in wrong.reason
    assert other.status in MEASURED


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("a kernel\nwith a long story"), "error"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "oom"),
        (MemoryError(), "oom"),
    ],
)
def test_a_cell_that_fails_is_a_row_and_the_sweep_goes_on(tmp_path, monkeypatch, capsys, error, status):
    def fails(*_):
        raise error

    monkeypatch.setattr(unfold, "aggregation", fails)
    assert run(tmp_path, "--operator", "aggregation,pairwise_summation") == 1
    failed, other = read_rows(tmp_path)
    assert failed.status == status
    assert failed.reason
    assert "\n" not in failed.reason
    assert other.status in MEASURED
    assert f"{status}: " in capsys.readouterr().out


def test_what_no_backend_computes_is_unsupported(tmp_path, monkeypatch):
    for module in backends.BACKENDS.values():
        monkeypatch.setattr(module, "why_not", lambda *_: "it is Sunday")
    assert run(tmp_path, "--operator", "aggregation", "--backend", "auto") == 1
    (row,) = read_rows(tmp_path)
    assert row.status == "unsupported"
    assert row.reason == "aggregation: " + "; ".join(f"{name}: it is Sunday" for name in BACKENDS)


def test_what_cannot_run_is_counted_below_the_tables(tmp_path, capsys):
    assert run(tmp_path, "--operator", "aggregation,patchwise_star_product", "--backend", "cuda,unfold") == 1
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "unsupported" in line]
    assert "not run, 2 of 4 cells: cuda: no kernels for cpu tensors" in lines


@pytest.mark.parametrize(("side", "why"), [(90_000_000, "GB; "), (4000, "GB; "), (1000, "GB beside its inputs; ")])
def test_what_cannot_fit_is_not_tried(monkeypatch, side, why):
    """Its inputs are not even created if the least possible memory does not fit."""
    monkeypatch.setattr(prepared.psutil, "virtual_memory", lambda: SimpleNamespace(available=1e9))
    workload = Workload(OPERATORS["pairwise_dot_product"], Footprint.square(11), r=1, h=side, w=side)
    (row,) = cells.measure([Cell(workload, backend="unfold")], "f")
    assert row.status == "predicted_oom"
    assert why in row.reason
    assert "1.0 GB are free" in row.reason


@pytest.mark.parametrize(
    "subject",
    [
        Workload(OPERATORS["pairwise_dot_product"], Footprint.square(11), r=1, h=100_000, w=100_000),
        Network("resnet26", batch=10**7),
    ],
    ids=str,
)
def test_no_input_is_allocated_before_the_prediction(monkeypatch, subject):
    """The inputs would take 80 GB and 6 TB."""
    monkeypatch.setattr(prepared.psutil, "virtual_memory", lambda: SimpleNamespace(available=6.1e12))
    (row,) = cells.measure([Cell(subject, backend="unfold")], "f")
    assert (row.status, "GB beside its inputs; " in row.reason) == ("predicted_oom", True)


def test_a_failure_while_timing_is_a_row(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("the machine went away")

    monkeypatch.setattr(rounds, "interleave", fails)
    (row,) = cells.measure([Cell(Workload(OPERATORS["aggregation"], Footprint.square(3)))], "f")
    assert (row.status, row.reason) == ("error", "RuntimeError: the machine went away")


def test_a_wrong_compiler_is_found_out(monkeypatch):
    monkeypatch.setattr(prepared.torch, "compile", lambda function, fullgraph: lambda *x: function(*x) * 1.01)
    workload = Workload(OPERATORS["aggregation"], Footprint.square(3))
    for mode in ("forward", "backward"):
        (row,) = cells.measure([Cell(workload, mode, compiled=True)], "f")
        assert row.status == "incorrect"
        assert "off the eager one" in row.reason


@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_the_first_call_of_a_compiled_cell_contains_its_compilation(monkeypatch, mode):
    """Every check and every other call comes after it."""

    def compiles_at_the_first_call(function, fullgraph):
        compiling = iter([0.3])

        def compiled(*inputs):
            time.sleep(next(compiling, 0))
            return function(*inputs)

        return compiled

    monkeypatch.setattr(prepared.torch, "compile", compiles_at_the_first_call)
    workload = Workload(OPERATORS["aggregation"], Footprint.square(3))
    eager, compiled = (Cell(workload, mode, backend="unfold", compiled=how) for how in (False, True))
    eager, compiled = cells.measure([eager, compiled], "f", max_seconds=0.02)
    assert eager.first_call_s is None
    assert compiled.latency_s < 0.1 < 0.3 <= compiled.first_call_s < 5


@pytest.mark.deep
def test_a_group_apart_may_be_given_up_or_die(tmp_path):
    assert run(tmp_path / "a", "--operator", "aggregation", "--isolate") == 0
    assert read_rows(tmp_path / "a")[0].status in MEASURED
    assert run(tmp_path / "b", "--operator", "aggregation", "--timeout", "0.1") == 1
    assert "not done after 0.1 s" in read_rows(tmp_path / "b")[0].reason


def test_time_budget_leaves_cells_for_later(tmp_path, capsys):
    assert run(tmp_path, "--operator", "aggregation,pairwise_summation", "--time-budget", "0") == 1
    assert "2 cells left" in capsys.readouterr().err
    assert run(tmp_path, "--operator", "aggregation,pairwise_summation", "--resume") == 0
    assert len(read_rows(tmp_path)) == 2


@pytest.mark.deep
def test_resume_after_a_kill_loses_and_repeats_nothing(tmp_path):
    operators = [*OPERATORS][:5]
    arguments = [*SMALL, "--operator", ",".join(operators), "--seconds", "0.4", "--output", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, "-m", "saprof.sweep", *arguments], stderr=subprocess.PIPE)
    rows = tmp_path / "run" / "rows.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.exists() and rows.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    before = rows.read_bytes().split(b"\n")[:-1]
    assert 2 <= len(before) < len(operators), "it should have been killed on the way"
    done = command(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    after = rows.read_bytes().split(b"\n")[:-1]
    assert after[: len(before)] == before
    first = {}
    for row in map(json.loads, after):
        again = first.setdefault(row["name"], row)
        assert again is row or again["status"] in DOUBTFUL, "only a doubtful row is measured again"
    assert sorted(first) == sorted(operators)
    assert command(*arguments, "--resume").returncode == 0
    assert rows.read_bytes().split(b"\n")[:-1] == after


def test_planning_needs_no_torch():
    code = (
        "import sys; from saprof import sweep; "
        "assert sweep.main(['--footprint', '3,5,7,9,11', '--dry-run']) == 0; "
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resnets, others = 3, 2 * 5 + 3 * 5  # only these have backends
    runnable = len([name for name in BACKENDS if "cpu" in DEVICES[name]])
    assert f"{resnets + others * runnable} cells in 28 groups; nothing was measured" in done.stdout
    assert done.stderr == f"{others} cells cannot run here: cuda: no kernels for cpu tensors\n"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--family", "pairwise"], 5),
        (["--family", "patchwise", "--relation", "star_product"], 1),
        (["--relation", "concatenation"], 2),
        (["--operator", "all", "--stage", "1:5", "--footprint", "3:11:2"], len(OPERATORS) * 5 * 5),
        (["--operator", "aggregation", "--footprint", "3,square:5,disk:9,cross:13,dilated:5x2,rectangle:1x7"], 6),
        (["--operator", "aggregation", "--footprint", "offsets:0,0;0,1"], 1),
        (["--operator", "aggregation", "--footprint", "3,offsets:0,0;0,1,cross:3, offsets:0,0;-1,2 stride=2,5"], 5),
        (["--operator", "aggregation", "--footprint", "square:7,cross:13,disk:9,dilated:5x2,random:49@seed1"], 5),
        (["--operator", "aggregation", "--footprint", "random:9@seed1,random:9@seed1@size5,random:9@seed1@size7"], 2),
        (["--footprint", "square:7,cross:13,disk:9,dilated:5x2,random:49@seed1"], 1 + 5 * 5),
        (
            ["--model", "all", "--footprint", "cross:3,4"],
            2 * sum(Network(name).attends for name in saprof.list_models()),
        ),
        (["--operator", "aggregation", "--footprint", "3,5", "--dilation", "1,2", "--boundary", "zero,exclude"], 8),
        (["--operator", "aggregation", "--batch", "1,8", "--dtype", "float32,bfloat16", "--stride", "1,2"], 8),
        (["--model", "san10_pairwise,resnet26", "--footprint", "3,5"], 4),
        (["--model", "san10_pairwise, resnet26"], 2),
        (["--model", "all"], len(saprof.list_models())),
        (["--operator", "aggregation", "--footprint", "3,square:3,3:5:2"], 2),
        (["--operator", "aggregation", "--stage", "1:5", "--channels", "32", "--size", "8"], 1),
        ([], 6),
    ],
)
def test_axes(arguments, names):
    groups = plan(*arguments)
    assert len(groups) == names
    for group in groups:
        choosable = getattr(group[0].subject, "attends", True)
        assert [cell.backend for cell in group] == (list(BACKENDS) if choosable else ["auto"])
    keys = [cell.key("f") for group in groups for cell in group]
    assert len(set(keys)) == len(keys), "every cell needs a key of its own"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--backend", "unfold"], ["unfold"]),
        (["--backend", "unfold,auto,numba"], ["unfold", "auto", "numba"]),
        (["--backend", "all"], list(BACKENDS)),
        ([], list(BACKENDS)),
    ],
)
def test_backends_of_a_group(arguments, names):
    (group,) = plan("--operator", "aggregation", *arguments)
    assert [cell.backend for cell in group] == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--footprint", "0"], "footprint is '0'; expected positive integers"),
        (["--footprint", "3,x,7"], "cannot read footprint 'x'; expected a size such as 7"),
        (["--footprint", ""], "cannot read footprint ''"),
        (["--footprint", "11:3"], "footprint is '11:3'; expected a range whose first is at most its last"),
        (["--footprint", "disk:5", "--dilation", "2"], "dilation is 2 with footprint disk:5"),
        (["--footprint", "7,random:49"], "cannot read footprint 'random:49'; expected a size such as 7"),
        (["--footprint", "random:49@seed1", "--dilation", "2"], "dilation is 2 with footprint random:49@seed1"),
        (
            ["--model", "resnet26", "--footprint", "3,dilated:3x2"],
            "footprint of resnet26 is dilated:3x2; expected an odd",
        ),
        (["--model", "resnet26", "--footprint", "4"], "footprint of resnet26 is square:4; expected an odd square"),
        (["--model", "resnet26", "--footprint", "cross:3"], "footprint of resnet26 is cross:3; expected an odd square"),
        (["--operator", "agregation"], "unknown operator 'agregation'; expected pairwise_summation"),
        (["--relation", "add"], "unknown relation 'add'; expected summation"),
        (["--family", "triple"], "unknown family 'triple'; expected pairwise, patchwise"),
        (["--backend", "triton"], f"unknown backend 'triton'; expected {', '.join(BACKENDS)}, auto or all"),
        (["--attention", "flash"], "unknown attention 'flash'; expected auto, fused, composed"),
        (["--mode", "inference"], "unknown mode 'inference'; expected forward"),
        (["--dtype", "int8"], "unknown dtype 'int8'; expected float64"),
        (["--stage", "6"], "stage is 6; expected 1 to 5"),
        (["--batch", "-1"], "batch is '-1'; expected positive integers"),
        (["--boundary", "mirror"], "unknown boundary 'mirror'; expected reflect"),
        (["--model", "san11"], "unknown model 'san11'"),
        (["--device", "cuda"], "device is 'cuda'; expected one that torch sees here: cpu"),
        (["--device", "gpu"], "device is 'gpu'; expected cpu, cuda, or one of several GPUs such as cuda:1"),
        (["--threads", "0"], "threads is 0; expected a positive integer"),
        (["--seconds", "-1"], "seconds is -1.0; expected a positive number"),
        (["--seconds", "nan"], "seconds is nan; expected a positive number"),
        (["--timeout", "0"], "timeout is 0.0; expected a positive number"),
        (["--threads", "1_0"], "threads is '1_0'; expected a positive integer"),
        (["--threads", "²"], "threads is '²'; expected a positive integer"),
        (["--threads", "99999"], "threads is 99999; expected a positive integer, 1024 at most"),
        (["--seconds", "1e400"], "seconds is inf; expected a positive number"),
        (["--seconds", "1_0"], "seconds is '1_0'; expected a positive number"),
        (["--seconds", ""], "seconds is ''; expected a positive number"),
        (["--timeout", "1e12"], "timeout is 1000000000000.0; expected a positive number of seconds, 1000000 at most"),
        (["--time-budget", "inf"], "time-budget is inf; expected a number of seconds, 0 or more"),
        (["--footprint", "3:99999999"], "footprint is '3:99999999'; expected a range of at most 10000 numbers"),
        (["--stride", "1:9999", "--footprint", "99"], "footprint is '99', with more than 2,097,152 taps in all"),
        (["--footprint", "7²"], "cannot read footprint '7²'"),
        (["--footprint", "７"], "cannot read footprint '７'"),
        (["--footprint", "3,,5"], "cannot read footprint ''"),
        (["--footprint", "3:7:0"], "footprint is '3:7:0'; expected positive integers"),
        (["--dilation", "999999999"], "a tap of footprint dilated:7x999999999 is 2999999997 rows or columns away"),
        (["--footprint", f"offsets:{10**19},0"], "a tap of the footprint is more than 1e.18 rows or columns away"),
        (["--size", "²"], "size is '²'; expected positive integers"),
        (["--batch", "9999999999"], "batch is '9999999999'; expected positive integers"),
        (["--channels", "63"], "channels is 63; expected a multiple of 32: r = C/16, v = C/4, g = C/32"),
        (["--channels", "32:4096", "--size", "1:64"], "the lists multiply to more than 20,000 groups of cells"),
        (["--device", "cuda:٣"], "device is 'cuda:٣'; expected cpu, cuda"),
        *(
            ([f"--{name}", ""], f"{message} ''; expected")
            for name, message in {
                **{name: f"{name} is" for name in ("channels", "size", "stage", "batch", "stride", "dilation")},
                **{name: f"unknown {name}" for name in ("operator", "family", "relation", "model", "dtype", "mode")},
                **{name: f"unknown {name}" for name in ("boundary", "backend", "attention")},
            }.items()
        ),
        (["--model", "resnet26", "--stride", "2"], "stride is '2', but networks ignore it; expected an operator"),
        (["--model", "san10_pairwise", "--boundary", "zero"], "boundary is 'zero', but networks ignore it"),
        (["--resume"], ".*run has no run; expected the folder of a run, or omit --resume"),
        (["--time-budget", "-1"], "time-budget is -1.0; expected a number of seconds, 0 or more"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, message):
    """Before anything is planned, so that --list and --dry-run refuse it as well."""
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has one")
    needs_torch = "that torch sees" in message
    for only_planned in [()] if needs_torch else [(), ("--list",), ("--dry-run",)]:
        with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")) as caught:
            sweep.main([*arguments, *only_planned, "--output", str(tmp_path / "run")])
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists(), "nothing half-written"
        assert not capsys.readouterr().out


def test_resume_needs_a_folder():
    with pytest.raises(ValueError, match="expected its folder as --output"):
        sweep.main([*SMALL, "--resume"])


@pytest.mark.deep
def test_bad_input_exits_2_without_a_traceback(tmp_path):
    done = command("--footprint", "3,x,7")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read footprint 'x'")
    assert "Traceback" not in done.stderr
    (tmp_path / "file").touch()
    done = command(*SMALL, "--operator", "aggregation", "--output", str(tmp_path / "file" / "run"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write to")


def test_help_and_list():
    assert "--footprint" in command("--help").stdout
    listed = command("--list", "--operator", "aggregation", "--footprint", "3,5").stdout.splitlines()
    assert listed == [
        f"aggregation-n1-v64-g8-56x56-square:{size}-float32 forward {backend} on cpu"
        for size in (3, 5)
        for backend in BACKENDS
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), WriteError(28, "No space left on device", "rows.jsonl")])
def test_an_interrupted_sweep_says_how_to_go_on(tmp_path, monkeypatch, capsys, error):
    def stops(*_):
        raise error

    monkeypatch.setattr(execute, "measure_group", stops)
    with pytest.raises(type(error)):
        run(tmp_path / "run", "--operator", "aggregation")
    assert f"continue with --resume --output {tmp_path / 'run'}" in capsys.readouterr().err
