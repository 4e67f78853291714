"""Detection: networks that map images to class logits and box offsets of anchors, and their average precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

import saprof
from saprof import atomic
from saprof.text import counted
from studies.config import Config
from studies.data import Images
from studies.data.split import SCHEMA, Split
from studies.data.views import batches, generator
from studies.detection import anchors, coco, drawing, evaluation, losses, matching, views
from studies.detection.postprocess import Detections, Selection, detections
from studies.detection.scenes import SceneImages, Scenes
from studies.detection.views import Batch, View
from studies.failures import BadData, CannotWrite
from studies.training.adapters import sentence
from studies.training.distributed import World
from studies.training.metrics import Progress
from studies.training.networks import FromPixels, autocast, full, made

FOUND = "detections.json"
PICTURE = "boxes.png"
CURVES = "precision_recall"
"""The stem of the files of a figure."""


class Detector(FromPixels):
    """Maps pixels from 0 to 255 to the outputs of `saprof.RetinaNet.predict`. What lies outside of an image is 0 after
    the normalisation, as in torchvision."""

    def forward(self, pixels: Tensor, sizes: Tensor) -> Any:
        x = self.normalised(pixels)
        places = [torch.arange(length, device=x.device) for length in x.shape[-2:]]
        inside = [place < limit[:, None] for place, limit in zip(places, sizes.unbind(1), strict=True)]
        return cast(Any, self.model).predict(x * (inside[0][:, None, :, None] & inside[1][:, None, None, :]))

    def of_whole(self, pixels: Tensor) -> Any:
        return self(pixels, torch.tensor([pixels.shape[-2:]] * len(pixels), device=pixels.device))


@dataclass(frozen=True)
class Method:
    """How outputs become losses and detections."""

    anchors: anchors.Anchors
    matching: matching.Matching
    losses: losses.Losses
    selection: Selection

    @staticmethod
    def of(config: Config) -> Method:
        name, chosen = config.detector, anchors.PRESETS[config.detector]
        if config.anchor_scale is not None:
            chosen = replace(chosen, scale=config.anchor_scale)
        return Method(chosen, matching.PRESETS[name], losses.PRESETS[name], Selection())

    def levels(self, image: Sequence[int], found: Any, strides: Sequence[int]) -> list[Tensor]:
        """The anchors of each level, for the outputs `found` of padded images of size `image`."""
        return self.anchors.boxes((image[-2], image[-1]), found.sizes, strides, like=full(found.offsets.detach()))


class TrainingScenes(TorchDataset):
    """A training view by (epoch, image); the same in every process."""

    def __init__(self, dataset: Scenes, images: Images, seed: int) -> None:
        self.dataset, self.images, self.seed = dataset, images, seed

    def __getitem__(self, key: tuple[int, int]) -> View:
        epoch, index = key
        view = self.dataset.augment(self.images.read(index), generator(self.seed, epoch, index))
        return view._replace(number=index)


class JudgedScenes(TorchDataset):
    """The view that is judged, by image."""

    def __init__(self, dataset: Scenes, images: Images) -> None:
        self.dataset, self.images = dataset, images

    def __getitem__(self, index: int) -> View:
        return self.dataset.view(self.images.read(index))._replace(number=index)


class Detecting:
    """The task of a run on images with boxes."""

    numbers = ("n", "detections", "nonfinite", *evaluation.NUMBERS, "per_class")
    best = "AP"
    collate = staticmethod(views.collate)

    def __init__(self, config: Config, dataset: Scenes) -> None:
        self.config, self.dataset, self.method = config, dataset, Method.of(config)

    def split(self) -> Split:
        dataset = self.dataset
        manifest = {
            "schema": SCHEMA,
            "protocol": self.config.protocol,
            "data": dataset.name,
            "split_seed": self.config.split_seed,
            "classes": list(dataset.classes),
            "sha256": {"train": dataset.train.digest(), "validation": dataset.test.digest()},
        }
        return Split(dataset.train, dataset.test, manifest)

    def check(self, parts: Split) -> None:
        evaluation.package()
        for name, images in (("train on", parts.train), ("judge", parts.judged)):
            if not len(images):
                raise BadData(f"the data set {self.config.data} has no images to {name}; expected some with objects")

    def network(self) -> Detector:
        """The detector of the config, with new weights from its seed. Raises ValueError if it is no detector."""
        classes, per_position = len(self.dataset.classes), self.method.anchors.count
        try:
            model = made(self.config, {"num_classes": classes, "anchors": per_position})
        except ValueError as error:
            if "'anchors'; expected" in str(error):  # an unknown option of another network of ours
                raise _no_detector(self.config) from None
            raise
        self._expect_detector(model)
        if self.config.backbone is not None:
            _start_from(model, Path(self.config.backbone))
        return self.detector(model)

    def detector(self, model: nn.Module) -> Detector:
        """A network as a detector of the data set. Raises ValueError if it is no detector, or has other anchors or
        classes."""
        self._expect_detector(model)
        detector = Detector(model, self.dataset)
        self._try(detector)
        return detector

    def _expect_detector(self, model: nn.Module) -> None:
        if not hasattr(model, "predict") or not hasattr(model, "strides"):
            raise _no_detector(self.config)

    def _try(self, detector: Detector) -> None:
        """Raise ValueError if an image of the data set does not give logits and offsets of the expected sizes."""
        name, training = type(detector.model).__name__, detector.training
        pixels = torch.zeros(1, *self.dataset.size)
        try:
            with torch.no_grad():
                found = detector.eval().of_whole(pixels)
            levels = self.method.levels(pixels.shape, found, strides(detector))
        except Exception as error:  # a network of a user can raise anything
            raise ValueError(f"{name} cannot detect in an image of {self.dataset.size}: {sentence(error)}") from None
        detector.train(training)
        count = sum(map(len, levels))
        got = tuple(found.logits.shape), tuple(found.offsets.shape)
        expected = (1, count, len(self.dataset.classes)), (1, count, 4)
        if got != expected:
            raise ValueError(
                f"{name} returns logits {got[0]} and offsets {got[1]}; expected {expected[0]} and {expected[1]}, for "
                f"{self.method.anchors.count} anchors per position (detector {self.config.detector}) and "
                f"{len(self.dataset.classes)} classes"
            )

    def groups(self, images: Images) -> Tensor | None:
        if not self.config.by_aspect:
            return None
        scenes = cast(SceneImages, images)
        sizes = torch.tensor([scenes.size(index) for index in range(len(scenes))])
        return (sizes[:, 0] > sizes[:, 1]).long()

    def views(self, images: Images) -> TrainingScenes:
        return TrainingScenes(self.dataset, images, self.config.seed)

    def loss(self, forward: Callable[..., Any], batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """The sum of both losses, and that of the boxes."""
        pixels, sizes = batch.pixels.to(device, non_blocking=True), batch.sizes.to(device, non_blocking=True)
        with autocast(self.config, device):
            found = forward(pixels, sizes)
        every = torch.cat(self.method.levels(pixels.shape, found, strides(forward)))
        targets = [self._targets(objects, every) for objects in batch.objects]
        of_classes, of_boxes = losses.losses(
            full(found.logits), full(found.offsets), every, targets, self.method.losses
        )
        return of_classes + of_boxes, of_boxes

    def _targets(self, objects: coco.Objects, every: Tensor) -> losses.Targets:
        boxes, labels, crowd = (part.to(every.device) for part in objects)
        boxes = boxes.to(every)
        return losses.Targets(boxes, labels, matching.match(boxes, every, self.method.matching, crowd))

    def count(self, progress: Progress, told: float, images: int, world: int) -> None:
        progress.box_loss_sum += told / (world * self.config.accumulate) * images

    def trained(self, progress: Progress) -> dict[str, Any]:
        return {"train_loss_boxes": progress.box_loss_sum / progress.seen}

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
        """The numbers of COCO. The results are written to `folder`."""
        scenes = cast(SceneImages, images)
        results, nonfinite = self.results(network, scenes, world, workers=workers, stop=stop)
        if world.first and folder is not None:
            write_results(folder, results)
        judged = evaluation.evaluate(scenes.ground_truth(), results, self.dataset.sizes)
        counts = {"n": len(images), "detections": len(results), "nonfinite": nonfinite}
        return counts | dict(judged.numbers) | {"per_class": dict(judged.per_class)}

    def results(
        self,
        network: FromPixels,
        images: SceneImages,
        world: World,
        *,
        workers: int,
        stop: Callable[[], bool] = lambda: False,
        at_once: int = evaluation.AT_ONCE,
        seen: Callable[[int], object] = lambda n: None,
    ) -> tuple[list[dict[str, Any]], int]:
        """The detections of all processes as COCO writes them, and the number of images whose outputs are not finite.
        `seen` is called with the size of every batch."""
        found, nonfinite = self._found(network, images, world, workers, stop, at_once, seen)
        truth = images.source.ground_truth()
        return coco.results(sorted((images.indices[n], each) for n, each in found.items()), truth), nonfinite

    def _found(
        self,
        network: FromPixels,
        images: SceneImages,
        world: World,
        workers: int,
        stop: Callable[[], bool],
        at_once: int,
        seen: Callable[[int], object],
    ) -> tuple[dict[int, Detections], int]:
        """The detections of each image in original pixels, on the CPU, from all processes; and the number of images
        whose outputs are not finite."""
        keys = [batches_of(self.dataset.rules, images, rank, world.size, at_once) for rank in range(world.size)]
        coming = batches(
            JudgedScenes(self.dataset, images), keys[world.rank], workers, world.device.type == "cuda", views.collate
        )
        mine: dict[int, Detections] = {}
        nonfinite, training = 0, network.training
        network.eval()
        try:
            for batch in world.rounds(coming, max(map(len, keys)), stop):
                found = list(self._of_batch(network, batch, world.device))
                nonfinite += sum(each is None for each in found)
                pairs = zip(batch.numbers, found, strict=True)
                mine |= {number: each for number, each in pairs if each is not None}
                seen(len(found))
        finally:
            network.train(training)
        return _gathered(mine, world), int(world.sum([nonfinite])[0])

    @torch.no_grad()
    def _of_batch(self, network: FromPixels, batch: Batch, device: torch.device) -> Iterator[Detections | None]:
        pixels, sizes = batch.pixels.to(device), batch.sizes.to(device)
        with autocast(self.config, device):
            found = network(pixels, sizes)
        levels = self.method.levels(pixels.shape, found, strides(network))
        logits, offsets = full(found.logits), full(found.offsets)
        for place, (size, scale) in enumerate(zip(batch.sizes.tolist(), batch.scales, strict=True)):
            one = slice(place, place + 1)
            if not (logits[one].isfinite().all() and offsets[one].isfinite().all()):
                yield None
                continue
            (each,) = detections(logits[one], offsets[one], levels, [tuple(size)], self.method.selection)
            boxes, scores, labels = (part.cpu() for part in each)
            yield Detections(views.back(boxes, scale), scores, labels)

    def finish(self, folder: Path, images: Images) -> None:
        """Draw the detections of the last evaluation. There are no pictures if the file of that evaluation is lost."""
        try:
            results = json.loads((folder / FOUND).read_bytes())
        except (OSError, ValueError):
            return
        scenes = cast(SceneImages, images)
        self.draw(folder, scenes, results, evaluation.evaluate(scenes.ground_truth(), results, self.dataset.sizes))

    def draw(
        self, folder: Path, images: SceneImages, results: Sequence[Mapping[str, Any]], judged: evaluation.Evaluation
    ) -> None:
        """Draw the boxes on the first images, beside the ground truth, and precision against recall."""
        from studies.detection import curves  # which imports matplotlib

        drawing.draw(folder / PICTURE, images.source, images.indices, results)
        about = f"{self.config.model}  ·  {self.dataset.name}, {self.config.protocol}, {counted(len(images), 'image')}"
        curves.write(folder / CURVES, judged, about)

    def while_training(self, line: Mapping[str, Any]) -> str:
        judged = f", judged: {_precision(line)}" if "AP" in line else ""
        return f"{line['train_loss_boxes']:.3f} of it for boxes{judged}"

    @staticmethod
    def outcome(result: Mapping[str, Any]) -> str:
        best = result["best_AP"]
        most = "no AP" if best is None else f"AP {100 * best:.1f} %"
        return f"{_precision(result)}, on {result['n']} images; {most} in the best of the judged epochs"


def _precision(found: Mapping[str, Any]) -> str:
    values = ((name, found[name]) for name in ("AP", "AP50", "AP75"))
    return ", ".join(f"{name} {'no object' if value is None else f'{100 * value:.1f} %'}" for name, value in values)


def _no_detector(config: Config) -> ValueError:
    return ValueError(
        f"{config.model} is no detector, and {config.data} has boxes; expected a model such as retinanet_resnet50, or "
        "package.module:function of a network with `predict` and `strides`, as saprof.RetinaNet has them"
    )


def _start_from(model: nn.Module, path: Path) -> None:
    """Give the backbone of a detector the weights of a network in a file of saprof.save, without its classifier. Raises
    ValueError if it is another network."""
    if not isinstance(model, saprof.RetinaNet):
        raise ValueError(f"backbone is {path}, and the model is of type {type(model).__name__}; expected a RetinaNet")
    try:
        weights = saprof.load(path).state_dict()
    except OSError as error:
        raise ValueError(f"backbone is {path}, which cannot be read: {error.strerror}") from None
    own = cast(Any, model.backbone).network
    expected = {name: value.shape for name, value in own.state_dict().items()}
    unlike = [name for name, shape in expected.items() if name not in weights or weights[name].shape != shape]
    if unlike:
        raise ValueError(f"backbone is {path}, which holds another network: it has no {unlike[0]} of the same size")
    own.load_state_dict({name: weights[name] for name in expected})


def strides(forward: Any) -> tuple[int, ...]:
    """The strides of the levels of a detector, which may be wrapped for several processes or compiled."""
    while isinstance(forward, nn.Module) and not isinstance(forward, Detector):
        forward = getattr(forward, "_orig_mod", None) or forward.module
    return tuple(cast(Any, forward.model).strides)


def write_results(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write detections as COCO writes results. Raises CannotWrite if that fails."""
    try:
        atomic.write(folder / FOUND, json.dumps(results).encode())
    except OSError as error:
        raise CannotWrite(f"cannot write {error.filename}: {error.strerror}") from None


def batches_of(
    rules: views.Rules, images: SceneImages, rank: int, world: int, at_once: int = evaluation.AT_ONCE
) -> list[list[int]]:
    """The images of a process, in batches of one padded size, so that the padding of an image does not depend on the
    others."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index in range(rank, len(images), world):
        size = tuple(views.padded(length) for length in rules.judged_size(images.size(index)))
        by_size.setdefault(size, []).append(index)
    return [found[start : start + at_once] for found in by_size.values() for start in range(0, len(found), at_once)]


def _gathered(mine: dict[int, Detections], world: World) -> dict[int, Detections]:
    if world.size == 1:
        return mine
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, mine)
    return {number: each for part in parts for number, each in part.items()}
