"""Cells: what one row of a sweep measures. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from saprof.models.catalogue import named_model
from saprof.models.named import NamedNetwork, read_network
from saprof.operators import BACKENDS, OPERATORS
from saprof.operators.cost import operator_cost
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload, stages
from saprof.records.rows import SCHEMA, key_of

MODES = ("forward", "train_forward", "backward", "train_step")
"""`forward` runs without gradients, `train_forward` records the graph, `backward` runs on a graph made before, and
`train_step` is forward and backward."""
PROFILED_MODES = ("forward", "train_step")
"""The modes of a profile: calls that are whole."""


@dataclass(frozen=True)
class Network:
    """A whole network at a batch of square images, or at inputs of its own.

    A footprint replaces the model's own: in all stages of a SAN but those with 3 × 3, which keep it (SAN Table 7: the
    first stage); in every k × k convolution of a ResNet; in every attention of a stand-alone network (SASA Table 4)."""

    name: str
    footprint: Footprint | None = None
    batch: int = 1
    """1 for inputs of its own without a common batch."""
    size: int = 0
    """The side of the images; 0 stands for the network's own, or its own inputs."""
    dtype: str = "float32"
    about: NamedNetwork = None  # type: ignore[assignment]
    """What the name stands for; read from the name if it is not given."""

    def __post_init__(self) -> None:
        if self.about is None:
            object.__setattr__(self, "about", read_network(self.name))
        if not self.size:
            object.__setattr__(self, "size", self.about.image_side or 0)

    @property
    def attends(self) -> bool:
        """Whether the network has attention, which one of our backends computes."""
        return self.about.attends

    @property
    def map(self) -> tuple[int, int]:
        """The rows and columns of its images; 0 × 0 for inputs that are none."""
        own = self.about.sizes
        return (self.size, self.size) if own is None else (own.h or 0, own.w or 0)

    @property
    def overrides(self) -> dict[str, Any]:
        """The arguments of `create_model` beside the name."""
        if self.footprint is None:
            return {}
        if not self.attends:
            return {"footprint": self.footprint.lattice[0][0] if self.footprint.lattice else 0}
        model = named_model(self.name)
        if model.architecture != "SAN":
            return {"footprint": self.footprint}
        kept = Footprint.square(3, boundary=self.footprint.boundary)
        return {"footprints": tuple(kept if side == 3 else self.footprint for side in model.footprints)}

    def __str__(self) -> str:
        footprint = f"-{self.footprint}" if self.footprint else ""
        h, w = self.map
        size = f"-{h}x{w}" if h else ""
        return f"{self.name}{footprint}-n{self.batch}{size}-{self.dtype}"


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
            h, w = subject.map
            facts = {
                "name": subject.name,
                "kind": "model",
                "footprint": str(subject.footprint or "default"),
                "taps": subject.footprint.taps if subject.footprint else None,
                "n": subject.batch,
                "h": h,
                "w": w,
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
        """The key of the cell in a run. It depends on the cell, its environment, the schema of rows, and the sources of
        a network that is not registered."""
        sources = [] if isinstance(self.subject, Workload) else [*filter(None, [self.subject.about.digest])]
        return key_of(self.what, fingerprint, SCHEMA, *sources)

    @property
    def costs(self) -> dict[str, int]:
        """The fields of a row that follow from the declaration of an operator. A network is counted when it runs, with
        torch."""
        if not isinstance(self.subject, Workload):
            return {}
        workload = self.subject
        cost = operator_cost(workload.operator, workload.sizes, workload.itemsize)
        pairs, inside = workload.footprint.pairs(workload.h, workload.w)
        return {**cost.operations, "pairs": pairs, "pairs_inside": inside}

    def __str__(self) -> str:
        compiled = "+compile" if self.compiled else ""
        attention = "" if self.attention == "auto" else f" {self.attention}"
        return f"{self.subject} {self.mode} {self.backend}{attention}{compiled} on {self.device}"


def benchmark_cells(device: str = "cpu") -> Iterator[Cell]:
    """Every operator at SAN10's five stages, one image and eight, forward and training step, on every backend."""
    for operator, mode, batch in product(OPERATORS.values(), ("forward", "train_step"), (1, 8)):
        for workload, backend in product(stages(operator, batch), BACKENDS):
            yield Cell(workload, mode, device, backend)
