"""Which training run stands for each printed row, and which row it is compared with.

The printed figures are in `saprof.paper`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from saprof.paper.printed import PaperRow, paper, rows
from saprof.text import unknown
from studies.config import Config
from studies.reproduction.miniatures import is_default, map_note
from studies.reproduction.study import Study

ROBUSTNESS = ("9", "10")
"""Tables that judge the networks of Table 3 on rotated and attacked images."""
TABLES = (*(name for name in paper() if name.isdigit()), *ROBUSTNESS, "sec5.3")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row of a table, and its training run."""

    table: str
    row: PaperRow
    config: Config
    """Without seed and folder."""
    base: int | None
    """The number of the row of the same table that it is compared with."""
    note: str = ""

    @property
    def key(self) -> str:
        """Rows with the same key are the same network."""
        return self.config.fingerprint()


def table_name(table: str) -> str:
    """The name of a table on the command line and in file names."""
    return f"table{table}" if table.isdigit() else table


def cells(table: str, study: Study) -> tuple[Cell, ...]:
    """The rows of a table. Raises ValueError for a table that is not in TABLES."""
    if table not in TABLES:
        raise ValueError(unknown("table", table, TABLES))
    rows = printed(table)
    return tuple(
        Cell(
            table=table,
            row=row,
            config=study.config(row, protocol(table)),
            base=base,
            note=map_note(row.model, row.overrides, study.data),
        )
        for row, base in zip(rows, bases(rows), strict=True)
    )


def printed(table: str) -> tuple[PaperRow, ...]:
    """The printed rows of a table. Tables 9 and 10 have the rows of Table 3; Sec. 5.3 also has the row of Table 4 that
    it is compared with."""
    if table in ROBUSTNESS:
        return rows("3")
    if table == "sec5.3":
        (default,) = (row for row in rows("4") if (row.family, _is_default(row)) == ("pairwise", True))
        return replace(default, setting=None), *rows(table)
    return rows(table)


def protocol(table: str) -> str:
    """The protocol of a table, which decides the images it is judged on (SAN Sec. 5.1)."""
    return "val-original" if table in ("3", *ROBUSTNESS) else "val-split"


def bases(rows: Sequence[PaperRow]) -> list[int | None]:
    """For each row the number of the row it is compared with.

    A variant is compared with its family's default in the table, a default with the convolutional network above it,
    and the network of Sec. 5.3 with the pairwise default.
    """
    defaults = {row.family: number for number, row in enumerate(rows) if _is_default(row)}
    found: list[int | None] = []
    convolution = None
    for number, row in enumerate(rows):
        if row.family == "convolution":
            if convolution is None or rows[convolution].network != row.network:
                convolution = number
            found.append(None)
        elif row.family == "stand_alone":
            found.append(defaults["pairwise"])
        else:
            found.append(convolution if _is_default(row) else defaults[row.family])
    return found


def _is_default(row: PaperRow) -> bool:
    return is_default(row.model, row.overrides)


def unique(every: Iterable[Cell]) -> list[Cell]:
    """The first cell of every network."""
    return list({cell.key: cell for cell in reversed(list(every))}.values())[::-1]
