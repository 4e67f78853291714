"""Rows and planned cells as tables that fit the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from saprof.paper.evidence import Printed, printed
from saprof.paper.printed import printed_flops, printed_params
from saprof.quantities import (
    HARDWARE_FLOPS,
    IMAGES,
    LATENCY,
    LEAST_BYTES,
    MACS,
    MEMORY,
    PAPER_FLOPS,
    PARAMS,
    Quantity,
    around,
    digits,
    who_ran,
)
from saprof.records import verdicts
from saprof.records.calibration import Calibration, share
from saprof.records.rows import Row
from saprof.terminal import Column, Table, fitted

PLUS_MINUS = "± is the larger half of the 95 % interval of the median."
"""What an interval in a table means."""


def shown(rows: Sequence[Row], roofs: Calibration | None = None, most: int | None = None) -> list[str]:
    """The tables of networks and operators, at most `most` characters wide (default: the width of the terminal). They
    are without the cells that no backend supports."""
    ran = [row for row in rows if row.status != "unsupported"]
    first = verdicts.firsts(ran)
    tables = [
        table([row for row in ran if row.kind == kind], lambda row: verdicts.note(row, first, roofs), roofs)
        for kind, table in (("model", _networks), ("operator", _operators))
    ]
    return [fitted(table, most) for table in tables if table.columns[0].cells]


def cell_columns(rows: Sequence[Mapping[str, Any]], what: str) -> list[Column]:
    """The columns that identify cells, without those about what computes them. `rows` have the fields of a row as a
    dict."""

    def column(title: str, name: str, common: str, text: Callable[[Any], str] = str) -> Column:
        values = [row.get(name) for row in rows]
        return Column(title, ["" if value is None else text(value) for value in values], 0, common)

    maps = [f"{row['h']}×{row['w']}" if row["h"] else "" for row in rows]
    sizes = [", ".join(f"{row[axis]}" for axis in "rvg" if row.get(axis) is not None) for row in rows]
    others = ("name", "footprint", "h", "w", "mode", "dtype", "n", "device")
    alike = {tuple(row.get(name) for name in others) for row in rows}
    tell_apart = len({(*(row.get(name) for name in others), size) for row, size in zip(rows, sizes, strict=True)})
    return [
        column(what, "name", ""),
        column("footprint", "footprint", "footprint {}"),
        Column("pixels", maps, 0, "{} pixels") if what == "network" else Column("map", maps, 0, "map {}"),
        Column("r, v, g", sizes, 0 if tell_apart > len(alike) else 6, "r, v, g = {}"),
        column("mode", "mode", "{}"),
        column("dtype", "dtype", "{}"),
        column("images", "n", "{} images" if any(row["n"] != 1 for row in rows) else "1 image", digits),
        column("device", "device", "on {}"),
    ]


def latencies(rows: Sequence[Row]) -> Column:
    """The latencies with their intervals."""
    return Column(f"latency {LATENCY.unit}", [_latency(row) for row in rows])


def _latency(row: Row) -> str:
    if row.latency_s is None:
        return ""
    scaled = (None if x is None else LATENCY.in_unit(x) for x in (row.latency_low_s, row.latency_high_s))
    return around(LATENCY.in_unit(row.latency_s), *scaled)


def _networks(rows: Sequence[Row], note: Callable[[Row], str], roofs: Calibration | None) -> Table:
    about = [next(iter(printed(row)), None) for row in rows]
    params = [
        counted(PARAMS, row.params, printed_params, it and it.row.params_M) for row, it in zip(rows, about, strict=True)
    ]
    flops = [
        counted(PAPER_FLOPS, row.flops_paper, printed_flops, it and it.flops_G)
        for row, it in zip(rows, about, strict=True)
    ]
    columns = [
        *cell_columns([vars(row) for row in rows], "network"),
        Column("params M", params, 3),
        Column("FLOPs G (paper)", flops, 1),
        Column("top-1 in paper", [_top1(it) for it in about], 9),
        *_measured(rows, roofs),
        Column("images/s", [IMAGES.text(row.images_per_s) for row in rows], 5),
    ]
    beside = "; ✓ and ✗ compare with the tables of SAN and SASA, whose accuracies are of the set in brackets"
    title = "Networks" + (beside if any(about) else "")
    return Table(columns, title, [note(row) for row in rows], explained=PLUS_MINUS)


def _operators(rows: Sequence[Row], note: Callable[[Row], str], roofs: Calibration | None) -> Table:
    columns = [
        *cell_columns([vars(row) for row in rows], "operator"),
        Column("MMACs", [MACS.text(row.macs) for row in rows], 3),
        Column("least MB", [LEAST_BYTES.text(row.compulsory_bytes) for row in rows], 4),
        *_measured(rows, roofs),
    ]
    return Table(columns, "Operators", [note(row) for row in rows], explained=PLUS_MINUS)


def _measured(rows: Sequence[Row], roofs: Calibration | None) -> list[Column]:
    reached = [share(row, roofs) if roofs and row.latency_s else None for row in rows]
    return [
        Column("ran on", [row.ran_on for row in rows], 0, "{}"),
        latencies(rows),
        Column("% of roof", ["" if part is None else digits(100 * part) for part in reached], 2),
        Column("peak MB", [MEMORY.text(row.peak_bytes) for row in rows], 2),
    ]


def _top1(about: Printed | None) -> str:
    return f"{about.row.top1} ({about.evaluation_set})" if about else ""


def counted(quantity: Quantity, count: int | None, rounded: Callable[[int], Decimal], in_paper: float | None) -> str:
    """A count; if the paper prints it, rounded as there, and with a mark: `10.5 ✓`, or `10.6 ✗ 10.5` if they differ."""
    ours, agrees = as_printed(quantity, count, rounded, in_paper)
    return ours + {None: "", True: " ✓", False: f" ✗ {in_paper}"}[agrees]


def as_printed(
    quantity: Quantity, count: int | None, rounded: Callable[[int], Decimal], in_paper: float | None
) -> tuple[str, bool | None]:
    """A count as text, rounded as in the paper if that prints it; and whether the two agree, None if it does not."""
    if count is None or in_paper is None:
        return quantity.text(count), None
    ours = rounded(count)
    return str(ours), ours == Decimal(str(in_paper))


def planned(cells: Sequence[Mapping[str, Any]], most: int | None = None) -> str:
    """Cells that were not measured, with their declared costs. They have the fields of a row that are known before."""
    kinds = (("model", "network", "Networks"), ("operator", "operator", "Operators"))
    tables = [_planned([cell for cell in cells if cell["kind"] == kind], what, title) for kind, what, title in kinds]
    return "\n\n".join(fitted(table, most) for table in tables if table.columns[0].cells)


def _planned(cells: Sequence[Mapping[str, Any]], what: str, title: str) -> Table:
    costs = ((MACS, "MMACs"), (HARDWARE_FLOPS, "MFLOPs (hardware)"), (LEAST_BYTES, "least MB"))
    ways = [who_ran(cell["backend"], cell.get("attention"), cell["compiled"]) for cell in cells]
    columns = [
        *cell_columns(cells, what),
        Column("backend", ways, 0, "backend {}"),
        *(
            Column(head, [quantity.text(cell.get(quantity.column)) for cell in cells], rank)
            for rank, (quantity, head) in enumerate(costs, start=1)
        ),
    ]
    return Table(columns, title)
