"""Text: tables for the terminal, as Markdown, or as CSV and JSON for programs; and the message about unknown names."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

FORMATS = ("table", "md", "csv", "json")
MANY = 16
"""More valid names than these are not listed in the sentence about an unknown name, if something else lists them."""


def align(header: Sequence[str], body: Sequence[Sequence[str]], form: str = "table") -> str:
    """Aligned columns for people: names to the left, figures to the right; `md` writes them as Markdown."""
    columns = list(zip(header, *body, strict=True))
    widths = [max(map(breadth, column)) for column in columns]
    right = [is_number(column[1:]) for column in columns]
    rule = ["-" * (width - 1) + (":" if r and form == "md" else "-") for width, r in zip(widths, right, strict=True)]
    lines = [[padded(*part) for part in zip(line, widths, right, strict=True)] for line in (header, rule, *body)]
    return "\n".join(f"| {' | '.join(line)} |" if form == "md" else "  ".join(line).rstrip() for line in lines)


def breadth(text: str) -> int:
    """The characters of a terminal that a text takes: two for a wide one such as 網, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(_breadth(character) for character in text)


def _breadth(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def padded(text: str, width: int, right: bool = False) -> str:
    """The text with spaces up to `width` characters, before it if `right`."""
    spaces = " " * (width - breadth(text))
    return spaces + text if right else text + spaces


def is_number(cells: Sequence[str]) -> bool:
    """Whether a column is aligned to the right: a cell begins with a digit, and none with a letter."""
    starts = {cell.lstrip("+-−<>±")[:1] for cell in cells}
    return any(start.isdigit() for start in starts) and not any(start.isalpha() for start in starts)


def plain(text: str) -> str:
    """The text in one line and without control characters, which are written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in text)


def records(rows: Sequence[Mapping[str, Any]], form: str) -> str:
    """Flat rows for programs, as `csv` with the columns of all rows, or as `json`."""
    if form == "json":
        return json.dumps(rows, ensure_ascii=False, indent=1)
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def shortened(values: Sequence[str]) -> str:
    """The distinct values; of more than four, the first two and the last."""
    distinct = list(dict.fromkeys(values))
    return ", ".join(distinct if len(distinct) <= 4 else [*distinct[:2], "…", distinct[-1]])


def unknown(what: str, got: str, valid: Sequence[str], listed_by: str = "") -> str:
    """The sentence about an unknown name: the names that are expected, or what lists them if there are many; and the
    nearest one."""
    *most, last = map(repr, valid)
    names = f"{', '.join(most) + ' or ' if most else ''}{last}"
    if listed_by and len(valid) > MANY:
        names = f"one of the {len(valid)} names in {listed_by}"
    return f"unknown {what} {got!r}; expected {names}{nearest(got, valid)}"


def nearest(got: str, valid: Sequence[str]) -> str:
    """The question whether the valid name that looks most like `got` was meant, or nothing if none does."""
    names = {str(name).lower(): name for name in valid}
    found = get_close_matches(str(got).lower(), names, n=1)
    return f"; did you mean {names[found[0]]!r}?" if found else ""
