"""Kernels are compiled before anything is timed. Nothing is compiled here: the processes are replaced."""

import io

import pytest

from saprof.backends.numba import why_no_threads
from saprof.backends.numba.ahead import CannotBuild, Kernel
from saprof.measure import compiled_first
from saprof.measure.cells import Cell, Network
from saprof.measure.compiled_first import compile_first
from saprof.measure.progress import Progress
from saprof.operators import OPERATORS
from saprof.operators.footprint import Footprint
from saprof.operators.workload import Workload

pytestmark = pytest.mark.skipif(bool(why_no_threads()), reason="needs Numba")


class Built:
    """Stands for the processes; `kernels` lists what they were given."""

    kernels: tuple[Kernel, ...] = ()
    folder = "once; kept in /a/folder"
    error = ""

    def __init__(self, kernels):
        Built.kernels, self.compiled = tuple(kernels), []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def wait(self):
        for kernel in Built.kernels:
            if Built.error:
                raise CannotBuild(Built.error)
            self.compiled.append(kernel)
            yield kernel


@pytest.fixture
def first(monkeypatch):
    """Compile for some cells, and return the names of the kernels and what was printed."""
    Built.kernels, Built.error = (), ""
    monkeypatch.setattr(compiled_first, "missing", lambda kernels: list(kernels))
    monkeypatch.setattr(compiled_first, "Build", Built)

    def compile_for(*cells):
        stream = io.StringIO()
        with Progress(len(cells), stream).open() as progress:
            compile_first(cells, progress)
        return [kernel.name for kernel in Built.kernels], stream.getvalue()

    return compile_for


def operator(name, footprint=3, **options):
    return Cell(Workload(OPERATORS[name], Footprint.square(footprint)), **{"backend": "numba"} | options)


def test_each_kernel_once_for_all_footprints(first):
    names, printed = first(operator("aggregation"), operator("aggregation", 5), operator("pairwise_subtraction"))
    assert names == ["aggregation", "pairwise_subtraction"]
    assert printed.endswith("2 kernels compiled, once; kept in /a/folder\n")


def test_training_needs_more_kernels(first):
    names, _ = first(operator("aggregation", mode="train_step"))
    assert names == ["aggregation", "aggregation_backward"]


def test_nothing_for_cells_without_kernels(first):
    names, printed = first(operator("aggregation", backend="unfold"), Cell(Network("resnet_mini")))
    assert (names, "compiled" in printed) == ([], False)


def test_networks_show_what_they_need(first):
    network = Network("san_mini_pairwise", Footprint.square(3))
    assert first(Cell(network, backend="numba"))[0] == ["pairwise_attention"]
    assert "pairwise_attention" not in first(Cell(network, backend="numba", attention="composed"))[0]


def test_a_failure_is_printed_and_the_cells_compile_for_themselves(first):
    Built.error = "the disk is full"
    _, printed = first(operator("aggregation"))
    assert "the disk is full\n" in printed
