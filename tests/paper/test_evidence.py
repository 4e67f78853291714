"""Rows beside the figures that the papers print for the same network, and their fronts."""

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
        ("resnet26_5x5", "square:3", [("7", 76.0), ("3", 73.6), ("1", 74.5)]),
        ("resnet50", "default", [("3", 76.9), ("1", 76.9), ("3", 79.5)]),
        ("sasa_resnet26", "default", [("1", 74.8)]),
        ("sasa_resnet38_convolution_stem", "square:7", [("1", 77.1)]),
        ("sasa_resnet50_convolution_stem", "default", [("1", 77.4), ("3", 80.2)]),
        ("sasa_resnet50_convolution_stem", "square:11", [("4", 77.6)]),
        ("sasa_resnet50", "default", [("1", 77.6)]),
        ("sasa_resnet50", "square:9", []),
        ("sasa_mini", "default", []),
        ("retinanet_resnet50", "default", []),
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


@pytest.mark.parametrize(("of", "table"), [(of, table) for of, some in evidence.TABLES.items() for table in some])
def test_every_printed_row_is_found_by_its_network(of, table):
    images = paper(of)[table].evaluation_set
    for printed in rows(table, of):
        if printed.overrides.keys() - {"footprints", "footprint"}:
            assert (of, table) == ("sasa", "3"), "what else makes a network another one?"
            continue
        *_, size = printed.overrides.get("footprints", [printed.overrides.get("footprint")])
        row = network(printed.model, f"square:{size}" if size else "default")
        (about,) = (
            about for about in evidence.printed(row) if (about.of, about.evaluation_set.split()[0]) == (of, images)
        )
        assert about.row.top1 == printed.top1
        assert about.source.endswith(f", as printed, ImageNet {images}")
        assert about.source.startswith(of.upper())
        assert (about.flops_G is None) == (of == "sasa"), "its FLOPs are counted in another way"


def test_rows_without_settings_are_the_default_network():
    """So that another table does not say something else about a name and a footprint."""
    for number, table in paper("sasa").items():
        plain = [row for row in table.rows if not row.overrides]
        assert len({row.model for row in plain}) == len(plain), number


def test_sets_of_two_papers_have_two_names():
    sets = {about.evaluation_set for name in ("resnet26", "resnet50") for about in evidence.printed(network(name))}
    assert sets == {"val-split", "val-original", "test (SASA)", "validation (SASA)"}


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


def test_sets_of_a_paper_count_beside_its_networks():
    def sets(*names):
        return set(evidence.points([network(name) for name in names])["evaluation_set"])

    san, sasa = {"val-split", "val-original"}, {"test (SASA)"}
    assert sets("resnet26") == sets("resnet26", "san10_pairwise") == san
    assert sets("resnet26", "sasa_resnet26") == sasa
    assert sets("resnet26", "sasa_resnet26", "san10_pairwise") == san | sasa


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
