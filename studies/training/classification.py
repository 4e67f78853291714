"""Classification: networks that map images to logits of classes, and their accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.config import Config
from studies.data import Dataset, Images
from studies.data import split as splits
from studies.data.views import Change, JudgedViews, TrainingViews, batches
from studies.failures import BadData
from studies.training.adapters import sentence
from studies.training.distributed import World
from studies.training.metrics import Progress, Score, score
from studies.training.networks import FromPixels, autocast, full, made

JUDGED_AT_ONCE = 256


class Classification:
    """The task of a run on labelled images."""

    numbers = ("n", "correct1", "correct5", "nonfinite", "top1", "top5", "loss")
    best = "top1"
    collate = None

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.config, self.dataset = config, dataset

    def split(self) -> splits.Split:
        return splits.split(self.dataset, self.config)

    def check(self, parts: splits.Split) -> None:
        check_classes(self.config, self.dataset.classes, parts.train, parts.judged)

    def network(self) -> Classifier:
        return network(self.config, self.dataset)

    def groups(self, images: Images) -> None:
        return None

    def views(self, images: Images) -> TrainingViews:
        return TrainingViews(self.dataset, images, self.config.seed)

    def loss(self, forward: Callable[..., Any], batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """The cross-entropy, and the number of correct images."""
        pixels, labels = (each.to(device, non_blocking=True) for each in batch)
        with autocast(self.config, device):
            logits = forward(pixels)
        loss_of = loss_function(self.config, len(self.dataset.classes))
        return loss_of(full(logits), labels), (logits.detach().argmax(1) == labels).sum()

    def count(self, progress: Progress, told: float, images: int, world: int) -> None:
        progress.correct1 += int(told)

    def trained(self, progress: Progress) -> dict[str, Any]:
        return {"train_top1": 100 * progress.correct1 / progress.seen}

    def judge(
        self,
        network: FromPixels,
        images: Images,
        world: World,
        *,
        workers: int,
        stop: Callable[[], bool],
        folder: Path | None = None,
    ) -> dict[str, Any]:
        with autocast(self.config, world.device):
            found = evaluate(network, images, self.dataset, workers=workers, world=world, stop=stop)
        return found.record()

    def finish(self, folder: Path, images: Images) -> None:
        """The result says everything."""

    def while_training(self, line: Mapping[str, Any]) -> str:
        judged = f", judged: top-1 {line['top1']:.2f} %, loss {_number(line['loss'])}" if "top1" in line else ""
        return f"top-1 {line['train_top1']:.2f} %{judged}"

    @staticmethod
    def outcome(result: Mapping[str, Any]) -> str:
        return (
            f"top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % of {result['n']}; "
            f"{result['best_top1']:.2f} % in the best of the judged epochs"
        )


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def check_classes(config: Config, classes: Sequence[str], train: Images, judged: Images) -> None:
    """Raise BadData if there is nothing to tell apart or to judge, ValueError if the label smoothing is too large."""
    if len(classes) < 2:
        raise BadData(f"the data set {config.data} has {len(classes)} class; expected at least 2, to tell them apart")
    counts = train.labels.bincount(minlength=len(classes))
    if not counts.all():
        raise BadData(f"class {classes[int(counts.argmin())]!r} has no images to train on; expected some of each class")
    if not len(judged.labels):
        raise BadData(f"the data set {config.data} has no images to judge; expected some in its validation set")
    others = config.smoothing_over == "others"
    limit = (len(classes) - 1) / len(classes) if others else 1.0
    if config.label_smoothing >= limit:
        where = f"; with {len(classes)} classes the label would get no more weight than another class" if others else ""
        raise ValueError(f"label_smoothing is {config.label_smoothing:g}; expected below {limit:g}{where}")


class Classifier(FromPixels):
    """Maps pixels from 0 to 255 to logits. Normalisation and the expansion of gray to three channels are part of the
    network, so that an attack works on pixels."""

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(self.normalised(pixels))


def network(config: Config, dataset: Dataset) -> Classifier:
    """The classifier of a config, with new weights from its seed.

    Raises ValueError for an unknown model or option, or one that does not fit the images.
    """
    classifier = Classifier(made(config, {"num_classes": len(dataset.classes)}), dataset)
    classes = _logits(classifier, dataset)
    if classes != len(dataset.classes):
        raise ValueError(f"{config.model} has {classes} classes; {dataset.name} has {len(dataset.classes)}")
    return classifier


def _logits(classifier: Classifier, dataset: Dataset) -> int:
    """The number of logits for an image. Raises ValueError if the network is not a classifier."""
    training, name = classifier.training, type(classifier.model).__name__
    try:
        with torch.no_grad():
            logits = classifier.eval()(torch.zeros(1, *dataset.size))
    except Exception as error:  # a network of a user can raise anything
        raise ValueError(f"{name} cannot classify an image of {dataset.size}: {sentence(error)}") from None
    classifier.train(training)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"an object of type {type(logits).__name__}"
    if not (isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == 1):
        raise ValueError(
            f"{name} returns {shape} for an image; expected (1, classes), since {dataset.name} has a label per image; "
            "a detector needs data with boxes, such as --data canvas"
        )
    return logits.shape[1]


def loss_function(config: Config, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy with label smoothing ε. torch spreads ε over all K classes; SAN over the other K − 1."""
    smoothing = config.label_smoothing
    if config.smoothing_over == "others":
        smoothing = smoothing * classes / (classes - 1)
    return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing)


def evaluate(
    model: nn.Module,
    images: Images,
    dataset: Dataset,
    *,
    batch: int = JUDGED_AT_ONCE,
    workers: int = 0,
    change: Change | None = None,
    world: World | None = None,
    stop: Callable[[], bool] = lambda: False,
    seen: Callable[[int], None] = lambda n: None,
) -> Score:
    """The score of `model` over all processes. Every image counts exactly once, for any batch size and any number of
    processes.

    `change` alters the pixels first; `seen` is called with the size of every batch. Raises Preempted when any process
    is asked to stop.
    """
    device = next(model.parameters()).device
    world = world or World(0, 1, device)
    mine = range(world.rank, len(images.labels), world.size)
    keys = [mine[start : start + batch] for start in range(0, len(mine), batch)]
    rounds = -(-len(images.labels) // (batch * world.size))
    coming = batches(JudgedViews(dataset, images), keys, workers, device.type == "cuda")
    total, training = Score(), model.training
    model.eval()
    try:
        for pixels, labels, numbers in world.rounds(coming, rounds, stop):
            pixels, labels = pixels.to(device).float(), labels.to(device)
            if change is not None:
                pixels = change(pixels, labels, numbers)
            with torch.no_grad():
                total += score(model(pixels), labels)
            seen(len(labels))
    finally:
        model.train(training)
    n, correct1, correct5, nonfinite, loss_sum = world.sum(list(vars(total).values()))
    return Score(int(n), int(correct1), int(correct5), int(nonfinite), loss_sum)
