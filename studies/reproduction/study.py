"""The common settings of the runs of one study (data, recipe, learning rates), and the runs themselves, seed by
seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saprof.models.catalogue import MODELS
from saprof.paper.printed import PAPERS, PaperRow, rows
from saprof.text import unknown
from studies.config import RECIPES, Config, load
from studies.reproduction import sasa_miniatures
from studies.reproduction.miniatures import SIDES, miniature

DATA = (*SIDES, "folder")
RECIPE_OF = {
    "san": {"folder": "san_imagenet", "cifar10": "cifar10", "fashion": "fashion_study"},
    "sasa": {
        "folder": "sasa_imagenet",
        "cifar10": "cifar10",
        "digits": "sasa_digits_study",
        "digits16": "sasa_digits_study",
        "fashion": "sasa_fashion_study",
    },
}
"""The recipes of data sets, by paper. Other data sets use the defaults of Config."""
REDUCED = "_reduced"
"""The ending of the group of networks that are reduced."""


def group(family: str, reduced: bool) -> str:
    """The networks of a study that share a learning rate: those of a family, and, of SASA's miniatures, those that are
    reduced apart from the others."""
    return family + REDUCED * reduced


@dataclass(frozen=True, kw_only=True)
class Study:
    """The settings that all runs of a study have in common."""

    paper: str = "san"
    data: str = "digits"
    epochs: int | None = None
    """None stands for the recipe's."""
    root: Path | None = None
    device: str = "auto"
    workers: int | None = None
    """None stands for the recipe's."""
    accumulate: int | None = None
    """None stands for the recipe's."""
    backend: str | None = None
    """The backend of self-attention; None uses the recipe's, or the best one available."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rates by group, which replace the recipe's."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Settings of recorded runs, which replace the recipe's, as the recipe may have changed since."""

    def __post_init__(self) -> None:
        if self.paper not in PAPERS:
            raise ValueError(unknown("paper", self.paper, [*PAPERS]))
        if self.data not in DATA:
            raise ValueError(unknown("data set", self.data, DATA))

    @property
    def full(self) -> bool:
        """Whether the networks are those of the paper, and not miniatures."""
        return self.data not in SIDES

    @property
    def recipe(self) -> Config:
        """The config that every run starts from."""
        name = RECIPE_OF[self.paper].get(self.data)
        start = Config() if name is None else load(RECIPES / f"{name}.yaml")
        epochs = start.epochs if self.epochs is None else self.epochs
        settings: dict[str, Any] = {"data": self.data, "root": self.root, "device": self.device}
        if not self.full:
            settings["evaluate_every"] = epochs  # a miniature trains for seconds, and each evaluation takes a second
        if self.workers is not None:
            settings["workers"] = self.workers
        if self.accumulate is not None:
            settings["accumulate"] = self.accumulate
        return replace(start, **{"epochs": epochs} | settings | dict(self.facts))

    def reduced(self, table: str) -> bool:
        """Whether the networks of a table are miniatures that reduce the image as the originals do, which SASA's
        tables of stems need."""
        if self.full or self.paper != "sasa":
            return False
        return any(MODELS[row.model].attends and not MODELS[row.model].convolution_stem for row in rows(table, "sasa"))

    def config(self, row: PaperRow, protocol: str, reduced: bool = False) -> Config:
        """The run of a printed row, without its seed and folder."""
        model, options = self._network(row, reduced)
        if self.backend and row.family != "convolution":
            options["backend"] = self.backend
        recipe = self.recipe
        rate = self.rates.get(group(row.family, reduced), recipe.lr)
        return replace(recipe, model=model, options=options, protocol=protocol, lr=rate)

    def _network(self, row: PaperRow, reduced: bool) -> tuple[str, dict[str, Any]]:
        if self.full:
            return row.model, dict(row.overrides)
        if self.paper == "sasa":
            return sasa_miniatures.miniature(row.model, row.overrides, reduced)
        return miniature(row.model, row.overrides, self.data)

    def with_rates(self, families: Mapping[str, Mapping[str, Any]]) -> Study:
        """The study with the learning rates chosen for these groups, as learning_rates.json has them."""
        return replace(self, rates={family: choice["chosen"] for family, choice in families.items()})


def placed(config: Config, runs: Path) -> Config:
    """The config with the folder of its run, a folder in `runs`."""
    return replace(config, output=runs / f"{config.model}-seed{config.seed}-{config.fingerprint()}")


def by_seed(configs: Iterable[Config], seeds: int, runs: Path) -> list[Config]:
    """One run per config and seed, placed in `runs`. All configs of a seed precede the next seed, so that an
    interrupted study leaves few incomplete comparisons."""
    configs = list(configs)
    return [placed(replace(config, seed=seed), runs) for seed in range(seeds) for config in configs]
