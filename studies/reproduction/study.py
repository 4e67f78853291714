"""The common settings of the runs of one study (data, recipe, learning rates), and the runs themselves, seed by
seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saprof.paper.printed import PaperRow
from saprof.text import unknown
from studies.config import RECIPES, Config, load
from studies.reproduction.miniatures import SIDES, miniature

DATA = (*SIDES, "folder")
RECIPE_OF = {"folder": "san_imagenet", "cifar10": "cifar10", "fashion": "fashion_study"}
"""The recipes of data sets that do not use the defaults of Config."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The settings that all runs of a study have in common."""

    data: str = "digits"
    epochs: int | None = None
    """None stands for the recipe's."""
    root: Path | None = None
    device: str = "auto"
    workers: int | None = None
    """None stands for the recipe's."""
    backend: str | None = None
    """The backend of self-attention; None uses the recipe's, or the best one available."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rates by family, which replace the recipe's."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Settings of recorded runs, which replace the recipe's, as the recipe may have changed since."""

    def __post_init__(self) -> None:
        if self.data not in DATA:
            raise ValueError(unknown("data set", self.data, DATA))

    @property
    def full(self) -> bool:
        """Whether the networks are those of the paper, and not miniatures."""
        return self.data not in SIDES

    @property
    def recipe(self) -> Config:
        """The config that every run starts from."""
        start = load(RECIPES / f"{RECIPE_OF[self.data]}.yaml") if self.data in RECIPE_OF else Config()
        epochs = start.epochs if self.epochs is None else self.epochs
        settings: dict[str, Any] = {"data": self.data, "root": self.root, "device": self.device}
        if not self.full:
            settings["evaluate_every"] = epochs  # a miniature trains for seconds, and each evaluation takes a second
        if self.workers is not None:
            settings["workers"] = self.workers
        return replace(start, **{"epochs": epochs} | settings | dict(self.facts))

    def config(self, row: PaperRow, protocol: str) -> Config:
        """The run of a printed row, without its seed and folder."""
        model, options = self._network(row)
        if self.backend and row.family != "convolution":
            options["backend"] = self.backend
        recipe = self.recipe
        rate = self.rates.get(row.family, recipe.lr)
        return replace(recipe, model=model, options=options, protocol=protocol, lr=rate)

    def _network(self, row: PaperRow) -> tuple[str, dict[str, Any]]:
        if self.full:
            return row.model, dict(row.overrides)
        return miniature(row.model, row.overrides, self.data)

    def with_rates(self, families: Mapping[str, Mapping[str, Any]]) -> Study:
        """The study with the learning rates chosen for `families`, as learning_rates.json has them."""
        return replace(self, rates={family: choice["chosen"] for family, choice in families.items()})


def placed(config: Config, runs: Path) -> Config:
    """The config with the folder of its run, a folder in `runs`."""
    return replace(config, output=runs / f"{config.model}-seed{config.seed}-{config.fingerprint()}")


def by_seed(configs: Iterable[Config], seeds: int, runs: Path) -> list[Config]:
    """One run per config and seed, placed in `runs`. All configs of a seed precede the next seed, so that an
    interrupted study leaves few incomplete comparisons."""
    configs = list(configs)
    return [placed(replace(config, seed=seed), runs) for seed in range(seeds) for config in configs]
