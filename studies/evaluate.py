"""Judge trained networks on clean, rotated and attacked images (SAN Tables 3, 9 and 10).

    python -m studies.evaluate RUN [RUN ...]
    python -m studies.evaluate --checkpoint FILE --official --model san10_pairwise --data folder --root /data/imagenet

The first form judges finished runs on the images of their protocol, and keeps the report in RUN/robustness.json. The
second form judges a checkpoint, one of the SAN authors or one of saprof.save, on the validation set of a data set,
beside the figures that the paper prints. Exit codes are those of studies.train.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from saprof import command, text
from saprof.command import OK, choices
from studies.config import DEVICES, Config
from studies.judging.checkpoints import Checkpoint, judge_checkpoint
from studies.judging.robustness import PARTS, Conditions, Execution, judge
from studies.judging.table import render, rows

if TYPE_CHECKING:
    from studies.judging.perturbations import Attack


def _attacks(arguments: argparse.Namespace) -> tuple[Attack, ...]:
    """The attacks of studies.judging.perturbations, or the one that radius, step and number of steps describe."""
    from studies.judging.perturbations import ATTACKS, Attack

    numbers = [arguments.attack_epsilon, arguments.attack_step, arguments.attack_steps]
    if any(number is not None for number in numbers) and None in numbers:
        raise ValueError("an attack of your own needs --attack-epsilon, --attack-step and --attack-steps")
    attacks = ATTACKS if None in numbers else (Attack(*numbers),)
    choices = {name: getattr(arguments, f"attack_{name}") for name in ("target", "start", "seed")}
    return tuple(replace(attack, **choices) for attack in attacks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m studies.evaluate", description=str(__doc__).partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=command.path, metavar="RUN", help="folder of a finished run")
    single = parser.add_argument_group("a checkpoint instead of runs")
    single.add_argument(
        "--checkpoint", type=command.path, metavar="FILE", help="a file of saprof.save; see also --official"
    )
    single.add_argument("--official", action="store_true", help="the file is a checkpoint of the SAN authors' code")
    single.add_argument("--model", help="the checkpoint's model, such as san10_pairwise; selects the paper's figures")
    single.add_argument("--data", default="folder", help="data set whose validation set is judged; default %(default)s")
    single.add_argument("--root", type=command.path, help="folder of the data set; digits and digits16 need none")
    judged = parser.add_argument_group("conditions and images")
    judged.add_argument("--only", default="all", help=f"comma list of {', '.join(PARTS)}; clean is always judged")
    judged.add_argument("--limit", type=command.whole, metavar="N", help="judge a sample of N images, spread evenly")
    judged.add_argument("--again", action="store_true", help="judge runs again that have been judged")
    judged.add_argument("--attack-epsilon", type=float, metavar="ε", help="your own attack: radius of the L∞ ball")
    judged.add_argument("--attack-step", type=float, metavar="ρ", help="its step; both are on pixels from 0 to 255")
    judged.add_argument("--attack-steps", type=command.whole, metavar="n", help="its number of steps")
    judged.add_argument("--attack-target", default="random", help="random, least_likely or next; default %(default)s")
    judged.add_argument("--attack-start", default="clean", help="clean or random; default %(default)s")
    judged.add_argument(
        "--attack-seed", type=command.whole, default=0, help="seed of targets and starts; default %(default)s"
    )
    execution = parser.add_argument_group("execution and output")
    execution.add_argument(
        "--batch", type=command.whole, default=Execution.batch, help="images per batch; default %(default)s"
    )
    execution.add_argument(
        "--workers",
        type=command.whole,
        default=Execution.workers,
        help="processes that load images; default %(default)s",
    )
    execution.add_argument("--threads", type=command.whole, default=1, help="threads on a CPU; default %(default)s")
    execution.add_argument("--device", default=Execution.device, help=f"{', '.join(DEVICES)}; default %(default)s")
    execution.add_argument("--format", default="table", help=f"{', '.join(text.FORMATS)}; default %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    _check(arguments)
    parts = choices("part", arguments.only, PARTS)
    import torch

    torch.set_num_threads(arguments.threads)
    conditions = Conditions.from_parts(parts, _attacks(arguments))
    execution = Execution(batch=arguments.batch, workers=arguments.workers, device=arguments.device, progress=True)
    flat: list[dict[str, Any]] = []
    if arguments.checkpoint:
        checkpoint = Checkpoint(path=arguments.checkpoint, official=arguments.official, model=arguments.model)
        model = checkpoint.model or Config.model  # only used for official checkpoints
        config = Config(model=model, data=arguments.data, root=arguments.root, protocol="val-original")
        report = judge_checkpoint(checkpoint, config, conditions, execution, arguments.limit)
        flat = rows(checkpoint.model or checkpoint.path.name, report)
    for folder in arguments.runs:
        options = {"images": arguments.limit, "again": arguments.again}
        flat += rows(str(folder), judge(folder, conditions, execution, **options, note=_note))
    sys.stdout.write(render(flat, arguments.format) + "\n")
    return OK


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _check(arguments: argparse.Namespace) -> None:
    if bool(arguments.runs) == bool(arguments.checkpoint):
        raise ValueError("expected the folders of finished runs, or --checkpoint FILE; got " + _got(arguments))
    if arguments.official and not (arguments.checkpoint and arguments.model):
        raise ValueError("--official needs --checkpoint and --model, such as san10_pairwise")
    for name, valid in (("format", text.FORMATS), ("device", DEVICES)):
        if getattr(arguments, name) not in valid:
            raise ValueError(text.unknown(name, getattr(arguments, name), valid))
    for name, least in (("batch", 1), ("threads", 1), ("workers", 0), ("limit", 1)):
        if getattr(arguments, name) is not None and getattr(arguments, name) < least:
            raise ValueError(f"--{name} is {getattr(arguments, name)}; expected at least {least}")
    if arguments.threads > command.MOST_THREADS:
        raise ValueError(f"--threads is {arguments.threads}; expected at most {command.MOST_THREADS}")


def _got(arguments: argparse.Namespace) -> str:
    return "both" if arguments.runs else "neither"


if __name__ == "__main__":
    from saprof.command import run

    run(main)
