"""The task of a run: how its networks are made, how a batch becomes a loss, and how a network is judged. Everything
else, such as steps, checkpoints and processes, is the same for all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from studies.config import Config
from studies.data import Dataset, Images
from studies.data.split import Split
from studies.detection.scenes import Scenes
from studies.training.classification import Classification
from studies.training.detecting import Detecting

if TYPE_CHECKING:
    from studies.training.distributed import World
    from studies.training.metrics import Progress
    from studies.training.networks import FromPixels


class Task(Protocol):
    """What a run trains: a task of a config on a data set."""

    @property
    def dataset(self) -> Dataset: ...

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the numbers of `judge`."""
        ...

    @property
    def best(self) -> str:
        """The number by which epochs are compared; larger is better."""
        ...

    @property
    def collate(self) -> Callable[[list[Any]], Any] | None:
        """Makes a batch of views; None is torch's default."""
        ...

    def split(self) -> Split:
        """The images for training and for evaluation."""
        ...

    def check(self, parts: Split) -> None:
        """Raise ValueError, or BadData, if nothing can be learned from these images with this config."""
        ...

    def network(self) -> FromPixels:
        """The network, with new weights. Raises ValueError if it cannot do the task."""
        ...

    def groups(self, images: Images) -> Tensor | None:
        """A number for each image; a batch has images of equal numbers. None if any images can be a batch."""
        ...

    def views(self, images: Images) -> TorchDataset:
        """The views for training, by (epoch, image)."""
        ...

    def loss(self, forward: Callable[..., Any], batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and one more number, whose sum over pieces and processes `count` takes."""
        ...

    def count(self, progress: Progress, told: float, images: int, world: int) -> None:
        """Add the number that `loss` told in a step of `images` images and `world` processes."""
        ...

    def trained(self, progress: Progress) -> Mapping[str, Any]:
        """What a line of metrics says about training, besides the loss."""
        ...

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
        """The numbers of an evaluation over all processes, as plain JSON. The first process may write files to the
        folder of the run. Raises Preempted when any process is asked to stop."""
        ...

    def finish(self, folder: Path, images: Images) -> None:
        """Write what else a finished run has to show, in the first process."""
        ...

    def while_training(self, line: Mapping[str, Any]) -> str:
        """A line of metrics in words, without its loss."""
        ...

    @staticmethod
    def outcome(result: Mapping[str, Any]) -> str:
        """A result in words."""
        ...


def of(config: Config, dataset: Dataset) -> Task:
    """The task of a config on a data set: detection on scenes, else classification."""
    return Detecting(config, dataset) if isinstance(dataset, Scenes) else Classification(config, dataset)


def outcome(result: Mapping[str, Any]) -> str:
    """The result of a run in words."""
    return next(task.outcome(result) for task in (Detecting, Classification) if task.best in result)
