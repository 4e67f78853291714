"""The study of detectors: the five rows of SASA Table 2 in miniature, with convolutions or attention in backbone and
heads, and its page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saprof import text
from saprof.paper import printed
from saprof.paper.printed import PaperRow
from saprof.text import counted
from studies.config import RECIPES, Config, load
from studies.judging import statistics
from studies.reproduction import comparisons, markdown, one_page, records
from studies.reproduction.executors import Executor, Task
from studies.reproduction.markdown import interval, number, probability
from studies.reproduction.records import Results
from studies.reproduction.study import by_seed

if TYPE_CHECKING:
    import pandas as pd

TABLE = "2"
DATA = ("canvas", "canvas_digits")
CLASSES = 10
SIDE = 128
"""Rows and columns of a canvas, for which costs are counted."""
SMALL = {"blocks": [1, 1, 1, 1], "level_norms": True}
ATTENTION = {"footprint": 5, "heads": 4}
"""The footprint and the heads of the paper, 7 and 8, are for maps and channels that are larger."""
MATCHED: tuple[tuple[list[int], int], ...] = (
    ([16, 32, 64, 128], 64),
    ([24, 40, 56, 128], 56),
    ([16, 40, 64, 128], 56),
    ([16, 40, 72, 144], 48),
    ([16, 24, 72, 160], 48),
)
"""For each row, the channels of the stages and the width of pyramid and heads. Parameters and FLOPs, as shares of those
of the first row, are within 5 % of the shares that the paper prints."""
SMOKE = {"canvases": 16, "judged_canvases": 8, "batch": 4}
NUMBERS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
VARYING = ("model", "options", "seed")
"""Fields in which the runs of a study differ."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """The miniature of a printed row."""

    row: PaperRow
    config: Config
    """Without seed and folder."""

    @property
    def backbone(self) -> str:
        return str(self.row.setting).partition(", ")[0]

    @property
    def heads(self) -> str:
        return str(self.row.setting).partition(", ")[2]

    def __str__(self) -> str:
        return f"{self.backbone} in the backbone, {self.heads} in the heads"


def networks(recipe: Config) -> list[Network]:
    """The miniatures of the rows, in their order; the first is that of convolutions, with which the others are
    compared."""
    found = []
    for row, (channels, width) in zip(printed.rows(TABLE, "sasa"), MATCHED, strict=True):
        attends = ATTENTION if row.family == "stand_alone" else {}
        options = {**row.overrides, **SMALL, **attends, "channels": channels, "width": width}
        found.append(Network(row=row, config=replace(recipe, model=row.model, options=options)))
    return found


def cost(network: Network) -> tuple[int, int]:
    """The parameters, and the FLOPs of one canvas with 2 per multiply-add, from shapes alone."""
    return _cost(network.config.model, json.dumps(network.config.options))


@cache
def _cost(model: str, options: str) -> tuple[int, int]:
    import torch

    from saprof.models.counting import blueprint, count

    image = torch.empty(1, 3, SIDE, SIDE, device="meta")
    figures = count(blueprint(model, num_classes=CLASSES, **json.loads(options)), inputs=image).figures
    return figures["params"], 2 * figures["macs"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The runs of a study."""

    data: str = DATA[0]
    root: Path | None = None
    device: str = "auto"
    epochs: int | None = None
    """None stands for the recipe's."""
    seeds: int = 6
    smoke: bool = False
    output: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Settings that replace those of the recipe."""

    @property
    def recipe(self) -> Config:
        start = load(RECIPES / "canvas_study.yaml")
        epochs = self.epochs or (1 if self.smoke else start.epochs)
        settings: dict[str, Any] = {"data": self.data, "root": self.root, "device": self.device, "epochs": epochs}
        return replace(
            start, **settings | {"evaluate_every": epochs} | (SMOKE if self.smoke else {}) | dict(self.facts)
        )

    def tasks(self) -> list[Task]:
        configs = [network.config for network in networks(self.recipe)]
        return [Task(config=config) for config in by_seed(configs, self.seeds, self.output / "runs")]

    def study(self) -> dict[str, Any]:
        """The request as results.json keeps it."""
        return {
            "data": self.data,
            "epochs": self.recipe.epochs,
            "backend": None,
            "seeds": self.seeds,
            "detectors": TABLE,
            "smoke": self.smoke,
        }


def check_earlier(request: Request) -> None:
    """Raise ValueError if the folder's page has something that the request would drop."""
    if not (request.output / records.FILE).exists():
        return
    earlier, now = read(request.output), request.study()
    before = earlier.study
    lost = [f"{name} {before[name]}" for name in ("data", "epochs", "smoke") if before[name] != now[name]]
    lost += [f"seeds {before['seeds']}"] * (before["seeds"] > now["seeds"])
    if lost:
        raise ValueError(
            f"{request.output} holds a study with {', '.join(lost)}; include these, or choose another --output"
        )
    expected = [task.config.fingerprint() for task in request.tasks()]
    records.keep_all(request.output / records.FILE, earlier, expected)


def describe(request: Request, jobs: int) -> str:
    """The networks, their costs, and the runs that are left."""
    every, tasks = networks(request.recipe), request.tasks()
    table = text.align(["backbone", "heads", "parameters", "MFLOPs"], [_described(network) for network in every])
    done = [found for task in tasks if (found := task.result()) is not None]
    left = len(tasks) - len(done)
    hours = "hours: unknown, no run is finished here"
    if done:
        each = comparisons.mean_seconds(done)
        hours = f"{left * each / 3600:.2f} hours of runs, {left * each / 3600 / jobs:.2f} with {jobs} at a time"
    return "\n".join([table, "", f"{len(tasks)} runs: {len(done)} finished, {left} left", hours, "nothing was run"])


def _described(network: Network) -> list[str]:
    params, flops = cost(network)
    return [network.backbone, network.heads, f"{params:,}", f"{flops / 1e6:.0f}"]


def carry_out(request: Request, executor: Executor) -> int:
    """Do the runs of a request, record their results, and draw the page; the exit code."""
    results = one_page.do(request.tasks(), request.recipe, executor, request.output, study=request.study())
    return draw(request.output, results, request.output)


FIRST = ("backbone", "heads", "AP, mean [95 % over seeds]", "Δ [Holm]", "verdict")
"""The columns of the page that a narrow terminal shows first."""


def draw(output: Path, results: Results, source: Path) -> int:
    """Write the page, print it, and name missing runs; the exit code."""
    return one_page.show(page(results), FIRST, missing(results), output, source)


def read(folder: Path) -> Results:
    """The results in the folder of a study. Raises ValueError if it is no study of detectors."""
    results = records.read(folder / records.FILE)
    if results.study.get("detectors") != TABLE or results.study["data"] not in DATA:
        raise ValueError(f"{folder} is not of a study of detectors; expected the folder of python -m studies.detectors")
    return results


def recorded(results: Results) -> list[Network]:
    """The networks of recorded runs. Raises ValueError if the runs are of several recipes or versions."""
    results.check_versions("the tables", results.runs.values())
    facts: Mapping[str, Any] = {}
    for run in results.runs.values():
        mine = {name: value for name, value in run["facts"].items() if name not in VARYING}
        facts = facts or mine
        if mine != facts:
            differing = ", ".join(name for name in mine if mine[name] != facts.get(name))
            raise ValueError(f"the runs of the study differ in {differing}; train again with one recipe")
    study = results.study
    request = Request(
        data=study["data"],
        epochs=study["epochs"],
        smoke=study["smoke"],
        seeds=study["seeds"],
        output=Path(),
        facts=facts,
    )
    return networks(request.recipe)


def rows(results: Results) -> list[dict[str, Any]]:
    """One flat record per network: its average precision, its costs, and both as the paper prints them. Differences are
    corrected for their number by Holm."""
    every = recorded(results)
    runs = [results.by_seed(network.config) for network in every]
    points = [{seed: 100 * run["AP"] for seed, run in each.items() if run["AP"] is not None} for each in runs]
    found = comparisons.differences(points, [None, *[0] * (len(every) - 1)])
    base = every[0]
    lines = []
    for network, each, values, difference in zip(every, runs, points, found, strict=True):
        assert network.row.ap is not None
        assert base.row.ap is not None
        claimed = None if network is base else round(network.row.ap[0] - base.row.ap[0], 1)
        verdict = "" if network is base else str(statistics.verdict(claimed, difference))
        lines.append(
            {
                "backbone": network.backbone,
                "heads": network.heads,
                "model": network.config.model,
                "paper": network.row.ap[0],
                **_precision(list(each.values()), list(values.values())),
                "against": "" if network is base else str(base),
                "paper_difference": claimed,
                **dict.fromkeys(comparisons.COMPARED),
                **comparisons.compared(difference),
                "verdict": "not shown" if results.study["smoke"] and verdict else verdict,
                **_costs(network, base),
            }
        )
    return lines


def _precision(runs: Sequence[comparisons.Run], values: Sequence[float]) -> dict[str, Any]:
    """The fields of a network's own average precision, in per cent."""
    if not values:
        return {"seeds": 0, "ours": None, "low": None, "high": None}
    means = {}
    for name in NUMBERS:
        known = [100 * run[name] for run in runs if run[name] is not None]
        means[name] = statistics.mean(known).mean if known else None
    return {
        "seeds": len(values),
        **comparisons.over_seeds("ours", values),
        **means,
        "seconds_per_run": comparisons.mean_seconds(runs),
    }


def _costs(network: Network, base: Network) -> dict[str, Any]:
    """The costs of a network, as counted from shapes, and as shares of those of the base."""
    (params, flops), (base_params, base_flops) = cost(network), cost(base)
    row, first = network.row, base.row
    assert row.params_M is not None
    assert first.params_M is not None
    return {
        "params": params,
        "flops": flops,
        "params_share": params / base_params,
        "flops_share": flops / base_flops,
        "params_share_paper": row.params_M / first.params_M,
        "flops_share_paper": row.flops_G / first.flops_G,
    }


def frame(folder: str | Path) -> pd.DataFrame:
    """The rows of a recorded study; the column `caution` says what readers must know about them."""
    import pandas as pd

    results = read(Path(folder))
    return pd.DataFrame(rows(results)).assign(caution=caution(results))


def evidence(folder: str | Path) -> pd.DataFrame:
    """The rows of a recorded study. Without one, the rows have the costs alone, and `caution` says so."""
    import pandas as pd

    if (Path(folder) / records.FILE).exists():
        return frame(folder)
    nothing = Results(study=Request(output=Path()).study(), learning_rates=None, where=[], runs={}, failed={})
    return pd.DataFrame(rows(nothing)).assign(caution="No trained detector is recorded here.")


def missing(results: Results) -> list[str]:
    """A sentence for every missing run."""
    return [
        results.absence(str(network), seed, key)
        for network in recorded(results)
        for seed, key in results.keys(network.config).items()
        if key not in results.runs
    ]


def caution(results: Results) -> str:
    """The first sentence of the page."""
    data, epochs, seeds = (results.study[name] for name in ("data", "epochs", "seeds"))
    items = {"canvas": "Fashion-MNIST", "canvas_digits": "digits"}[data]
    return (
        f"Items of {items} on canvases of {SIDE} × {SIDE} pixels, small detectors, {counted(epochs, 'epoch')}, "
        f"{counted(seeds, 'seed')}, not COCO."
    )


def page(results: Results) -> str:
    """The page in Markdown."""
    return "\n\n".join(_sections(results))


def _sections(results: Results) -> Iterator[str]:
    lines = rows(results)
    yield "# Convolution or attention in a detector"
    yield f"**{caution(results)}**"
    if results.study["smoke"]:
        yield "A check that everything runs: too few canvases and steps to say anything about accuracy."
    yield (
        "The five detectors of SASA Table 2 in miniature. All have the same recipe and learning rate, which was not "
        "chosen for each. AP is COCO's average precision in per cent, over IoUs from 0.50 to 0.95."
    )
    yield _accuracy(lines, results.study["seeds"])
    yield from markdown.holm_note(lines)
    yield markdown.VERDICT_NOTE
    yield "## Thresholds and sizes of objects"
    yield _sizes(lines)
    yield "Small, medium and large objects are those of a canvas, not of COCO."
    yield "## Costs"
    yield _budget(lines)
    if absent := missing(results):
        yield markdown.bullets(f"{counted(len(absent), 'run')} not in these tables", absent)
    yield markdown.places(results)


def _accuracy(lines: Sequence[markdown.Row], seeds: int) -> str:
    header = ["backbone", "heads", "AP, mean [95 % over seeds]", "seeds", "paper, COCO", "Δ [Holm]", "paper's Δ"]
    header += ["p (Holm)", "verdict"]
    body = [
        [
            row["backbone"],
            row["heads"],
            interval(row, "ours", "low", "high"),
            f"{row['seeds']} of {seeds}",
            number(row["paper"]),
            interval(row, "difference", "difference_low", "difference_high", "+"),
            number(row["paper_difference"], "+"),
            probability(row.get("p_holm")),
            row["verdict"],
        ]
        for row in lines
    ]
    return text.align(header, body, "md")


def _sizes(lines: Sequence[markdown.Row]) -> str:
    body = [[row["backbone"], row["heads"], *(number(row.get(name)) for name in NUMBERS)] for row in lines]
    return text.align(["backbone", "heads", *NUMBERS], body, "md")


def _budget(lines: Sequence[markdown.Row]) -> str:
    header = ["backbone", "heads", "parameters", "share", "paper's", "MFLOPs", "share", "paper's", "minutes a run"]
    body = [
        [
            row["backbone"],
            row["heads"],
            markdown.count(row["params"]),
            f"{row['params_share']:.3f}",
            f"{row['params_share_paper']:.3f}",
            f"{row['flops'] / 1e6:.0f}",
            f"{row['flops_share']:.3f}",
            f"{row['flops_share_paper']:.3f}",
            number(row["seconds_per_run"] / 60 if row.get("seconds_per_run") is not None else None),
        ]
        for row in lines
    ]
    return text.align(header, body, "md")
