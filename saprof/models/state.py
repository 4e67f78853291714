"""What a module keeps between its calls."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import nn

CONTAINERS = (list, dict, set, OrderedDict, deque)


@contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
    """Afterwards all modules have the attributes that they had before, such as a cache that the first call fills.

    Lists, dicts, sets and deques among them have the entries that they had. The values of tensors are not restored.
    """
    before = [
        (vars(inside), dict(vars(inside)), [(x, copy(x)) for x in vars(inside).values() if type(x) in CONTAINERS])
        for inside in module.modules()
        if not isinstance(inside, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for attributes, old, containers in before:
            for name in attributes.keys() - old.keys():
                del attributes[name]
            attributes.update(old)
            for container, entries in containers:
                _refill(container, entries)


def _refill(container: Any, entries: Any) -> None:
    container.clear()
    if isinstance(container, dict | set):
        container.update(entries)
    else:
        container.extend(entries)
