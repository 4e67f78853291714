"""What came of the runs of a reproduction: one small JSON file, from which its tables can be drawn again.

What all runs have in common is written once; a run's `facts` are what it differs in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from saprof import atomic
from studies.config import Config
from studies.executors import Task

SCHEMA = 1
FILE = "results.json"
KEPT = ("top1", "top5", "loss", "n", "params", "steps", "train_seconds", "weights_sha256")
"""What is taken over from a run's result."""
PASSING = ("argv", "memory_bytes", "time", "step", "flags")
"""What is no part of where a run was made."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Finished and failed runs of one study, and where they were made."""

    study: Mapping[str, Any]
    """data, epochs, seeds, tables and smoke, as asked for."""
    learning_rates: Mapping[str, Any] | None
    """The content of learning_rates.json; None where the recipe's rate is used."""
    where: Sequence[Mapping[str, Any]]
    """Provenances."""
    runs: Mapping[str, Mapping[str, Any]]
    """By fingerprint."""
    failed: Mapping[str, str]
    """Why a run is not there, by fingerprint."""

    def versions(self, run: Mapping[str, Any]) -> str:
        """What made a run, as far as rows of one table must agree on it."""
        where = self.where[run["where"]]
        return ", ".join(f"{name} {where['versions'].get(name)}" for name in ("saprof", "torch"))


def collect(study: Mapping[str, Any], learning_rates: Mapping[str, Any] | None, tasks: Iterable[Task]) -> Results:
    """What the folders of `tasks` hold."""
    where: list[dict[str, Any]] = []
    runs: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for task in tasks:
        found, fingerprint = task.result(), task.config.fingerprint()
        if found is None:
            failed[fingerprint] = task.run.failure() or "not finished"
            continue
        place = _place(task.folder)
        if place not in where:
            where.append(place)
        figures = {name: found[name] for name in KEPT}
        runs[fingerprint] = {"facts": task.config.facts(), "where": where.index(place)} | figures
        if task.judged:
            runs[fingerprint]["robustness"] = robust = _robustness(task)
            if robust is None:
                failed[fingerprint] = task.run.failure() or "not judged for robustness"
    return Results(study=study, learning_rates=learning_rates, where=where, runs=runs, failed=failed)


def _place(folder: Path) -> dict[str, Any]:
    """Where the last session that worked on a run was."""
    session = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sessions"][-1]
    return {name: value for name, value in session.items() if name not in PASSING}


def _robustness(task: Task) -> dict[str, Any] | None:
    """Accuracies in percent under what robustness.json tells of."""
    report = task.robustness()
    if report is None:
        return None

    def top1(scores: Mapping[str, Any]) -> dict[str, float]:
        return {name: score["top1"] for name, score in scores.items()}

    attacks = {name: {key: it[key] for key in ("success_rate", "top1")} for name, it in report["attacks"].items()}
    without = report.get("without")
    return {
        "n": report["manipulations"]["none"]["n"],
        "manipulations": top1(report["manipulations"]),
        "without": without and {"classes": without["classes"], "manipulations": top1(without["manipulations"])},
        "attacks": attacks,
    }


def write(path: Path, results: Results) -> None:
    """Keep the results, atomically."""
    every = [run["facts"] for run in results.runs.values()]
    common = {name: value for name, value in every[0].items() if all(f[name] == value for f in every)} if every else {}
    head = {"schema": SCHEMA, "study": results.study, "learning_rates": results.learning_rates}
    lines = []
    for fingerprint, run in results.runs.items():
        facts = {name: value for name, value in run["facts"].items() if name not in common}
        lines.append(json.dumps({"fingerprint": fingerprint, **run, "facts": facts}, ensure_ascii=False))
    rest = {"where": results.where, "failed": results.failed, "common": common}
    text = json.dumps(head | rest, indent=1, ensure_ascii=False)
    text = text.removesuffix("\n}") + ',\n "runs": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, text.encode())


def read(path: Path) -> Results:
    """The results in a folder's file; ValueError if there are none, or not of this schema."""
    if not path.exists():
        raise ValueError(f"{path} is not there; expected the folder of a reproduction, which holds {FILE}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from None
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {content.get('schema')!r}; expected {SCHEMA}")
    known = {field.name for field in fields(Config)}
    runs = {}
    for run in content["runs"]:
        facts = content["common"] | run["facts"]
        if not facts.keys() <= known:
            raise ValueError(
                f"{path} has runs with {', '.join(sorted(facts.keys() - known))}, which nobody knows any more"
            )
        runs[Config(**facts).fingerprint()] = run | {"facts": facts}  # fields that came later have their defaults
    parts = {name: content[name] for name in ("study", "learning_rates", "where", "failed")}
    return Results(runs=runs, **parts)
