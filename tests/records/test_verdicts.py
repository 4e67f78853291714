"""Verdicts in words, and rows that have none."""

import re

import made_up
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saprof.quantities import around, digits, factor
from saprof.records.ratios import Ratio
from saprof.records.runs import RECORDED, read_run
from saprof.records.verdicts import doubt, firsts, group, in_words, note, notes


@pytest.mark.parametrize(
    ("ratio", "band", "words"),
    [
        ((0.5, 0.48, 0.525), 0.02, "numba 2.0× faster than unfold (1.90× to 2.1×)"),
        ((0.5, 0.5, 0.5), 0.02, "numba 2.0× faster than unfold"),
        ((1.3, 1.25, 1.35), 0.02, "numba 1.30× slower than unfold (1.25× to 1.35×)"),
        ((1.0, 0.99, 1.01), 0.02, "the same as unfold within 2 %"),
        ((1.0, 0.97, 1.04), 0.055, "the same as unfold within 5.5 %"),
        ((1.0, 0.97, 1.05), 0.02, "undecided: 0.97× to 1.05× the time of unfold"),
        ((1.3, 1.25, 1.35), 0.4, "undecided: 1.25× to 1.35× the time of unfold"),
        ((9.0, 0.0, float("inf")), 0.02, "undecided: the ratio has no interval"),
        ((1 / 31, 1 / 33, 1 / 30), 0.02, "numba 31× faster than unfold (30× to 33×)"),
        ((0.0, 0.0, 0.0), 0.02, "numba inf× faster than unfold"),
    ],
)
def test_a_ratio_in_words(ratio, band, words):
    assert in_words("numba", "unfold", Ratio(*ratio), band) == words


@given(st.floats(1e-3, 1e3), st.floats(1, 1.5), st.floats(1, 1.5), st.floats(0, 0.3))
def test_words_agree_with_the_verdict(median, below, above, band):
    ratio = Ratio(median, median / below, median * above)
    words = in_words("A", "B", ratio, band)
    verdict = ratio.verdict(band)
    assert {"same": "the same as", "ambiguous": "undecided"}.get(verdict, f"{verdict} than") in words
    if verdict in ("faster", "slower"):
        assert float(re.search(r"([\d.,]+)×", words)[1].replace(",", "")) >= 1, "never faster by less than once"


def pair(**fields):
    """Two backends of one cell; the fields are those of the second, which is half as long."""
    return [
        made_up.row(backend="unfold", latency_s=2e-3),
        made_up.row(**{"ratio": 0.5, "ratio_low": 0.49, "ratio_high": 0.51, "verdict": "faster"} | fields),
    ]


def test_the_first_of_a_group_is_found_and_named():
    rows = pair()
    others = [made_up.row(name="other", backend="cuda", latency_s=1e-3)]
    assert notes([*others, *rows]) == ["", "", "numba 2.0× faster than unfold (1.96× to 2.0×)"]
    assert firsts(rows) == {group(rows[0]): rows[0]}
    slow = pair(ratio=3.0, ratio_low=2.9, ratio_high=3.1, verdict="slower")
    assert notes(slow)[1] == "unfold 3.0× faster than numba (2.9× to 3.1×)", "the faster one is named first"
    assert note(rows[1], {}) == "numba 2.0× faster than the first of its group (1.96× to 2.0×)"
    failed = made_up.row(backend="cuda", status="error", reason="no luck")
    assert notes([failed, *rows])[0] == "error: no luck"
    assert notes([failed, *rows])[2].startswith("numba 2.0× faster than unfold"), "what failed is not the first"


def test_a_group_without_one_first_has_none():
    one, other = pair()
    again = made_up.row(backend="cuda", latency_s=1e-3)
    assert firsts([one, again, other]) == {}
    assert list(firsts([one, one, other]).values()) == [one], "a cell that was measured twice counts once"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": "contended"}, "contended: other processes ran meanwhile"),
        ({"status": "unstable"}, "unstable: the calls differed too much"),
        ({"status": "unstable", "reason": "a wide interval"}, "unstable: a wide interval"),
        (
            {"macs": 1, "flops_hardware": 10**10, "compulsory_bytes": 8, "latency_high_s": 1.1e-3},
            "measurement error: faster than the roofs allow",
        ),
    ],
)
def test_a_row_that_should_not_be_believed_says_why_and_has_no_verdict(fields, words):
    assert notes(pair(**fields), made_up.roofs())[1] == words


def test_a_verdict_needs_a_first_that_is_believed():
    rows = pair()
    rows[0] = made_up.row(backend="unfold", latency_s=2e-3, status="contended")
    assert notes(rows) == ["contended: other processes ran meanwhile", "no verdict: unfold is contended"]


@pytest.mark.parametrize("name", ["footprint_cpu", "relations_cpu", "backends_cpu", "networks_cpu"])
def test_recorded_runs_read_as_before(name):
    """Every ratio of a sound row has words, and every first is found."""
    run = read_run(RECORDED / name)
    found = notes(run.rows, run.calibration)
    compared = [(row, words) for row, words in zip(run.rows, found, strict=True) if row.ratio is not None]
    assert compared
    for row, words in compared:
        if doubt(row, run.calibration):
            assert "×" not in words
        else:
            assert "the first of its group" not in words
            expected = {"same": "the same as", "ambiguous": "undecided: "}.get(row.verdict, "× faster than ")
            assert expected in words or words.startswith("no verdict: ")


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (56.2, 55.6, 57.0, "56.2 ± 0.8"),
        (56.2, 55.4, 56.3, "56.2 ± 0.8"),
        (1234.4, 1220.0, 1240.0, "1,234 ± 14"),
        (56.2, 56.19, 56.2, "56.2 ± 0.1"),
        (0.5, 0.494, 0.5, "0.500 ± 0.006"),
        (56.2, 56.2, 56.2, "56.2"),
        (56.2, None, 57.0, "56.2"),
    ],
)
def test_an_interval_is_its_larger_half(value, low, high, text):
    assert around(value, low, high) == text


def test_large_numbers_have_separators():
    assert [digits(x) for x in (12345.6, 99.96, -1234.0, 0.00012)] == ["12,346", "100", "-1,234", "0.00012"]
    assert factor(12345) == "12,345×"
