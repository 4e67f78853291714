"""The figures of the README and of docs/ are those of recorded rows; the table of commands is that of `saprof`."""

import json
import re
from pathlib import Path

from saprof.__main__ import COMMANDS
from saprof.records.rows import read_rows
from saprof.records.runs import RECORDED

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python(capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    exec(block, {})
    promised = re.findall(r"# ([\d ]+)$", block, re.MULTILINE)
    assert promised == [capsys.readouterr().out.strip()]


def test_networks_are_as_recorded():
    recorded = {
        (row.name, row.footprint, row.backend): row
        for row in read_rows(RECORDED / "footprint_cpu")
        if row.kind == "model" and row.status == "ok"
    }
    lines = re.findall(r"^\| (\w+) \| (\d+) × \2 \| (\S+) \| (\S+) \| (\d+) \| (\d+) \|$", README, re.MULTILINE)
    assert len(lines) == 6
    for name, size, params, flops, numba, unfold in lines:
        fast, plain = (recorded[name, f"square:{size}", backend] for backend in ("numba", "unfold"))
        assert (fast.n, fast.h, fast.w, fast.mode) == (1, 224, 224, "forward")
        assert (params, flops) == (f"{fast.params / 1e6:.1f}", f"{fast.flops_paper / 1e9:.1f}")
        assert (numba, unfold) == (f"{1e3 * fast.latency_s:.0f}", f"{1e3 * plain.latency_s:.0f}")


def test_peers_take_what_was_recorded():
    page = (ROOT / "docs" / "stand_alone.md").read_text(encoding="utf-8")
    kept = json.loads((RECORDED / "peers_cpu" / "peers.json").read_text())["candidates"]
    found = re.search(r"`numba` takes (\S+) ms .*?FlexAttention takes (\S+) ms .*?a mask (\S+) ms", page, re.DOTALL)
    for told, name in zip(found.groups(), ("numba", "flex_attention", "scaled_dot_product_attention"), strict=True):
        assert kept[name]["status"] == "ok"
        assert told == f"{1e3 * kept[name]['latency_s']:.{'.' in told:d}f}"


def test_every_command_is_in_the_table():
    lines = dict(re.findall(r"^\| `saprof (\w+)` \| (.*) \|$", README, re.MULTILINE))
    assert lines == {name: command.does for name, command in COMMANDS.items()}
