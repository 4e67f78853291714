"""Lists of footprints as a command line writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

from saprof import command
from saprof.operators.footprint import LARGEST, Footprint

MOST_TAPS = 2 * LARGEST**2
"""The largest number of taps of a list: those of two of the largest squares."""
_PAIR = r"-?\d+,-?\d+"


def read_footprints(written: str, dilation: str = "1", copies: int = 1) -> list[Footprint]:
    """Read a comma list of sizes and ranges, each with every dilation, and of texts that `Footprint.parse` reads.

    ValueError if `copies` of each of them have more than MOST_TAPS taps in all.
    """
    found: list[Footprint] = []
    taps = 0
    for footprint in _read(written, dilation):
        taps += footprint.taps * copies
        if taps > MOST_TAPS:
            raise ValueError(
                f"footprint is {written!r}, with more than {MOST_TAPS:,} taps in all; expected fewer or smaller ones"
            )
        found.append(footprint)
    return found


def _read(written: str, dilation: str) -> Iterator[Footprint]:
    dilations = command.integers("dilation", dilation)
    for part in _parts(written):
        if re.fullmatch(r"\s*[0-9]+\s*(:\s*[0-9]+\s*)*", part):
            sizes = command.integers("footprint", part)
            yield from (Footprint.square(size, apart) for size, apart in product(sizes, dilations))
        elif dilations != [1]:
            raise ValueError(f"dilation is {dilation} with footprint {part}; expected a size such as 7")
        else:
            yield Footprint.parse(part)


def _parts(written: str) -> Iterator[str]:
    """The entries of the list. The commas within the offsets of one footprint do not separate entries."""
    return (part[1] for part in re.finditer(rf"((?:offsets:{_PAIR}(?:;{_PAIR})*|[^,])*),", f"{written},"))
