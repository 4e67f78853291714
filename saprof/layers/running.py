"""Which module of a network is running."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_ABOUT_HOOKS = r"Using `torch.compile\(module\)` when there are global hooks"
"""The start of a warning of torch about compiled code that sees the hooks. Compiled code does not see the
hooks of this file."""


class Running:
    """While this context is open, `path` is the path of the module of `root` that is running; "" is `root` itself.

    A module with several names is running under the name inside the module that called it, or else under its first
    name. A module that is not part of `root` counts as the module that called it.

    The hooks are global, because a hook of one module turns off the fast paths of some modules, such as torch's own.
    The hooks change nothing, so the fast paths of saprof run with them. They are removed when the context ends, and an
    exception inside a module leaves `path` correct. With `skip_compiled`, the hooks are removed while a compiled module
    runs, because torch would compile it again with them. Then the modules inside it are not tracked.
    """

    def __init__(self, root: nn.Module, *, skip_compiled: bool = False) -> None:
        self._names: dict[nn.Module, list[str]] = {}
        for name, module in root.named_modules(remove_duplicate=False):
            self._names.setdefault(module, []).append(name)
        self._skip_compiled = skip_compiled
        self._stack: list[str] = []
        self._handles: list[Any] = []
        self._wrapped = ExitStack()

    @property
    def path(self) -> str:
        return self._stack[-1] if self._stack else ""

    def __enter__(self) -> Running:
        self._wrapped.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", _ABOUT_HOOKS)
        for module in self._names if self._skip_compiled else ():
            if attribute := compiled_by(module):
                compiled = getattr(module, attribute)
                self._wrapped.callback(setattr, module, attribute, compiled)
                setattr(module, attribute, self._apart(self._names[module][0], attribute, compiled))
        self._register()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()
        self._wrapped.close()
        self._stack.clear()

    def entered(self, path: str) -> None:
        """Called when a module begins."""

    def left(self, path: str) -> None:
        """Called when a module ends, by an exception too."""

    def _register(self) -> None:
        self._handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _apart(self, name: str, attribute: str, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled call that runs without the hooks. If it replaces the whole call of a module, and not only its
        forward, no hook sees the module, so this call tracks it."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._paused(name if attribute != "forward" else None):
                return compiled(*args, **kwargs)

        return call

    @contextmanager
    def _paused(self, path: str | None):
        if path is not None:
            self._begin(path)
        self._remove()
        try:
            yield
        finally:
            self._register()
            if path is not None:
                self._leave()

    def _enter(self, module: nn.Module, *_: Any) -> None:
        self._begin(self._called(module))

    def _begin(self, path: str) -> None:
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


def compiled_by(module: nn.Module) -> str | None:
    """The attribute of a compiled module that has its compiled call; None if it is not compiled.

    `torch.compile(module)` returns a module with a compiled `forward`; `module.compile()` compiles the whole call.
    """
    if module._compiled_call_impl is not None:
        return "_compiled_call_impl"
    return "forward" if hasattr(module, "_orig_mod") else None
