"""Lists of footprints as a command line writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

from saprof import command
from saprof.operators.footprint import Footprint

_PAIR = r"-?\d+,-?\d+"


def read_footprints(written: str, dilation: str = "1") -> list[Footprint]:
    """Read a comma list of sizes and ranges, each with every dilation, and of texts that `Footprint.parse` reads."""
    dilations = command.integers("dilation", dilation)
    found: list[Footprint] = []
    for part in _parts(written):
        if all(bound.strip().isdigit() for bound in part.split(":")):
            sizes = command.integers("footprint", part)
            found += [Footprint.square(size, apart) for size, apart in product(sizes, dilations)]
        elif dilations != [1]:
            raise ValueError(f"dilation is {dilation} with footprint {part}; expected a size such as 7")
        else:
            found.append(Footprint.parse(part))
    return found


def _parts(written: str) -> Iterator[str]:
    """The entries of the list. The commas within the offsets of one footprint do not separate entries."""
    return (part[1] for part in re.finditer(rf"((?:offsets:{_PAIR}(?:;{_PAIR})*|[^,])*),", f"{written},"))
