"""What the README tells a reader to type works as written. `make` itself is what runs these tests."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.partition("#")[0].split()
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.splitlines()
    if line.startswith("python")
]


LESS = {
    "saprof.sweep": ["--seconds", "0.05", "--roofs", "skip"],
    "saprof.verify": ["--workloads", "tiny", "--dtype", "float32"],
    "studies.train": ["--epochs", "1"],
}
"""What is added to a command, whose work itself other tests judge."""


@pytest.mark.deep
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands(command, tmp_path):
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    less = next((how for module, how in LESS.items() if module in command and how[0] not in command), [])
    done = subprocess.run([sys.executable, *command[1:], *less], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_python(tmp_path, capsys):
    first, *_ = [block for kind, block in BLOCKS if kind == "python"]
    exec(first, {})
    promised = re.findall(r"# ([\d ]+)$", first, re.MULTILINE)
    assert promised == [capsys.readouterr().out.strip()]


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_peers_take_what_was_recorded():
    kept = json.loads((ROOT / "studies" / "recorded" / "peers_cpu" / "peers.json").read_text())["candidates"]
    found = re.search(r"`numba` takes (\S+) ms .*?FlexAttention takes (\S+) ms .*?a mask (\S+) ms", README, re.DOTALL)
    for told, name in zip(found.groups(), ("numba", "flex_attention", "scaled_dot_product_attention"), strict=True):
        assert kept[name]["status"] == "ok"
        assert told == f"{1e3 * kept[name]['latency_s']:.{'.' in told:d}f}"


def test_links_and_figures_exist():
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path).exists(), path
