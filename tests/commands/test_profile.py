"""`saprof.profile` on small networks, and its nonsense."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import saprof.profile as profile
from saprof import command

QUICK = ("--roofs", "skip", "--seconds", "0.01")
OWN = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x, *, flip):
        return {"left": self.left(x), "right": (self.right(-x if flip else x),)}

def two():
    return Two(), {"x": torch.randn(3, 6), "flip": True}

def three():
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("nets", None)


def test_a_network_of_the_user(own, capsys):
    assert (
        profile.main(["nets:two", *QUICK, "--output", "run", "--mode", "train_step", "--trace", "trace.json"])
        == command.OK
    )
    printed = capsys.readouterr()
    assert "nets:two, train_step, batch 3, float32, torch on cpu" in printed.out
    assert [line.split()[0] for line in printed.out.splitlines() if line.startswith("  ")][:2] == ["left", "right"]
    assert "rows in run" in printed.err
    names = {event.get("name") for event in json.loads(Path("trace.json").read_text())["traceEvents"]}
    assert {"nets:two", "left", "right"} <= names


def test_two_networks_and_the_printed_run(tmp_path, capsys):
    run = str(tmp_path / "run")
    asked = ["resnet_mini", "--compare", "sasa_mini", "--size", "8", "--backend", "unfold", *QUICK, "--output", run]
    assert profile.main([*asked, "--depth", "all", "--columns", "time,calls,hardware,ran"]) == command.OK
    first = capsys.readouterr().out
    assert "sasa_mini takes" in first
    assert "the same rounds" in first.replace("\n", " ")
    assert "layer2.0.conv2" not in first, "below the second level, only the last part of a path is shown"
    assert profile.main(["--from", run, "--depth", "all", "--columns", "time,calls,hardware,ran"]) == command.OK
    again = capsys.readouterr().out
    assert again == first
    profile.main(["--from", run, "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in rows} == {"model", "layer"}
    with pytest.raises(ValueError, match="already holds rows"):
        profile.main([*asked])


def test_a_table_fits_the_terminal(tmp_path, capsys, monkeypatch):
    run = str(tmp_path / "run")
    profile.main(["san_mini_pairwise", "--size", "8", "--backend", "unfold", *QUICK, "--output", run])
    for width in (80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        capsys.readouterr()
        profile.main(["--from", run, "--depth", "4"])
        table = capsys.readouterr().out.split("\n\n")[1]
        assert max(map(len, table.splitlines())) <= width


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "expected one network, such as"),
        (["resnet26", "--model", "resnet38"], "expected one network, such as"),
        (["resnet27"], "unknown model 'resnet27'"),
        (["resnet_mini", "--compare", "resnet_mini"], "expected another network"),
        (["resnet_mini", "--depth", "x"], "depth is 'x'"),
        (["resnet_mini", "--columns", "time,nothing"], "unknown column 'nothing'"),
        (["resnet_mini", "--sort", "nothing"], "unknown column 'nothing'"),
        (["resnet_mini", "--seconds", "-1"], "seconds is"),
        (["resnet_mini", "--device", "tpu"], "device is 'tpu'"),
        (["--from", "nowhere"], "cannot read"),
        (["resnet_mini", "--from", "nowhere"], "no effect together with"),
        (["resnet_mini", "--trace", "missing/trace.json"], "cannot write to .*trace.json: No such file"),
        (["resnet_mini", "--trace", "."], "Is a directory"),
        (["resnet_mini", "--output", "nets.py/run"], "cannot write to .*nets.py/run.json: Not a directory"),
        (["resnet_mini", "--backend", "numba"], "--backend has no effect on resnet_mini"),
        (["nets:three"], "returns an object of type int"),
        (["nets:two", "--batch", "2"], "has inputs of its own"),
        (["nets:missing"], "cannot be imported"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(own, asked, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        profile.main([*(() if "--from" in asked else QUICK), *asked])
    assert not (tmp_path / "runs").exists()


@pytest.mark.deep
def test_exit_codes_and_one_sentence(tmp_path):
    def run(*asked):
        where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(
            [sys.executable, "-m", "saprof.profile", *asked], cwd=tmp_path, env=where, capture_output=True, text=True
        )

    done = run("resnet_mini", "--size", "8", *QUICK)
    assert done.returncode == command.OK, done.stderr
    assert "Traceback" not in done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} >= {"rows.jsonl", "run.json"}
    bad = run("resnet27")
    assert bad.returncode == command.USAGE
    assert bad.stderr.startswith("error: unknown model 'resnet27'")
    assert len(bad.stderr.splitlines()) == 1
