"""Intervals, paired differences, Holm's correction and verdicts."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from studies.judging import statistics
from studies.judging.statistics import Difference, Mean, holm, mean, paired, verdict, wilson

SEEDS = range(6)


def by_seed(values):
    return dict(enumerate(values))


def difference(values):
    return paired(by_seed(values), by_seed([0.0] * len(values)))


@pytest.fixture
def values():
    return [92.4, 93.0, 90.8, 91.6, 92.2, 94.0]


def test_mean_has_scipys_interval(values):
    found = mean(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.n, found.mean) == (6, pytest.approx(np.mean(values)))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.sd == pytest.approx(np.std(values, ddof=1))


def test_paired_is_scipys_test_of_related_samples(values):
    base = [90.0, 91.8, 90.6, 90.2, 91.0, 91.4]
    found, known = paired(by_seed(values), by_seed(base)), stats.ttest_rel(values, base)
    interval = known.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == tuple(pytest.approx(x) for x in (known.pvalue, *interval))


def test_seeds_are_paired_by_name_and_not_by_place():
    ours, base = {3: 5.0, 7: 1.0}, {7: 0.0, 3: 3.0}
    found = paired(ours, base)
    assert (found.mean, found.sd) == (1.5, pytest.approx(0.5**0.5))


def test_other_seeds_are_refused():
    with pytest.raises(ValueError, match="has seeds 2, 4; expected the same seeds in both"):
        paired({1: 0.0, 2: 0.0}, {1: 0.0, 4: 0.0})


@pytest.mark.parametrize("n", [2, 6, 20])
@pytest.mark.parametrize("of", ["mean", "difference"])
def test_intervals_cover_as_often_as_they_say(n, of):
    draws = np.random.default_rng(n).normal(70.0, 2.0, (2000, n))
    make = mean if of == "mean" else lambda x: paired(by_seed(x), by_seed(x * 0 + 70.0))
    truth = 70.0 if of == "mean" else 0.0
    intervals = [make(x) for x in draws]
    covered = sum(i.low <= truth <= i.high for i in intervals)
    assert abs(covered / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_one_seed_has_no_interval_and_no_p():
    assert mean([50.0]) == Mean(1, 50.0)
    assert paired({0: 50.0}, {0: 40.0}) == Difference(1, 10.0)


@pytest.mark.parametrize("base", [0.0, 0.1, 71.3])
def test_a_constant_difference_is_left_to_the_sign_test(base):
    ours = [base + 2.2 + n for n in SEEDS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired(by_seed(ours), by_seed([base + n for n in SEEDS]))
    assert (found.mean, found.low, found.high) == (pytest.approx(2.2), None, None)
    assert found.p == 2 ** (1 - 6)
    assert found.p == pytest.approx(stats.binomtest(6, 6).pvalue)


def test_five_signs_cannot_reach_a_twentieth():
    assert difference([1.0] * 5).p > 0.05 > difference([1.0] * 6).p


def test_no_difference_at_all_has_p_1():
    found = difference([0.0] * 6)
    assert (found.mean, found.p) == (0.0, 1.0)
    assert verdict(1.0, found).word == "equivalent"


def test_constant_values_have_an_interval_of_no_width():
    assert mean([100.0] * 6) == Mean(6, 100.0, 0.0, 100.0, 100.0)


def test_holm_by_hand():
    spread = [Difference(6, 1.0, sd=1.0, p=p) for p in (0.04, 0.01, 0.03)]
    corrected = holm(spread)
    assert [d.p_adjusted for d in corrected] == pytest.approx([0.06, 0.03, 0.06])
    assert [d.level for d in corrected] == pytest.approx([1 - 0.05 / 2, 1 - 0.05 / 3, 1 - 0.05 / 2])


def test_holm_is_never_kinder_than_none_and_never_stricter_than_bonferroni():
    generator = np.random.default_rng(5)
    for _ in range(50):
        table = [difference(list(generator.normal(shift, 1, 6))) for shift in generator.normal(0, 1.5, 7)]
        for before, after in zip(table, holm(table), strict=True):
            assert before.p <= after.p_adjusted <= min(1, 7 * before.p) + 1e-12
            assert (after.p_adjusted < 0.05) == (not after.low <= 0 <= after.high)
            assert after.level >= before.level
        order = np.argsort([d.p for d in table])
        adjusted = [holm(table)[place].p_adjusted for place in order]
        assert adjusted == sorted(adjusted)


def test_holm_keeps_false_findings_of_a_table_below_a_twentieth():
    draws = np.random.default_rng(1).normal(0, 2.0, (600, 5, 6))
    tables = [holm([difference(list(x)) for x in table]) for table in draws]
    wrong = sum(any(d.p_adjusted < 0.05 for d in table) for table in tables)
    assert wrong / 600 < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 600)


def test_holm_passes_over_what_has_no_p():
    single, pair = Difference(1, 3.0), difference([1.0, 2.0, 3.0])
    corrected = holm([single, pair])
    assert corrected[0] == single
    assert corrected[1].p_adjusted == pair.p
    assert holm([]) == []


@pytest.mark.parametrize(("correct", "n"), [(475, 500), (0, 10), (10, 10), (37_500, 50_000)])
def test_wilson_solves_its_equation(correct, n):
    z, share = stats.norm.ppf(0.975), correct / n
    for bound in wilson(correct, n):
        p = bound / 100
        assert (share - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / n, abs=1e-12)


def test_wilson_has_the_known_widths():
    low, high = wilson(475, 500)
    assert (high - low) / 2 == pytest.approx(1.9, abs=0.05)
    low, high = wilson(37_500, 50_000)
    assert (high - low) / 2 == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(("correct", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_wilson_refuses_what_are_no_counts(correct, n):
    with pytest.raises(ValueError, match=f"^{correct} of {n} images are correct; expected"):
        wilson(correct, n)


UP, UNSURE = [2.0, 2.5, 1.5, 2.2, 1.9, 2.1], [2.0, -2.5, 1.5, -2.2, 1.9, 0.1]
SMALL = [0.2, -0.2, 0.1, -0.1, 0.3, -0.2]
DOWN = [-value for value in UP]


@pytest.mark.parametrize(
    ("paper", "ours", "word"),
    [
        (1.9, UP, "supported"),
        (-1.9, DOWN, "supported"),
        (-1.9, UP, "contradicted"),
        (1.9, DOWN, "contradicted"),
        (1.9, UNSURE, "undecided"),
        (2.5, UNSURE, "equivalent"),
        (-2.5, UNSURE, "equivalent"),
        (0.1, SMALL, "equivalent"),
        (0.0, SMALL, "equivalent"),
        (0.0, UP, "contradicted"),
        (0.0, UNSURE, "undecided"),
        (None, UP, "not applicable"),
        (1.9, [3.0], "not applicable"),
    ],
)
def test_verdicts(paper, ours, word):
    found = verdict(paper, difference(ours))
    assert found.word == word
    assert bool(found.reason) == (word == "not applicable")
    assert str(found).startswith(word)


def test_verdicts_say_why_they_do_not_apply():
    assert str(verdict(1.0, None)) == "not applicable (0 of at least 2 seeds)"
    assert str(verdict(None, difference(UP))) == "not applicable (the paper has no such difference)"


def test_equality_that_the_paper_reports_is_contradicted_only_by_more_than_half_a_point():
    slight = difference([0.3, 0.4, 0.35, 0.3, 0.4, 0.37])
    assert slight.low > 0
    assert verdict(0.0, slight).word == "equivalent"
    wider = difference([0.6, 0.2, 0.55, 0.3, 0.7, 0.5])
    assert 0 < wider.low < 0.5 < wider.high
    assert verdict(0.0, wider).word == "undecided"


def test_seeds_without_any_difference_are_equivalent_and_a_constant_one_is_not():
    assert verdict(1.0, difference([0.0] * 3)).word == "equivalent"
    assert verdict(1.0, difference([0.25] * 3)).word == "undecided"


def test_the_smallest_difference_that_could_be_resolved_is_half_the_interval():
    found = difference(UNSURE)
    assert found.resolvable == pytest.approx(found.high - found.mean)
    moved = difference([value + 1.01 * found.resolvable - found.mean for value in UNSURE])
    assert moved.p < 0.05
    assert difference([1.0]).resolvable is None


def test_a_verdict_goes_by_the_corrected_p():
    barely = difference([1.0, 2.4, 0.2, 1.9, 0.3, 0.6])
    assert 0.05 / 8 < barely.p < 0.05
    assert verdict(1.0, barely).word == "supported"
    corrected = holm([barely, *[difference(UNSURE)] * 7])[0]
    assert verdict(1.0, corrected).word == "undecided"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="1 of 3 values are not finite"):
        mean([1.0, bad, 2.0])
    with pytest.raises(ValueError, match="not finite"):
        paired({0: bad, 1: 0.0}, {0: 0.0, 1: 0.0})
    with pytest.raises(ValueError, match="not finite"):
        verdict(bad, difference(UP))


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="there are no values"):
        mean([])
    with pytest.raises(ValueError, match="there are no values"):
        paired({}, {})


def test_scipy_is_not_loaded_before_it_is_needed():
    assert "scipy" not in vars(statistics)
