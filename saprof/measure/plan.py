"""The groups of cells of a request, their names, and the cells that cannot run here. Nothing here imports torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product

from saprof.measure.cells import Cell, Network
from saprof.measure.request import How, Request, What
from saprof.operators import DEVICES, no_kernels
from saprof.operators.workload import Workload
from saprof.quantities import who_ran
from saprof.text import counted

Group = list[Cell]
"""Cells that are measured in the same rounds. They differ only in what computes them."""


def plan(request: Request) -> list[Group]:
    """The groups, each of them once."""
    what, how = request.what, request.how
    groups = [
        tuple(_group(subject, mode, how))
        for batch, dtype, mode in product(what.batches, what.dtypes, how.modes)
        for subject in [*_networks(what, batch, dtype), *_workloads(what, batch, dtype)]
    ]
    return [list(group) for group in dict.fromkeys(groups)]  # `3,square:3` is one footprint


def why_not_here(cell: Cell) -> str | None:
    """The reason why a cell certainly cannot run, as far as it is known without torch: its backend has no kernels for
    its device. None for all other cells."""
    kind = cell.device.partition(":")[0]
    if cell.backend == "auto" or kind in DEVICES[cell.backend]:
        return None
    return f"{cell.backend}: {no_kernels(kind)}"


def left_out(groups: Iterable[Group]) -> str:
    """One line about the cells that cannot run here; nothing if there are none."""
    reasons = Counter(reason for group in groups for cell in group if (reason := why_not_here(cell)))
    listed = "; ".join(f"{count} with {reason}" if len(reasons) > 1 else reason for reason, count in reasons.items())
    return f"{counted(reasons.total(), 'cell')} cannot run here: {listed}" if reasons else ""


def runnable(groups: Iterable[Group]) -> list[Cell]:
    """The cells that may run here: those that are counted and timed."""
    return [cell for group in groups for cell in group if why_not_here(cell) is None]


def short_names(groups: Iterable[Group]) -> dict[Cell, str]:
    """The name of each cell, with its footprint and what else differs between the cells, without its backend."""
    cells = [cell for group in groups for cell in group]
    facts = {cell: _facts(cell) for cell in cells}
    values: dict[str, set[str]] = {}
    for of_cell in facts.values():
        for what, value in of_cell.items():
            values.setdefault(what, set()).add(value)
    needed = {what for what, found in values.items() if what in ("name", "footprint") or len(found - {""}) > 1}
    return {cell: " ".join(v for what, v in of.items() if v and what in needed) for cell, of in facts.items()}


def _facts(cell: Cell) -> dict[str, str]:
    what = cell.what
    side = re.fullmatch(r"square:(\d+)", what["footprint"])
    default = what["footprint"] == "default"
    return {
        "name": what["name"],
        "footprint": f"{side[1]}×{side[1]}" if side else "" if default else what["footprint"],
        f"map of {what['kind']}": f"{what['h']}×{what['w']}" if what["h"] else "",
        "channels": f"v{what['v']}" if "v" in what else "",
        "batch": f"n{what['n']}",
        "dtype": what["dtype"],
        "mode": what["mode"],
    }


def ways(cell: Cell) -> str:
    """What was requested to compute a cell: `numba fused`; nothing where there is no choice."""
    if isinstance(cell.subject, Network) and not cell.subject.about.has_choices:
        return "+compile" if cell.compiled else ""
    return who_ran(cell.backend, cell.attention, cell.compiled)


def _group(subject: Network | Workload, mode: str, how: How) -> Iterator[Cell]:
    """One cell per backend, attention and compiler, as far as the subject allows a choice."""
    network = isinstance(subject, Network)
    has_choice = not network or subject.about.has_choices
    backends = how.backends if has_choice else ("auto",)
    attentions = how.attentions if network and has_choice else ("auto",)
    for backend, attention, compiled in product(backends, attentions, how.compiled):
        yield Cell(subject, mode, how.device, backend, compiled, attention)


def _networks(what: What, batch: int, dtype: str) -> Iterator[Network]:
    for (about, footprint), side in product(what.networks, what.image_sides):
        own = about.sizes
        yield Network(about.name, footprint, batch if own is None else own.n or 1, side, dtype, about)


def _workloads(what: What, batch: int, dtype: str) -> Iterator[Workload]:
    for operator, (channels, side), footprint in product(what.operators, what.shapes, what.footprints):
        yield replace(Workload.stage(operator, footprint, channels, side, batch), dtype=dtype)
