"""The size of a network beside that of the network it is compared with: in the paper, and here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from saprof.paper import printed
from saprof.paper.recount import compute
from studies.reproduction.grid import ROBUSTNESS, Cell
from studies.reproduction.miniatures import SIDES


def full_size(cell: Cell) -> Mapping[str, Any]:
    """Parameters and FLOPs of the paper's network."""
    of = cell.paper
    table = "3" if of == "san" and cell.table in ROBUSTNESS else cell.table
    wanted = (cell.row.model, json.dumps(cell.row.overrides))
    for name in dict.fromkeys((table, "4")):  # SAN Sec. 5.3 is compared with a row of its Table 4
        for row in printed.rows(name, of):
            if (row.model, json.dumps(row.overrides)) == wanted:
                return _computed(name, of)[wanted]
    raise AssertionError(wanted)


@cache
def _computed(table: str, of: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["model"], row["overrides"]): row for row in compute([table], of)}


def shares(cell: Cell, base: Cell) -> dict[str, float]:
    """Parameters and FLOPs of a miniature and of its original, as shares of those of the network that each is compared
    with."""
    flops = f"flops_{printed.PAPERS[cell.paper][1]}"
    found = {}
    for suffix, size in (("", here), ("_full_size", full_size)):
        one, other = size(cell), size(base)
        found[f"params_of_base{suffix}"] = one["params"] / other["params"]
        found[f"flops_of_base{suffix}"] = one[flops] / other[flops]
    return found


def here(cell: Cell) -> Mapping[str, int]:
    """Parameters and FLOPs of a miniature."""
    convention = printed.PAPERS[cell.paper][1]
    options = json.dumps(cell.config.options, sort_keys=True)
    params, flops = counted(cell.config.model, options, SIDES[cell.config.data], convention)
    return {"params": params, f"flops_{convention}": flops}


@cache
def counted(model: str, options: str, side: int, convention: str) -> tuple[int, int]:
    """Parameters and FLOPs of a network of 10 classes, with options as JSON, for images of this side."""
    from saprof.models.counting import blueprint, count

    cost = count(blueprint(model, **{"num_classes": 10} | json.loads(options)), (3, side, side))
    return cost.params, cost.flops(convention)


def spelled(found: Mapping[str, float]) -> str:
    """The shares in words."""
    one, other = found["params_of_base"], found["flops_of_base"]
    full = found["params_of_base_full_size"], found["flops_of_base_full_size"]
    return f"{one:.2f} of the base's parameters (full size {full[0]:.2f}), {other:.2f} of its FLOPs ({full[1]:.2f})"
