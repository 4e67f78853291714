"""The import guard for a torchvision that is missing, broken, built for another torch, or intact."""

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from studies.data import torchvision as extra


@pytest.fixture
def torchvision(monkeypatch):
    """Makes each import of torchvision raise what it is given, and then succeed; counts the declarations."""
    declared = []

    class Library:
        def __init__(self, *arguments):
            declared.append(arguments)

        def define(self, schema):
            declared.append(schema)

    monkeypatch.setattr(extra, "_declared", [])
    monkeypatch.setattr(torch.library, "Library", Library)

    def make(*errors: Exception) -> list:
        left = list(errors)

        def import_module(name: str) -> ModuleType:
            assert name == "torchvision"
            if left:
                raise left.pop(0)
            return ModuleType("torchvision")

        monkeypatch.setattr(extra, "import_module", import_module)
        return declared

    return make


def test_one_that_works_is_left_alone(torchvision):
    declared = torchvision()
    assert extra.load().__name__ == "torchvision"
    assert not declared
    assert not extra.declared()


def test_one_built_for_another_torch_gets_two_operators(torchvision, monkeypatch):
    declared = torchvision(RuntimeError("operator torchvision::nms does not exist"))
    for name in ("torchvision.extension", "torchvision"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchvisionary", ModuleType("torchvisionary"))
    assert extra.load().__name__ == "torchvision"
    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert declared == [("torchvision", "FRAGMENT"), f"nms{schema}", f"qnms{schema}"]
    assert extra.declared()
    assert "torchvision.extension" not in sys.modules  # half imported: it is imported anew
    assert "torchvisionary" in sys.modules


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("No module named 'torchvision'", name="torchvision"),
            r"images of a folder need torchvision, which is not installed; pip install -e '.\[vision\]'",
        ),
        (
            ModuleNotFoundError("No module named 'PIL'", name="PIL"),
            r"torchvision needs PIL, which is not installed; pip install -e '.\[vision\]'",
        ),
        (
            RuntimeError("Detected that PyTorch and torchvision were\ncompiled with different CUDA major versions."),
            r"torchvision is installed and cannot be imported \(Detected that PyTorch and torchvision were compiled",
        ),
        (ImportError("undefined symbol: _ZN2at"), r"cannot be imported \(undefined symbol: _ZN2at\); pip install"),
    ],
    ids=["absent", "without PIL", "other CUDA", "broken"],
)
def test_what_else_is_wrong_is_said_and_nothing_declared(error, said, torchvision):
    declared = torchvision(error)
    with pytest.raises(ValueError, match=said):
        extra.load()
    assert not declared
    assert not extra.declared()


def test_one_that_is_really_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match="need torchvision, which is not installed"):
        extra.load()


SCRIPT = """
import warnings
warnings.simplefilter("error")
import torch
try:
    import torchvision
    whole = True
except RuntimeError as error:
    assert "operator torchvision::nms does not exist" in str(error), error
    whole = False
from studies.data import torchvision as extra
assert extra.load() is extra.load()
assert extra.declared() is not whole
import torchvision
from torchvision.transforms import v2
torchvision.datasets.ImageFolder, torchvision.models.resnet18
assert v2.RandomResizedCrop(8)(torch.zeros(3, 16, 16, dtype=torch.uint8)).shape == (3, 8, 8)
print("whole" if whole else "declared")
"""


@pytest.mark.deep
def test_the_one_that_is_installed_can_be_imported():
    try:
        extra.load()
    except ValueError as error:
        pytest.skip(str(error))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, text=True, capture_output=True, check=False)
    assert done.stdout in ("whole\n", "declared\n"), done.stderr
    assert not done.stderr
