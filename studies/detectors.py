"""Compare detectors of convolutions and of stand-alone attention: SASA Table 2 in miniature.

    python -m studies.detectors --dry-run
    python -m studies.detectors --seeds 6 --output runs/detectors
    python -m studies.detectors --from runs/detectors

Five small RetinaNets have convolutions or attention in their backbones and in their heads. Their parameters and FLOPs,
as shares of those of the convolutional one, are within 5 % of the shares that the paper prints. Each is trained on
canvases with every seed, and compared with the convolutional one, seed by seed. OUTPUT/runs keeps every run: a
finished run is not repeated, and an unfinished one is resumed. OUTPUT/README.md has the tables, and OUTPUT/results.json
is enough to draw them again.

Exit codes: 0 complete, 1 some runs failed, 2 wrong input, 3 missing or damaged data, 6 a folder that cannot be written,
75 stopped by a signal after saving.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from saprof import command
from saprof.operators.footprint import positive
from saprof.text import unknown
from studies.config import DEVICES
from studies.failures import until_stopped
from studies.reproduction import detectors
from studies.reproduction.detectors import DATA, Request
from studies.reproduction.executors import Local, cores


def main(argv: list[str] | None = None) -> int:
    parser = options()
    arguments = parser.parse_args(argv)
    command.alone(parser, arguments, "from_", beside=("output",))
    request = _request(arguments)
    return until_stopped(lambda: _work(request, arguments))


def _work(request: Request, arguments: argparse.Namespace) -> int:
    if arguments.from_:
        return detectors.draw(request.output, detectors.read(arguments.from_), arguments.from_)
    detectors.check_earlier(request)
    jobs = arguments.jobs or cores()
    if arguments.dry_run:
        print(detectors.describe(request, jobs))
        return command.OK
    from studies.training.distributed import device

    device(arguments.device)  # reports a missing device before anything is written
    return detectors.carry_out(request, Local(jobs))


def options() -> argparse.ArgumentParser:
    """The parser of the command line."""
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m studies.detectors", description=description, epilog=rest, formatter_class=command.Prose
    )
    runs = parser.add_argument_group("runs")
    runs.add_argument("--data", default=DATA[0], help=f"{' or '.join(DATA)}; default %(default)s")
    runs.add_argument(
        "--root", type=command.path, help="folder of Fashion-MNIST; none if Debian's package is installed"
    )
    runs.add_argument(
        "--seeds", type=command.whole, default=6, help="runs per detector, seeds 0, 1, …; default %(default)s"
    )
    runs.add_argument("--epochs", type=command.whole, help="default: the recipe's")
    runs.add_argument(
        "--smoke",
        action="store_true",
        help="1 seed, 1 epoch and a few canvases, to check that everything runs; its AP means nothing",
    )
    execution = parser.add_argument_group("execution")
    execution.add_argument("--jobs", type=command.whole, help="runs at a time; default: one per core")
    execution.add_argument("--device", default="auto", help="auto, cpu or cuda; default %(default)s")
    execution.add_argument("--dry-run", action="store_true", help="print detectors, costs and runs, and stop")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=command.path, help="folder; default runs/detectors-<data>")
    output.add_argument(
        "--from", dest="from_", type=command.path, metavar="FOLDER", help="write the page again from its results.json"
    )
    return parser


def _request(arguments: argparse.Namespace) -> Request:
    """The request. Raises ValueError for wrong arguments."""
    for option, got, valid in (("data set", arguments.data, DATA), ("device", arguments.device, DEVICES)):
        if got not in valid:
            raise ValueError(unknown(option, got, valid))
    for name in ("seeds", "epochs", "jobs"):
        if getattr(arguments, name) is not None:
            positive(name, getattr(arguments, name))
    default = Path("runs") / (f"detectors-{arguments.data}" + "-smoke" * arguments.smoke)
    return Request(
        data=arguments.data,
        root=arguments.root,
        device=arguments.device,
        epochs=arguments.epochs,
        seeds=1 if arguments.smoke else arguments.seeds,
        smoke=arguments.smoke,
        output=arguments.output or arguments.from_ or default,
    )


if __name__ == "__main__":
    command.run(main)
