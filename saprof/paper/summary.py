"""Rows as text: networks beside the printed figures, then operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from decimal import Decimal

from saprof import text
from saprof.paper.evidence import Printed, printed
from saprof.paper.printed import printed_flops, printed_params
from saprof.paper.shown import as_printed, shown
from saprof.quantities import IMAGES, LATENCY, LEAST_BYTES, MACS, MEMORY, PAPER_FLOPS, PARAMS, Quantity, digits
from saprof.records import verdicts
from saprof.records.calibration import Calibration, share
from saprof.records.rows import Row
from saprof.terminal import paragraphs

NETWORK_COLUMNS = (
    "network", "footprint", "params M", "paper", "FLOPs G (paper)", "paper", "top-1 in paper",
    "mode", "ran on", "latency ms", "95 % interval", "images/s", "% of roof", "peak MB", "note",
)  # fmt: skip
OPERATOR_COLUMNS = (
    "operator", "footprint", "map", "MMACs", "least MB",
    "mode", "ran on", "latency ms", "95 % interval", "% of roof", "peak MB", "note",
)  # fmt: skip


def summarise(rows: Sequence[Row], form: str, roofs: Calibration | None = None) -> str:
    """The rows as text: `tables`, and the reasons why cells did not run; `csv` and `json` have all rows.

    The share of the roof needs `roofs`, and is empty without them.
    """
    if form in ("csv", "json"):
        return text.records([asdict(row) | {"roof_share": roofs and share(row, roofs)} for row in rows], form)
    if form == "table":
        parts = shown(rows, roofs)
    else:
        parts = [
            part for title, header, body in tables(rows, roofs) for part in (title, text.align(header, body, form))
        ]
    left = Counter((row.reason or "").partition(": ")[2] for row in rows if row.status == "unsupported")
    below = [f"not run, {count} of {len(rows)} cells: {reason}" for reason, count in left.items()]
    if roofs and (warning := roofs.warning(row.dtype for row in rows)):
        below.append(warning)
    if below:
        parts.append("\n".join(below) if form == "md" else paragraphs("\n".join(below)))
    return "\n\n".join(parts) + "\n"


def tables(rows: Sequence[Row], roofs: Calibration | None = None) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, header and body of the tables of networks and operators, without the cells that no backend supports."""
    ran = [row for row in rows if row.status != "unsupported"]
    first = verdicts.firsts(ran)
    noted = [(row, verdicts.note(row, first, roofs)) for row in ran]
    networks = [_network_line(row, note, roofs) for row, note in noted if row.kind == "model"]
    operators = [_operator_line(row, note, roofs) for row, note in noted if row.kind == "operator"]
    found = [_networks(networks), ("Operators", OPERATOR_COLUMNS, operators)]
    return [table for table in found if table[2]]


def _networks(lines: list[list[str]]) -> tuple[str, Sequence[str], list[list[str]]]:
    """The table of networks. It has the columns of the paper if one of the networks is printed there."""
    paper = [index for index, title in enumerate(NETWORK_COLUMNS) if title in ("paper", "top-1 in paper")]
    if any(line[index] for line in lines for index in paper):
        title = "Networks, beside the tables of SAN and SASA (accuracy as printed, and ImageNet's set)"
        return title, NETWORK_COLUMNS, lines
    kept = [index for index in range(len(NETWORK_COLUMNS)) if index not in paper]
    return "Networks", [NETWORK_COLUMNS[index] for index in kept], [[line[index] for index in kept] for line in lines]


def _network_line(row: Row, note: str, roofs: Calibration | None) -> list[str]:
    about = next(iter(printed(row)), None)
    measured = _measured(row, note, roofs)
    return [
        row.name,
        row.footprint,
        *beside_paper(row.params, row.flops_paper, about),
        *measured[:4],
        IMAGES.text(row.images_per_s),
        *measured[4:],
    ]


def _operator_line(row: Row, note: str, roofs: Calibration | None) -> list[str]:
    macs, least = MACS.text(row.macs or 0), LEAST_BYTES.text(row.compulsory_bytes or 0)
    return [row.name, row.footprint, f"{row.n}×{row.h}×{row.w}", macs, least, *_measured(row, note, roofs)]


def beside_paper(params: int | None, flops: int | None, about: Printed | None) -> list[str]:
    """Parameters and FLOPs (`paper`) of a network, each with the printed figure and a mark; the printed accuracy."""
    return [
        *_counted(PARAMS, params, printed_params, about and about.row.params_M),
        *_counted(PAPER_FLOPS, flops, printed_flops, about and about.flops_G),
        f"{about.row.top1} {about.evaluation_set}" if about else "",
    ]


def _counted(
    quantity: Quantity, count: int | None, rounded: Callable[[int], Decimal], printed: float | None
) -> tuple[str, str]:
    """A count; if the paper prints it, rounded as there, and the printed one with a mark."""
    ours, agrees = as_printed(quantity, count, rounded, printed)
    return ours, "" if agrees is None else f"{printed} {'✓' if agrees else '✗'}"


def _measured(row: Row, note: str, roofs: Calibration | None) -> tuple[str, ...]:
    """Mode, what ran, latency, its interval, its share of the roof, peak memory, and the note."""
    if row.latency_s is None:
        return row.mode, row.ran_on, "", "", "", "", note
    reached = share(row, roofs) if roofs else None
    low, high = LATENCY.text(row.latency_low_s), LATENCY.text(row.latency_high_s)
    interval = f"{low} – {high}" if low and high else ""
    roof = "" if reached is None else digits(100 * reached)
    return row.mode, row.ran_on, LATENCY.text(row.latency_s), interval, roof, MEMORY.text(row.peak_bytes), note
