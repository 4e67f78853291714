"""Small networks and images for runs of a second: `--model networks:plain`."""

from __future__ import annotations

import os
import signal
from multiprocessing import active_children

import torch
from torch import Tensor, nn

from studies.config import Config
from studies.data import Dataset, Pixels, unchanged

SIDE, CLASSES = 8, 10


def plain(width: int = 8) -> nn.Module:
    """Without batch norms, so that the logits of an image do not depend on the other images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, width), nn.Tanh(), nn.Linear(width, CLASSES))


def normed(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, width), nn.BatchNorm1d(width), nn.Linear(width, CLASSES))


def mapped(width: int = 8) -> nn.Module:
    """A convolution, whose weights have a memory layout, and a batch norm."""
    head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, CLASSES))
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), *head)


def dropping() -> nn.Module:
    """Draws random numbers in the forward pass."""
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * SIDE**2, CLASSES))


def own(rank: int | None) -> bool:
    return rank is None or rank == int(os.environ.get("RANK", 0))


class Breaking(nn.Module):
    """Makes NaN in one forward pass in training, in one process or in all: in the logits, or only in the gradient."""

    def __init__(self, at: int, rank: int | None = None, gradient: bool = False) -> None:
        super().__init__()
        self.model, self.at, self.gradient, self.passes = normed(), at, gradient, 0
        self.mine = own(rank)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        if not (self.training and self.mine and self.passes == self.at):
            return self.model(x)
        if not self.gradient:
            return self.model(x * float("nan"))
        logits = self.model(x)
        logits.register_hook(lambda gradient: gradient * float("nan"))
        return logits


class Signalling(nn.Module):
    """Sends a signal to its own process and to those that load its images, in one pass of training or evaluation; once
    per process, in one rank or in all."""

    sent = False

    def __init__(self, number: int, at: int, training: bool = True, rank: int | None = None) -> None:
        super().__init__()
        self.mine = own(rank)
        self.model, self.number, self.at, self.when, self.passes = normed(), number, at, training, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training == self.when and len(x) > 1
        if self.mine and self.passes == self.at and not Signalling.sent:
            Signalling.sent = True
            for process in (os.getpid(), *(child.pid for child in active_children())):
                os.kill(process or 0, signal.Signals(self.number))
        return self.model(x)


def load(config: Config) -> Dataset:
    """80 images of 10 classes for training, and 30 for evaluation."""
    draws = torch.Generator().manual_seed(1)
    patterns = torch.randint(256, (CLASSES, 1, SIDE, SIDE), generator=draws)
    parts = []
    for count in (8 * CLASSES, 3 * CLASSES):
        labels = torch.arange(count) % CLASSES
        noise = torch.randint(-60, 61, (count, 1, SIDE, SIDE), generator=draws)
        parts.append(Pixels((patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels))
    return Dataset(
        name=config.data,
        classes=tuple("abcdefghij"),
        train=parts[0],
        test=parts[1],
        size=(1, SIDE, SIDE),
        mean=(0.5,),
        std=(0.3,),
        augment=shaded,
        view=unchanged,
    )


def shaded(image: Tensor, generator: torch.Generator) -> Tensor:
    """Darker by a random shade: a view that depends on its generator."""
    return image - image.clamp(max=int(torch.randint(30, (), generator=generator)))
