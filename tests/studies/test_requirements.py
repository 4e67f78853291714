"""What training requires is checked before anything is written, and a network may be anybody's."""

from dataclasses import replace

import networks
import pytest
import torch
from torch import nn

from studies.config import Config
from studies.data import Pixels
from studies.failures import BadData
from studies.training.distributed import World
from studies.training.requirements import prepared

PLAIN = Config(model="networks:plain", data="few", batch=16, epochs=4, protocol="val-original")


@pytest.fixture(scope="module")
def few():
    return networks.load(PLAIN)


def check(config: Config, dataset, processes: int = 1):
    return prepared(config, dataset, World(0, processes, torch.device("cpu")))


def of_classes(dataset, number: int):
    """The images of the first classes."""
    parts = [Pixels(p.pixels[p.labels < number], p.labels[p.labels < number]) for p in (dataset.train, dataset.test)]
    return replace(dataset, classes=dataset.classes[:number], train=parts[0], test=parts[1])


def test_a_run_that_can_be_is_prepared(few):
    parts, plan, classifier = check(PLAIN, few)
    assert (len(parts.train.labels), plan.steps, type(classifier.model)) == (80, 5, nn.Sequential)


def test_one_class_is_nothing_to_tell_apart(few):
    with pytest.raises(BadData, match="the data set few has 1 class; expected at least 2"):
        check(replace(PLAIN, batch=8), of_classes(few, 1))


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("over", ["others", "all"])
def test_the_label_keeps_the_largest_share_of_the_smoothing(few, classes, over, monkeypatch):
    monkeypatch.setattr(networks, "CLASSES", classes)
    limit = (classes - 1) / classes if over == "others" else 1.0
    config = replace(PLAIN, smoothing_over=over)
    check(replace(config, label_smoothing=limit - 1e-3), of_classes(few, classes))
    for smoothing in (limit, 1.0):
        with pytest.raises(ValueError, match=rf"label_smoothing is .*; expected below {limit:g}"):
            check(replace(config, label_smoothing=smoothing), of_classes(few, classes))


def test_every_class_is_trained_on_and_some_images_are_judged(few):
    kept = few.train.labels != 3
    with pytest.raises(BadData, match="class 'd' has no images to train on"):
        check(PLAIN, replace(few, train=Pixels(few.train.pixels[kept], few.train.labels[kept])))
    with pytest.raises(BadData, match="has no images to judge"):
        check(PLAIN, replace(few, test=Pixels(few.test.pixels[:0], few.test.labels[:0])))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"warmup_epochs": 5}, "warmup_epochs is 5; expected at most epochs, 4"),
        ({"batch": 81}, "batch is 81; expected at most the 80 images"),
        ({"batch": 80, "accumulate": 80, "model": "networks:normed"}, "sees one image at a time and cannot train"),
        ({"batch": 1, "model": "networks:normed"}, "networks:normed sees one image at a time and cannot train on it"),
        ({"batch": 79, "model": "networks:normed", "remainder": "keep"}, "also in the last step of an epoch"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(few, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(replace(PLAIN, **change), few)


@pytest.mark.parametrize("model", ["networks:plain", "networks:mapped"])
def test_one_image_at_a_time_is_enough_without_batch_norm_and_on_maps(few, model):
    _, _, classifier = check(replace(PLAIN, batch=1, model=model), few)
    buffers = dict(classifier.named_buffers())
    assert all(value == 0 for name, value in buffers.items() if "tracked" in name)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = networks.plain()

    def forward(self, x):
        return self.model(x), x


class Flat(Pair):
    def forward(self, x):
        return self.model(x)[0]


class Failing(Pair):
    def forward(self, x):
        return self.model(x[:, :2])


def raising(needed=None):
    raise RuntimeError("no\nGPU")


def leaving():
    raise SystemExit("bye")


def frozen():
    return networks.plain().requires_grad_(False)


EXPECTED = r"; expected package\.module:function, which returns a torch\.nn\.Module"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("builtins:dict", "returns an object of type dict" + EXPECTED),
        ("builtins:print", "returns an object of type NoneType" + EXPECTED),
        ("math:pi", "'math:pi' is of type float" + EXPECTED),
        (":f", "cannot be imported: Empty module name" + EXPECTED),
        ("networks:", "has no attribute ''" + EXPECTED),
        ("..networks:plain", "cannot be imported: TypeError: .*relative import.*" + EXPECTED),
        ("broken:f", "cannot be imported: ZeroDivisionError: division by zero" + EXPECTED),
        ("leaving:f", "cannot be imported: SystemExit: 3" + EXPECTED),
        ("syntax:f", "cannot be imported: SyntaxError: .*" + EXPECTED),
        ("json:loads", "with options {} fails: TypeError: .*missing 1 required positional argument"),
        ("test_requirements:raising", "fails: RuntimeError: no GPU$"),
        ("test_requirements:leaving", "fails: SystemExit: bye"),
        ("test_requirements:frozen", "has no parameters to train"),
        ("torch.nn:Flatten", "Flatten has no parameters to train"),
        ("test_requirements:Pair", "Pair returns an object of type tuple for an image; expected"),
        ("test_requirements:Flat", r"Flat returns \(10,\) for an image; expected"),
        ("test_requirements:Failing", r"Failing cannot classify an image of \(1, 8, 8\): RuntimeError: mat1 and mat2"),
        ("resnet_mini", "resnet_mini cannot be made with {'channels': 8}: TypeError|channels is 8"),
    ],
)
def test_a_network_that_is_none_is_one_sentence(few, tmp_path, monkeypatch, model, sentence):
    for name, text in (("broken", "1 / 0"), ("leaving", "raise SystemExit(3)"), ("syntax", "def f(:")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    options = {"channels": 8} if model == "resnet_mini" else {}
    with pytest.raises(ValueError, match=sentence) as refused:
        check(replace(PLAIN, model=model, options=options), few)
    assert "\n" not in str(refused.value)
