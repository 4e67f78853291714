"""Which module of a network is running."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class Running:
    """While this context is open, `path` is the path of the module of `root` that is running; "" is `root` itself.

    A module with several names is running under the name inside the module that called it, or else under its first
    name. A module that is not part of `root` counts as the module that called it.

    The hooks are global, because hooks of one module turn off the fast paths of some modules, torch's own among them.
    They only read, so the fast paths of saprof ignore them. They are removed when the context is left, and an exception
    inside a module does not confuse them.
    """

    def __init__(self, root: nn.Module) -> None:
        self._names: dict[nn.Module, list[str]] = {}
        for name, module in root.named_modules(remove_duplicate=False):
            self._names.setdefault(module, []).append(name)
        self._stack: list[str] = []
        self._hooks = ExitStack()

    @property
    def path(self) -> str:
        return self._stack[-1] if self._stack else ""

    def __enter__(self) -> Running:
        self._hooks.callback(register_module_forward_pre_hook(self._enter).remove)
        self._hooks.callback(register_module_forward_hook(self._leave, always_call=True).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        self._stack.clear()

    def entered(self, path: str) -> None:
        """Called when a module begins."""

    def left(self, path: str) -> None:
        """Called when a module ends, by an exception too."""

    def _enter(self, module: nn.Module, *_: Any) -> None:
        path = self._called(module)
        self._stack.append(path)
        self.entered(path)

    def _leave(self, *_: Any) -> None:
        self.left(self._stack.pop())

    def _called(self, module: nn.Module) -> str:
        names, caller = self._names.get(module), self.path
        if names is None:
            return caller
        inside = (name for name in names if name.startswith(f"{caller}.") or not caller)
        return next(inside, names[0])
