"""A whole training step of SAN10 at 64 × 64, eight images, per backend: forward, loss, backward, SGD."""

import pytest
import torch

from saprof.backends import Unsupported
from saprof.measure.latency import interleave
from saprof.measure.memory import peak_bytes, saved_bytes
from saprof.models import create_model
from studies.config import Config
from studies.data import Dataset, Pixels
from studies.training.classification import network
from studies.training.distributed import World
from studies.training.engine import Hooks, State, train_until

IMAGES, SIDE, CLASSES = 8, 64, 10
CHOICES = [("unfold", "composed"), ("numba", "composed"), ("numba", "fused"), ("cuda", "composed"), ("cuda", "fused")]


@pytest.fixture
def noise():
    """A dataset of random images whose epoch is one step."""
    pixels = torch.randint(256, (IMAGES, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = Pixels(pixels, torch.arange(IMAGES) % CLASSES)
    return Dataset(
        name="noise",
        classes=tuple(map(str, range(CLASSES))),
        train=images,
        test=images,
        size=(3, SIDE, SIDE),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augment=lambda image, generator: image,
        view=lambda image: image,
    )


@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
@pytest.mark.parametrize(("backend", "attention"), CHOICES, ids="-".join)
def test_training_step(benchmark, noise, family, backend, attention):
    options = {"backend": backend, "attention": attention}
    config = Config(model=f"san10_{family}", options=options, batch=IMAGES, epochs=10**6, lr=0.01)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        state = State(config, network(config, noise), World(0, 1, device))
    except Unsupported as error:
        pytest.skip(str(error))
    benchmark.group = f"training step, san10_{family}, {IMAGES} images of {SIDE} × {SIDE}, {device.type}"

    def step():
        train_until(state.step + 1, state, noise, noise.train, Hooks())
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark(step)
    assert state.step > 1


def test_san10_beside_resnet26(benchmark):
    """A step of four images of 224², in interleaved rounds: the time of SAN10 over that of ResNet26, and what each
    saves for the backward pass."""
    images, labels = torch.randn(4, 3, 224, 224), torch.arange(4)

    def step(name):
        model = create_model(name).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        own = [*model.parameters(), *model.buffers()]
        benchmark.extra_info[f"{name} saved MB"] = round(saved_bytes(model, [images], own) / 1e6, 1)

        def run():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return run

    steps = {name: step(name) for name in ("resnet26", "san10_pairwise", "san10_patchwise")}
    found = interleave(steps, "cpu", 20.0)
    for name in ("san10_pairwise", "san10_patchwise"):
        benchmark.extra_info[f"{name} / resnet26"] = round(found[name].median / found["resnet26"].median, 2)
    benchmark.group = "training step, 4 images of 224 × 224, cpu"
    benchmark.pedantic(steps["san10_pairwise"], rounds=1)
    print(benchmark.extra_info)


@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
def test_memory_beside_unfold(benchmark, family):
    """What SAN10 saves for the backward pass of four images of 224², and the peak of a step, fused beside unfold."""
    images, labels = torch.randn(4, 3, 224, 224), torch.arange(4)
    found = {}
    for name, how in (("fused", {"attention": "fused"}), ("unfold", {"backend": "unfold"})):
        model = create_model(f"san10_{family}", **how).train()

        def step(model=model):
            torch.nn.functional.cross_entropy(model(images), labels).backward()

        found[name, "saved"] = saved_bytes(model, [images], [*model.parameters(), *model.buffers()])
        found[name, "peak"] = peak_bytes(step)
    benchmark.group = "memory of a training step, 4 images of 224 × 224, cpu"
    benchmark.extra_info |= {" ".join(what): round(number / 1e6, 1) for what, number in found.items()}
    benchmark.pedantic(step, rounds=1)
    print(family, benchmark.extra_info)
    assert 4 * found["fused", "saved"] < found["unfold", "saved"]
