"""Rows for people: networks beside what SAN's tables print, then operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from decimal import Decimal

from saprof import text
from saprof.paper.evidence import printed
from saprof.paper.printed import printed_flops, printed_params
from saprof.records.calibration import Calibration, above_roof, share
from saprof.records.rows import Row

NETWORK_COLUMNS = (
    "network", "footprint", "params M", "paper", "FLOPs G (paper)", "paper", "top-1 in paper",
    "mode", "ran on", "latency ms", "95 % interval", "% of roof", "peak MB", "note",
)  # fmt: skip
OPERATOR_COLUMNS = (
    "operator", "footprint", "map", "MMACs", "least MB",
    "mode", "ran on", "latency ms", "95 % interval", "% of roof", "peak MB", "note",
)  # fmt: skip


def summarise(rows: Sequence[Row], form: str, roofs: Calibration | None = None) -> str:
    """The rows as text: `tables`, and why some were not run; `csv` and `json` hold all.

    The share of the roof is that of `roofs`, and empty without them.
    """
    if form in ("csv", "json"):
        return text.records([asdict(row) | {"roof_share": roofs and share(row, roofs)} for row in rows], form)
    parts = [part for title, header, body in tables(rows, roofs) for part in (title, text.align(header, body, form))]
    left = Counter((row.reason or "").partition(": ")[2] for row in rows if row.status == "unsupported")
    if left:
        parts += ["\n".join(f"not run, {count} of {len(rows)} cells: {reason}" for reason, count in left.items())]
    if roofs and roofs.contended:
        parts += ["the roofs are too low, since other processes ran while they were measured"]
    return "\n\n".join(parts) + "\n"


def tables(rows: Sequence[Row], roofs: Calibration | None = None) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, header and body of each table, networks and operators; what no backend can run is left out."""
    ran = [row for row in rows if row.status != "unsupported"]
    networks = [_network_line(row, roofs) for row in ran if row.kind == "model"]
    operators = [_operator_line(row, roofs) for row in ran if row.kind == "operator"]
    title = "Networks, beside SAN Tables 7, 4 and 3 (accuracy as the paper prints it, and ImageNet's set)"
    found = [(title, NETWORK_COLUMNS, networks), ("Operators", OPERATOR_COLUMNS, operators)]
    return [table for table in found if table[2]]


def _network_line(row: Row, roofs: Calibration | None) -> list[str]:
    about = next(iter(printed(row)), None)
    return [
        row.name,
        row.footprint,
        *_counted(row.params, printed_params, about and about.row.params_M),
        *_counted(row.flops_paper, printed_flops, about and about.row.flops_G),
        f"{about.row.top1} {about.evaluation_set}" if about else "",
        *_measured(row, roofs),
    ]


def _operator_line(row: Row, roofs: Calibration | None) -> list[str]:
    macs, least = (figure((count or 0) / 1e6) for count in (row.macs, row.compulsory_bytes))
    return [row.name, row.footprint, f"{row.n}×{row.h}×{row.w}", macs, least, *_measured(row, roofs)]


def _counted(count: int | None, rounded: Callable[[int], Decimal], printed: float | None) -> tuple[str, str]:
    """A figure as the paper rounds it, and the printed one with a mark."""
    if count is None:
        return "", ""
    ours = rounded(count)
    if printed is None:
        return str(ours), ""
    return str(ours), f"{printed} {'✓' if ours == Decimal(str(printed)) else '✗'}"


def _measured(row: Row, roofs: Calibration | None) -> tuple[str, ...]:
    """Mode, who ran, latency, its interval, its share of the roof, peak memory, and what else must be said."""
    ran = row.backend + (" fused" if row.attention == "fused" else "") + ("+compile" if row.compiled else "")
    if row.latency_s is None:
        return row.mode, ran, "", "", "", "", f"{row.status}: {row.reason}"
    reached = share(row, roofs) if roofs else None
    notes = [] if row.status == "ok" else [": ".join(filter(None, [row.status, row.reason]))]
    if roofs and above_roof(row, roofs):
        notes.append("measurement error: faster than the roofs allow")
    if row.ratio is not None:
        notes.append(f"{row.verdict}: {row.ratio:.2f}× [{row.ratio_low:.2f}, {row.ratio_high:.2f}]")
    peak = "" if row.peak_bytes is None else figure(row.peak_bytes / 1e6)
    low, high = ("" if x is None else figure(1e3 * x) for x in (row.latency_low_s, row.latency_high_s))
    interval = f"{low} – {high}" if low and high else ""
    roof = "" if reached is None else figure(100 * reached)
    return row.mode, ran, figure(1e3 * row.latency_s), interval, roof, peak, ", ".join(notes)


def figure(value: float) -> str:
    """Three significant digits, without an exponent above a thousandth."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
