"""Networks by the names of a command line: what they are, how they are built, and what is said when they are not."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from made_up import module_of_a_user
from torch import nn

import saprof
from saprof.models import named
from saprof.models.inputs import arguments, moved, sizes
from saprof.models.named import read_network, read_networks

NETS = """
import torch
from torch import nn
import saprof

def alone(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
def image(): return alone(), torch.ones(2, 3, 8, 6)
def pair(): return nn.Bilinear(2, 3, 4), (torch.ones(5, 2), torch.ones(5, 3))
def words(): return nn.Linear(4, 4), {"input": torch.ones(4)}
def uneven(): return nn.Bilinear(2, 3, 4), (torch.ones(1, 2), torch.ones(2, 3))
def attends(): return nn.Sequential(saprof.create_model("san_mini_pairwise", backend="unfold"))
class Net(nn.Linear):
    def __init__(self): super().__init__(3, 2)
made = alone()
number = 3
def wrong(): return 3
def none(): return None
def three(): return alone(), torch.ones(2), torch.ones(2)
def listed(): return alone(), [torch.ones(2)]
def unnamed(): return alone(), {1: torch.ones(2)}
def needs(more): return alone()
def raises():
    raise KeyError("a long\\n story")
def leaves(): raise SystemExit(3)
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    return module_of_a_user(tmp_path, monkeypatch, NETS)


def test_registered_networks_are_read_without_torch():
    code = (
        "import sys; from saprof.models.named import read_networks; "
        "pair = read_networks('san_mini_pairwise, resnet26,resnet26'); "
        "print([(x.name, x.kind, x.attends, x.has_choices, x.image_side) for x in pair], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = [("san_mini_pairwise", "registered", True, True, 32), ("resnet26", "registered", False, False, 224)]
    assert done.stdout.strip() == f"{expected} False", done.stderr
    assert [network.name for network in read_networks("all")] == saprof.list_models()


def test_a_registered_network_takes_options():
    built = read_network("san_mini_pairwise").build(num_classes=7)
    assert built.module.head.out_features == 7
    assert built.inputs is None


@pytest.mark.parametrize(
    ("function", "image_side", "shape", "attends"),
    [
        ("alone", 224, None, False),
        ("Net", 224, None, False),
        ("image", None, (2, 8, 6), False),
        ("pair", None, (5, None, None), False),
        ("words", None, (4, None, None), False),
        ("uneven", None, (None, None, None), False),
        ("attends", 224, None, True),
    ],
)
def test_a_function_of_the_user(nets, function, image_side, shape, attends):
    network = read_network(f"{nets}:{function}")
    assert (network.kind, network.image_side, network.sizes) == ("own", image_side, shape)
    assert (network.attends, network.has_choices) == (attends, False)
    built = network.build()
    assert isinstance(built.module, nn.Module)
    assert (built.inputs is None) == (shape is None)
    positional, by_name = arguments(network.example(built, batch=3, side=32))
    if function not in ("Net", "uneven"):
        assert len(built.module(*positional, **by_name)) in (2, 3, 4, 5)
    with pytest.raises(ValueError, match="backend cannot be set for"):
        network.build(backend="unfold")


def test_the_digest_changes_with_the_file_and_with_the_class(nets, tmp_path):
    before = read_network(f"{nets}:alone").digest
    assert before == read_network(f"{nets}:alone").digest != ""
    with (tmp_path / nets.replace(".", "/")).with_suffix(".py").open("a") as file:
        file.write("# another line\n")
    assert read_network(f"{nets}:alone").digest != before
    (tmp_path / "elsewhere.py").write_text(f"from {nets} import Net\n")
    sys.modules.pop("elsewhere", None)
    through = read_network("elsewhere:Net").digest
    with (tmp_path / nets.replace(".", "/")).with_suffix(".py").open("a") as file:
        file.write("# and another one\n")
    assert read_network("elsewhere:Net").digest != through, "the class of the network is in the other file"
    del sys.modules["elsewhere"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("made", "is an object of type Sequential; expected package.module:function, which returns an nn.Module, or a"),
        ("number", "is an object of type int; expected package.module:function"),
        ("absent", "cannot be imported: AttributeError: module '{nets}' has no attribute 'absent'; expected package"),
        ("wrong", "returns an object of type int; expected package.module:function"),
        ("none", "returns an object of type NoneType; expected package.module:function"),
        ("three", "returns a tuple of Sequential, Tensor, Tensor; expected package.module:function"),
        ("listed", "returns a pair: got inputs of type list; expected a tensor, a tuple of positional arguments, or"),
        ("unnamed", "returns a pair: got inputs of names that are not strings; expected a tensor"),
        ("needs", "fails: TypeError: needs() missing 1 required positional argument: 'more'"),
        ("raises", "fails: KeyError: 'a long\\n story' ({path}:{line})"),
        ("leaves", "fails: SystemExit: 3 ({path}:{line})"),
    ],
)
def test_what_a_function_does_wrong_is_one_sentence(nets, tmp_path, function, message):
    with pytest.raises(ValueError, match="model") as caught:
        read_network(f"{nets}:{function}")
    path = (tmp_path / nets.replace(".", "/")).with_suffix(".py")
    lines = {"raises": "    raise KeyError", "leaves": "def leaves"}
    line = next(n for n, line in enumerate(NETS.splitlines(), 1) if line.startswith(lines.get(function, "import")))
    expected = message.format(nets=nets, path=path, line=line)
    assert str(caught.value).startswith(f"model '{nets}:{function}' {expected}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:", "SyntaxError: invalid syntax"),
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero ({path}:2); expected package.module:function"),
        ("import not_there", "ModuleNotFoundError: No module named 'not_there' ({path}:1); expected package"),
        ("raise SystemExit", "SystemExit ({path}:1); expected package"),
    ],
)
def test_a_module_that_cannot_be_imported_says_where(nets, tmp_path, source, message):
    package = nets.partition(".")[0]
    path = tmp_path / package / "broken.py"
    path.write_text(f"{source}\n\ndef f():\n    pass\n")
    with pytest.raises(ValueError, match="model") as caught:
        read_network(f"{package}.broken:f")
    assert str(caught.value).startswith(f"model '{package}.broken:f' cannot be imported: {message.format(path=path)}")


@pytest.mark.parametrize("name", ["san11", ":", "a:", ":b", ""])
def test_a_name_of_no_kind(name):
    with pytest.raises(ValueError, match=f"^unknown model '{name}'"):
        read_network(name)


def test_a_missing_module():
    with pytest.raises(ValueError, match=r"^model 'not_there:f' cannot be imported: ModuleNotFoundError"):
        read_network("not_there:f")


class Zoo(ModuleType):
    """A stand-in for the modules of another package's networks."""

    __version__ = "7"

    def list_models(self):
        return ["wide", "wide_384"]

    def is_model(self, name):
        return name in self.list_models()

    def get_pretrained_cfg(self, name, allow_unregistered):
        return SimpleNamespace(input_size=(3, 384, 384)) if name == "wide_384" else None

    def create_model(self, name):
        return nn.Conv2d(3, 1, 1)

    def get_model_builder(self, name):
        return lambda *, weights="some", weights_backbone="some": (weights, weights_backbone)

    def get_model(self, name, **options):
        assert self.get_model_builder(name)(**options) == (None, None), "nothing may be downloaded"
        return nn.Conv2d(3, 1, 1)


@pytest.mark.parametrize(("kind", "side"), [("timm", 384), ("torchvision", 224)])
def test_networks_of_other_packages(monkeypatch, kind, side):
    for module in (kind, f"{kind}.models"):
        monkeypatch.setitem(sys.modules, module, Zoo(module))
    wide, other = read_networks(f"{kind}:wide,{kind}:wide_384")
    assert (wide.kind, wide.image_side, other.image_side, wide.has_choices) == (kind, 224, side, False)
    assert wide.build().module(wide.example(wide.build())).shape == (1, 1, 224, 224)
    with pytest.raises(ValueError, match=rf"^unknown model '{kind}:thin'; expected one of {kind}.*list_models\(\) in"):
        read_network(f"{kind}:thin")
    monkeypatch.setattr(Zoo, "__version__", "8")
    assert read_network(f"{kind}:wide").digest != wide.digest


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("timm", ModuleNotFoundError("No module", name="timm"), "networks of timm need timm, which is not installed; "),
        (
            "torchvision",
            ModuleNotFoundError("No", name="PIL"),
            "networks of torchvision need PIL, which is not install",
        ),
        (
            "torchvision",
            RuntimeError("operator torchvision::nms does not exist"),
            "torchvision is installed, but its import fails (operator torchvision::nms does not exist); pip install "
            "torchvision --index-url https://download.pytorch.org/whl/cpu for a CPU build of torch",
        ),
        (
            "timm",
            RuntimeError("operator torchvision::nms does not exist"),
            "timm is installed, but its import fails (operator torchvision::nms does not exist); pip install torchvis",
        ),
        ("timm", ImportError("cannot import name 'x'"), "timm is installed, but its import fails (cannot import name"),
    ],
)
def test_a_package_that_cannot_be_imported(monkeypatch, kind, error, message):
    def fails(name):
        raise error

    monkeypatch.setattr(named, "import_module", fails)
    with pytest.raises(ValueError, match=kind) as caught:
        read_network(f"{kind}:resnet50")
    assert str(caught.value).startswith(message)


def test_inputs_move_and_keep_what_is_no_real_number():
    inputs = {"x": torch.ones(2, 3, requires_grad=True), "more": (torch.arange(2), [1, None, torch.ones(2).bool()])}
    after = moved(inputs, "meta", torch.float16)
    assert (after["x"].dtype, after["x"].device.type, after["x"].requires_grad) == (torch.float16, "meta", True)
    assert [x.dtype for x in (after["more"][0], after["more"][1][2])] == [torch.int64, torch.bool]
    assert after["more"][1][:2] == [1, None]
    assert sizes(inputs) == (2, None, None)
    assert sizes((torch.ones(2, 3, 4, 5), torch.tensor(1))) == (None, 4, 5)
