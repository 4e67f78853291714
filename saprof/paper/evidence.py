"""Measured costs of networks beside the accuracies that the papers print, and the Pareto front of them.

Each paper has two evaluation sets, and a recipe of its own. Accuracies of different sets or papers must not be
compared: SAN's ResNet26 has 76.0 on val-split and 73.6 on val-original, SASA's has 74.5 on its test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from saprof.models.catalogue import MODELS
from saprof.operators.footprint import Footprint
from saprof.paper.printed import PAPERS, PaperRow, paper, rows
from saprof.quantities import LATENCY, MEMORY, PAPER_FLOPS, PARAMS, who_ran
from saprof.records.calibration import Calibration, above_roof
from saprof.records.rows import Row

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

TABLES = {"san": ("7", "4", "3"), "sasa": ("1", "4", "3")}
"""The tables of accuracies, by paper. If two have the same network on the same set, the first counts. In the
other tables, networks differ in settings that neither the name nor the footprint states."""
_NAMED_BY = ("footprints", "footprint")
"""The settings of a printed row that change only the footprint of its network."""
COSTS = tuple(quantity.column for quantity in (LATENCY, MEMORY, PARAMS, PAPER_FLOPS))
ALIKE = ("mode", "n", "dtype", "device", "evaluation_set")
"""The columns in which all lines of a front must agree."""
COLUMNS = (
    "name", "family", "relation", "footprint", "taps", "backend", "attention", "compiled", "mode", "n", "dtype",
    "device", "status", "time", "params", "flops_paper", "latency_s", "latency_low_s", "latency_high_s", "peak_bytes",
    "above_roof", "top1", "evaluation_set", "source",
)  # fmt: skip

_IMAGE = (224, 224)


@dataclass(frozen=True)
class Variant:
    """A network, independent of its spelling: `san10_pairwise` is `san10_pairwise_subtraction`."""

    name: str
    """The name without relation and footprint: `san10_pairwise`, `resnet26`."""
    relation: str | None
    """None for a ResNet."""
    size: int
    """The side of the square footprint, as in `NamedModel.side`."""

    @property
    def model(self) -> str:
        """The name that `saprof.create_model` takes; the footprint is not in it."""
        usual = MODELS[self.name].relation
        return self.name if usual in (None, self.relation) else f"{self.name}_{self.relation}"


@dataclass(frozen=True)
class Printed:
    """A row of a paper's table, and its network."""

    network: Variant
    of: str
    """The paper, `san` or `sasa`."""
    table: str
    row: PaperRow

    @property
    def evaluation_set(self) -> str:
        """The images of ImageNet; for SASA also the paper, since its networks were trained with another recipe."""
        images = paper(self.of)[self.table].evaluation_set
        return images if self.of == "san" else f"{images} ({self.of.upper()})"

    @property
    def source(self) -> str:
        """The place of the figure in words."""
        images = paper(self.of)[self.table].evaluation_set
        return f"{self.of.upper()} Table {self.table}, as printed, ImageNet {images}"

    @property
    def flops_G(self) -> float | None:
        """The printed FLOPs in the `paper` convention; None for SASA, which counts 2 per multiply-add."""
        return self.row.flops_G if PAPERS[self.of][1] == "paper" else None


def variant(row: Row) -> Variant | None:
    """The network that a row is about; None for an operator, for a model that is not in the catalogue, and for a
    footprint that is not a plain square."""
    return _named(row.name, row.footprint) if row.kind == "model" else None


def _named(name: str, footprint: str) -> Variant | None:
    if footprint == "default":
        return _variant(name)
    taps = Footprint.parse(footprint)
    side = taps.lattice[0][0] if taps.lattice else 1
    return _variant(name, side) if taps == Footprint.square(side) else None


def printed(row: Row) -> tuple[Printed, ...]:
    """The printed rows about the network of a row, one per evaluation set; none unless the images are 224 × 224."""
    return printed_of(row.name, row.footprint, (row.h, row.w)) if row.kind == "model" else ()


def printed_of(name: str, footprint: str, image: tuple[int, int]) -> tuple[Printed, ...]:
    """The printed rows about a network with a footprint, as `printed` finds them; `image` is (rows, columns)."""
    network = _named(name, footprint) if image == _IMAGE else None
    return () if network is None else _all_printed().get(network, ())


def points(rows: Sequence[Row], roofs: Calibration | None = None) -> pd.DataFrame:
    """One line per row of a network and per evaluation set with a printed accuracy; rows without a latency are kept if
    they have counts. Names, relations and footprints are those of `Variant`, so none is `default`. `above_roof` is true
    if the row is faster than the roofs of its machine allow; without roofs it is false.

    The sets of a paper count only if one of its networks with attention is among the rows. Otherwise a
    ResNet of SASA would be drawn beside SAN's networks alone, and compared with nothing."""
    import pandas as pd

    known = [(row, about) for row in rows if row.params is not None for about in printed(row)]
    papers = {about.of for _, about in known if about.row.family != "convolution"} or {"san"}
    found = [
        _point(row, about) | {"above_roof": roofs is not None and above_roof(row, roofs)}
        for row, about in known
        if about.of in papers
    ]
    return pd.DataFrame(found, columns=list(COLUMNS))


def label(line: Mapping[Any, Any]) -> str:
    """A line of `points` in words: `san10_pairwise 7×7 on numba fused`."""
    size = str(line["footprint"]).partition(":")[2]
    return f"{Variant(line['name'], line['relation'], int(size)).model} {size}×{size} on {ran_on(line)}"


def ran_on(line: Mapping[Any, Any]) -> str:
    """What computed a line: `numba fused+compile`, `torch`."""
    attention = line["attention"] if isinstance(line["attention"], str) else None
    return who_ran(line["backend"], attention, line["compiled"])


def dominance(frame: pd.DataFrame, costs: Sequence[str] = COSTS, gain: str = "top1") -> np.ndarray:
    """[i, j] is True if line i is at least as good as line j in every column, and better in one. A line that lacks a
    value is compared with no other."""
    import numpy as np

    losses = np.column_stack([frame[list(costs)].to_numpy(float), -frame[gain].to_numpy(float)])
    one, other = losses[:, None], losses[None]
    return np.logical_and(np.all(one <= other, axis=-1), np.any(one < other, axis=-1))


def front(frame: pd.DataFrame, costs: Sequence[str] = COSTS, gain: str = "top1") -> pd.Series:
    """Whether each line is on the Pareto front: no other line is at least as good in every column and better in one.

    A line that lacks a value is not on the front. All lines must agree in `ALIKE`.
    """
    import pandas as pd

    complete = frame[[*costs, gain]].notna().to_numpy().all(axis=1)
    return pd.Series(complete & ~dominance(frame, costs, gain).any(axis=0), index=frame.index)


def _variant(name: str, size: int | None = None) -> Variant | None:
    model = MODELS.get(name)
    side = size or (model and model.side)
    return Variant(model.base, model.relation, side) if model and side else None


@cache
def _all_printed() -> dict[Variant, tuple[Printed, ...]]:
    found: dict[Variant, dict[str, Printed]] = {}
    for of, table in ((of, table) for of, tables in TABLES.items() for table in tables):
        for row in rows(table, of):
            *_, size = row.overrides.get("footprints", [row.overrides.get("footprint")])
            network = _variant(row.model, size=size)
            if network is not None and row.overrides.keys() <= {*_NAMED_BY}:
                about = Printed(network, of, table, row)
                found.setdefault(network, {}).setdefault(about.evaluation_set, about)
    return {network: tuple(by_set.values()) for network, by_set in found.items()}


def _point(row: Row, about: Printed) -> dict[str, Any]:
    network = about.network
    own = {name: getattr(row, name) for name in COLUMNS if hasattr(row, name)}
    return own | {
        "name": network.name,
        "family": about.row.family,
        "relation": network.relation,
        "footprint": f"square:{network.size}",
        "taps": network.size**2,
        "top1": about.row.top1,
        "evaluation_set": about.evaluation_set,
        "source": about.source,
    }
