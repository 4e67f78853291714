"""Rows beside the figures that SAN prints for the same network, and their fronts."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import network

from saprof.paper import evidence
from saprof.paper.printed import paper, rows

MEASURED = {"latency_s": 0.1, "latency_low_s": 0.09, "latency_high_s": 0.11, "peak_bytes": 10**7}
COUNTED = {"params": 10**7, "flops_paper": 2 * 10**9}


def found(row):
    return [(about.table, about.row.top1) for about in evidence.printed(row)]


USUAL = [("7", 77.4), ("3", 74.9)]


@pytest.mark.parametrize(
    ("name", "footprint", "expected"),
    [
        ("san10_pairwise", "default", USUAL),
        ("san10_pairwise", "square:7", USUAL),
        ("san10_pairwise", "rectangle:7x7", USUAL),
        ("san10_pairwise_subtraction", "default", USUAL),
        ("san10_pairwise", "square:11", [("7", 77.6)]),
        ("san10_patchwise", "square:3", [("7", 77.4)]),
        ("resnet26", "square:5", [("7", 77.4)]),
        ("resnet26_5x5", "default", [("7", 77.4)]),
        ("resnet26_5x5", "square:3", [("7", 76.0), ("3", 73.6)]),
        ("resnet50", "default", [("3", 76.9)]),
        ("san19_patchwise", "square:7", [("3", 78.2)]),
        ("san10_pairwise_summation", "default", [("4", 77.4)]),
        ("san10_patchwise_clique_product", "square:7", [("4", 79.1)]),
        ("san10_pairwise_dot_product", "square:3", []),
        ("san19_patchwise", "square:3", []),
        ("san10_pairwise", "cross:7", []),
        ("san10_pairwise", "dilated:7x2", []),
        ("san10_pairwise", "square:7 boundary=zero", []),
        ("san10_pairwise", "offsets:0,0;1,1", []),
        ("resnet26", "square:9", []),
        ("san10_stand_alone", "default", []),
        ("san_mini_pairwise", "default", []),
    ],
)
def test_what_is_printed_of_a_network(name, footprint, expected):
    assert found(network(name, footprint)) == expected


@pytest.mark.parametrize("changes", [{"h": 64, "w": 64}, {"w": 256}, {"kind": "operator"}])
def test_nothing_is_printed_of_other_images_nor_of_operators(changes):
    assert found(network(**changes)) == []


@pytest.mark.parametrize("table", evidence.TABLES)
def test_every_printed_row_is_found_by_its_network(table):
    evaluation_set = paper()[table].evaluation_set
    for printed in rows(table):
        assert printed.overrides.keys() <= {"footprints"}, "what else makes a network another one?"
        *_, size = printed.overrides.get("footprints", [None])
        row = network(printed.model, f"square:{size}" if size else "default")
        (about,) = (about for about in evidence.printed(row) if about.evaluation_set == evaluation_set)
        assert about.row.top1 == printed.top1
        assert about.source.endswith(f", as printed, ImageNet {evaluation_set}")


def test_default_footprints_are_those_of_table_7():
    plain = [row for row in rows(7) if not row.overrides]
    assert [evidence.variant(network(row.model)).size for row in plain] == [row.setting for row in plain]


def test_points_have_a_line_per_row_and_evaluation_set():
    failed = dict.fromkeys((*MEASURED, *COUNTED)) | {"status": "oom", "reason": "no memory"}
    rows = [
        network(),
        network("resnet26", backend="torch", attention=None),
        network(**failed),
        network("san10_patchwise", **dict.fromkeys(MEASURED) | {"status": "timeout", "reason": "slow"}),
        network(kind="operator", name="aggregation", footprint="square:7"),
    ]
    frame = evidence.points(rows)
    assert list(frame.columns) == list(evidence.COLUMNS)
    lines = [tuple(line) for line in frame[["name", "evaluation_set", "top1", "footprint", "taps"]].to_numpy()]
    assert lines == [
        ("san10_pairwise", "val-split", 77.4, "square:7", 49),
        ("san10_pairwise", "val-original", 74.9, "square:7", 49),
        ("resnet26", "val-split", 76.0, "square:3", 9),
        ("resnet26", "val-original", 73.6, "square:3", 9),
        ("san10_patchwise", "val-split", 79.3, "square:7", 49),
        ("san10_patchwise", "val-original", 77.1, "square:7", 49),
    ]
    first = frame.iloc[0]
    assert {name: first[name] for name in (MEASURED | COUNTED)} == MEASURED | COUNTED
    assert (first["family"], first["relation"], first["attention"]) == ("pairwise", "subtraction", "fused")
    assert first["source"] == "SAN Table 7, as printed, ImageNet val-split"
    assert frame["latency_s"].isna().tolist() == [False] * 4 + [True] * 2, "counted, but not measured"


def test_points_of_nothing_have_columns():
    assert list(evidence.points([]).columns) == list(evidence.COLUMNS)
    assert evidence.front(evidence.points([])).tolist() == []


def test_labels():
    rows = [
        network(footprint="square:9", backend="numba", compiled=True),
        network("san10_pairwise_summation", backend="unfold", attention="composed"),
        network("resnet26_5x5", backend="torch", attention=None),
    ]
    labels = [evidence.label(line) for line in evidence.points(rows).to_dict("records")]
    assert labels == [
        "san10_pairwise 9×9 on numba fused+compile",
        "san10_pairwise_summation 7×7 on unfold",
        "resnet26 5×5 on torch",
    ]


figures = st.tuples(*[st.integers(0, 3)] * 3)


@given(st.lists(figures, max_size=12))
def test_no_line_of_the_front_is_dominated_and_every_other_is(lines):
    def dominates(one, other):
        better = [one[0] - other[0], other[1] - one[1], other[2] - one[2]]
        return min(better) >= 0 and max(better) > 0

    frame = pd.DataFrame(lines, columns=["top1", "latency_s", "params"], index=range(5, 5 + len(lines)))
    front = evidence.front(frame, ["latency_s", "params"])
    assert list(front.index) == list(frame.index)
    assert front.tolist() == [not any(dominates(one, other) for one in lines) for other in lines]
    assert front.any() or not lines


def test_equals_stay_together_and_gaps_are_left_out():
    frame = pd.DataFrame({"top1": [70.0, 70, 60, 80, math.nan], "latency_s": [1.0, 1, 0.5, math.nan, 0.1]})
    assert evidence.front(frame, ["latency_s"]).tolist() == [True, True, True, False, False]
