"""Rows for people: networks beside what SAN Table 7 prints, then operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from decimal import Decimal

from saprof import text
from saprof.footprint import Footprint
from saprof.results import Row
from saprof.tables import PaperRow, printed_flops, printed_params, table7_row

NETWORK_COLUMNS = (
    "network", "footprint", "params M", "paper", "FLOPs G (paper)", "paper", "top-1 in paper",
    "mode", "ran on", "latency ms", "95 % interval", "peak MB", "note",
)  # fmt: skip
OPERATOR_COLUMNS = (
    "operator", "footprint", "map", "MMACs", "least MB",
    "mode", "ran on", "latency ms", "95 % interval", "peak MB", "note",
)  # fmt: skip


def summarise(rows: Sequence[Row], form: str) -> str:
    """The rows as text: networks beside Table 7, operators, and why some were not run; `csv` and `json` hold all."""
    if form in ("csv", "json"):
        return text.records([asdict(row) for row in rows], form)
    ran = [row for row in rows if row.status != "unsupported"]
    networks, operators = ([row for row in ran if row.kind == kind] for kind in ("model", "operator"))
    parts = []
    if networks:
        parts += ["Networks, beside SAN Table 7 (accuracy as the paper prints it, ImageNet val-split)"]
        parts += [text.align(NETWORK_COLUMNS, [_network_line(row) for row in networks], form)]
    if operators:
        parts += ["Operators"]
        parts += [text.align(OPERATOR_COLUMNS, [_operator_line(row) for row in operators], form)]
    left = Counter((row.reason or "").partition(": ")[2] for row in rows if row.status == "unsupported")
    if left:
        parts += ["\n".join(f"not run, {count} of {len(rows)} cells: {reason}" for reason, count in left.items())]
    return "\n\n".join(parts) + "\n"


def _network_line(row: Row) -> list[str]:
    printed = _printed(row)
    return [
        row.name,
        row.footprint,
        *_counted(row.params, printed_params, printed and printed.params_M),
        *_counted(row.flops_paper, printed_flops, printed and printed.flops_G),
        f"{printed.top1}" if printed else "",
        *_measured(row),
    ]


def _operator_line(row: Row) -> list[str]:
    macs, least = (figure((count or 0) / 1e6) for count in (row.macs, row.compulsory_bytes))
    return [row.name, row.footprint, f"{row.n}×{row.h}×{row.w}", macs, least, *_measured(row)]


def _printed(row: Row) -> PaperRow | None:
    """The row of Table 7 about this network, if there is one."""
    if (row.h, row.w) != (224, 224) or row.name not in _TABLE7:
        return None
    family, default = _TABLE7[row.name]
    sizes = {str(Footprint.square(size)): size for size in range(3, 12, 2)} | {"default": default}
    return table7_row(family, sizes.get(row.footprint, 0))


_TABLE7 = {"resnet26": ("convolution", 3), "san10_pairwise": ("pairwise", 7), "san10_patchwise": ("patchwise", 7)}
"""Family and default footprint of the networks of Table 7."""


def _counted(count: int | None, rounded: Callable[[int], Decimal], printed: float | None) -> tuple[str, str]:
    """A figure as the paper rounds it, and the printed one with a mark."""
    if count is None:
        return "", ""
    ours = rounded(count)
    if printed is None:
        return str(ours), ""
    return str(ours), f"{printed} {'✓' if ours == Decimal(str(printed)) else '✗'}"


def _measured(row: Row) -> tuple[str, ...]:
    """Mode, who ran, latency, its interval, peak memory, and what else must be said."""
    ran = row.backend + (" fused" if row.attention == "fused" else "") + ("+compile" if row.compiled else "")
    if row.latency_s is None or row.latency_low_s is None or row.latency_high_s is None:
        return row.mode, ran, "", "", "", f"{row.status}: {row.reason}"
    notes = [] if row.status == "ok" else [row.status]
    if row.ratio is not None:
        notes.append(f"{row.verdict}: {row.ratio:.2f}× [{row.ratio_low:.2f}, {row.ratio_high:.2f}]")
    peak = "" if row.peak_bytes is None else figure(row.peak_bytes / 1e6)
    latency, low, high = (figure(1e3 * x) for x in (row.latency_s, row.latency_low_s, row.latency_high_s))
    return row.mode, ran, latency, f"{low} – {high}", peak, ", ".join(notes)


def figure(value: float) -> str:
    """Three significant digits, without an exponent above a thousandth."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
