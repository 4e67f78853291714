"""The results of a study: one small JSON file, from which its pages can be drawn again.

Settings that all runs share are written once; the `facts` of a run are the settings in which it differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from saprof import atomic
from saprof.text import counted
from studies.config import Config, before_later_fields
from studies.detection.evaluation import NUMBERS
from studies.failures import CannotWrite
from studies.reproduction.executors import Task
from studies.training.run import Run

SCHEMA = 1
FILE = "results.json"
KEPT = ("top1", "top5", "loss", "n", "params", "steps", "train_seconds", "weights_sha256")
"""Fields that are copied from a run's result. `best_top1` is copied as well if every epoch was judged."""
KEPT_OF_DETECTORS = (*NUMBERS, "per_class", "n", "params", "steps", "train_seconds", "weights_sha256")
"""The same of a run of a detector."""
PASSING = ("argv", "memory_bytes", "time", "step", "flags")
"""Fields of a session that do not describe where a run was made."""
NUMBER, NONE = (int, float), type(None)
CONTENT = {"study": dict, "learning_rates": (dict, NONE), "where": list, "failed": dict, "common": dict, "runs": list}
STUDY = {"data": str, "epochs": int, "backend": (str, NONE), "seeds": int}
RATES = {"rule": str, "data": str, "families": dict}
PLACE = {"versions": dict, "device": str, "threads": int, "cores": int, "commit": (str, NONE), "dirty": bool}
RUN = {"facts": dict, "where": int, "n": int, "params": int, "train_seconds": NUMBER, "top1": NUMBER}
RUN |= {"top5": (*NUMBER, NONE), "loss": (*NUMBER, NONE)}
COMMON_OF_RUNS = ("facts", "where", "n", "params", "train_seconds")
RUN_OF_DETECTOR = {name: RUN[name] for name in COMMON_OF_RUNS} | dict.fromkeys(NUMBERS, (*NUMBER, NONE))
"""The types of required fields: of the file, of its study, of its learning rates, of a place, and of a run."""
REMEDY = "fetch it again; or delete it, and the study's command makes it again from its runs"


@dataclass(frozen=True, kw_only=True)
class Results:
    """Finished and failed runs of one study, and the machines and software that made them."""

    study: Mapping[str, Any]
    """The request: data, epochs, backend and seeds, and the settings of one kind of study, such as tables."""
    learning_rates: Mapping[str, Any] | None
    """The content of learning_rates.json; None if the recipe's rate is used."""
    where: Sequence[Mapping[str, Any]]
    """Provenances."""
    runs: Mapping[str, Mapping[str, Any]]
    """Finished runs by fingerprint."""
    failed: Mapping[str, str]
    """Reasons why runs are missing, by fingerprint."""

    @property
    def paper(self) -> str:
        """The paper whose tables were reproduced; early results of SAN do not say so."""
        return self.study.get("paper", "san")

    def keys(self, config: Config) -> dict[int, str]:
        """The fingerprints of a config's runs, by seed."""
        return {seed: replace(config, seed=seed).fingerprint() for seed in range(self.study["seeds"])}

    def by_seed(self, config: Config) -> dict[int, Mapping[str, Any]]:
        """The finished runs of a config, by seed."""
        return {seed: self.runs[key] for seed, key in self.keys(config).items() if key in self.runs}

    def absence(self, label: str, seed: int, key: str) -> str:
        """The sentence about a missing run."""
        return f"{label}, seed {seed}: {self.failed.get(key, 'not run')} (run {key})"

    def versions(self, run: Mapping[str, Any]) -> str:
        """The versions that made a run; runs of one table must agree on them."""
        where = self.where[run["where"]]
        return ", ".join(f"{name} {where['versions'].get(name)}" for name in ("saprof", "torch"))

    def check_versions(self, title: str, runs: Iterable[Mapping[str, Any]]) -> None:
        """Raise ValueError if the runs of a page, `title`, were made by several versions."""
        versions = sorted({self.versions(run) for run in runs})
        if len(versions) > 1:
            raise ValueError(f"{title} would mix runs of {' and '.join(versions)}; train again with one of them")


def unrecorded(tasks: Iterable[Task], before: Results | None) -> list[Task]:
    """The tasks whose results earlier sessions have not recorded."""
    found = {} if before is None else before.runs
    return [task for task in tasks if not task.recorded_in(found)]


def collect(
    study: Mapping[str, Any],
    learning_rates: Mapping[str, Any] | None,
    tasks: Iterable[Task],
    before: Results | None = None,
) -> Results:
    """The result of each task: that of an earlier session if it is complete, else that in the folder of the task."""
    where: list[Mapping[str, Any]] = [] if before is None else list(before.where)
    runs: dict[str, Mapping[str, Any]] = {}
    earlier = {} if before is None else before.runs
    failed: dict[str, str] = {}
    for task in tasks:
        found, fingerprint = task.result(), task.config.fingerprint()
        if task.recorded_in(earlier) or (found is None and fingerprint in earlier):
            runs[fingerprint] = earlier[fingerprint]
            if not task.recorded_in(earlier):
                failed[fingerprint] = "not judged for robustness"
            continue
        if found is None:
            told = None if before is None else before.failed.get(fingerprint)
            failed[fingerprint] = task.run.failure() or told or "not finished"
            continue
        place = _place(task.run)
        if place not in where:
            where.append(place)
        figures = {name: found[name] for name in (KEPT_OF_DETECTORS if _detects(found) else KEPT)}
        if not _detects(found) and found.get("judged_epochs") == task.config.epochs:
            figures["best_top1"] = found["best_top1"]
        run: dict[str, Any] = {"facts": task.config.facts(), "where": where.index(place)} | figures
        runs[fingerprint] = run
        if task.judged:
            run["robustness"] = robust = _robustness(task)
            if robust is None:
                failed[fingerprint] = task.run.failure() or "not judged for robustness"
    return Results(study=study, learning_rates=learning_rates, where=where, runs=runs, failed=failed)


def _place(run: Run) -> dict[str, Any]:
    """The provenance of the last session that worked on a run."""
    sessions = run.sessions()
    if not sessions:
        raise ValueError(f"{run.folder} does not record where its run was made; delete it, and the run is made again")
    return {name: value for name, value in sessions[-1].items() if name not in PASSING}


def _robustness(task: Task) -> dict[str, Any] | None:
    """Accuracies in percent under the conditions in robustness.json."""
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


def merged(one: Results, other: Results) -> Results:
    """The runs of both, with the seeds and tables of both. Where both have a run or a rate, that of `one` is taken;
    a run that only `other` has judged for robustness is taken from there."""
    where, runs = list(one.where), dict(one.runs)
    for key, run in other.runs.items():
        if key in runs and (runs[key].get("robustness") or not run.get("robustness")):
            continue
        place = other.where[run["where"]]
        if place not in where:
            where.append(place)
        runs[key] = {**run, "where": where.index(place)}
    study = dict(one.study) | {"seeds": max(one.study["seeds"], other.study["seeds"])}
    if "tables" in one.study:
        study["tables"] = list(dict.fromkeys([*one.study["tables"], *other.study["tables"]]))
    rates = one.learning_rates or other.learning_rates
    if one.learning_rates and other.learning_rates:
        families = {**other.learning_rates["families"], **one.learning_rates["families"]}
        rates = {**one.learning_rates, "families": families}
    failed = {key: why for key, why in {**other.failed, **one.failed}.items() if key not in runs}
    failed |= {key: why for key, why in one.failed.items() if key in runs and key in one.runs}
    return Results(study=study, learning_rates=rates, where=where, runs=runs, failed=failed)


def keep_all(path: Path, results: Results, expected: Iterable[str]) -> None:
    """Raise ValueError if `results`, the content of the file at `path`, has a run that is not among the expected
    fingerprints: the next write would drop it."""
    lost = sorted(results.runs.keys() - set(expected))
    if lost:
        run = results.runs[lost[0]]
        settings = {name: run["facts"][name] for name in ("model", "options", "lr", "seed")}
        raise ValueError(
            f"{path} has {counted(len(lost), 'run')} that this study does not make, and that would be dropped, such as "
            f"{settings}. Networks, recipe, learning rates or options have changed since; choose another folder for "
            "the results"
        )


def _detects(run: Mapping[str, Any]) -> bool:
    """Whether a result or a recorded run is of a detector."""
    return NUMBERS[0] in run


def prepare(folder: Path) -> None:
    """Make a study's folder if it does not exist. Raises CannotWrite if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot write to {folder}: {error.strerror}; choose another --output") from None


def write(path: Path, results: Results) -> None:
    """Write the results atomically. Raises ValueError if the file that is there is damaged, or has runs that these
    results lack."""
    if path.exists():
        keep_all(path, read(path), results.runs)
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
    """The results in a file. Raises ValueError if the file is missing, damaged or of another schema."""
    if not path.exists():
        raise ValueError(f"{path} is missing; expected the folder of a finished study")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check(content)
        common = before_later_fields() | content["common"]
        whole = [run | {"facts": common | run["facts"]} for run in content["runs"]]
        runs = {_fingerprint(run): run for run in whole}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {REMEDY}") from None
    return Results(runs=runs, **{name: content[name] for name in ("study", "learning_rates", "where", "failed")})


def _check(content: Any) -> None:
    """Raise ValueError if a field that pages need is missing or wrong."""
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
        detects = isinstance(run, dict) and _detects(run)
        _expect(f"run {number}", run, RUN_OF_DETECTOR if detects else RUN)
        if not 0 <= run["where"] < len(content["where"]):
            raise ValueError(f"run {number} was made at place {run['where']} of {len(content['where'])}")
        if detects:
            continue
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
    """The fingerprint of a run's config; fields of Config that are newer than the file have their defaults."""
    foreign = sorted(run["facts"].keys() - {field.name for field in fields(Config)})
    if foreign:
        raise ValueError(f"there are runs with {', '.join(foreign)}; expected fields of studies.config.Config")
    try:
        return Config(**run["facts"]).fingerprint()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the config of a run is impossible: {error}") from None
