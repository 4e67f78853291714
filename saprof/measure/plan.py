"""The groups of cells of a request. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from saprof.measure.cells import Cell, Network
from saprof.measure.request import How, Request, What
from saprof.operators.workload import Workload

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
