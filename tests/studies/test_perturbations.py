"""Rotated images, and targeted attacks compared with foolbox."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import saprof
from studies.data import Dataset, Pixels
from studies.judging.perturbations import (
    ATTACKS,
    LADDER,
    MANIPULATIONS,
    STARTS,
    TARGETS,
    Attack,
    Batch,
    aim,
    attacked,
    perturb,
)
from studies.training.classification import Classifier, evaluate

CLASSES = 10


@pytest.fixture(scope="module")
def dataset():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (23, 1, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[:3] = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None]
    images = Pixels(pixels, torch.randint(CLASSES, (23,), generator=generator))
    return Dataset(
        name="noise",
        classes=tuple("abcdefghij"),
        train=images,
        test=images,
        size=(1, 8, 8),
        mean=(0.4,),
        std=(0.3,),
        augment=lambda image, _: image,
        view=lambda image: image,
    )


@pytest.fixture(scope="module")
def model(dataset):
    torch.manual_seed(0)
    network = saprof.create_model("resnet_mini").double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that evaluation and training mode differ
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return Classifier(network, dataset).eval()


@pytest.fixture
def batch(dataset):
    return Batch(dataset.test.pixels.double(), dataset.test.labels, torch.arange(23))


def corner(row, column):
    """An image with one bright corner: two channels, two images, 3 × 3."""
    pixels = torch.zeros(2, 2, 3, 3)
    pixels[:, :, row, column] = 1
    return pixels


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("none", (0, 0)),
        ("clockwise_90", (0, -1)),
        ("clockwise_180", (-1, -1)),
        ("clockwise_270", (-1, 0)),
        ("upside_down", (-1, 0)),
    ],
)
def test_the_upper_left_corner_goes_where_it_should(name, where):
    torch.testing.assert_close(MANIPULATIONS[name](corner(0, 0)), corner(*where))


def test_upside_down_leaves_left_and_right():
    torch.testing.assert_close(MANIPULATIONS["upside_down"](corner(0, 2)), corner(2, 2))
    torch.testing.assert_close(MANIPULATIONS["clockwise_270"](corner(0, 2)), corner(0, 0))


def test_turns_add_up():
    x = torch.randn(2, 3, 4, 5)
    turn = MANIPULATIONS["clockwise_90"]
    assert torch.equal(turn(turn(x)), MANIPULATIONS["clockwise_180"](x))
    assert torch.equal(turn(turn(turn(x))), MANIPULATIONS["clockwise_270"](x))
    assert torch.equal(turn(turn(turn(turn(x)))), x)
    assert torch.equal(MANIPULATIONS["clockwise_180"](x), x.flip(2).flip(3))
    assert torch.equal(MANIPULATIONS["upside_down"](MANIPULATIONS["upside_down"](x)), x)


@pytest.mark.parametrize("start", STARTS)
def test_radius_0_is_the_clean_image(model, dataset, batch, start):
    attack = Attack(0, 2, 4, start=start)
    pixels = perturb(attack, model, batch, aim(attack, model, batch, CLASSES))
    assert torch.equal(pixels, batch.pixels)
    clean, outcome = evaluate(model, dataset.test, dataset), attacked(model, dataset.test, dataset, attack)
    assert outcome.judged == clean


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("attack", [Attack(8, 4, 2), Attack(8, 3, 4), Attack(300, 100, 3)], ids=lambda a: a.name)
def test_the_ball_and_the_range_are_respected(model, batch, attack, start):
    pixels = perturb(replace(attack, start=start), model, batch, (batch.labels + 1) % CLASSES)
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    reach = (pixels - batch.pixels).abs().amax((1, 2, 3))
    assert (reach <= attack.epsilon).all()
    assert reach.max() >= min(attack.epsilon, 255) / 2


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_the_loss_of_the_target_falls(model, batch, attack):
    targets = aim(attack, model, batch, CLASSES)
    before = F.cross_entropy(model(batch.pixels), targets)
    after = F.cross_entropy(model(perturb(attack, model, batch, targets)), targets)
    assert after < before


def test_one_step_by_hand():
    """A linear network with a known gradient: pixels with a positive weight for the target rise, the others fall."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    model[1].weight.data = torch.tensor([[1.0, -1.0, 0.0, 2.0], [0.0, 1.0, 0.0, -1.0]]) / 1000
    pixels = torch.tensor([100.0, 1.0, 100.0, 254.0]).view(1, 1, 2, 2)
    batch = Batch(pixels, torch.tensor([1]), torch.tensor([0]))
    found = perturb(Attack(8, 3, 1), model, batch, torch.tensor([0]))
    assert found.flatten().tolist() == [103.0, 0.0, 100.0, 255.0]
    found = perturb(Attack(8, 3, 5), model, batch, torch.tensor([0]))
    assert found.flatten().tolist() == [108.0, 0.0, 100.0, 255.0]


def foolbox():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports scipy by names that are going
        try:
            import foolbox
        except ImportError:
            pytest.skip("needs foolbox")
    return foolbox


@pytest.mark.parametrize("attack", [*ATTACKS[:2], LADDER[1]], ids=lambda a: a.name)
@pytest.mark.parametrize("target", TARGETS)
def test_foolbox_finds_the_same(model, batch, attack, target):
    theirs = foolbox()
    targets = aim(replace(attack, target=target), model, batch, CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = theirs.PyTorchModel(model, bounds=(0, 255), device="cpu")
        pgd = theirs.attacks.LinfPGD(abs_stepsize=attack.step, steps=attack.steps, random_start=False)
        criterion = theirs.criteria.TargetedMisclassification(targets)
        _, expected, success = pgd(wrapped, batch.pixels, criterion, epsilons=attack.epsilon)
    found = perturb(attack, model, batch, targets)
    assert not torch.equal(found, batch.pixels)
    assert torch.equal(found, expected)
    assert torch.equal(model(found).argmax(1) == targets, success)


def test_outcome_counts_targets_and_labels(model, dataset, batch):
    attack = Attack(48, 12, 4, seed=1)
    outcome = attacked(model, dataset.test, dataset, attack)
    targets = aim(attack, model, batch._replace(pixels=batch.pixels.float()), CLASSES)
    found = model(perturb(attack, model, batch._replace(pixels=batch.pixels.float()), targets)).argmax(1)
    record = outcome.record()
    assert (record["success"], record["correct1"], record["n"]) == (
        int((found == targets).sum()),
        int((found == batch.labels).sum()),
        23,
    )
    assert record["success"] > record["correct1"] > 0
    assert record["success_rate"] == 100 * record["success"] / 23


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("start", STARTS)
def test_batches_do_not_matter(model, dataset, target, start):
    attack = Attack(32, 8, 4, target=target, start=start, seed=3)
    outcomes = [attacked(model, dataset.test, dataset, attack, batch=size) for size in (1, 7, 23, 64)]
    counts = {(o.judged.correct1, o.judged.correct5, o.aimed.correct1, o.judged.n) for o in outcomes}
    assert len(counts) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_wrong_and_of_its_image(model, batch, target):
    attack = Attack(8, 4, 2, target=target)
    targets = aim(attack, model, batch, CLASSES)
    assert (targets != batch.labels).all()
    assert ((targets >= 0) & (targets < CLASSES)).all()
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    torch.rand(3)
    assert torch.equal(aim(attack, model, Batch(*(x[order] for x in batch)), CLASSES), targets[order])


def test_random_targets_are_uniform_over_the_wrong_classes(model):
    labels, numbers = torch.full((3000,), 4), torch.arange(3000)
    batch = Batch(torch.zeros(3000, 1, 1, 1), labels, numbers)
    counts = aim(Attack(8, 4, 2), model, batch, CLASSES).bincount(minlength=CLASSES)
    assert counts[4] == 0
    expected = 3000 / 9
    others = counts[counts > 0].double()
    assert len(others) == 9
    assert ((others - expected) ** 2 / expected).sum() < 26.1  # chi squared, 8 degrees of freedom: 1 in 1000


def test_the_seed_decides_targets_and_starts(model, batch):
    goals = [aim(Attack(8, 4, 2, seed=seed), model, batch, CLASSES) for seed in (0, 0, 1)]
    assert torch.equal(goals[0], goals[1])
    assert not torch.equal(goals[0], goals[2])
    starts = [perturb(Attack(8, 4, 0, start="random", seed=seed), model, batch, goals[0]) for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    free = (batch.pixels >= 8) & (batch.pixels <= 247)
    moved = (starts[0] - batch.pixels)[free]
    assert moved.abs().max() > 7.5
    assert moved.std() == pytest.approx(8 / math.sqrt(3), rel=0.05), "uniform"
    assert abs(moved.mean()) < 4 * 8 / math.sqrt(3 * len(moved))


def test_least_likely_and_next(model, batch):
    goals = aim(Attack(8, 4, 2, target="least_likely"), model, batch, CLASSES)
    logits = model(batch.pixels).scatter(1, batch.labels[:, None], math.inf)
    assert torch.equal(goals, logits.argmin(1))
    assert torch.equal(aim(Attack(8, 4, 2, target="next"), model, batch, CLASSES), (batch.labels + 1) % CLASSES)


class Certain(nn.Module):
    """Gives the label itself the lowest logit."""

    def forward(self, pixels):
        return torch.tensor([[0.0, 3.0, 1.0]]).expand(len(pixels), -1)


def test_the_label_is_no_target_even_if_it_is_the_least_likely():
    batch = Batch(torch.zeros(2, 1, 1, 1), torch.tensor([0, 1]), torch.arange(2))
    assert aim(Attack(8, 4, 2, target="least_likely"), Certain(), batch, 3).tolist() == [2, 0]


@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was(model, dataset, batch, training):
    evaluated = perturb(Attack(32, 8, 4), model, batch, (batch.labels + 1) % CLASSES)
    model.train(training)
    model.model.bn1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    try:
        found = perturb(Attack(32, 8, 4), model, batch, (batch.labels + 1) % CLASSES)
        aim(Attack(8, 4, 2, target="least_likely"), model, batch, CLASSES)
        assert torch.equal(found, evaluated), "the attack is on the network in evaluation mode"
        assert [module.training for module in model.modules()] == modes
        assert all((parameter.grad == 7).all() for parameter in model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not found.requires_grad
        assert not batch.pixels.requires_grad
        assert torch.equal(batch.pixels, dataset.test.pixels.double())
    finally:
        model.eval().zero_grad()


def test_gradients_are_had_where_they_are_off(model, batch):
    targets = (batch.labels + 1) % CLASSES
    expected = perturb(ATTACKS[0], model, batch, targets)
    with torch.no_grad():
        assert torch.equal(perturb(ATTACKS[0], model, batch, targets), expected)


def test_broken_logits_are_neither_success_nor_accuracy(dataset):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(math.nan))

        def forward(self, pixels):
            return (pixels.mean((1, 2, 3)) * self.weight)[:, None].expand(-1, CLASSES)

    outcome = attacked(Broken(), dataset.test, dataset, ATTACKS[0])
    assert (outcome.judged.correct1, outcome.aimed.correct1, outcome.judged.nonfinite) == (0, 0, 23)


def test_one_class_cannot_be_attacked(model, dataset):
    with pytest.raises(ValueError, match="noise has 1 class; an attack needs another one"):
        attacked(model, dataset.test, replace(dataset, classes=("a",)), ATTACKS[0])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"epsilon": -1.0}, "an attack's epsilon is -1.0; expected a number that is not negative"),
        ({"step": math.nan}, "an attack's step is nan"),
        ({"steps": -1}, "an attack's steps is -1"),
        ({"steps": 2.5}, "an attack's steps are 2.5; expected a whole number"),
        ({"target": "all"}, "unknown target of an attack 'all'; expected 'random', 'least_likely' or 'next'"),
        ({"start": "far"}, "unknown start of an attack 'far'; expected 'clean' or 'random'"),
    ],
)
def test_what_is_no_attack_is_refused(wrong, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        Attack(**{"epsilon": 8, "step": 4, "steps": 2} | wrong)


def test_names_tell_attacks_apart():
    attacks = [Attack(8, 4, 2), Attack(8, 2, 4), *(Attack(8, 4, 2, target=t) for t in TARGETS[1:])]
    attacks += [Attack(8, 4, 2, start="random"), Attack(8, 4, 2, seed=1), Attack(8.5, 4, 2)]
    names = [attack.name for attack in attacks]
    assert len(set(names)) == len(names)
    assert names[0] == "pgd_8_4_2"
    assert names[2] == "pgd_8_4_2_least_likely"
