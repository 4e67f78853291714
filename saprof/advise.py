"""`python -m saprof.advise`: which network, footprint and backend to take within a budget.

    python -m saprof.advise --max-latency 100ms --max-params 12M --max-flops 2G --max-memory 100MB

Costs are read from recorded runs, accuracies from the tables of SAN and SASA. If several rows are of the same network
on the same machine, the last one that is neither contended nor unstable counts, or else the last one. The exit code is
0 with a recommendation, 1 if nothing is within the budget, 2 if the input is wrong or nothing was measured.
"""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saprof import command, text
from saprof.measure.cells import MODES
from saprof.operators import BACKENDS
from saprof.operators.workload import ITEMSIZE
from saprof.paper import budget, evidence
from saprof.paper.budget import LIMITED, Budget
from saprof.paper.shown import PLUS_MINUS
from saprof.quantities import LATENCY, MEMORY, PAPER_FLOPS, PARAMS, around
from saprof.records import calibration, environment
from saprof.records.rows import HOST_BOUND, SOUND, Row
from saprof.records.runs import RECORDED, Recorded, read_run
from saprof.terminal import Column, Table, fitted, paragraphs

if TYPE_CHECKING:
    import pandas as pd

GROUP = ("machine", "device", "evaluation_set")
"""The columns by which advice is split: neither latencies of two machines nor accuracies on two sets can be
compared."""
SUBJECT = ("machine", "device", "name", "relation", "footprint", "backend", "attention", "compiled")
COLUMNS = (
    "network", "footprint", "ran on", "top-1 in paper", "latency ms", "95 % interval", "peak MB", "params M",
    "FLOPs G (paper)", "note",
)  # fmt: skip
LATENCY_COLUMNS = ("latency ms", "95 % interval", "note")
"""The columns that the terminal shows in another form."""
CAVEATS = {
    "contended": "other processes took part of the processor, so the latency may be too long",
    HOST_BOUND: "consecutive calls take longer: the host limits them",
    "unstable": "the interval of the latency is wider than ± 10 %, so small differences mean nothing",
}


@dataclass(frozen=True)
class Source:
    """A run whose rows are used."""

    folder: Path
    where: Mapping[str, Any]
    rows: list[Row]
    refused: int
    """How many rows are left out because they are faster than the roofs of their machine allow."""
    drift: float | None
    """How far the medians of the same call differ within the run, if that is known."""

    @property
    def machine(self) -> str:
        threads = text.counted(self.where["threads"], "thread")
        return ", ".join(dict.fromkeys((self.where["device"], self.where["cpu"], threads)))

    @property
    def is_here(self) -> bool:
        """Whether this may be the same machine: processor, cores, threads and, for a run on a GPU, the GPU are the
        same."""
        import psutil

        cores = psutil.cpu_count(logical=False) or os.cpu_count()
        here = (environment.cpu_name(), cores, os.environ.get("OMP_NUM_THREADS", str(cores)))
        there = (self.where["cpu"], self.where["cores"], str(self.where["threads"]))
        return here == there and self.where["device"] in (self.where["cpu"], *_gpus())


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    asked = {limited: getattr(arguments, f"max_{limited.name}") for limited in LIMITED}
    limits = {limited: limited.read(most) for limited, most in asked.items() if most is not None}
    runs = [read_run(folder) for folder in arguments.run] if arguments.run else _recorded()
    sources = [_source(run) for run in runs]
    lines = _measured(sources, arguments)
    groups = [group for _, group in lines.groupby([*GROUP], sort=False)]
    judged = [budget.judge(group, limits) for group in groups]
    said = [_advice(group, kept, limits) for group, kept in zip(groups, judged, strict=True)]
    used = [sources[number] for number in lines["run"].unique()]
    notes = [*_evidence(used, lines)]
    if all(source.is_here for source in used):
        notes += ["This looks like the machine of these rows: the same processor, as many cores and threads."]
    else:
        notes += _elsewhere(lines, limits, arguments, sys.argv[1:] if argv is None else argv)
    shown = [kept if arguments.all else kept[kept["on_front"]] for kept in judged]
    if arguments.format in ("csv", "json"):
        print("\n".join([*said, *notes]), file=sys.stderr)
        print(text.records([line for kept in shown for line in _flat(kept, sources)], arguments.format))
    else:
        tables = [_table(kept, limits, arguments.format) for kept in shown if len(kept)]
        if arguments.format == "table":  # commands stay in one line, so that they can be copied
            said, notes = (
                [line if line.startswith("  python") else paragraphs(line) for line in lines] for lines in (said, notes)
            )
        print("\n\n".join(["\n".join(said), *tables, "\n".join(notes)]))
    return command.OK if any(map(len, judged)) else command.FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m saprof.advise",
        description="Advise on network, footprint and backend within a budget, from recorded rows.",
    )
    for limited in LIMITED:
        parser.add_argument(f"--max-{limited.name}", metavar=limited.example, help=f"in {limited.names}")
    parser.add_argument(
        "--run", type=command.path, nargs="+", metavar="DIR", help="run folders (default: those in studies/recorded)"
    )
    parser.add_argument(
        "--mode", default="forward", choices=MODES, metavar="MODE", help=f"{', '.join(MODES)}; default %(default)s"
    )
    parser.add_argument("--batch", type=command.whole, default=1, help="images; default %(default)s")
    parser.add_argument("--dtype", default="float32", choices=tuple(ITEMSIZE))
    parser.add_argument(
        "--backend", default="all", help=f"{', '.join(BACKENDS)}, torch (ResNets only) or all (default)"
    )
    parser.add_argument("--format", default="table", choices=text.FORMATS)
    parser.add_argument(
        "--all", action="store_true", help="also show the networks that another one dominates, and which one"
    )
    return parser


def _recorded() -> list[Recorded]:
    """The sweeps in the source tree that are about networks. A profile is about few of them, to see their layers."""
    runs = [read_run(path.parent) for path in sorted(RECORDED.glob("*/rows.jsonl"))]
    found = [run for run in runs if not run.profiles and any(row.kind == "model" for row in run.rows)]
    if not found:
        raise ValueError(
            f"no recorded run about networks in {RECORDED}; measure some with saprof.sweep, and pass --run"
        )
    return found


def _source(run: Recorded) -> Source:
    roofs = run.calibration
    believed = [row for row in run.rows if roofs is None or not calibration.above_roof(row, roofs)]
    refused = len(run.rows) - len(believed)
    return Source(_short(run.folder), run.provenance, believed, refused, roofs and roofs.noise_between)


def _short(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _gpus() -> list[str]:
    """The GPUs of this machine, as NVIDIA's driver names them."""
    texts = [path.read_text() for path in Path("/proc/driver/nvidia/gpus").glob("*/information")]
    return [line.partition(":")[2].strip() for text in texts for line in text.splitlines() if line.startswith("Model:")]


def _measured(sources: Sequence[Source], arguments: argparse.Namespace) -> pd.DataFrame:
    """The lines of evidence in the requested mode, batch, dtype and backends, each with its `run` and `machine`;
    ValueError if there is none."""
    import pandas as pd

    backends = {*command.choices("backend", arguments.backend, (*BACKENDS, "torch"))}
    of_runs = [
        line | {"run": number, "machine": source.machine}
        for number, source in enumerate(sources)
        for line in evidence.points(source.rows).to_dict("records")
    ]
    lines = pd.DataFrame(of_runs, columns=[*evidence.COLUMNS, "run", "machine"])
    lines = lines.dropna(subset=[*evidence.COSTS, "latency_low_s", "latency_high_s"])
    by_asked = lines["backend"].map(lambda backend: backends.issuperset(backend.split("+"))).astype(bool)
    asked = (lines["mode"] == arguments.mode) & (lines["n"] == arguments.batch) & (lines["dtype"] == arguments.dtype)
    found = lines[asked & by_asked]
    if found.empty:
        kinds = lines[["mode", "n", "dtype", "backend"]].drop_duplicates().itertuples(index=False, name=None)
        there = "; ".join(f"{mode}, batch {n}, {dtype}, {backend}" for mode, n, dtype, backend in kinds)
        raise ValueError(
            f"mode {arguments.mode}, batch {arguments.batch}, {arguments.dtype}, backend {arguments.backend}: no such "
            "measurement, at 224 × 224, of a network that SAN or SASA judges in "
            f"{', '.join(str(s.folder) for s in sources)}; expected one of: {there or 'none'}"
        )
    believed = found.assign(sound=found["status"].isin(SOUND)).sort_values(["sound", "time"], kind="stable")
    return believed.drop_duplicates([*SUBJECT, "evaluation_set"], keep="last").drop(columns="sound").sort_index()


def _advice(group: pd.DataFrame, kept: pd.DataFrame, limits: Budget) -> str:
    """The recommendation for a group, or the distance of the group from the limits."""
    first = group.iloc[0]
    where = f"{first['machine']}, ImageNet {first['evaluation_set']}"
    if kept.empty:
        near = "".join(f"\n  {miss}" for miss in budget.misses(group, limits))
        return f"{where}: nothing of {len(group)} is within the budget;{near}"
    line = kept[kept["recommended"]].iloc[0]
    low, high = (f"{LATENCY.in_unit(line[f'latency_{end}_s']):.3g}" for end in ("low", "high"))
    latency, memory, params, flops = (limited.quantity.text_with_unit(line[limited.column]) for limited in LIMITED)
    caveat = f" ({line['status']}: {CAVEATS[line['status']]})" if line["status"] in CAVEATS else ""
    return (
        f"{where}: take {evidence.label(line)}, top-1 {line['top1']} as printed, {latency} [{low}, {high}]{caveat}, "
        f"{memory}, {params} parameters, {flops} FLOPs."
    )


def _table(kept: pd.DataFrame, limits: Budget, form: str) -> str:
    first = kept.iloc[0]
    title = f"{'## ' if form == 'md' else ''}{first['machine']}, ImageNet {first['evaluation_set']}"
    body = [_line(line, limits) for line in kept.to_dict("records")]
    if form == "md":
        return f"{title}\n\n{text.align(COLUMNS, body, form)}"
    of = dict(zip(COLUMNS, zip(*body, strict=True), strict=True))
    ends = ("latency_s", "latency_low_s", "latency_high_s")
    latencies = [around(*(LATENCY.in_unit(line[end]) for end in ends)) for line in kept.to_dict("records")]
    ranks = {"network": 0, "footprint": 0, "ran on": 0, "top-1 in paper": 0, "peak MB": 1, "params M": 3}
    columns = [Column(name, of[name], ranks.get(name, 2)) for name in COLUMNS if name not in LATENCY_COLUMNS]
    columns.insert(4, Column("latency ms", latencies))
    return fitted(Table(columns, title, of["note"], explained=PLUS_MINUS))


def _line(line: Mapping[Any, Any], limits: Budget) -> list[str]:
    model, _, side = evidence.label(line).partition(" on ")[0].partition(" ")
    latency, low, high = (LATENCY.text(line[f"latency_{name}s"]) for name in ("", "low_", "high_"))
    notes = ["recommended"] if line["recommended"] else []
    notes += [line["status"]] if line["status"] != "ok" else []
    notes += ["may exceed the limit"] if line["latency_high_s"] > limits.get(LIMITED[0], float("inf")) else []
    notes += [] if line["on_front"] else [f"dominated by {line['dominated_by']}"]
    sizes = [quantity.text(line[quantity.column]) for quantity in (MEMORY, PARAMS, PAPER_FLOPS)]
    return [
        *(model, side, evidence.ran_on(line), f"{line['top1']}", latency, f"{low} – {high}"),
        *(*sizes, ", ".join(notes)),
    ]


def _flat(kept: pd.DataFrame, sources: Sequence[Source]) -> Iterator[dict[str, Any]]:
    """The lines with their provenance, for programs."""
    for line in kept.astype(object).where(kept.notna(), None).to_dict("records"):
        source = sources[line["run"]]
        where = {"torch": source.where["versions"].get("torch"), "commit": source.where["commit"]}
        yield {str(name): value for name, value in line.items()} | where | {"run": str(source.folder)}


def _evidence(used: Sequence[Source], lines: pd.DataFrame) -> Iterator[str]:
    """The sources of the figures, and their limits."""
    mode, batch, dtype = (lines[name].iloc[0] for name in ("mode", "n", "dtype"))
    for number, source in zip(lines["run"].unique(), used, strict=True):
        times = lines["time"][lines["run"] == number].dropna()
        when = f", {times.max()[:10]}" if len(times) else ""
        yield f"Latency and memory: {source.folder}, {environment.caption(dict(source.where))}{when}."
        if source.refused:
            yield f"Omitted from {source.folder}: {source.refused} rows that are faster than the machine's roofs allow."
    yield f"They are for {mode}, {batch} × 224 × 224, {dtype}; memory is the peak without weights and input."
    if len(used) > 1:
        drifts = [source.drift for source in used if source.drift is not None]
        within = f"; within one of them the same call differed by {max(drifts):.0%}" if drifts else ""
        yield f"These {len(used)} runs were made at different times. A machine may differ between them{within}."
    yield f"Accuracy: {'; '.join(sorted(lines['source'].unique()))}. It was not measured here."
    if dtype != "float32":
        yield f"The papers do not report accuracies for {dtype}."
    yield "FLOPs are those of one image, in the paper's convention."
    statuses = list(lines.drop_duplicates([*SUBJECT])["status"])
    for status in [status for status in CAVEATS if status in statuses]:
        many = f"{statuses.count(status)} of {len(statuses)} rows"
        yield f"{status}, {many}: {CAVEATS[status]}. Their accuracy, memory, parameters and FLOPs hold."


def _elsewhere(
    lines: pd.DataFrame, limits: Budget, arguments: argparse.Namespace, argv: Sequence[str]
) -> Iterator[str]:
    """A note that the rows are of another machine, and the commands that measure the candidates on this one."""
    yield "The rows are from another machine or number of threads. Measure on this machine, then run this again:"
    fixed = {limited: most for limited, most in limits.items() if limited.name in ("params", "flops")}
    sides: dict[str, list[str]] = {}
    for line in budget.within(lines, fixed).to_dict("records"):
        network = evidence.Variant(line["name"], line["relation"], 0).model
        sides.setdefault(network, []).append(str(line["footprint"]).partition(":")[2])
    alike: dict[str, list[str]] = {}
    for network, of_network in sides.items():
        alike.setdefault(",".join(sorted({*of_network}, key=int)), []).append(network)
    settings = ["--mode", arguments.mode, "--batch", str(arguments.batch), "--dtype", arguments.dtype]
    for number, (footprints, networks) in enumerate(alike.items()):
        what = ["--model", ",".join(networks), "--footprint", footprints]
        into = ["--output", "runs/here", *(["--resume"] if number else [])]
        yield "  " + shlex.join(["python", "-m", "saprof.sweep", *what, *settings, *into])
    yield "  " + shlex.join(["python", "-m", "saprof.advise", *argv, "--run", "runs/here"])


if __name__ == "__main__":
    command.run(main)
