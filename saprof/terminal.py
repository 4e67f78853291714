"""Tables that fit the terminal. What does not fit is wrapped, or is left out with a line that says so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from saprof.text import align, breadth, is_number, padded, plain

NARROWEST = 40
"""The text is never narrower than this, even if the terminal is."""
GAP = 2
"""Spaces between columns."""
INDENT = 4
"""Spaces before a note under its line."""
LEAST = 10
"""Names are not wrapped into fewer characters than these; numbers are never wrapped."""
SEAMS = " -_./,:;|"
"""A long word is broken after one of these, if there is one."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    cells: Sequence[str]
    rank: int = 0
    """0 is always shown, and so is the first column. Of the others, those with the smallest ranks are shown as far as
    there is room."""
    common: str = ""
    """If all lines have one value, the caption has it, in these words, such as `{}` or `map {}`. If empty, the column
    stays."""


@dataclass(frozen=True)
class Table:
    """Columns of equally many cells, and what is written around them."""

    columns: Sequence[Column]
    title: str = ""
    notes: Sequence[str] = ()
    """A note on each line, or nothing."""
    rest: str = "--format csv has all"
    """Where the columns are that do not fit."""
    explained: str = ""
    """A line below the title, such as what ± means. It is left out if no cell has a ±."""


def width() -> int:
    """The characters in a line of the terminal: COLUMNS if set, else those of the terminal, or 80 without one."""
    return max(NARROWEST, shutil.get_terminal_size((80, 24)).columns)


def fitted(table: Table, most: int | None = None) -> str:
    """The table with lines of at most `most` characters (default: the width of the terminal).

    Empty columns vanish. A column with one value for all lines goes to the caption, if it says in which words. If
    there is little room, headers are wrapped, then long names, and then columns are left out. Notes are wrapped under
    their line unless there is room for a column of them.
    """
    most = max(NARROWEST, most or width())
    columns, common = _varying([_plain(column) for column in table.columns])
    notes = [plain(note) for note in table.notes]
    caption = [*wrapped(plain(table.title), most), *wrapped(", ".join(common), most)]
    if any("±" in cell for column in columns for cell in column.cells):
        caption += wrapped(plain(table.explained), most)
    shown, widths = _fit(columns, most)
    noted = [*columns, Column("note", notes)]
    if any(notes) and _needed(naturals := _naturals(noted, most)) <= most:
        shown, widths, notes = noted, naturals, []
    left = [column.title for column in columns if column not in shown]
    lines = list(_lines(shown, widths, notes, most))
    below = wrapped(f"not shown: {', '.join(left)}; {table.rest}", most) if left else []
    return "\n\n".join("\n".join(part) for part in (caption, lines, below) if part)


def laid_out(
    header: Sequence[str], body: Sequence[Sequence[str]], form: str, most: int | None = None, title: str = ""
) -> str:
    """A table whose columns are all shown, below its title: fitted for the form `table`, or as Markdown."""
    if form == "md":
        return "\n\n".join(filter(None, [title, align(header, body, form)]))
    columns = [Column(name, [line[place] for line in body]) for place, name in enumerate(header)]
    return fitted(Table(columns, title), most)


def wrapped(text: str, most: int, indent: int = 0) -> list[str]:
    """The lines of a text, each of at most `most` characters with its indentation."""
    room = max(LEAST, most - indent)
    return [" " * indent + line for line in _broken(text, room) if line]


def paragraphs(text: str, most: int | None = None) -> str:
    """A text of several lines, each wrapped to the width of the terminal and indented as it begins."""
    most = max(NARROWEST, most or width())
    lines = []
    for line in text.split("\n"):
        indent = min(len(line) - len(line.lstrip(" ")), most // 2)
        lines += wrapped(plain(line).strip(), most, indent) or [""]
    return "\n".join(lines)


def page(markdown: str, first: Sequence[str] = (), most: int | None = None) -> str:
    """A page of Markdown for the terminal: its tables are fitted, and its paragraphs are wrapped.

    If not all columns of a table fit, those named in `first` are shown, then the others from the left. A column `note`
    has the notes.
    """
    parts = []
    for block in markdown.strip("\n").split("\n\n"):
        lines = block.split("\n")
        is_table = len(lines) > 2 and all(line.startswith("|") for line in lines)
        parts.append(_tabled(lines, first, most) if is_table else paragraphs(block.replace("**", ""), most))
    return "\n\n".join(parts)


def _tabled(lines: Sequence[str], first: Sequence[str], most: int | None) -> str:
    header, _, *body = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    columns = {title: [line[place] for line in body] for place, title in enumerate(header)}
    notes = columns.pop("note", ())
    ranks = {title: rank for rank, title in enumerate(dict.fromkeys([*first, *columns]), 1)}
    ranked = [Column(title, cells, ranks[title]) for title, cells in columns.items()]
    return fitted(Table(ranked, notes=notes, rest="the page has all"), most)


def _plain(column: Column) -> Column:
    return replace(column, title=plain(column.title), cells=[plain(cell) for cell in column.cells])


def _varying(columns: Sequence[Column]) -> tuple[list[Column], list[str]]:
    """The columns that are shown, and in words the values that the caption has instead. Empty columns are left out."""
    kept, common = [], []
    for column in columns:
        values = set(column.cells)
        if column.common and len(values) == 1 and values != {""}:
            common.append(column.common.format(*values))
        elif values - {""} or not column.cells:
            kept.append(column)
    return (kept, common) if kept else (list(columns[:1]), common)


def _fit(columns: Sequence[Column], most: int) -> tuple[list[Column], list[int]]:
    """The columns for which there is room, in their order, and their widths. The required ones may need more."""
    natural = dict(zip(map(id, columns), _naturals(columns, most), strict=True))
    least = {id(column): _least(column, natural[id(column)], most) for column in columns}
    kept = {id(column) for number, column in enumerate(columns) if not number or not column.rank}
    for column in sorted((c for c in columns if c.rank), key=lambda column: column.rank):
        if _needed([least[name] for name in {*kept, id(column)}]) <= most:
            kept.add(id(column))
    shown = [column for column in columns if id(column) in kept]
    widths = [least[id(column)] for column in shown]
    floors = [wide if is_number(c.cells) else min(wide, LEAST) for c, wide in zip(shown, widths, strict=True)]
    widths = _stretched(widths, [natural[id(column)] for column in shown], floors, most)
    return shown, _flattened(shown, widths, most)


def _needed(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _naturals(columns: Sequence[Column], most: int) -> list[int]:
    """The widths of the columns without wrapped cells. If there is no room for all, headers are wrapped."""
    cells = [max([1, *map(breadth, column.cells)]) for column in columns]
    whole = [max(wide, breadth(column.title)) for wide, column in zip(cells, columns, strict=True)]
    if _needed(whole) <= most:
        return whole
    return [max([wide, *map(breadth, c.title.split())]) for wide, c in zip(cells, columns, strict=True)]


def _least(column: Column, natural: int, most: int) -> int:
    """The width that a column must have before another one is added: long names may be wrapped, numbers may not."""
    return natural if is_number(column.cells) else min(natural, max(2 * most // 5, 1))


def _stretched(widths: list[int], natural: Sequence[int], floors: Sequence[int], most: int) -> list[int]:
    """The widths, with the room that is left, or as near to the floors as needed."""
    spare = most - _needed(widths)
    widths = list(widths)
    for index, wanted in enumerate(natural):
        more = max(0, min(spare, wanted - widths[index]))
        widths[index] += more
        spare -= more
    while spare < 0 and (above := [n for n, wide in enumerate(widths) if wide > floors[n]]):
        widths[max(above, key=widths.__getitem__)] -= 1
        spare += 1
    return widths


def _flattened(columns: Sequence[Column], widths: Sequence[int], most: int) -> list[int]:
    """The widths, with the room that is left for the tallest headers, so that they have fewer lines."""
    widths = list(widths)
    while True:
        tall = [len(_broken(column.title, wide)) for column, wide in zip(columns, widths, strict=True)]
        index = tall.index(max(tall))
        room = widths[index] + most - _needed(widths)
        wider = (w for w in range(widths[index] + 1, room + 1) if len(_broken(columns[index].title, w)) < tall[index])
        if tall[index] == 1 or (found := next(wider, None)) is None:
            return widths
        widths[index] = found


def _lines(columns: Sequence[Column], widths: Sequence[int], notes: Sequence[str], most: int) -> Iterator[str]:
    """Header, rule and lines, each line with its note below."""
    if _needed(widths) > most:
        yield from _listed(columns, notes, most)
        return
    right = [is_number(column.cells) for column in columns]
    titles = [_broken(column.title, wide) for column, wide in zip(columns, widths, strict=True)]
    tall = max(map(len, titles))
    yield from _side_by_side([[""] * (tall - len(title)) + title for title in titles], widths, right)
    yield (" " * GAP).join("-" * wide for wide in widths)
    for index in range(len(columns[0].cells)):
        cells = [_broken(column.cells[index], wide) for column, wide in zip(columns, widths, strict=True)]
        yield from _side_by_side(cells, widths, right)
        if notes:
            yield from wrapped(notes[index], most, INDENT)


def _side_by_side(cells: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    """One line of the table, whose cells may have several lines."""
    for row in range(max(map(len, cells))):
        parts = [cell[row] if row < len(cell) else "" for cell in cells]
        line = (" " * GAP).join(padded(*part) for part in zip(parts, widths, right, strict=True))
        yield line.rstrip()


def _listed(columns: Sequence[Column], notes: Sequence[str], most: int) -> Iterator[str]:
    """Every line as a list of its cells, if there are too many columns for any table."""
    for index in range(len(columns[0].cells)):
        cells = "; ".join(f"{column.title}: {column.cells[index]}" for column in columns if column.cells[index])
        yield from wrapped(cells, most)
        if notes:
            yield from wrapped(notes[index], most, INDENT)


def _broken(text: str, room: int) -> list[str]:
    """The text in lines of at most `room` characters, broken at spaces if possible, else after other seams. The spaces
    at its beginning, which show a level, are kept."""
    if breadth(text) <= room:
        return [text]
    start = text[: len(text) - len(text.lstrip(" "))][: room // 2]
    lines, line = [], start
    for word in text.split():
        joined = f"{line} {word}" if line.strip() else f"{line}{word}"
        while breadth(joined) > room:
            if line.strip() and breadth(start) + breadth(word) <= room:
                lines.append(line)
                joined = f"{start}{word}"
            else:
                cut = _cut(joined, room, len(line) if line.strip() else len(start))
                lines.append(joined[:cut].rstrip())
                joined = start + joined[cut:].lstrip()
            line = ""
        line = joined
    return [*lines, line] if line.strip() else lines or [""]


def _cut(text: str, room: int, after: int) -> int:
    """Where to break a text that is wider than `room`: after the last seam past `after`, or where the room ends."""
    end = len(text)
    while breadth(text[:end]) > room:
        end -= 1
    seams = [place + 1 for place in range(after, end) if text[place] in SEAMS]
    return seams[-1] if seams else max(end, 1)
