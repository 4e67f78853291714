"""Profiles: the rows of a network's layers as a tree, and the tree as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from saprof import text
from saprof.quantities import digits
from saprof.records.calibration import Calibration
from saprof.records.rows import Row

if TYPE_CHECKING:
    from pandas import DataFrame

LEAST_SHARE = 0.002
"""Operators that take a smaller share of the whole are left out of tables."""


@dataclass
class Layer:
    """A module of a profiled network."""

    row: Row
    layers: list[Layer] = field(default_factory=list)
    """The modules inside, in the order of their first call."""
    operations: list[Row] = field(default_factory=list)
    """The operators that the module itself calls."""

    @property
    def path(self) -> str:
        return self.row.layer or ""

    def walk(self, depth: int | None = None, least_s: float = 0.0, level: int = 0) -> Iterator[tuple[int, Layer | Row]]:
        """The layer, then the layers inside and the operators, each with its level, down to `depth`.

        Operators that take less than `least_s` are left out. Those of a module without modules inside are, too, unless
        `depth` is None or the module is compiled.
        """
        yield level, self
        if depth is not None and level >= depth:
            return
        for layer in self.layers:
            yield from layer.walk(depth, least_s, level + 1)
        for row in self.operations if self.layers or depth is None or self.row.compiled else []:
            if (row.latency_s or 0) >= least_s:
                yield level + 1, row


@dataclass(frozen=True)
class Profile:
    """Where the time, the memory and the operations of a network go."""

    rows: tuple[Row, ...]
    """The row of the network, measured without a profiler; then the rows of its layers."""
    notes: tuple[str, ...] = ()
    """What a reader of the tree must know: parts that did not run, operators without a count."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def network(self) -> Row:
        """The row of the network, measured without a profiler in the same rounds."""
        return next(row for row in self.rows if row.kind == "model")

    @property
    def root(self) -> Layer:
        """The tree. The modules that were timed apart are in it too; their rows say so."""
        return tree(self.rows)

    @property
    def overhead(self) -> float:
        """How much longer the profiled network takes than the network itself, as a share."""
        return (self.root.row.ratio or 1.0) - 1

    def __getitem__(self, path: str) -> Layer:
        """The layer with this path; KeyError if there is none."""
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
        """The tree as text. `columns` are names of `COLUMNS`, by default those that fit into `width` characters;
        `sort` is one of them, by which the layers of each module are sorted, the largest first."""
        return table(self, depth, sort, columns, form, width)

    def frame(self) -> DataFrame:
        """One row per layer and operator, with SI units in the names of the columns."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows]).dropna(axis="columns", how="all")

    def __repr__(self) -> str:
        row = self.network
        return f"Profile({row.name}: {_plain_ms(row)}, {len(self.rows) - 1} rows of layers)"

    def __str__(self) -> str:
        return self.table()


def profiles(rows: Iterable[Row]) -> list[Profile]:
    """The profiles among the rows of a run, one per network, mode and shape."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.kind in ("model", "layer"):
            of = (row.name, row.n, row.h, row.w, row.dtype, row.device, row.mode, row.footprint, row.compiled)
            found.setdefault(of, []).append(row)
    return [Profile(tuple(some)) for some in found.values() if any(row.kind == "layer" for row in some)]


def tree(rows: Iterable[Row]) -> Layer:
    """The tree of the layers of one network. ValueError if the rows have no row of the network as a layer."""
    layers: dict[str, Layer] = {}
    rows = [row for row in rows if row.kind == "layer"]
    for row in rows:
        if row.operation is None:
            layers.setdefault(row.layer or "", Layer(row))
    if "" not in layers:
        raise ValueError("the rows have no layer with the path ''; expected the rows of a whole profile")
    for path, layer in layers.items():
        if path:
            layers[_parent(path, layers)].layers.append(layer)
    for row in rows:
        if row.operation is not None:
            layers[row.layer or ""].operations.append(row)
    return layers[""]


def _parent(path: str, layers: dict[str, Layer]) -> str:
    """The nearest module around a module that has a row."""
    while path:
        path = path.rpartition(".")[0]
        if path in layers:
            return path
    return ""


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    title: str
    cell: Callable[[Row, Row], str]
    """The text for a row, and the row of the whole network as a layer."""
    key: Callable[[Row], Any]
    """By which rows are sorted."""


def _number(name: str, per_unit: float) -> Callable[[Row, Row], str]:
    def cell(row: Row, _: Row) -> str:
        value = getattr(row, name)
        return "" if value is None else digits(value / per_unit)

    return cell


def _interval(name: str) -> Callable[[Row, Row], str]:
    """A time in milliseconds with half of its 95 % interval."""
    start = name.removesuffix("_s")

    def cell(row: Row, _: Row) -> str:
        value, low, high = (getattr(row, f"{start}{part}_s") for part in ("", "_low", "_high"))
        if value is None:
            return ""
        around = "" if low is None or high is None else f" ±{_percent((high - low) / 2 / value if value else 0)}"
        return f"{digits(value * 1e3)}{around}"

    return cell


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _share(row: Row, whole: Row) -> str:
    return f"{100 * (row.latency_s or 0) / (whole.latency_s or 1):.1f}"


def _of_roof(row: Row, _: Row) -> str:
    return "" if not row.least_s or not row.latency_s else digits(100 * row.least_s / row.latency_s)


def _column(title: str, name: str, per_unit: float) -> Column:
    return Column(title, _number(name, per_unit), lambda row: getattr(row, name) or 0)


def _time(title: str, name: str) -> Column:
    return Column(title, _interval(name), lambda row: getattr(row, name) or 0)


COLUMNS = {
    "time": _time("ms", "latency_s"),
    "share": Column("%", _share, lambda row: row.latency_s or 0),
    "self": _time("self ms", "self_s"),
    "forward": _time("forward ms", "forward_s"),
    "backward": _time("backward ms", "backward_s"),
    "roof": Column("% of roof", _of_roof, lambda row: (row.least_s or 0) / (row.latency_s or 1)),
    "bound": Column("bound by", lambda row, _: row.bound_by or "", lambda row: row.bound_by or ""),
    "ran": Column("ran on", lambda row, _: _ran(row), lambda row: row.ran_on),
    "calls": Column("calls", lambda row, _: str(row.calls or ""), lambda row: row.calls or 0),
    "params": _column("params k", "params", 1e3),
    "macs": _column("MMACs", "macs", 1e6),
    "paper": _column("MFLOPs (paper)", "flops_paper", 1e6),
    "hardware": _column("MFLOPs (hardware)", "flops_hardware", 1e6),
    "bytes": _column("least MB", "compulsory_bytes", 1e6),
    "held": _column("MB at peak", "held_bytes", 1e6),
    "peak": _column("peak MB", "peak_bytes", 1e6),
    "saved": _column("saved MB", "saved_bytes", 1e6),
    "module": Column("module", lambda row, _: row.module or "", lambda row: row.module or ""),
}
"""The columns of the table, by the name that `--columns` takes."""
ORDER = (
    "time", "share", "hardware", "roof", "bound", "ran", "held", "params", "backward", "forward", "saved", "peak",
    "self", "macs", "paper", "bytes", "calls", "module",
)  # fmt: skip
"""The columns by importance: a narrow terminal shows the first ones."""


def _ran(row: Row) -> str:
    return "" if row.backend == "torch" and not row.compiled else row.ran_on


def table(
    profile: Profile, depth: int | None, sort: str | None, columns: Sequence[str] | None, form: str, width: int | None
) -> str:
    """The tree of a profile as text."""
    for name in [*(columns or ()), *([sort] if sort else [])]:
        if name not in COLUMNS:
            raise ValueError(text.unknown("column", name, tuple(COLUMNS)))
    root = profile.root
    if sort:
        _sort(root, COLUMNS[sort].key)
    shown = list(root.walk(depth, LEAST_SHARE * (root.row.latency_s or 0)))
    rows = [node.row if isinstance(node, Layer) else node for _, node in shown]
    names = [_name(level, row) for (level, _), row in zip(shown, rows, strict=True)]
    chosen = [name for name in columns or ORDER if columns or any(COLUMNS[name].cell(row, root.row) for row in rows)]
    lines = {name: [COLUMNS[name].cell(row, root.row) for row in rows] for name in chosen}
    if width is not None and columns is None:
        chosen = _fitting(names, lines, chosen, width)
    body = [[name, *(lines[column][index] for column in chosen)] for index, name in enumerate(names)]
    return text.align(["layer", *(COLUMNS[name].title for name in chosen)], body, form)


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
    """What to say above the table: what was measured, and how well the tree agrees with it."""
    row, root = profile.network, profile.root.row
    doubt = "" if row.status == "ok" else f" ({row.status})"
    shape = f"{row.n}×{row.h}×{row.w}, " if row.h else f"batch {row.n}, "
    lines = [f"{row.name}, {row.mode}, {shape}{row.dtype}, {row.ran_on} on {row.device}: {_plain_ms(row)}{doubt}"]
    low, high = (100 * ((x or 1.0) - 1) for x in (root.ratio_low, root.ratio_high))
    lines.append(
        f"the layers add up to {digits((root.latency_s or 0) * 1e3)} ms, under a profiler in the same rounds; its "
        f"overhead is {100 * profile.overhead:+.1f} % [{low:+.1f}, {high:+.1f}]"
    )
    return lines
