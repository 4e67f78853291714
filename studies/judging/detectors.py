"""Trained detectors, judged on images with boxes. A run keeps the report in evaluation.json, beside its detections, a
picture of some of them, and a figure of precision against recall."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saprof import atomic
from saprof.terminal import laid_out
from studies.config import Config
from studies.detection.evaluation import AT_ONCE, NUMBERS
from studies.failures import CannotWrite
from studies.judging import table
from studies.judging.checkpoints import Checkpoint
from studies.training.run import Run, trained

if TYPE_CHECKING:
    from studies.detection.scenes import SceneImages
    from studies.training.detecting import Detecting
    from studies.training.networks import FromPixels

SCHEMA = 1
FILE = "evaluation.json"
OF_CLASS = ("AP", "AP50", "AP75")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How detectors are judged."""

    at_once: int = AT_ONCE
    """Images of a batch. They have the same padded size, so the size of a batch does not change the result."""
    workers: int = 0
    device: str = "auto"
    images: int | None = None
    """The size of an evenly spread sample; None judges all images."""
    progress: bool = False
    """Whether to show a progress bar on stderr, if that is a terminal."""


def trained_here(folder: Path) -> bool:
    """Whether a folder holds a finished run of a detector."""
    return NUMBERS[0] in (Run(folder).result() or {})


def judge(
    folder: Path, execution: Execution = Execution(), *, again: bool = False, note: Callable[[str], None] = print
) -> dict[str, Any]:
    """Judge the detector of a finished run, and return the content of its evaluation.json.

    A run is not judged again if that file is of all images, or of a sample of this size. The detections and the
    pictures are written too, unless only a sample is judged.
    """
    from studies.training import tasks

    before = None if again else _before(folder, execution.images)
    if before is not None:
        note(f"{folder} is judged already, in {FILE}; --again judges it once more")
        return before
    config, dataset, parts, network = trained(folder)
    task: Any = tasks.of(config, dataset)
    whole = execution.images is None or execution.images >= len(parts.judged)
    report = _identity(folder) | _judged(task, network, parts.judged, execution, folder if whole else None)
    if not whole and _before(folder, None) is not None:
        note(f"{folder / FILE} keeps its report of all images; that of the sample is only shown")
        return report
    content = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        atomic.write(folder / FILE, content.encode())
    except OSError as error:
        raise CannotWrite(f"cannot write {error.filename}: {error.strerror}") from None
    return report


def judge_checkpoint(
    checkpoint: Checkpoint, config: Config, execution: Execution, folder: Path | None = None
) -> dict[str, Any]:
    """The report of a file of `saprof.save` on the validation set of the config's data, in the form of a run's report.
    The detections and the pictures are written to the folder. Raises ValueError if the file holds no detector, or if
    its anchors or classes are not those of the config and the data."""
    import saprof
    from studies import data
    from studies.detection.evaluation import package
    from studies.training import tasks
    from studies.training.engine import set_precision

    package()
    set_precision(config)
    dataset = data.load(config)
    task: Any = tasks.of(config, dataset)
    model: Any = saprof.load(checkpoint.path)
    if not isinstance(model, saprof.RetinaNet):
        raise ValueError(f"{checkpoint.path} holds a classifier, and {config.data} has boxes; expected a RetinaNet")
    if checkpoint.model is not None:
        checkpoint.check_name(model)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(f"cannot write to {folder}: {error.strerror}; choose another --output") from None
    network = task.detector(model.double() if config.precision == "fp64" else model).eval()
    report = _judged(task, network, dataset.test, execution, folder)
    return report | {"model": checkpoint.model}


def _judged(
    task: Detecting, network: FromPixels, images: Any, execution: Execution, folder: Path | None
) -> dict[str, Any]:
    """The report on the images, or on a sample of them. Detections and pictures are written to the folder."""
    from studies.detection import evaluation
    from studies.training.detecting import write_results
    from studies.training.distributed import World, device

    where, chosen = device(execution.device), images.sample(execution.images)
    with _bar(len(chosen), execution) as seen:
        results, nonfinite = task.results(
            network.to(where),
            chosen,
            World(0, 1, where),
            workers=execution.workers,
            at_once=execution.at_once,
            seen=seen,
        )
    found = evaluation.evaluate(chosen.ground_truth(), results, task.dataset.sizes)
    if folder is not None:
        write_results(folder, results)
        task.draw(folder, chosen, results, found)
    return {
        "model": task.config.model,
        "data": task.dataset.name,
        "evaluation_set": task.config.protocol,
        "sample_of": len(images) if len(chosen) < len(images) else None,
        "n": len(chosen),
        "detections": len(results),
        "nonfinite": nonfinite,
        "numbers": dict(found.numbers),
        "classes": _of_classes(found, chosen),
    }


def _of_classes(found: Any, images: SceneImages) -> dict[str, Any]:
    """By name of the class: its objects, AP, AP50 and AP75."""
    counts = zip(images.source.classes, images.counts().tolist(), strict=True)
    return {name: {"objects": count} | found.of_class(name) for name, count in counts}


def _before(folder: Path, images: int | None) -> dict[str, Any] | None:
    """The content of evaluation.json, if it belongs to the present result and to all images, or to as many of them."""
    path = folder / FILE
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        same = all(report[name] == value for name, value in _identity(folder).items())
        enough = report["sample_of"] is None or report["n"] == images
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from None
    return report if same and enough else None


def _identity(folder: Path) -> dict[str, Any]:
    result = Run(folder).result() or {}
    return {"schema": SCHEMA} | {name: result.get(name) for name in ("fingerprint", "weights_sha256")}


def rows(name: str, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The flat rows of a report: one of all classes, then one per class."""
    keys = ("model", "data", "evaluation_set", "sample_of", "n", "detections", "nonfinite")
    about = {"name": name} | {key: report[key] for key in keys}
    objects = sum(of_class["objects"] for of_class in report["classes"].values())
    every = {**about, "class": "all", "objects": objects, **report["numbers"]}
    return [every, *({**about, "class": label, **of_class} for label, of_class in report["classes"].items())]


def render(flat: Sequence[Mapping[str, Any]], form: str) -> str:
    """The rows as tables for people, separate for each data set and set of images."""
    groups = table.by_images(flat, ("data", "evaluation_set", "sample_of", "n"))
    return "\n\n".join(_section(group, form) for group in groups)


def _section(group: Sequence[Mapping[str, Any]], form: str) -> str:
    every = [row for row in group if row["class"] == "all"]
    numbers = [
        laid_out(["network", *names], [[row["name"], *_cells(row, names)] for row in every], form)
        for names in (NUMBERS[:6], NUMBERS[6:])
    ]
    bad = [
        f"{row['name']}: the outputs of {row['nonfinite']} images are not finite" for row in every if row["nonfinite"]
    ]
    each = laid_out(
        ["network", "class", "objects", *OF_CLASS],
        [
            [row["name"], row["class"], f"{row['objects']}", *_cells(row, OF_CLASS)]
            for row in group
            if row["class"] != "all"
        ],
        form,
    )
    return "\n\n".join([table.title(group[0], form), "Per cent; – where there is no object.", *numbers, *bad, each])


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return ["–" if row[name] is None else f"{100 * row[name]:.1f}" for name in names]


@contextmanager
def _bar(total: int, execution: Execution) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    quiet = None if execution.progress else True  # with None, tqdm is quiet unless stderr is a terminal
    with tqdm(total=total, unit=" images", disable=quiet, leave=False) as bar:
        yield bar.update
