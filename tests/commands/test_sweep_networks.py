"""The sweep over networks of the user, of timm and of torchvision, as a user runs it."""

import json
import subprocess
import sys
from types import ModuleType

import pytest
from made_up import module_of_a_user
from torch import nn

import saprof
from saprof import sweep
from saprof.measure import cell as cells
from saprof.measure import execute
from saprof.measure.cells import Cell, Network
from saprof.measure.plan import plan
from saprof.measure.request import read_request
from saprof.models.catalogue import named_model
from saprof.records.rows import MEASURED, read_rows

NETS = '''
import torch
from torch import nn
import saprof

class Net(nn.Module):
    """In-place modules, frozen and unused parameters, tensors inside of dicts and tuples, and a cache."""
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.mask = None
    def forward(self, x):
        if self.mask is None:
            self.mask = torch.ones(4, dtype=x.dtype, device=x.device)
        y = self.frozen(self.body(x).mean((2, 3))) * self.mask
        return {"y": (y, [None, y.argmax(1)])}

def net(): return Net()
def image(): return Net(), torch.randn(2, 3, 6, 8)
def words(): return nn.LSTM(8, 4), {"input": torch.randn(5, 2, 8)}
def attends(): return nn.Sequential(saprof.create_model("san_mini_pairwise", backend="unfold")), torch.ones(1, 3, 8, 8)
class Fails(nn.Module):
    def forward(self, x): raise KeyError("no such thing")
def fails(): return Fails()
class Strange(nn.Module):
    def forward(self, x): return torch.special.bessel_j0(x).mean() * float(x.sum() > 0)
def strange(): return Strange()
def wrong(): return 3
def raises(): raise RuntimeError("not today")
class Infinite(nn.Module):
    def forward(self, x): return {"y": x / 0}
def infinite(): return Infinite()
'''
QUICK = ["--seconds", "0.01", "--roofs", "skip", "--backend", "unfold"]


@pytest.fixture(autouse=True)
def _each_cell_once(monkeypatch):
    """Rows of these short sweeps are often in doubt; do not measure them again."""
    monkeypatch.setattr(execute, "AGAIN_SHARE", 0)


@pytest.fixture
def nets(tmp_path, monkeypatch):
    return module_of_a_user(tmp_path, monkeypatch, NETS)


def listed(*arguments):
    return [cell for group in plan(read_request(sweep.parser().parse_args(arguments))) for cell in group]


def test_networks_of_the_user_beside_ours(nets, tmp_path, capsys):
    names = [f"{nets}:net", f"{nets}:image", f"{nets}:words", f"{nets}:attends", "resnet_mini"]
    arguments = ["--model", ",".join(names), "--mode", "forward,train_step", "--output", str(tmp_path / "run"), *QUICK]
    assert sweep.main(arguments) == 0
    rows = read_rows(tmp_path / "run")
    assert [(row.name, row.mode) for row in rows] == [(n, mode) for mode in ("forward", "train_step") for n in names]
    shapes = [(1, 224, 224), (2, 6, 8), (5, 0, 0), (1, 8, 8), (1, 32, 32)]
    for row, shape in zip(rows, shapes * 2, strict=True):
        assert row.status in MEASURED, row.reason
        assert (row.kind, row.footprint, row.n, row.h, row.w) == ("model", "default", *shape)
        assert row.peak_bytes > 0
        assert (row.saved_bytes is not None) == (row.mode == "train_step")
        assert row.images_per_s == (row.n / row.latency_s if row.h else None)
    net, image, words, attends, ours = rows[:5]
    assert net.params == image.params == 112 + 8 + 20 + 6
    assert (net.macs, image.macs) == (4 * 27 * 222**2 + 16, 4 * 27 * 4 * 6 + 16)
    assert (attends.backend, attends.attention, net.backend, ours.backend) == ("unfold", "composed", "torch", "torch")
    assert attends.macs == saprof.count("san_mini_pairwise", (3, 8, 8)).macs
    assert words.params == 4 * 4 * (8 + 4 + 2)
    output = capsys.readouterr()
    assert "images/s" in output.out
    assert "map or image 224×224, 6×8, 8×8, 32×32" in output.err
    before = (tmp_path / "run" / "rows.jsonl").read_bytes()
    assert sweep.main([*arguments, "--resume"]) == 0
    assert (tmp_path / "run" / "rows.jsonl").read_bytes() == before, "nothing is measured twice"
    assert (
        sweep.main(
            ["--model", f"{nets}:net", "--output", str(tmp_path / "run"), *QUICK, "--resume", "--format", "json"]
        )
        == 0
    )
    *_, printed = capsys.readouterr().out.partition("[")
    assert json.loads("[" + printed)[0]["images_per_s"] == net.images_per_s


def test_a_changed_file_is_measured_again(nets, tmp_path):
    before = listed("--model", f"{nets}:net")[0].key("f")
    assert listed("--model", f"{nets}:net")[0].key("f") == before
    with (tmp_path / nets.replace(".", "/")).with_suffix(".py").open("a") as file:
        file.write("\n# changed\n")
    assert listed("--model", f"{nets}:net")[0].key("f") != before


def test_what_a_network_does_wrong_is_a_row(nets, tmp_path, capsys):
    names = ",".join(f"{nets}:{name}" for name in ("fails", "infinite", "strange"))
    assert sweep.main(["--model", names, "--size", "8", "--output", str(tmp_path / "run"), *QUICK]) == 1
    fails, infinite, strange = read_rows(tmp_path / "run")
    path = (tmp_path / nets.replace(".", "/")).with_suffix(".py")
    line = next(number for number, text in enumerate(NETS.splitlines(), 1) if "no such thing" in text)
    assert (fails.status, fails.reason) == ("error", f"KeyError: 'no such thing' ({path}:{line})")
    assert (infinite.status, infinite.reason) == ("incorrect", "its output is not all finite")
    assert strange.status in MEASURED
    assert (strange.macs, strange.flops_paper, strange.params, strange.predicted_peak_bytes) == (None, None, 0, None)
    messages = [line for line in capsys.readouterr().err.splitlines() if "has no counts" in line]
    assert len([line for line in messages if "strange" in line]) == 1


@pytest.mark.deep
def test_compiled_and_in_a_process_of_its_own(nets, tmp_path):
    arguments = ["--model", f"{nets}:image", "--mode", "forward,train_step", "--output", str(tmp_path / "run"), *QUICK]
    assert sweep.main([*arguments, "--compile", "both", "--isolate"]) == 0
    rows = read_rows(tmp_path / "run")
    assert [row.compiled for row in rows] == [False, True] * 2
    assert all(row.first_call_s > row.latency_s and row.ratio for row in rows if row.compiled)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net", "--footprint", "5"], "footprint is '5', but {nets}:net has its own; omit --footprint"),
        (["image", "--size", "32"], "size is '32', but {nets}:image has inputs of its own; omit --size"),
        (["words", "--batch", "4"], "batch is '4', but {nets}:words has inputs of its own; omit --batch"),
        (["wrong"], "model '{nets}:wrong' returns an object of type int; expected package.module:function"),
        (["raises"], "model '{nets}:raises' fails: RuntimeError: not today ("),
        (["nothing"], "model '{nets}:nothing' cannot be imported: AttributeError: module '{nets}' has no attribute"),
    ],
)
def test_bad_input_is_one_sentence(nets, capsys, arguments, message):
    name, *others = arguments
    for only_planned in ("--list", "--dry-run"):
        with pytest.raises(ValueError, match=nets) as caught:
            sweep.main(["--model", f"{nets}:{name}", *others, only_planned])
        assert str(caught.value).startswith(message.format(nets=nets))
        assert "\n" not in str(caught.value)
        assert not capsys.readouterr().out


def test_options_of_ours_are_left_out_for_others(nets):
    cells = listed(
        "--model", f"{nets}:attends,san_mini_pairwise", "--attention", "fused,composed", "--backend", "numba"
    )
    assert [(cell.backend, cell.attention) for cell in cells] == [
        ("auto", "auto"),
        ("numba", "fused"),
        ("numba", "composed"),
    ]
    sized = listed("--model", f"{nets}:net,resnet26", "--size", "8,16", "--batch", "3", "--dtype", "float64")
    names = [f"{name}-n3-{side}x{side}-float64" for name in (f"{nets}:net", "resnet26") for side in (8, 16)]
    assert [str(cell.subject) for cell in sized] == names


def test_networks_of_timm_are_listed_and_measured(monkeypatch, tmp_path):
    timm = ModuleType("timm")
    timm.__version__ = "1"
    timm.is_model = lambda name: name == "wide"
    timm.get_pretrained_cfg = lambda name, allow_unregistered: None
    timm.create_model = lambda name: nn.Conv2d(3, 2, 1)
    monkeypatch.setitem(sys.modules, "timm", timm)
    arguments = ["--model", "timm:wide", "--size", "8", "--batch", "2"]
    assert list(map(str, listed(*arguments))) == ["timm:wide-n2-8x8-float32 forward auto on cpu"]
    assert sweep.main([*arguments, "--output", str(tmp_path / "run"), *QUICK]) == 0
    (row,) = read_rows(tmp_path / "run")
    assert (row.name, row.params, row.macs, row.n, row.backend) == ("timm:wide", 8, 6 * 64, 2, "torch")


@pytest.mark.parametrize("name", ["san_mini_pairwise", "san_mini_patchwise", "san_mini_stand_alone", "sasa_mini"])
def test_small_networks_take_a_footprint_and_have_images_of_their_own(name):
    (cell,) = listed("--model", name, "--footprint", "5", "--backend", "unfold")
    assert (cell.subject.map, cell.what["h"]) == ((32, 32), 32)
    (row,) = cells.measure([Cell(Network(name, cell.subject.footprint, size=8), backend="unfold")], "f", 0.01)
    assert row.status in MEASURED, row.reason
    assert row.footprint == "square:5"


def test_a_footprint_replaces_all_but_three_by_three():
    def replaced(name):
        (cell,) = listed("--model", name, "--footprint", "5", "--backend", "unfold")
        return [str(footprint) for footprint in cell.subject.overrides["footprints"]]

    assert replaced("san10_pairwise") == ["square:3", *["square:5"] * 4]
    assert replaced("san_mini_pairwise") == ["square:5", "square:3"]
    sides = [footprint.lattice[0][0] for footprint in saprof.create_model("san10_patchwise").config.footprints]
    assert tuple(sides) == named_model("san10_patchwise").footprints


def test_registered_networks_are_listed_without_torch():
    code = (
        "import sys; from saprof import sweep; "
        "assert sweep.main(['--model', 'san_mini_pairwise,resnet26', '--list']) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "san_mini_pairwise-n1-32x32-float32 forward" in done.stdout
    assert "resnet26-n1-224x224-float32 forward" in done.stdout
