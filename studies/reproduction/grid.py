"""The accuracy tables as data: each printed row, the training run that stands for it, and the row it is compared with.

At full scale a row is its own network. On images of a few pixels it is a miniature: two stages, the same relation,
mapping, transformations, position encoding and footprint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saprof.paper.printed import PaperRow, paper, rows
from saprof.text import unknown
from studies.config import RECIPES, Config, load

FAMILIES = ("convolution", "pairwise", "patchwise", "stand_alone")
ROBUSTNESS = ("9", "10")
"""Tables that judge the networks of Table 3 once more."""
TABLES = (*(name for name in paper() if name.isdigit()), *ROBUSTNESS, "sec5.3")
SIDES = {"digits": 8, "digits16": 16, "cifar10": 32}
"""Data sets of small images, and the side of these, which is that of the first stage's map."""
DATA = (*SIDES, "folder")
RECIPE_OF = {"folder": "san_imagenet", "cifar10": "cifar10"}
"""What runs start from, where it is not the defaults."""

_BLOCKS = {"10": [1, 1], "15": [2, 1], "19": [2, 2], "26": [1, 1], "38": [2, 1], "50": [2, 2]}
"""Blocks of a miniature per stage, by the depth in the name of what it stands for."""
_SAN = re.compile(r"san(?P<depth>\d+)_(?P<family>pairwise|patchwise|stand_alone)(?:_(?P<relation>\w+))?")
_RESNET = re.compile(r"resnet(?P<depth>\d+)(?:_(?P<footprint>\d+)x\d+)?")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What all runs of a reproduction have in common."""

    data: str = "digits"
    epochs: int | None = None
    """None is what the recipe says."""
    root: Path | None = None
    device: str = "auto"
    workers: int | None = None
    """None is what the recipe says."""
    backend: str | None = None
    """That of self-attention; None is what the recipe says, or the best there is."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rates by family, instead of the recipe's."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What recorded runs were asked, instead of the recipe, which may have changed since."""

    def __post_init__(self) -> None:
        if self.data not in DATA:
            raise ValueError(unknown("data set", self.data, DATA))

    @property
    def full(self) -> bool:
        """Whether networks are the paper's own."""
        return self.data not in SIDES

    @property
    def recipe(self) -> Config:
        """What every run starts from."""
        start = load(RECIPES / f"{RECIPE_OF[self.data]}.yaml") if self.data in RECIPE_OF else Config()
        epochs = start.epochs if self.epochs is None else self.epochs
        settings = {"data": self.data, "root": self.root, "device": self.device, "evaluate_every": epochs}
        if self.workers is not None:
            settings["workers"] = self.workers
        return replace(start, **{"epochs": epochs} | settings | dict(self.facts))

    def config(self, row: PaperRow, protocol: str) -> Config:
        """The run that stands for a row, but for its seed and folder."""
        model, options = (row.model, dict(row.overrides)) if self.full else miniature(row.model, row.overrides)
        if self.backend and row.family != "convolution":
            options["backend"] = self.backend
        recipe = self.recipe
        rate = self.rates.get(row.family, recipe.lr)
        return replace(recipe, model=model, options=options, protocol=protocol, lr=rate)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row of a table, and what is trained for it."""

    table: str
    row: PaperRow
    config: Config
    """Without its seed and folder."""
    base: int | None
    """The number of the row in the table that it is compared with."""
    note: str = ""

    @property
    def key(self) -> str:
        """Rows with the same are one network."""
        return self.config.fingerprint()


def miniature(model: str, overrides: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The small model that stands for a network of the tables, and its options."""
    if match := _SAN.fullmatch(model):
        name, options = f"san_mini_{match['family']}", {"attention": "composed", **overrides}
        if match["relation"]:
            options["relation"] = match["relation"]
        if "footprints" in options:
            options["footprints"] = [options["footprints"][1], 3]  # the second stage's map is covered by 3 × 3
        if options.get("transformations") == "shared":
            options["relation_reduction"] = 2  # the value_reduction of small models: φ = ψ = β is one layer
    elif match := _RESNET.fullmatch(model):
        name, options = "resnet_mini", dict(overrides)
        if match["footprint"]:
            options["footprint"] = int(match["footprint"])
    else:
        raise ValueError(f"{model} has no miniature; expected a network of the paper's tables, such as san10_pairwise")
    if _BLOCKS[match["depth"]] != [1, 1]:
        options["blocks"] = _BLOCKS[match["depth"]]
    return name, options


def cells(table: str, study: Study) -> tuple[Cell, ...]:
    """The rows of a table; ValueError for a table that is not among TABLES."""
    if table not in TABLES:
        raise ValueError(unknown("table", table, TABLES))
    rows = printed(table)
    return tuple(
        Cell(table=table, row=row, config=study.config(row, protocol(table)), base=base, note=_note(row, study.data))
        for row, base in zip(rows, bases(rows), strict=True)
    )


def printed(table: str) -> tuple[PaperRow, ...]:
    """The rows of a table: of Tables 9 and 10 those of Table 3, of Sec. 5.3 also the one of Table 4 that it is set
    against."""
    if table in ROBUSTNESS:
        return rows("3")
    if table == "sec5.3":
        (default,) = (row for row in rows("4") if (row.family, _is_default(row)) == ("pairwise", True))
        return replace(default, setting=None), *rows(table)
    return rows(table)


def protocol(table: str) -> str:
    """Which images a table judges on (SAN Sec. 5.1)."""
    return "val-original" if table in ("3", *ROBUSTNESS) else "val-split"


def bases(rows: Sequence[PaperRow]) -> list[int | None]:
    """For each row the number of the one it is compared with.

    A variant is compared with its family's default in the table, a default with the convolutional network above it,
    Sec. 5.3's network with the pairwise default.
    """
    defaults = {row.family: number for number, row in enumerate(rows) if _is_default(row)}
    found: list[int | None] = []
    convolution = None
    for number, row in enumerate(rows):
        if row.family == "convolution":
            if convolution is None or rows[convolution].network != row.network:
                convolution = number
            found.append(None)
        elif row.family == "stand_alone":
            found.append(defaults["pairwise"])
        else:
            found.append(convolution if _is_default(row) else defaults[row.family])
    return found


def _is_default(row: PaperRow) -> bool:
    """Whether a row is a network of the paper with nothing varied."""
    match = _SAN.fullmatch(row.model)
    return match is not None and match["family"] != "stand_alone" and not match["relation"] and not row.overrides


def unique(every: Iterable[Cell]) -> list[Cell]:
    """The cells whose networks differ; of those alike the first."""
    return list({cell.key: cell for cell in reversed(list(every))}.values())[::-1]


def _note(row: PaperRow, data: str) -> str:
    """What a reader must know of a miniature's footprint."""
    if data not in SIDES:
        return ""
    _, options = miniature(row.model, row.overrides)
    side = SIDES[data]
    if "footprint" in options and options["footprint"] > side // 2:
        size = options["footprint"]
        return f"a footprint of {size} × {size} exceeds the second stage's map of {side // 2} × {side // 2}"
    size = options["footprints"][0] if "footprints" in options else 0
    if size <= side:
        return ""
    return f"a footprint of {size} × {size} exceeds the first stage's map of {side} × {side}"
