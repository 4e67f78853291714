"""What training requires of data, config and network, checked before anything is written."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from studies.failures import BadData

if TYPE_CHECKING:
    from collections.abc import Sequence

    from studies.config import Config
    from studies.data import Dataset, Images
    from studies.data.split import Split
    from studies.data.views import Plan
    from studies.training.distributed import World
    from studies.training.engine import Classifier


def prepared(config: Config, dataset: Dataset, world: World) -> tuple[Split, Plan, Classifier]:
    """The images, their order and the new network of a run. Raises ValueError, or BadData, if they do not fit."""
    from studies.data import split
    from studies.training import engine

    parts = split.split(dataset, config)
    check_classes(config, dataset.classes, parts.train, parts.judged)
    if config.warmup_epochs > config.epochs:
        raise ValueError(f"warmup_epochs is {config.warmup_epochs:g}; expected at most epochs, {config.epochs}")
    plan = engine.plan(config, parts.train, world)
    classifier = engine.network(config, dataset)
    if plan.fewest(world.size) == 1:
        _check_one_image(config, classifier, dataset)
    return parts, plan, classifier


def check_data(config: Config) -> None:
    """Raise ValueError, or BadData, if the data of a config are not there or cannot be learned."""
    from studies import data

    dataset = data.load(config)
    check_classes(config, dataset.classes, dataset.train, dataset.test)


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


def _check_one_image(config: Config, classifier: Classifier, dataset: Dataset) -> None:
    """Raise ValueError if the network cannot train on a single image, because of its batch norms."""
    trial = copy.deepcopy(classifier).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial(torch.zeros(1, *dataset.size))
    except ValueError as error:
        raise ValueError(
            f"{config.model} sees one image at a time and cannot train on it ({error}); expected a larger batch for "
            "each process and piece, also in the last step of an epoch"
        ) from None
