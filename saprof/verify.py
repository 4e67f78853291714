"""`python -m saprof.verify`: whether every backend on this machine computes what the reference computes."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

from saprof import command, text
from saprof.operators import BACKENDS, OPERATORS, Operator
from saprof.operators.workload import ITEMSIZE, Workload, edge, stages, tiny
from saprof.terminal import Column, Table, fitted, paragraphs

if TYPE_CHECKING:
    from saprof.measure.conformance import Verdict

NAMED = 4
"""The operators that cannot run are named if there are no more than these."""
REST = "a wider terminal shows all"
SILENT_S = 2.0
"""The seconds between two lines that say what is checked, if stderr is no terminal."""
WORKLOADS = {"tiny": tiny, "edge": edge, "stages": stages}
HEADER = ("operator", "backend", "dtype", "passed", "worst error / tolerance", "gradients", "not run because")


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    operators = command.choices("operator", arguments.operator, tuple(OPERATORS))
    backends = command.choices("backend", arguments.backend, BACKENDS)
    dtypes = command.choices("dtype", arguments.dtype, tuple(ITEMSIZE))
    device = command.device(arguments.device)
    if arguments.list:
        command.alone(parser, arguments, "list", ())
        for what, names in (("operator", OPERATORS), ("backend", BACKENDS), ("dtype", ITEMSIZE)):
            print("\n".join(f"{what} {name}" for name in names))
        return command.OK
    lines = [Line(OPERATORS[name], backend, dtype) for name, backend, dtype in product(operators, backends, dtypes)]
    _judge(lines, arguments.workloads, device)
    ran = [line for line in lines if line.verdicts]
    if ran:
        print(fitted(_table(ran)))
    for sentence in _folded([line for line in lines if not line.verdicts]):
        print(paragraphs(f"\n{sentence}"))
    failures = [verdict.message for line in lines for verdict in line.verdicts if not verdict.ok]
    for message in failures:
        print(paragraphs(f"\nFAILED {message}"))
    print(f"\n{_ending(ran)}")
    missing = arguments.backend != "all" and len(ran) < len(lines)
    return command.FAILED if failures or missing or not ran else command.OK


def _table(lines: Sequence[Line]) -> Table:
    """One line for each operator, backend and dtype that ran."""
    body = [line.cells() for line in lines]
    ranks = {"gradients": 2, "worst error / tolerance": 1}
    columns = [
        Column(title, [cells[place] for cells in body], ranks.get(title, 0)) for place, title in enumerate(HEADER[:-1])
    ]
    return Table(columns, notes=[line.reason and f"some not run: {line.reason}" for line in lines], rest=REST)


def _folded(lines: Sequence[Line]) -> Iterator[str]:
    """One sentence for each reason why lines did not run."""
    alike: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        alike.setdefault((line.backend, line.reason.removeprefix(f"{line.operator.name}: ")), []).append(line)
    for (backend, reason), some in alike.items():
        named = "" if len(some) > NAMED else f" ({', '.join(dict.fromkeys(line.operator.name for line in some))})"
        why = reason.removeprefix(f"{backend}: ") or "no workload"
        yield f"{backend} cannot run here: {why}; {text.counted(len(some), 'line')} not shown{named}"


def _ending(ran: Sequence[Line]) -> str:
    """`48 of 48 passed`; lines of the table, not workloads."""
    failed = [line for line in ran if not all(verdict.ok for verdict in line.verdicts)]
    names = ", ".join(f"{line.operator.name} {line.backend} {line.dtype}" for line in failed)
    if not ran:
        return "0 of 0 passed: nothing could run"
    return f"{len(ran) - len(failed)} of {len(ran)} passed" + (f"; {len(failed)} failed: {names}" if failed else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m saprof.verify",
        description="Compare every operator of every backend, values and gradients, with the float64 reference. "
        "Lists are separated by commas.",
        epilog="Exit code 0: all checks that ran passed; 1: a check failed, or a backend "
        "that was named cannot run; 2: wrong usage.",
    )
    parser.add_argument("--operator", default="all", help="operators by name, or all (default)")
    parser.add_argument("--backend", default="all", help=f"{', '.join(BACKENDS)}, or all (default) that can run")
    parser.add_argument("--dtype", default="float32,float64", help=f"{', '.join(ITEMSIZE)}, or all")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (default cpu)")
    parser.add_argument(
        "--workloads",
        default="edge",
        choices=WORKLOADS,
        help="tiny: one per boundary; edge (default): unusual shapes; stages: those of SAN10, at sampled positions",
    )
    parser.add_argument("--list", action="store_true", help="print all names and stop")
    return parser


@dataclass
class Line:
    """One line of the table."""

    operator: Operator
    backend: str
    dtype: str
    verdicts: list[Verdict] = field(default_factory=list)
    reason: str = ""
    """Why some or all workloads of the line cannot run."""

    def workloads(self, which: str) -> Iterator[Workload]:
        return (replace(w, dtype=self.dtype) for w in WORKLOADS[which](self.operator))

    def cells(self) -> Sequence[str]:
        name = self.operator.name, self.backend, self.dtype
        if not self.verdicts:
            return *name, "-", "-", "-", self.reason
        passed = sum(verdict.ok for verdict in self.verdicts)
        worst = max(verdict.fraction for verdict in self.verdicts)
        gradients = "yes" if all(verdict.gradients for verdict in self.verdicts) else "no"
        return *name, f"{passed}/{len(self.verdicts)}", f"{worst:.2f}", gradients, self.reason


def _judge(lines: Sequence[Line], which: str, device: str) -> None:
    """Run all workloads that the backend of each line supports."""
    import torch
    from tqdm import tqdm

    from saprof.backends import check_device, why_not
    from saprof.measure.conformance import Verdict, check, sample_positions

    check_device(device)
    if which != "stages":
        torch.set_num_threads(1)  # with such small tensors, threads only wait for each other
    cases = [(line, workload) for line in lines for workload in line.workloads(which)]
    bar = tqdm(cases, file=sys.stderr, disable=not sys.stderr.isatty(), leave=False, unit="workload")
    if bar.disable:
        print(f"checking {text.counted(len(cases), 'workload')} …", file=sys.stderr, flush=True)
    said = time.monotonic()
    for number, (line, case) in enumerate(bar):
        what = f"{line.operator.name} {line.backend} {line.dtype}"
        bar.set_description(what, refresh=False)
        if bar.disable and time.monotonic() - said > SILENT_S:
            print(f"{number:,} of {len(cases):,}: {what}", file=sys.stderr, flush=True)
            said = time.monotonic()
        reason = why_not(line.backend, line.operator, getattr(torch, line.dtype), device, case.footprint)
        if reason is not None:
            line.reason = reason
            continue
        try:
            verdict = check(case, line.backend, device, positions=sample_positions(case))
        except RuntimeError as error:  # a kernel that raises has failed like a wrong one
            verdict = Verdict(False, math.inf, 1.0, f"{case} on {line.backend}: {type(error).__name__}: {error}")
        line.verdicts.append(verdict)


if __name__ == "__main__":
    command.run(main)
