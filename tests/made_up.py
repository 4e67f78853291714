"""Made-up rows, roofs, provenance, run folders and modules of a user, for tests of the code that reads them."""

import json
import sys
from pathlib import Path
from typing import Any

from saprof.records import calibration
from saprof.records.calibration import Anchor, Calibration
from saprof.records.rows import MEASURED, SCHEMA, Row, append_rows

TIME = "2026-01-01T00:00:00+00:00"

PROVENANCE: dict[str, Any] = {
    "versions": {"torch": "2.13.0"},
    "device": "a CPU",
    "cpu": "a CPU",
    "cores": 2,
    "threads": 2,
    "code": "abc",
    "commit": "abcdef0123456",
    "dirty": False,
}
"""The provenance that a run folder must have at least."""


def row(**fields: Any) -> Row:
    """The row of a small aggregation on the backend numba; its latency is 1 ms unless the fields have another."""
    facts = {
        "key": "k", "status": "ok", "name": "aggregation", "kind": "operator", "footprint": "square:3", "taps": 9,
        "n": 1, "h": 8, "w": 8, "dtype": "float32", "device": "cpu", "mode": "forward", "backend": "numba",
    }  # fmt: skip
    if fields.get("status", "ok") in MEASURED:
        facts["latency_s"] = 1e-3
    return Row(**facts | fields)


def network(name: str = "san10_pairwise", footprint: str = "default", **fields: Any) -> Row:
    """The row of a network on images of 224 × 224, with the costs that evidence needs."""
    facts = {
        "key": f"{name} {footprint}", "name": name, "kind": "model", "footprint": footprint, "taps": None,
        "h": 224, "w": 224, "attention": "fused", "time": "2026-11-21T15:00:00+00:00",
        "latency_s": 0.1, "latency_low_s": 0.09, "latency_high_s": 0.11, "peak_bytes": 10**7,
        "params": 10**7, "flops_paper": 2 * 10**9,
    }  # fmt: skip
    return row(**facts | fields)


def anchor(**fields: Any) -> Anchor:
    """An anchor of one call without noise."""
    facts = {"blocks_s": {"copy": (1.0, 1.0)}, "ratios": {"copy": (0.99, 1.01)}, "others_cpu": 0.0, "contended": False}
    return Anchor(**{"time": TIME} | facts | fields)


def roofs(**fields: Any) -> Calibration:
    """The roofs of a CPU that is far faster than any made-up row."""
    facts = {
        "device": "a CPU", "cpu": "a CPU", "threads": 2, "torch": "2.13", "time": TIME,
        "streams": {"copy": {1024: 1e12}}, "fma": {"float32": 1e12}, "gemm": {}, "anchors": (anchor(),),
    }  # fmt: skip
    return Calibration(**facts | fields)


def run_folder(
    folder: Path, rows: list[Row], noise: Calibration | None = None, where: dict[str, Any] = PROVENANCE
) -> Path:
    """A folder with these rows, this provenance and, if given, this calibration."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"schema": SCHEMA} | where))
    append_rows(folder / "rows.jsonl", rows)
    if noise is not None:
        calibration.write(folder, noise)
    return folder


def layer(path: str, ms: float, operation: str | None = None, **fields: Any) -> Row:
    """The row of a layer of `tiny`, a network of two convolutions and a fused attention, or of one of its operators."""
    facts = {
        "key": f"{fields.get('name', 'tiny')} {path} {operation}", "name": "tiny", "kind": "layer",
        "footprint": "default", "taps": None, "h": 16, "w": 16, "backend": "torch", "layer": path,
        "operation": operation, "calls": 1,
        "latency_s": ms / 1e3, "latency_low_s": 0.95 * ms / 1e3, "latency_high_s": 1.05 * ms / 1e3, "self_s": ms / 1e3,
        "samples_s": [(1 + 0.01 * (i % 3 - 1)) * ms / 1e3 for i in range(9)], "time": TIME,
        "held_bytes": int(1e5 * ms), "flops_hardware": int(2e6 * ms),
    }  # fmt: skip
    if operation is None:
        facts["module"] = "Sequential"
    return row(**facts | fields)


def profile_rows(attention_ms: float = 6.0, name: str = "tiny", **fields: Any) -> list[Row]:
    """The rows of a profile of `tiny`: 3 ms in a convolution, and 1 ms beside `attention_ms` in a fused attention."""
    whole = attention_ms + 4
    common = {"name": name} | fields
    ours = {"backend": "numba", "attention": "fused"}
    plain = layer(
        "", whole, **common | {"kind": "model", "layer": None, "calls": None, "params": 1000, "peak_bytes": 10**6}
    )
    parts = [
        layer("", whole, ratio=1.02, ratio_low=1.0, ratio_high=1.04, params=1000, peak_bytes=10**6, **common),
        layer("stem", 3, module="Conv2d", **common),
        layer("body", attention_ms + 1, **common | ours),
        layer("body.0", 1, module="Conv2d", **common),
        layer("body.1", attention_ms, module="PairwiseAttention", **common | ours),
        layer("stem", 3, "conv2d", **common),
        layer("body.0", 1, "conv2d", **common),
        layer("body.1", attention_ms, "saprof::pairwise_attention", **common | ours),
        layer("body.1", 2, "saprof::pairwise_subtraction", apart=True, **common),
        layer("body.1", 4, "saprof::aggregation", apart=True, **common),
    ]
    return [plain, *parts]


# roofs on which a row's least time is easy to compute

ANCHOR = anchor(
    time="2026-01-01T00:00:09+00:00",
    blocks_s={"copy": (4.0, 4.4), "gemm": (1.0, 1.0)},
    ratios={"copy": (0.97, 1.01), "gemm": (1.0, 1.02)},
    others_cpu=0.01,
)
ROOFS = roofs(
    device="A CPU",
    cpu="A CPU",
    streams={"copy": {1000: 3e9, 4000: 8e9, 16000: 2e9}, "read": {1000: 4e9, 4000: 7e9, 16000: 2.5e9}},
    fma={"float32": 100e9, "float64": 50e9},
    gemm={"float32": 80e9, "float64": 60e9, "bfloat16": 10e9},
    anchors=(ANCHOR,),
)


def row_under_roofs(**fields: Any) -> Row:
    """A forward. Under ROOFS its bytes take 2000 B / 8 GB/s = 250 ns and its FLOPs 1000 / 100 GFLOP/s = 10 ns."""
    return row(**{"flops_hardware": 1000, "compulsory_bytes": 2000, "latency_s": 1e-6, "latency_high_s": 2e-6} | fields)


def module_of_a_user(tmp_path: Path, monkeypatch: Any, source: str) -> str:
    """The name of a module with this source, in the current directory, in a package of its own for each test."""
    package = f"zoo_{tmp_path.name.replace('-', '_')}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "nets.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return f"{package}.nets"
