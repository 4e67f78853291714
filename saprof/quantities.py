"""What rows measure, and the unit in which people read it: one table for text and figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """A field of rows, and its unit."""

    column: str
    noun: str
    unit: str
    """`ms`, `MB`; for a count, `k`, `M` or `G`."""
    per_unit: float
    """One unit in SI units, or as a count."""
    label: str
    """The label of an axis."""

    def in_unit(self, value: Any) -> Any:
        """A number, or a column of a table, in that unit."""
        return value / self.per_unit

    def text(self, value: float | None) -> str:
        """Three significant digits in that unit; empty for what was not measured."""
        return "" if value is None else digits(self.in_unit(value))

    def text_with_unit(self, value: float) -> str:
        """`30 ms`."""
        return f"{digits(self.in_unit(value))} {self.unit}"


LATENCY = Quantity("latency_s", "latency", "ms", 1e-3, "latency, ms (band: 95 % interval)")
MEMORY = Quantity("peak_bytes", "peak memory", "MB", 1e6, "peak memory, MB")
SAVED = Quantity("saved_bytes", "memory kept for the backward pass", "MB", 1e6, "kept for the backward pass, MB")
IMAGES = Quantity("images_per_s", "throughput", "images/s", 1.0, "images per second")
PARAMS = Quantity("params", "parameters", "M", 1e6, "parameters, M")
MACS = Quantity("macs", "multiply-adds", "M", 1e6, "multiply-adds, millions")
PAPER_FLOPS = Quantity("flops_paper", "FLOPs", "G", 1e9, "GFLOPs per image (paper convention)")
PAPER_MFLOPS = Quantity("flops_paper", "FLOPs", "M", 1e6, "MFLOPs (paper convention)")
HARDWARE_FLOPS = Quantity("flops_hardware", "FLOPs", "M", 1e6, "MFLOPs (hardware convention)")
LEAST_BYTES = Quantity("compulsory_bytes", "compulsory bytes", "MB", 1e6, "least MB")


def digits(value: float) -> str:
    """Three significant digits, without an exponent above a thousandth: `0.0123`, `56.2`, `1,234`."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def around(value: float, low: float | None, high: float | None) -> str:
    """A value and the larger half of its interval, both as precise as `digits` writes the value: `56.2 ± 0.8`."""
    shown = digits(value)
    if low is None or high is None:
        return shown
    half = max(value - low, high - value)
    if half == 0:
        return shown
    if "e" in shown or not math.isfinite(half):
        return f"{shown} ± {half:.1g}"
    places = len(f"{value:#.3g}".partition(".")[2]) if abs(value) < 99.95 else 0
    least = 10.0**-places
    return f"{f'{value:,.{places}f}'} ± {max(half, least):,.{places}f}"


def factor(times: float) -> str:
    """How many times: `1.05×`, `2.0×`, `31×`; two digits after the point below 2, none from 10 on."""
    return f"{times:,.{2 if times < 1.995 else 1 if times < 9.95 else 0}f}×"


def who_ran(backend: str, attention: str | None, compiled: bool) -> str:
    """What computed a row: `numba`, `numba fused`, `unfold+compile`."""
    ways = [attention] if attention not in (None, "auto", "composed") else []
    return " ".join([backend, *ways]) + ("+compile" if compiled else "")
