"""The import of torchvision, an optional dependency, which also works if its compiled part was built for another torch.

In that case its import fails because two operators, `nms` and `qnms`, are missing, which our transforms do not need.
If they are declared before, it succeeds; only `torchvision.ops.nms` and `torchvision.io.decode_*` do not work then.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

import torch

INSTALL = "pip install -e '.[vision]'"
MISSING = "operator torchvision::nms does not exist"
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declared: list[torch.library.Library] = []
"""References that keep the declarations alive."""


def load() -> ModuleType:
    """The module torchvision. Raises ValueError if it is not installed, or if its import fails for another reason."""
    try:
        return import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name == "torchvision":
            raise ValueError(f"images of a folder need torchvision, which is not installed; {INSTALL}") from None
        raise ValueError(f"torchvision needs {error.name}, which is not installed; {INSTALL}") from None
    except (ImportError, RuntimeError) as error:
        if MISSING not in str(error):
            reason = " ".join(str(error).split())
            raise ValueError(f"torchvision is installed and cannot be imported ({reason}); {INSTALL}") from None
    _declare()
    return import_module("torchvision")


def declared() -> bool:
    """Whether the two operators are only declared here, without an implementation."""
    return bool(_declared)


def _declare() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # modules that the failed import left behind
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(operator + SCHEMA)
    _declared.append(library)
