"""The printed accuracies: how many there are, on which images, and that they say what the papers conclude from them."""

import pytest

from saprof.paper.printed import AP, paper, rows


def top1(table: str, of: str = "sasa") -> dict[tuple[str, object], float]:
    return {(row.network, row.setting): row.top1 for row in rows(table, of)}


def test_sasa_prints_sixty_accuracies():
    every = [row for table in paper("sasa").values() for row in table.rows]
    assert sum(row.top1 is not None for row in every) == 30
    assert sum(len(row.ap or ()) for row in every) == 30
    assert len(AP) == 6


def test_every_table_names_the_images_of_its_accuracies():
    sets = {number: table.evaluation_set for number, table in paper("sasa").items()}
    assert sets == {"1": "test", "2": "", "3": "validation", "4": "test", "5": "validation", "6": "test", "7": "test"}


@pytest.mark.parametrize(("depth", "gain"), [(26, 0.3), (38, 0.7), (50, 0.7)])
def test_attention_is_above_convolution(depth, gain):
    figures = top1("1")
    found = figures[f"ResNet{depth}", "attention"] - figures[f"ResNet{depth}", "convolution"]
    assert found == pytest.approx(gain)


def test_one_network_has_two_accuracies_on_two_sets():
    """The default with the convolutional stem is in five tables."""
    validation = {top1("3")["ResNet50", "1, 2, 3, 4"], top1("5")["ResNet50", "relative"]}
    test = {top1("4")["ResNet50", 7], top1("6")["ResNet50", "content and position"]}
    test |= {top1("1")["ResNet50", "convolution stem, attention"]}
    assert (validation, test) == ({80.2}, {77.4})
    assert top1("7")["ResNet50", "spatially aware values"] == top1("1")["ResNet50", "attention"] == 77.6


def test_attention_late_is_above_attention_early():
    figures = top1("3")
    assert figures["ResNet50", "3, 4"] - figures["ResNet50", "1, 2"] == pytest.approx(1.1)


def test_detectors_are_as_precise_at_every_threshold():
    for row in rows("2", "sasa"):
        mean, at_half, at_three_quarters, small, medium, large = row.ap
        assert small < medium < large
        assert mean < at_three_quarters < at_half
        assert abs(mean - rows("2", "sasa")[0].ap[0]) <= 0.3
