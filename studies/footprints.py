"""Compare the accuracy of footprints with equally many taps, irregular ones among them.

    python -m studies.footprints --footprint square:5,cross:13,dilated:5x2
    python -m studies.footprints --data digits16 --family pairwise --seeds 12
    python -m studies.footprints --from studies/recorded/footprints_digits

SAN says that the footprint of pairwise attention may be irregular (Sec. 3.1), but tries only squares. Here the first
stage of a small network gets each footprint in turn. It is compared, seed by seed, with the square of as many taps in
the same family, or with the first footprint if there is no square. OUTPUT/runs keeps every run: a finished run is not
repeated, and an unfinished one is resumed. OUTPUT/README.md has the tables, and OUTPUT/results.json is enough to draw
them again.

Exit codes: 0 complete, 1 some runs failed, 2 wrong input, 3 missing or damaged data, 6 a folder that cannot be written,
75 stopped by a signal after saving.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from saprof import command
from saprof.operators.footprint import positive
from saprof.operators.footprint_lists import read_footprints
from saprof.text import unknown
from studies.config import DEVICES
from studies.failures import until_stopped
from studies.reproduction import footprint_shapes
from studies.reproduction.executors import Local, cores
from studies.reproduction.footprint_shapes import FAMILIES, Request
from studies.reproduction.miniatures import SIDES
from studies.reproduction.study import Study

FOOTPRINTS = "square:5,cross:13,dilated:5x2,random:25@seed1,random:25@seed2"
RATES = {"digits": Path(__file__).parent / "recorded" / "digits"}
"""Recorded reproductions whose learning rates are used, by data set."""


def main(argv: list[str] | None = None) -> int:
    parser = options()
    arguments = parser.parse_args(argv)
    command.alone(parser, arguments, "from_", beside=("output",))
    arguments = _checked(arguments)
    return until_stopped(lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    if arguments.from_:
        return footprint_shapes.draw(arguments.output, footprint_shapes.read(arguments.from_), arguments.from_)
    request = _request(arguments)
    footprint_shapes.check_earlier(request)
    jobs = arguments.jobs or cores()
    if arguments.dry_run:
        print(footprint_shapes.describe(request, jobs))
        return command.OK
    from studies.training.distributed import device

    device(arguments.device)  # reports a missing device before anything is written
    return footprint_shapes.carry_out(request, Local(jobs))


def options() -> argparse.ArgumentParser:
    """The parser of the command line."""
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m studies.footprints",
        description=description,
        epilog=rest,
        formatter_class=command.Prose,
    )
    runs = parser.add_argument_group("runs")
    runs.add_argument("--footprint", default=FOOTPRINTS, help="as for python -m saprof.sweep; default %(default)s")
    runs.add_argument("--family", default="all", help=f"{', '.join(FAMILIES)} or all (default)")
    runs.add_argument("--data", default="digits", help=f"{', '.join(SIDES)}; default %(default)s")
    runs.add_argument("--root", type=command.path, help="folder of the data set; digits and digits16 need none")
    runs.add_argument(
        "--seeds", type=command.whole, default=6, help="runs per network, seeds 0, 1, …; default %(default)s"
    )
    runs.add_argument("--epochs", type=command.whole, help="default: the recipe's")
    runs.add_argument(
        "--rates",
        type=command.path,
        metavar="FOLDER",
        help="a reproduction whose learning rates are used; default studies/recorded/digits for digits, else the "
        "recipe's rate",
    )
    execution = parser.add_argument_group("execution")
    execution.add_argument("--jobs", type=command.whole, help="runs at a time; default: one per core")
    execution.add_argument("--device", default="auto", help="auto, cpu or cuda; default %(default)s")
    execution.add_argument("--dry-run", action="store_true", help="print runs, hours and memory, and stop")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=command.path, help="folder; default runs/footprints-<data>")
    output.add_argument(
        "--from", dest="from_", type=command.path, metavar="FOLDER", help="write the pages again from its results.json"
    )
    return parser


def _checked(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments with footprints, families and folders resolved. Raises ValueError for wrong ones."""
    if arguments.data not in SIDES:
        raise ValueError(unknown("data set", arguments.data, tuple(SIDES)))
    if arguments.device not in DEVICES:
        raise ValueError(unknown("device", arguments.device, DEVICES))
    for field in ("seeds", "epochs", "jobs"):
        if getattr(arguments, field) is not None:
            positive(field, getattr(arguments, field))
    arguments.family = command.choices("family", arguments.family, FAMILIES)
    arguments.footprint = list(dict.fromkeys(read_footprints(arguments.footprint)))
    for footprint in arguments.footprint:
        if footprint.stride != 1:
            raise ValueError(
                f"footprint {footprint} has stride {footprint.stride}; expected 1, as maps keep their size"
            )
    arguments.rates = arguments.rates or RATES.get(arguments.data)
    arguments.output = arguments.output or arguments.from_ or Path("runs") / f"footprints-{arguments.data}"
    return arguments


def _request(arguments: argparse.Namespace) -> Request:
    chosen = None
    if arguments.rates is not None:
        chosen = footprint_shapes.chosen_rates(arguments.rates, arguments.data, arguments.family)
    study = Study(data=arguments.data, epochs=arguments.epochs, root=arguments.root, device=arguments.device)
    return Request(
        study=study.with_rates(chosen["families"] if chosen else {}),
        learning_rates=chosen,
        families=arguments.family,
        footprints=arguments.footprint,
        seeds=arguments.seeds,
        output=arguments.output,
    )


if __name__ == "__main__":
    command.run(main)
