"""Public names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def lazy(spec: ModuleSpec) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of the package with this `__spec__`.

    Its public names are those that it imports under `if TYPE_CHECKING:`, where type checkers and editors find them too.
    Its modules are attributes as well. Raises ImportError if the sources of the package are not installed.
    """
    get_source = getattr(spec.loader, "get_source", None)  # of a file, or of an archive
    source = get_source and get_source(spec.name)
    if source is None:
        raise ImportError(f"{spec.name} is installed without its sources; expected the .py files", name=spec.name)
    (block,) = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}

    def get(name: str) -> Any:
        if name in homes:
            return getattr(import_module(homes[name]), name)
        module = f"{spec.name}.{name}"
        if name.startswith("_") or find_spec(module) is None:
            raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")
        return import_module(module)

    return get, lambda: sorted({*homes, *vars(sys.modules[spec.name])}), sorted(homes)


def callable_as(module: str, name: str, home: str) -> None:
    """Make `module` callable: a call imports the module `home` and calls its function `name`.

    This is for a module that has the same name as a public function of its package, because Python binds the name to
    the module when something imports it.
    """

    class Callable_(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(import_module(home), name)(*args, **kwargs)

    sys.modules[module].__class__ = Callable_
