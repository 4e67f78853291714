"""torchvision, an optional extra, imported even where its compiled part was built for another torch.

Its import then fails for want of two operators, `nms` and `qnms`, that our transforms do not need. Declared before the
import they let it pass; what is missing after that is `torchvision.ops.nms` and `torchvision.io.decode_*`.
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
"""The declarations last as long as what is in here."""


def load() -> ModuleType:
    """torchvision; ValueError if it is not installed, or its import fails for another reason than the one above."""
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
    """Whether the two operators are declared by us, and nothing computes them."""
    return bool(_declared)


def _declare() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left behind
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(operator + SCHEMA)
    _declared.append(library)
