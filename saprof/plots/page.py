"""A page in one file: sections, figures and tables, with contents, anchors and one small script.

The page can be read without scripts. `page.js` makes its tables sort and filter.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saprof import text
from saprof.markup import Html, join, tag

TOP = "top"
"""The anchor of the beginning of the page."""
LONG = 20
"""A table with more lines than these can be filtered."""
FOLDED = 6
"""A list of more texts than these is folded."""
DOUBTFUL_ROWS = "○ and grey: the row is unstable or contended. Measure it again before you draw a conclusion from it."
"""What the mark of a doubtful line of a table means."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{}'"
"""What a browser may load: nothing that is not on the page, and no script but the page's own."""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading; it may contain other sections."""

    title: str
    parts: Sequence[Part]
    anchor: str = ""
    """Its address on the page, if it is not to follow from the title."""


@dataclass(frozen=True)
class Figure:
    """A figure, which the page numbers."""

    title: str
    svg: bytes
    alt: str
    caption: str
    notes: Sequence[str] = ()
    """What the figure says in small print, in full."""


@dataclass(frozen=True)
class Table:
    """A table with names to the left and figures to the right."""

    title: str
    header: Sequence[str]
    body: Sequence[Sequence[str]]
    looks: Sequence[str] = ()
    """The class of each line, or nothing."""
    note: str = ""
    """One sentence below the table, such as what a mark means."""
    csv: str = ""
    """What the reader can download; by default the cells as they are shown."""
    full: Sequence[str] = ()
    """The first cell of each line as it reads when the table is sorted, if its text depends on the lines above it."""
    kind: str = ""
    """The class of the table, or nothing."""


Part = Section | Figure | Table | str


@dataclass
class _Writer:
    """Turns parts into HTML; it numbers the figures and keeps the anchors that are taken, and the contents."""

    figures: int = 0
    taken: set[str] = field(default_factory=lambda: {TOP})
    contents: list[tuple[int, str, str]] = field(default_factory=list)
    """Level, anchor and text of each entry."""

    def write(self, part: Part, level: int) -> Html:
        match part:
            case Section():
                return self._section(part, level)
            case Figure():
                return self._figure(part, level)
            case Table():
                return self._table(part)
        return join(part)

    def _section(self, part: Section, level: int) -> Html:
        anchor = self._anchor(part.anchor or part.title)
        self.contents.append((level, anchor, part.title))
        link = tag("a", "#", href=f"#{anchor}", class_="anchor", aria_label=f"Link to {part.title}")
        inside = [self.write(one, level + 1) for one in part.parts]
        up = tag("p", tag("a", "Back to top", href=f"#{TOP}"), class_="up") if level == 2 else ""
        return tag("section", tag(f"h{min(level, 6)}", part.title, " ", link), *inside, up, id=anchor)

    def _figure(self, part: Figure, level: int) -> Html:
        self.figures += 1
        anchor = self._anchor(f"figure-{self.figures}")
        self.contents.append((level, anchor, part.title))
        data = base64.b64encode(part.svg).decode()
        image = Html(f'<img alt="{html.escape(part.alt)}" src="data:image/svg+xml;base64,{data}">')
        number = tag("a", tag("b", f"Figure {self.figures}."), href=f"#{anchor}")
        caption = tag("figcaption", tag("p", number, " ", part.caption), listed(part.notes, "What the figure notes"))
        return tag("figure", image, caption, id=anchor)

    def _table(self, part: Table) -> Html:
        anchor = self._anchor(f"table of {part.title}")
        attributes = {"data_filter": "true"} if len(part.body) > LONG else {}
        scroll = tag("div", table(part), class_="table", role="region", tabindex="0", aria_label=part.title)
        size = tag("span", text.counted(len(part.body), "row"), class_="size", aria_live="polite")
        tools = tag(
            "div", size, download(f"{slug(part.title.partition(',')[0])}.csv", part.csv or as_csv(part)), class_="tools"
        )
        note = tag("p", part.note, class_="note") if part.note else Html("")
        return tag("div", tools, scroll, note, class_=f"data {part.kind}".strip(), id=anchor, **attributes)

    def _anchor(self, words: str) -> str:
        wanted = anchor = slug(words)
        number = 1
        while anchor in self.taken:
            number += 1
            anchor = f"{wanted}-{number}"
        self.taken.add(anchor)
        return anchor


def document(title: str, generator: str, css: str, header: Html, parts: Sequence[Part], script: str = "") -> str:
    """The whole page; its head names the generator. `script` is added to the script of every page."""
    writer = _Writer()
    body = [writer.write(part, 2) for part in parts]
    script = beside("page.js") + script
    allowed = f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
    head = join(
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta name="generator" content="{html.escape(generator)}">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(allowed)}">'),
        tag("title", title),
        tag("style", Html(beside("page.css") + css)),
    )
    whole = tag("body", header, _contents(writer.contents), tag("main", *body), Html(f"<script>{script}</script>"))
    return f'<!DOCTYPE html>\n<html lang="en" id="{TOP}">\n{tag("head", head)}\n{whole}\n</html>\n'


def _contents(entries: Sequence[tuple[int, str, str]]) -> Html:
    if len(entries) < 2:
        return Html("")
    links = [tag("li", tag("a", words, href=f"#{anchor}"), class_=f"level-{level}") for level, anchor, words in entries]
    return tag("nav", tag("p", "Contents"), tag("ul", *links), aria_label="Contents")


def beside(name: str) -> str:
    """The text of a file of this package."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def slug(words: str) -> str:
    """A short name for an address or a file: `table-of-networks`."""
    plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-") or "part"


def table(part: Table) -> Html:
    """The table alone."""
    columns = zip(*part.body, strict=True) if part.body else [()] * len(part.header)
    kinds = [{"class_": "number"} if _is_numeric(column) else {} for column in columns]
    head = tag("tr", *(tag("th", cell, scope="col", **kind) for cell, kind in zip(part.header, kinds, strict=True)))
    lines = []
    for number, line in enumerate(part.body):
        cells = [tag("td", cell, **kind) for cell, kind in zip(line, kinds, strict=True)]
        if part.full:
            cells[0] = tag("td", line[0], data_full=part.full[number], **kinds[0])
        lines.append(tag("tr", *cells, **_class(part.looks[number] if part.looks else "")))
    return tag("table", tag("thead", head), tag("tbody", *lines))


def _is_numeric(column: Sequence[str]) -> bool:
    return any(cell.lstrip("−+≈(")[:1].isdigit() for cell in column)


def _class(look: str) -> dict[str, str]:
    return {"class_": look} if look else {}


def as_csv(part: Table) -> str:
    """The cells as csv; columns of the same name are numbered."""
    seen: dict[str, int] = {}
    names = []
    for name in part.header:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    first = part.full or [line[0] for line in part.body]
    lines = [[name, *line[1:]] for name, line in zip(first, part.body, strict=True)]
    return text.records([dict(zip(names, line, strict=True)) for line in lines], "csv")


def download(name: str, csv: str) -> Html:
    """A link that saves a table as csv. The page holds the file, so that it needs no script."""
    data = base64.b64encode(f"{csv}\n".encode()).decode()
    return tag("a", "csv", href=f"data:text/csv;charset=utf-8;base64,{data}", download=name, class_="csv")


def facts(pairs: Sequence[tuple[str, str]]) -> Html:
    """A list of names with their values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def items(texts: Sequence[str]) -> Html:
    """A list."""
    return tag("ul", *(tag("li", one) for one in texts))


def listed(texts: Sequence[str], summary: str) -> Html:
    """A list of all texts; a long one is folded below its summary and its length."""
    if len(texts) <= FOLDED:
        return items(texts) if texts else Html("")
    return folded(f"{summary} ({len(texts)})", items(texts))


def folded(summary: str, *parts: str) -> Html:
    """Parts that are shown when the reader opens the summary."""
    return tag("details", tag("summary", summary), *parts)


def warning(doubts: Sequence[str]) -> Html:
    """Reasons why results may be wrong; nothing if there are none."""
    if not doubts:
        return Html("")
    return tag("div", tag("p", "Treat with care"), items(doubts), class_="doubt", role="note")
