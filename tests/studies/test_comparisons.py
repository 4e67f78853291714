"""The comparisons of a table's lines: over seeds, corrected for their number, and over images."""

from studies.judging.statistics import holm, paired, wilson
from studies.reproduction.comparisons import differences, over_images

BASE = {0: 80.0, 1: 80.5, 2: 79.5}
ONE = {0: 81.0, 1: 81.6, 2: 80.4, 3: 90.0}
OTHER = {0: 81.5, 1: 81.5, 2: 81.5}


def test_only_claimed_differences_are_corrected_for_their_number():
    one, other = paired({seed: ONE[seed] for seed in BASE}, BASE), paired(OTHER, BASE)
    values, bases = [BASE, ONE, OTHER], [None, 0, 0]
    assert differences(values, bases) == [None, *holm([one, other])]
    assert differences(values, bases, [False, True, False]) == [None, *holm([one]), other]
    assert holm([one])[0] != holm([one, other])[0]


def test_the_interval_over_images_is_wilsons():
    low, high = wilson(351, 360)
    assert over_images([{"n": 360}], 97.5) == {"images": 360, "low_over_images": low, "high_over_images": high}
