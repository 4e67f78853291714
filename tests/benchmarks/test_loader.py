"""How many images one core loads per second: ImageNet's pipeline on a file of mean size, and a batch of digits."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from studies.config import Config
from studies.data import load, torchvision

SIZE = 500, 375
"""Columns and rows of a typical ImageNet photograph."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    sample = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn's photographs")
    image = Image.fromarray(sample.load_sample_image("china.jpg")).resize(SIZE)
    for part in ("train", "val"):
        (tmp_path / part / "china").mkdir(parents=True)
        image.save(tmp_path / part / "china" / "0.jpg", quality=90)
    return tmp_path


@pytest.fixture(autouse=True)
def _one_core(_all_cores):
    torch.set_num_threads(1)


@pytest.mark.benchmark(group="loader, folder")
@pytest.mark.parametrize("what", ["decoded", "trained on", "judged"])
def test_folder(what, root, benchmark):
    try:
        torchvision.load()
    except ValueError as error:
        pytest.skip(str(error))
    dataset = load(Config(data="folder", root=root))
    images, draws = dataset.train, torch.Generator().manual_seed(0)
    assert images.read(0).size == SIZE
    call = {
        "decoded": lambda: images.read(0),
        "trained on": lambda: dataset.augment(images.read(0), draws),
        "judged": lambda: dataset.view(images.read(0)),
    }[what]
    benchmark.pedantic(call, rounds=100, warmup_rounds=5)
    _rate(benchmark, 1)


@pytest.mark.benchmark(group="loader, digits")
@pytest.mark.parametrize("data", ["digits", "digits16"])
def test_digits(data, benchmark):
    pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
    dataset, batch, draws = load(Config(data=data)), 32, torch.Generator().manual_seed(0)
    views = benchmark.pedantic(
        lambda: torch.stack([dataset.augment(dataset.train.read(index), draws) for index in range(batch)]),
        rounds=100,
        warmup_rounds=5,
    )
    assert views.shape == (batch, *dataset.size)
    _rate(benchmark, batch)


def _rate(benchmark, images: int) -> None:
    """Record the rate beside the times."""
    if benchmark.enabled:
        benchmark.extra_info["images_per_second"] = images / benchmark.stats.stats.median
