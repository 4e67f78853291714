"""`python -m saprof`, or `saprof`: lists the commands and runs them.

    saprof                        list the commands
    saprof sweep --footprint 7    the same as python -m saprof.sweep --footprint 7
    saprof --version

The list imports neither torch nor a command, so it is printed at once.
"""

from __future__ import annotations

import runpy
import sys
from typing import NamedTuple, NoReturn

import saprof
from saprof.command import OK, USAGE, run
from saprof.text import unknown


class Command(NamedTuple):
    """A command: the module that has its `main`, what it does, and the arguments of an example."""

    module: str
    does: str
    example: str

    @property
    def name(self) -> str:
        """The name of the command after `saprof`."""
        return self.module.rpartition(".")[2]


GROUPS = {
    "Measure": (
        Command(
            "saprof.sweep",
            "Measure operators and networks over footprints and backends.",
            "--footprint 3,5,7,9,11",
        ),
        Command(
            "saprof.profile",
            "Measure where a network spends time and memory, layer by layer.",
            "san10_pairwise --compare resnet26",
        ),
        Command("saprof.verify", "Compare every operator with the float64 reference.", "--backend numba"),
        Command("saprof.info", "Print versions, processor, GPU, backends, caches and roofs.", ""),
        Command("saprof.build", "Compile kernels ahead of their first use.", "--operator pairwise_attention"),
    ),
    "Read what was measured": (
        Command(
            "saprof.report",
            "Write a page with every figure and table of a run.",
            "studies/recorded/footprint_cpu --output report",
        ),
        Command(
            "saprof.roofline",
            "Compare each row with the least time that the machine allows.",
            "studies/recorded/relations_cpu --output roofline",
        ),
        Command(
            "saprof.compare",
            "Compare two runs, or two backends of one run.",
            "studies/recorded/relations_cpu --backends numba,unfold",
        ),
        Command(
            "saprof.advise",
            "Choose network, footprint and backend within a budget.",
            "--max-latency 200ms --max-params 12M",
        ),
        Command(
            "saprof.from_pytest",
            "Turn results of pytest-benchmark into a run.",
            "bench.json --output runs/bench",
        ),
    ),
    "Recount the papers": (
        Command("saprof.tables", "Recount the parameters and FLOPs that the papers print.", "--table 7"),
    ),
    "Train and judge (extra: studies)": (
        Command(
            "studies.train",
            "Train and judge one classifier or detector.",
            "--model san_mini_pairwise --data digits",
        ),
        Command(
            "studies.evaluate",
            "Judge trained classifiers and detectors.",
            "runs/san_mini_pairwise-digits-0",
        ),
        Command(
            "studies.reproduce",
            "Train the networks of the accuracy tables of SAN and SASA.",
            "table8 --data digits --seeds 6 --dry-run",
        ),
        Command(
            "studies.footprints",
            "Compare the accuracy of footprints of equally many taps.",
            "--footprint square:5,cross:13 --dry-run",
        ),
        Command(
            "studies.detectors",
            "Compare detectors of convolutions and of attention.",
            "--data canvas_digits --dry-run",
        ),
        Command("studies.doctor", "Check the images of a data set, and what a run requires.", "--data digits"),
    ),
}
COMMANDS = {command.name: command for commands in GROUPS.values() for command in commands}


def main(argv: list[str] | None = None) -> int:
    """Run a command, or list them all; the exit code is the command's own, or 2 for an unknown one."""
    arguments = sys.argv[1:] if argv is None else argv
    name = arguments[0] if arguments else "--help"
    if name == "--version":
        print(f"saprof {saprof.__version__}")
        return OK
    if name in ("-h", "--help", "help"):
        print(listing())
        return OK
    if name not in COMMANDS:
        print(f"error: {unknown('command', name, [*COMMANDS])}", file=sys.stderr)
        return USAGE
    sys.argv = [name, *arguments[1:]]
    runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)
    return OK


def listing() -> str:
    """The text that lists every command with a line and an example."""
    width = max(map(len, COMMANDS)) + 2
    lines = [
        f"saprof {saprof.__version__} measures local self-attention operators.",
        "",
        "usage: saprof COMMAND [OPTION ...], or python -m saprof COMMAND [OPTION ...]",
    ]
    for title, commands in GROUPS.items():
        lines += ["", title]
        for command in commands:
            lines.append(f"  {command.name:{width}}{command.does}")
            lines.append(f"      saprof {command.name} {command.example}".rstrip())
    return "\n".join([*lines, "", "saprof COMMAND --help explains the options of a command."])


def start() -> NoReturn:
    """The program `saprof`."""
    run(main)


if __name__ == "__main__":
    start()
