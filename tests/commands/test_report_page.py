"""The report: a self-contained page, with every figure that the rows allow, and never half-written."""

import base64
import csv
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from typing import NamedTuple
from xml.etree import ElementTree

import made_up
import pytest

from saprof import command, report

WHERE = {
    "schema": 1,
    "fingerprint": "f",
    "versions": {"saprof": "0.1.0", "torch": "2.13.0", "numba-cuda": None},
    "python": "3.11.7",
    "platform": "Linux x86_64",
    "device": "A <fast> CPU",
    "driver": None,
    "nvcc": None,
    "cpu": "A <fast> CPU",
    "cores": 2,
    "threads": 2,
    "memory_bytes": 25_000_000_000,
    "code": "c",
    "commit": "0123456789abcdef",
    "dirty": False,
    "flags": {"OMP_NUM_THREADS": "2"},
    "argv": ["--operator", "aggregation"],
}
ROOFS = made_up.roofs(
    device="A <fast> CPU",
    cpu="A <fast> CPU",
    time="2026-11-22T00:00:00+00:00",
    torch="2.13.0",
    streams={"copy": {2**20: 2e10, 2**28: 1e10}},
    fma={"float32": 1.2e11},
    gemm={"float32": 1e11},
    anchors=(made_up.anchor(blocks_s={"copy": (1.0, 1.05)}, ratios={"copy": (0.99, 1.02)}),),
)


def row(name="aggregation", size=3, backend="numba", **fields):
    kind = (
        {"kind": "model", "h": 224, "w": 224, "params": 10_500_000} if name.startswith("san") else {"kind": "operator"}
    )
    latency = 1e-3 * size * (4 if backend == "unfold" else 1)
    facts = {
        "key": f"{name}{size}{backend}{fields.get('mode', '')}",
        "time": "2026-11-22T02:15:04+00:00",
        "name": name,
        "footprint": f"square:{size}",
        "taps": size**2,
        "h": 56,
        "w": 56,
        "backend": backend,
        "macs": 5 * 10**5 * size,
        "flops_paper": 2 * 10**9,
        "flops_hardware": 10**6 * size,
        "compulsory_bytes": 10**6,
        "peak_bytes": 10**6 * size,
        "latency_s": latency,
        "latency_low_s": 0.9 * latency,
        "latency_high_s": 1.2 * latency,
    }
    if backend == "unfold":
        facts |= {"ratio": 4.0, "ratio_low": 3.8, "ratio_high": 4.2, "verdict": "slower"}
    return made_up.row(**(facts | kind | fields))


def failed(size=11, backend="unfold", status="oom", reason="no <memory> left", **fields):
    names = (
        "latency_s",
        "latency_low_s",
        "latency_high_s",
        "peak_bytes",
        "ratio",
        "ratio_low",
        "ratio_high",
        "verdict",
    )
    return row(size=size, backend=backend, **(dict.fromkeys(names) | {"status": status, "reason": reason} | fields))


def run_folder(folder, rows, roofs=None, **where):
    return made_up.run_folder(folder, rows, roofs, WHERE | where)


class Download(NamedTuple):
    name: str
    lines: list[dict[str, str]]


def downloads(folder):
    """The csv files that the page of a folder holds."""
    html = (folder / "index.html").read_text()
    found = re.findall(r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="([^"]+)"', html)
    texts = [(name, base64.b64decode(data).decode()) for data, name in found]
    return [Download(name, list(csv.DictReader(io.StringIO(text)))) for name, text in texts]


class Page(HTMLParser):
    """The links of a page, the texts of its pictures, and whether its tags are balanced."""

    def __init__(self, html):
        super().__init__()
        self.links, self.pictures, self.alts, self.text, self.open = [], [], [], [], []
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag == "img":
            self.alts.append(attributes["alt"])
            self.pictures.append(base64.b64decode(attributes["src"].removeprefix("data:image/svg+xml;base64,")))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def page_of(folder):
    return Page((folder / "index.html").read_text())


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run of all kinds of rows, and its report."""
    operators = [row(size=size, backend=backend) for size in (3, 7) for backend in ("numba", "unfold")]
    networks = [row("san10_pairwise", size) for size in (3, 7)]
    others = [
        row(size=11, status="contended"),
        failed(),
        failed(size=3, backend="cuda", status="unsupported", reason="aggregation: cuda: no kernels for cpu tensors"),
    ]
    folder = run_folder(tmp_path_factory.mktemp("runs") / "a run", operators + networks + others, ROOFS)
    assert report.main([str(folder)]) == command.OK
    return folder / "report"


@pytest.mark.deep
def test_every_figure_is_there(full):
    stems = {path.stem for path in full.glob("*.svg")}
    assert stems == {
        "footprint",
        "cost",
        "latency-networks",
        "memory-networks",
        "latency-operators",
        "memory-operators",
        "speedup-operators",
        "roofline",
        "growth-operators",
        "accuracy-flops-paper",
        "accuracy-params",
        "accuracy-latency",
        "accuracy-peak-bytes",
    }
    assert {path.stem for path in full.glob("*.png")} == stems
    page = page_of(full)
    assert sorted(page.pictures) == sorted(path.read_bytes() for path in full.glob("*.svg"))
    for picture in page.pictures:
        assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert re.findall(r"Figure (\d+)\.", page.words) == [f"{number}" for number in range(1, len(stems) + 1)]
    assert "Speed-up of networks over numba: nothing was measured beside numba" in page.words


def test_the_page_stands_alone(full):
    html = (full / "index.html").read_text()
    kinds = ("data:image/svg+xml;base64,", "data:text/csv;charset=utf-8;base64,", "#")
    assert all(link.startswith(kinds) for link in page_of(full).links)
    for forbidden in ("<script src", "@import", "url(", "<link", "http:", "https:"):
        assert forbidden not in html
    assert html.count("<script") == 1


def test_contents_lead_to_every_section_and_figure(full):
    page = page_of(full)
    html = (full / "index.html").read_text()
    anchors = re.findall(r' id="([^"]+)"', html)
    assert len(anchors) == len(set(anchors))
    inside = [link.removeprefix("#") for link in page.links if link.startswith("#")]
    assert set(inside) <= set(anchors)
    contents = html.partition("<nav")[2].partition("</nav>")[0]
    sections = re.findall(r'<(?:section|figure) id="([^"]+)"', html)
    assert len(sections) > 15
    assert re.findall(r'href="#([^"]+)"', contents) == sections
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "a level of headings is left out"


def test_tables_are_on_the_page_as_csv_with_every_field_of_the_rows_in_full(full):
    found = {link.name: link for link in downloads(full)}
    assert set(found) == {"operators.csv", "networks.csv", "what-did-not-run.csv"}
    lines = found["operators.csv"].lines
    assert [line["latency_s"] for line in lines[:2]] == ["0.003", "0.012"]
    assert lines[0]["peak_bytes"] == "3000000"
    assert 0 < float(lines[0]["roof_share"]) < 1
    assert {line["status"] for line in lines} == {"ok", "contended", "oom"}
    assert [line["reason"] for line in found["what-did-not-run.csv"].lines] == [
        "no <memory> left", "aggregation: cuda: no kernels for cpu tensors",
    ]  # fmt: skip


def test_doubtful_rows_of_tables_are_marked_and_explained(full):
    html = (full / "index.html").read_text()
    marked = re.findall(r'<tr class="doubtful">(.*?)</tr>', html)
    assert len(marked) == 1
    assert "contended" in marked[0]
    assert html.count("the row is unstable or contended") == 1


def test_pictures_are_told_in_words(full):
    alts = page_of(full).alts
    assert all(len(alt) > 40 for alt in alts)
    assert any("latency from 3 ms (aggregation, 3×3 at 56×56, numba) to 28 ms (aggregation, 7×7" in alt for alt in alts)


def test_what_to_doubt_comes_first(full):
    words = page_of(full).words
    doubt = words.index("1 of 7 latencies is contended: aggregation square:11 forward numba, 1×56×56 float32")
    assert doubt < words.index("How to read this", doubt) < words.index("Figure 1")


def test_findings_tables_and_provenance(full):
    words = page_of(full).words
    for sentence in (
        "1 network and 1 operator on A <fast> CPU, 2 threads: 9 cells, of which 7 ran. Measured 2026-11-22 02:15 UTC.",
        "numba over unfold: faster in 2 of 2 cells; from 4.0× (aggregation, 3×3 at 56×56) to 4.0× (aggregation",
        "san10_pairwise square:3 10.5 10.5 ✓ 2.0",
        "numba 4.0× faster than unfold (3.8× to 4.2×)",
        "1 cell unsupported on cuda: no kernels for cpu tensors",
        "1 cell oom on unfold: no <memory> left",
        "Identical calls differed by ± 2.0% in the same interleaved rounds, and by 5.0% from one time",
        "copy, 268 MB 10 GB/s",
        "matrix products, float32 100 GFLOP/s",
        "versions saprof 0.1.0, torch 2.13.0",
        "commit 0123456789abcdef",
        "OMP_NUM_THREADS=2",
        "python -m saprof.sweep --operator aggregation",
        "% of roof",
    ):
        assert sentence in words
    assert "numba-cuda" not in words
    assert "no kernels" not in words.rpartition("What did not run")[0]


def test_a_report_is_replaced_and_is_always_the_same(tmp_path, capsys):
    """Old figures are deleted, and the same rows give the same bytes."""
    folder = run_folder(tmp_path / "run", [row(taps=None, footprint="default")])
    assert report.main([str(folder)]) == command.OK
    page = folder / "report" / "index.html"
    before = page.read_bytes()
    page.with_name("stale.svg").write_text("of an older report")
    assert report.main([str(folder)]) == command.OK
    assert capsys.readouterr().out == 2 * f"{page.resolve()}\n"
    assert not page.with_name("stale.svg").exists()
    assert page.read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["report", "rows.jsonl", "run.json"]


@pytest.fixture
def no_figures(monkeypatch):
    """Without figures, for tests that do not need them."""
    monkeypatch.setattr("saprof.plots.gallery.drawings", lambda *_: [])


def test_several_runs_share_a_page(tmp_path, no_figures, capsys):
    runs = [run_folder(tmp_path / name, [row()]) for name in ("one & two", "three")]
    with pytest.raises(ValueError, match="expected its folder as --output"):
        report.main([*map(str, runs)])
    assert report.main([*map(str, runs), "--output", str(tmp_path / "out")]) == command.OK
    page = page_of(tmp_path / "out")
    assert {"#run-1", "#run-2"} < set(page.links)
    assert "2 runs Contents How to read this one & two" in page.words
    html = (tmp_path / "out" / "index.html").read_text()
    assert html.index('id="run-1"') < html.index('id="run-2"')
    assert html.count(">How to read this ") == 1


def test_figures_of_several_runs_have_names_of_their_own(tmp_path):
    runs = [run_folder(tmp_path / name, [row(taps=None, footprint="default")]) for name in "ab"]
    assert report.main([*map(str, runs), "--output", str(tmp_path / "out")]) == command.OK
    stems = [path.stem for path in sorted((tmp_path / "out").glob("*.svg"))]
    assert stems == [f"run-{run}-{what}-operators" for run in (1, 2) for what in ("latency", "memory")]
    assert re.findall(r"Figure (\d+)\.", page_of(tmp_path / "out").words) == ["1", "2", "3", "4"]


def test_when_every_cell_failed(tmp_path):
    folder = run_folder(tmp_path / "run", [failed(size=size) for size in (3, 7)], dirty=True)
    assert report.main([str(folder)]) == command.OK
    page = page_of(folder / "report")
    assert not page.pictures
    assert "2 cells, of which none ran" in page.words
    assert "Latency of operators: no row has a latency: 2 are oom" in page.words
    assert "2 cells oom on unfold: no <memory> left" in page.words
    assert "the code had uncommitted changes" in page.words
    assert "python -m saprof.roofline" in page.words


def test_doubts(tmp_path, no_figures):
    rows = [
        row(latency_s=1e-9, latency_low_s=1e-9, latency_high_s=1e-9),
        *(row(size=size, status="unstable") for size in range(5, 23, 2)),
        failed(status="incorrect", reason="value is off by 3 times its tolerance"),
    ]
    folder = run_folder(tmp_path / "run", rows, ROOFS)
    assert report.main([str(folder)]) == command.OK
    words = page_of(folder / "report").words
    assert "9 of 10 latencies are unstable aggregation square:5 forward numba, 1×56×56 float32 aggregation" in words
    assert all(f"square:{size} forward numba" in words for size in range(5, 23, 2)), "all are named"
    assert "1 row faster than the machine allows, a measurement error: aggregation square:3" in words
    assert "1 cell did not agree with the reference: not timed: aggregation square:11" in words


def test_rows_that_wait_for_the_host(tmp_path, no_figures):
    folder = run_folder(tmp_path / "run", [row(), row(size=5, status="host_bound", host_s=5e-3)])
    assert report.main([str(folder)]) == command.OK
    words = page_of(folder / "report").words
    assert "1 of 2 rows: the host takes longer to start the work than the GPU to do it" in words


def test_an_empty_run_has_no_report(tmp_path):
    folder = run_folder(tmp_path / "run", [])
    with pytest.raises(ValueError, match="run has no rows; expected a run with at least one"):
        report.main([str(folder)])
    assert not (folder / "report").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "run.json").unlink(), "cannot read .*run.json .*expected the folder of a run"),
        (lambda folder: (folder / "rows.jsonl").unlink(), "cannot read rows from .*rows.jsonl"),
        (lambda folder: (folder / "rows.jsonl").write_text("{\n"), ".*rows.jsonl, line 1 is damaged"),
        (lambda folder: (folder / "run.json").write_text('{"schema": 1}'), ".*run.json does not tell device"),
        (lambda folder: (folder / "calibration.json").write_text("{"), "cannot read .*calibration.json"),
    ],
)
def test_a_damaged_run_is_one_sentence(tmp_path, spoil, message):
    folder = run_folder(tmp_path / "run", [row()])
    spoil(folder)
    with pytest.raises(ValueError, match="^" + message) as caught:
        report.main([str(folder)])
    assert "\n" not in str(caught.value)
    assert not (folder / "report").exists()


def test_other_folders_are_not_replaced(tmp_path, no_figures):
    folder = run_folder(tmp_path / "run", [row()])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("<p>mine")
    (tmp_path / "file").touch()
    for other in (folder, tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(ValueError, match="is neither empty nor a report; choose another folder with --output"):
            report.main([str(folder), "--output", str(other)])
    assert (tmp_path / "mine" / "index.html").read_text() == "<p>mine"
    (tmp_path / "empty").mkdir()
    assert report.main([str(folder), "--output", str(tmp_path / "empty")]) == command.OK
    with pytest.raises(ValueError, match=r"cannot write to .*choose another with --output"):
        report.main([str(folder), "--output", str(tmp_path / "file" / "out")])


def test_an_interrupted_report_leaves_the_old_one(tmp_path, no_figures, monkeypatch):
    folder = run_folder(tmp_path / "run", [row()])
    assert report.main([str(folder)]) == command.OK
    before = (folder / "report" / "index.html").read_bytes()

    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "render", stops)
    with pytest.raises(KeyboardInterrupt):
        report.main([str(folder)])
    assert (folder / "report" / "index.html").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["report", "rows.jsonl", "run.json"]


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from saprof import report; "
        "assert not {'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules), 'heavy'; report.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "needs no other file" in done.stdout


def test_the_report_of_a_profile_has_its_icicles_and_its_tree(tmp_path):
    folder = made_up.run_folder(tmp_path / "run", made_up.profile_rows(), where=WHERE)
    assert report.main([str(folder)]) == command.OK
    text = (folder / "report" / "index.html").read_text()
    assert "tiny: body takes 70 % of 10 ms" in text
    assert text.count('class="icicle"') == 3
    assert "tiny, layer by layer" in text
    assert "python -m saprof.profile" in text
    assert "A click on a layer zooms" in text, "the script of the icicles"
    assert [one.name for one in downloads(folder / "report")] == [
        "what-each-kind-of-operator-takes.csv", "layers-of-tiny.csv",
    ]  # fmt: skip


HOSTILE = "<script>alert(1)</script>\"'&amp;\n</style>$x^{"


def test_hostile_names_are_shown_as_text(tmp_path):
    rows = [row(HOSTILE, size, backend) for size in (3, 7) for backend in ("numba", "unfold")]
    rows.append(failed(name=HOSTILE, reason=HOSTILE, backend="cuda"))
    folder = run_folder(tmp_path / "run", rows, device=HOSTILE, cpu=HOSTILE, argv=[HOSTILE], flags={HOSTILE: HOSTILE})
    assert report.main([str(folder)]) == command.OK
    html = (folder / "report" / "index.html").read_text()
    assert html.count("<script") == 1
    assert html.count("</style>") == 1
    page = page_of(folder / "report")
    assert "<script>alert(1)</script>\"'&amp; </style>$x^{" in page.words
    (lines,) = [one.lines for one in downloads(folder / "report") if one.name == "operators.csv"]
    assert {line["name"] for line in lines} == {HOSTILE}
