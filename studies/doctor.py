"""Check that the data of a study are present, complete and readable: `python -m studies.doctor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from saprof import command, text
from studies.data import MODULES
from studies.failures import BadData

if TYPE_CHECKING:
    from studies.data import Images
    from studies.data.survey import Survey

SAMPLE = 64
"""Images of each part that are opened without --all."""
FEW = 20
"""The largest number of classes that are listed one by one."""


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    found = _survey(arguments.data, arguments.root)
    parts = {"train": found.train, "validation": found.test}
    print(_counts(found.classes, parts))
    problems = list(found.problems)
    if arguments.data == "folder":
        problems += _torchvision()
    chosen = [(images, index) for images in parts.values() for index in _sample(len(images.labels), arguments.all)]
    broken = [problem for problem in _opened(chosen) if problem]
    print(f"\nopened {len(chosen)} images, {len(chosen) - len(broken)} of them readable")
    problems += broken
    for problem in problems:
        print(f"PROBLEM {problem}", file=sys.stderr)
    if not problems:
        print("all is well")
    return BadData.code if problems else command.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m studies.doctor",
        description="Check the data of a study: count the images of each class, and list what is missing or damaged.",
        epilog="Exit codes: 0 no problem, 2 wrong usage, 3 missing or damaged data, which are listed.",
    )
    parser.add_argument("--data", default="folder", choices=MODULES, help="the data set (default folder)")
    parser.add_argument("--root", type=Path, help="folder of its files")
    parser.add_argument(
        "--all", action="store_true", help=f"open every image, and not only {SAMPLE} each of train and validation"
    )
    return parser


def _survey(data: str, root: Path | None) -> Survey:
    from studies.config import Config
    from studies.data import cifar, digits, folder
    from studies.data.survey import Survey

    if data in ("folder", "cifar10"):
        return {"folder": folder, "cifar10": cifar}[data].survey(root)
    dataset = digits.load(Config(data=data))
    return Survey(classes=dataset.classes, train=dataset.train, test=dataset.test, problems=())


def _counts(classes: Sequence[str], parts: dict[str, Images]) -> str:
    """A table of classes, images, and images per class."""
    counts = {part: images.labels.bincount(minlength=len(classes)).tolist() for part, images in parts.items()}
    rows = [
        (part, str(sum(count)), _extreme(min, classes, count), _extreme(max, classes, count))
        for part, count in counts.items()
    ]
    table = text.align(("part", "images", "smallest class", "largest class"), rows)
    if 0 < len(classes) <= FEW:
        each = [(name, *map(str, count)) for name, *count in zip(classes, *counts.values(), strict=True)]
        table += "\n\n" + text.align(("class", *counts), each)
    return f"{len(classes)} classes\n\n{table}"


def _extreme(which: Callable[..., int | None], classes: Sequence[str], counts: Sequence[int]) -> str:
    number = which(range(len(classes)), key=counts.__getitem__, default=None)
    return "" if number is None else f"{counts[number]} ({classes[number]})"


def _torchvision() -> list[str]:
    """The problems of torchvision, which transforms the images of a folder."""
    from studies.data import torchvision

    try:
        version = torchvision.load().__version__
    except ValueError as error:
        return [str(error)]
    lacking = ", without its compiled operators, which are for another torch and are not needed"
    print(f"\ntorchvision {version}{lacking if torchvision.declared() else ''}")
    return []


def _sample(count: int, every: bool) -> Iterable[int]:
    """All indices, or SAMPLE evenly spread ones."""
    return range(count) if every or count <= SAMPLE else [k * count // SAMPLE for k in range(SAMPLE)]


def _opened(chosen: Sequence[tuple[Images, int]]) -> Iterator[str]:
    """The problem of each image, or an empty string; several threads decode at the same time."""
    from tqdm import tqdm

    with ThreadPoolExecutor() as threads, tqdm(total=len(chosen), unit="image", disable=None) as bar:
        for start in range(0, len(chosen), 1024):
            for problem in threads.map(_problem, chosen[start : start + 1024]):
                bar.update()
                yield problem


def _problem(image: tuple[Images, int]) -> str:
    images, index = image
    try:
        images.read(index)
    except BadData as error:
        return str(error)
    return ""


if __name__ == "__main__":
    command.run(main)
