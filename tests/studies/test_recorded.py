"""The recorded pages are those of the recorded results."""

from pathlib import Path

from saprof.command import FAILED, OK
from studies import reproduce
from studies.config import Config
from studies.reproduction import records

DIGITS = Path(reproduce.__file__).parent / "recorded" / "digits"


def test_pages_are_drawn_from_the_results(tmp_path, capsys):
    whole = not records.read(DIGITS / records.FILE).failed
    assert reproduce.main(["all", "--from", str(DIGITS), "--output", str(tmp_path)]) == (OK if whole else FAILED)
    pages = sorted(DIGITS.rglob("*.md"))
    assert len(pages) == 10
    for page in pages:
        assert page.read_text() == (tmp_path / page.relative_to(DIGITS)).read_text(), page


def test_every_run_is_whole():
    results = records.read(DIGITS / records.FILE)
    for fingerprint, run in results.runs.items():
        assert Config(**run["facts"]).fingerprint() == fingerprint
        assert 0 <= run["top1"] <= run["top5"] <= 100
        assert len(run["weights_sha256"]) == 64
