"""The config of a training run: a frozen dataclass, read from recipes (YAML) and the command line. Unknown keys are
errors."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from saprof import command
from saprof.text import unknown

RECIPES = Path(__file__).with_name("recipes")

PROTOCOLS = ("val-original", "val-split")
PRECISIONS = ("fp32", "fp64", "bf16", "fp16")
SMOOTHING = ("others", "all")
PERIODS = ("epoch", "step")
REMAINDERS = ("drop", "keep")
INTERPOLATIONS = ("bilinear", "bicubic")
DECAYED = ("all", "weights")
AVERAGED = ("state", "parameters")
DEVICES = ("auto", "cpu", "cuda")
DETECTORS = ("sasa", "torchvision")
LISTS = ("sides", "lr_drops")
"""Fields that are lists of integers."""
LARGEST_SIDE = 4096
"""The largest side of an image for a network, in pixels. An image of this size, as floats, takes 200 MB."""

SETTING = {"setting": True}
"""Metadata of fields that change how a run is carried out, but not its result; they are not part of the fingerprint."""
LATER = {"later": True}
"""Metadata of fields that earlier versions did not have. A field with its default is not part of the fingerprint, so
that the fingerprints of earlier runs stay the same."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run. The defaults train a small SAN on scikit-learn's digits."""

    model: str = "san_mini_pairwise"
    """A name of saprof.list_models(), or package.module:function, called with `options`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's config, such as relation, footprints, backend or attention."""
    data: str = "digits"
    """digits, digits16, folder, cifar10, fashion, mnist, kmnist, emnist-balanced, emnist-digits or emnist-letters; for
    a detector: coco, canvas or canvas_digits."""
    protocol: str = "val-split"
    """val-original trains on the whole training set and judges on the validation set; val-split holds `held_out` images
    per class out of the training set and judges on them (SAN Sec. 5.1)."""
    held_out: int = 50
    """Images per class that val-split keeps out of training."""
    split_seed: int = 0
    """Seed that chooses the images that val-split keeps out of training; of canvases, the seed of all."""
    train_per_class: int | None = field(default=None, metadata=LATER)
    """Images per class to train on, the same ones in both protocols; None trains on all."""
    image_size: int = 224
    """Side of the network's input, for images of a folder."""
    resize: int = 256
    """Shorter side of a folder's images before the centre crop that is judged."""
    interpolation: str = field(default="bilinear", metadata=LATER)
    """How a folder's images are resized: bilinear or bicubic, both with antialiasing."""

    seed: int = 0
    """Seed of the initial weights, the order of the images and their augmentation."""
    detector: str = field(default="sasa", metadata=LATER)
    """The anchors, matching and losses of a detector: sasa or torchvision."""
    backbone: str | None = field(default=None, metadata=LATER)
    """A file of saprof.save, such as the model.pt of a run, from which a detector's backbone gets its first weights."""
    anchor_scale: float | None = field(default=None, metadata=LATER)
    """The side of a detector's smallest anchors, in strides of their level; None leaves it as `detector` has it."""
    sides: tuple[int, ...] = field(default=(), metadata=LATER)
    """Shorter sides to which a detector's images are resized: in training one of them at random, in evaluation the
    last. Empty: images keep their size, unless `longest` is smaller."""
    longest: int | None = field(default=None, metadata=LATER)
    """The largest longer side after resizing, before `jitter`; None has no limit."""
    jitter: float = field(default=0.0, metadata=LATER)
    """In training, a detector's images are also scaled by a random factor from 1 - jitter to 1 + jitter."""
    crop: int | None = field(default=None, metadata=LATER)
    """The largest side of a detector's training images, which are cut at a random place."""
    by_aspect: bool = field(default=False, metadata=LATER)
    """Whether a batch of a detector has wide images only, or tall images only, which need less padding."""
    canvases: int = field(default=1000, metadata=LATER)
    """Canvases to train on."""
    judged_canvases: int = field(default=250, metadata=LATER)
    """Canvases to judge on: of items held out of the training set with val-split, of the test set with val-original."""

    epochs: int = 20
    batch: int = 32
    """Images per optimisation step, over all processes."""
    accumulate: int = 1
    """Pieces into which each process divides the images of a step; gradients are accumulated over them."""
    remainder: str = field(default="drop", metadata=LATER)
    """What happens to the images that are left after the full steps of an epoch: drop leaves them out of this epoch;
    keep makes a smaller last step of them, in which images are repeated until all processes and pieces have equally
    many."""
    lr: float = 0.1
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises linearly from 0; after them it falls as a cosine to 0, or follows
    `lr_drops`."""
    lr_every: str = "epoch"
    """How often the learning rate changes: every epoch or every step."""
    lr_drops: tuple[int, ...] = field(default=(), metadata=LATER)
    """Epochs after which the learning rate is divided by 10. With an entry, it does not fall as a cosine."""
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    """Weight decay of the parameters that `weight_decay_on` names."""
    weight_decay_on: str = field(default="all", metadata=LATER)
    """all decays every parameter; weights leaves out biases and the parameters of norms."""
    norm_momentum: float | None = field(default=None, metadata=LATER)
    """Momentum of the running statistics of all batch norms, the share of the newest batch; None leaves it as the
    network has it, which is 0.1 in torch. A decay of 0.9999 in other libraries is 0.0001 here."""
    label_smoothing: float = 0.1
    smoothing_over: str = "others"
    """others spreads the smoothing over the K - 1 wrong classes; all spreads it over the K classes, as torch does."""
    clip_norm: float | None = None
    """Maximum norm of the gradient."""
    ema: float | None = None
    """Decay of a moving average of the weights; the average is then judged."""
    ema_of: str = field(default="state", metadata=LATER)
    """state averages parameters and the running statistics of norms; parameters averages parameters only, and takes the
    running statistics as they are."""
    precision: str = "fp32"
    """fp32, fp64, or autocast in bf16 or fp16."""
    tf32: bool = field(default=False, metadata=LATER)
    """Whether convolutions and matrix products in fp32 are computed in TF32, with 10 bits of mantissa, on GPUs that can
    do so (Ampere and later)."""
    channels_last: bool = False
    compile: bool = False
    """Whether the network is compiled by torch.compile."""

    batch_per_process: int | None = field(default=None, metadata=SETTING)
    """Images that a batch norm sees at a time in the published recipe. A run in which it sees another number prints a
    warning."""
    output: Path | None = field(default=None, metadata=SETTING)
    """Folder of the run; by default runs/<model>-<data>-<seed>."""
    root: Path | None = field(default=None, metadata=SETTING)
    """Folder of the data set. digits and digits16 need none; fashion needs none if Debian's package is installed."""
    device: str = field(default="auto", metadata=SETTING)
    """cpu, cuda, or auto: cuda if there is one, else cpu."""
    threads: int = field(default=1, metadata=SETTING)
    """Threads of a process on a CPU. The last digits of results depend on it."""
    workers: int = field(default=0, metadata=SETTING)
    """Processes that load images, per training process; 0 loads in the training process."""
    evaluate_every: int = field(default=1, metadata=SETTING)
    """Epochs between two evaluations; the last epoch is always evaluated."""
    checkpoint_every: int = field(default=1000, metadata=SETTING)
    """Steps between two checkpoints; the end of each epoch also has one."""
    tensorboard: bool = field(default=False, metadata=SETTING)
    """Whether metrics are written for TensorBoard too."""

    def __post_init__(self) -> None:
        for name, valid in _CHOICES.items():
            if getattr(self, name) not in valid:
                raise ValueError(unknown(name, getattr(self, name), valid))
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high):
                bounds = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high}"
                raise ValueError(f"{name} is {value}; expected {bounds}")
        for field_ in fields(self):
            if isinstance(getattr(self, field_.name), float) and not math.isfinite(getattr(self, field_.name)):
                raise ValueError(f"{field_.name} is {getattr(self, field_.name)}; expected a finite number")
        for name in LISTS:
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"{name} is {list(getattr(self, name))}; expected numbers of at least 1")
        if any(side > LARGEST_SIDE for side in self.sides):
            raise ValueError(
                f"sides is {list(self.sides)}; expected pixels from 1 to {LARGEST_SIDE}; choose smaller ones, since "
                "the memory of a step grows with their square"
            )
        if self.jitter == 1:
            raise ValueError("jitter is 1; expected a number below 1, since images cannot be scaled by 0")
        if self.anchor_scale == 0:
            raise ValueError("anchor_scale is 0; expected a number above 0")
        for name in ("ema", "momentum"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name} is 1, with which nothing is learned; expected a number below 1")
        for name in ("clip_norm", "norm_momentum"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} is 0, with which nothing is learned; expected a number above 0")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum; momentum is 0")
        if self.image_size > self.resize:
            raise ValueError(f"resize is {self.resize}; expected at least image_size, {self.image_size}")

    def facts(self) -> dict[str, Any]:
        """The fields that decide the result, as plain JSON."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if not f.metadata.get("setting")}
        real = [f.name for f in fields(self) if str(f.type).startswith("float") and chosen[f.name] is not None]
        return json.loads(json.dumps(chosen | {name: float(chosen[name]) for name in real}))  # 1 equals 1.0

    def fingerprint(self) -> str:
        """A hash of `facts`; runs with equal fingerprints are the same run."""
        earlier = before_later_fields()
        facts = {name: value for name, value in self.facts().items() if name not in earlier or value != earlier[name]}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def unlike_recipe(self, processes: int) -> str | None:
        """The warning that batch norms see more or fewer images than in the published recipe; None if they do not."""
        seen = self.batch // (processes * self.accumulate)
        if self.batch_per_process in (None, seen):
            return None
        parts = max(1, self.batch // self.batch_per_process)
        return (
            f"warning: batch norms see {seen} images at a time; in the published recipe they see "
            f"{self.batch_per_process}. Start {parts} processes (torchrun --nproc-per-node {parts}; reproduce: "
            f"--executor slurm --gpus {parts}), or add --accumulate {parts} to one process"
        )

    def plain(self) -> dict[str, Any]:
        """All fields, in the form of YAML files and checkpoints."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


_CHOICES = {
    "protocol": PROTOCOLS,
    "precision": PRECISIONS,
    "smoothing_over": SMOOTHING,
    "lr_every": PERIODS,
    "remainder": REMAINDERS,
    "interpolation": INTERPOLATIONS,
    "weight_decay_on": DECAYED,
    "ema_of": AVERAGED,
    "device": DEVICES,
    "detector": DETECTORS,
}
_RANGES = {
    "seed": (0, 2**63 - 1),
    "held_out": (1, math.inf),
    "train_per_class": (1, math.inf),
    "image_size": (1, LARGEST_SIDE),
    "resize": (1, LARGEST_SIDE),
    "epochs": (1, 10**5),
    "batch": (1, math.inf),
    "accumulate": (1, math.inf),
    "batch_per_process": (1, math.inf),
    "lr": (0, math.inf),
    "warmup_epochs": (0, math.inf),
    "momentum": (0, 1),
    "weight_decay": (0, math.inf),
    "norm_momentum": (0, 1),
    "label_smoothing": (0, 1),
    "clip_norm": (0, math.inf),
    "ema": (0, 1),
    "anchor_scale": (0, 1000),
    "longest": (1, math.inf),
    "jitter": (0, 1),
    "crop": (1, LARGEST_SIDE),
    "canvases": (1, 10**7),
    "judged_canvases": (1, 10**6),
    "threads": (1, command.MOST_THREADS),
    "workers": (0, command.MOST_THREADS),
    "evaluate_every": (1, math.inf),
    "checkpoint_every": (1, math.inf),
}


def before_later_fields() -> dict[str, Any]:
    """The fields that earlier versions did not have, with the values that the runs of these versions used."""
    later = [f for f in fields(Config) if f.metadata.get("later")]
    return {f.name: [] if f.default == () else f.default for f in later}  # as in JSON


def recipes() -> list[str]:
    """The names that `--recipe` takes, besides paths of files."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def parse(argv: Sequence[str] | None, prog: str, description: str) -> Config:
    """The config of a command line: defaults, then recipes, then options, in the order given.

    Raises ValueError, naming it, for an unknown key, a value of a wrong type or an unknown recipe.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    refuse_empty_paths(given)
    return config_of(parser(prog, description).parse_args(given))


def refuse_empty_paths(argv: Sequence[str]) -> None:
    """ValueError for a path without a name, which would be the current folder."""
    for option, value in pairwise([*argv, "."]):
        name, equals, attached = option.partition("=")
        if name in ("--output", "--root", "--backbone") and not (attached if equals else value).strip():
            raise ValueError(f"{name.removeprefix('--')} is empty; expected a path")


def _with_lists(argv: Sequence[str]) -> list[str]:
    """The arguments with lists such as `640,672` in brackets, as YAML has them."""
    found: list[str] = []
    for argument in argv:
        name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        listed = name if equals else found[-1] if found else ""
        if listed.removeprefix("--") in LISTS and (equals or not name) and not value.startswith("["):
            value = f"[{value}]"
        found.append(f"{name}{equals}{value}")
    return found


def config_of(read: Any) -> Config:
    """The config in what `parser` has read."""
    return Config(**{f.name: getattr(read, f.name) for f in fields(Config)})


def load(path: str | Path) -> Config:
    """The config in a run's config.yaml. Raises ValueError if the file is no config."""
    try:
        return parse(["--recipe", str(path)], "studies", "")
    except ValueError as error:
        raise ValueError(f"{path} is no config of a run: {error}") from None


def dump(config: Config) -> str:
    """The config as YAML, which `load` reads."""
    import yaml

    return yaml.safe_dump(config.plain(), sort_keys=False, allow_unicode=True)


def parser(prog: str, description: str) -> Any:
    """The parser of a command line with a config. It raises ValueError for a mistake."""
    from jsonargparse import (
        ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage]
        ArgumentParser,
        set_parsing_settings,
    )

    set_parsing_settings(docstring_parse_attribute_docstrings=True)

    class Recipe(ActionConfigFile):
        """Reads a file, or a recipe of studies/recipes by its name."""

        def __call__(self, parser, cfg, values, option_string=None):
            named = RECIPES / f"{values}.yaml"
            if not named.exists() and not Path(str(values)).is_file():
                raise ValueError(f"{unknown('recipe', str(values), recipes())}; the path of a YAML file is read too")
            super().__call__(parser, cfg, str(named if named.exists() else values), option_string)

    class Parser(ArgumentParser):
        def parse_args(self, args=None, *rest, **options):
            return super().parse_args(_with_lists(sys.argv[1:] if args is None else args), *rest, **options)

        def error(self, message: str, ex: Exception | None = None):
            raise ValueError(" ".join(message.split())) from None

    parser = Parser(prog=prog, description=description)
    parser.add_argument("--recipe", action=Recipe, help=f"{', '.join(recipes())}, or a YAML file such as a config.yaml")
    parser.add_class_arguments(Config)
    return parser
