"""SAN Tables 9 and 10 as they are printed."""

from decimal import Decimal

import pytest

from saprof import list_models
from saprof.paper import robustness
from saprof.paper.printed import paper
from saprof.paper.printed import rows as rows_of
from studies.judging.perturbations import ATTACKS, LADDER, MANIPULATIONS

SLIPS = {
    ("san15_patchwise", "clockwise_90", "top1"): ("24.5", "24.3"),
    ("san15_patchwise", "clockwise_180", "top1"): ("22.2", "22.0"),
    ("san15_patchwise", "clockwise_270", "top1"): ("24.3", "24.1"),
    ("san15_patchwise", "upside_down", "top1"): ("22.2", "22.0"),
    ("resnet50", "clockwise_180", "top5"): ("16.2", "16.1"),
}
"""Printed drops that differ from the clean accuracy minus the rotated one; the first four are relative to 78.2, the
accuracy of SAN19."""


def test_printed_drops_are_clean_less_turned_but_for_five():
    found, cells = {}, 0
    for row in robustness.turned().rows:
        clean = row.manipulations["none"]
        for name, cell in row.manipulations.items():
            for figure in ("top1", "top5"):
                printed = getattr(cell, f"{figure}_drop")
                if name == "none":
                    assert printed is None
                    continue
                cells += 1
                computed = Decimal(str(getattr(clean, figure))) - Decimal(str(getattr(cell, figure)))
                if Decimal(str(printed)) != computed:
                    found[row.model, name, figure] = str(printed), str(computed)
    assert found == SLIPS
    assert cells == 72


@pytest.mark.parametrize("table", [robustness.turned(), robustness.attacked()], ids=["9", "10"])
def test_rows_are_those_of_table_3(table):
    table3 = rows_of(3)
    assert table.evaluation_set == paper()["3"].evaluation_set == "val-original"
    names = [(row.family, row.network, row.model) for row in table.rows]
    assert names == [(row.family, row.network, row.model) for row in table3]
    assert {row.model for row in table.rows} <= set(list_models())


def test_clean_accuracy_is_that_of_table_3():
    for row in rows_of(3):
        turned, attacked = robustness.turned().row(row.model), robustness.attacked().row(row.model)
        clean = turned.manipulations["none"]
        assert (clean.top1, clean.top5, attacked.top1) == (row.top1, row.top5, row.top1)


def test_what_the_text_says_of_the_tables():
    attacked, names = robustness.attacked(), ("san19_pairwise", "resnet50")
    drops = {model: robustness.turned().row(model).manipulations["clockwise_180"].top1_drop for model in names}
    assert drops["san19_pairwise"] == 18.9
    assert drops["resnet50"] - drops["san19_pairwise"] == pytest.approx(5.1)
    hard = {row.model: row.attacks["pgd_8_2_4"] for row in attacked.rows}
    assert [(hard[m].success_rate, hard[m].top1) for m in ("resnet50", "san19_pairwise", "san19_patchwise")] == [
        (82.5, 11.8),
        (63.7, 21.8),
        (62.0, 24.8),
    ]
    assert (hard["resnet26"].top1, hard["san10_patchwise"].top1) == (1.0, 9.6)


def test_the_columns_of_table_10_add_up_as_printed():
    sums = [
        sum(Decimal(str(getattr(row.attacks[name], figure))) for row in robustness.attacked().rows)
        for name in robustness.attacks()
        for figure in ("success_rate", "top1")
    ]
    assert list(map(str, sums)) == ["212.3", "403.1", "709.5", "120.6"]


def test_names_are_those_that_are_judged():
    for row in robustness.turned().rows:
        assert list(row.manipulations) == list(MANIPULATIONS)
    for row in robustness.attacked().rows:
        assert list(row.attacks) == list(robustness.attacks())
    assert [attack.name for attack in ATTACKS[:2]] == list(robustness.attacks())
    assert [(a.epsilon, a.step, a.steps) for a in ATTACKS[:2]] == [(8, 4, 2), (8, 2, 4)]


def test_every_attack_just_reaches_the_border():
    assert all(attack.steps * attack.step == attack.epsilon for attack in ATTACKS)
    assert [attack.epsilon for attack in LADDER] == [16, 32, 48]


def test_unknown_models_have_no_row():
    assert robustness.turned().row("resnet_mini") is None
