"""Batches: every image once per epoch, and the same batch in every process and after any random numbers."""

from dataclasses import replace

import pytest
import torch
from networks import load

from studies.config import Config
from studies.data.views import Plan, TrainingViews, batches, generator, number, order

PLAN = Plan(n=50, batch=12, accumulate=1, seed=3)


def pieces(plan: Plan, start: int, stop: int, rank: int = 0, world: int = 1) -> list[list[tuple[int, int]]]:
    return list(plan.pieces(start, stop, rank, world))


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_is_a_permutation_less_what_is_left_over(epoch):
    steps = pieces(PLAN, 4 * epoch, 4 * epoch + 4)
    shown = [image for step in steps for _, image in step]
    assert [len(step) for step in steps] == [12] * 4
    assert {e for step in steps for e, _ in step} == {epoch}
    assert shown == order(3, epoch, 50)[:48].tolist()
    assert sorted(order(3, epoch, 50).tolist()) == list(range(50))


def test_order_changes_with_epoch_and_seed():
    orders = [tuple(order(seed, epoch, 50).tolist()) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_all_processes_together_see_the_batch(world, accumulate):
    plan = Plan(n=150, batch=36, accumulate=accumulate, seed=3)
    whole = [sorted(step) for step in pieces(replace(plan, accumulate=1), 0, 9)]
    parts = [pieces(plan, 0, 9, rank, world) for rank in range(world)]
    assert {len(piece) for part in parts for piece in part} == {36 // world // accumulate}
    for step in range(9):
        of_step = [piece for part in parts for piece in part[step * accumulate : (step + 1) * accumulate]]
        assert sorted(key for piece in of_step for key in piece) == whole[step]


@pytest.mark.parametrize(
    ("remainder", "steps", "last", "seen"), [("drop", 5004, 256, 1_281_024), ("keep", 5005, 144, 1_281_168)]
)
def test_an_epoch_of_imagenet_on_eight_gpus(remainder, steps, last, seen):
    """The released code pads 1,281,167 images to 160,146 per GPU, and makes 5,005 steps, the last one of 18 per GPU."""
    plan = Plan(n=1_281_167, batch=256, accumulate=1, seed=0, remainder=remainder)
    assert (plan.steps, plan.seen(steps, 8), plan.fewest(8)) == (steps, seen, last // 8)
    assert plan.seen(steps + 1, 8) == seen + 256


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 2), (1, 4), (4, 3)])
def test_the_remainder_is_kept_in_equal_shares(world, accumulate):
    plan = Plan(n=50, batch=12, accumulate=accumulate, seed=3, remainder="keep")
    parts = [pieces(plan, 0, 2 * plan.steps, rank, world) for rank in range(world)]
    assert len({tuple(map(len, part)) for part in parts}) == 1
    repeated = -50 % (world * accumulate)
    for epoch in range(2):
        shown = [image for part in parts for piece in part for e, image in piece if e == epoch]
        assert sorted(shown) == sorted([*range(50), *order(3, epoch, 50)[:repeated].tolist()])
    assert plan.seen(2 * plan.steps, world) == 2 * (50 + repeated)
    assert plan.fewest(world) == len(parts[0][-1])


@pytest.mark.parametrize("start", range(10))
def test_going_on_at_a_step_gives_what_would_have_come(start):
    assert pieces(PLAN, start, 10) == pieces(PLAN, 0, 10)[start:]


def test_global_random_numbers_do_not_matter():
    before = pieces(PLAN, 0, 9)
    state = torch.get_rng_state()
    torch.manual_seed(11)
    torch.rand(3)
    assert pieces(PLAN, 0, 9) == before
    torch.set_rng_state(state)
    assert pieces(PLAN, 0, 9) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_keys_do_not_run_into_each_other():
    assert len({number(1, 23), number(12, 3), number(123), number(1, 2, 3), number(3, 2, 1)}) == 5
    assert generator(1, 2).initial_seed() == generator(1, 2).initial_seed()


def test_views_depend_on_seed_epoch_and_image_alone():
    dataset = load(Config(data="few"))
    views = TrainingViews(dataset, dataset.train, seed=0)
    first = [views[0, image][0] for image in range(20)]
    torch.rand(5)
    again = [views[0, image][0] for image in reversed(range(20))][::-1]
    assert all(map(torch.equal, first, again))
    for others in (TrainingViews(dataset, dataset.train, seed=1), views):
        epoch = 0 if others is not views else 1
        assert not all(torch.equal(one, others[epoch, image][0]) for image, one in enumerate(first))


@pytest.mark.parametrize("workers", [1, 2])
def test_views_do_not_depend_on_who_loads_them(workers):
    dataset = load(Config(data="few"))
    views = TrainingViews(dataset, dataset.train, seed=0)
    plan = Plan(n=80, batch=16, accumulate=2, seed=0)
    alone = list(batches(views, plan.pieces(2, 7, 0, 1), 0, pinned=False))
    together = list(batches(views, plan.pieces(2, 7, 0, 1), workers, pinned=False))
    assert len(alone) == len(together) == 10
    for (pixels, labels), (others, other_labels) in zip(alone, together, strict=True):
        assert torch.equal(pixels, others)
        assert torch.equal(labels, other_labels)
