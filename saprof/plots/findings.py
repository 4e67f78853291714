"""What rows show, in words: the findings in the titles of figures, and descriptions for readers who cannot see them.

A finding rests on sound rows only, and says so if others are left out. If nothing can be said, it is empty.
"""

# pandas' annotations do not cover the result of indexing a DataFrame:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saprof.plots import frames, scales
from saprof.plots.beside import base_of, factor, speedups
from saprof.quantities import LATENCY, MEMORY, Quantity
from saprof.text import counted

LINE = ["name", "n", "h", "w", "mode", "dtype", "device"]
"""The columns in which the rows of a line agree; they differ in their footprints."""

SAME = 1.005
"""Peaks of memory whose ratio is nearer to 1 are called equal."""


def of_speed(rows: pd.DataFrame, over: str | None = None) -> str:
    """`numba is 1.5 to 5.1 times as fast as unfold, and the gap grows with the footprint`."""
    over = over or base_of(rows)
    found = _beside(rows, over, "speedup")
    parts = [part for _, part in found.groupby("ran", sort=False)]
    said = [_speed(part[~part["doubtful"]], over) for part in parts if not part["doubtful"].all()]
    return _joined(said) + _left_out(int((~found["doubtful"]).sum()), len(found)) if said else ""


def _beside(rows: pd.DataFrame, over: str, column: str) -> pd.DataFrame:
    try:
        return speedups(rows, over).dropna(subset=[column])
    except ValueError:
        return pd.DataFrame({"ran": [], "doubtful": pd.Series([], dtype=bool), column: []})


def _speed(part: pd.DataFrame, over: str) -> str:
    who, faster, slower = part["ran"].iloc[0], part["low"] > 1, part["high"] < 1
    if faster.all():
        return f"{who} is {_factors(part['speedup'])} times as fast as {over}{_trend(part)}"
    if slower.all():
        return f"{who} takes {_factors(1 / part['speedup'])} times as long as {over}"
    if not faster.any() and not slower.any():
        return f"{who} and {over} do not differ measurably"
    many = f" of {counted(len(part), 'cell')}"
    said = [f"{word} in {some.sum()}" for word, some in (("faster", faster), ("slower", slower)) if some.any()]
    return f"{who} is {' and '.join(said)}{many} than {over}"


def _trend(part: pd.DataFrame) -> str:
    """Whether the speed-up of every line is larger at its largest footprint, beyond the intervals; there are at least
    three footprints."""
    lines = [line for _, line in _squares(part).groupby(LINE, dropna=False)]
    ends = [_ends(line) for line in lines if line["taps"].nunique() > 2]
    if ends and all(last["low"] > first["high"] for first, last in ends):
        return ", and the gap grows with the footprint"
    if ends and all(last["high"] < first["low"] for first, last in ends):
        return ", and the gap shrinks with the footprint"
    return ""


def _squares(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["footprint"].str.startswith("square:")].dropna(subset=["taps"])


def _ends(line: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The rows with the fewest and the most taps."""
    line = line.sort_values("taps")
    return line.iloc[0], line.iloc[-1]


def of_memory(rows: pd.DataFrame, over: str | None = None) -> str:
    """`unfold needs 1.5 to 8.5 times the memory of numba`."""
    over = over or base_of(rows)
    found = _beside(rows, over, "memory")
    said = [_memory(part, over) for _, part in found[~found["doubtful"]].groupby("ran", sort=False)]
    return _joined(said)


def _memory(part: pd.DataFrame, over: str) -> str:
    who, ratio = part["ran"].iloc[0], part["memory"]
    less, more = ratio > SAME, ratio < 1 / SAME
    if less.all():
        return f"{over} needs {_factors(ratio)} times the memory of {who}"
    if more.all():
        return f"{who} needs {_factors(1 / ratio)} times the memory of {over}"
    if not less.any() and not more.any():
        return f"{who} and {over} need the same memory"
    said = [f"{word} in {some.sum()}" for word, some in (("less", less), ("more", more)) if some.any()]
    return f"{who} needs {' and '.join(said)} of {counted(len(part), 'cell')} than {over}, as much in the others"


def of_growth(rows: pd.DataFrame) -> str:
    """`From 3×3 to 11×11, latency grows 1.4 times with numba and 4.9 times with unfold`, of networks if there are
    some."""
    if (rows["kind"] == "model").any():
        rows = rows.loc[rows["kind"] == "model"]
    rows = _squares(rows.assign(ran=frames.who(rows)))
    sound = rows[~frames.doubtful(rows)].dropna(subset=["latency_s", "latency_low_s", "latency_high_s"])
    lines = [(ran, *_ends(line)) for (ran, *_), line in sound.groupby(["ran", *LINE], sort=False, dropna=False)]
    lines = [line for line in lines if line[1]["taps"] < line[2]["taps"]]
    spans = pd.Series([(first["footprint"], last["footprint"]) for _, first, last in lines], dtype=object)
    if spans.empty:
        return ""
    span = spans.mode().iloc[0]
    alike = [line for line, of_line in zip(lines, spans, strict=True) if of_line == span]
    by_ran = {ran: [ends for who, *ends in alike if who == ran] for ran, *_ in alike}
    factors: dict[str, list[str]] = {}
    for ran, ends in by_ran.items():
        if _is_growth(ends):
            factors.setdefault(_growth(ends), []).append(ran)
    grows = [f"{times} times with {_listed(rans)}" for times, rans in factors.items()]
    still = [ran for ran, ends in by_ran.items() if not _is_growth(ends)]
    said = [f"grows {_listed(grows)}"] if grows else []
    said += [f"does not grow measurably with {_listed(still)}"] if still else []
    kind = "of networks " if (rows["kind"] == "model").any() else ""
    start, end = map(frames.footprint_label, span)
    return f"From {start} to {end}, the latency {kind}{'; it '.join(said)}"


def _is_growth(ends: Sequence[Sequence[pd.Series]]) -> bool:
    """Whether some line is slower at its last footprint, beyond the intervals."""
    return any(last["latency_low_s"] > first["latency_high_s"] for first, last in ends)


def _growth(ends: Sequence[Sequence[pd.Series]]) -> str:
    return _factors(pd.Series([last["latency_s"] / first["latency_s"] for first, last in ends]))


def of_costs(rows: pd.DataFrame) -> str:
    """`From 3×3 to 7×7, FLOPs grow 1.2 times (san10_patchwise) to 2.7 times (resnet26), parameters …`."""
    rows = _squares(rows)
    lines = {name: line.drop_duplicates("taps").set_index("taps").sort_index() for name, line in rows.groupby("name")}
    shared = sorted(set.intersection(*(set(line.index) for line in lines.values()))) if lines else []
    if len(shared) < 2:
        return ""
    first, last = shared[0], shared[-1]
    start, end = (frames.footprint_label(next(iter(lines.values())).loc[taps, "footprint"]) for taps in (first, last))
    said = []
    for column, what in (("flops_paper", "FLOPs"), ("params", "parameters")):
        ratios = pd.Series({name: line.loc[last, column] / line.loc[first, column] for name, line in lines.items()})
        least, most = ratios.idxmin(), ratios.idxmax()
        if ratios[most] < SAME:
            said.append(f"{what} stay the same")
            continue
        if ratios[least] < SAME:
            said.append(f"{what} stay the same ({least}) or grow by up to a factor of {factor(ratios[most])} ({most})")
            continue
        other = f" to {factor(ratios[most])} ({most})" if most != least else ""
        said.append(f"{what} grow by a factor of {factor(ratios[least])} ({least}){other}")
    return f"From {start} to {end}, {', and '.join(said)}"


def of_shapes(rows: pd.DataFrame) -> str:
    """`At equally many taps, the latencies of shapes differ by factors of 1.1 to 1.4 with numba`."""
    known = rows.dropna(subset=["taps", "latency_s"])
    sound = known.assign(ran=frames.who(known))[~frames.doubtful(known)]
    said = []
    for ran, part in sound.groupby("ran", sort=False):
        groups = [line["latency_s"] for _, line in part.groupby([*LINE, "taps"], dropna=False) if len(line) > 1]
        if groups:
            said.append(f"{_factors(pd.Series([times.max() / times.min() for times in groups]))} with {ran}")
    if not said:
        return ""
    factors = f"At equally many taps, the latencies of shapes differ by factors of {_listed(said)}"
    return factors + _left_out(len(sound), len(known))


def of_roofs(rows: pd.DataFrame) -> str:
    """`numba reaches 3 to 26 % of the roof, unfold 0.2 to 5 %`, from the column `roof_share`."""
    known = rows.dropna(subset=["roof_share"])
    sound = known[~frames.doubtful(known)]
    said = [_shares(ran, part["roof_share"]) for ran, part in sound.groupby("ran", sort=False)]
    return (
        f"{said[0]} of what the machine allows"
        + "".join(f", {one}" for one in said[1:])
        + _left_out(len(sound), len(known))
        if said
        else ""
    )


def _shares(ran: str, shares: pd.Series) -> str:
    low, high = (f"{100 * share:.2g}" for share in (shares.min(), shares.max()))
    return f"{ran} reaches {low} to {high} %" if low != high else f"{ran} reaches {low} %"


def of_front(best: pd.DataFrame, points: pd.DataFrame) -> str:
    """Which families the networks of a Pareto front are of: `5 of 6 networks on the front are patchwise`."""
    counts = best.drop_duplicates(["name", "relation", "footprint"])["family"].value_counts()
    if counts.empty or points["family"].nunique() < 2:
        return ""
    spelled = {str(family).replace("_", "-"): int(count) for family, count in counts.items()}
    (family, most), total = next(iter(spelled.items())), sum(spelled.values())
    if total == 1:
        return f"one {family} network is the whole front"
    if len(spelled) == 1:
        return f"only {family} networks are on the front"
    if len(set(spelled.values())) == 1:
        return f"the front has {_listed([f'{most} {one}' for one in spelled])} network{'s' * (most > 1)}"
    return f"{most} of {total} networks on the front are {family}"


def extent(rows: pd.DataFrame, quantity: Quantity) -> str:
    """`latency from 0.4 ms (aggregation 3×3 at 56×56, numba) to 92 ms (…)`, and how many of the times are doubtful."""
    known = rows.dropna(subset=[quantity.column])
    if known.empty:
        return f"{quantity.noun}, of which nothing was measured"
    values = frames.column_of(known, quantity)
    ends = [
        f"{scales.plain(values[i])} {quantity.unit} ({where(known.loc[i])})" for i in (values.idxmin(), values.idxmax())
    ]
    said = f"{quantity.noun} from {ends[0]} to {ends[1]}"
    many = int(frames.doubtful(known).sum()) if quantity is LATENCY else 0
    return said + (f" ({many} of {len(known)} rows are doubtful, drawn hollow)" if many else "")


def where(row: pd.Series) -> str:
    """The cell of a row: `aggregation, 3×3 at 56×56, numba`."""
    return f"{_place(row)}, {row.get('ran', row['backend'])}"


def _place(row: pd.Series) -> str:
    return f"{row['name']}, {frames.footprint_label(row['footprint'])} at {row['h']}×{row['w']}"


def extents(rows: pd.DataFrame) -> str:
    """The ranges of latency and memory."""
    return f"{extent(rows, LATENCY)}; {extent(rows, MEMORY)}"


def extremes(rows: pd.DataFrame, over: str) -> list[str]:
    """One sentence per backend, mode and batch: the number of cells where it is faster than `over`, and the range of
    its speed-ups, without doubtful cells. Empty if nothing was measured beside `over`, or all of it is doubtful."""
    found = _beside(rows, over, "speedup")
    found = found[~found["doubtful"].astype(bool)]
    if found.empty:
        return []
    found = found.assign(setting=frames.settings(found, ("mode", "n", "dtype", "device")))
    return [_extreme(part, over) for _, part in found.groupby(["ran", "setting"], sort=False)]


def _extreme(part: pd.DataFrame, over: str) -> str:
    faster, slower = int((part["low"] > 1).sum()), int((part["high"] < 1).sum())
    least, most = (part.loc[part["speedup"].idxmin()], part.loc[part["speedup"].idxmax()])
    who = ", ".join(filter(None, [f"{part['ran'].iloc[0]} over {over}", part["setting"].iloc[0]]))
    among = f"faster in {faster} of {len(part)} cells" + (f", slower in {slower}" if slower else "")
    if len(part) == 1:
        return f"{who}: {factor(most['speedup'])}× ({_place(most)})."
    ends = f"{factor(least['speedup'])}× ({_place(least)}) to {factor(most['speedup'])}× ({_place(most)})"
    return f"{who}: {among}; from {ends}."


def _factors(values: pd.Series) -> str:
    low, high = factor(values.min()), factor(values.max())
    return low if low == high else f"{low} to {high}"


def _joined(said: Sequence[str]) -> str:
    return "; ".join(said)


def _listed(said: Sequence[str]) -> str:
    return ", ".join(said[:-1]) + " and " * (len(said) > 1) + said[-1]


def _left_out(kept: int, tried: int) -> str:
    return f" ({kept} of {counted(tried, 'row')}; the others are doubtful)" if kept < tried else ""
