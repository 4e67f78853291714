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
from studies.failures import CannotWrite
from studies.reproduction.executors import Task
from studies.training.run import Run

SCHEMA = 1
FILE = "results.json"
KEPT = ("top1", "top5", "loss", "n", "params", "steps", "train_seconds", "weights_sha256")
"""What is taken over from a run's result."""
PASSING = ("argv", "memory_bytes", "time", "step", "flags")
"""What is no part of where a run was made."""
NUMBER, NONE = (int, float), type(None)
CONTENT = {"study": dict, "learning_rates": (dict, NONE), "where": list, "failed": dict, "common": dict, "runs": list}
STUDY = {"data": str, "epochs": int, "backend": (str, NONE), "seeds": int}
RATES = {"rule": str, "data": str, "families": dict}
PLACE = {"versions": dict, "device": str, "threads": int, "cores": int, "commit": (str, NONE), "dirty": bool}
RUN = {"facts": dict, "where": int, "n": int, "params": int, "train_seconds": NUMBER, "top1": NUMBER}
RUN |= {"top5": (*NUMBER, NONE), "loss": (*NUMBER, NONE)}
"""The types of what a file must hold: at its top, of its study, of its learning rates, of a place, of a run."""
MEND = "fetch it again; or delete it, and the study's command makes it again from its runs"


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
        place = _place(task.run)
        if place not in where:
            where.append(place)
        figures = {name: found[name] for name in KEPT}
        runs[fingerprint] = {"facts": task.config.facts(), "where": where.index(place)} | figures
        if task.judged:
            runs[fingerprint]["robustness"] = robust = _robustness(task)
            if robust is None:
                failed[fingerprint] = task.run.failure() or "not judged for robustness"
    return Results(study=study, learning_rates=learning_rates, where=where, runs=runs, failed=failed)


def _place(run: Run) -> dict[str, Any]:
    """Where the last session that worked on a run was."""
    sessions = run.sessions()
    if not sessions:
        raise ValueError(f"{run.folder} does not record where its run was made; delete it, and the run is made again")
    return {name: value for name, value in sessions[-1].items() if name not in PASSING}


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


def prepare(folder: Path) -> None:
    """Make a study's folder, if it is not there; CannotWrite where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot write to {folder}: {error.strerror}; choose another --output") from None


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
    """The results in a folder's file; ValueError if there are none, or not of this schema, or not whole."""
    if not path.exists():
        raise ValueError(f"{path} is not there; expected the folder of a study that came to its end")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check(content)
        whole = [run | {"facts": content["common"] | run["facts"]} for run in content["runs"]]
        runs = {_fingerprint(run): run for run in whole}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {MEND}") from None
    return Results(runs=runs, **{name: content[name] for name in ("study", "learning_rates", "where", "failed")})


def _check(content: Any) -> None:
    """ValueError unless all is there that tables are drawn from."""
    _expect("it", content, {"schema": int})
    if content["schema"] != SCHEMA:
        raise ValueError(f"its schema is {content['schema']}, not {SCHEMA}")
    _expect("it", content, CONTENT)
    _expect("its study", content["study"], STUDY)
    rates = content["learning_rates"]
    if rates is not None:
        _expect("its learning rates", rates, RATES)
        for family, choice in rates["families"].items():
            _expect(f"the learning rate of {family}", choice, {"chosen": NUMBER})
    for number, place in enumerate(content["where"]):
        _expect(f"place {number}", place, PLACE)
    for number, run in enumerate(content["runs"]):
        _expect(f"run {number}", run, RUN)
        if not 0 <= run["where"] < len(content["where"]):
            raise ValueError(f"run {number} was made at place {run['where']} of {len(content['where'])}")
        if not (0 <= run["top1"] <= 100 and run["n"] > 0):
            raise ValueError(f"run {number} has a top-1 of {run['top1']} % of {run['n']} images")


def _expect(what: str, content: Any, types: Mapping[str, Any]) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{what} is {content!r}")
    for name, kind in types.items():
        if name not in content:
            raise ValueError(f"no {name} in {what}")
        if not isinstance(content[name], kind):
            raise ValueError(f"{name} in {what} is {content[name]!r}")


def _fingerprint(run: Mapping[str, Any]) -> str:
    """Of its config; fields that came later have their defaults."""
    foreign = sorted(run["facts"].keys() - {field.name for field in fields(Config)})
    if foreign:
        raise ValueError(f"there are runs with {', '.join(foreign)}, which nobody knows any more")
    try:
        return Config(**run["facts"]).fingerprint()
    except (TypeError, ValueError) as error:
        raise ValueError(f"no run can be like that: {error}") from None
