"""The images of a data set on the disk, and all problems found in them. `load` raises the first problem; the command
studies.doctor lists all."""

from __future__ import annotations

from dataclasses import dataclass

from studies.data import Images
from studies.failures import BadData


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The images that were found, a sentence for each problem, and notes."""

    classes: tuple[str, ...]
    train: Images
    test: Images
    problems: tuple[str, ...]
    notes: tuple[tuple[str, str], ...] = ()
    """Remarks about files or folders that are not problems, each with a path, or with an empty string."""

    def checked(self) -> Survey:
        """This survey. Raises BadData if there is a problem."""
        if self.problems:
            more = len(self.problems) - 1
            hint = f" ({more} more, which python -m studies.doctor names)" if more else ""
            raise BadData(self.problems[0] + hint)
        return self
