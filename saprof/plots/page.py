"""Small functions for a page in one file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from saprof.markup import Html, join, tag


def document(title: str, generator: str, css: str, *body: str) -> str:
    """The whole page; its head names the generator."""
    head = join(
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta name="generator" content="{html.escape(generator)}">'),
        tag("title", title),
        tag("style", Html(css)),
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n{tag("head", head)}\n{tag("body", *body)}\n</html>\n'


def section(title: str, *parts: str, anchor: str = "", level: int = 2) -> Html:
    """A section of the page with a heading."""
    attributes = {"id": anchor} if anchor else {}
    return tag("section", tag(f"h{level}", title), *parts, **attributes)


def table(header: Sequence[str], body: Sequence[Sequence[str]], label: str, looks: Sequence[str] = ()) -> Html:
    """A table with names to the left and figures to the right. It scrolls if it is long or wider than the page. `looks`
    are the classes of its lines."""
    columns = zip(*body, strict=True) if body else [()] * len(header)
    numeric = [any(cell.lstrip("−+")[:1].isdigit() for cell in column) for column in columns]
    kinds = [{"class_": "number"} if is_number else {} for is_number in numeric]
    head = tag("tr", *(tag("th", cell, scope="col", **kind) for cell, kind in zip(header, kinds, strict=True)))
    lines = [
        tag("tr", *(tag("td", cell, **kind) for cell, kind in zip(line, kinds, strict=True)), **_class(look))
        for line, look in zip(body, looks or [""] * len(body), strict=True)
    ]
    whole = tag("table", tag("thead", head), tag("tbody", *lines))
    return tag("div", whole, class_="table", role="region", tabindex="0", aria_label=label)


def _class(look: str) -> dict[str, str]:
    return {"class_": look} if look else {}


def facts(pairs: Sequence[tuple[str, str]]) -> Html:
    """A list of names with their values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def items(texts: Sequence[str]) -> Html:
    """A list."""
    return tag("ul", *(tag("li", text) for text in texts))


def picture(svg: bytes, alt: str, caption: str, number: int) -> Html:
    """An SVG within the page, with its number and caption below it."""
    data = base64.b64encode(svg).decode()
    image = Html(f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">')
    return tag("figure", image, tag("figcaption", tag("b", f"Figure {number}."), " ", caption))
