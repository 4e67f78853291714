"""The learning rate of each family, chosen by one rule for all families, so that baselines are treated fairly.

The family's default network is trained on val-split with every candidate and every tuning seed. The highest mean top-1
wins; among equals the lower mean loss wins, then the lower rate. Tuning seeds are never reported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from saprof import atomic
from saprof.paper.printed import PaperRow
from studies.reproduction.executors import Task
from studies.reproduction.study import REDUCED, Study, placed

CANDIDATES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
SEEDS = (1000, 1001)
RULE = (
    "the family's default network, val-split, tuning seeds that are not reported: the highest mean top-1, of equals "
    "the lower mean loss, then the lower rate; a candidate of which a run failed is out"
)
DEFAULTS = {
    "san": {
        "convolution": "resnet26",
        "pairwise": "san10_pairwise",
        "patchwise": "san10_patchwise",
        "stand_alone": "san10_stand_alone",
    },
    "sasa": {
        "convolution": "resnet50",
        "stand_alone": "sasa_resnet50_convolution_stem",
        "convolution_reduced": "resnet50",
        "stand_alone_reduced": "sasa_resnet50",
    },
}
"""The default network of each family, or of each group of SASA's networks, with which its rate is chosen, by paper."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The families whose rates are chosen, the candidates and the tuning seeds."""

    study: Study
    runs: Path
    families: tuple[str, ...]
    candidates: tuple[float, ...] = CANDIDATES
    seeds: tuple[int, ...] = SEEDS

    def task(self, family: str, rate: float, seed: int) -> Task:
        model, reduced = DEFAULTS[self.study.paper][family], family.endswith(REDUCED)
        row = PaperRow(family=family.removesuffix(REDUCED), network="", model=model, params_M=0, flops_G=0)
        config = replace(self.study.config(row, "val-split", reduced), lr=rate, seed=seed)
        return Task(config=placed(config, self.runs))

    def tasks(self) -> list[Task]:
        """One run per family, candidate and seed."""
        return [self.task(f, rate, seed) for f in self.families for rate in self.candidates for seed in self.seeds]

    def finished(self) -> Tuning:
        """The families all of whose runs are finished."""
        done = [
            family
            for family in self.families
            if all(task.result() is not None for task in replace(self, families=(family,)).tasks())
        ]
        return replace(self, families=tuple(done))

    def rule(self) -> dict[str, Any]:
        """The facts that must be equal for an earlier choice to be used again."""
        # earlier files are of SAN, and do not say so
        facts = {"paper": self.study.paper} if self.study.paper != "san" else {}
        facts |= {"data": self.study.data, "epochs": self.study.recipe.epochs, "protocol": "val-split"}
        return {"rule": RULE, "candidates": list(self.candidates), "seeds": list(self.seeds)} | facts


def read(path: Path, tuning: Tuning, recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The choices made so far, by family; `recorded` are those of a results file. Raises ValueError if they were made
    by another rule."""
    families: dict[str, Any] = {}
    for kept in (json.loads(path.read_text(encoding="utf-8")) if path.exists() else None, recorded):
        if kept is not None:
            _check_rule(path, kept, tuning.rule())
            families |= kept["families"]  # the recorded choices prevail, since recorded runs were made with them
    return families


def _check_rule(path: Path, kept: Mapping[str, Any], rule: Mapping[str, Any]) -> None:
    changed = [f"{name} {kept.get(name)!r}, not {value!r}" for name, value in rule.items() if kept.get(name) != value]
    if changed:
        raise ValueError(f"{path} was chosen with {'; '.join(changed)}; choose another --output")


def choose(tuning: Tuning, path: Path, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Choose rates from finished runs, and add them to the file and to the choices made before. Raises ValueError if a
    family has no finished candidate."""
    families = read(path, tuning) | dict(before or {}) | {family: _chosen(tuning, family) for family in tuning.families}
    content = json.dumps(tuning.rule() | {"families": families}, indent=1, ensure_ascii=False) + "\n"
    atomic.write(path, content.encode())
    return families


def _chosen(tuning: Tuning, family: str) -> dict[str, Any]:
    candidates = [_candidate(tuning, family, rate) for rate in tuning.candidates]
    complete = [candidate for candidate in candidates if candidate["top1"] is not None]
    if not complete:
        reasons = sorted({run["failed"] for candidate in candidates for run in candidate["runs"] if run.get("failed")})
        raise ValueError(
            f"no learning rate of {family} could be tried: {'; '.join(reasons)}; solve that, or change --candidates"
        )
    best = min(complete, key=lambda c: (-c["top1"], float("inf") if c["loss"] is None else c["loss"], c["lr"]))
    model = tuning.task(family, best["lr"], tuning.seeds[0]).config
    edge = len(candidates) > 1 and best["lr"] in (min(tuning.candidates), max(tuning.candidates))
    facts = {"model": model.model, "options": model.facts()["options"], "at_the_edge_of_candidates": edge}
    return {"chosen": best["lr"], **facts, "candidates": candidates}


def _candidate(tuning: Tuning, family: str, rate: float) -> dict[str, Any]:
    runs = [_run(tuning.task(family, rate, seed)) for seed in tuning.seeds]
    complete = all("top1" in run for run in runs)
    finite = complete and all(run["loss"] is not None for run in runs)
    return {
        "lr": rate,
        "top1": fmean(run["top1"] for run in runs) if complete else None,
        "loss": fmean(run["loss"] for run in runs) if finite else None,
        "runs": runs,
    }


def _run(task: Task) -> dict[str, Any]:
    config, found = task.config, task.result()
    facts = {"seed": config.seed, "fingerprint": config.fingerprint()}
    if found is None:
        return facts | {"failed": task.run.failure() or "not finished"}
    return facts | {name: found[name] for name in ("top1", "loss", "train_seconds", "weights_sha256")}
