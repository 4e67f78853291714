"""What training requires of data, config and network, checked before anything is written."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from studies.config import Config
from studies.data import BOXES
from studies.data.split import Split

if TYPE_CHECKING:
    from studies.data import Dataset
    from studies.data.views import Plan
    from studies.training.distributed import World
    from studies.training.networks import FromPixels


DETECTING = (
    "detector",
    "backbone",
    "anchor_scale",
    "sides",
    "longest",
    "jitter",
    "crop",
    "by_aspect",
    "canvases",
    "judged_canvases",
)
"""Options that have no effect on a classifier."""
CLASSIFYING = (
    "held_out",
    "train_per_class",
    "image_size",
    "resize",
    "interpolation",
    "label_smoothing",
    "smoothing_over",
)
"""Options that have no effect on a detector."""
OF_CANVASES = ("canvases", "judged_canvases", "split_seed")
"""Options that have no effect on COCO, which is divided already."""


def check_options(config: Config) -> None:
    """Raise ValueError for an option with another value than its default, if it has no effect on the run."""
    boxes = config.data in BOXES
    names = [*(CLASSIFYING if boxes else DETECTING), *(OF_CANVASES if config.data == "coco" else ())]
    for name in names:
        value = getattr(config, name)
        if value == getattr(Config(), name) or (name, value) == ("label_smoothing", 0):
            continue
        shown = list(value) if isinstance(value, tuple) else value
        where = config.data if name in OF_CANVASES and boxes else "a detector" if boxes else "a classifier"
        raise ValueError(f"{name} is {shown}, which has no effect on {where}; omit {name}")


def prepared(config: Config, dataset: Dataset, world: World) -> tuple[Split, Plan, FromPixels]:
    """The images, their order and the new network of a run. Raises ValueError, or BadData, if they do not fit."""
    from studies.training import engine, tasks

    task = tasks.of(config, dataset)
    parts = task.split()
    task.check(parts)
    if config.warmup_epochs > config.epochs:
        raise ValueError(f"warmup_epochs is {config.warmup_epochs:g}; expected at most epochs, {config.epochs}")
    network = task.network()
    check_options(config)
    plan = engine.plan(config, parts.train, world, task.groups(parts.train))
    if plan.fewest(world.size) == 1:
        _check_one_image(config, network, dataset)
    return parts, plan, network


def check_data(config: Config) -> None:
    """Raise ValueError, or BadData, if the data of a config are not there or cannot be learned."""
    from studies import data
    from studies.training import tasks

    task = tasks.of(config, data.load(config))
    task.check(Split(task.dataset.train, task.dataset.test, {}))


def _check_one_image(config: Config, network: FromPixels, dataset: Dataset) -> None:
    """Raise ValueError if the network cannot train on a single image, because of its batch norms."""
    trial = copy.deepcopy(network).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial.of_whole(torch.zeros(1, *dataset.size))
    except ValueError as error:
        raise ValueError(
            f"{config.model} sees one image at a time and cannot train on it ({error}); expected a larger batch for "
            "each process and piece, also in the last step of an epoch"
        ) from None
