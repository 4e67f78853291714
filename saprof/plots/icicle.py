"""Icicles of a profile: each layer is a box below the module around it, and the width of the box is its share.

An icicle shows one measure, such as time or memory. Layers have the same order, names and colours in all icicles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from saprof.markup import Html, tag
from saprof.plots.layer_kinds import kind
from saprof.quantities import digits
from saprof.records.layers import Layer
from saprof.records.profiles import Profile
from saprof.records.rows import DOUBTFUL, Row

LEAST_SHARE = 0.0005
"""Boxes that are narrower than this share of the icicle are not drawn."""
THIN = 0.003
"""Boxes that are narrower than this share have no edge, which would cover them."""
ALMOST_ALL = 0.9
"""A title names a layer inside another if it has at least this share of it."""


@dataclass(frozen=True)
class Measure:
    """A measure: what the width of a box shows."""

    title: str
    verb: str
    """The verb between a layer and its share in a title: `takes`."""
    what: str
    """The words after the total in a title: `at the peak`; or the convention of the count."""
    unit: str
    per_unit: float
    of: Callable[[Row], float | None]
    has_operations: bool = True
    """Whether operators have a value of their own."""

    def value(self, row: Row) -> float:
        return self.of(row) or 0

    @property
    def header(self) -> str:
        """The header of a column: `MFLOPs (hardware)`."""
        return f"{self.unit} {self.what}".rstrip()

    def amount(self, value: float) -> str:
        """`119 ms`."""
        return f"{digits(value / self.per_unit)} {self.unit}"


def _operations(row: Row) -> float | None:
    if row.flops_hardware is None:
        return None
    return row.flops_hardware + (row.backward_flops_hardware or 0)


TIME = Measure("Time", "takes", "", "ms", 1e-3, lambda row: row.latency_s)
MEMORY = Measure("Memory", "holds", "at the peak", "MB", 1e6, lambda row: row.held_bytes)
SAVED = Measure("Memory for the backward pass", "saves", "in all", "MB", 1e6, lambda row: row.saved_bytes, False)
OPERATIONS = Measure("Operations", "does", "(hardware)", "MFLOPs", 1e6, _operations)
MEASURES = (TIME, MEMORY, SAVED, OPERATIONS)


@dataclass(frozen=True)
class Box:
    """A layer or operator in an icicle; `start` and `end` are shares of its width."""

    row: Row
    label: str
    level: int
    start: float
    end: float
    kind: str

    @property
    def key(self) -> str:
        """The identity of the layer or operator; it is the same in all icicles."""
        return f"{self.row.layer} {self.row.operation or ''}"


def boxes(profile: Profile, measure: Measure) -> list[Box]:
    """The boxes of an icicle, without those that are too narrow.

    In an icicle of time, the parts of a fused operator that were timed apart are below it. Together they are as wide as
    the operator; the width of each is in proportion to its time.
    """
    root = profile.root
    whole = measure.value(root.row)
    found = _boxes(root, _Shares(measure, whole), 0, 0.0) if whole else ()
    return [one for one in found if one.end - one.start >= LEAST_SHARE]


@dataclass(frozen=True)
class _Shares:
    """Returns the measure of a row as a share of the whole."""

    measure: Measure
    whole: float

    def __call__(self, row: Row) -> float:
        return self.measure.value(row) / self.whole


def _boxes(layer: Layer, shares: _Shares, level: int, start: float) -> Iterator[Box]:
    row = layer.row
    yield Box(row, label(row), level, start, start + shares(row), kind(layer))
    for inside in called(layer):
        yield from _boxes(inside, shares, level + 1, start)
        start += shares(inside.row)
    own = operators(layer) if shares.measure.has_operations else []
    fused = max((one for one in own if is_ours(one)), key=shares, default=None)
    for one in own:
        end = start + shares(one)
        yield Box(one, label(one), level + 1, start, end, kind(one))
        if one is fused and shares.measure is TIME:
            yield from _apart(layer, shares, level + 2, start, end)
        start = end


def _apart(layer: Layer, shares: _Shares, level: int, start: float, end: float) -> Iterator[Box]:
    """The parts that were timed apart, from `start` to `end` in proportion to their own times."""
    parts = [inside.row for inside in layer.layers if inside.row.apart] + [x for x in layer.operations if x.apart]
    whole, available = sum(map(shares, parts)), end - start
    for part in parts if whole else []:
        width = available * shares(part) / whole
        yield Box(part, label(part), level, start, start + width, kind(part))
        start += width


def called(layer: Layer) -> list[Layer]:
    """The modules that a module calls, without parts that were timed apart. Containers that are never called, such as a
    ModuleList, are left out; the modules inside take their place."""
    found: list[Layer] = []
    for inside in layer.layers:
        if not inside.row.apart:
            found += [inside] if inside.row.calls else called(inside)
    return found


def operators(layer: Layer) -> list[Row]:
    """The operators that are drawn below a module: none if it is nothing but one operator."""
    own = [row for row in layer.operations if not row.apart]
    for inside in layer.layers:
        if not inside.row.calls and not inside.row.apart:
            own += operators(inside)
    return [] if len(own) == 1 == len(layer.operations) and not layer.layers else own


def is_ours(row: Row) -> bool:
    return (row.operation or "").startswith("saprof::")


def label(row: Row) -> str:
    """`attention`, `blocks.0`, `pairwise_attention()`; the name of the network for the network."""
    if row.operation is not None:
        return f"{row.operation.removeprefix('saprof::')}()"
    parts = (row.layer or row.name).split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def finding(profile: Profile, measure: Measure) -> str:
    """The title of an icicle: `stages.2 takes 35 % of 119 ms`."""
    root = profile.root
    whole = measure.value(root.row)
    total = f"{measure.amount(whole)} {measure.what}".strip()
    around = _narrowed(root, measure)
    inside = [_narrowed(layer, measure).row for layer in called(around)]
    own = operators(around) if measure.has_operations else []
    largest = max([*inside, *own], key=measure.value, default=around.row)
    if largest is root.row or not whole:
        return total
    return f"{full_name(largest)} {measure.verb} {100 * measure.value(largest) / whole:.0f} % of {total}"


def full_name(row: Row) -> str:
    """`stages.2.blocks`, `stem matmul()`; the name of the network for the network."""
    if row.operation is None:
        return row.layer or row.name
    return f"{row.layer} {label(row)}".strip()


def _narrowed(layer: Layer, measure: Measure) -> Layer:
    """The innermost layer that has almost all of the measure of a layer."""
    inside = max(called(layer), key=lambda one: measure.value(one.row), default=None)
    if inside is None or measure.value(inside.row) < ALMOST_ALL * measure.value(layer.row):
        return layer
    return _narrowed(inside, measure)


def icicle(profile: Profile, measure: Measure, number: int, scale: float, tip: Callable[[Row], str]) -> Html:
    """An icicle as HTML. `scale` is the total, in the measure's SI unit, of an icicle as wide as the page. `number` is
    the position of the network on the page. `tip` returns the text that appears when the pointer is over a box."""
    found = boxes(profile, measure)
    levels = 1 + max(one.level for one in found)
    width = measure.value(profile.whole) / scale
    about = f"{profile.network.name}, {measure.title.lower()}"
    alt = f"Icicle of {about}: {finding(profile, measure)}; the table has all values."
    return tag(
        "div",
        *(_drawn(one, tip(one.row), measure is TIME and is_doubtful(one.row)) for one in found),
        class_="icicle",
        role="img",
        aria_label=alt,
        data_network=str(number),
        style=f"width: {100 * width:.2f}%; height: {levels * HEIGHT:.2f}rem",
    )


HEIGHT = 1.4
"""The height of a box, in rem."""


def _drawn(one: Box, tip: str, doubtful: bool) -> Html:
    thin = ["thin"] if one.end - one.start < THIN else []
    looks = [
        "box",
        one.kind,
        *thin,
        *(["apart"] if one.row.apart else []),
        *(["doubtful"] if doubtful else []),
    ]
    place = f"left: {100 * one.start:.3f}%; width: {100 * (one.end - one.start):.3f}%; top: {one.level * HEIGHT:.2f}rem"
    edges = {"data_start": f"{one.start:.5f}", "data_end": f"{one.end:.5f}"}
    return tag(
        "div",
        tag("span", one.label),
        class_=" ".join(looks),
        style=place,
        title=tip,
        data_key=one.key,
        **edges,
    )


def is_doubtful(row: Row) -> bool:
    return row.status in DOUBTFUL


def axis(measure: Measure, scale: float) -> Html:
    """The axis below icicles: round amounts from 0 to `scale`, which is in the measure's SI unit."""
    step = _step(scale / measure.per_unit)
    count = int(scale / measure.per_unit / step)
    places = [100 * tick * step * measure.per_unit / scale for tick in range(count + 1)]
    ticks = [
        tag(
            "span",
            f"{tick * step:g}{'' if tick < count else f' {measure.unit}'}",
            class_="end" if place > 93 else "",
            style=f"left: {place:.2f}%",
        )
        for tick, place in enumerate(places)
    ]
    return tag("div", *ticks, class_="axis", aria_hidden="true")


def _step(most: float) -> float:
    """A round number (1, 2 or 5 times a power of ten) that fits about five times into `most`."""
    power = 10.0 ** _power(most / 5)
    return next(power * part for part in (1, 2, 5, 10) if power * part * 7 >= most)


def _power(value: float) -> int:
    """The exponent of the largest power of ten that is not larger than `value`."""
    return int(f"{value:e}".partition("e")[2])


def scale_of(profiles: Sequence[Profile], measure: Measure) -> float:
    """The largest total among some profiles."""
    return max(measure.value(profile.whole) for profile in profiles)
