"""Training steps and the counts of an evaluation, compared with the formulas."""

import io
import math
from dataclasses import replace

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import saprof
from saprof.operators import RELATIONS
from saprof.records.environment import tf32
from studies.config import RECIPES, Config, load
from studies.data.views import Plan, TrainingViews
from studies.failures import NonFinite, Preempted
from studies.training.classification import evaluate, loss_function, network
from studies.training.distributed import World
from studies.training.engine import (
    Hooks,
    State,
    decayed,
    learning_rate,
    plan,
    set_precision,
    train_until,
)
from studies.training.metrics import Score

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
PLAIN = Config(model="networks:plain", data="few", batch=16, epochs=4)
SMALL_SAN = {"channels": (16, 32), "footprints": (3, 3), "backend": "unfold"}


@pytest.fixture(scope="module")
def few():
    return networks.load(PLAIN)


def begin(config: Config, dataset, world: World = ALONE) -> State:
    return State(config, network(config, dataset), world)


def trained(config: Config, dataset, steps: int) -> State:
    state = begin(config, dataset)
    train_until(steps, state, dataset, dataset.train, Hooks())
    return state


def weights(state: State) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in state.classifier.parameters()])


# the schedule


def test_the_learning_rate_by_epoch_is_a_cosine_in_steps():
    config = Config(lr=0.4, epochs=10)
    rates = [learning_rate(config, step, 7) for step in range(70)]
    assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * (step // 7) / 10)) for step in range(70)], abs=1e-15)
    assert (rates[0], rates[35]) == (0.4, pytest.approx(0.2))


def test_the_learning_rate_by_step_is_a_cosine():
    config = Config(lr=0.4, epochs=10, lr_every="step")
    rates = [learning_rate(config, step, 7) for step in range(70)]
    assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 70)) for step in range(70)], abs=1e-15)
    assert learning_rate(config, 70, 7) == 0


def test_the_learning_rate_warms_up_in_a_line():
    config = Config(lr=0.4, epochs=10, lr_every="step", warmup_epochs=2)
    rates = [learning_rate(config, step, 7) for step in range(70)]
    assert rates[:14] == pytest.approx([0.4 * (step + 1) / 14 for step in range(14)])
    assert rates[14:] == pytest.approx([0.2 * (1 + math.cos(math.pi * (step - 14) / 56)) for step in range(14, 70)])


@pytest.mark.parametrize("warmup", [0.01, 0.1, 0.5, 1.3, 9.9, 10, 20])
@pytest.mark.parametrize("every", ["epoch", "step"])
def test_the_learning_rate_is_never_above_the_one_asked_for(warmup, every):
    config = Config(lr=0.4, epochs=10, lr_every=every, warmup_epochs=warmup)
    rates = [learning_rate(config, step, 24) for step in range(240)]
    assert 0 < max(rates) <= 0.4
    assert min(rates) >= 0
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


# the loss


def smoothed(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The loss of the released code: 1 - smoothing for the label, smoothing / (K - 1) for each other class."""
    log_p = logits.log_softmax(1)
    classes = logits.shape[1]
    share = torch.full_like(log_p, smoothing / (classes - 1))
    share[torch.arange(len(labels)), labels] = 1 - smoothing
    return -(share * log_p).sum(1).mean()


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_label_smoothing_by_both_rules(classes):
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(6, classes, generator=draws, dtype=torch.float64)
    labels = torch.randint(classes, (6,), generator=draws)
    others = loss_function(Config(label_smoothing=0.1, smoothing_over="others"), classes)(logits, labels)
    assert others.item() == pytest.approx(smoothed(logits, labels, 0.1).item(), rel=1e-14)

    log_p = logits.log_softmax(1)
    own = log_p[torch.arange(6), labels]
    over_all = loss_function(Config(label_smoothing=0.1, smoothing_over="all"), classes)(logits, labels)
    assert over_all.item() == pytest.approx((-0.9 * own - 0.1 * log_p.mean(1)).mean().item(), rel=1e-14)
    assert abs(over_all - others) > 1e-9

    more = Config(label_smoothing=0.1 * classes / (classes - 1), smoothing_over="all")
    assert loss_function(more, classes)(logits, labels).item() == pytest.approx(others.item(), rel=1e-14)
    none = loss_function(Config(label_smoothing=0.0), classes)(logits, labels)
    assert none.item() == pytest.approx(-own.mean().item(), rel=1e-14)


# steps


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp64", 1e-12)])
@pytest.mark.parametrize("model", ["networks:plain", "networks:normed"])
def test_steps_are_those_of_the_released_recipe(few, precision, tolerance, model):
    """SGD 0.1, momentum 0.9, weight decay 1e-4 on all parameters, smoothing 0.1 over the others, a cosine per epoch."""
    config = replace(PLAIN, model=model, precision=precision, batch=40)  # two steps an epoch
    state, twin = begin(config, few), network(config, few)
    parameters = list(twin.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    views = TrainingViews(few, few.train, config.seed)
    keys = Plan(80, 40, 1, config.seed).pieces(0, 8, 0, 1)
    twin.train()
    for step, batch in zip(range(5), keys, strict=False):
        train_until(step + 1, state, few, few.train, Hooks())
        pixels = torch.stack([views[key][0] for key in batch])
        labels = torch.stack([views[key][1] for key in batch])
        gradients = torch.autograd.grad(smoothed(twin(pixels), labels, 0.1), parameters)
        rate = 0.05 * (1 + math.cos(math.pi * (step // 2) / 4))
        with torch.no_grad():
            for i, (p, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                velocity[i] = 0.9 * velocity[i] + gradient + 1e-4 * p
                p -= rate * velocity[i]
        for p, q in zip(state.classifier.parameters(), parameters, strict=True):
            assert (p - q).abs().max() <= tolerance * q.abs().max()


def test_the_schedule_of_sasa_is_that_of_torch():
    """Linear warm-up over 10 of 130 epochs, then a cosine to 0: torch's schedulers in sequence."""
    config, steps = load(RECIPES / "sasa_imagenet.yaml"), 5
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    warm, total = 10 * steps, 130 * steps
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm, 1.0, warm - 1)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warm)
    expected = []
    for step in range(total):
        if step == warm:
            optimizer.param_groups[0]["lr"] = config.lr
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        (rising if step < warm else falling).step()
    assert [learning_rate(config, step, steps) for step in range(total)] == pytest.approx(expected, abs=1e-12)
    assert max(expected) == config.lr == 1.6 == 0.1 * config.batch / 256


def test_steps_are_those_of_the_recipe_of_sasa(few):
    """Nesterov's SGD of torch with one group for decayed weights, batch norms of momentum 1e-4, and a moving average of
    parameters only; a step in pieces, for which batch norms see a piece at a time."""
    recipe = load(RECIPES / "sasa_imagenet.yaml")
    small = {"data": "few", "batch": 16, "accumulate": 2, "epochs": 20, "precision": "fp64", "workers": 0}
    config = replace(recipe, model="networks:mapped", **small)
    state, twin = begin(config, few), network(config, few)
    weighted = [p for name, p in twin.named_parameters() if name.endswith("weight") and p.dim() > 1]
    others = [p for p in twin.parameters() if all(p is not one for one in weighted)]
    assert len(weighted) == 2
    assert len(others) == 4
    groups = [{"params": weighted, "weight_decay": 1e-4}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=1.6, momentum=0.9, nesterov=True)
    views, average = TrainingViews(few, few.train, config.seed), None
    keys = Plan(80, 16, 2, config.seed).pieces(0, 100, 0, 1)
    for step in range(6):
        train_until(step + 1, state, few, few.train, Hooks())
        optimizer.zero_grad()
        for _ in range(2):
            batch = next(keys)
            pixels = torch.stack([views[key][0] for key in batch])
            labels = torch.tensor([int(views[key][1]) for key in batch])
            (F.cross_entropy(twin.train()(pixels), labels) / 2).backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, 5)
        optimizer.step()
        now = [p.detach().clone() for p in twin.parameters()]
        average = now if average is None else [0.9999 * a + 1e-4 * p for a, p in zip(average, now, strict=True)]
        for p, q in zip(state.classifier.parameters(), twin.parameters(), strict=True):
            assert (p - q).abs().max() <= 1e-12 * q.abs().max()
        for p, q in zip(state.judged.parameters(), average, strict=True):
            assert (p - q).abs().max() <= 1e-12 * q.abs().max()
        for p, q in zip(state.judged.buffers(), twin.buffers(), strict=True):
            assert torch.allclose(p, q, rtol=1e-12, atol=0)
    norm = next(module for module in twin.modules() if isinstance(module, nn.BatchNorm2d))
    assert 0 < (norm.running_var - 1).abs().max() < 12 * 1e-4 * 50


def test_weights_that_decay_are_neither_biases_nor_of_norms():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm([4, 6, 6]), nn.GroupNorm(2, 4), nn.MultiheadAttention(4, 2)
    )
    model.append(model[0])  # a module that is used twice
    weights, others = decayed(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in weights] == ["0.weight", "4.in_proj_weight", "4.out_proj.weight"]
    assert len(weights) + len(others) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["san_mini_pairwise", "san_mini_patchwise", "resnet_mini", "sasa_mini"])
def test_every_batch_norm_gets_the_momentum(few, name):
    config = replace(PLAIN, model=name, norm_momentum=1e-3)
    norms = [module for module in network(config, few).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert {norm.momentum for norm in norms} == {1e-3}


def test_a_momentum_without_batch_norms_is_refused(few):
    with pytest.raises(ValueError, match=r"norm_momentum is 0\.001, but Sequential has no batch norms; omit"):
        network(replace(PLAIN, norm_momentum=1e-3), few)


def test_pieces_of_a_step_add_up(few):
    config = replace(PLAIN, precision="fp64")
    whole = weights(trained(config, few, 7))
    for accumulate in (2, 4, 16):
        assert (weights(trained(replace(config, accumulate=accumulate), few, 7)) - whole).abs().max() < 1e-12
    normed = replace(config, model="networks:normed")
    apart = weights(trained(replace(normed, accumulate=2), few, 7)) - weights(trained(normed, few, 7))
    assert apart.abs().max() > 1e-4  # batch norm sees a piece, not the step


def test_what_is_learned_in_pieces_is_counted_whole(few):
    one, two = (trained(replace(PLAIN, precision="fp64", accumulate=a), few, 5).progress for a in (1, 4))
    assert (one.seen, one.correct1) == (two.seen, two.correct1)
    assert one.seen == 80
    assert one.loss_sum == pytest.approx(two.loss_sum, rel=1e-12)


def test_training_in_parts_is_training(few):
    """Saved after each step, and resumed by a new State."""
    config = replace(PLAIN, model="networks:dropping", ema=0.75)
    whole, parts = trained(config, few, 9), begin(config, few)
    for step in range(1, 10):
        saved = json_and_tensors(parts.saved())
        parts = begin(config, few)
        parts.restore(saved)
        torch.rand(step)
        train_until(step, parts, few, few.train, Hooks())
    assert torch.equal(weights(parts), weights(whole))
    for one, other in zip(parts.judged.parameters(), whole.judged.parameters(), strict=True):
        assert torch.equal(one, other)
    sums = [(p.loss_sum, p.correct1, p.seen) for p in (parts.progress, whole.progress)]
    assert sums[0] == sums[1]
    assert parts.progress.seen == whole.progress.seen


def json_and_tensors(state):
    """The state as it is read from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_clipping_limits_the_step(few):
    config = replace(PLAIN, momentum=0.0, weight_decay=0.0, precision="fp64")
    start = weights(begin(config, few))
    free, held = (weights(trained(replace(config, clip_norm=c), few, 1)) - start for c in (None, 1e-3))
    assert held.norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert torch.allclose(held / held.norm(), free / free.norm())
    scaled = weights(trained(replace(config, clip_norm=1e-3, precision="fp16"), few, 1)) - start
    assert scaled.norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-2), "gradients are clipped without their scale"


def test_the_scale_of_a_loss_is_restored(few):
    state, again = (begin(replace(PLAIN, precision="fp16"), few) for _ in range(2))
    train_until(1, state, few, few.train, Hooks())
    state.scaler.update(512.0)
    again.restore(json_and_tensors(state.saved()))
    assert again.scaler.get_scale() == 512


def test_the_average_is_of_the_weights_so_far(few):
    config = replace(PLAIN, model="networks:normed", ema=0.75, precision="fp64")
    state, expected = begin(config, few), None
    for step in range(1, 6):
        train_until(step, state, few, few.train, Hooks())
        now = [v.clone() for v in state.classifier.state_dict().values()]
        expected = now if expected is None else [0.75 * e + 0.25 * n for e, n in zip(expected, now, strict=True)]
    for value, mean in zip(state.judged.state_dict().values(), expected, strict=True):
        assert (value - mean).abs().max() < (1e-12 if value.is_floating_point() else 5)
    assert state.judged is not state.classifier


def test_nesterov_differs(few):
    assert not torch.equal(weights(trained(replace(PLAIN, nesterov=True), few, 2)), weights(trained(PLAIN, few, 2)))


@pytest.mark.parametrize(
    ("batch", "accumulate", "size", "sentence"),
    [
        (16, 3, 1, "batch is 16; expected a multiple of 3, 1 processes times 3 pieces"),
        (16, 2, 3, "batch is 16; expected a multiple of 6, 3 processes times 2 pieces"),
        (96, 1, 1, "batch is 96; expected at most the 80 images to train on"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(few, batch, accumulate, size, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan(Config(batch=batch, accumulate=accumulate), few.train, World(0, size, CPU))


# what is not finite


@pytest.mark.parametrize("at", [1, 4])
def test_a_loss_that_is_no_number_ends_training_before_the_weights_change(few, at):
    config = replace(PLAIN, model="networks:Breaking", options={"at": at})
    state = begin(config, few)
    with pytest.raises(NonFinite, match="the loss is not finite"):
        train_until(9, state, few, few.train, Hooks())
    assert state.step == at - 1
    assert weights(state).isfinite().all()
    with pytest.raises(NonFinite, match=r"running_mean and 1 more weights are not finite at step"):
        state.saved()  # the batch norm has seen the image


def test_a_gradient_that_is_no_number_is_never_saved(few):
    state = trained(replace(PLAIN, model="networks:Breaking", options={"at": 5, "gradient": True}), few, 5)
    with pytest.raises(NonFinite, match=r"weights are not finite at step 5"):
        state.saved()


def test_a_huge_learning_rate_ends_training(few):
    with pytest.raises(NonFinite):
        trained(replace(PLAIN, lr=1e38), few, 9)


def test_a_step_that_was_begun_is_ended(few):
    state, asked = begin(PLAIN, few), iter([False, False, True])
    with pytest.raises(Preempted):
        train_until(9, state, few, few.train, Hooks(stop=lambda: next(asked)))
    assert state.step == 3
    assert torch.equal(weights(state), weights(trained(PLAIN, few, 3)))


# evaluation


@pytest.fixture(scope="module", params=["san_mini_patchwise", "networks:normed"])
def judged(request, few):
    san = request.param.startswith("san")
    options = SMALL_SAN | {"channels": (8, 8)} if san else {}
    state = trained(replace(PLAIN, model=request.param, options=options, lr=0.1 if san else 0.01), few, 5 if san else 3)
    return state.classifier, evaluate(state.classifier, few.test, few)


def counts(score: Score) -> tuple[int, ...]:
    return score.n, score.correct1, score.correct5, score.nonfinite


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (7, 0), (7, 2), (30, 0), (64, 2), (1000, 0)])
def test_counts_do_not_depend_on_batches_and_workers(few, judged, batch, workers):
    model, expected = judged
    assert 0 < expected.correct1 < expected.n == 30
    found = evaluate(model, few.test, few, batch=batch, workers=workers)
    assert counts(found) == counts(expected)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


class Part(World):
    """One of several processes, whose sums are only its own."""

    def sum(self, numbers):
        return list(numbers)


def test_random_layers_have_another_seed_in_every_process_and_step(few, monkeypatch):
    states = [begin(PLAIN, few, World(rank, 1, CPU)) for rank in range(2)]
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    for state in states:
        train_until(3, state, few, few.train, Hooks())
    assert len(set(seeds)) == len(seeds) == 6


def test_dropout_masks_differ_between_processes_and_steps(few):
    masks = []
    for rank in range(2):
        state = begin(replace(PLAIN, model="networks:dropping"), few, World(rank, 1, CPU))
        state.classifier.model[1].register_forward_hook(lambda _, x, y: masks.append(y[:15] == 0))
        train_until(3, state, few, few.train, Hooks())
    assert len(masks) == 6
    assert all((one != other).any() for i, one in enumerate(masks) for other in masks[:i])
    assert all(mask.any() for mask in masks)


def test_processes_begin_with_the_same_weights(few):
    assert torch.equal(*(weights(begin(PLAIN, few, World(rank, 1, CPU))) for rank in range(2)))


def test_the_remainder_of_an_epoch_is_trained_on(few):
    config = replace(PLAIN, batch=24, remainder="keep", precision="fp64")
    state = trained(config, few, 4)
    assert (state.progress.seen, plan(config, few.train, ALONE).steps) == (80, 4)
    whole, pieces = (weights(trained(replace(config, accumulate=a), few, 5)) for a in (1, 4))
    assert (whole - pieces).abs().max() < 1e-12
    dropped = trained(replace(config, remainder="drop"), few, 3)
    assert torch.equal(weights(dropped), weights(trained(replace(config, epochs=4), few, 3)))


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_as_the_config_says(allowed, monkeypatch):
    conv, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = conv.allow_tf32, products.allow_tf32
    try:
        set_precision(Config(tf32=not allowed))
        set_precision(Config(tf32=allowed))
        assert (conv.allow_tf32, products.allow_tf32) == (allowed, allowed)
        assert tf32("cuda") == {"convolutions": allowed, "products": allowed}
        assert tf32("cpu") is None
    finally:
        conv.allow_tf32, products.allow_tf32 = before


@pytest.mark.parametrize("size", [1, 2, 3, 7, 31])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_counts_of_all_processes_add_up(few, judged, size, batch):
    model, expected = judged
    parts = [evaluate(model, few.test, few, batch=batch, world=Part(rank, size, CPU)) for rank in range(size)]
    assert counts(sum(parts, Score())) == counts(expected)


def test_an_evaluation_changes_nothing(few):
    state = begin(replace(PLAIN, model="networks:normed"), few)
    for training in (True, False):
        state.classifier.train(training)
        before = {name: value.clone() for name, value in state.classifier.state_dict().items()}
        evaluate(state.classifier, few.test, few)
        assert state.classifier.training is training
        assert all(torch.equal(before[name], value) for name, value in state.classifier.state_dict().items())


def test_an_evaluation_can_be_stopped(few, judged):
    asked = iter([False, True])
    model = judged[0].train()
    with pytest.raises(Preempted):
        evaluate(model, few.test, few, batch=10, stop=lambda: next(asked))
    assert model.training


def test_each_image_is_judged_once_with_its_number(few, judged):
    shown = []

    def change(pixels, labels, numbers):
        assert pixels.dtype == torch.float32
        for image, label, number in zip(pixels, labels, numbers.tolist(), strict=True):
            assert torch.equal(image, few.test.read(number).float())
            assert label == few.test.labels[number]
        shown.extend(numbers.tolist())
        return torch.zeros_like(pixels)

    dark = evaluate(judged[0], few.test, few, batch=7, change=change)
    assert shown == list(range(30))
    assert dark.correct1 == 3  # black is of one class


# networks


def test_the_classifier_normalises_and_repeats_gray(few):
    model = network(replace(PLAIN, precision="fp64"), few)
    pixels = few.test.read(slice(0, 3))
    x = (pixels.double() / 255 - 0.5) / 0.3
    expected = model.model(torch.cat([x, x, x], 1))
    assert torch.allclose(model(pixels), expected, rtol=0, atol=1e-14)
    assert torch.equal(model(pixels), model(pixels.float()))


def test_a_seed_gives_the_same_network(few):
    one, same, other = (network(replace(PLAIN, seed=seed), few).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("san_huge", {}, "unknown model 'san_huge'; expected .* names in saprof.list_models"),
        ("san_mini_pairwise", {"widths": 1}, "unknown option of SAN 'widths'; expected .*'channels'"),
        ("san_mini_pairwise", {"relation": "sum"}, "unknown .*'sum'; expected .*'subtraction'|relation.*'sum'"),
        ("san_mini_pairwise", {"num_classes": 7}, "san_mini_pairwise has 7 classes; few has 10"),
        ("networks:none", {}, "model 'networks:none' cannot be imported: .*'none'; expected package.module:function"),
        ("nowhere:plain", {}, "model 'nowhere:plain' cannot be imported: No module named 'nowhere'"),
    ],
)
def test_a_network_that_cannot_be_is_refused(few, model, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        network(replace(PLAIN, model=model, options=options), few)


@pytest.mark.parametrize(
    ("family", "relation"),
    [(family, relation) for family in ("pairwise", "patchwise") for relation in RELATIONS[family]],
)
def test_every_relation_learns_a_batch_by_heart(few, family, relation):
    images = replace(few.train, pixels=few.train.pixels[:32], labels=few.train.labels[:32])
    dataset = replace(few, train=images, augment=lambda image, _: image)
    config = Config(
        model=f"san_mini_{family}",
        options={"relation": relation} | SMALL_SAN,
        data="few",
        epochs=60,
        lr=0.2,
        label_smoothing=0.0,
        lr_every="step",
        warmup_epochs=4,
    )
    state = begin(config, dataset)
    train_until(1, state, dataset, images, Hooks())
    assert state.progress.loss_sum / 32 == pytest.approx(math.log(10), abs=0.5)
    right = 0
    while right < 32 and state.step < config.epochs:
        before = state.progress.correct1
        train_until(state.step + 1, state, dataset, images, Hooks())
        right = state.progress.correct1 - before
    assert right == 32


def test_a_network_of_ours_is_found_by_name(few):
    assert isinstance(network(replace(PLAIN, model="resnet_mini"), few).model, saprof.ResNet)
    assert isinstance(network(PLAIN, few).model, nn.Module)


def test_smoothing_is_of_the_training_loss_alone(few):
    state = trained(PLAIN, few, 5)
    logits = state.classifier.eval()(few.test.pixels)
    expected = F.cross_entropy(logits.double(), few.test.labels).item()
    assert evaluate(state.classifier, few.test, few).loss == pytest.approx(expected, rel=1e-6)
