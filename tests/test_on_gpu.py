"""`make gpu` on a machine without a GPU: other steps replace its own, whose commands are only read."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import on_gpu
import pytest
from on_gpu import BUDGET, PYTHON, Step

from kernels_cuda import build
from saprof import command, sweep, verify
from saprof.operators import BACKENDS, OPERATORS
from saprof.operators.workload import ITEMSIZE
from saprof.records import environment

WHERE = {
    "cuda": True,
    "device": "a GPU",
    "driver": "1",
    "commit": "c0",
    "dirty": False,
    "versions": {"torch": "9"},
    "fingerprint": "f0",
    "tests": "t0",
}


class Machine:
    """A machine with a GPU whose steps are `plan`; `trace` lists those that ran."""

    def __init__(self, folder):
        self.output, self.trace = folder / "out", folder / "trace"
        self.where = dict(WHERE)
        self.plan = []

    def step(self, name, after="", seconds=0.1, **kind):
        """A step that records its name, then runs `after`."""
        return Step(name, seconds, (self.command(name, after),), **kind)

    def command(self, name, after="", *arguments):
        program = (
            f"import os, sys, time; print('about', {name!r}); open({str(self.trace)!r}, 'a').write({name!r} + ' ')"
        )
        return (PYTHON, "-S", "-c", f"{program}\n{after}", *arguments)

    def run(self, *arguments):
        """Exit code, and the steps that ran."""
        self.trace.write_text("")
        code = on_gpu.main(["--output", str(self.output), *arguments])
        return code, self.trace.read_text().split()

    def records(self):
        return [json.loads(line) for line in (self.output / "steps.jsonl").read_text().splitlines()]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    machine = Machine(tmp_path)
    monkeypatch.setattr(on_gpu, "steps", lambda output, fingerprint: machine.plan)
    monkeypatch.setattr(on_gpu, "provenance", lambda: machine.where)
    return machine


def notes(printed):
    """The status of each step in the final table."""
    lines = (re.split(r"\s{2,}", line, maxsplit=4) for line in printed.splitlines()[2:])
    return {name: (status, *note) for name, status, _, _, *note in lines}


def test_steps_in_order_each_with_a_log_and_a_record(machine, capsys):
    machine.plan = [machine.step(name) for name in ("one", "two", "three")]
    assert machine.run() == (0, ["one", "two", "three"])
    printed = capsys.readouterr()
    assert notes(printed.out) == dict.fromkeys(("one", "two", "three"), ("ok",))
    assert re.findall(r"^(\w+) +[\d.]+ s  ok$", printed.err, re.MULTILINE) == ["one", "two", "three"]
    log = (machine.output / "two.log").read_text()
    assert log.startswith(f"$ {PYTHON}")
    assert log.endswith("about two\n")
    assert [(r["step"], r["status"], r["exit_codes"], r["commit"], r["device"]) for r in machine.records()] == [
        (name, "ok", [0], "c0", "a GPU") for name in ("one", "two", "three")
    ]


def test_what_failed_runs_again_and_what_is_done_does_not(machine, capsys):
    machine.plan = [machine.step("one"), machine.step("two", "print('the reason'); sys.exit(3)"), machine.step("three")]
    assert machine.run() == (1, ["one", "two", "three"])
    printed = capsys.readouterr()
    assert notes(printed.out)["two"] == ("failed", "exit code 3")
    assert "    the reason\n" in printed.err
    assert "go on with python tests/on_gpu.py --output" in printed.err
    assert machine.run() == (1, ["two"])
    assert notes(capsys.readouterr().out)["one"] == ("ok", "done before")


@pytest.mark.parametrize("changed", ["fingerprint", "tests"])
def test_another_state_runs_everything_again(machine, changed):
    machine.plan = [machine.step("one"), machine.step("two")]
    assert machine.run()[0] == 0
    machine.where["commit"] = "c1"  # with the same files
    assert machine.run() == (0, [])
    machine.where[changed] = "another"
    assert machine.run() == (0, ["one", "two"])


def test_another_command_runs_again(machine):
    machine.plan = [machine.step("one"), machine.step("two")]
    assert machine.run()[0] == 0
    machine.plan[1] = machine.step("two", "pass")
    assert machine.run() == (0, ["two"])


def test_a_record_that_was_cut_short_is_no_record(machine):
    machine.plan = [machine.step("one"), machine.step("two")]
    assert machine.run()[0] == 0
    path = machine.output / "steps.jsonl"
    path.write_text(path.read_text()[:-40])
    assert machine.run() == (0, ["two"])


def test_nothing_follows_a_vital_step_that_failed(machine, capsys):
    machine.plan = [machine.step("build", "sys.exit(1)", vital=True), machine.step("one")]
    assert machine.run() == (1, ["build"])
    assert notes(capsys.readouterr().out)["one"] == ("not run", "since build failed")
    machine.plan[0] = machine.step("build", vital=True)
    assert machine.run() == (0, ["build", "one"])
    assert machine.run() == (0, ["build"])


def test_what_the_machine_lacks_is_skipped(machine, capsys):
    machine.plan = [machine.step("one", lacks="a tool is not installed"), machine.step("two")]
    assert machine.run() == (0, ["two"])
    assert notes(capsys.readouterr().out)["one"] == ("skipped", "a tool is not installed")


def test_a_command_that_is_not_there_has_failed(machine):
    machine.plan = [Step("one", 0.1, (("/no/such/tool",),)), machine.step("two")]
    assert machine.run() == (1, ["two"])
    assert "/no/such/tool" in (machine.output / "one.log").read_text()


@pytest.mark.parametrize(
    ("saying", "status", "code"), [(s, m[0], m[0] != "skipped") for s, m in on_gpu.SAYINGS.items()]
)
def test_what_a_command_says_of_its_failure(machine, capsys, saying, status, code):
    machine.plan = [machine.step("one", f"sys.exit('Error: {saying}')")]
    assert machine.run() == (code, ["one"])
    assert notes(capsys.readouterr().out)["one"][0] == status
    assert machine.run() == (code, ["one"])


def test_a_sweep_that_ran_out_of_time_says_so_in_these_words():
    [saying, *_] = on_gpu.SAYINGS
    assert saying in Path(sweep.__file__).read_text()


def test_all_commands_of_a_step_run(machine, capsys):
    machine.plan = [Step("one", 0.1, (machine.command("a", "sys.exit(1)"), machine.command("b")))]
    assert machine.run() == (1, ["a", "b"])
    assert notes(capsys.readouterr().out)["one"] == ("failed", "exit code 1")
    assert machine.records()[0]["exit_codes"] == [1, 0]


def test_a_budget_is_what_is_left_less_a_reserve(machine):
    said = machine.command("a", "print(sys.argv[1])", BUDGET)
    machine.plan = [Step("one", 100, (said,))]
    assert machine.run("--minutes", "1")[0] == 0
    budget = float((machine.output / "one.log").read_text().splitlines()[-1])
    assert 30 < budget <= 60 - on_gpu.SPARE_S


def test_a_step_for_which_too_little_time_is_left_is_not_begun(machine, capsys):
    machine.plan = [machine.step("one"), machine.step("two", seconds=100), machine.step("three")]
    assert machine.run("--minutes", "1") == (1, ["one", "three"])
    printed = capsys.readouterr()
    status, note = notes(printed.out)["two"]
    assert status == "not run"
    assert re.fullmatch(r"needs about 100 s; (60|59) s were left", note)
    assert "--minutes 1" in printed.err.splitlines()[-1]
    assert machine.run("--minutes", "2") == (0, ["two"])


def test_a_step_is_ended_when_the_time_is_up(machine, capsys):
    machine.plan = [machine.step("one", "time.sleep(60)"), machine.step("two")]
    assert machine.run("--minutes", "0.01") == (1, ["one"])
    found = notes(capsys.readouterr().out)
    assert found["one"] == ("unfinished", "stopped when the time was up")
    assert found["two"] == ("not run", "needs about 0 s; 0 s were left")
    machine.plan[0] = machine.step("one")
    assert machine.run() == (0, ["one", "two"])


CHILD = "pid = os.fork()\nif pid: print(pid, flush=True)\ntime.sleep(60)"


def gone(pid):
    """Whether the process has ended; a zombie counts as ended, since this process cannot wait for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_a_step_that_hangs_is_ended_with_all_that_it_started(machine, capsys, monkeypatch):
    monkeypatch.setattr(on_gpu, "LEEWAY_S", 0.3)
    machine.plan = [machine.step("one", CHILD), machine.step("two")]
    assert machine.run() == (1, ["one", "two"])
    assert notes(capsys.readouterr().out)["one"] == ("failed", "not done after 0 s")
    assert gone(int((machine.output / "one.log").read_text().split()[-1]))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_step_and_says_how_to_go_on(machine, sent):
    program = (
        "import json, signal, on_gpu\n"
        "from saprof import command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores\n"
        f"on_gpu.provenance = lambda: json.loads({json.dumps(json.dumps(machine.where))})\n"
        f"on_gpu.steps = lambda *_: [on_gpu.Step('one', 1, ({machine.command('one', CHILD)!r},))]\n"
        "command.run(on_gpu.main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--output", str(machine.output)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(on_gpu.__file__).parent)},
    )
    log, deadline = machine.output / "one.log", time.monotonic() + 30
    while not (log.exists() and re.search(r"^\d+$", log.read_text(), re.MULTILINE)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(sent)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"go on with python tests/on_gpu.py --output {shlex.quote(str(machine.output))}" in told
    assert gone(int(log.read_text().split()[-1]))
    assert not (machine.output / "steps.jsonl").exists()


def test_only_some(machine):
    machine.plan = [machine.step(name) for name in ("one", "two", "three")]
    assert machine.run("--only", "three,one") == (0, ["one", "three"])
    assert machine.run() == (0, ["two"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "four"], "unknown step 'four'; expected one or all"), (["--minutes", "0"], "minutes is 0; expected")],
)
def test_mistakes(machine, arguments, message):
    machine.plan = [machine.step("one")]
    with pytest.raises(ValueError, match=message):
        machine.run(*arguments)


def test_without_a_gpu_nothing_runs(machine, capsys):
    machine.plan = [machine.step("one")]
    machine.where["cuda"] = False
    assert machine.run() == (1, [])
    assert capsys.readouterr().err == "torch 9 sees no CUDA device here, and nothing was run\n"
    assert not machine.output.exists()


def test_a_dry_run_prints_the_plan(machine, capsys):
    machine.plan = [machine.step("one", seconds=70), machine.step("two", seconds=110, lacks="a tool is missing")]
    assert machine.run("--only", "one")[0] == 0
    machine.plan.append(machine.step("three", seconds=50))
    capsys.readouterr()
    machine.where["cuda"] = False
    assert machine.run("--dry-run") == (0, [])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if re.match(r"(\w+ +)?about +\d", line)] == [
        "one        about   70 s  done",
        "two        about  110 s  skipped: a tool is missing",
        "three      about   50 s",
        "about 50 s are left to do; nothing was run",
    ]


def test_provenance_is_that_of_a_sweep():
    found = on_gpu.provenance()
    assert found["cuda"] in (True, False)
    assert found["fingerprint"] == environment.fingerprint(
        {name: value for name, value in found.items() if name not in ("fingerprint", "cuda", "tests")}
    )
    assert on_gpu.hash_of_tests() == found["tests"]


def test_every_command_is_understood(capsys):
    """The parser of each command accepts its arguments; the files that pytest takes contain tests of a GPU."""
    for step in on_gpu.steps(Path("out"), "f0"):
        for argv in step.commands:
            _, _, module, *arguments = argv[argv.index(PYTHON) :]
            arguments = [argument.replace(BUDGET, "9") for argument in arguments]
            match module:
                case "saprof.sweep":
                    begun = [argument for argument in arguments if argument != "--resume"]
                    assert sweep.main([*begun, "--dry-run"]) == 0, step
                    assert " cells in " in capsys.readouterr().out, step
                case "saprof.verify":
                    asked = verify._parser().parse_args(arguments)
                    command.choices("backend", asked.backend, BACKENDS)
                    command.choices("dtype", asked.dtype, tuple(ITEMSIZE))
                case "kernels_cuda.build":
                    assert build.parser().parse_args(arguments).report, step
                case "pytest":
                    for path in (on_gpu.ROOT / argument for argument in arguments if argument.endswith(".py")):
                        assert "pytest.mark.gpu" in path.read_text(), path
                case _:
                    pytest.fail(f"{step}: nobody knows {module}")


def test_every_operator_is_verified_in_processes_of_its_own_and_measured():
    """A new operator must be a part of it."""
    commands = [argv for step in on_gpu.steps(Path("out"), "f0") for argv in step.commands]
    asked = [(argv[2], argv[argv.index("--operator") + 1]) for argv in commands if "--operator" in argv]
    assert {operators for module, operators in asked if module == "saprof.sweep"} == {"all"}
    verified = [operator for module, operator in asked if module == "saprof.verify"]
    assert verified == [*OPERATORS, *OPERATORS]


def test_what_matters_most_comes_first():
    """In one call of nine minutes, kernels are built and checked; every later step fits a call of its own."""
    plan = on_gpu.steps(Path("out"), "f0")
    names = [step.name for step in plan if not step.name.startswith(("cuda_", "numba_"))]
    assert names[:7] == ["build", "memcheck", "racecheck", "operators", "flex", "graphs", "networks"]
    first = 1 + len(OPERATORS)
    assert {step.name.partition("_")[0] for step in plan[1:first]} == {"cuda"}
    assert sum(step.seconds for step in plan[:first]) <= 9 * 60
    assert max(step.least for step in plan) <= 9 * 60


def test_steps_that_need_no_build_run_without_it(machine):
    machine.plan = [
        machine.step("build", "sys.exit(1)", vital=True),
        machine.step("one"),
        machine.step("two", alone=True),
    ]
    assert machine.run() == (1, ["build", "two"])


def test_results_are_packed_beside_the_folder(machine, monkeypatch, capsys):
    machine.plan = [machine.step("one", "print('x' * 5000)")]
    machine.run()
    archive = machine.output.with_name("out.tar.gz")
    with tarfile.open(archive) as packed:
        assert sorted(packed.getnames()) == ["out/one.log", "out/steps.jsonl"]
    monkeypatch.setattr(on_gpu, "ARCHIVE_BYTES", 2000)
    capsys.readouterr()
    machine.run()
    assert "out.tar.gz, without " in capsys.readouterr().err


@pytest.fixture(scope="module")
def bare():
    """The environment of a machine that lacks the packages for which there are stubs, and more."""
    missing = {path.name for path in (on_gpu.ROOT / "tests/stubs").iterdir()} | {"beartype", "fvcore", "pandas"}
    missing |= {"matplotlib", "seaborn", "scipy", "sklearn", "torchvision", "xdist"}
    hook = f"""
import sys
from importlib.machinery import PathFinder

class Few:
    find_distributions = staticmethod(PathFinder.find_distributions)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            path = [entry for entry in path or sys.path if "stubs" in entry]
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Few()
"""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(hook)
        stubs = sorted(str(path) for path in (on_gpu.ROOT / "tests/stubs").iterdir())
        own = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
        yield own | {"PYTHONPATH": os.pathsep.join([folder, str(on_gpu.ROOT), *stubs])}


@pytest.mark.parametrize(
    "command",
    [
        "tests/on_gpu.py --help",
        "-m saprof.verify --operator aggregation --backend unfold --workloads tiny",
        "-m saprof.sweep --operator aggregation --backend unfold --stage 5 --footprint 3 --seconds 0.01 --output {}",
        "-m kernels_cuda.build --help",
        "-m pytest tests/backends/test_gpu.py tests/benchmarks/test_flex_attention.py "
        "tests/benchmarks/test_bandwidth.py tests/operators/test_operators.py "
        "-m gpu -q -W default --collect-only -p no:cacheprovider -p no:jaxtyping -p no:hypothesispytest",
    ],
    ids=lambda command: command.partition(" --")[0],
)
def test_commands_on_a_machine_with_few_packages(command, bare, tmp_path):
    argv = [part.format(tmp_path / "run") for part in command.split()]
    done = subprocess.run([PYTHON, *argv], cwd=on_gpu.ROOT, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
