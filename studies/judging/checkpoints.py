"""Checkpoints without a run, judged on the validation set of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studies.config import Config
from studies.data import BOXES
from studies.data.listing import numbers_in_order_of_text
from studies.judging.robustness import Conditions, Execution, robustness, sample

if TYPE_CHECKING:
    from saprof.models.build import Model
    from studies.data import Dataset
    from studies.training.classification import Classifier


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    path: Path
    official: bool = False
    """Whether the SAN authors' code wrote it, instead of saprof.save."""
    model: str | None = None
    """The name of its model, one of saprof.list_models()."""

    def classifier(self, config: Config, dataset: Dataset) -> Classifier:
        """The network in evaluation mode. Raises ValueError if it is not the named model, or does not fit the data."""
        import saprof
        from studies.training.classification import Classifier, network

        if self.official:
            _check_order(dataset.classes)
            classifier = network(config, dataset)
            if not isinstance(classifier.model, saprof.SAN):
                raise ValueError(f"--official is for checkpoints of the SAN authors, and {self.model} is no SAN")
            saprof.load_official(classifier.model, self.path)
            return classifier.eval()
        model = saprof.load(self.path)
        if isinstance(model, saprof.RetinaNet):
            raise ValueError(f"{self.path} holds a detector; expected a --recipe, or --data {', '.join(BOXES)}")
        classes = model.config.num_classes
        if classes != len(dataset.classes):
            raise ValueError(f"{self.path} has {classes} classes; {dataset.name} has {len(dataset.classes)}")
        if self.model is not None:
            self.check_name(model)
        return Classifier(model, dataset).eval()

    def check_name(self, model: Model) -> None:
        """Raise ValueError if `model` is not of the name."""
        from saprof.models.counting import blueprint

        expected = vars(blueprint(str(self.model), num_classes=model.config.num_classes).config)
        found, implementation = vars(model.config), {"backend", "attention"}
        differing = [key for key in expected if key not in implementation and found.get(key) != expected[key]]
        if found.keys() != expected.keys() or differing:
            raise ValueError(f"{self.path} holds another model than {self.model}; leave --model out, or name its own")


def _check_order(classes: Sequence[str]) -> None:
    """Raise ValueError for names whose order cannot be that of the checkpoint's classes."""
    if numbers_in_order_of_text(classes):
        raise ValueError(
            f"the classes are numbers in the order of their text ({', '.join(classes[:3])}, …), which is not the order "
            "of the checkpoint's classes; give all folders names of equal length, such as 0002 or n01440764"
        )


def judge_checkpoint(
    checkpoint: Checkpoint, config: Config, conditions: Conditions, execution: Execution, images: int | None = None
) -> dict[str, Any]:
    """The report of a checkpoint on the validation set of the config's data, in the form of a run's report."""
    from studies import data
    from studies.training.distributed import device
    from studies.training.engine import set_precision

    set_precision(config)
    dataset = data.load(config)
    model = checkpoint.classifier(config, dataset)
    chosen = sample(dataset.test, images)
    total = len(dataset.test.labels)
    return {
        "model": checkpoint.model,
        "data": dataset.name,
        "evaluation_set": "val-original",
        "classes": len(dataset.classes),
        "sample_of": total if len(chosen.labels) < total else None,
        **robustness(model.to(device(execution.device)), chosen, dataset, conditions, execution),
    }
