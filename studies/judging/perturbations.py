"""Perturbed images, on which trained networks are judged: rotated images (SAN Table 9) and attacks (SAN Table 10).

Both change the pixels, 0 to 255, before the network normalises them.
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
from studies.training.classification import JUDGED_AT_ONCE, evaluate
from studies.training.metrics import Score, score

MANIPULATIONS: dict[str, Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n c h w"]]] = {
    "none": lambda pixels: pixels,
    "clockwise_90": lambda pixels: pixels.rot90(-1, (2, 3)),
    "clockwise_180": lambda pixels: pixels.rot90(2, (2, 3)),
    "clockwise_270": lambda pixels: pixels.rot90(1, (2, 3)),
    "upside_down": lambda pixels: pixels.flip(2),
}
"""The manipulations of SAN Table 9; `upside_down` swaps top and bottom, and keeps left and right."""

TARGETS = ("random", "least_likely", "next")
STARTS = ("clean", "random")
TARGET_DRAWS, START_DRAWS = 0, 1
"""Keys of the random numbers for targets and for starts, beside the seed and the number of the image."""


@dataclass(frozen=True)
class Attack:
    """Targeted projected gradient descent in the L∞ ball, on pixels from 0 to 255 (SAN Sec. 5.4).

    The paper states neither how the target is chosen nor where the attack starts. The defaults here are a clean start,
    as the paper's n · ρ = ε suggests, and a random wrong class for each image.
    """

    epsilon: float
    """Radius of the ball: the largest change of a pixel value."""
    step: float
    """How far a pixel moves in one step; ρ in the paper."""
    steps: int
    target: str = "random"
    """`random`, one of the wrong classes; `least_likely`, the wrong class with the lowest logit on the clean image; or
    `next`, the class after the label."""
    start: str = "clean"
    """The attack starts at the `clean` image, or at a `random` point of the ball."""
    seed: int = 0
    """Seed of random targets and starts, together with the number of the image."""

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
        """`pgd_` ε `_` ρ `_` n, followed by every choice that is not the default: `pgd_8_4_2`."""
        choices = [self.target, f"{self.start}_start", f"seed{self.seed}"]
        usual = [Attack.target, f"{Attack.start}_start", f"seed{Attack.seed}"]
        other = [choice for choice, default in zip(choices, usual, strict=True) if choice != default]
        return "_".join([f"pgd_{self.epsilon:g}_{self.step:g}_{self.steps}", *other])

    def facts(self) -> dict[str, Any]:
        return asdict(self)


LADDER = tuple(Attack(epsilon, epsilon / 4, 4) for epsilon in (16.0, 32.0, 48.0))
"""Attacks with larger balls, for images with few gray levels. Four steps together just reach the border of the ball, as
in the paper's attacks."""

ATTACKS = (*(Attack(**facts) for facts in robustness.attacks().values()), *LADDER)
"""The two attacks of SAN Table 10, and LADDER."""


class Batch(NamedTuple):
    pixels: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    numbers: Int[Tensor, " n"]
    """Numbers of the images among those that are judged."""


@dataclass(frozen=True)
class Outcome:
    """The result of one attack on all images."""

    judged: Score
    """Predictions compared with the labels."""
    aimed: Score
    """Predictions compared with the targets; an attack succeeds if the network predicts the target."""

    def record(self) -> dict[str, Any]:
        """Counts and percentages, as plain JSON."""
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
    """Attack every image and judge the attacked images. Raises ValueError if there is no wrong class for a target."""
    if len(dataset.classes) < 2:
        raise ValueError(f"{dataset.name} has {len(dataset.classes)} class; an attack needs another one to aim at")
    aimed = Score()

    def change(*given: Tensor) -> Tensor:
        nonlocal aimed
        with _evaluating(model):
            clean = Batch(*given)
            targets = aim(attack, model, clean, len(dataset.classes))
            pixels = perturb(attack, model, clean, targets)
            with torch.no_grad():
                aimed += score(model(pixels), targets)
        return pixels

    judged = evaluate(model, images, dataset, batch=batch, workers=workers, change=change, seen=seen)
    return Outcome(judged, aimed)


def aim(attack: Attack, model: nn.Module, batch: Batch, classes: int) -> Int[Tensor, " n"]:
    """A wrong class for every image, the same in any batch."""
    if attack.target == "least_likely":
        with _evaluating(model), torch.no_grad():
            logits = model(batch.pixels)
        return logits.scatter(1, batch.labels[:, None], math.inf).argmin(1)
    shift = torch.ones_like(batch.labels)
    if attack.target == "random":
        generators = [generator(attack.seed, number, TARGET_DRAWS) for number in batch.numbers.tolist()]
        draws = [torch.randint(1, classes, (), generator=source) for source in generators]
        shift = torch.stack(draws).to(batch.labels)
    return (batch.labels + shift) % classes


def perturb(attack: Attack, model: nn.Module, batch: Batch, targets: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """x ← clip(x − ρ · sign ∇ₓ CE(model(x), target)) to the ball and to 0 to 255, n times.

    The network is in evaluation mode, and gradients are computed for the pixels only.
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
    """Uniform noise between −1 and 1."""
    shape = batch.pixels.shape[1:]
    generators = [generator(attack.seed, number, START_DRAWS) for number in batch.numbers.tolist()]
    drawn = [torch.rand(shape, generator=source) for source in generators]
    return 2 * torch.stack(drawn).to(batch.pixels) - 1


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode, and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
