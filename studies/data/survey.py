"""What there is of a data set on the disk, whole or not: what `load` refuses at its first fault, `doctor` lists."""

from __future__ import annotations

from dataclasses import dataclass

from studies.data import Images
from studies.failures import BadData


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found, and a sentence for each thing that is wrong with it."""

    classes: tuple[str, ...]
    train: Images
    test: Images
    problems: tuple[str, ...]

    def checked(self) -> Survey:
        """The same; BadData if there is a problem."""
        if self.problems:
            more = len(self.problems) - 1
            hint = f" ({more} more, which python -m studies.doctor names)" if more else ""
            raise BadData(self.problems[0] + hint)
        return self
