"""Training and evaluation in plain PyTorch; every random number is a function of the config and the step."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import saprof
from saprof.compiling import compiling
from studies.config import Config
from studies.data import Dataset, Images
from studies.data.views import Change, JudgedViews, Plan, TrainingViews, batches, number
from studies.failures import NonFinite, Preempted
from studies.training.adapters import adapted, sentence
from studies.training.distributed import World
from studies.training.metrics import Score, score

JUDGED_AT_ONCE = 256
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Modules whose parameters scale and shift normalised values. `_NormBase` is the base of batch and instance norms."""
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Classifier(nn.Module):
    """Maps pixels from 0 to 255 to logits. Normalisation and the expansion of gray to three channels are part of the
    network, so that an attack works on pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, dataset: Dataset) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", dataset.mean), ("std", dataset.std)):
            self.register_buffer(name, 255 * torch.tensor(values, dtype=torch.float64)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        x = (pixels.to(dtype) - self.mean.to(dtype)) / self.std.to(dtype)
        return self.model(x.expand(-1, 3, -1, -1))


def network(config: Config, dataset: Dataset) -> Classifier:
    """The classifier of a config, with new weights from its seed.

    Raises ValueError for an unknown model or option, or one that does not fit the images.
    """
    torch.manual_seed(config.seed)
    if ":" in config.model:
        model = adapted(config.model, config.options)
    else:
        try:
            options: dict[str, Any] = {"num_classes": len(dataset.classes)} | config.options
            model = saprof.create_model(config.model, **options)
        except TypeError as error:
            raise ValueError(f"{config.model} cannot be made with {config.options}: {sentence(error)}") from None
    classifier = Classifier(model.double() if config.precision == "fp64" else model, dataset)
    if config.norm_momentum is not None:
        _set_norm_momentum(classifier, config.norm_momentum)
    classes = _logits(classifier, dataset)
    if classes != len(dataset.classes):
        raise ValueError(f"{config.model} has {classes} classes; {dataset.name} has {len(dataset.classes)}")
    return classifier


def _set_norm_momentum(classifier: Classifier, momentum: float) -> None:
    """Set the momentum of all batch norms. Raises ValueError if there are none."""
    norms = [module for module in classifier.modules() if isinstance(module, _NormBase)]
    if not norms:
        name = type(classifier.model).__name__
        raise ValueError(f"norm_momentum is {momentum:g}, but {name} has no batch norms; omit norm_momentum")
    for norm in norms:
        norm.momentum = momentum


def decayed(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights of a network, then its biases and the parameters of its norms, each parameter once."""
    apart = {
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, NORMS) or name.endswith("bias") or parameter.dim() < 2
    }
    every = list(model.parameters())
    return [p for p in every if p not in apart], [p for p in every if p in apart]


def _logits(classifier: Classifier, dataset: Dataset) -> int:
    """The number of logits for an image. Raises ValueError if the network is not a classifier that can be trained."""
    training, name = classifier.training, type(classifier.model).__name__
    if not any(parameter.requires_grad for parameter in classifier.parameters()):
        raise ValueError(f"{name} has no parameters to train; expected a network with some")
    try:
        with torch.no_grad():
            logits = classifier.eval()(torch.zeros(1, *dataset.size))
    except Exception as error:  # a network of a user can raise anything
        raise ValueError(f"{name} cannot classify an image of {dataset.size}: {sentence(error)}") from None
    classifier.train(training)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"an object of type {type(logits).__name__}"
    if not (isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == 1):
        raise ValueError(
            f"{name} returns {shape} for an image; expected (1, classes), since only classifiers are trained here"
        )
    return logits.shape[1]


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of the next step after `step` steps: it rises linearly from 0, then falls as a cosine to 0 at
    the end of the last epoch."""
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs:
        return config.lr * min((step + 1) / (config.warmup_epochs * steps_per_epoch), 1.0)
    if config.lr_every == "epoch":
        epoch = math.floor(epoch)
    elapsed = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.lr * (1 + math.cos(math.pi * min(max(elapsed, 0.0), 1.0))) / 2


def loss_function(config: Config, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy with label smoothing ε. torch spreads ε over all K classes; SAN over the other K − 1."""
    smoothing = config.label_smoothing
    if config.smoothing_over == "others":
        smoothing = smoothing * classes / (classes - 1)
    return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing)


@dataclass
class Progress:
    """Sums over the epoch so far, over all processes; the seconds are those of this process alone."""

    loss_sum: float = 0.0
    correct1: int = 0
    seen: int = 0
    waited: float = 0.0
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """The training loss and accuracy, for a line of metrics."""
        return {"train_loss": self.loss_sum / self.seen, "train_top1": 100 * self.correct1 / self.seen}


@dataclass
class State:
    """The state of a run. A checkpoint saves all of it."""

    config: Config
    classifier: Classifier
    world: World
    step: int = 0
    reported: int = 0
    """The step of the last line of metrics."""
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        config, device = self.config, self.world.device
        layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.classifier = self.classifier.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
        parameters: Any = self.classifier.parameters()
        if config.weight_decay_on == "weights":
            weights, others = decayed(self.classifier)
            parameters = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.average = None
        if config.ema is not None:
            average = get_ema_multi_avg_fn(config.ema)
            with_buffers = config.ema_of == "state"
            self.average = AveragedModel(self.classifier, multi_avg_fn=average, use_buffers=with_buffers)
        forward: nn.Module = self.classifier
        if self.world.size > 1:
            forward = DistributedDataParallel(forward)
        self.forward = torch.compile(forward) if config.compile else forward

    @property
    def judged(self) -> Classifier:
        """The network that is evaluated: the moving average if there is one, else the trained network."""
        judged = self.classifier if self.average is None else self.average.module
        assert isinstance(judged, Classifier)
        return judged

    def saved(self) -> dict[str, Any]:
        """The state as tensors and plain values. Raises NonFinite if a weight is not finite, so that such a state is
        never written."""
        weights = self.classifier.state_dict()
        bad = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
        if bad:
            raise NonFinite(f"{bad[0]} and {len(bad) - 1} more weights are not finite at step {self.step}")
        return {
            "step": self.step,
            "reported": self.reported,
            "weights": weights,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "progress": vars(self.progress).copy(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self.step, self.reported = saved["step"], saved["reported"]
        self.classifier.load_state_dict(saved["weights"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.progress = Progress(**saved["progress"])


@dataclass(frozen=True)
class Hooks:
    """Functions that training calls."""

    stop: Callable[[], bool] = lambda: False
    """Returns whether this process was asked to stop."""
    after_step: Callable[[State], None] = lambda state: None
    """Is called after every step."""


def plan(config: Config, images: Images, world: World) -> Plan:
    """The order of the images. Raises ValueError unless a step's images divide into equal pieces and an epoch has at
    least one step."""
    pieces = world.size * config.accumulate
    if config.batch % pieces:
        raise ValueError(
            f"batch is {config.batch}; expected a multiple of {pieces}, {world.size} processes times "
            f"{config.accumulate} pieces, since gradients are means over equal pieces"
        )
    if config.batch > len(images.labels):
        raise ValueError(f"batch is {config.batch}; expected at most the {len(images.labels)} images to train on")
    return Plan(len(images.labels), config.batch, config.accumulate, config.seed, config.remainder)


def _told(config: Config) -> AbstractContextManager[object]:
    """The context of the first step, which compiles the network if the configuration says so."""
    if not config.compile:
        return nullcontext()
    return compiling(f"{config.model} with torch.compile", "for this process", kernels=0)


def train_until(stop_at: int, state: State, dataset: Dataset, images: Images, hooks: Hooks) -> None:
    """Train until step `stop_at`.

    Raises NonFinite as soon as the loss of any process is not finite, and Preempted after the step in which any
    process is asked to stop.
    """
    config, world = state.config, state.world
    schedule = plan(config, images, world)
    loss_of = loss_function(config, len(dataset.classes))
    coming = _coming(state, schedule, stop_at, dataset, images)
    state.classifier.train()
    first = state.step
    while state.step < stop_at:
        started = time.perf_counter()
        torch.manual_seed(number(config.seed, state.step, world.rank))  # for dropout and other random layers
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.step, schedule.steps)
        with _told(config) if state.step == first else nullcontext():
            loss, correct, waited = _accumulated(state, coming, loss_of)
        broken = not math.isfinite(loss)
        stopping, broken, loss, correct = world.sum([hooks.stop(), broken, loss / world.size, correct])
        if broken:
            raise NonFinite("the loss is not finite; the last checkpoint is intact. Lower lr, or look at the images")
        _update(state)
        images_of_step = schedule.seen(state.step + 1, world.size) - schedule.seen(state.step, world.size)
        state.step += 1
        progress = state.progress
        progress.loss_sum += loss * images_of_step
        progress.correct1 += int(correct)
        progress.seen += images_of_step
        progress.waited += waited
        progress.seconds += time.perf_counter() - started
        hooks.after_step(state)
        if stopping:  # after the step, because a repeated forward pass would update batch norms twice
            raise Preempted


def _coming(state: State, schedule: Plan, stop_at: int, dataset: Dataset, images: Images) -> Iterator[Any]:
    config, world = state.config, state.world
    keys = schedule.pieces(state.step, stop_at, world.rank, world.size)
    views = TrainingViews(dataset, images, config.seed)
    return batches(views, keys, config.workers, world.device.type == "cuda")


def _accumulated(state: State, coming: Iterator[Any], loss_of: Callable[..., Tensor]) -> tuple[float, float, float]:
    """Accumulate the gradients of one step over its pieces; return the mean loss, the number of correct images and
    the seconds spent waiting for images."""
    pieces, device = state.config.accumulate, state.world.device
    state.optimizer.zero_grad(set_to_none=True)
    losses, correct, waited = [], [], 0.0
    for piece in range(pieces):
        began = time.perf_counter()
        pixels, labels = next(coming)
        waited += time.perf_counter() - began
        pixels, labels = pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with _unsynchronised(state.forward, piece < pieces - 1):
            with autocast(state.config, device):
                logits = state.forward(pixels)
            loss = loss_of(logits.float() if logits.dtype != torch.float64 else logits, labels)
            state.scaler.scale(loss / pieces).backward()
        losses.append(loss.detach())
        correct.append((logits.detach().argmax(1) == labels).sum())
    loss, right = torch.stack([torch.stack(losses).mean().double(), torch.stack(correct).sum().double()]).tolist()
    return loss, right, waited


def _unsynchronised(forward: Any, more_pieces: bool) -> Any:
    """A context that does not exchange gradients between processes, unless this is the last piece of a step."""
    return forward.no_sync() if more_pieces and hasattr(forward, "no_sync") else nullcontext()


def set_precision(config: Config) -> None:
    """Set whether convolutions and products of this process in fp32 are computed in TF32 on a GPU."""
    with warnings.catch_warnings():
        # torch 2.9 warns about these settings; code that reads them fails if its newer settings are used
        warnings.filterwarnings("ignore", message=".*new API settings to control TF32")
        torch.backends.cudnn.allow_tf32 = config.tf32
        torch.backends.cuda.matmul.allow_tf32 = config.tf32


def autocast(config: Config, device: torch.device) -> Any:
    dtype = AUTOCAST.get(config.precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _update(state: State) -> None:
    if state.config.clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.classifier.parameters(), state.config.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.classifier)


def broadcast_buffers(state: State) -> None:
    """Copy the running statistics of batch norms from the first process to all others."""
    if state.world.size > 1:
        for buffer in state.judged.buffers():
            dist.broadcast(buffer, 0)


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
        for _ in range(rounds):
            if world.any([stop()])[0]:
                raise Preempted
            for pixels, labels, numbers in islice(coming, 1):  # empty when only other processes have another batch
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
