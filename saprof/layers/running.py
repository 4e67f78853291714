"""Which module of a network is running."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_ABOUT_HOOKS = r"Using `torch.compile\(module\)` when there are global hooks"
"""The start of a warning of torch about compiled code that sees the hooks. Compiled code does not see the
hooks of this file."""

UNSEEN = "the operators of another thread"
"""What no counter sees of a module that runs in a thread of its own."""


class Running:
    """While this context is open, `path` is the path of the module of `root` that is running; "" is `root` itself.

    A module with several names is running under the name inside the module that called it, or else under its first
    name. A module that is not part of `root` counts as the module that called it. Each thread has its own path; it
    begins with that of the thread that opened the context.

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
        self._stacks: defaultdict[int, list[tuple[str, object]]] = defaultdict(list)
        self._thread = get_ident()
        self.unseen: defaultdict[str, int] = defaultdict(int)
        """How often each module ran in another thread, where no mode of the dispatcher, so no counter, sees it."""
        self._handles: list[Any] = []
        self._wrapped = ExitStack()

    @property
    def path(self) -> str:
        for thread in (get_ident(), self._thread):
            if stack := self._stacks.get(thread):
                return stack[-1][0]
        return ""

    def __enter__(self) -> Running:
        _open.append(self)
        self._thread = get_ident()
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
        _open.remove(self)
        self._remove()
        self._wrapped.close()
        self._stacks.clear()

    def entered(self, path: str, known: bool) -> object:
        """Called when a module begins; what it returns is given to `left`. `known` is whether the module is part of
        `root`."""

    def left(self, opened: Any) -> None:
        """Called when a module ends, by an exception too."""

    def _register(self) -> None:
        self._handles = [
            register_module_forward_pre_hook(self.begin),
            register_module_forward_hook(self.end, always_call=True),
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
                self.end()

    def begin(self, module: nn.Module, *_: Any) -> None:
        """A call of the module begins."""
        self._begin(self._called(module), module in self._names)

    def _begin(self, path: str, known: bool = True) -> None:
        if get_ident() != self._thread and not torch._C._len_torch_dispatch_stack():
            self.unseen[path] += 1
        self._stacks[get_ident()].append((path, self.entered(path, known)))

    def end(self, *_: Any) -> None:
        """The call that began last ends."""
        if stack := self._stacks[get_ident()]:  # another thread may have begun before the context was opened
            self.left(stack.pop()[1])

    def _called(self, module: nn.Module) -> str:
        names, caller = self._names.get(module), self.path
        if names is None:
            return caller
        inside = (name for name in names if name.startswith(f"{caller}.") or not caller)
        return next(inside, names[0])


_open: list[Running] = []
"""The contexts that are open."""


@contextmanager
def inside(module: nn.Module) -> Iterator[None]:
    """What runs in this context counts as a call of the module. A fast path computes the module without calling it."""
    entered = [*_open]
    for running in entered:
        running.begin(module)
    try:
        yield
    finally:
        for running in reversed(entered):
            running.end()


def around(path: str) -> Iterator[str]:
    """The root, the modules around a module, and the module itself, from the outside to the inside."""
    yield ""
    parts = path.split(".") if path else []
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])


def compiled_by(module: nn.Module) -> str | None:
    """The attribute of a compiled module that has its compiled call; None if it is not compiled.

    `torch.compile(module)` returns a module with a compiled `forward`; `module.compile()` compiles the whole call.
    """
    if module._compiled_call_impl is not None:
        return "_compiled_call_impl"
    return "forward" if hasattr(module, "_orig_mod") else None
