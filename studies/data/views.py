"""Batches of pixels. A batch depends only on seed and step, so no sampler has a state that must be saved."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from studies.data import Dataset, Images
from studies.failures import BadData


def number(*key: int) -> int:
    """A seed that differs for every key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little", signed=True)


def generator(*key: int) -> torch.Generator:
    """A generator with a seed that differs for every key."""
    return torch.Generator().manual_seed(number(*key))


def order(seed: int, epoch: int, n: int) -> Tensor:
    """The order of `n` images in an epoch."""
    return torch.randperm(n, generator=generator(seed, epoch))


def grouped(images: Tensor, groups: Tensor, batch: int, draws: torch.Generator) -> Tensor:
    """The images in an order in which each batch, but for a few, has images of one group. The order within a group does
    not change, and that of the batches is drawn. What is left of all groups fills the last batches."""
    whole, left = [], []
    for group in groups.unique().tolist():
        members = images[groups == group]
        full = len(members) // batch * batch
        whole += members[:full].split(batch) if full else []
        left.append(members[full:])
    mixed = torch.cat(left)
    whole += mixed[: len(mixed) // batch * batch].split(batch) if len(mixed) >= batch else []
    last = mixed[len(mixed) // batch * batch :]
    return torch.cat([*(whole[place] for place in torch.randperm(len(whole), generator=draws).tolist()), last])


@dataclass(frozen=True)
class Plan:
    """The images of each process at each step: a process takes the images `[rank::world]` of a step."""

    n: int
    batch: int
    accumulate: int
    seed: int
    remainder: str = "drop"
    groups: Tensor | None = field(default=None, compare=False)
    """A number for each image; a batch has images of equal numbers, as far as there are enough."""

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        full, left = divmod(self.n, self.batch)
        return full + (self.remainder == "keep" and left > 0)

    def seen(self, step: int, world: int) -> int:
        """The images of all steps before `step`, over all processes; a repeated image counts each time."""
        epoch, within = divmod(step, self.steps)
        return epoch * min(self.steps * self.batch, self.n + self._repeated(world)) + within * self.batch

    def fewest(self, world: int) -> int:
        """The images of the smallest piece of a step."""
        return (self.seen(self.steps, world) - self.seen(self.steps - 1, world)) // (world * self.accumulate)

    def _repeated(self, world: int) -> int:
        """Images to repeat in an epoch so that it divides into equal shares."""
        return -self.n % (world * self.accumulate)

    def _order(self, epoch: int) -> Tensor:
        images = order(self.seed, epoch, self.n)
        if self.groups is None:
            return images
        return grouped(images, self.groups[images], self.batch, generator(self.seed, epoch, -1))

    def pieces(self, start: int, stop: int, rank: int, world: int) -> Iterator[list[tuple[int, int]]]:
        """For the steps from `start` to before `stop`, the (epoch, image) pairs of each piece of one process."""
        shown, images = -1, torch.empty(0)
        for step in range(start, stop):
            epoch, within = divmod(step, self.steps)
            if epoch != shown:
                shown, images = epoch, self._order(epoch)
                images = torch.cat([images, images[: self._repeated(world)]])
            mine = images[within * self.batch :][: self.batch][rank::world]
            for piece in mine.chunk(self.accumulate):
                yield [(epoch, image) for image in piece.tolist()]


class TrainingViews(TorchDataset):
    """An augmented view and its label, by (epoch, image); the same in every process."""

    def __init__(self, dataset: Dataset, images: Images, seed: int) -> None:
        self.dataset, self.images, self.seed = dataset, images, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        view = self.dataset.augment(self.images.read(index), generator(self.seed, epoch, index))
        return view, self.images.labels[index]


class JudgedViews(TorchDataset):
    """The view of an image, its label and its number, by image."""

    def __init__(self, dataset: Dataset, images: Images) -> None:
        self.dataset, self.images = dataset, images

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.dataset.view(self.images.read(index)), self.images.labels[index], index


def batches(
    views: TorchDataset,
    keys: Iterable[Sequence],
    workers: int,
    pinned: bool,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Batches of views, in the order of `keys`; `collate` makes a batch of a list of views.

    Raises BadData, which names the file, if an image cannot be read.
    """
    loader = DataLoader(
        views,
        batch_sampler=keys,  # pyright: ignore[reportArgumentType]  an iterable that is used once needs no length
        num_workers=workers,
        pin_memory=pinned,
        collate_fn=collate,
        worker_init_fn=_outlive_signals,
        multiprocessing_context=_context() if workers else None,
        generator=torch.Generator(),  # DataLoader draws an unused number, which would advance torch's generator
    )
    try:
        yield from loader
    except BadData as error:  # a worker's message has its traceback first, and then the sentence
        raise BadData(str(error).strip().rpartition("BadData: ")[2]) from None


def _context() -> BaseContext | None:
    """The start method of workers; None is torch's default. A process of a process group has threads and must not be
    forked, because a lock held by one of them would stay locked in the worker."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch, once for all workers
    return context


def _outlive_signals(_: int) -> None:
    """Ignore signals in a worker: its parent finishes the step and saves the state first, and then ends the worker."""
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, signal.SIG_IGN)
    torch.set_num_threads(1)


Change = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes pixels (float, n c h w, 0 to 255), labels and image numbers; returns the pixels that are judged."""
