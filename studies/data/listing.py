"""The image files below the class folders of a part of a data set, train or val."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LAYOUT = "expected ROOT/train/<class>/*.jpg and ROOT/val/<class>/*.jpg, with the same classes in both"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

Place = tuple[int, int]
"""The device and the number of a folder, which are the same through every link."""


@dataclass(frozen=True)
class Listing:
    part: Path
    classes: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """The classes, and the path and the size of their images."""
    problems: list[str] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    """A remark about a file or folder that is not a problem, and its path."""

    def files(self, folder: str, prefix: str, above: frozenset[Place]) -> Iterator[tuple[str, int]]:
        """The images in a folder and its subfolders, also through links, without hidden ones."""
        try:
            above |= {_new_place(folder, above)}
            with os.scandir(folder) as entries:
                for entry in entries:
                    yield from self._entry(entry, prefix, above)
        except OSError as error:
            self.problems.append(f"{folder} cannot be read: {error.strerror}")

    def _entry(self, entry: os.DirEntry[str], prefix: str, above: frozenset[Place]) -> Iterator[tuple[str, int]]:
        image = entry.name.lower().endswith(EXTENSIONS)
        if entry.name.startswith("."):
            if image:
                self.notes.append(("the file is hidden, and ignored", entry.path))
            return
        try:
            found = entry.stat()
        except OSError as error:  # such as a broken link
            self.problems.append(f"{entry.path} cannot be read: {error.strerror}")
            return
        if stat.S_ISDIR(found.st_mode):
            yield from self.files(entry.path, f"{prefix}{entry.name}/", above)
        elif not image:
            self.notes.append(("the file has no name of an image, and is ignored", entry.path))
        elif not stat.S_ISREG(found.st_mode):
            self.problems.append(f"{entry.path} is no regular file; remove it")
        else:
            if not found.st_size:
                self.problems.append(f"{entry.path} is an empty file; replace it or remove it")
            yield prefix + entry.name, found.st_size


def _new_place(folder: str, above: frozenset[Place]) -> Place:
    found = Path(folder).stat()
    if (found.st_dev, found.st_ino) in above:
        raise OSError(0, "it is a link to a folder that contains it; remove it")
    return found.st_dev, found.st_ino


def listing(part: Path) -> Listing:
    """The images of a part, by class and name, and the problems of the layout."""
    found = Listing(part)
    try:
        above = frozenset({_new_place(str(part), frozenset())})
        names = sorted(_class_names(found))
    except OSError as error:
        found.problems.append(f"{part} cannot be read: {error.strerror}")
        return found
    if not names:
        found.problems.append(f"{part} holds no class folders; {LAYOUT}")
    for name in names:
        before = len(found.problems)
        files = found.classes[name] = sorted(found.files(str(part / name), f"{name}/", above))
        if not files and len(found.problems) == before:
            found.problems.append(f"class folder {part / name} holds no images; {LAYOUT}")
        found.notes.extend(_alike([path for path, _ in files], part))
    found.notes.extend(_alike(names, part))
    return found


def _class_names(found: Listing) -> Iterator[str]:
    with os.scandir(found.part) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield entry.name
            elif entry.is_symlink() and not Path(entry.path).exists():
                found.problems.append(f"{entry.path} is a broken link; remove it")
            else:
                found.notes.append(("the file is in no class folder, and is ignored", entry.path))


def _alike(paths: Sequence[str], part: Path) -> Iterator[tuple[str, str]]:
    """Notes about paths that differ only in upper and lower case."""
    counts = Counter(path.lower() for path in paths)
    for path in paths:
        if counts[path.lower()] > 1:
            yield "another name differs only in upper and lower case", str(part / path)


def numbers_in_order_of_text(classes: Sequence[str]) -> bool:
    """Whether the names are numbers whose order as text, such as 10 before 2, is not that of the numbers."""
    return all(map(str.isdecimal, classes)) and list(classes) != sorted(classes, key=int)
