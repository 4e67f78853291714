"""Which names the source of a module defines, read without an import of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

UNREADABLE = ("import *", "__getattr__", "globals(", "vars(", "__dict__", "setattr(", "exec(", "eval(")
"""Texts in a source that may define names without naming them."""


def names_in(module: str) -> list[str] | None:
    """The names that the file of a module defines at its top level; None if they cannot be read from its source.

    The packages that the module is in are imported, and the module itself is not.
    """
    try:
        spec = find_spec(module)
        source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        tree = ast.parse(source)
    except (ImportError, AttributeError, ValueError, SyntaxError, OSError):
        return None  # the import itself gives the reason
    if not source or any(word in source for word in UNREADABLE):
        return None
    return list(dict.fromkeys(_bound(tree.body)))


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.alias):
                yield node.asname or node.name.partition(".")[0]
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name  # inside of `if` or `try`
