"""Check that the data of a study are present, complete and readable: `python -m studies.doctor`.

    python -m studies.doctor --root /data/imagenet --all
    python -m studies.doctor --recipe san_imagenet --model package.module:function --root /data/imagenet

With options of studies.train, as in the second line, it also checks everything that this run requires before its first
step.
Exit codes: 0 no problem, 2 wrong usage, 3 problems, which are listed.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from saprof import command
from saprof.terminal import laid_out
from studies.config import Config, config_of, refuse_empty_paths
from studies.config import parser as config_parser
from studies.failures import BadData

if TYPE_CHECKING:
    from studies.data import Images
    from studies.data.survey import Survey

SAMPLE = 64
"""Images of each part that are opened without --all."""
FEW = 20
"""The largest number of classes that are listed one by one."""


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    given = sys.argv[1:] if argv is None else list(argv)
    refuse_empty_paths(given)
    arguments = parser.parse_args(given)
    config = config_of(arguments)
    found = _survey(config)
    parts = {"train": found.train, "validation": found.test}
    print(_counts(found.classes, parts))
    problems = list(found.problems)
    if config.data == "folder":
        problems += _torchvision()
    chosen = [(images, index) for images in parts.values() for index in _sample(len(images), arguments.all)]
    opened = list(_opened(chosen))
    broken = [problem for problem, _ in opened if problem]
    print(f"\nopened {len(chosen)} images, {len(chosen) - len(broken)} of them readable")
    problems += broken
    if not problems:
        problems += _unmet(config, found)
    notes = [*found.notes, *(note for _, some in opened for note in some)]
    print(_noted(notes), end="")
    for problem in problems:
        print(f"PROBLEM {_readable(problem)}", file=sys.stderr)
    if not problems:
        print("no problem was found; see the notes" if notes else "all is well")
    return BadData.code if problems else command.OK


def _parser() -> Any:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = config_parser("python -m studies.doctor", f"{description}\n\n{rest}")
    parser.set_defaults(data="folder")
    parser.add_argument(
        "--all", action="store_true", help=f"open every image, and not only {SAMPLE} each of train and validation"
    )
    return parser


def _survey(config: Config) -> Survey:
    from studies.data import cifar, folder, idx, load
    from studies.data.survey import Survey
    from studies.detection import scenes

    if config.data == "coco":
        return scenes.survey(config)
    if config.data in ("folder", "cifar10"):
        return {"folder": folder, "cifar10": cifar}[config.data].survey(config.root)
    if config.data in idx.SOURCES:
        return idx.survey(config)
    dataset = load(config)
    return Survey(classes=dataset.classes, train=dataset.train, test=dataset.test, problems=())


def _unmet(config: Config, found: Survey) -> list[str]:
    """The problem of the data, or of the run that the options describe; an empty list if there is none."""
    import torch

    from studies.data import load
    from studies.detection.scenes import SceneImages
    from studies.training.classification import check_classes
    from studies.training.distributed import World, device
    from studies.training.requirements import prepared

    try:
        if not isinstance(found.train, SceneImages):
            check_classes(config, found.classes, found.train, found.test)
        if config != Config(data=config.data, root=config.root):
            device(config.device)
            prepared(config, load(config), World(0, 1, torch.device("cpu")))
    except ValueError as error:
        return [str(error)]
    return []


def _counts(classes: Sequence[str], parts: dict[str, Images]) -> str:
    """A table of classes, images, and images per class."""
    counts = {part: _of_classes(images, len(classes)) for part, images in parts.items()}
    rows = [
        (part, f"{len(parts[part]):,}", f"{sum(count):,}", _extreme(min, classes, count), _extreme(max, classes, count))
        for part, count in counts.items()
    ]
    columns = ("part", "images", "objects", "smallest class", "largest class")
    if all(len(parts[part]) == sum(count) for part, count in counts.items()):
        columns, rows = (columns[:2] + columns[3:]), [row[:2] + row[3:] for row in rows]
    table = laid_out(columns, rows, "table")
    if 0 < len(classes) <= FEW:
        each = [(name, *map(str, count)) for name, *count in zip(classes, *counts.values(), strict=True)]
        table += "\n\n" + laid_out(("class", *counts), each, "table")
    return f"{len(classes)} classes\n\n{table}"


def _of_classes(images: Images, classes: int) -> list[int]:
    """The number of images of each class, or of objects if the images have boxes."""
    from studies.detection.scenes import SceneImages

    return (images.counts() if isinstance(images, SceneImages) else images.labels.bincount(minlength=classes)).tolist()


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


Note = tuple[str, str]
"""A remark about a file that is not a problem, and its path."""


def _opened(chosen: Sequence[tuple[Images, int]]) -> Iterator[tuple[str, list[Note]]]:
    """The problem of each image, or an empty string, and notes; several threads decode at the same time."""
    from tqdm import tqdm

    with _named_warnings(), ThreadPoolExecutor() as threads, tqdm(total=len(chosen), unit="image", disable=None) as bar:
        for start in range(0, len(chosen), 1024):
            for found in threads.map(_examined, chosen[start : start + 1024]):
                bar.update()
                yield found


class _Heard(threading.local):
    """The warnings of this thread."""

    def __init__(self) -> None:
        self.sentences: list[str] = []


_heard = _Heard()


@contextmanager
def _named_warnings() -> Iterator[None]:
    """Collect the warnings of each thread. They do not name the file, but the thread that reads it knows its path."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: _heard.sentences.append(" ".join(str(message).split()))
        yield


def _examined(image: tuple[Images, int]) -> tuple[str, list[Note]]:
    from studies.data.folder import Folder
    from studies.data.pictures import remarks

    images, index = image
    _heard.sentences.clear()
    try:
        images.read(index)
    except BadData as error:
        return str(error), []
    if not isinstance(images, Folder):
        return "", []
    path = images.path(index)
    said = [*remarks(path), *(f"PIL warns: {sentence}" for sentence in _heard.sentences)]
    return "", [(sentence, str(path)) for sentence in dict.fromkeys(said)]


def _noted(notes: Sequence[Note]) -> str:
    """The notes by what they say, each with the number of files and their paths."""
    grouped: dict[str, list[str]] = {}
    for sentence, path in notes:
        grouped.setdefault(sentence, []).append(path)
    lines = []
    for sentence, paths in grouped.items():
        count = f": {len(paths)}" if any(paths) else ""
        lines += ["", f"NOTE {_readable(sentence)}{count}", *(f"  {_readable(path)}" for path in paths if path)]
    return "\n".join([*lines, "", ""]) if lines else ""


def _readable(text: str) -> str:
    """The text with escapes for bytes of file names that are not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


if __name__ == "__main__":
    command.run(main)
