"""Which training run stands for each printed row, and which row it is compared with.

The printed figures are in `saprof.paper`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from saprof.paper.printed import PaperRow, paper, rows
from saprof.text import unknown
from studies.config import Config
from studies.reproduction import sasa_miniatures
from studies.reproduction.miniatures import SIDES, is_default, map_note
from studies.reproduction.study import Study, group

ROBUSTNESS = ("9", "10")
"""SAN's tables that judge the networks of its Table 3 on rotated and attacked images."""
TABLES = {
    "san": (*(name for name in paper("san") if name.isdigit()), *ROBUSTNESS, "sec5.3"),
    "sasa": tuple(name for name, table in paper("sasa").items() if table.evaluation_set),
}
"""The tables of accuracies of classifiers, by paper."""
EARLY = {"1": "4", "1, 2": "3, 4", "1, 2, 3": "2, 3, 4"}
"""Rows of SASA Table 3 with attention in the early stages, and the rows with as many late ones that they are compared
with. The paper claims that attention is worth more in the late ones."""


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
    paper: str = "san"
    group: str = ""
    """The networks that share a learning rate with this one."""

    @property
    def key(self) -> str:
        """Rows with the same key are the same network."""
        return self.config.fingerprint()


def table_name(table: str) -> str:
    """The name of a table on the command line and in file names."""
    return f"table{table}" if table.isdigit() else table


def cells(table: str, study: Study) -> tuple[Cell, ...]:
    """The rows of a table of the study's paper. Raises ValueError for a table that is not in TABLES."""
    of = study.paper
    if table not in TABLES[of]:
        raise ValueError(unknown("table", table, TABLES[of]))
    rows, reduced = printed(table, of), study.reduced(table)
    configs = [study.config(row, protocol(table, of), reduced) for row in rows]
    return tuple(
        Cell(
            table=table,
            row=row,
            config=config,
            base=base,
            note=_note(row, config, study),
            paper=of,
            group=group(row.family, reduced),
        )
        for row, config, base in zip(rows, configs, bases(rows, table, of), strict=True)
    )


def _note(row: PaperRow, config: Config, study: Study) -> str:
    if study.paper == "sasa":
        return "" if study.full else sasa_miniatures.map_note(config.options, SIDES[study.data])
    return map_note(row.model, row.overrides, study.data)


def printed(table: str, of: str = "san") -> tuple[PaperRow, ...]:
    """The printed rows of a table. SAN's Tables 9 and 10 have the rows of its Table 3; its Sec. 5.3 also has the row of
    Table 4 that it is compared with."""
    if of == "san" and table in ROBUSTNESS:
        return rows("3")
    if of == "san" and table == "sec5.3":
        (default,) = (row for row in rows("4") if (row.family, _is_default(row)) == ("pairwise", True))
        return replace(default, setting=None), *rows(table)
    return rows(table, of)


def protocol(table: str, of: str = "san") -> str:
    """The protocol of a table, which decides the images it is judged on: those that were held out of the training set,
    or those that the paper tests on (SAN Sec. 5.1; SASA's two sets)."""
    held_out = ("val-split", "validation")
    printed_set = paper(of)["3" if of == "san" and table in ROBUSTNESS else table].evaluation_set
    return "val-split" if printed_set.split()[0] in held_out else "val-original"


def bases(rows: Sequence[PaperRow], table: str = "", of: str = "san") -> list[int | None]:
    """For each row the number of the row it is compared with."""
    return _bases_of_sasa(rows, table) if of == "sasa" else _bases_of_san(rows)


def _bases_of_sasa(rows: Sequence[PaperRow], table: str) -> list[int | None]:
    """In Table 1 attention is compared with the convolutional network of its depth. In Table 3 it is compared with no
    attention, and early stages with as many late ones. In all other tables the variants are compared with the paper's
    network."""
    if table == "1":
        convolutions = {row.network: number for number, row in enumerate(rows) if row.family == "convolution"}
        return [None if row.family == "convolution" else convolutions[row.network] for row in rows]
    if table == "3":
        places = {row.setting: number for number, row in enumerate(rows)}
        return [None if row.setting == "none" else places[EARLY.get(str(row.setting), "none")] for row in rows]
    (default,) = (number for number, row in enumerate(rows) if not row.overrides)
    return [None if number == default else default for number in range(len(rows))]


def _bases_of_san(rows: Sequence[PaperRow]) -> list[int | None]:
    """A variant is compared with its family's default in the table, a default with the convolutional network above it,
    and the network of Sec. 5.3 with the pairwise default."""
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
