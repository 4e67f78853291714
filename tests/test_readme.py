"""What the README tells a reader to type works as written. `make` itself is what runs these tests."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_python(tmp_path, capsys):
    first, *_ = [block for kind, block in BLOCKS if kind == "python"]
    exec(first, {})
    promised = re.findall(r"# ([\d ]+)$", first, re.MULTILINE)
    assert promised == [capsys.readouterr().out.strip()]


def test_peers_take_what_was_recorded():
    kept = json.loads((ROOT / "studies" / "recorded" / "peers_cpu" / "peers.json").read_text())["candidates"]
    found = re.search(r"`numba` takes (\S+) ms .*?FlexAttention takes (\S+) ms .*?a mask (\S+) ms", README, re.DOTALL)
    for told, name in zip(found.groups(), ("numba", "flex_attention", "scaled_dot_product_attention"), strict=True):
        assert kept[name]["status"] == "ok"
        assert told == f"{1e3 * kept[name]['latency_s']:.{'.' in told:d}f}"
