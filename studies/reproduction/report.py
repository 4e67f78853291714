"""The pages of the paper's tables: the paper's figure, ours over seeds, the difference from the row's base, and a
verdict. Differences of one page are corrected for their number by Holm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from saprof import text
from saprof.paper import printed, robustness
from studies.judging import statistics
from studies.judging.statistics import Difference
from studies.reproduction import markdown, sizes
from studies.reproduction.comparisons import (
    Run,
    compared,
    differences,
    mean_loss,
    mean_seconds,
    over_images,
    over_seeds,
)
from studies.reproduction.grid import ROBUSTNESS, Cell, cells, table_name
from studies.reproduction.markdown import between, interval, number, probability
from studies.reproduction.miniatures import SIDES
from studies.reproduction.records import Results
from studies.reproduction.study import Study

SMOKE = "smoke: pipeline only"
FLOPS = {convention: words for _, convention, words in printed.PAPERS.values()}
"""The conventions of FLOPs, in words."""
JUDGED = {
    "val-split": "images held out of the training set",
    "val-original": "the data set's own images for validation or test",
}
"""The images on which a network is judged, by protocol."""
VARYING = ("model", "options", "lr", "seed")
"""Fields in which the runs of one table differ."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One network and one measure of a page."""

    cell: Cell
    setting: str
    measure: str
    paper: float | None
    base: int | None
    """The number of the line that this one is compared with."""
    value: Callable[[Run], float | None]
    """The measure of a run, in percent or points."""


@dataclass(frozen=True, kw_only=True)
class Page:
    table: str
    caption: str
    caution: str
    rows: Sequence[Mapping[str, Any]]
    """Flat records."""
    missing: Sequence[str]
    """A sentence for every missing run."""
    smoke: bool = False
    protocol: str = "val-split"
    """The images on which all rows are judged."""

    @property
    def name(self) -> str:
        return table_name(self.table)


def study(results: Results) -> Study:
    """The study that recorded runs belong to, with its chosen learning rates. Raises ValueError if the runs are of
    several recipes."""
    facts: dict[str, Any] = {}
    for run in results.runs.values():
        mine = {name: value for name, value in run["facts"].items() if name not in (*VARYING, "protocol")}
        facts = facts or mine
        if mine != facts:
            raise ValueError(_mixed("the study", facts, mine))
    stated: dict[str, Any] = {name: results.study[name] for name in ("data", "epochs", "backend")} | {
        "paper": results.paper
    }
    if facts and facts.get("epochs", stated["epochs"]) != stated["epochs"]:
        raise ValueError(f"the study is of {stated['epochs']} epochs, its runs of {facts['epochs']}; expected the same")
    return Study(**stated, facts=facts).with_rates(results.learning_rates["families"] if results.learning_rates else {})


def _mixed(what: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    found = [f"{name} {one.get(name)!r} and {other.get(name)!r}" for name in other if one.get(name) != other[name]]
    return f"{what} would mix runs with {'; '.join(found)}; expected one of them"


def caution(data: str, seeds: int, of: str = "san") -> str:
    """The first sentence of every page."""
    spelled = text.counted(seeds, "seed")
    if data not in SIDES and of == "sasa":
        return (
            f"{spelled}; the paper does not say how many runs a row has. Compared are the paper's networks by its "
            "recipe as far as it is known; the comments of the recipe sasa_imagenet say what is not."
        )
    if data not in SIDES:
        return (
            f"{spelled}; the paper has one run per row. Compared are the paper's networks by its own recipe. Our "
            "figures are of the last epoch; the paper's may be of the epoch that is best on the validation set, which "
            "the authors' script keeps and tests."
        )
    side = SIDES[data]
    name = f"digits-{side}x{side}" if data.startswith("digits") else f"{data}-{side}x{side}"
    return (
        f"{name} miniature, {spelled}, not ImageNet; the paper's numbers are shown for reference. Only the sign of a "
        "difference is compared, and whether its interval lies within the paper's difference."
    )


def page(table: str, results: Results) -> Page:
    """One table. Raises ValueError if its runs are not of one data set, protocol, recipe and version."""
    common = study(results)
    seeds, smoke = results.study["seeds"], bool(results.study["smoke"])
    lines = list(_lines(table, common))
    found = [results.by_seed(line.cell.config) for line in lines]
    _check_alike(table, [run for runs in found for run in runs.values()], results)
    values = [_values(line, runs) for line, runs in zip(lines, found, strict=True)]
    against_base = differences(values, [line.base for line in lines], [line.paper is not None for line in lines])
    measured = [Measured(*parts) for parts in zip(found, values, against_base, strict=True)]
    rows = [
        _row(line, None if line.base is None else lines[line.base], figures, seeds, smoke)
        for line, figures in zip(lines, measured, strict=True)
    ]
    return Page(
        table=table,
        caption=_caption(table, common.paper),
        caution=caution(common.data, seeds, common.paper),
        rows=rows,
        missing=list(_missing(lines, results)),
        smoke=smoke,
        protocol=lines[0].cell.config.protocol,
    )


def _caption(table: str, of: str) -> str:
    if of == "san" and table in ROBUSTNESS:
        return {"9": robustness.turned, "10": robustness.attacked}[table]().caption
    return printed.paper(of)[table].caption


def _lines(table: str, common: Study) -> Iterator[Line]:
    """The lines of a page: the rows of the table, or the rows under every manipulation or attack."""
    every = cells(table, common)
    measures = {"9": _turned, "10": _attacked}.get(table, _accuracy)
    per_cell = [measures(cell) for cell in every]
    for cell, mine in zip(every, per_cell, strict=True):
        for place, (setting, measure, in_paper, value) in enumerate(mine):
            base = None if cell.base is None else cell.base * len(mine) + place
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

    def measured(attack: str, key: str) -> Callable[[Run], float | None]:
        return lambda run: (run.get("robustness") or {}).get("attacks", {}).get(attack, {}).get(key)

    from studies.judging.perturbations import ATTACKS

    found: list[Measure] = []
    for attack in dict.fromkeys([*row.attacks, *(attack.name for attack in ATTACKS)]):
        printed = row.attacks.get(attack)
        found.append((attack, "success rate", printed and printed.success_rate, measured(attack, "success_rate")))
        found.append((attack, "top-1", printed and printed.top1, measured(attack, "top1")))
    return found


def _check_alike(table: str, runs: Sequence[Run], results: Results) -> None:
    """Raise ValueError unless the runs may be in one table."""
    alike = [{name: value for name, value in run["facts"].items() if name not in VARYING} for run in runs]
    for facts in alike:
        if facts != alike[0]:
            raise ValueError(_mixed(f"table {table}", alike[0], facts))
    results.check_versions(f"table {table}", runs)


def _values(line: Line, runs: Mapping[int, Run]) -> dict[int, float]:
    found = {seed: line.value(run) for seed, run in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def label(line: Line) -> str:
    """The name of a line in a sentence."""
    setting = f", {line.setting}" if line.setting else ""
    return f"{line.cell.row.network} {line.cell.row.family}{setting}"


class Measured(NamedTuple):
    """What was measured for a line."""

    runs: Mapping[int, Run]
    """Finished runs by seed."""
    values: Mapping[int, float]
    """The line's measure by seed."""
    difference: Difference | None
    """The difference from the line's base."""


def _row(line: Line, base: Line | None, measured: Measured, seeds: int, smoke: bool) -> dict[str, Any]:
    """The line as a flat record."""
    cell = line.cell
    known = base is not None and line.paper is not None and base.paper is not None
    claimed = round(line.paper - base.paper, 3) if known else None  # pyright: ignore
    full, flops = sizes.full_size(cell), f"flops_{printed.PAPERS[cell.paper][1]}"
    row: dict[str, Any] = {
        "table": cell.table,
        "network": cell.row.network,
        "family": cell.row.family,
        "setting": line.setting,
        "measure": line.measure,
        "paper": line.paper,
        "seeds": len(measured.values),
        "seeds_asked": seeds,
        "against": "" if base is None else label(base),
        "paper_difference": claimed,
        "params_full_size": full["params"],
        f"{flops}_full_size": full[flops],
        "protocol": cell.config.protocol,
        "data": cell.config.data,
        "model": cell.config.model,
        "options": json.dumps(cell.config.facts()["options"], ensure_ascii=False),
        "lr": cell.config.lr,
        "note": cell.note,
    }
    if cell.paper == "sasa" and base is not None and cell.config.data in SIDES:
        shares = sizes.shares(cell, base.cell)
        row |= shares | {"note": "; ".join(filter(None, [cell.note, sizes.spelled(shares)]))}
    if smoke:
        return row | {"verdict": SMOKE if base is not None else ""}
    verdict = statistics.verdict(claimed, measured.difference) if base is not None else ""
    return row | _ours(line, measured) | compared(measured.difference) | {"verdict": str(verdict)}


def _ours(line: Line, measured: Measured) -> dict[str, Any]:
    """The fields of our figures; empty if no run is finished."""
    if not measured.values:
        return {}
    ours = over_seeds("ours", list(measured.values.values()))
    runs = [measured.runs[seed] for seed in measured.values]
    if line.measure == "top-1" and line.cell.table not in ROBUSTNESS:
        ours |= over_images(runs, ours["ours"])
        if all(run.get("best_top1") is not None for run in runs):
            ours["best_top1"] = statistics.mean([run["best_top1"] for run in runs]).mean
        ours["top5"] = statistics.mean([run["top5"] for run in runs]).mean
        ours["loss"] = mean_loss(runs)
    if line.measure == "top-1 drop":
        ours |= _without_confused(line, runs)
    return ours | {"params": runs[0]["params"], "seconds_per_run": mean_seconds(runs)}


def _without_confused(line: Line, runs: Sequence[Run]) -> dict[str, Any]:
    """The drop without the classes whose rotated images look like another class."""
    parts = [run["robustness"]["without"] for run in runs]
    if not all(parts):
        return {}
    drops = [part["manipulations"]["none"] - part["manipulations"][line.setting] for part in parts]
    return {"without_classes": " ".join(parts[0]["classes"]), "ours_without": statistics.mean(drops).mean}


def _missing(lines: Sequence[Line], results: Results) -> Iterator[str]:
    seen = set()
    for line in lines:
        for seed, key in results.keys(line.cell.config).items():
            run = results.runs.get(key)
            absent = run is None or (line.cell.table in ROBUSTNESS and not run.get("robustness"))
            if absent and key not in seen:
                seen.add(key)
                yield results.absence(label(line), seed, key)


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
    """The columns of a page, without those that are empty."""
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
    if any(row.get("best_top1") is not None for row in rows):
        yield "our best epoch, mean", lambda row: number(row.get("best_top1"))
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
    yield "resolvable Δ", lambda row: number(row.get("resolvable"))
    yield "verdict", lambda row: row["verdict"]
    if any(row.get("top5") is not None for row in rows):
        few = all(row["data"] in SIDES for row in rows)
        yield "top-5" + " (10 classes: saturated)" * few, lambda row: number(row.get("top5"))
        yield "loss", lambda row: markdown.loss(row.get("loss"))
    yield "params, full size", lambda row: markdown.count(row["params_full_size"])
    convention, words = next(facts for facts in FLOPS.items() if f"flops_{facts[0]}_full_size" in rows[0])
    yield f"FLOPs, full size ({words})", lambda row: markdown.count(row[f"flops_{convention}_full_size"])
    yield "params here", lambda row: markdown.count(row.get("params"))
    if any(row["note"] for row in rows):
        yield "note", lambda row: row["note"]


def _notes(shown: Page) -> Iterator[str]:
    if shown.smoke:
        yield f"{SMOKE}. One seed and too few epochs to say anything: no figure of ours is shown."
    yield from markdown.holm_note(shown.rows)
    if any(row.get("p_holm") is not None for row in shown.rows):
        yield markdown.VERDICT_NOTE
    if any(row["table"] == "10" and row["paper"] is None for row in shown.rows):
        yield "Attacks wider than the paper's are shown without a claim, and are no part of the correction."
    yield f"Judged on {JUDGED[shown.protocol]} ({shown.protocol})."
    if shown.missing:
        yield markdown.bullets(f"{len(shown.missing)} runs are not in this table", shown.missing)
