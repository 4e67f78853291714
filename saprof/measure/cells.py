"""Cells: what one row of a sweep measures. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from saprof.models.catalogue import named_model
from saprof.operators import BACKENDS, OPERATORS
from saprof.operators.cost import operator_cost
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload, stages
from saprof.records.rows import SCHEMA

MODES = ("forward", "train_forward", "backward", "train_step")
"""`forward` runs without gradients, `train_forward` records the graph, `backward` runs on a graph made before, and
`train_step` is forward and backward."""


@dataclass(frozen=True)
class Network:
    """A whole model at a batch of square images.

    A footprint replaces the model's own: in all stages of a SAN but the first, which keeps 3 × 3 (SAN Table 7); in
    every k × k convolution of a ResNet; in every attention of a stand-alone network (SASA Table 4)."""

    name: str
    footprint: Footprint | None = None
    batch: int = 1
    size: int = 224
    dtype: str = "float32"

    @property
    def attends(self) -> bool:
        """Whether the network has attention, which one of our backends computes."""
        return named_model(self.name).attends

    @property
    def overrides(self) -> dict[str, Any]:
        """The arguments of `create_model` beside the name."""
        if self.footprint is None:
            return {}
        if not self.attends:
            return {"footprint": self.footprint.lattice[0][0] if self.footprint.lattice else 0}
        if named_model(self.name).architecture != "SAN":
            return {"footprint": self.footprint}
        return {"footprints": (Footprint.square(3, boundary=self.footprint.boundary), *[self.footprint] * 4)}

    def __str__(self) -> str:
        footprint = f"-{self.footprint}" if self.footprint else ""
        return f"{self.name}{footprint}-n{self.batch}-{self.size}x{self.size}-{self.dtype}"


@dataclass(frozen=True)
class Cell:
    """One subject in one mode, computed by one backend."""

    subject: Workload | Network
    mode: str = "forward"
    device: str = "cpu"
    backend: str = "auto"
    compiled: bool = False
    attention: str = "auto"
    """For networks: `fused`, `composed` or `auto`."""

    @property
    def what(self) -> dict[str, Any]:
        """The fields of a row that identify the cell."""
        subject = self.subject
        if isinstance(subject, Workload):
            facts = {
                "name": subject.operator.name,
                "kind": "operator",
                "footprint": str(subject.footprint),
                "taps": subject.footprint.taps,
                **{axis: getattr(subject, axis) for axis in "nrvghw"},
            }
        else:
            facts = {
                "name": subject.name,
                "kind": "model",
                "footprint": str(subject.footprint or "default"),
                "taps": subject.footprint.taps if subject.footprint else None,
                "n": subject.batch,
                "h": subject.size,
                "w": subject.size,
                "attention": self.attention if subject.attends else None,
            }
        return facts | {
            "dtype": subject.dtype,
            "device": self.device,
            "mode": self.mode,
            "backend": self.backend,
            "compiled": self.compiled,
        }

    def key(self, fingerprint: str) -> str:
        """The key of the cell in a run. It depends on the cell, its environment, and the schema of rows."""
        text = json.dumps([self.what, fingerprint, SCHEMA], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def costs(self) -> dict[str, int]:
        """The fields of a row that follow from the declaration of an operator. A network is counted when it runs, with
        torch."""
        if not isinstance(self.subject, Workload):
            return {}
        workload = self.subject
        cost = operator_cost(workload.operator, workload.sizes, workload.itemsize)
        pairs, inside = workload.footprint.pairs(workload.h, workload.w)
        return {
            "macs": cost.macs,
            "flops_paper": cost.paper,
            "flops_hardware": cost.flops("hardware"),
            "compulsory_bytes": cost.bytes,
            "pairs": pairs,
            "pairs_inside": inside,
        }

    def __str__(self) -> str:
        compiled = "+compile" if self.compiled else ""
        attention = "" if self.attention == "auto" else f" {self.attention}"
        return f"{self.subject} {self.mode} {self.backend}{attention}{compiled} on {self.device}"


def benchmark_cells(device: str = "cpu") -> Iterator[Cell]:
    """Every operator at SAN10's five stages, one image and eight, forward and training step, on every backend."""
    for operator, mode, batch in product(OPERATORS.values(), ("forward", "train_step"), (1, 8)):
        for workload, backend in product(stages(operator, batch), BACKENDS):
            yield Cell(workload, mode, device, backend)
