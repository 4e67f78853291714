"""`python -m saprof.verify`: whether every backend on this machine computes what the reference computes."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

from saprof import command, text
from saprof.operators import BACKENDS, OPERATORS, Operator
from saprof.operators.workload import ITEMSIZE, Workload, edge, stages, tiny

if TYPE_CHECKING:
    from saprof.measure.conformance import Verdict

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
    print(text.align(HEADER, [line.cells() for line in lines]))
    failures = [verdict.message for line in lines for verdict in line.verdicts if not verdict.ok]
    if arguments.backend != "all":
        failures += [f"{line.operator.name} did not run: {line.reason}" for line in lines if not line.verdicts]
    print("".join(f"\nFAILED {message}" for message in failures) or "\nall that ran passed")
    return command.FAILED if failures else command.OK


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
    for line, case in tqdm(cases, file=sys.stderr, disable=not sys.stderr.isatty(), leave=False, unit="workload"):
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
