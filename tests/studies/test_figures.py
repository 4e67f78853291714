"""Figures of a reproduction show the numbers of its pages."""

from pathlib import Path

import numpy as np
import pytest
import torch

import saprof
from studies.reproduction import records
from studies.reproduction.figures import attacked_figure, claims_figure, frame, looked_at_figure, turned_figure
from studies.training.run import weights_sha256

DIGITS = Path(__file__).parents[2] / "studies" / "recorded" / "digits"
MODELS = sorted((DIGITS / "models").glob("*.pt"))


def test_every_claim_has_its_difference_and_interval():
    rows = frame(DIGITS, "4").dropna(subset=["difference"])
    paper, ours = claims_figure(rows).axes
    assert len(rows) == 8
    np.testing.assert_array_equal(paper.lines[0].get_xdata(), rows["paper_difference"])
    intervals = [line.get_xdata() for line in ours.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"]
    bounds = rows[["difference_low", "difference_high"]].to_numpy()
    np.testing.assert_array_equal([x for x in intervals if x[0] != 0 or x[1] != 1][: len(rows)], bounds)


def test_drops_of_three_sizes_beside_the_papers():
    rows = frame(DIGITS, "9")
    figure = turned_figure(rows)
    titles = ["SAN10, ResNet26", "SAN15, ResNet38", "SAN19, ResNet50"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == titles
    pairwise = rows[(rows["network"] == "SAN10") & (rows["family"] == "pairwise")]
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert list(pairwise["ours"]) in drawn
    assert list(pairwise["paper"]) in drawn
    assert "not ImageNet" in figure.get_supxlabel()


def test_accuracy_under_attack():
    rows = frame(DIGITS, "10")
    figure = attacked_figure(rows)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["pairwise, here"].get_xdata()) == [8, 16, 32, 48]
    of = rows[(rows["network"] == "SAN10") & (rows["family"] == "pairwise") & (rows["measure"] == "top-1")]
    assert lines["pairwise, here"].get_ydata()[0] == of.set_index("setting")["ours"]["pgd_8_2_4"]


def test_a_page_without_comparisons():
    with pytest.raises(ValueError, match="no row is compared"):
        claims_figure(frame(DIGITS, "4").assign(difference=np.nan))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_recorded_model_is_that_of_a_recorded_run(path):
    model = saprof.load(path)
    runs = records.read(DIGITS / records.FILE).runs.values()
    (run,) = [run for run in runs if run["weights_sha256"] == weights_sha256(model.state_dict())]
    assert run["facts"]["model"] == path.stem


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_what_a_network_looks_at(path):
    figure = looked_at_figure(path, 7, [(2, 3)], groups=2)
    image, mean, *groups, _ = figure.axes
    assert image.images[0].get_array().shape == (8, 8)
    assert len(groups) == 2
    assert mean.images[0].get_array().shape == (7, 7)
    if "patchwise" not in path.stem:
        assert groups[0].images[0].get_array().sum() == pytest.approx(1, abs=1e-5)
    assert torch.is_grad_enabled()
    assert figure.get_suptitle() == f"{path.stem}: a 7, read as 7"
