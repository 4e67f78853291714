"""Rows: a measured cell and its results; append-only JSON lines in a run folder.

The names of fields contain the SI units. An absent field was not measured. Every row has the fingerprint of its
environment, which `run.json` in the folder describes.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from saprof import atomic, text
from saprof.quantities import who_ran

SCHEMA = 1
ROWS = "rows.jsonl"
"""The file of a run folder with its rows."""
DOUBTFUL = ("unstable", "contended")
"""Statuses of a latency that is not reliable and should be measured again."""
HOST_BOUND = "host_bound"
SOUND = ("ok", HOST_BOUND)
"""Statuses of a reliable latency. A row is HOST_BOUND if the host takes longer to queue the work of a call than the GPU
to do it. Consecutive calls then take `host_s` each, unless a CUDA graph replays them."""
MEASURED = (*SOUND, *DOUBTFUL)
"""Statuses of a cell that has a latency."""
STATUSES = (*MEASURED, "unsupported", "predicted_oom", "oom", "incorrect", "timeout", "error")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell of a sweep. A cell that was not measured has a `status` and a `reason`, and no latency."""

    key: str
    """A hash of the cell, its code and its environment."""
    status: str
    schema: int = SCHEMA
    reason: str | None = None
    time: str | None = None
    fingerprint: str | None = None

    name: str
    """The operator or the network."""
    kind: str
    """`operator`; `model`; `layer` for a module or an operator of a profiled network; `function` for a function that
    `saprof.measure` measured."""
    footprint: str
    """Text that `Footprint.parse` reads; `default` is the own footprint of a model."""
    taps: int | None = None
    n: int
    """The images of a batch; 1 if the inputs do not have the same batch size."""
    h: int
    w: int
    """The rows and columns of the map or the image; 0 × 0 if no input is a map or an image."""
    r: int | None = None
    v: int | None = None
    g: int | None = None
    dtype: str
    device: str
    mode: str
    backend: str
    """The backend that ran, requested by name or chosen."""
    attention: str | None = None
    """How the attention of a network ran, `fused` or `composed`; if it did not run, what was requested."""
    compiled: bool = False

    layer: str | None = None
    """The path of a module of the network; "" is the network itself. The fields include the modules inside."""
    operation: str | None = None
    """The operator that the module calls; None in the row of the module itself."""
    apart: bool | None = None
    """Whether this is a part of a fused operator, measured in a second run with composed attention."""
    module: str | None = None
    """The class of the module."""
    calls: int | None = None

    params: int | None = None
    macs: int | None = None
    flops_paper: int | None = None
    flops_hardware: int | None = None
    compulsory_bytes: int | None = None
    backward_macs: int | None = None
    """Layers in a training step: the counts of the backward pass. The fields without this prefix count the forward."""
    backward_flops_hardware: int | None = None
    backward_bytes: int | None = None
    pairs: int | None = None
    """The k · p pairs (i, j) per image, with those that the boundary drops."""
    pairs_inside: int | None = None

    error: float | None = None
    """The worst error against the reference before timing, as a fraction of its tolerance."""
    latency_s: float | None = None
    latency_low_s: float | None = None
    latency_high_s: float | None = None
    latency_p10_s: float | None = None
    latency_p90_s: float | None = None
    samples_s: list[float] | None = None
    calls_per_sample: int | None = None
    stopped: str | None = None
    rounds: str | None = None
    """Rows with the same value were timed in the same interleaved rounds. Sample i is that of round i; the row with
    more samples went on alone."""
    host_s: float | None = None
    """On a GPU: the time until a call returns, while its work is still queued."""
    first_call_s: float | None = None
    """The first call of a compiled cell, with its compilation: a forward, or a training step if the mode has
    gradients. It is shorter if torch finds compiled code in its cache on disk."""
    cpu_per_wall: float | None = None
    others_cpu: float | None = None
    involuntary_switches: int | None = None
    images_per_s: float | None = None
    """For networks whose inputs are images: n over the latency, in the mode of the row."""
    ratio: float | None = None
    """The latency over that of the first cell of the group, within rounds."""
    ratio_low: float | None = None
    ratio_high: float | None = None
    verdict: str | None = None
    peak_bytes: int | None = None
    """The peak of the memory that torch's allocator gives out. On a CPU it includes the scratch memory of oneDNN's
    convolutions, which differs between machines. `predicted_peak_bytes` does not include it."""
    predicted_peak_bytes: int | None = None
    saved_bytes: int | None = None
    output_bytes: int | None = None

    self_s: float | None = None
    """Layers: the time without that of the modules inside. `latency_s` includes them, forward and backward. The times
    of layers are means over the middle half of the rounds, so that parts add up to the whole."""
    self_low_s: float | None = None
    self_high_s: float | None = None
    forward_s: float | None = None
    forward_low_s: float | None = None
    forward_high_s: float | None = None
    backward_s: float | None = None
    backward_low_s: float | None = None
    backward_high_s: float | None = None
    held_bytes: int | None = None
    """Layers: the bytes that the layer has allocated and not freed when the network reaches its peak."""
    least_s: float | None = None
    """Layers: the least time that the machine allows for the operators of the layer, one after the other."""
    remarks: str | None = None
    """Layers: remarks about the numbers, one per line, such as modules that had no calls."""
    bound_by: str | None = None
    """`memory` or `compute`: the limit that causes most of `least_s`."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"row {self.key}: {text.unknown('status', self.status, STATUSES)}")
        if (self.status in MEASURED) != (self.latency_s is not None):
            raise ValueError(
                f"row {self.key}: status {self.status} and latency_s = {self.latency_s}; expected a latency "
                f"with {', '.join(MEASURED)}, and with no other status"
            )
        if self.status not in MEASURED and not self.reason:
            raise ValueError(f"row {self.key}: status {self.status} without a reason")
        if self.latency_s and self.images_per_s is None and self.kind == "model" and self.h:
            object.__setattr__(self, "images_per_s", self.n / self.latency_s)  # rows before this field have none

    @property
    def ran_on(self) -> str:
        """What computed the row: `numba fused`."""
        return who_ran(self.backend, self.attention, self.compiled)

    def line(self) -> str:
        """One line of JSON, without the fields that were not measured."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(known, allow_nan=False, ensure_ascii=False)


_KINDS = {"str": str, "int": int, "float": int | float, "bool": bool, "list[float]": list, "None": type(None)}
_FIELDS = {field.name: [_KINDS[kind] for kind in str(field.type).split(" | ")] for field in fields(Row)}
"""The types of the fields in JSON."""


def key_of(*facts: Any) -> str:
    """A hash of what identifies a row."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append rows; they are on disk when this returns. WriteError if this fails; then the file does not change."""
    atomic.append(path, "".join(row.line() + "\n" for row in rows).encode())


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a file or run folder. A damaged last line, which a killed run may leave, is dropped with a warning.
    Raises ValueError that names the line if any other line is damaged."""
    path = Path(path)
    path = path / ROWS if path.is_dir() else path
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"cannot read rows from {path}: {error.strerror}") from None
    complete, rest = lines[:-1], lines[-1]
    rows = [_parse(path, number, line) for number, line in enumerate(complete, start=1)]
    if rest:
        warnings.warn(f"{path}: line {len(lines)} was cut short; dropped", stacklevel=2)
    return rows


def _refuse(constant: str) -> None:
    """NaN and infinity are no JSON, and no row that was written has them."""
    raise ValueError(constant)


def _parse(path: Path, number: int, line: bytes) -> Row:
    where = f"{path}, line {number}"
    try:
        content: dict[str, Any] = json.loads(line, parse_constant=_refuse)
        schema = content.get("schema")
    except (ValueError, AttributeError):
        raise ValueError(f"{where} is damaged: expected one JSON object; repair or delete that line") from None
    if schema != SCHEMA:
        raise ValueError(
            f"{where} has schema {schema}; expected {SCHEMA}: read it with the saprof that wrote it, or measure again"
        )
    unknown = content.keys() - _FIELDS.keys()
    if unknown:
        raise ValueError(f"{where} has unknown fields: {', '.join(sorted(unknown))}")
    for name, value in content.items():
        if not any(isinstance(value, kind) for kind in _FIELDS[name]):
            raise ValueError(f"{where} is no row: {name} is {value!r}")
    try:
        return Row(**content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is no row: {error}") from None
