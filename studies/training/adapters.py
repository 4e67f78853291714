"""Networks of other packages, named `package.module:function`. Any error in them is reported in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

EXPECTED = "expected package.module:function, which returns a torch.nn.Module"


def adapted(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The network that the function of this name returns for `options`. Raises ValueError if there is none."""
    module, _, function = name.partition(":")
    try:
        build = getattr(import_module(module), function)
    except (Exception, SystemExit) as error:  # a module of a user can raise anything
        raise ValueError(f"model {name!r} cannot be imported: {sentence(error)}; {EXPECTED}") from None
    if not callable(build):
        raise ValueError(f"model {name!r} is of type {type(build).__name__}; {EXPECTED}")
    try:
        model = build(**options)
    except (Exception, SystemExit) as error:  # a function of a user can raise anything
        raise ValueError(f"model {name!r} with options {dict(options)} fails: {sentence(error)}") from None
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r} returns an object of type {type(model).__name__}; {EXPECTED}")
    return model


def sentence(error: BaseException) -> str:
    """An exception on one line. The type is added where the message alone may be unclear."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | ImportError | AttributeError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
