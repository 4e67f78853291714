"""Judge trained networks: classifiers on clean, rotated and attacked images, detectors on images with boxes.

    python -m studies.evaluate RUN [RUN ...]
    python -m studies.evaluate --checkpoint FILE --official --model san10_pairwise --data folder --root /data/imagenet
    python -m studies.evaluate --checkpoint FILE --recipe retinanet_1x --root /data/coco --output FOLDER

The first form judges finished runs on the images of their protocol, and keeps the report of a classifier (SAN Tables 3,
9 and 10) in RUN/robustness.json, that of a detector in RUN/evaluation.json. The second form judges a checkpoint, one of
the SAN authors or one of saprof.save, on the validation set of a data set, beside the figures that the paper prints.
The third form judges a detector; its recipe says how images are resized and anchors made. Exit codes are those of
studies.train.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from saprof import command, text
from saprof.command import OK, choices
from studies.config import DEVICES, Config, load
from studies.data import BOXES
from studies.judging import detectors
from studies.judging.checkpoints import Checkpoint, judge_checkpoint
from studies.judging.detectors import AT_ONCE
from studies.judging.robustness import PARTS, Conditions, Execution, judge
from studies.judging.table import render, rows

if TYPE_CHECKING:
    from studies.judging.perturbations import Attack

DEFAULT_ATTACK = {"epsilon": None, "step": None, "steps": None, "target": "random", "start": "clean", "seed": 0}
"""The options of an attack, with their defaults."""
SINGLE = ("recipe", "data", "root", "output")
"""Options of a checkpoint that a run does not need."""


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
    single.add_argument(
        "--recipe",
        help="of a detector: a recipe by its name, or the config.yaml of its run; it also names the data set",
    )
    single.add_argument("--data", help="data set whose validation set is judged; default folder, or the recipe's")
    single.add_argument("--root", type=command.path, help="folder of the data set; digits and digits16 need none")
    single.add_argument(
        "--output", type=command.path, metavar="FOLDER", help="of a detector: folder for its detections and pictures"
    )
    judged = parser.add_argument_group("conditions and images")
    judged.add_argument("--only", default="all", help=f"comma list of {', '.join(PARTS)}; clean is always judged")
    judged.add_argument("--limit", type=command.whole, metavar="N", help="judge a sample of N images, spread evenly")
    judged.add_argument("--again", action="store_true", help="judge runs again that have been judged")
    judged.add_argument("--attack-epsilon", type=float, metavar="ε", help="your own attack: radius of the L∞ ball")
    judged.add_argument("--attack-step", type=float, metavar="ρ", help="its step; both are on pixels from 0 to 255")
    judged.add_argument("--attack-steps", type=command.whole, metavar="n", help="its number of steps")
    judged.add_argument(
        "--attack-target", default=DEFAULT_ATTACK["target"], help="random, least_likely or next; default %(default)s"
    )
    judged.add_argument("--attack-start", default=DEFAULT_ATTACK["start"], help="clean or random; default %(default)s")
    judged.add_argument(
        "--attack-seed",
        type=command.whole,
        default=DEFAULT_ATTACK["seed"],
        help="seed of targets and starts; default %(default)s",
    )
    execution = parser.add_argument_group("execution and output")
    execution.add_argument(
        "--batch", type=command.whole, help=f"images per batch; default {Execution.batch}, for detectors {AT_ONCE}"
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
    execution = Execution(workers=arguments.workers, device=arguments.device, progress=True)
    if arguments.batch is not None:
        execution = replace(execution, batch=arguments.batch)
    flat: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    if arguments.checkpoint:
        checkpoint = Checkpoint(path=arguments.checkpoint, official=arguments.official, model=arguments.model)
        name, config = checkpoint.model or checkpoint.path.name, _config(arguments)
        if config.data in BOXES:
            _check_of_detector(arguments, parts, str(checkpoint.path))
            report = detectors.judge_checkpoint(checkpoint, config, _detecting(arguments), arguments.output)
            found = detectors.rows(name, report)
        else:
            _refuse_of_classifier(arguments)
            flat = rows(name, judge_checkpoint(checkpoint, config, conditions, execution, arguments.limit))
    for folder in arguments.runs:
        options = {"again": arguments.again, "note": _note}
        if detectors.trained_here(folder):
            _check_of_detector(arguments, parts, str(folder))
            found += detectors.rows(str(folder), detectors.judge(folder, _detecting(arguments), **options))
        else:
            flat += rows(str(folder), judge(folder, conditions, execution, images=arguments.limit, **options))
    sys.stdout.write(_rendered(flat, found, arguments.format) + "\n")
    return OK


def _config(arguments: argparse.Namespace) -> Config:
    """The config with which a checkpoint is judged."""
    if arguments.recipe is None:
        model = arguments.model or Config.model  # only used for official checkpoints
        return Config(model=model, data=arguments.data or "folder", root=arguments.root, protocol="val-original")
    recipe = load(arguments.recipe)
    chosen = {"data": arguments.data or recipe.data, "root": arguments.root or recipe.root}
    return replace(recipe, **chosen, protocol="val-original", output=None)


def _detecting(arguments: argparse.Namespace) -> detectors.Execution:
    return detectors.Execution(
        at_once=arguments.batch or AT_ONCE,
        workers=arguments.workers,
        device=arguments.device,
        images=arguments.limit,
        progress=True,
    )


def _check_of_detector(arguments: argparse.Namespace, parts: Sequence[str], what: str) -> None:
    """Raise ValueError for options that have no effect on a detector."""
    ignored = [
        f"--attack-{name}" for name in DEFAULT_ATTACK if getattr(arguments, f"attack_{name}") != DEFAULT_ATTACK[name]
    ]
    ignored += [f"--only {arguments.only}"] * (tuple(parts) not in (PARTS, ("clean",)))
    ignored += ["--official"] * arguments.official
    if ignored:
        raise ValueError(
            f"{' and '.join(ignored)} {'have' if ignored[1:] else 'has'} no effect on a detector, and {what} is judged "
            "on boxes; omit it"
        )


def _refuse_of_classifier(arguments: argparse.Namespace) -> None:
    for name in ("recipe", "output"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name} is for the checkpoint of a detector; expected --data {', '.join(BOXES)}")


def _rendered(flat: list[dict[str, Any]], found: list[dict[str, Any]], form: str) -> str:
    if form in ("csv", "json"):
        return text.records([*flat, *found], form)
    return "\n\n".join([render(flat, form)] * bool(flat) + [detectors.render(found, form)] * bool(found))


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _check(arguments: argparse.Namespace) -> None:
    if bool(arguments.runs) == bool(arguments.checkpoint):
        raise ValueError("expected the folders of finished runs, or --checkpoint FILE; got " + _got(arguments))
    if arguments.runs and (ignored := [name for name in SINGLE if getattr(arguments, name) is not None]):
        raise ValueError(f"--{ignored[0]} is for --checkpoint FILE, and runs have their own; omit it")
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
