"""Profiles: the rows of a network and of its layers, as a tree and as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from saprof import text
from saprof.markup import Html, tag
from saprof.quantities import digits
from saprof.records.calibration import Calibration
from saprof.records.columns import COLUMNS, ORDER
from saprof.records.layers import Layer, tree
from saprof.records.ratios import within_rounds
from saprof.records.rows import Row

if TYPE_CHECKING:
    from pandas import DataFrame

LEAST_SHARE = 0.002
"""Operators that take a smaller share of the time are left out of tables."""
WIDTH = 80
"""The characters of a line of `print(profile)`."""


@dataclass(frozen=True)
class Profile:
    """Where the time, the memory and the operations of a network go."""

    rows: tuple[Row, ...]
    """The row of the network, measured without a profiler; then the rows of its layers and operators."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def network(self) -> Row:
        """The row of the network, measured without a profiler in the same rounds."""
        return next(row for row in self.rows if row.kind == "model")

    @property
    def root(self) -> Layer:
        """The tree of the layers. It has the parts of fused attention that were timed apart; `Row.apart` marks them."""
        return tree(self.rows)

    @property
    def whole(self) -> Row:
        """The row of the network as a layer."""
        return next(row for row in self.rows if row.layer == "" and row.operation is None)

    @property
    def notes(self) -> list[str]:
        """What a reader of the tree must know: modules that had no calls, operators without a count."""
        return (self.whole.remarks or "").splitlines()

    @property
    def overhead(self) -> float:
        """How much longer the network takes under the profiler, as a share of its time without the profiler."""
        return (self.whole.ratio or 1.0) - 1

    def __getitem__(self, path: str) -> Layer:
        """The layer with this path. KeyError if no such module ran."""
        for _, node in self.root.walk():
            if isinstance(node, Layer) and node.path == path:
                return node
        raise KeyError(f"{path!r} is not a layer that ran; expected one such as {self._examples()}")

    def _examples(self) -> str:
        return text.shortened([node.path for _, node in self.root.walk(2) if isinstance(node, Layer) and node.path])

    def table(
        self, depth: int | None = 2, *, sort: str | None = None, columns: Sequence[str] | None = None,
        form: str = "table", width: int | None = None,
    ) -> str:  # fmt: skip
        """The tree as text, down to `depth` (None: all levels).

        `columns` are names of `saprof.records.columns.COLUMNS`; the default is those that fit into `width` characters.
        `sort` is the column by which the layers inside each module are sorted, the largest first. `form` is `table` or
        `md`; or `csv` or `json`, which have every field of the rows shown. ValueError for an unknown name.
        """
        if form not in text.FORMATS:
            raise ValueError(text.unknown("format", form, text.FORMATS))
        found = lines(self, depth, sort=sort, columns=columns, width=width)
        if form in ("csv", "json"):
            return text.records([asdict(row) for row in found.rows], form)
        return text.align(found.header, found.body, form)

    def frame(self) -> DataFrame:
        """One row per row of the profile, without samples; the names of the columns end in their SI units."""
        import pandas

        known = pandas.DataFrame([asdict(row) for row in self.rows]).drop(columns="samples_s")
        return known.dropna(axis="columns", how="all")

    def __repr__(self) -> str:
        row = self.network
        return f"Profile({row.name}: {_plain_ms(row)}, {len(self.rows) - 1} rows of layers)"

    def __str__(self) -> str:
        """The headline, and a table of two levels, at most 80 characters wide."""
        above = "\n".join(textwrap.fill(line, WIDTH) for line in headline(self))
        return f"{above}\n\n{self.table(width=WIDTH)}"

    def _repr_html_(self) -> str:
        """The headline, and a table of two levels with bars for shares, for a notebook."""
        return "".join([*(tag("p", line) for line in headline(self)), _barred(lines(self, 2, columns=_for_html(self)))])


def profiles(
    rows: Iterable[Row], provenance: Mapping[str, Any] | None = None, calibration: Calibration | None = None
) -> list[Profile]:
    """The profiles among the rows of a run. Each begins with the row of its network, and the rows of its layers follow.

    Raises ValueError if a row of a layer has no row of its network before it.
    """
    found: list[list[Row]] = []
    for row in rows:
        if row.kind == "model":
            found.append([row])
        elif row.kind == "layer":
            if not found or found[-1][0].name != row.name:
                raise ValueError(f"a layer of {row.name} has no row of {row.name} before it; expected a whole profile")
            found[-1].append(row)
    return [Profile(tuple(some), provenance or {}, calibration) for some in found if len(some) > 1]


@dataclass(frozen=True)
class Lines:
    """The lines of a table."""

    header: list[str]
    body: list[list[str]]
    rows: list[Row]
    """The row of each line."""
    whole: Row
    """The row of the network as a layer."""
    columns: list[str]
    """The names of the columns after the first one, as `COLUMNS` has them."""


def common_columns(found: Sequence[Profile], depth: int | None, width: int) -> list[str]:
    """The most important columns that fit into `width` characters in the tables of all these profiles."""
    tables = [lines(one, depth) for one in found]
    cells: dict[str, list[str]] = {}
    for table in tables:
        for name, *column in zip(table.columns, *(line[1:] for line in table.body), strict=True):
            cells.setdefault(name, []).extend(column)
    names = [line[0] for table in tables for line in table.body]
    return _fitting(names, cells, [name for name in ORDER if name in cells], width)


def lines(
    profile: Profile,
    depth: int | None,
    *,
    sort: str | None = None,
    columns: Sequence[str] | None = None,
    width: int | None = None,
) -> Lines:
    """The tree as the lines of a table, with indented names, without the operators that take less than `LEAST_SHARE` of
    the time. `Profile.table` explains the arguments."""
    for name in [*(columns or ()), *([sort] if sort else [])]:
        if name not in COLUMNS:
            raise ValueError(text.unknown("column", name, tuple(COLUMNS)))
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 0):
        raise ValueError(f"depth is {depth!r}; expected 0, a positive integer, or None for all levels")
    root = profile.root
    if sort:
        _sort(root, COLUMNS[sort].key)
    shown = list(root.walk(depth, _least_s(root)))
    rows = [node.row if isinstance(node, Layer) else node for _, node in shown]
    names = [_name(level, row) for (level, _), row in zip(shown, rows, strict=True)]
    chosen = [name for name in columns or ORDER if columns or any(COLUMNS[name].cell(row, root.row) for row in rows)]
    cells = {name: [COLUMNS[name].cell(row, root.row) for row in rows] for name in chosen}
    if width is not None and columns is None:
        chosen = _fitting(names, cells, chosen, width)
    body = [[name, *(cells[column][index] for column in chosen)] for index, name in enumerate(names)]
    return Lines(["layer", *(COLUMNS[name].title for name in chosen)], body, rows, root.row, list(chosen))


def _sort(layer: Layer, key: Callable[[Row], Any]) -> None:
    layer.layers.sort(key=lambda inside: key(inside.row), reverse=True)
    layer.operations.sort(key=key, reverse=True)
    for inside in layer.layers:
        _sort(inside, key)


def _name(level: int, row: Row) -> str:
    path = row.layer or ""
    if row.operation is not None:
        name = f"{row.operation.removeprefix('saprof::')}()"
    else:
        name = (path if level < 2 else path.rpartition(".")[2]) or row.name
    return "  " * level + name + (" *" if row.apart else "")


def _fitting(names: Sequence[str], lines: dict[str, list[str]], chosen: Sequence[str], width: int) -> list[str]:
    """The most important columns that fit, in the order of the table."""
    left = width - max(map(len, names))
    kept = []
    for name in chosen:
        needed = 2 + max(len(COLUMNS[name].title), *map(len, lines[name]))
        if needed <= left:
            left -= needed
            kept.append(name)
    return [name for name in COLUMNS if name in kept] or list(chosen[:1])


def _plain_ms(row: Row) -> str:
    low, high = row.latency_low_s, row.latency_high_s
    interval = "" if low is None or high is None else f" [{digits(low * 1e3)}, {digits(high * 1e3)}]"
    return f"{digits((row.latency_s or 0) * 1e3)} ms{interval}"


def headline(profile: Profile) -> list[str]:
    """The text above the table: what was measured, the sum of the layers, and the overhead of the profiler."""
    row, root = profile.network, profile.whole
    doubt = "" if row.status == "ok" else f" ({row.status})"
    shape = f"{row.n}×{row.h}×{row.w}, " if row.h else f"batch {row.n}, "
    rate = f", {digits(row.images_per_s)} images/s" if row.images_per_s else ""
    lines = [f"{row.name}, {row.mode}, {shape}{row.dtype}, {row.ran_on} on {row.device}: {_plain_ms(row)}{rate}{doubt}"]
    low, high = (100 * ((x or 1.0) - 1) for x in (root.ratio_low, root.ratio_high))
    lines.append(
        f"the layers add up to {digits((root.latency_s or 0) * 1e3)} ms under the profiler, in the same rounds; its "
        f"overhead is {100 * profile.overhead:+.1f} % [{low:+.1f}, {high:+.1f}]"
    )
    return lines


def footnotes(profile: Profile, depth: int | None) -> list[str]:
    """The text below the table: what the marks mean, and what is not shown."""
    root = profile.root
    shown, every = (list(root.walk(depth, least)) for least in (_least_s(root), 0.0))
    notes = profile.notes
    if any((node.row if isinstance(node, Layer) else node).apart for _, node in shown):
        notes.insert(
            0, "* timed apart: a part of a fused operator, from a second run with composed attention; not in any sum"
        )
    if left := len(every) - len(shown):
        notes.append(f"not shown: {text.counted(left, 'operator')} with less than {LEAST_SHARE:.1%} of the time each")
    return notes


def versus(one: Profile, other: Profile) -> str:
    """Two networks that were measured in the same rounds, in one sentence."""
    a, b = one.network, other.network
    ratio = within_rounds(b.samples_s or [], a.samples_s or [])
    memory = f", with {digits((b.peak_bytes or 0) / a.peak_bytes)} times its peak memory" if a.peak_bytes else ""
    return (
        f"{b.name} takes {ratio.median:.2f} times [{ratio.low:.2f}, {ratio.high:.2f}] as long as {a.name} in the same "
        f"rounds{memory}"
    )


def _least_s(root: Layer) -> float:
    return LEAST_SHARE * (root.row.latency_s or 0)


BARRED = {COLUMNS[name].title: COLUMNS[name].key for name in ("share", "hardware", "held")}
"""The columns that have bars in a notebook, and the numbers that the bars show. A bar is a share of the network."""


def _for_html(profile: Profile) -> list[str]:
    """The columns in a notebook: the nine most important ones that have content."""
    whole, layers = profile.whole, [row for row in profile.rows if row.kind == "layer"]
    return [name for name in ORDER if any(COLUMNS[name].cell(row, whole) for row in layers)][:9]


def _barred(found: Lines) -> Html:
    """The lines as an HTML table that needs no style sheet."""
    head = tag("tr", *(tag("th", title, style="text-align: left") for title in found.header))
    body = [
        tag("tr", *(_cell(*cell, row, found.whole) for cell in zip(found.header, line, strict=True)))
        for line, row in zip(found.body, found.rows, strict=True)
    ]
    return tag("table", tag("thead", head), tag("tbody", *body))


def _cell(title: str, content: str, row: Row, whole: Row) -> Html:
    """A cell. The indentation of a name is kept; numbers are aligned to the right."""
    number = BARRED.get(title)
    of = number(whole) if number else 0
    share = 0 if not of or row.apart or not number else 100 * number(row) / of
    is_number = content[:1].isdigit() and title != "layer"
    style = f"white-space: pre; text-align: {'right' if is_number else 'left'}"
    if share:
        edge = f"{share:.1f}%"
        style += f"; background: linear-gradient(to right, rgba(213, 94, 0, .3) {edge}, transparent {edge})"
    return tag("td", content, style=style)
