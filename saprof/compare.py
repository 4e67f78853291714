"""`python -m saprof.compare A B`: two runs cell by cell, or with `--backends numba,unfold` two backends of one run.

A is before and B is after; a ratio is B / A. A cell is slower or faster if its whole 95 % interval is beyond ± 2 % and
beyond the noise, which is how far identical calls differed. The largest change is first. For profiles, the
layers that differ are shown.

The rows of plain torch and the anchors of the calibration are the control: they run none of our kernels. If the
control of two runs moved by more than the noise, the machine changed. Then verdicts and regressions are relative to the
control: B / A divided by the median of B / A over the control, with the uncertainty of both. A row that is contended,
unstable or faster than its roof has no verdict, and is no regression. The exit code is 0; 2 if the command line or a
run is wrong; 3 with `--fail-on-regression` if there is a regression."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from saprof import command, text
from saprof.paper.shown import cell_columns
from saprof.quantities import factor
from saprof.records.comparison import METRICS, Compared, Comparison, Matched, Metric, match
from saprof.records.control import Control, is_plain
from saprof.records.layers import LEAST_CHANGE
from saprof.records.rows import Row
from saprof.records.runs import IDENTITY, Recorded, differences, read_run, require_same_machine
from saprof.records.verdicts import in_words
from saprof.terminal import Column, Table, fitted, paragraphs

NAMED = 3
"""How many cells a count names."""
SPELLED = {"ambiguous": "undecided"}
LEAST_LAYER = 0.05
"""Only layers with at least this share of their network, in A or in B, can be a regression. There are hundreds of
smaller ones, and by chance one of them is always slower."""


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    limit = None if arguments.fail_on_regression is None else share(arguments.fail_on_regression)
    metric = METRICS[arguments.metric]
    if arguments.control is not None and metric.exact:
        raise ValueError(f"--control has no effect with --metric {arguments.metric}, which is exact; omit it")
    comparison, matched = _choose(arguments)
    found = [comparison.compare(one, other, metric) for one, other in matched.pairs]
    compared = [one for one in found if one is not None]
    if not compared:
        raise ValueError(_nothing(matched, metric))
    cells = _control(compared, arguments, comparison) if metric is METRICS["latency"] else []
    moved = comparison.moved(cells)
    if moved:
        compared = [comparison.against(moved, one) for one in compared]
    wholes = _wholes(compared)
    shown = _shown(compared, wholes)
    legend, notes = _legend(comparison, compared, arguments), _notes(matched, compared, len(compared) - len(shown))
    if moved:
        legend.append(_moved(moved, cells))
    if arguments.format in ("csv", "json"):
        print("\n".join([*legend, *notes]), file=sys.stderr)
        print(text.records([record(one) for one in compared], arguments.format))
    else:
        names = [name.strip() for name in arguments.backends.split(",")] if arguments.backends else ["A", "B"]
        listed = (
            shown
            if arguments.all or arguments.format == "md"
            else [one for one in shown if one.is_clear or one.doubts or _is_whole(one, shown)]
        )
        if folded := len(shown) - len(listed):
            notes.append(f"{folded} of {len(compared)} cells: no difference, or undecided; --all shows them")
        parts = [
            "\n".join(legend),
            *([render(listed, metric, arguments.format, names)] if listed else []),
            "\n".join(notes),
        ]
        print(
            "\n\n".join(
                parts if arguments.format == "md" else [paragraphs(parts[0]), *parts[1:-1], paragraphs(parts[-1])]
            )
        )
    if limit is None:
        return command.OK
    worse = [one for one in shown if one.is_regression(limit) and _is_large(one, wholes)]
    for one in worse:
        by = [] if one.judged is None else [f"{one.judged.median:.3f}×", *filter(None, [_interval(one)])]
        print(f"regression: {_cell(one)}: {', '.join([*by, one.verdict, *one.remarks])}", file=sys.stderr)
    return command.REGRESSION if worse else command.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m saprof.compare",
        description="Compare two runs cell by cell, A before and B after, or two backends of one run.",
    )
    parser.add_argument(
        "runs", nargs="+", type=command.path, metavar="RUN", help="run folders: A and B, or one with --backends"
    )
    parser.add_argument("--backends", metavar="A,B", help="two backends of one run, such as numba,unfold")
    parser.add_argument(
        "--metric",
        default="latency",
        choices=tuple(METRICS),
        help="latency, peak memory, or memory saved for backward (default latency)",
    )
    parser.add_argument(
        "--fail-on-regression",
        metavar="SHARE",
        help=f"exit with {command.REGRESSION} if a cell is worse by more than the noise "
        "and by more than this share, such as 10%% or 0.1; layers of a profile count only if they take "
        f"{100 * LEAST_LAYER:g} %% of their network or more",
    )
    parser.add_argument(
        "--control",
        metavar="NAMES",
        help="backends, networks or operators that cannot have changed, such as unfold,resnet26, or none (default: all "
        "rows of plain torch; none for profiles and across devices)",
    )
    parser.add_argument("--all", action="store_true", help="also show the cells without a clear difference")
    parser.add_argument(
        "--across-devices", action="store_true", help="compare runs even if their devices, CPUs or threads differ"
    )
    parser.add_argument("--format", default="table", choices=text.FORMATS)
    return parser


def share(asked: str) -> float:
    """`10%` or `0.1` as 0.1."""
    number, percent = asked.strip().removesuffix("%"), asked.strip().endswith("%")
    value = float(number) / (100 if percent else 1) if re.fullmatch(command.NUMBER, number.strip()) else math.nan
    if not 0 <= value < (math.inf if percent else 1):
        raise ValueError(f"fail-on-regression is {asked!r}; expected a share such as 10% or 0.1")
    return value


def _choose(arguments: argparse.Namespace) -> tuple[Comparison, Matched]:
    """The two sides and their cells."""
    runs = [read_run(folder) for folder in arguments.runs]
    if arguments.backends is not None:
        return _backends(runs, arguments.backends)
    if len(runs) != 2:
        hint = "two, or one with --backends, such as --backends numba,unfold"
        raise ValueError(f"got {text.counted(len(runs), 'run')}; expected {hint}")
    before, after = runs
    if not arguments.across_devices:
        require_same_machine(before.provenance, after.provenance)
    without = [*(["device"] if arguments.across_devices else []), *_ways(before, after)]
    return Comparison(before, after, arguments.across_devices), match(_rows(before), _rows(after), without)


def _control(compared: Sequence[Compared], arguments: argparse.Namespace, comparison: Comparison) -> list[Compared]:
    """The cells that cannot have changed; none if no other cells would be left."""
    asked = arguments.control
    if asked is not None and arguments.backends:
        raise ValueError("--control has no effect with --backends, whose cells are of one run; omit it")
    if asked is None:
        profiled = comparison.before.profiles or comparison.after.profiles
        no_control = arguments.backends or arguments.across_devices or profiled
        cells = [] if no_control else [one for one in compared if is_plain(one.after)]
        return cells if len(cells) < len(compared) else []
    names = [] if asked == "none" else [name.strip() for name in asked.split(",")]
    known = dict.fromkeys(name for one in compared for name in (one.after.backend, one.after.name))
    for name in names:
        if name not in known:
            raise ValueError(text.unknown("control", name, [*known, "none"]))
    return [one for one in compared if {one.after.backend, one.after.name} & {*names}]


def _moved(moved: Control, cells: Sequence[Compared]) -> str:
    ends = ", ".join(f"{end:.2f}" for end in (moved.ratio.low, moved.ratio.high))
    anchors = f" and {text.counted(moved.anchors, 'anchor')}" if moved.anchors else ""
    which = text.shortened(list(dict.fromkeys(one.after.backend for one in cells)))
    return (
        f"control cells moved {factor(moved.ratio.median)} [{ends}] from A to B, so the machine changed "
        f"({text.counted(moved.cells, 'cell')} of {which}{anchors}); verdicts are relative to them"
    )


def _rows(run: Recorded) -> list[Row]:
    """The rows of a run, without the row of a network as a layer: its row without the profiler is more exact."""
    return [row for row in run.rows if row.layer != "" or row.operation is not None]


def _ways(before: Recorded, after: Recorded) -> tuple[str, ...]:
    """The fields in which the cells of two profiles may differ: what computed a layer, which was not requested."""
    return ("backend", "attention") if before.profiles and after.profiles else ()


def _network(row: Row) -> tuple[Any, ...]:
    """What the rows of one network and of its layers have in common."""
    return row.name, row.mode, row.n, row.h, row.w, row.dtype


def _wholes(compared: Sequence[Compared]) -> dict[tuple[Any, ...], Compared]:
    """The cell of each network."""
    return {_network(one.after): one for one in compared if one.after.kind == "model"}


def _is_large(one: Compared, wholes: Mapping[tuple[Any, ...], Compared], least: float = LEAST_LAYER) -> bool:
    """Whether a cell is not a layer, or is a layer with at least the share `least` of its network on one side."""
    whole = wholes.get(_network(one.after))
    if one.after.kind != "layer" or whole is None:
        return True
    sides = (one.before, whole.before), (one.after, whole.after)
    return any((one.metric.of(row) or 0) >= least * (one.metric.of(of) or 0) for row, of in sides)


def _shown(compared: Sequence[Compared], wholes: Mapping[tuple[Any, ...], Compared]) -> list[Compared]:
    """The cells to show: all except layers that do not differ, or differ by less than `LEAST_CHANGE` of their network.
    The layers follow their network, the largest difference first."""
    found: list[Compared] = []
    layers: dict[tuple[Any, ...], list[Compared]] = {}
    for one in compared:
        if one.after.kind == "layer":
            layers.setdefault(_network(one.after), []).append(one)
    for one in compared:
        if one.after.kind != "layer":
            found.append(one)
            if one.after.kind == "model":
                found += _differing(layers.pop(_network(one.after), []), wholes)
    rest = [one for rest in layers.values() for one in _differing(rest, wholes)]
    return found + rest if any(one.after.kind == "layer" for one in compared) else sorted(found, key=_effect)


def _effect(one: Compared) -> tuple[int, float]:
    """The key by which cells are sorted: the clear ones first, and of these the largest change."""
    ratio = one.judged
    size = math.inf if ratio is None or not 0 < ratio.median < math.inf else abs(math.log(ratio.median))
    return 0 if one.is_clear else 1 if one.doubts else 2, -size


def _is_whole(one: Compared, shown: Sequence[Compared]) -> bool:
    """Whether a cell is the network of layers that are shown."""
    return one.after.kind == "model" and any(other.after.kind == "layer" for other in shown)


def _differing(layers: Sequence[Compared], wholes: Mapping[tuple[Any, ...], Compared]) -> list[Compared]:
    def least(one: Compared) -> float:
        whole = wholes.get(_network(one.after))
        return 0.0 if whole is None else LEAST_CHANGE * (one.metric.of(whole.before) or 0)

    operators = Counter(one.after.layer for one in layers if one.after.operation is not None)
    kept = [
        one
        for one in layers
        if (one.after.operation is None or operators[one.after.layer] > 1)  # else it is the same as its module
        and (one.ratio is None or (one.is_clear and _change(one) >= least(one)))
    ]
    return sorted(kept, key=lambda one: -round(_change(one), 9))


def _change(one: Compared) -> float:
    """How much the two sides differ, in the metric's SI unit."""
    return abs((one.metric.of(one.after) or 0) - (one.metric.of(one.before) or 0))


def _backends(runs: Sequence[Recorded], asked: str) -> tuple[Comparison, Matched]:
    if len(runs) != 1:
        raise ValueError(f"got {len(runs)} runs; expected one with --backends")
    (run,) = runs
    names = [name.strip() for name in asked.split(",")]
    if len(set(names)) != 2 or len(names) != 2:
        raise ValueError(f"backends is {asked!r}; expected two, such as numba,unfold")
    known = list(dict.fromkeys(row.backend for row in run.cells))
    for name in names:
        if name not in known:
            raise ValueError(f"{run.folder} has no rows of backend {name!r}; expected {', '.join(known)}")
    before, after = ([row for row in run.cells if row.backend == name] for name in names)
    return Comparison(run, run), match(before, after, ("backend",))


def _nothing(matched: Matched, metric: Metric) -> str:
    if matched.pairs:
        column = metric.quantity.column
        return f"none of the {len(matched.pairs)} cells in common has {column}; expected cells that were measured"
    a, b = ([label(row) for row in rows[:1]] for rows in (matched.only_before, matched.only_after))
    return f"no cell is in both A and B; expected the same cells, and A has {_first(a)}, B has {_first(b)}"


def _first(labels: Sequence[str]) -> str:
    return f"{labels[0]!r}" if labels else "none"


def _legend(comparison: Comparison, compared: Sequence[Compared], arguments: argparse.Namespace) -> list[str]:
    """A and B, the differences between their provenance, and the sources of the noise."""
    asked = arguments.backends.split(",") if arguments.backends else []
    titles = [f"{arguments.runs[0]}, {backend.strip()}" for backend in asked] or arguments.runs
    lines = [f"{side}: {title}" for side, title in zip("AB", titles, strict=True)]
    for name, (one, other) in differences(comparison.before.provenance, comparison.after.provenance).items():
        lines.append(f"{name}: {_short(one)} in A, {_short(other)} in B")
    floors = dict.fromkeys(one.floor for one in compared if one.ratio is not None and not one.metric.exact)
    return lines + [f"noise ± {_percent(floor.share)} %: {floor.source}" for floor in floors]


def _short(value: Any) -> str:
    return "none" if value is None else str(value)[:40]


def render(compared: Sequence[Compared], metric: Metric, form: str, names: Sequence[str] = ("A", "B")) -> str:
    """The cells as a table. `names` are the names of the two sides in verdicts."""
    header = ["cell", f"A {metric.quantity.unit}", f"B {metric.quantity.unit}", "B / A"]
    relative = any(one.relative for one in compared)
    header += ["relative"] if relative else []
    header += ["verdict"] if metric.exact else ["95 % interval", "noise ± %", "verdict"]
    lines = [_line(one, names, relative) for one in compared]
    if form == "md":
        return text.align(header, lines, form)
    of = dict(zip(header, zip(*lines, strict=True), strict=True))
    layers = any(one.after.kind == "layer" for one in compared)
    cells = [Column("cell", [*map(_cell, compared)])] if layers else _cell_columns(compared)
    columns = [Column(title, of[title], _rank(title)) for title in header[1:-1]]
    if len({one.floor for one in compared}) == 1:
        columns = [column for column in columns if column.title != "noise ± %"]  # the legend has it
    title = "verdict, relative to the control" if relative else "verdict"
    judged = [one.judged is not None and not one.doubts for one in compared]
    words = [_words(one, *names, interval=False) if known else "" for one, known in zip(compared, judged, strict=True)]
    why = [[] if one.judged else [one.verdict] for one in compared]
    notes = [", ".join([*said, *one.doubts, *one.remarks]) for said, one in zip(why, compared, strict=True)]
    return fitted(Table([*cells, *columns, Column(title, words)], notes=notes))


def _rank(title: str) -> int:
    """The rank of a column of values: the ratios are shown first, then the values, then the interval."""
    return {"B / A": 1, "relative": 1, "95 % interval": 3, "noise ± %": 4}.get(title, 2)


def _cell_columns(compared: Sequence[Compared]) -> list[Column]:
    same = [one.before.ran_on == one.after.ran_on for one in compared]
    ran = [one.after.ran_on if alike else "" for one, alike in zip(compared, same, strict=True)]
    return [*cell_columns([vars(one.after) for one in compared], "name"), Column("ran on", ran, 0, "{}")]


def _line(one: Compared, names: Sequence[str], relative: bool) -> list[str]:
    values = (one.metric.of(row) for row in (one.before, one.after))
    cells = [_cell(one), *(one.metric.quantity.text(value) for value in values)]
    cells.append("" if one.ratio is None else f"{one.ratio.median:,.3f}")
    if relative:
        cells.append("" if one.relative is None else f"{one.relative.median:,.3f}")
    if not one.metric.exact:
        cells += [_interval(one), "" if one.ratio is None else _percent(one.floor.share)]
    return [*cells, ", ".join([*([] if one.doubts else [_words(one, *names)]), *one.doubts, *one.remarks])]


def _words(one: Compared, a: str, b: str, *, interval: bool = True) -> str:
    """The verdict as a sentence, with the interval unless a column has it."""
    ratio = one.judged
    if ratio is None:
        return one.verdict
    if not one.metric.exact:
        if a != "A" and ratio.verdict(one.band) == "slower":
            return in_words(a, b, ratio.inverse, one.band, interval)
        return in_words(b, a, ratio, one.band, interval) + (
            ", relative to the control" if one.relative and interval else ""
        )
    if one.verdict == "equal" or not 0 < ratio.median < math.inf:
        return one.verdict
    times = factor(max(ratio.median, 1 / ratio.median))
    return f"{b} {times} as much as {a}" if one.verdict == "more" else f"{a} {times} as much as {b}"


def _interval(one: Compared) -> str:
    ratio = one.judged
    if ratio is None or one.metric.exact:
        return ""
    return "none" if math.isinf(ratio.high) else f"{ratio.low:,.3f} – {ratio.high:,.3f}"


def _percent(part: float) -> str:
    return f"{100 * part:.1f}"


def record(one: Compared) -> dict[str, Any]:
    """A line for programs: the cell, both values, their ratio, noise and verdict; SI units are in the names."""
    ratio: dict[str, float] = {}
    for name, known in (("ratio", one.ratio), ("relative", one.relative)):
        if known:
            ratio |= {name: known.median, f"{name}_low": known.low, f"{name}_high": known.high}
    own = ("backend", "attention", "status", one.metric.quantity.column)
    finite = {name: None if math.isinf(value) else value for name, value in ratio.items()}
    return {
        **{name: vars(one.after).get(name) for name in IDENTITY if name not in own},
        **{f"{side}_{name}": getattr(row, name) for side, row in (("a", one.before), ("b", one.after)) for name in own},
        **dict.fromkeys(f"{name}{end}" for name in ("ratio", "relative") for end in ("", "_low", "_high")),
        **finite,
        "noise": one.floor.share,
        "noise_source": one.floor.source,
        "verdict": one.verdict,
        "remarks": ", ".join([*one.doubts, *one.remarks]),
    }


def _notes(matched: Matched, compared: Sequence[Compared], left_out: int) -> list[str]:
    """Counts of verdicts, and the cells that were not shown or not compared."""
    counts = Counter(one.verdict for one in compared)
    notes = [
        f"{text.counted(len(compared), 'cell')}: "
        + ", ".join(f"{count} {SPELLED.get(verdict, verdict)}" for verdict, count in counts.most_common())
    ]
    if left_out:
        notes.append(
            f"not shown: {left_out} layers and operators without a clear difference of {100 * LEAST_CHANGE:g} % of "
            "their network or more"
        )
    without = len(matched.pairs) - len(compared)
    if without:
        notes.append(f"in both, and not compared, since not measured: {text.counted(without, 'cell')}")
    for side, rows in (("A", matched.only_before), ("B", matched.only_after)):
        if rows:
            named = ", ".join(label(row) for row in rows[:NAMED]) + (", …" if len(rows) > NAMED else "")
            notes.append(f"only in {side}: {text.counted(len(rows), 'cell')}: {named}")
    return notes


def label(row: Row, names: Sequence[str] = ("mode", "backend", "attention")) -> str:
    """A cell in words; the fields `names` are at the end. A layer has the name of its network and its path."""
    if row.kind == "layer":
        operation = f" {row.operation.removeprefix('saprof::')}()" if row.operation else ""
        return f"{row.name}{row.layer and ' '}{row.layer}{operation}{' (timed apart)' if row.apart else ''}"
    widths = [f"{axis}{value}" for axis in "nrvg" if (value := getattr(row, axis)) is not None]
    maps = [f"{row.h}x{row.w}"] if row.h else []
    what = [row.name, *widths, *maps, row.footprint, row.dtype]
    ways = [str(value) for name in names if (value := getattr(row, name)) is not None]
    return " ".join(["-".join(what).replace(" ", ","), *ways]) + ("+compile" if row.compiled else "")


def _cell(one: Compared) -> str:
    """The label of what both sides have in common."""
    names = [n for n in ("mode", "backend", "attention") if getattr(one.before, n) == getattr(one.after, n)]
    return label(one.after, names)


if __name__ == "__main__":
    command.run(main)
