"""The robustness of trained networks: accuracy on clean, rotated and attacked images. A run keeps it in
robustness.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saprof import atomic
from studies.failures import CannotWrite
from studies.judging.statistics import wilson
from studies.training.run import Run, trained

if TYPE_CHECKING:
    from torch import nn

    from studies.data import Dataset, Images
    from studies.judging.perturbations import Attack

SCHEMA = 1
FILE = "robustness.json"
PARTS = ("clean", "rotations", "attacks")
"""Groups of conditions: those of SAN Tables 3, 9 and 10."""


def _quiet(_: Any) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Manipulations and attacks under which a network is judged. Clean images are always among them, since drops are
    relative to their accuracy."""

    manipulations: tuple[str, ...]
    attacks: tuple[Attack, ...]

    @classmethod
    def from_parts(cls, parts: Sequence[str] = PARTS, attacks: Sequence[Attack] | None = None) -> Conditions:
        """The conditions of some of PARTS; `attacks` are those of studies.judging.perturbations by default."""
        from studies.judging.perturbations import ATTACKS, MANIPULATIONS

        turned = tuple(MANIPULATIONS) if "rotations" in parts else ("none",)
        attacks = tuple(ATTACKS if attacks is None else attacks)
        return cls(manipulations=turned, attacks=attacks if "attacks" in parts else ())

    def missing_from(self, report: dict[str, Any]) -> Conditions:
        """The conditions that `report` does not have."""
        return Conditions(
            manipulations=tuple(name for name in self.manipulations if name not in report["manipulations"]),
            attacks=tuple(attack for attack in self.attacks if attack.name not in report["attacks"]),
        )

    def __len__(self) -> int:
        return len(self.manipulations) + len(self.attacks)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Settings that change the speed, but not the result."""

    batch: int = 256
    workers: int = 0
    device: str = "auto"
    progress: bool = False
    """Whether to show a progress bar on stderr, if that is a terminal."""


def robustness(
    model: nn.Module,
    images: Images,
    dataset: Dataset,
    conditions: Conditions | None = None,
    execution: Execution = Execution(),
) -> dict[str, Any]:
    """Counts, percentages and Wilson's intervals of `model` for every manipulation and attack, as plain JSON.

    If a rotation can change the class of an image, as 6 becomes 9, `without` holds the manipulations again, without the
    images of those classes.
    """
    from studies.data.split import Subset
    from studies.judging.perturbations import MANIPULATIONS, attacked
    from studies.training.classification import evaluate

    conditions = conditions or Conditions.from_parts()
    confused = dataset.confused_when_turned
    kept = [n for n, label in enumerate(images.labels.tolist()) if dataset.classes[label] not in confused]
    steady = Subset(images, images.labels.new_tensor(kept))
    steps = len(images.labels) * len(conditions) + len(kept) * bool(confused) * len(conditions.manipulations)
    with _bar(steps, execution) as seen:
        options: dict[str, Any] = {"batch": execution.batch, "workers": execution.workers, "seen": seen}

        def turned(these: Images) -> dict[str, Any]:
            scores = {}
            for name in conditions.manipulations:
                turn = MANIPULATIONS[name]
                scores[name] = evaluate(model, these, dataset, change=lambda x, *_, turn=turn: turn(x), **options)
            return {name: _with_intervals(score.record()) for name, score in scores.items()}

        report: dict[str, Any] = {"manipulations": turned(images)}
        if confused and kept:
            report["without"] = {"classes": list(confused), "manipulations": turned(steady)}
        report["attacks"] = {
            attack.name: attack.facts() | _with_intervals(attacked(model, images, dataset, attack, **options).record())
            for attack in conditions.attacks
        }
    return report


def _with_intervals(record: dict[str, Any]) -> dict[str, Any]:
    counts = {"top1": "correct1", "top5": "correct5", "success_rate": "success"}
    intervals = {f"{rate}_interval": wilson(record[n], record["n"]) for rate, n in counts.items() if n in record}
    return record | {name: list(interval) for name, interval in intervals.items()}


def judge(
    folder: str | Path,
    conditions: Conditions | None = None,
    execution: Execution = Execution(),
    *,
    images: int | None = None,
    again: bool = False,
    note: Callable[[str], None] = _quiet,
) -> dict[str, Any]:
    """Judge a finished run under the conditions that its robustness.json does not have yet, and return the content.

    `images` is the size of an evenly spread sample to judge; a report on all images is valid for any sample. Raises
    ValueError if the run is not finished.
    """
    from studies.training.classification import Classifier
    from studies.training.distributed import device

    folder, conditions = Path(folder), conditions or Conditions.from_parts()
    before = None if again else judged(folder, images)
    missing = conditions if before is None else conditions.missing_from(before)
    if before is not None and not len(missing):
        note(f"{folder} is judged already, in {FILE}; --again judges it once more")
        return before
    config, dataset, split, model = trained(folder)
    if not isinstance(model, Classifier):
        raise ValueError(f"{folder} trained a detector, whose numbers are in its result.json; expected a classifier")
    all_images = len(split.judged.labels)
    images = None if before is not None and before["sample_of"] is None else images
    report = {
        **_identity(folder),
        "model": config.model,
        "data": dataset.name,
        "evaluation_set": config.protocol,
        "classes": len(dataset.classes),
        "sample_of": all_images if images is not None and images < all_images else None,
    }
    chosen = sample(split.judged, images)
    found = robustness(model.to(device(execution.device)), chosen, dataset, missing, execution)
    report = _merged(report | (before or {}), found)
    try:
        atomic.write(folder / FILE, (json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise CannotWrite(f"cannot write {error.filename}: {error.strerror}") from None
    return report


def judged(
    folder: str | Path, images: int | None = None, conditions: Conditions | None = None
) -> dict[str, Any] | None:
    """The content of robustness.json, if it belongs to the present result of the run and to all images or a sample of
    `images`, and has all `conditions`; else None."""
    path = Path(folder) / FILE
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from None
    enough = report.get("sample_of") is None or report["manipulations"]["none"]["n"] == images
    same = all(report.get(name) == value for name, value in _identity(Path(folder)).items())
    complete = conditions is None or not len(conditions.missing_from(report))
    return report if same and enough and complete else None


def _identity(folder: Path) -> dict[str, Any]:
    result = Run(folder).result() or {}
    return {"schema": SCHEMA} | {name: result.get(name) for name in ("fingerprint", "weights_sha256")}


def _merged(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    parts = {name: before.get(name, {}) | found[name] for name in ("manipulations", "attacks")}
    if "without" in found:
        earlier = before.get("without", {}).get("manipulations", {})
        parts["without"] = found["without"] | {"manipulations": earlier | found["without"]["manipulations"]}
    return before | parts


def sample(images: Images, n: int | None) -> Images:
    """`n` of the images, spread evenly over their order, which is by class in a folder; None returns all images."""
    from studies.data.split import Subset

    if n is not None and n < 1:
        raise ValueError(f"a sample of {n} images; expected at least 1")
    total = len(images.labels)
    if n is None or n >= total:
        return images
    return Subset(images, images.labels.new_tensor([number * total // n for number in range(n)]))


@contextmanager
def _bar(total: int, execution: Execution) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    quiet = None if execution.progress else True  # with None, tqdm is quiet unless stderr is a terminal
    with tqdm(total=total, unit=" images", disable=quiet, leave=False) as bar:
        yield bar.update
