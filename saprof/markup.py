"""HTML from Python: text is escaped unless it is `Html`."""

from __future__ import annotations

import html


class Html(str):
    """Text that already is HTML."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Html:
    """`<name attribute="…">children</name>`; `class_` is the attribute `class`, `data_key` is `data-key`."""
    spelled = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{spelled}>{join(*children)}</{name}>")


def join(*parts: str) -> Html:
    """The parts, concatenated."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))
