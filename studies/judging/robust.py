"""How a trained network stands what it was not trained for: turned images (SAN Table 9) and attacks (SAN Table 10).

Both change pixels, 0 to 255, before the network normalises them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from saprof.paper import robustness
from saprof.text import unknown
from studies.data import Dataset, Images
from studies.data.views import generator
from studies.training.engine import JUDGED_AT_ONCE, evaluate
from studies.training.metrics import Score, score

MANIPULATIONS: dict[str, Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n c h w"]]] = {
    "none": lambda pixels: pixels,
    "clockwise_90": lambda pixels: pixels.rot90(-1, (2, 3)),
    "clockwise_180": lambda pixels: pixels.rot90(2, (2, 3)),
    "clockwise_270": lambda pixels: pixels.rot90(1, (2, 3)),
    "upside_down": lambda pixels: pixels.flip(2),
}
"""What SAN Table 9 does to images; `upside_down` swaps top and bottom, and leaves left and right where they are."""

TARGETS = ("random", "least_likely", "next")
STARTS = ("clean", "random")


@dataclass(frozen=True)
class Attack:
    """Targeted projected gradient descent in the L∞ ball, on pixels from 0 to 255 (SAN Sec. 5.4).

    The paper says neither how the target is chosen nor where the attack starts. Here the default is what its n · ρ = ε
    suggests, a clean start, and a wrong class drawn for each image.
    """

    epsilon: float
    """Radius of the ball: how far a pixel may move."""
    step: float
    """How far it moves at a time; ρ in the paper."""
    steps: int
    target: str = "random"
    """`random`, one of the wrong classes; `least_likely`, of those the one the network holds least likely of the clean
    image; or `next`, the class after the label."""
    start: str = "clean"
    """At the `clean` image, or at a `random` point of the ball."""
    seed: int = 0
    """With an image's number, decides all that is drawn for it."""

    def __post_init__(self) -> None:
        for name in ("epsilon", "step", "steps"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"an attack's {name} is {value}; expected a number that is not negative")
        if not isinstance(self.steps, int):
            raise ValueError(f"an attack's steps are {self.steps}; expected a whole number")
        for name, valid in (("target", TARGETS), ("start", STARTS)):
            if getattr(self, name) not in valid:
                raise ValueError(unknown(f"{name} of an attack", getattr(self, name), valid))

    @property
    def name(self) -> str:
        """`pgd_` ε `_` ρ `_` n, and then what is not the default: `pgd_8_4_2`."""
        choices = [self.target, f"{self.start}_start", f"seed{self.seed}"]
        usual = [Attack.target, f"{Attack.start}_start", f"seed{Attack.seed}"]
        other = [choice for choice, default in zip(choices, usual, strict=True) if choice != default]
        return "_".join([f"pgd_{self.epsilon:g}_{self.step:g}_{self.steps}", *other])

    def facts(self) -> dict[str, Any]:
        return asdict(self)


LADDER = tuple(Attack(epsilon, epsilon / 4, 4) for epsilon in (16.0, 32.0, 48.0))
"""Wider balls, for images of few gray levels: four steps that together just reach the border, as in the paper's."""

ATTACKS = (*(Attack(**facts) for facts in robustness.attacks().values()), *LADDER)
"""The two of SAN Table 10, and the ladder."""


class Batch(NamedTuple):
    pixels: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    numbers: Int[Tensor, " n"]
    """Of the images, in what is judged."""


@dataclass(frozen=True)
class Outcome:
    """Of one attack on all images."""

    judged: Score
    """Against the labels."""
    aimed: Score
    """Against the targets; an attack succeeds where the network predicts the target."""

    def record(self) -> dict[str, Any]:
        """Counts and what follows from them, as plain JSON."""
        return self.judged.record() | {"success": self.aimed.correct1, "success_rate": self.aimed.top1}


def attacked(
    model: nn.Module,
    images: Images,
    dataset: Dataset,
    attack: Attack,
    *,
    batch: int = JUDGED_AT_ONCE,
    workers: int = 0,
    seen: Callable[[int], None] = lambda n: None,
) -> Outcome:
    """Attack every image and judge what comes of it; ValueError if there is no wrong class to aim at."""
    if len(dataset.classes) < 2:
        raise ValueError(f"{dataset.name} has {len(dataset.classes)} class; an attack needs another one to aim at")
    aimed = Score()

    def change(*given: Tensor) -> Tensor:
        nonlocal aimed
        with _evaluating(model):
            here = Batch(*given)
            goals = aim(attack, model, here, len(dataset.classes))
            pixels = perturb(attack, model, here, goals)
            with torch.no_grad():
                aimed += score(model(pixels), goals)
        return pixels

    judged = evaluate(model, images, dataset, batch=batch, workers=workers, change=change, seen=seen)
    return Outcome(judged, aimed)


def aim(attack: Attack, model: nn.Module, batch: Batch, classes: int) -> Int[Tensor, " n"]:
    """A wrong class for every image, which depends on the image and not on the batch it is in."""
    if attack.target == "least_likely":
        with _evaluating(model), torch.no_grad():
            logits = model(batch.pixels)
        return logits.scatter(1, batch.labels[:, None], math.inf).argmin(1)
    away = torch.ones_like(batch.labels)
    if attack.target == "random":
        draws = [torch.randint(1, classes, (), generator=_of(attack, number, 0)) for number in batch.numbers.tolist()]
        away = torch.stack(draws).to(batch.labels)
    return (batch.labels + away) % classes


def perturb(attack: Attack, model: nn.Module, batch: Batch, targets: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """x ← clip(x − ρ · sign ∇ₓ CE(model(x), target)) into the ball and 0 to 255, n times.

    The network is in evaluation mode, and the gradients are of nothing but the pixels.
    """
    low = (batch.pixels - attack.epsilon).clamp(min=0)
    high = (batch.pixels + attack.epsilon).clamp(max=255)
    pixels = batch.pixels
    if attack.start == "random":
        pixels = torch.clamp(pixels + attack.epsilon * _noise(attack, batch), low, high)
    with _evaluating(model):
        for _ in range(attack.steps):
            pixels = torch.clamp(pixels - attack.step * _gradient(model, pixels, targets).sign(), low, high)
    return pixels


def _gradient(model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    with torch.enable_grad():
        pixels = pixels.detach().requires_grad_()
        loss = F.cross_entropy(model(pixels), targets, reduction="sum")
        return torch.autograd.grad(loss, pixels)[0]


def _noise(attack: Attack, batch: Batch) -> Tensor:
    """Uniform between −1 and 1."""
    shape = batch.pixels.shape[1:]
    drawn = [torch.rand(shape, generator=_of(attack, number, 1)) for number in batch.numbers.tolist()]
    return 2 * torch.stack(drawn).to(batch.pixels) - 1


def _of(attack: Attack, number: int, what: int) -> torch.Generator:
    return generator(attack.seed, number, what)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and then every module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
