"""`python -m studies.doctor`: are the data of a study there, whole and readable?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from saprof import command, text
from studies.failures import BadData

if TYPE_CHECKING:
    from studies.data import Images
    from studies.data.survey import Survey

DATA = ("digits", "digits16", "folder", "cifar10")
SAMPLE = 64
"""Images of a part that are opened if not all are."""
FEW = 20
"""Classes that are listed one by one."""


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
        description="Look through the data of a study: what there is of each class, and what is missing or broken.",
        epilog="Exit code 0: all is well; 2: usage; 3: something is missing or broken, and named.",
    )
    parser.add_argument("--data", default="folder", choices=DATA, help="the data set (default folder)")
    parser.add_argument("--root", type=Path, help="where its files are")
    parser.add_argument(
        "--all", action="store_true", help=f"open every image, not {SAMPLE} each of train and validation"
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
    """What keeps the images of a folder from being transformed."""
    from studies.data import torchvision

    try:
        version = torchvision.load().__version__
    except ValueError as error:
        return [str(error)]
    lacking = ", less its compiled operators, which are for another torch and are not needed"
    print(f"\ntorchvision {version}{lacking if torchvision.declared() else ''}")
    return []


def _sample(count: int, every: bool) -> Iterable[int]:
    """All indices, or some at even distances."""
    return range(count) if every or count <= SAMPLE else [k * count // SAMPLE for k in range(SAMPLE)]


def _opened(chosen: Sequence[tuple[Images, int]]) -> Iterator[str]:
    """What is wrong with each of the images, or nothing; by several threads, which decode at the same time."""
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
