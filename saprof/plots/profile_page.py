"""The page of one or more profiles: icicles of time, memory and operations, and the tree as a table, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saprof import atomic
from saprof.markup import Html, tag
from saprof.plots import page, provenance
from saprof.plots.downloads import rows_as_csv
from saprof.plots.icicle import (
    MEASURES,
    OPERATIONS,
    TIME,
    Measure,
    axis,
    finding,
    full_name,
    icicle,
    is_doubtful,
    scale_of,
)
from saprof.plots.layer_kinds import COLOURS, KINDS, MODULE, OTHER, SPELLED, by_kind
from saprof.plots.page import Part, Section, Table
from saprof.quantities import digits
from saprof.records.columns import COLUMNS
from saprof.records.comparison import latency_ratio, same_rounds
from saprof.records.layers import LEAST_CHANGE
from saprof.records.profiles import LEAST_SHARE, Profile, headline, lines
from saprof.records.rows import Row

GENERATOR = "saprof.profile"
FILE = "profile.html"
"""The page, in a run folder."""
LEFT_OUT = ("macs", "paper")
"""Columns that the page does not show. The rows have them, and `saprof profile --columns` shows them."""


def write(profiles: Sequence[Profile], path: str | Path) -> Path:
    """Write the page of some profiles, which needs no other file and no network; returns its path. Several profiles are
    drawn on the same scale. WriteError if the file cannot be written."""
    path = Path(path)
    atomic.write(path, render(profiles).encode())
    return path


def render(profiles: Sequence[Profile]) -> str:
    """The page."""
    names = " and ".join(one.network.name for one in profiles)
    return page.document(
        f"saprof: {names}",
        GENERATOR,
        css(),
        tag("header", tag("p", "saprof", class_="overline"), tag("h1", title(profiles))),
        [*parts(profiles), *_origin(profiles[0])],
        script(),
    )


def css() -> str:
    """The styles that icicles need beside those of every page."""
    colours = "".join(f".{name} {{ background-color: {colour}; }}\n" for name, colour in COLOURS.items())
    return colours + page.beside("profile.css")


def script() -> str:
    """The script that icicles need beside that of every page."""
    return page.beside("profile.js")


def title(profiles: Sequence[Profile]) -> str:
    """The main result of the profiles, in one sentence."""
    if len(profiles) == 1:
        return f"{profiles[0].network.name}: {finding(profiles[0], TIME)}"
    slow, fast = sorted((one.network for one in profiles[:2]), key=lambda row: row.latency_s or 0, reverse=True)
    ratio = latency_ratio(slow, fast, same_rounds(slow, fast))
    interval = f" [{digits(ratio.low)}, {digits(ratio.high)}]"
    return f"{slow.name} takes {digits(ratio.median)}{interval} times as long as {fast.name}"


def parts(profiles: Sequence[Profile]) -> list[Part]:
    """The parts of a page about profiles, without provenance."""
    found: list[Part] = [*(tag("p", *_joined(headline(one)), class_="lead") for one in profiles), _doubts(profiles)]
    found.append(_legend(profiles))
    missing = [measure.title.lower() for measure in (TIME, OPERATIONS) if not scale_of(profiles, measure)]
    found += [_figure(profiles, measure) for measure in MEASURES if scale_of(profiles, measure)]
    if missing:
        found.append(tag("p", f"Not drawn, since nothing was counted: {', '.join(missing)}."))
    found.append(Section("By kind of operator", [_kinds(profiles)]))
    if changes := _changes(profiles):
        found.append(Section("What differs, layer by layer", changes))
    return [*found, *map(_tree, profiles)]


def _joined(sentences: Sequence[str]) -> list[str]:
    return [". ".join(f"{one[:1].upper()}{one[1:]}" if number else one for number, one in enumerate(sentences)), "."]


def _doubts(profiles: Sequence[Profile]) -> Html:
    """Warnings about results that may be wrong."""
    doubts = [f"{one.network.name} is {one.network.status}" for one in profiles if is_doubtful(one.network)]
    for one in profiles:
        layers = [row for row in one.rows if row.kind == "layer" and row.operation is None and not row.apart]
        if some := [row for row in layers if is_doubtful(row)]:
            share = sum(row.self_s or 0 for row in some) / (one.whole.latency_s or 1)
            doubts.append(
                f"{len(some)} of {len(layers)} layers of {one.network.name} are unstable or contended (hatched below); "
                f"their self time is {100 * share:.0f} % of the time"
            )
    warnings = {one.calibration.warning([one.network.dtype]) for one in profiles if one.calibration}
    doubts += sorted(filter(None, warnings))
    if any(one.provenance.get("dirty") for one in profiles):
        doubts.append("the code had uncommitted changes, so nobody else can run the same code")
    return page.warning(doubts)


def _legend(profiles: Sequence[Profile]) -> Html:
    """What colours and hatches mean."""
    present = {name for one in profiles for name in by_kind(one, TIME.value)}
    spelled = {name: SPELLED[name] for name in (*KINDS, OTHER) if name in present} | {MODULE: "modules"}
    entries = [tag("li", tag("i", class_=f"box {name}"), words) for name, words in spelled.items()]
    rows = [row for one in profiles for row in one.rows]
    if any(map(is_doubtful, rows)):
        entries.append(tag("li", tag("i", class_="box module doubtful"), "unstable or contended"))
    if any(row.apart for row in rows):
        entries.append(
            tag("li", tag("i", class_="box attention apart"), "timed apart: widths in proportion, in no sum")
        )
    guide = (
        "Each layer is a box below the module around it. The width of a box is its share; boxes are in the order of "
        "the first calls. An empty space below a module is the module's own share, such as the time between operators. "
        "A click on a box zooms to it; a click on the top box shows the whole network again."
    )
    return tag("div", tag("ul", *entries, class_="legend"), tag("p", guide))


def _figure(profiles: Sequence[Profile], measure: Measure) -> Section:
    """The icicles of all profiles in one measure, on one scale."""
    scale = scale_of(profiles, measure)
    drawn: list[Html] = []
    for number, one in enumerate(profiles):
        whole = measure.value(one.whole)
        name = [tag("p", one.network.name, tag("span", f" · {finding(one, measure)}"))] if len(profiles) > 1 else []
        drawn += [*name, icicle(one, measure, number, scale, _tip_of(one))] if whole else name
    found = finding(profiles[0], measure) if len(profiles) == 1 else _side_by_side(profiles, measure)
    return Section(f"{measure.title}: {found}", [tag("div", *drawn, axis(measure, scale), class_="icicles")])


def _side_by_side(profiles: Sequence[Profile], measure: Measure) -> str:
    amounts = [f"{one.network.name} {measure.amount(measure.value(one.whole))}" for one in profiles]
    return f"{', '.join(amounts)} {measure.what}".strip()


def _tip_of(profile: Profile):
    """The function that returns the text over a box: the numbers of its row."""
    whole = profile.whole

    def tip(row: Row) -> str:
        name = f"{row.layer or row.name} {row.operation + '()' if row.operation else f'({row.module})'}"
        numbers = [
            f"{column.title}: {cell}"
            for key, column in COLUMNS.items()
            if key != "module" and (cell := column.cell(row, whole))
        ]
        apart = ["timed apart, with composed attention; not in any sum"] if row.apart else []
        doubt = [row.status] if is_doubtful(row) else []
        return "\n".join([name, *numbers, *apart, *doubt])

    return tip


def _kinds(profiles: Sequence[Profile]) -> Table:
    """A table of what each kind of operator takes, with the networks side by side."""
    measures = [measure for measure in MEASURES if measure.has_operations and scale_of(profiles, measure)]
    found = [[by_kind(one, measure.value) for measure in measures] for one in profiles]
    present = [name for name in SPELLED if any(name in amounts for of in found for amounts in of)]
    several = len(profiles) > 1
    header = [
        f"{one.network.name} {measure.header}" if several else unit
        for measure in measures
        for one in profiles
        for unit in (measure.header, "%")[: 1 if several else 2]
    ]
    body = []
    for name in present:
        line = []
        for number, measure in enumerate(measures):
            for one, of in zip(profiles, found, strict=True):
                amount, whole = of[number].get(name, 0), measure.value(one.whole) or 1
                cells = [digits(amount / measure.per_unit), f"{100 * amount / whole:.1f}"] if amount else ["", ""]
                line += cells[: 1 if several else 2]
        body.append([SPELLED[name], *line])
    return Table("What each kind of operator takes", ["kind", *header], body, kind="plain")


def _changes(profiles: Sequence[Profile]) -> list[Part]:
    """A table of the layers that two networks have in common, the largest difference first. It is left out if they have
    less than half of their layers in common."""
    if len(profiles) != 2:
        return []
    before, after = (
        {_place(row): row for row in one.rows if row.kind == "layer" and not row.apart} for one in profiles
    )
    common = [place for place in before if place in after]
    if 2 * len(common) < min(len(before), len(after)):
        return []
    differ = {place: (after[place].latency_s or 0) - (before[place].latency_s or 0) for place in common}
    ratios = {
        place: latency_ratio(after[place], before[place], same_rounds(before[place], after[place])) for place in common
    }
    least = LEAST_CHANGE * scale_of(profiles, TIME)
    clear = [
        place for place in common if abs(differ[place]) >= least and not ratios[place].low <= 1 <= ratios[place].high
    ]
    shown = sorted(clear, key=lambda place: -round(abs(differ[place]), 9))
    body = [
        [
            full_name(after[place]) if any(place) else "the whole network",
            *(COLUMNS["time"].cell(side[place], side[place]) for side in (before, after)),
            _signed(1e3 * differ[place]),
            f"{digits(ratios[place].median)} [{digits(ratios[place].low)}, {digits(ratios[place].high)}]",
        ]
        for place in shown
    ]
    left = len(common) - len(shown)
    note = (
        f"Not shown: {left} layers and operators that do not differ clearly, or differ by less than "
        f"{100 * LEAST_CHANGE:g} % of the time of the slower network."
    )
    names = [one.network.name for one in profiles]
    header = ["layer", *(f"{name} ms" for name in names), "difference ms", "ratio"]
    return [Table("Layers whose times differ", header, body, note=note if left else "", kind="plain")]


def _place(row: Row) -> tuple[str, str]:
    return row.layer or "", row.operation or ""


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{digits(abs(value))}"


def _tree(profile: Profile) -> Section:
    """The whole tree as a table, and the notes about it."""
    found = lines(profile, None, columns=_columns(profile))
    body = [
        [line[0].replace("  ", "\u2003"), *line[1:], _note(row)]
        for line, row in zip(found.body, found.rows, strict=True)
    ]
    said = [
        "± is half of the 95 % interval. % of roof is the least time that the machine allows, divided by the time.",
        f"Operators that take less than {100 * LEAST_SHARE:g} % of the time are not shown; rows.jsonl has them.",
    ]
    if any(row.apart for row in found.rows):
        said.append(
            "A line with * is a part of a fused operator. It was timed apart, in a second run with composed attention, "
            "and is not in any sum."
        )
    table = Table(
        f"Layers of {profile.network.name}",
        [*found.header, "note"],
        body,
        ["apart" if row.apart else "doubtful" if is_doubtful(row) else "" for row in found.rows],
        page.DOUBTFUL_ROWS if any(is_doubtful(row) and not row.apart for row in found.rows) else "",
        rows_as_csv(found.rows),
        [f"{'* ' if row.apart else ''}{full_name(row)}" for row in found.rows],
        "tree",
    )
    notes = page.items(profile.notes) if profile.notes else Html("")
    return Section(f"{profile.network.name}, layer by layer", [tag("p", " ".join(said)), notes, table])


def _columns(profile: Profile) -> list[str]:
    """The columns that have content."""
    rows = [row for row in profile.rows if row.kind == "layer"]
    whole = profile.whole
    return [
        name
        for name, column in COLUMNS.items()
        if name not in LEFT_OUT and any(column.cell(row, whole) not in ("", "0") for row in rows)
    ]


def _note(row: Row) -> str:
    return ", ".join([*(["timed apart"] if row.apart else []), *([row.status] if is_doubtful(row) else [])])


def _origin(profile: Profile) -> list[Section]:
    """The noise, the roofs and the provenance."""
    found = []
    if profile.calibration is not None:
        found.append(Section("Noise and roofs", provenance.roofs(profile.calibration)))
    if profile.provenance:
        found.append(Section("Where this was measured", [provenance.facts(profile.provenance, GENERATOR)]))
    return found
