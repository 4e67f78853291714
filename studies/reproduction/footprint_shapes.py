"""The study of footprint shapes: networks that differ in the footprint of their first stage, compared at equally many
taps, and their page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saprof import text
from saprof.operators.footprint import Footprint
from saprof.paper.printed import PaperRow
from saprof.text import counted
from studies.config import Config
from studies.reproduction import comparisons, markdown, one_page, rates, records, report
from studies.reproduction.budget import BANDWIDTH, budget
from studies.reproduction.executors import Executor, Task
from studies.reproduction.markdown import between, interval, probability
from studies.reproduction.miniatures import SIDES, stages
from studies.reproduction.records import Results
from studies.reproduction.study import Study, by_seed

if TYPE_CHECKING:
    import pandas as pd

FAMILIES = tuple(family for family in rates.DEFAULTS["san"] if family != "convolution")
PROTOCOL = "val-split"


@dataclass(frozen=True, kw_only=True)
class Network:
    """The small network of a family, with a footprint in its first stage."""

    family: str
    footprint: Footprint
    config: Config
    """Without seed and folder."""

    def __str__(self) -> str:
        return f"{self.family}, {self.footprint}"


Group = Sequence[Network]
"""Networks whose footprints have equally many taps."""


def networks(study: Study, families: Sequence[str], footprints: Sequence[Footprint]) -> list[list[Network]]:
    """One group per number of taps, in the order of `footprints`; within a group, families and then footprints."""
    groups = dict.fromkeys(footprint.taps for footprint in footprints)
    return [
        [
            _network(study, family, footprint)
            for family in families
            for footprint in footprints
            if footprint.taps == taps
        ]
        for taps in groups
    ]


def _network(study: Study, family: str, footprint: Footprint) -> Network:
    row = PaperRow(
        family=family,
        network="",
        model=rates.DEFAULTS["san"][family],
        overrides={"footprints": (3, str(footprint))},  # the second entry is the first stage of the miniature
        top1=0,
        top5=0,
        params_M=0,
        flops_G=0,
    )
    return Network(family=family, footprint=footprint, config=study.config(row, PROTOCOL))


def base(network: Network, group: Group) -> Network | None:
    """The network of the same family that a network is compared with: the one with the square footprint, or else the
    first. None for that network itself."""
    same_family = [other for other in group if other.family == network.family]
    squares = [other for other in same_family if other.footprint.label.startswith("square:")]
    found = (squares or same_family)[0]
    return None if found is network else found


@dataclass(frozen=True, kw_only=True)
class Request:
    """The footprints to compare, and their runs."""

    study: Study
    """With the learning rates that are used."""
    learning_rates: Mapping[str, Any] | None
    """The learning rates as results.json keeps them; None for the recipe's."""
    families: Sequence[str]
    footprints: Sequence[Footprint]
    seeds: int
    output: Path

    @property
    def groups(self) -> list[list[Network]]:
        return networks(self.study, self.families, self.footprints)

    def tasks(self) -> list[Task]:
        runs = self.output / "runs"
        configs = (by_seed([network.config for network in group], self.seeds, runs) for group in self.groups)
        return [Task(config=config) for group in configs for config in group]

    def facts(self) -> dict[str, Any]:
        """The request as results.json keeps it."""
        return {
            "data": self.study.data,
            "epochs": self.study.recipe.epochs,
            "backend": self.study.backend,
            "seeds": self.seeds,
            "families": list(self.families),
            "footprints": [str(footprint) for footprint in self.footprints],
        }


def check_earlier(request: Request) -> None:
    """Raise ValueError if the folder's page has something that the request would drop."""
    if not (request.output / records.FILE).exists():
        return
    earlier, now = read(request.output), request.facts()
    before = earlier.study
    lost = [f"{name} {before[name]}" for name in ("data", "epochs") if before[name] != now[name]]
    lost += [f"seeds {before['seeds']}"] * (before["seeds"] > now["seeds"])
    lost += [one for name in ("families", "footprints") for one in before[name] if one not in now[name]]
    if lost:
        raise ValueError(
            f"{request.output} holds a study with {', '.join(lost)}; include these, or choose another --output"
        )
    expected = [task.config.fingerprint() for task in request.tasks()]
    records.keep_all(request.output / records.FILE, earlier, expected)


def describe(request: Request, jobs: int) -> str:
    """The runs of a request, their cost, and notes on footprints."""
    groups = request.groups
    counts = f"{counted(sum(map(len, groups)), 'network')}, {counted(request.seeds, 'seed')}"
    cost = budget(request.tasks(), {}, jobs=jobs, gpus=0, bandwidth=BANDWIDTH)
    return "\n".join([counts, cost, *_notes(groups, request.study.data), "nothing was run"])


def carry_out(request: Request, executor: Executor) -> int:
    """Do the runs of a request, record their results, and draw the page; the exit code."""
    results = one_page.do(
        request.tasks(),
        request.study.recipe,
        executor,
        request.output,
        study=request.facts(),
        learning_rates=request.learning_rates,
    )
    return draw(request.output, results, request.output)


def chosen_rates(folder: Path, data: str, families: Sequence[str]) -> dict[str, Any]:
    """The learning rates that a reproduction chose, as results.json keeps them, for these families. Raises ValueError
    if it has none for them or for the data set."""
    kept = records.read(folder / records.FILE).learning_rates
    if kept is None or kept["data"] != data:
        has = "none" if kept is None else f"those of {kept['data']}"
        raise ValueError(f"learning rates in {folder} are {has}; expected those of {data}")
    missing = [family for family in families if family not in kept["families"]]
    if missing:
        raise ValueError(f"{folder} has no learning rate of {', '.join(missing)}; choose another --family")
    chosen = {family: {"chosen": kept["families"][family]["chosen"]} for family in families}
    return {"rule": kept["rule"], "data": kept["data"], "families": chosen}


FIRST = ("footprint", "top-1 %, mean [95 % over seeds]", "Δ [Holm]", "p (Holm)")
"""The columns of the page that a narrow terminal shows first."""


def draw(output: Path, results: Results, source: Path) -> int:
    """Write the page, print it, and name missing runs; the exit code."""
    return one_page.show(page(results), FIRST, missing(results), output, source)


def read(folder: Path) -> Results:
    """The results in the folder of a study. Raises ValueError if it is no study of footprints."""
    results = records.read(folder / records.FILE)
    data, families, footprints = (results.study.get(name) for name in ("data", "families", "footprints"))
    if not (families and footprints):
        raise ValueError(
            f"{folder} is not of a study of footprints; expected the folder of python -m studies.footprints"
        )
    if data not in SIDES or not set(families) <= set(FAMILIES):
        known = f"{', '.join(SIDES)}, and of {', '.join(FAMILIES)}"
        raise ValueError(f"{folder} is of {data}, and of {', '.join(families)}; expected one of {known}")
    return results


def recorded(results: Results) -> list[list[Network]]:
    """The groups of recorded networks. Raises ValueError if their runs are of several recipes or versions."""
    results.check_versions("the tables", results.runs.values())
    footprints = [Footprint.parse(footprint) for footprint in results.study["footprints"]]
    return networks(report.study(results), results.study["families"], footprints)


def rows(results: Results) -> list[dict[str, Any]]:
    """One flat record per network. The differences of a group are corrected for their number by Holm."""
    return [row for group in recorded(results) for row in _rows(group, results)]


def frame(folder: str | Path) -> pd.DataFrame:
    """The rows of a recorded study; the column `caution` says what readers must know about them."""
    import pandas as pd

    results = read(Path(folder))
    return pd.DataFrame(rows(results)).assign(caution=caution(results))


def _rows(group: Group, results: Results) -> Iterator[dict[str, Any]]:
    bases = [base(network, group) for network in group]
    runs = [results.by_seed(network.config) for network in group]
    top1 = [{seed: run["top1"] for seed, run in each.items()} for each in runs]
    places = [None if other is None else group.index(other) for other in bases]
    found = comparisons.differences(top1, places)
    for network, other, each, difference in zip(group, bases, runs, found, strict=True):
        yield {
            "family": network.family,
            "footprint": str(network.footprint),
            "taps": network.footprint.taps,
            **_figures(list(each.values())),
            "against": "" if other is None else str(other.footprint),
            **dict.fromkeys(comparisons.COMPARED),
            **comparisons.compared(difference),
            "note": note(network.footprint, results.study["data"]),
        }


def _figures(runs: Sequence[comparisons.Run]) -> dict[str, Any]:
    """The fields of a network's own accuracy."""
    if not runs:
        return {"seeds": 0}
    over = comparisons.over_seeds("top1", [run["top1"] for run in runs])
    return {
        "seeds": len(runs),
        **over,
        **comparisons.over_images(runs, over["top1"]),
        "loss": comparisons.mean_loss(runs),
        "params": runs[0]["params"],
        "seconds_per_run": comparisons.mean_seconds(runs),
    }


def note(footprint: Footprint, data: str) -> str:
    """The note of a footprint that spans more than the map of a data set; empty if there is none."""
    (top, bottom), (left, right) = footprint.reach
    (height, width), side = (bottom - top + 1, right - left + 1), SIDES[data]
    if max(height, width) <= side:
        return ""
    return f"spans {height} × {width}, more than the first stage's map of {side} × {side}"


def _notes(groups: Sequence[Group], data: str) -> list[str]:
    """The notes of all footprints and groups."""
    every = dict.fromkeys(network.footprint for group in groups for network in group)
    notes = [f"{footprint} {note(footprint, data)}" for footprint in every if note(footprint, data)]
    return notes + [uncompared(group) for group in groups if uncompared(group)]


def uncompared(group: Group) -> str:
    """The note of a group with a single footprint; empty for other groups."""
    (footprint, *others) = dict.fromkeys(network.footprint for network in group)
    taps = counted(footprint.taps, "tap")
    return "" if others else f"{footprint} alone has {taps} here, so that there is nothing to compare it with"


def missing(results: Results) -> list[str]:
    """A sentence for every missing run."""
    return [
        results.absence(str(network), seed, key)
        for group in recorded(results)
        for network in group
        for seed, key in results.keys(network.config).items()
        if key not in results.runs
    ]


def caution(results: Results) -> str:
    """The first sentence of the page."""
    data, epochs, seeds = (results.study[name] for name in ("data", "epochs", "seeds"))
    side = SIDES[data]
    network = f"{data} at {side} × {side}, networks of {('two', 'three')[stages(data) - 2]} stages"
    return f"{network}, {counted(epochs, 'epoch')}, {counted(seeds, 'seed')}, not ImageNet."


def page(results: Results) -> str:
    """The page in Markdown."""
    return "\n\n".join(_sections(results))


def _sections(results: Results) -> Iterator[str]:
    yield "# Footprints of equally many taps"
    yield f"**{caution(results)}**"
    rate = f"each family's, chosen with 7 × 7: {_chosen(results)}" if results.learning_rates else "the recipe's"
    yield (
        "The footprint is that of the first stage; the second has 3 × 3. Taps beyond the map read its reflection, "
        f"unless the footprint says otherwise. Learning rates are {rate}."
    )
    for group in recorded(results):
        yield f"## {group[0].footprint.taps} taps"
        lines = list(_rows(group, results))
        yield _table(lines, results.study["seeds"])
        yield from markdown.holm_note(lines)
        if uncompared(group):
            yield f"{uncompared(group)}."
    if absent := missing(results):
        yield markdown.bullets(f"{counted(len(absent), 'run')} not in these tables", absent)
    yield markdown.places(results)


def _chosen(results: Results) -> str:
    assert results.learning_rates is not None
    return ", ".join(f"{family} {it['chosen']:g}" for family, it in results.learning_rates["families"].items())


def _table(lines: Sequence[markdown.Row], seeds: int) -> str:
    header = ["family", "footprint", "top-1 %, mean [95 % over seeds]", "seeds", "95 % over images", "against"]
    header += ["Δ [Holm]", "p (Holm)", "loss", "params", "note"]
    body = [
        [
            row["family"],
            row["footprint"],
            interval(row, "top1", "low", "high"),
            f"{row['seeds']} of {seeds}",
            between(row, "low_over_images", "high_over_images"),
            row["against"],
            interval(row, "difference", "difference_low", "difference_high", "+"),
            probability(row.get("p_holm")),
            markdown.loss(row.get("loss")),
            markdown.count(row.get("params")),
            row["note"],
        ]
        for row in lines
    ]
    return text.align(header, body, "md")
