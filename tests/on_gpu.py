"""`make gpu`: everything that needs a machine with a GPU, in one command that may be called again.

The most important steps come first. Each step is a process with its own log. A step that was completed with the same
code, versions and device is not repeated, and a sweep continues where it was stopped. The commit is recorded, but the
content of the files decides whether the code is the same.

It needs torch, numba-cuda and pytest-benchmark, but no installation of saprof: stubs take the place of small packages
that are missing. Results are packed into one archive beside the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
STUBS = [str(folder) for folder in sorted((ROOT / "tests/stubs").iterdir()) if find_spec(folder.name) is None]
"""The folders that stand for packages that are not installed."""
sys.path += [path for path in (str(ROOT), *STUBS) if path not in sys.path]

from saprof import command, sweep, text  # noqa: E402
from saprof.measure.request import read_request  # noqa: E402
from saprof.operators import OPERATORS  # noqa: E402

PYTHON = sys.executable
BUDGET = "{seconds}"
"""A placeholder in a command for the seconds that it may take; such a command continues where it was stopped."""
SPARE_S = 20.0
"""A sweep keeps so many of these seconds for the group that it has begun, and for its summary."""
LEEWAY_S = 60.0
ARCHIVE_BYTES = 15 << 20
"""The compressed files of the archive together have at most this size."""
GRACE_S = 5.0
"""The time between SIGTERM and SIGKILL."""

OK, SKIPPED, FAILED, UNFINISHED, NOT_RUN = "ok", "skipped", "failed", "unfinished", "not run"
SAYINGS = {
    "left when the time budget ran out": (UNFINISHED, "a sweep's time was up"),
    "Device not supported": (SKIPPED, "compute-sanitizer does not support this device"),
}
"""Messages of a command that did not exit with 0, and the status and note that they mean."""


@dataclass(frozen=True)
class Step:
    """Commands that run in this order, even if one of them fails."""

    name: str
    seconds: float
    """The predicted time; a step that takes twice as long plus `LEEWAY_S` is stopped."""
    commands: tuple[tuple[str, ...], ...]
    environment: dict[str, str] = field(default_factory=dict)
    lacks: str = ""
    """Why the step cannot run here."""
    vital: bool = False
    """Later steps need it. It runs every time, since its result may have been deleted."""
    alone: bool = False
    """It does not need the vital steps."""

    @property
    def least(self) -> float:
        """The step is only begun if so many seconds are left."""
        return 2 * SPARE_S if any(BUDGET in argv for argv in self.commands) else self.seconds


@dataclass(frozen=True)
class Outcome:
    status: str
    note: str = ""
    seconds: float = 0.0
    codes: tuple[int | None, ...] = ()
    """Exit codes; None for a command that was stopped."""


def steps(output: Path, fingerprint: str) -> list[Step]:
    """All steps, the most important first; `fingerprint` is that of the rows that the sweeps will write."""

    def python(module: str, arguments: str) -> tuple[str, ...]:
        return PYTHON, "-m", module, *arguments.split()

    def benchmark(name: str, path: str, seconds: float) -> Step:
        asked = python("pytest", f"{path} -m gpu --benchmark-only -q -s -W default -p no:cacheprovider")
        return Step(name, seconds, ((*asked, f"--benchmark-json={output / name}.json"),))

    def sweeps(name: str, beside: float, *variants: str) -> Step:
        """A cell takes its measuring time, plus `beside` seconds for making, compiling and checking it."""
        seconds, folder = 0.0, output / f"{name}-{fingerprint}"
        commands = []
        resume = ("--resume",) if (folder / "run.json").exists() else ()
        for variant in variants:
            asked = ("--device", "cuda", "--batch", "32", *variant.split())
            request = read_request(sweep.parser().parse_args(asked))
            seconds += 18 + (request.how.seconds + beside) * _count_cells(asked)
            rest = (*resume, "--output", str(folder), "--time-budget", BUDGET)
            commands.append((PYTHON, "-m", "saprof.sweep", *asked, *rest))
            resume = ("--resume",)
        return Step(name, seconds, tuple(commands), alone=True)

    def verifies(backend: str, seconds: float) -> list[Step]:
        """A process per operator: an error that breaks the context of CUDA fails one of them."""
        options = f"--device cuda --backend {backend} --workloads tiny --dtype float32,bfloat16 --operator"
        lacks = "numba-cuda is not installed" if backend == "numba" and find_spec("numba_cuda") is None else ""
        return [
            Step(
                f"{backend}_{operator}",
                seconds,
                (python("saprof.verify", f"{options} {operator}"),),
                lacks=lacks,
                alone=backend == "numba",
            )
            for operator in OPERATORS
        ]

    def sanitizer(tool: str, seconds: float) -> Step:
        found = _compute_sanitizer()
        checked = python("saprof.verify", "--device cuda --backend cuda --workloads tiny --dtype float32,bfloat16")
        return Step(
            tool,
            seconds,
            ((found or "compute-sanitizer", "--tool", tool, "--error-exitcode", "99", *checked),),
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # tensors in one block of the cache would hide an overrun
            lacks="" if found else "compute-sanitizer is not installed",
        )

    everything = "--operator all --dtype float32,bfloat16"

    def at_all_stages(options: str) -> tuple[str, str]:
        return f"{everything} {options} --stage 2:5 --footprint 7", f"{everything} {options} --stage 1 --footprint 3"

    networks = "--model san10_pairwise,san10_patchwise,sasa_resnet26,resnet26 --dtype float32,bfloat16 --seconds 0.25"
    peers = "--backend cuda,unfold --compile both --mode forward,train_step"
    tested = "-m gpu -q -W default -p no:cacheprovider --durations=10 --continue-on-collection-errors"
    gpu_tests = python("pytest", tested)
    graphs = python("pytest", f"tests/backends/test_gpu.py {tested}")
    return [
        Step("build", 120, (python("kernels_cuda.build", "--report"),), vital=True),
        *verifies("cuda", 12),
        *verifies("numba", 30),
        sanitizer("memcheck", 90),
        sanitizer("racecheck", 90),
        sweeps("operators", 0.5, f"{everything} --mode forward --seconds 0.1 --stage 2,4 --footprint 7"),
        benchmark("flex", "tests/benchmarks/test_flex_attention.py", 90),
        Step("graphs", 90, ((*graphs, f"--junitxml={output / 'graphs.xml'}"),)),
        sweeps("networks", 3.5, f"{networks} --mode forward,train_step"),
        Step("verify", 60, (python("saprof.verify", "--device cuda --backend cuda --dtype all --workloads edge"),)),
        benchmark("bandwidth", "tests/benchmarks/test_bandwidth.py", 30),
        sweeps("other_stages", 0.5, *at_all_stages("--mode forward --seconds 0.1")),
        sweeps("gradients", 0.9, *at_all_stages("--mode backward --seconds 0.3")),
        sweeps(
            "compiled", 1.7, f"--operator all --dtype float32,bfloat16 --seconds 0.3 {peers} --stage 3 --footprint 7"
        ),
        Step("tests", 180, ((*gpu_tests, f"--junitxml={output / 'tests.xml'}"),)),
        sanitizer("synccheck", 90),
        sanitizer("initcheck", 90),
    ]


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if not arguments.minutes > 0:
        raise ValueError(f"minutes is {arguments.minutes:g}; expected a positive number")
    deadline = time.monotonic() + 60 * arguments.minutes
    output = arguments.output.resolve()
    where = provenance()
    plan = steps(output, where["fingerprint"])
    chosen = command.choices("step", arguments.only, [step.name for step in plan])
    plan = [step for step in plan if step.name in chosen]
    done = _done(output / "steps.jsonl")
    if arguments.dry_run:
        print(_planned(plan, [_key(step, where) in done and not step.vital for step in plan]))
        return command.OK
    if not where["cuda"]:
        print(f"torch {where['versions']['torch']} sees no CUDA device here, and nothing was run", file=sys.stderr)
        return command.FAILED
    output.mkdir(parents=True, exist_ok=True)
    again = f"go on with {shlex.join(['python', 'tests/on_gpu.py', *(sys.argv[1:] if argv is None else argv)])}"
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcomes = _run_all(plan, where, done, output, deadline)
    except KeyboardInterrupt:
        print(f"\nwhat is done is kept in {output}; {again}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    lines = [
        (step.name, outcome.status, f"{outcome.seconds:.0f}", f"{step.seconds:.0f}", outcome.note)
        for step, outcome in zip(plan, outcomes, strict=True)
    ]
    print(text.align(("step", "came to", "seconds", "predicted", "note"), lines))
    print(_pack(output), file=sys.stderr)
    fine = all(outcome.status in (OK, SKIPPED) for outcome in outcomes)
    print(f"logs and results in {output}" + ("" if fine else f"; {again}"), file=sys.stderr)
    return command.OK if fine else command.FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tests/on_gpu.py",
        description="Build, check and measure on a GPU, step by step; what is done is not done again.",
        epilog="Exit code 0: all is done, or was; 1: a step failed or is left, or there is no GPU; 2: usage.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="logs and results (default runs/gpu)")
    parser.add_argument("--minutes", type=float, default=9.0, help="end by then, whatever is left (default 9)")
    parser.add_argument("--only", default="all", metavar="STEP,…", help="steps by name, or all (default)")
    parser.add_argument("--dry-run", action="store_true", help="print the steps and the seconds predicted, and stop")
    return parser


def provenance() -> dict[str, Any]:
    """The environment as a run folder records it, its fingerprint, whether there is a GPU, and the hash of the tests.
    It is read in a process of its own, so that this one holds no memory of the GPU."""
    program = (
        "import json, torch\n"
        "from saprof.records.environment import fingerprint, provenance\n"
        "cuda = torch.cuda.is_available()\n"
        "where = provenance('cuda' if cuda else 'cpu', torch.get_num_threads())\n"
        "print(json.dumps(where | {'fingerprint': fingerprint(where), 'cuda': cuda}))"
    )
    around = os.environ | _paths()
    asked = subprocess.run([PYTHON, "-c", program], cwd=ROOT, capture_output=True, text=True, env=around)
    if asked.returncode:
        raise ValueError(f"torch could not be asked for a device: {(asked.stderr.splitlines() or ['no answer'])[-1]}")
    return json.loads(asked.stdout.splitlines()[-1]) | {"tests": hash_of_tests()}


def hash_of_tests() -> str:
    """The hash of all files in tests/ except this script and its test: its commands are compared one by one."""
    own = {Path(__file__).name, f"test_{Path(__file__).name}"}
    files = (path for path in sorted((ROOT / "tests").rglob("*.*")) if path.suffix in (".py", ".cpp", ".h", ".cu"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files if path.name not in own)).hexdigest()[:12]


def _pack(output: Path) -> str:
    """Write all files of the folder to one archive beside it, the smallest first; what is too much is left out, and
    named in the sentence that is returned."""
    archive, room, left = output.with_name(f"{output.name}.tar.gz"), ARCHIVE_BYTES, []
    with tarfile.open(archive, "w:gz") as packed:
        for path in sorted((p for p in output.rglob("*") if p.is_file()), key=lambda p: (p.stat().st_size, p)):
            size = len(zlib.compress(path.read_bytes())) + 1024
            if size > room:
                left.append(str(path.relative_to(output)))
                continue
            room -= size
            packed.add(path, str(path.relative_to(output.parent)))
    return f"all of it is in {archive}" + (f", without {', '.join(left)}" if left else "")


def _count_cells(arguments: Sequence[str]) -> int:
    listed = io.StringIO()
    with redirect_stdout(listed):
        sweep.main([*arguments, "--list"])
    return len(listed.getvalue().splitlines())


def _compute_sanitizer() -> str | None:
    places = [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    if "CUDA_HOME" in os.environ:
        places.insert(1, str(Path(os.environ["CUDA_HOME"]) / "bin"))
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def _key(step: Step, where: dict[str, Any]) -> str:
    """A hash that identifies a completed step."""
    content = json.dumps([step.name, step.commands, where["fingerprint"], where["tests"]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _done(path: Path) -> set[str]:
    """The keys of the steps that succeeded; an incomplete line counts as a failure."""
    keys = set()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):
            record = json.loads(line)
            if record["status"] == OK:
                keys.add(record["key"])
    return keys


def _planned(plan: Sequence[Step], done: Sequence[bool]) -> str:
    lines = []
    for step, is_done in zip(plan, done, strict=True):
        note = "  done" if is_done else f"  skipped: {step.lacks}" if step.lacks else ""
        lines.append(f"{step.name:<10} about {step.seconds:4.0f} s{note}")
        lines += [f"    {shlex.join(argv)}" for argv in step.commands]
    left = sum(step.seconds for step, is_done in zip(plan, done, strict=True) if not is_done and not step.lacks)
    return "\n".join([*lines, f"about {left:.0f} s are left to do; nothing was run"])


def _run_all(
    plan: Sequence[Step], where: dict[str, Any], done: set[str], output: Path, deadline: float
) -> list[Outcome]:
    """The outcome of each step; it is printed and recorded as soon as the step ends."""
    outcomes, broken = [], ""
    for step in plan:
        print(f"{step.name:<10} ", end="", file=sys.stderr, flush=True)
        log, key, left = output / f"{step.name}.log", _key(step, where), deadline - time.monotonic()
        if key in done and not step.vital:
            outcome = Outcome(OK, "done before")
        elif broken and not step.alone:
            outcome = Outcome(NOT_RUN, f"since {broken} failed")
        elif step.lacks:
            outcome = Outcome(SKIPPED, step.lacks)
        elif left < step.least:
            outcome = Outcome(NOT_RUN, f"needs about {step.least:.0f} s; {max(left, 0):.0f} s were left")
        else:
            outcome = _run(step, log, deadline)
            _record(output / "steps.jsonl", step, key, outcome, where)
        note = f": {outcome.note}" if outcome.note else ""
        print(f"{outcome.seconds:6.1f} s  {outcome.status}{note}", file=sys.stderr, flush=True)
        if outcome.status == FAILED:
            broken = step.name if step.vital else broken
            end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
            print("".join(f"    {line}\n" for line in end), end="", file=sys.stderr, flush=True)
        outcomes.append(outcome)
    return outcomes


def _run(step: Step, path: Path, deadline: float) -> Outcome:
    start = time.monotonic()
    patience = 2 * step.seconds + LEEWAY_S
    end = min(deadline, start + patience)
    codes: list[int | None] = []
    with path.open("w", encoding="utf-8") as log:
        for argv in step.commands:
            left = max(end - time.monotonic(), 0.1)
            argv = [part.replace(BUDGET, f"{max(left - SPARE_S, 1):.0f}") for part in argv]
            print("$", shlex.join(argv), file=log, flush=True)
            codes.append(_call(argv, step.environment, log, left))
            if codes[-1] is None:
                break
    if codes[-1] is None:
        stopped = (UNFINISHED, "stopped when the time was up"), (FAILED, f"not done after {patience:.0f} s")
        status, note = stopped[end < deadline]
    else:
        status, note = _judge(codes, path.read_text(encoding="utf-8", errors="replace"))
    return Outcome(status, note, time.monotonic() - start, tuple(codes))


def _judge(codes: Sequence[int | None], log: str) -> tuple[str, str]:
    """The status and note of commands that ended by themselves."""
    if not any(codes):
        return OK, ""
    for saying, meaning in SAYINGS.items():
        if saying in log:
            return meaning
    return FAILED, f"exit code {next(filter(None, codes))}"


def _call(argv: Sequence[str], environment: dict[str, str], log: IO[str], seconds: float) -> int | None:
    """The exit code, or None after so many seconds; all processes that the command started have ended."""
    around = os.environ | {"PYTHONUNBUFFERED": "1"} | _paths() | environment
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=around,
            start_new_session=True,
        )
    except OSError as error:
        print(error, file=log, flush=True)
        return 127
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _paths() -> dict[str, str]:
    """The folders from which Python imports saprof and, in place of packages that are not installed, stubs."""
    before = filter(None, [os.environ.get("PYTHONPATH")])
    return {"PYTHONPATH": os.pathsep.join([*before, str(ROOT), *STUBS])}


def _end(process: subprocess.Popen) -> None:
    """Send SIGTERM to the process group, then SIGKILL."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _record(path: Path, step: Step, key: str, outcome: Outcome, where: dict[str, Any]) -> None:
    content = {
        "step": step.name,
        "key": key,
        "status": outcome.status,
        "note": outcome.note,
        "exit_codes": outcome.codes,
        "seconds": round(outcome.seconds, 1),
        "commands": step.commands,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: where[name] for name in ("fingerprint", "tests", "commit", "dirty", "device", "driver", "versions")},
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    command.run(main)
