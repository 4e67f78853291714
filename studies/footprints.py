"""What the shape of a footprint is worth: accuracy over footprints of equally many taps, irregular ones among them.

    python -m studies.footprints --footprint square:5,cross:13,dilated:5x2,random:25@seed1
    python -m studies.footprints --data digits16 --family pairwise --footprint square:7,disk:9 --seeds 12
    python -m studies.footprints --from studies/recorded/footprints_digits

SAN says that the footprint of pairwise attention may be irregular (Sec. 3.1) and tries squares. Here the first stage of
a small network has each footprint in turn; it is compared with the square of as many taps, or else the first one given,
of its family, seed by seed. OUTPUT/runs keeps every run: a finished one is never repeated, an unfinished one is gone on
with. OUTPUT/README.md has the tables, OUTPUT/results.json suffices to draw them again.

Exit codes: 0 all is there, 1 some runs failed, 2 the input was at fault, 3 the data are, 6 the folder is not to be
written to, 75 asked to stop, and saved.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saprof import atomic, command, text
from saprof.operators.footprint import Footprint, positive
from saprof.operators.footprint_lists import read_footprints
from saprof.paper.printed import PaperRow
from saprof.text import counted, unknown
from studies.config import DEVICES, Config
from studies.failures import until_stopped
from studies.judging import statistics
from studies.reproduction import rates, records, report
from studies.reproduction.budget import BANDWIDTH, budget
from studies.reproduction.executors import Local, Task, cores
from studies.reproduction.grid import SIDES, Study
from studies.reproduction.records import Results
from studies.reproduction.report import between, interval, probability

if TYPE_CHECKING:
    import pandas as pd

FAMILIES = ("pairwise", "patchwise", "stand_alone")
FOOTPRINTS = "square:5,cross:13,dilated:5x2,random:25@seed1,random:25@seed2"
RATES = {"digits": Path(__file__).parent / "recorded" / "digits"}
"""Reproductions of ours whose learning rates are taken, by data set."""
PROTOCOL = "val-split"

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A footprint in the first stage of a family's small network."""

    family: str
    footprint: Footprint
    config: Config
    """Without its seed and folder."""

    def __str__(self) -> str:
        return f"{self.family}, {self.footprint}"

    def key(self, seed: int) -> str:
        return replace(self.config, seed=seed).fingerprint()


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    command.alone(parser, arguments, "from_", beside=("output",))
    arguments = _checked(arguments)
    work = _redraw if arguments.from_ else _train
    return until_stopped(lambda: work(arguments))


def _parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m studies.footprints",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what")
    what.add_argument("--footprint", default=FOOTPRINTS, help="as of python -m saprof.sweep; default %(default)s")
    what.add_argument("--family", default="all", help=f"{', '.join(FAMILIES)} or all (default)")
    what.add_argument("--data", default="digits", help=f"{', '.join(SIDES)}; default %(default)s")
    what.add_argument("--root", type=Path, help="where the data are, if they are not embedded")
    what.add_argument("--seeds", type=int, default=6, help="runs per network, seeds 0, 1, …; default %(default)s")
    what.add_argument("--epochs", type=int, help="default: the recipe's")
    what.add_argument(
        "--rates",
        type=Path,
        metavar="FOLDER",
        help="a reproduction whose learning rates are taken; default those of studies/recorded/digits, or the recipe's",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--jobs", type=int, help="runs at a time; default: cores here")
    how.add_argument("--device", default="auto", help="auto, cpu or cuda; default %(default)s")
    how.add_argument("--dry-run", action="store_true", help="print runs, hours and memory, and stop")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, help="folder; default runs/footprints-<data>")
    output.add_argument("--from", dest="from_", type=Path, metavar="FOLDER", help="draw its results.json again")
    return parser


def _checked(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments, footprints and families as lists; ValueError for what does not fit."""
    if arguments.data not in SIDES:
        raise ValueError(unknown("data set", arguments.data, tuple(SIDES)))
    if arguments.device not in DEVICES:
        raise ValueError(unknown("device", arguments.device, DEVICES))
    for field in ("seeds", "epochs", "jobs"):
        if getattr(arguments, field) is not None:
            positive(field, getattr(arguments, field))
    arguments.family = command.choices("family", arguments.family, FAMILIES)
    arguments.footprint = list(dict.fromkeys(read_footprints(arguments.footprint)))
    for footprint in arguments.footprint:
        if footprint.stride != 1:
            raise ValueError(
                f"footprint {footprint} has stride {footprint.stride}; expected 1, as maps keep their size"
            )
    arguments.rates = arguments.rates or RATES.get(arguments.data)
    arguments.output = arguments.output or arguments.from_ or Path("runs") / f"footprints-{arguments.data}"
    return arguments


def networks(study: Study, families: Sequence[str], asked: Sequence[Footprint]) -> list[list[Network]]:
    """A list per number of taps, in the order in which it is first asked for: families, and footprints within."""
    groups = dict.fromkeys(footprint.taps for footprint in asked)
    return [
        [_network(study, family, footprint) for family in families for footprint in asked if footprint.taps == taps]
        for taps in groups
    ]


def _network(study: Study, family: str, footprint: Footprint) -> Network:
    """The miniature of the family's default network, with that footprint in its first stage."""
    row = PaperRow(
        family=family,
        network="",
        model=rates.DEFAULTS[family],
        overrides={"footprints": (3, str(footprint))},  # of which the second is the miniature's first
        top1=0,
        top5=0,
        params_M=0,
        flops_G=0,
    )
    return Network(family=family, footprint=footprint, config=study.config(row, PROTOCOL))


def base(network: Network, group: Sequence[Network]) -> Network | None:
    """What a network of a group is compared with: of its family the square, or else the first; None if that is it."""
    mine = [other for other in group if other.family == network.family]
    squares = [other for other in mine if other.footprint.label.startswith("square:")]
    found = (squares or mine)[0]
    return None if found is network else found


def _train(arguments: argparse.Namespace) -> int:
    chosen = _rates(arguments)
    study = Study(
        data=arguments.data,
        epochs=arguments.epochs,
        root=arguments.root,
        device=arguments.device,
        rates=rates.rates(chosen["families"]) if chosen else {},
    )
    asked = {
        "data": study.data,
        "epochs": study.recipe.epochs,
        "backend": study.backend,
        "seeds": arguments.seeds,
        "families": arguments.family,
        "footprints": [str(footprint) for footprint in arguments.footprint],
    }
    _check_earlier(arguments.output, asked)
    groups = networks(study, arguments.family, arguments.footprint)
    runs = arguments.output / "runs"
    tasks = [  # group by group and seed by seed, so that a study that is stopped has few comparisons half done
        Task(config=rates.placed(replace(network.config, seed=seed), runs))
        for group in groups
        for seed in range(arguments.seeds)
        for network in group
    ]
    jobs = arguments.jobs or cores()
    if arguments.dry_run:
        print(f"{counted(sum(map(len, groups)), 'network')}, {counted(arguments.seeds, 'seed')}")
        print(budget(tasks, jobs=jobs, gpus=0, bandwidth=BANDWIDTH))
        print(*_noted(groups, arguments.data), "nothing was run", sep="\n")
        return command.OK

    from studies import data

    data.load(study.recipe)  # says what is wrong with it once, and not in every run
    records.prepare(arguments.output)
    with Local(jobs) as executor:
        executor.do(tasks)
    results = records.collect(asked, chosen, tasks)
    records.write(arguments.output / records.FILE, results)
    return _draw(arguments.output, results, arguments.output)


def _check_earlier(output: Path, asked: Mapping[str, Any]) -> None:
    """ValueError if the folder's page tells of what is not asked for now, and would be lost."""
    if not (output / records.FILE).exists():
        return
    before = read(output).study
    lost = [f"{name} {before[name]}" for name in ("data", "epochs") if before[name] != asked[name]]
    lost += [f"seeds {before['seeds']}"] * (before["seeds"] > asked["seeds"])
    lost += [one for name in ("families", "footprints") for one in before[name] if one not in asked[name]]
    if lost:
        raise ValueError(f"{output} holds a study with {', '.join(lost)}; ask for that too, or choose another --output")


def _rates(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The learning rates that a reproduction chose, as it keeps them, for the families asked for; None without one."""
    if arguments.rates is None:
        return None
    kept = records.read(arguments.rates / records.FILE).learning_rates
    if kept is None or kept["data"] != arguments.data:
        has = "none" if kept is None else f"those of {kept['data']}"
        raise ValueError(f"learning rates in {arguments.rates} are {has}; expected those of {arguments.data}")
    missing = [family for family in arguments.family if family not in kept["families"]]
    if missing:
        raise ValueError(f"{arguments.rates} has no learning rate of {', '.join(missing)}; choose another --family")
    chosen = {family: {"chosen": kept["families"][family]["chosen"]} for family in arguments.family}
    return {"rule": kept["rule"], "data": kept["data"], "families": chosen}


def _redraw(arguments: argparse.Namespace) -> int:
    return _draw(arguments.output, read(arguments.from_), arguments.from_)


def _draw(output: Path, results: Results, source: Path) -> int:
    """Write the page, print it, and name what failed."""
    shown = page(results)
    records.prepare(output)
    atomic.write(output / "README.md", f"{shown}\n".encode())
    print(shown)
    print(f"page in {output / 'README.md'}, figures in {source / records.FILE}", file=sys.stderr)
    absent = missing(results)
    for sentence in absent:
        print(f"failed: {sentence}", file=sys.stderr)
    return command.FAILED if absent else command.OK


def read(folder: Path) -> Results:
    """What a study kept in its folder; ValueError if that is of no study of footprints."""
    results = records.read(folder / records.FILE)
    data, families, asked = (results.study.get(name) for name in ("data", "families", "footprints"))
    if not (families and asked):
        raise ValueError(f"{folder} is of no study of footprints; expected the folder of python -m studies.footprints")
    if data not in SIDES or not set(families) <= set(FAMILIES):
        known = f"{', '.join(SIDES)}, and of {', '.join(FAMILIES)}"
        raise ValueError(f"{folder} is of {data}, and of {', '.join(families)}; expected one of {known}")
    return results


def recorded(results: Results) -> list[list[Network]]:
    """The networks that results are of. ValueError if their runs are of several recipes or versions."""
    versions = sorted({results.versions(run) for run in results.runs.values()})
    if len(versions) > 1:
        raise ValueError(f"the tables would mix runs of {' and '.join(versions)}; train again with one of them")
    asked = [Footprint.parse(footprint) for footprint in results.study["footprints"]]
    return networks(report.study(results), results.study["families"], asked)


def rows(results: Results) -> list[dict[str, Any]]:
    """One flat record per network; differences of equally many taps are corrected for their number by Holm."""
    return [row for group in recorded(results) for row in _rows(group, results)]


def frame(folder: str | Path) -> pd.DataFrame:
    """The rows of a recorded study, `caution` being what has to be said of them."""
    import pandas as pd

    results = read(Path(folder))
    return pd.DataFrame(rows(results)).assign(caution=caution(results))


def _rows(group: Sequence[Network], results: Results) -> Iterator[dict[str, Any]]:
    bases = [base(network, group) for network in group]
    plain = [other and _difference(network, other, results) for network, other in zip(group, bases, strict=True)]
    corrected = iter(statistics.holm([difference for difference in plain if difference]))
    for network, other, difference in zip(group, bases, plain, strict=True):
        yield {
            "family": network.family,
            "footprint": str(network.footprint),
            "taps": network.footprint.taps,
            **_ours(network, results),
            "against": "" if other is None else str(other.footprint),
            **dict.fromkeys(report.COMPARED),
            **report.compared(next(corrected) if difference else None),
            "note": note(network.footprint, results.study["data"]),
        }


def _runs(network: Network, results: Results) -> dict[int, Mapping[str, Any]]:
    """The finished ones by seed."""
    keys = {seed: network.key(seed) for seed in range(results.study["seeds"])}
    return {seed: results.runs[key] for seed, key in keys.items() if key in results.runs}


def _difference(network: Network, other: Network, results: Results) -> statistics.Difference | None:
    """In top-1, over the seeds that both have."""
    ours, theirs = _runs(network, results), _runs(other, results)
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    return statistics.paired({s: ours[s]["top1"] for s in both}, {s: theirs[s]["top1"] for s in both})


def _ours(network: Network, results: Results) -> dict[str, Any]:
    runs = list(_runs(network, results).values())
    if not runs:
        return {"seeds": 0}
    over = statistics.mean([run["top1"] for run in runs])
    return {
        "seeds": over.n,
        "top1": over.mean,
        "sd": over.sd,
        "low": over.low,
        "high": over.high,
        **report.over_images(runs, over.mean),
        "loss": report.mean_loss(runs),
        "params": runs[0]["params"],
        "seconds_per_run": statistics.mean([run["train_seconds"] for run in runs]).mean,
    }


def note(footprint: Footprint, data: str) -> str:
    """What a reader must know of a footprint on maps of that data set."""
    (top, bottom), (left, right) = footprint.reach
    (height, width), side = (bottom - top + 1, right - left + 1), SIDES[data]
    if max(height, width) <= side:
        return ""
    return f"spans {height} × {width}, more than the first stage's map of {side} × {side}"


def _noted(groups: Sequence[Sequence[Network]], data: str) -> list[str]:
    """A sentence for every footprint that has a note, or nothing to be compared with."""
    every = dict.fromkeys(network.footprint for group in groups for network in group)
    notes = [f"{footprint} {note(footprint, data)}" for footprint in every if note(footprint, data)]
    return notes + [uncompared(group) for group in groups if uncompared(group)]


def uncompared(group: Sequence[Network]) -> str:
    """What a reader must know of a group that compares nothing."""
    (footprint, *others) = dict.fromkeys(network.footprint for network in group)
    taps = counted(footprint.taps, "tap")
    return "" if others else f"{footprint} alone has {taps} here, so that there is nothing to compare it with"


def missing(results: Results) -> list[str]:
    """A sentence for every run that is not there."""
    wanted = [(n, seed) for group in recorded(results) for n in group for seed in range(results.study["seeds"])]
    return [
        f"{network}, seed {seed}: {results.failed.get(network.key(seed), 'not run')} (run {network.key(seed)})"
        for network, seed in wanted
        if network.key(seed) not in results.runs
    ]


def caution(results: Results) -> str:
    """What is said first."""
    data, seeds = results.study["data"], results.study["seeds"]
    side = SIDES[data]
    of = f"{data} at {side} × {side}, networks of two stages, {counted(results.study['epochs'], 'epoch')}"
    return f"{of}, {counted(seeds, 'seed')}, not ImageNet."


def page(results: Results) -> str:
    """Markdown."""
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
        compared = sum(row.get("p_holm") is not None for row in lines)
        if compared:
            yield report.paired(compared)
        if uncompared(group):
            yield f"{uncompared(group)}."
    if absent := missing(results):
        yield "\n".join([f"{counted(len(absent), 'run')} not in these tables:", "", *(f"- {it}" for it in absent)])
    yield "\n".join(_where(results))


def _chosen(results: Results) -> str:
    assert results.learning_rates is not None
    return ", ".join(f"{family} {rate:g}" for family, rate in rates.rates(results.learning_rates["families"]).items())


def _table(lines: Sequence[Row], seeds: int) -> str:
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
            "" if row.get("loss") is None else f"{row['loss']:.3f}",
            f"{row['params']:,}" if "params" in row else "",
            row["note"],
        ]
        for row in lines
    ]
    return text.align(header, body, "md")


def _where(results: Results) -> Iterator[str]:
    from saprof.records.environment import caption

    for at, place in enumerate(results.where):
        made = sum(run["where"] == at for run in results.runs.values())
        yield f"- {counted(made, 'run')}: {caption(dict(place))}"


if __name__ == "__main__":
    command.run(main)
