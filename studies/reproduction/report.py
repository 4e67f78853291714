"""The pages of a reproduction: the paper's figure, ours over seeds, the difference to the row's base, and a verdict.

Comparisons of one page are corrected for their number by Holm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from saprof import text
from saprof.paper import printed, robustness
from saprof.paper.recount import compute
from studies.judging import statistics
from studies.judging.statistics import Difference
from studies.reproduction.grid import ROBUSTNESS, SIDES, Cell, Study, cells
from studies.reproduction.records import Results

SMOKE = "smoke: pipeline only"
VARYING = ("model", "options", "lr", "seed")
"""What the runs of one table differ in."""
SATURATED = 10
"""Classes up to which top-5 says little."""
COMPARED = {
    "difference": "mean",
    "difference_low": "low",
    "difference_high": "high",
    "difference_level": "level",
    "p": "p",
    "p_holm": "p_adjusted",
    "seeds_compared": "n",
}
"""Fields of rows, and those of a Difference that they hold."""

Run = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a page says of one network and one measure."""

    cell: Cell
    setting: str
    measure: str
    paper: float | None
    base: int | None
    """The number of the line that it is compared with."""
    value: Callable[[Run], float | None]
    """Of a run, in percent or points."""


@dataclass(frozen=True, kw_only=True)
class Page:
    table: str
    caption: str
    caution: str
    rows: Sequence[Mapping[str, Any]]
    """Flat, for programs too."""
    missing: Sequence[str]
    """A sentence for every run that is not there."""
    smoke: bool = False

    @property
    def name(self) -> str:
        return f"table{self.table}" if self.table.isdigit() else self.table


def study(results: Results) -> Study:
    """What the runs had in common, with the learning rates that were chosen; ValueError if they are of several
    recipes."""
    chosen = results.learning_rates["families"] if results.learning_rates else {}
    rates = {family: choice["chosen"] for family, choice in chosen.items()}
    facts: dict[str, Any] = {}
    for run in results.runs.values():
        mine = {name: value for name, value in run["facts"].items() if name not in (*VARYING, "protocol")}
        facts = facts or mine
        if mine != facts:
            raise ValueError(_mixed("the study", facts, mine))
    asked = {name: results.study[name] for name in ("data", "epochs", "backend")}
    if facts and facts.get("epochs", asked["epochs"]) != asked["epochs"]:
        raise ValueError(f"the study is of {asked['epochs']} epochs, its runs of {facts['epochs']}; expected the same")
    return Study(**asked, rates=rates, facts=facts)


def _mixed(what: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    found = [f"{name} {one.get(name)!r} and {other.get(name)!r}" for name in other if one.get(name) != other[name]]
    return f"{what} would mix runs with {'; '.join(found)}; expected one of them"


def caution(data: str, seeds: int) -> str:
    """What every page says first."""
    spelled = text.counted(seeds, "seed")
    if data not in SIDES:
        return f"{spelled}; the paper has one run per row. Compared are the paper's networks by its own recipe."
    side = SIDES[data]
    name = f"digits-{side}x{side}" if data.startswith("digits") else f"{data}-{side}x{side}"
    return (
        f"{name} miniature, {spelled}, not ImageNet; the paper's number is shown for reference, "
        "the difference has no meaning; only sign, resolved or not, is compared."
    )


def page(table: str, results: Results) -> Page:
    """One table. ValueError if its runs are not of one data set, protocol, recipe and version."""
    asked = study(results)
    seeds = range(results.study["seeds"])
    lines = list(_lines(table, asked))
    found = [_runs(line.cell, seeds, results) for line in lines]
    _agree(table, [run for runs in found for run in runs.values()], results)
    smoke = bool(results.study["smoke"])
    values = [_values(line, runs) for line, runs in zip(lines, found, strict=True)]
    differences = _differences(lines, values)
    rows = [
        _row(number, lines, found[number], values[number], differences[number], len(seeds), smoke)
        for number in range(len(lines))
    ]
    caption = {"9": robustness.turned, "10": robustness.attacked}[table]().caption if table in ROBUSTNESS else ""
    return Page(
        table=table,
        caption=caption or printed.paper()[table].caption,
        caution=caution(asked.data, len(seeds)),
        rows=rows,
        missing=list(_missing(lines, seeds, results)),
        smoke=smoke,
    )


def _lines(table: str, asked: Study) -> Iterator[Line]:
    """The lines of a page: a row of the table, or a row under one manipulation or attack."""
    every = cells(table, asked)
    measures = {"9": _turned, "10": _attacked}.get(table, _accuracy)
    per_cell = [measures(cell) for cell in every]
    for cell, mine in zip(every, per_cell, strict=True):
        for number, (setting, measure, in_paper, value) in enumerate(mine):
            base = None if cell.base is None else cell.base * len(mine) + number
            yield Line(cell=cell, setting=setting, measure=measure, paper=in_paper, base=base, value=value)


Measure = tuple[str, str, float | None, Callable[[Run], float | None]]


def _accuracy(cell: Cell) -> list[Measure]:
    setting = "" if cell.row.setting is None else str(cell.row.setting)
    return [(setting, "top-1", cell.row.top1, lambda run: run["top1"])]


def _turned(cell: Cell) -> list[Measure]:
    row = robustness.turned().row(cell.row.model)
    assert row is not None

    def drop(name: str) -> Callable[[Run], float | None]:
        def value(run: Run) -> float | None:
            found = (run.get("robustness") or {}).get("manipulations", {})
            return found["none"] - found[name] if name in found else None

        return value

    names = [name for name in row.manipulations if name != "none"]
    return [(name, "top-1 drop", row.manipulations[name].top1_drop, drop(name)) for name in names]


def _attacked(cell: Cell) -> list[Measure]:
    row = robustness.attacked().row(cell.row.model)
    assert row is not None

    def of(attack: str, key: str) -> Callable[[Run], float | None]:
        return lambda run: (run.get("robustness") or {}).get("attacks", {}).get(attack, {}).get(key)

    from studies.judging.perturbations import ATTACKS

    found: list[Measure] = []
    for attack in dict.fromkeys([*row.attacks, *(attack.name for attack in ATTACKS)]):
        printed = row.attacks.get(attack)
        found.append((attack, "success rate", printed and printed.success_rate, of(attack, "success_rate")))
        found.append((attack, "top-1", printed and printed.top1, of(attack, "top1")))
    return found


def _runs(cell: Cell, seeds: Sequence[int], results: Results) -> dict[int, Run]:
    """The finished runs of a cell by seed."""
    keys = {seed: replace(cell.config, seed=seed).fingerprint() for seed in seeds}
    return {seed: results.runs[key] for seed, key in keys.items() if key in results.runs}


def _agree(table: str, runs: Sequence[Run], results: Results) -> None:
    """ValueError unless the runs may stand in one table."""
    alike = [{name: value for name, value in run["facts"].items() if name not in VARYING} for run in runs]
    for facts in alike:
        if facts != alike[0]:
            raise ValueError(_mixed(f"table {table}", alike[0], facts))
    versions = sorted({results.versions(run) for run in runs})
    if len(versions) > 1:
        raise ValueError(f"table {table} would mix runs of {' and '.join(versions)}; train again with one of them")


def _values(line: Line, runs: Mapping[int, Run]) -> dict[int, float]:
    found = {seed: line.value(run) for seed, run in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _differences(lines: Sequence[Line], values: Sequence[Mapping[int, float]]) -> list[Difference | None]:
    """Each line less its base, over the seeds that both have, corrected for the number of comparisons that the paper
    makes."""
    plain: dict[int, Difference] = {}
    for number, line in enumerate(lines):
        if line.base is None:
            continue
        ours, base = values[number], values[line.base]
        both = sorted(ours.keys() & base.keys())
        if both:
            plain[number] = statistics.paired({s: ours[s] for s in both}, {s: base[s] for s in both})
    claims = [number for number in plain if lines[number].paper is not None]
    corrected = dict(zip(claims, statistics.holm([plain[number] for number in claims]), strict=True))
    return [(plain | corrected).get(number) for number in range(len(lines))]


def label(line: Line) -> str:
    """A line's name in a sentence."""
    setting = f", {line.setting}" if line.setting else ""
    return f"{line.cell.row.network} {line.cell.row.family}{setting}"


def _row(
    number: int,
    lines: Sequence[Line],
    runs: Mapping[int, Run],
    values: Mapping[int, float],
    difference: Difference | None,
    seeds: int,
    smoke: bool,
) -> dict[str, Any]:
    """The line as a flat record."""
    line, cell = lines[number], lines[number].cell
    base = None if line.base is None else lines[line.base]
    known = base is not None and line.paper is not None and base.paper is not None
    printed = round(line.paper - base.paper, 3) if known else None  # pyright: ignore
    full = _full_size(cell)
    row: dict[str, Any] = {
        "table": cell.table,
        "network": cell.row.network,
        "family": cell.row.family,
        "setting": line.setting,
        "measure": line.measure,
        "paper": line.paper,
        "seeds": len(values),
        "seeds_asked": seeds,
        "against": "" if base is None else label(base),
        "paper_difference": printed,
        "params_full_size": full["params"],
        "flops_paper_full_size": full["flops_paper"],
        "protocol": cell.config.protocol,
        "data": cell.config.data,
        "model": cell.config.model,
        "options": json.dumps(cell.config.facts()["options"], ensure_ascii=False),
        "lr": cell.config.lr,
        "note": cell.note,
    }
    if smoke:
        return row | {"verdict": SMOKE if base is not None else ""}
    verdict = statistics.verdict(printed, difference) if base is not None else None
    return row | _ours(line, runs, values) | compared(difference) | {"verdict": str(verdict or "")}


def _ours(line: Line, runs: Mapping[int, Run], values: Mapping[int, float]) -> dict[str, Any]:
    if not values:
        return {}
    over = statistics.mean(list(values.values()))
    ours: dict[str, Any] = {"ours": over.mean, "sd": over.sd, "low": over.low, "high": over.high}
    these = [runs[seed] for seed in values]
    if line.measure == "top-1" and line.cell.table not in ROBUSTNESS:
        ours |= over_images(these, over.mean)
        ours["top5"] = statistics.mean([run["top5"] for run in these]).mean
        ours["loss"] = mean_loss(these)
    if line.measure == "top-1 drop":
        ours |= _steady(line, these)
    seconds = statistics.mean([run["train_seconds"] for run in these]).mean
    return ours | {"params": these[0]["params"], "seconds_per_run": seconds}


def _steady(line: Line, runs: Sequence[Run]) -> dict[str, Any]:
    """The drop once more, less the classes that become others when turned."""
    parts = [run["robustness"]["without"] for run in runs]
    if not all(parts):
        return {}
    drops = [part["manipulations"]["none"] - part["manipulations"][line.setting] for part in parts]
    return {"without_classes": " ".join(parts[0]["classes"]), "ours_without": statistics.mean(drops).mean}


def compared(difference: Difference | None) -> dict[str, Any]:
    """What a row tells of a difference; nothing of none."""
    return {} if difference is None else {name: getattr(difference, field) for name, field in COMPARED.items()}


def over_images(runs: Sequence[Run], top1: float) -> dict[str, Any]:
    """What other images would give of a mean top-1."""
    n = runs[0]["n"]
    low, high = statistics.wilson(round(top1 * n / 100), n)
    return {"images": n, "low_over_images": low, "high_over_images": high}


def mean_loss(runs: Sequence[Run]) -> float | None:
    """Over the runs that have a finite one."""
    losses = [run["loss"] for run in runs if run["loss"] is not None]
    return statistics.mean(losses).mean if losses else None


def paired(compared: int) -> str:
    """What has to be said of so many differences of one table."""
    return (
        f"Differences are paired by seed. p is of the paired t test, corrected for the {compared} comparisons of this "
        "table by Holm, and intervals are at the levels of Holm's steps. The interval over seeds asks what another "
        "seed would give, the one over images what other images would."
    )


def _full_size(cell: Cell) -> Mapping[str, Any]:
    """Parameters and FLOPs of the paper's network."""
    table = "3" if cell.table in ROBUSTNESS else cell.table
    wanted = (cell.row.model, json.dumps(cell.row.overrides))
    for name in dict.fromkeys((table, "4")):  # Sec. 5.3 is set against a row of Table 4
        for row in printed.rows(name):
            if (row.model, json.dumps(row.overrides)) == wanted:
                return _computed(name)[wanted]
    raise AssertionError(wanted)


@cache
def _computed(table: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["model"], row["overrides"]): row for row in compute([table])}


def _missing(lines: Sequence[Line], seeds: Sequence[int], results: Results) -> Iterator[str]:
    told = set()
    for line in lines:
        for seed in seeds:
            key = replace(line.cell.config, seed=seed).fingerprint()
            run = results.runs.get(key)
            absent = run is None or (line.cell.table in ROBUSTNESS and not run.get("robustness"))
            if absent and key not in told:
                told.add(key)
                yield f"{label(line)}, seed {seed}: {results.failed.get(key, 'not run')} (run {key})"


def render(shown: Page, form: str) -> str:
    """A page as md, csv or json."""
    if form == "json":
        head = {"table": shown.table, "caption": shown.caption, "caution": shown.caution}
        return json.dumps(head | {"rows": shown.rows, "missing": shown.missing}, ensure_ascii=False, indent=1)
    if form == "csv":
        return text.records([{"caution": shown.caution} | dict(row) for row in shown.rows], "csv")
    return "\n\n".join([f"# {shown.caption}", f"**{shown.caution}**", _table(shown), *_notes(shown)])


def _table(shown: Page) -> str:
    columns = list(_columns(shown))
    body = [[cell(row) for _, cell in columns] for row in shown.rows]
    return text.align([name for name, _ in columns], body, "md")


Writer = Callable[[Mapping[str, Any]], str]


def _columns(shown: Page) -> Iterator[tuple[str, Writer]]:
    """The columns of a page for people, those that are empty left out."""
    rows, measures = shown.rows, dict.fromkeys(row["measure"] for row in shown.rows)
    yield "network", lambda row: f"{row['network']}"
    yield "family", lambda row: row["family"]
    if any(row["setting"] for row in rows):
        yield "setting", lambda row: row["setting"]
    if len(measures) > 1:
        yield "measure", lambda row: row["measure"]
        name = "%"
    else:
        (name,) = measures
    yield f"paper's {name}", lambda row: number(row["paper"])
    yield f"our {name}, mean [95 % over seeds]", lambda row: interval(row, "ours", "low", "high")
    yield "seeds", lambda row: f"{row['seeds']} of {row['seeds_asked']}"
    if any(row.get("ours_without") is not None for row in rows):
        classes = next(row["without_classes"] for row in rows if row.get("without_classes"))
        yield f"without classes {classes}", lambda row: number(row.get("ours_without"))
    if any(row.get("low_over_images") is not None for row in rows):
        yield "95 % over images", lambda row: between(row, "low_over_images", "high_over_images")
    yield "against", lambda row: row["against"]
    yield "paper's Δ", lambda row: number(row["paper_difference"], "+")
    yield "our Δ [Holm]", lambda row: interval(row, "difference", "difference_low", "difference_high", "+")
    yield "p (Holm)", lambda row: probability(row.get("p_holm"))
    yield "verdict", lambda row: row["verdict"]
    if any(row.get("top5") is not None for row in rows):
        few = all(row["data"] in SIDES for row in rows)
        yield "top-5" + " (10 classes: saturated)" * few, lambda row: number(row.get("top5"))
        yield "loss", lambda row: "" if row.get("loss") is None else f"{row['loss']:.3f}"
    yield "params, full size", lambda row: f"{row['params_full_size']:,}"
    yield "FLOPs, full size (paper convention)", lambda row: f"{row['flops_paper_full_size']:,}"
    yield "params here", lambda row: "" if row.get("params") is None else f"{row['params']:,}"
    if any(row["note"] for row in rows):
        yield "note", lambda row: row["note"]


def number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.1f}"


def probability(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def between(row: Mapping[str, Any], low: str, high: str, sign: str = "") -> str:
    if row.get(low) is None:
        return ""
    return f"[{number(row[low], sign)}, {number(row[high], sign)}]"


def interval(row: Mapping[str, Any], centre: str, low: str, high: str, sign: str = "") -> str:
    return f"{number(row.get(centre), sign)} {between(row, low, high, sign)}".strip()


def _notes(shown: Page) -> Iterator[str]:
    if shown.smoke:
        yield f"{SMOKE}. One seed and too few epochs to say anything: no figure of ours is shown."
    compared = sum(row.get("p_holm") is not None for row in shown.rows)
    if compared:
        yield paired(compared)
    if any(row["table"] == "10" and row["paper"] is None for row in shown.rows):
        yield "Attacks wider than the paper's are shown without a claim, and are no part of the correction."
    if shown.missing:
        yield "\n".join([f"{len(shown.missing)} runs are not in this table:", "", *(f"- {it}" for it in shown.missing)])
