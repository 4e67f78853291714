"""The CPU kernels that cells need are compiled before anything is timed, in as many processes as there are cores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from saprof.backends.numba import why_no_threads
from saprof.backends.numba.ahead import DTYPES, Build, CannotBuild, Kernel, kernels_for, kernels_of_call, missing
from saprof.measure.cells import Cell, Network
from saprof.measure.prepared import prepared_for
from saprof.measure.progress import Progress
from saprof.models.build import create_model
from saprof.models.inputs import image_channels, images
from saprof.models.named import REGISTERED
from saprof.text import counted

SIDE = 32
"""The side of the images on which networks show which kernels they need."""


def compile_first(cells: Iterable[Cell], progress: Progress) -> None:
    """Compile the kernels that these cells need and that are not on disk yet. If that fails, the reason is printed, and
    each cell compiles its own."""
    progress.at("kernels", "looking for those on disk")
    wanted = missing(dict.fromkeys(kernel for cell in _each_kind(cells) for kernel in _kernels(cell)))
    if not wanted:
        return
    try:
        with Build(wanted) as build:
            progress.at("kernels", f"compiling {len(wanted)}, {build.folder}")
            for kernel in build.wait():
                left = len(wanted) - len(build.compiled)
                progress.at("kernels", f"compiled {kernel}, {left} left")
        progress.above(f"{counted(len(wanted), 'kernel')} compiled, {build.folder}")
    except CannotBuild as error:
        progress.above(str(error))


def _each_kind(cells: Iterable[Cell]) -> Iterator[Cell]:
    """One cell for each operator or network, dtype, mode and attention that runs on the kernels for CPUs."""
    seen = set()
    for cell in cells:
        subject = cell.subject
        if cell.device != "cpu" or cell.backend not in ("numba", "auto") or why_no_threads():
            continue
        if isinstance(subject, Network):
            known = subject.about.kind == REGISTERED and subject.attends
            kind = (subject.name, subject.dtype, cell.mode, cell.attention) if known else None
        else:
            kind = (subject.operator.name, subject.dtype, cell.mode)
        if kind is not None and kind not in seen:
            seen.add(kind)
            yield cell


def _kernels(cell: Cell) -> list[Kernel]:
    """The kernels of a cell. They do not depend on its footprint and sizes."""
    subject, dtype = cell.subject, cell.subject.dtype
    try:
        if not isinstance(subject, Network):
            computed_in = dtype if dtype in DTYPES else "float32"
            return kernels_for([subject.operator], [computed_in], "forward" if cell.mode == "forward" else "training")
        model = create_model(subject.name, attention=cell.attention, backend="numba")
        model = model.to(getattr(torch, dtype)).train(cell.mode != "forward")
        inputs = images(2, SIDE, image_channels(model)).to(getattr(torch, dtype))
        return kernels_of_call(prepared_for(model, inputs, cell.mode, "cpu").run)
    except Exception:  # the cell will fail for the same reason, which its row will state
        return []
