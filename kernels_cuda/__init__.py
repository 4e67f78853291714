"""Handwritten CUDA kernels and their build: leaves that know arrays and integers, and nothing of saprof."""

import re
from functools import cache
from pathlib import Path

CSRC = Path(__file__).parent / "csrc"


@cache
def operators() -> frozenset[str]:
    """The operators that there are kernels of."""
    return frozenset(re.findall(r'{"(\w+)_backward", ', (CSRC / "operators.cu").read_text()))
