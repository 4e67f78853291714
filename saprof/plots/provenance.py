"""Where something was measured, as parts of a page: machine, versions, noise and roofs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saprof import text
from saprof.markup import Html, tag
from saprof.plots import page
from saprof.records.calibration import Calibration

_KEPT: dict[Any, str] = {True: "kept by the process", False: "given back to the system"}
"""What happens to freed memory, by the field `kept_memory` of a run."""


def facts(where: Mapping[str, Any], command: str) -> Html:
    """The provenance of a run of a command, such as `saprof.sweep`, as a list."""
    versions = where.get("versions") or {}
    threads, cores = (text.counted(where.get(f"{one}s") or 0, one) for one in ("thread", "core"))
    found = {
        "device": where.get("device"),
        "processor": f"{where.get('cpu')}, {threads} on {cores}",
        "memory": f"{where['memory_bytes'] / 1e9:.3g} GB" if where.get("memory_bytes") else None,
        "freed memory": _KEPT.get(where.get("kept_memory")),
        "driver": where.get("driver"),
        "nvcc": where.get("nvcc"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Python": f"{where.get('python')} on {where.get('platform')}",
        "commit": f"{where.get('commit') or 'none'}{' with changes' if where.get('dirty') else ''}",
        "environment": ", ".join(f"{name}={value}" for name, value in (where.get("flags") or {}).items()),
        "command": tag("code", " ".join([f"python -m {command}", *where.get("argv", [])])),
    }
    return page.facts([(name, value) for name, value in found.items() if value])


def roofs(measured: Calibration) -> list[Html]:
    """The noise, and the roofs of the machine."""
    noise = (
        f"Identical calls differed by ± {measured.noise_within:.1%} in the same interleaved rounds, and by "
        f"{measured.noise_between:.1%} from one time of the run to another: smaller differences mean nothing."
    )
    rates = {
        f"{kind}, {dtype}": f"{rate / 1e9:.3g} GFLOP/s"
        for kind, of_kind in (("FMAs", measured.fma), ("matrix products", measured.gemm))
        for dtype, rate in of_kind.items()
    }
    streams = {
        f"{name}, {max(sizes) / 1e6:.0f} MB": f"{sizes[max(sizes)] / 1e9:.3g} GB/s"
        for name, sizes in measured.streams.items()
    }
    return [tag("p", noise), page.facts([*streams.items(), *rates.items(), ("measured", measured.time)])]
