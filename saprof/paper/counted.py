"""What is known of a sweep before anything is measured: its networks beside the printed figures, its operators with
their declared costs."""

from __future__ import annotations

from collections.abc import Iterable

from saprof.measure.cells import Cell, Network
from saprof.measure.network import figures
from saprof.models.named import REGISTERED
from saprof.operators.workload import Workload
from saprof.paper.evidence import printed_of
from saprof.paper.summary import beside_paper
from saprof.quantities import HARDWARE_FLOPS, LEAST_BYTES, MACS
from saprof.terminal import laid_out

NETWORKS = ("network", "footprint", "params M", "paper", "FLOPs G (paper)", "paper", "top-1 in paper")
OPERATORS = ("operator", "footprint", "map", "MMACs", "MFLOPs (hardware)", "least MB")


def counted(cells: Iterable[Cell], form: str) -> str:
    """The tables of the registered networks and of the operators of some cells, each once; nothing without any. `form`
    is `md`, or `table` for the terminal."""
    subjects = list(dict.fromkeys(cell.subject for cell in cells))
    networks = [_network(one) for one in subjects if isinstance(one, Network) and one.about.kind == REGISTERED]
    operators = [_operator(one) for one in subjects if isinstance(one, Workload)]
    parts = [
        ("Networks, counted, beside the tables of SAN and SASA (accuracy as printed)", NETWORKS, networks),
        ("Operators, as declared", OPERATORS, operators),
    ]
    return "".join(f"{laid_out(header, body, form, title=title)}\n\n" for title, header, body in parts if body)


def _network(subject: Network) -> list[str]:
    footprint = str(subject.footprint or "default")
    about = next(iter(printed_of(subject.name, footprint, subject.map)), None)
    known = figures(subject)
    return [subject.name, footprint, *beside_paper(known["params"], known["flops_paper"], about)]


def _operator(workload: Workload) -> list[str]:
    costs = Cell(workload).costs
    numbers = [quantity.text(costs[quantity.column]) for quantity in (MACS, HARDWARE_FLOPS, LEAST_BYTES)]
    return [workload.operator.name, str(workload.footprint), f"{workload.n}×{workload.h}×{workload.w}", *numbers]
