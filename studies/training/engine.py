"""Training in plain PyTorch; every random number is a function of the config and the step."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from saprof.compiling import compiling
from studies.config import Config
from studies.data import Dataset, Images
from studies.data.views import Plan, batches, number
from studies.failures import NonFinite, Preempted
from studies.training import tasks
from studies.training.distributed import World
from studies.training.metrics import Progress
from studies.training.networks import FromPixels
from studies.training.tasks import Task

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Modules whose parameters scale and shift normalised values. `_NormBase` is the base of batch and instance norms."""


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


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of the next step after `step` steps: it rises linearly from 0, then falls as a cosine to 0 at
    the end of the last epoch, or to a tenth after each of `lr_drops`."""
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs:
        return config.lr * min((step + 1) / (config.warmup_epochs * steps_per_epoch), 1.0)
    if config.lr_drops:
        return config.lr * 0.1 ** sum(epoch >= drop for drop in config.lr_drops)
    if config.lr_every == "epoch":
        epoch = math.floor(epoch)
    elapsed = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.lr * (1 + math.cos(math.pi * min(max(elapsed, 0.0), 1.0))) / 2


@dataclass
class State:
    """The state of a run. A checkpoint saves all of it."""

    config: Config
    classifier: FromPixels
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
    def judged(self) -> FromPixels:
        """The network that is evaluated: the moving average if there is one, else the trained network."""
        judged = self.classifier if self.average is None else self.average.module
        assert isinstance(judged, FromPixels)
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


def plan(config: Config, images: Images, world: World, groups: Tensor | None = None) -> Plan:
    """The order of the images; see `Task.groups`. Raises ValueError unless a step's images divide into equal
    pieces and an epoch has at least one step."""
    pieces = world.size * config.accumulate
    if config.batch % pieces:
        raise ValueError(
            f"batch is {config.batch}; expected a multiple of {pieces}, {world.size} processes times "
            f"{config.accumulate} pieces, since gradients are means over equal pieces"
        )
    if config.batch > len(images):
        raise ValueError(f"batch is {config.batch}; expected at most the {len(images)} images to train on")
    return Plan(len(images), config.batch, config.accumulate, config.seed, config.remainder, groups)


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
    task = tasks.of(config, dataset)
    schedule = plan(config, images, world, task.groups(images))
    coming = _coming(state, schedule, stop_at, task, images)
    state.classifier.train()
    first = state.step
    while state.step < stop_at:
        started = time.perf_counter()
        torch.manual_seed(number(config.seed, state.step, world.rank))  # for dropout and other random layers
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.step, schedule.steps)
        with _told(config) if state.step == first else nullcontext():
            loss, told, waited = _accumulated(state, coming, task)
        broken = not math.isfinite(loss)
        stopping, broken, loss, told = world.sum([hooks.stop(), broken, loss / world.size, told])
        if broken:
            raise NonFinite("the loss is not finite; the last checkpoint is intact. Lower lr, or look at the images")
        _update(state)
        images_of_step = schedule.seen(state.step + 1, world.size) - schedule.seen(state.step, world.size)
        state.step += 1
        progress = state.progress
        progress.loss_sum += loss * images_of_step
        task.count(progress, told, images_of_step, world.size)
        progress.seen += images_of_step
        progress.waited += waited
        progress.seconds += time.perf_counter() - started
        hooks.after_step(state)
        if stopping:  # after the step, because a repeated forward pass would update batch norms twice
            raise Preempted


def _coming(state: State, schedule: Plan, stop_at: int, task: Task, images: Images) -> Iterator[Any]:
    config, world = state.config, state.world
    keys = schedule.pieces(state.step, stop_at, world.rank, world.size)
    return batches(task.views(images), keys, config.workers, world.device.type == "cuda", task.collate)


def _accumulated(state: State, coming: Iterator[Any], task: Task) -> tuple[float, float, float]:
    """Accumulate the gradients of one step over its pieces; return the mean loss, the sum of the task's other number
    and the seconds spent waiting for images."""
    pieces, device = state.config.accumulate, state.world.device
    state.optimizer.zero_grad(set_to_none=True)
    losses, others, waited = [], [], 0.0
    for piece in range(pieces):
        began = time.perf_counter()
        batch = next(coming)
        waited += time.perf_counter() - began
        with _unsynchronised(state.forward, piece < pieces - 1):
            loss, other = task.loss(state.forward, batch, device)
            state.scaler.scale(loss / pieces).backward()
        losses.append(loss.detach())
        others.append(other.detach())
    loss, told = torch.stack([torch.stack(losses).mean().double(), torch.stack(others).sum().double()]).tolist()
    return loss, told, waited


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
