"""Scores: a logit that is not finite is wrong, ties count against the label, and sums are of integers."""

import json

import pytest
import torch
import torch.nn.functional as F

from studies.training.metrics import Score, score

LABELS = torch.tensor([0, 3, 9, 5])


def test_against_topk_where_there_are_no_ties():
    draws = torch.Generator().manual_seed(0)
    logits = torch.rand(200, 10, generator=draws)
    labels = torch.randint(10, (200,), generator=draws)
    right = logits.topk(5).indices == labels[:, None]
    found = score(logits, labels)
    assert (found.n, found.correct1, found.correct5, found.nonfinite) == (200, right[:, 0].sum(), right.sum(), 0)
    assert found.loss == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-12)
    assert found.top1 == 100 * found.correct1 / 200
    assert found.top5 == 100 * found.correct5 / 200


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers_are_wrong_and_counted(value):
    all_bad = score(torch.full((4, 10), value), LABELS)
    assert all_bad == Score(n=4, correct1=0, correct5=0, nonfinite=4, loss_sum=0.0)
    assert all_bad.loss is None
    json.dumps(all_bad.record(), allow_nan=False)

    logits = F.one_hot(LABELS, 10) * 8.0
    logits[1, 7] = value
    found = score(logits, LABELS)
    assert (found.correct1, found.correct5, found.nonfinite) == (3, 3, 1)
    assert found.loss == pytest.approx(score(logits[[0, 2, 3]], LABELS[[0, 2, 3]]).loss)


def test_a_constant_tells_nothing_apart():
    found = score(torch.zeros(4, 10), LABELS)
    assert (found.correct1, found.correct5, found.nonfinite) == (0, 0, 0)


def test_ties_go_against_the_label():
    logits = torch.zeros(3, 10)
    logits[:, :2] = 1.0  # two first, which are tied, then eight
    logits[1:, 2:5] = 0.5
    found = [score(logits[i : i + 1], torch.tensor([label])) for i, label in [(0, 0), (1, 1), (1, 4), (2, 5)]]
    assert [(one.correct1, one.correct5) for one in found] == [(0, 1), (0, 1), (0, 1), (0, 0)]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_top_5_of_few_classes_is_all_of_them(classes):
    logits, labels = torch.eye(classes), torch.arange(classes).roll(1)
    found = score(logits, labels)
    assert (found.correct1, found.correct5) == (0, classes)
    assert score(logits, torch.arange(classes)).correct1 == classes
    assert score(torch.full((classes, classes), float("nan")), labels).correct5 == 0


def test_parts_sum_to_the_whole():
    draws = torch.Generator().manual_seed(1)
    logits, labels = torch.rand(50, 10, generator=draws), torch.randint(10, (50,), generator=draws)
    parts = [score(logits[i : i + 7], labels[i : i + 7]) for i in range(0, 50, 7)]
    whole, total = score(logits, labels), sum(parts, Score())
    assert {**vars(total), "loss_sum": 0} == {**vars(whole), "loss_sum": 0}
    assert total.loss == pytest.approx(whole.loss, rel=1e-12)


def test_a_half_is_scored_like_the_number_it_is():
    logits = torch.tensor([[1.0, 1.001, 0.0]])
    assert score(logits.bfloat16(), torch.tensor([1])).correct1 == 0  # the two are one number there
    assert score(logits, torch.tensor([1])).correct1 == 1
