"""The hours of SASA's miniatures before any run is finished, from training steps that were timed once.

Eleven networks of the tables trained five steps of 32 images each, after three others, on one thread of an AMD EPYC
with Numba's kernels, beside other programs. Within a data set and a model, each of them was within a third of the rate
below. Another machine needs other hours.
"""

from __future__ import annotations

import json

from studies.config import Config
from studies.reproduction import sizes
from studies.reproduction.miniatures import SIDES
from studies.reproduction.sasa_miniatures import CHANNELS

RATES = {
    ("fashion", "resnet_mini"): 4.5e-11,
    ("fashion", "sasa_mini"): 8e-11,
    ("digits", "resnet_mini"): 1.75e-10,
    ("digits", "sasa_mini"): 2.5e-10,
}
"""Seconds per FLOP of training, by data set and model."""
IMAGES = {"digits": 1297, "fashion": 60_000}
"""Training images."""
PASSES = 3
"""FLOPs of a training step, relative to those of a forward pass."""
BASIS = (
    "an estimate within a third, from training steps of eleven of these networks timed on one thread of an AMD EPYC; "
    "evaluation is not in it"
)


def seconds(config: Config) -> float | None:
    """The estimated seconds of training; None for a network or a data set of which no step was timed."""
    rate = RATES.get((config.data, config.model))
    if rate is None or config.options.get("channels") not in CHANNELS.values():
        return None
    _, flops = sizes.counted(config.model, json.dumps(config.options, sort_keys=True), SIDES[config.data], "flop2")
    held_out = config.held_out if config.protocol == "val-split" else 0
    left = IMAGES[config.data] - 10 * held_out
    images = left if config.train_per_class is None else min(left, 10 * config.train_per_class)
    steps = config.epochs * (images // config.batch)
    return steps * config.batch * PASSES * flops * rate
