"""Trained networks judged on clean, turned and attacked images; a run keeps what comes of it in robustness.json."""

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
    from studies.judging.robust import Attack

SCHEMA = 1
FILE = "robustness.json"
PARTS = ("clean", "rotations", "attacks")
"""What can be asked for: SAN Tables 3, 9 and 10."""


def _quiet(_: Any) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is judged. Clean images always are, since drops are counted from there."""

    manipulations: tuple[str, ...]
    attacks: tuple[Attack, ...]

    @classmethod
    def of(cls, parts: Sequence[str] = PARTS, attacks: Sequence[Attack] | None = None) -> Asked:
        """Some of PARTS; `attacks` are those of studies.judging.robust by default."""
        from studies.judging.robust import ATTACKS, MANIPULATIONS

        turned = tuple(MANIPULATIONS) if "rotations" in parts else ("none",)
        attacks = tuple(ATTACKS if attacks is None else attacks)
        return cls(manipulations=turned, attacks=attacks if "attacks" in parts else ())

    def besides(self, report: dict[str, Any]) -> Asked:
        """What of it `report` does not hold."""
        return Asked(
            manipulations=tuple(name for name in self.manipulations if name not in report["manipulations"]),
            attacks=tuple(attack for attack in self.attacks if attack.name not in report["attacks"]),
        )

    def __len__(self) -> int:
        return len(self.manipulations) + len(self.attacks)


@dataclass(frozen=True, kw_only=True)
class How:
    """What decides how fast it goes."""

    batch: int = 256
    workers: int = 0
    device: str = "auto"
    progress: bool = False
    """Whether to draw a bar on stderr, if that is a terminal."""


def robustness(
    model: nn.Module, images: Images, dataset: Dataset, asked: Asked | None = None, how: How = How()
) -> dict[str, Any]:
    """Counts, percentages and Wilson's intervals of `model` for every manipulation and attack, as plain JSON.

    Where turning makes one class of the data set another, `without` holds what is turned once more, less those classes.
    """
    from studies.data.split import Subset
    from studies.judging.robust import MANIPULATIONS, attacked
    from studies.training.engine import evaluate

    asked = asked or Asked.of()
    confused = dataset.confused_when_turned
    kept = [n for n, label in enumerate(images.labels.tolist()) if dataset.classes[label] not in confused]
    steady = Subset(images, images.labels.new_tensor(kept))
    with _bar(len(images.labels) * len(asked) + len(kept) * bool(confused) * len(asked.manipulations), how) as seen:
        options: dict[str, Any] = {"batch": how.batch, "workers": how.workers, "seen": seen}

        def turned(these: Images) -> dict[str, Any]:
            scores = {}
            for name in asked.manipulations:
                turn = MANIPULATIONS[name]
                scores[name] = evaluate(model, these, dataset, change=lambda x, *_, turn=turn: turn(x), **options)
            return {name: _with_intervals(score.record()) for name, score in scores.items()}

        report: dict[str, Any] = {"manipulations": turned(images)}
        if confused and kept:
            report["without"] = {"classes": list(confused), "manipulations": turned(steady)}
        report["attacks"] = {
            attack.name: attack.facts() | _with_intervals(attacked(model, images, dataset, attack, **options).record())
            for attack in asked.attacks
        }
    return report


def _with_intervals(record: dict[str, Any]) -> dict[str, Any]:
    counts = {"top1": "correct1", "top5": "correct5", "success_rate": "success"}
    intervals = {f"{rate}_interval": wilson(record[n], record["n"]) for rate, n in counts.items() if n in record}
    return record | {name: list(interval) for name, interval in intervals.items()}


def judge(
    folder: str | Path,
    asked: Asked | None = None,
    how: How = How(),
    *,
    images: int | None = None,
    again: bool = False,
    say: Callable[[str], None] = _quiet,
) -> dict[str, Any]:
    """The content of a finished run's robustness.json, in which what was asked and is not there yet is judged now.

    `images` judges a sample of so many, spread evenly; a report on all images serves for any sample. ValueError if the
    run is not finished.
    """
    from studies.training.distributed import device

    folder, asked = Path(folder), asked or Asked.of()
    before = None if again else judged(folder, images)
    missing = asked if before is None else asked.besides(before)
    if before is not None and not len(missing):
        say(f"{folder} is judged already, in {FILE}; --again judges it once more")
        return before
    config, dataset, split, model = trained(folder)
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
    found = robustness(model.to(device(how.device)), sample(split.judged, images), dataset, missing, how)
    report = _merged(report | (before or {}), found)
    try:
        atomic.write(folder / FILE, (json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise CannotWrite(f"cannot write {error.filename}: {error.strerror}") from None
    return report


def judged(folder: str | Path, images: int | None = None, asked: Asked | None = None) -> dict[str, Any] | None:
    """What robustness.json holds of a run as it is now, on all images or a sample of `images`.

    None if it is of something else, or lacks some of what was `asked`.
    """
    path = Path(folder) / FILE
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from None
    enough = report.get("sample_of") is None or report["manipulations"]["none"]["n"] == images
    same = all(report.get(name) == value for name, value in _identity(Path(folder)).items())
    whole = same and (asked is None or not len(asked.besides(report)))
    return report if whole and enough else None


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
    """`n` of the images, spread evenly over their order, which is by class in a folder; None is all."""
    from studies.data.split import Subset

    if n is not None and n < 1:
        raise ValueError(f"a sample of {n} images; expected at least 1")
    total = len(images.labels)
    if n is None or n >= total:
        return images
    return Subset(images, images.labels.new_tensor([number * total // n for number in range(n)]))


@contextmanager
def _bar(total: int, how: How) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    quiet = None if how.progress else True  # None asks whether stderr is a terminal
    with tqdm(total=total, unit=" images", disable=quiet, leave=False) as bar:
        yield bar.update
