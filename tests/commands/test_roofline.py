"""`saprof.roofline` on a small run made by hand, and its figure."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from made_up import ANCHOR, ROOFS, profile_rows, roofs, run_folder
from made_up import row_under_roofs as row

from saprof import backends, command, roofline
from saprof.measure import calibrate
from saprof.plots import frame
from saprof.plots.roofline import roofline_figure
from saprof.records import calibration, environment

FAST = row(key="a", backend="numba", latency_s=1e-6, latency_low_s=0.9e-6, latency_high_s=1.1e-6)
"""A row at 25 % of the roof, since its least time is 250 ns."""
SLOW = replace(FAST, key="b", backend="unfold", latency_s=8.4e-6, latency_high_s=9e-6, ratio=8.0)
STEP = replace(FAST, key="c", mode="train_step")
OTHER = replace(FAST, key="d", name="pairwise_summation", flops_hardware=0)
FAILED = replace(STEP, key="e", status="oom", reason="large", latency_s=None, mode="forward", h=99)
NETWORK = replace(
    FAST, key="f", name="resnet26", kind="model", n=2, taps=None, footprint="default", backend="torch", latency_s=1e-6,
    compulsory_bytes=10**6, flops_hardware=25_000,
)  # fmt: skip
WRONG = replace(FAST, key="g", h=16, latency_s=100e-9, latency_high_s=120e-9)
ROWS = [replace(row, time="2026-01-01T00:00:05+00:00") for row in (FAST, SLOW, STEP, OTHER, FAILED, NETWORK)]


def make(folder, rows=ROWS, roofs=ROOFS, **provenance):
    return run_folder(folder, rows, roofs, environment.provenance("cpu", 1) | provenance)


@pytest.fixture
def undrawn(monkeypatch):
    """Without figures, which take a second each."""
    monkeypatch.setattr(roofline, "_draw", lambda *_: None)


def lines(output):
    return [line.split() for line in output.splitlines()]


def test_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert roofline.main([str(make(tmp_path / "run"))]) == command.OK
    output = capsys.readouterr()
    text = output.out
    assert text.startswith(
        "Roofs of A CPU (2 threads), measured 2026-01-01T00:00:00+00:00; rows of 2026-01-01T00:00:05+00:00 to "
    )
    assert "± 3.0% in the same rounds, by 10.0% from time to time" in text
    (header,) = [line for line in text.splitlines() if line.startswith("name")]
    titles = "name footprint images ran on FLOP/byte bound by least ms latency ms % of roof speed-up at most"
    assert header.split() == titles.split()
    at, ran = ["square:3", "1"], ["default", "2", "torch"]
    assert ["aggregation", *at, "numba", "0.5", "memory", "0.00025", "0.001", "25", "8.0×", "unfold", "34×"] in lines(
        text
    )
    assert ["aggregation", *at, "unfold", "0.5", "memory", "0.00025", "0.0084", "2.98"] in lines(text)
    assert ["pairwise_summation", *at, "numba", "0", "memory", "0.00025", "0.001", "25"] in lines(text)
    assert ["resnet26", *ran, "compute", "0.0005", "0.001", "50"] in lines(text)
    assert "not placed, 1 of 6 rows: mode train_step; declared costs are of one forward" in text
    assert "not placed, 1 of 6 rows: oom, so without a latency" in text
    assert "before the roofs" not in text
    assert str(tmp_path / "run" / "roofline.png") in output.err
    assert (tmp_path / "run" / "roofline.png").stat().st_size > 10_000
    assert (tmp_path / "run" / "roofline.svg").exists()


def test_the_figure_may_go_elsewhere(tmp_path):
    assert roofline.main([str(make(tmp_path / "run")), "--output", str(tmp_path / "a" / "b")]) == command.OK
    assert (tmp_path / "a" / "b" / "roofline.svg").exists()
    assert not (tmp_path / "run" / "roofline.svg").exists()


@pytest.mark.usefixtures("undrawn")
def test_faster_than_the_roof_is_an_error(tmp_path, capsys):
    run = make(tmp_path / "run", [FAST, WRONG])
    assert roofline.main([str(run)]) == command.FAILED
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.endswith("measurement error: 250% of the roof")]
    assert text.rstrip().endswith("1 of 2 rows are faster than the roofs allow: measurement error")


@pytest.mark.usefixtures("undrawn")
def test_records(tmp_path, capsys):
    run = make(tmp_path / "run", [FAST, SLOW, WRONG])
    assert roofline.main([str(run), "--format", "json"]) == command.FAILED
    fast, slow, wrong = json.loads(capsys.readouterr().out)
    assert fast | {"roof_share": pytest.approx(0.25), "bound_s": pytest.approx(250e-9)} == fast
    assert (fast["bound_by"], fast["flop_hardware_per_byte"], fast["note"]) == ("memory", 0.5, "")
    assert (fast["slowest"], fast["speed_up"], fast["speed_up_at_most"]) == ("unfold", 8, pytest.approx(33.6))
    assert slow["slowest"] is slow["speed_up"] is slow["speed_up_at_most"] is None
    assert wrong["note"] == "measurement error: 250% of the roof"
    roofline.main([str(run), "--format", "csv"])
    assert [line["backend"] for line in csv.DictReader(io.StringIO(capsys.readouterr().out))] == [
        "numba", "unfold", "numba",
    ]  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_rows_of_different_rounds_are_not_compared(tmp_path, capsys):
    run = make(tmp_path / "run", [FAST, replace(SLOW, ratio=None)])
    assert roofline.main([str(run), "--format", "json"]) == command.OK
    assert [record["speed_up"] for record in json.loads(capsys.readouterr().out)] == [None, None]


@pytest.mark.usefixtures("undrawn")
def test_a_cell_that_was_measured_again_counts_once(tmp_path, capsys):
    run = make(tmp_path / "run", [FAST, replace(FAST, latency_s=0.5e-6)])
    assert roofline.main([str(run), "--format", "json"]) == command.OK
    (record,) = json.loads(capsys.readouterr().out)
    assert record["roof_share"] == pytest.approx(0.5)


def test_nothing_placed_is_a_failure_that_says_why(tmp_path, capsys):
    assert roofline.main([str(make(tmp_path / "run", [STEP]))]) == command.FAILED
    output = capsys.readouterr()
    assert "not placed, 1 of 1 rows: mode train_step" in output.out
    assert "there is no figure" in output.err
    assert not (tmp_path / "run" / "roofline.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_roofs_measured_beside_others_or_later_say_so(tmp_path, capsys):
    contended = replace(ROOFS, time="2026-01-02", anchors=(replace(ANCHOR, contended=True),))
    wrong = replace(WRONG, time="2026-01-01")
    assert roofline.main([str(make(tmp_path / "run", [wrong], contended))]) == command.OK
    text = capsys.readouterr().out
    assert "shares of them too high: other processes ran meanwhile" in " ".join(text.split())
    assert "rows of 2026-01-01 to 2026-01-01, before the roofs" in " ".join(text.split())
    assert "measurement error" not in text


@pytest.fixture
def measured(monkeypatch):
    """Replaces the measurement by a record of the arguments of `calibrate`."""
    asked = []

    def known(device, dtypes):
        asked.append((device, *dtypes))
        return ROOFS

    monkeypatch.setattr(calibrate, "calibrate", known)
    monkeypatch.setattr(backends, "check_device", lambda device: None)
    monkeypatch.setattr(environment, "device_name", lambda device: f"A {device.upper()}")
    return asked


@pytest.mark.usefixtures("undrawn")
def test_calibrate_a_run(tmp_path, measured):
    rows = [FAST, replace(FAST, key="h", dtype="bfloat16")]
    run = make(tmp_path / "run", rows, None, device="A CPU", threads=1)
    with pytest.raises(ValueError, match=r"has no calibration\.json; measure the roofs now with --calibrate"):
        roofline.main([str(run)])
    assert roofline.main([str(run), "--calibrate"]) == command.OK
    assert measured == [("cpu", "bfloat16", "float32")]
    assert calibration.read(run) == ROOFS
    with pytest.raises(ValueError, match="has roofs of 2026-01-01"):
        roofline.main([str(run), "--calibrate"])


@pytest.mark.parametrize(
    ("provenance", "difference"),
    [
        ({"device": "Another", "threads": 1}, "device was 'Another' and is 'A CPU'; calibrate under its conditions"),
        ({"device": "A CPU", "threads": 64}, "threads was 64 and is 1; calibrate under its conditions"),
    ],
)
def test_calibrating_elsewhere_is_refused(tmp_path, measured, provenance, difference):
    run = make(tmp_path / "run", [FAST], None, **provenance)
    with pytest.raises(ValueError, match=difference):
        roofline.main([str(run), "--calibrate"])
    assert measured == []
    assert calibration.read(run) is None


def test_the_roofs_of_this_machine(measured, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert roofline.main(["--calibrate"]) == command.OK
    text = capsys.readouterr().out
    assert [device for device, *_ in measured] == ["cpu", "cuda"]
    assert ["0.00381", "8", "7"] in [[f"{float(line[0]):.3g}", *line[1:]] for line in lines(text) if line[1:2] == ["8"]]
    assert ["float64", "50", "60"] in lines(text)
    assert ["bfloat16", "10"] in lines(text)
    roofline.main(["--calibrate", "--format", "json"])
    records = json.loads(capsys.readouterr().out)
    assert len(records) == 2 * (6 + 2 + 3)
    assert records[1] == {
        "device": "A CPU", "threads": 2, "time": "2026-01-01T00:00:00+00:00",
        "roof": "copy", "bytes": 4000, "dtype": None, "bytes_per_s": 8e9, "flop_per_s": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a run folder, or --calibrate"),
        (["nowhere"], "cannot read nowhere/run.json"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        roofline.main(arguments)


def test_help_needs_no_torch():
    code = "import sys, saprof.roofline; assert not {'torch', 'pandas', 'matplotlib'} & {*sys.modules}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_figure():
    larger = replace(FAST, footprint="square:5", taps=25, flops_hardware=3000, latency_s=2e-6)
    figure = roofline_figure(frame([FAST, SLOW, OTHER, larger, NETWORK, STEP, FAILED]), ROOFS, "made by hand")
    assert [axes.get_title("left") for axes in figure.axes] == ["numba", "unfold"]
    numba, _ = figure.axes
    points = [tuple(line.get_xydata()[0]) for line in numba.lines if len(line.get_xdata()) == 1]
    assert points == [pytest.approx((0.5, 1.0)), pytest.approx((1.5, 1.5))]
    assert texts(figure)[:4] == [
        "memory, 2.5 GB/s", "cache (3.91 KiB), 8 GB/s", "FMA, 100 GFLOP/s", "matrix product, 80 GFLOP/s",
    ]  # fmt: skip
    low, high = numba.get_ylim()
    assert low < 0.1
    assert high > 100
    assert "not drawn, since they only move bytes: pairwise_summation" in figure._supxlabel.get_text()
    assert "made by hand" in figure._supxlabel.get_text()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["aggregation", "9 taps", "25 taps"]


def test_labels_of_the_figure_do_not_overlap():
    operators = ("aggregation", "pairwise_dot_product", "patchwise_star_product")
    rows = [
        replace(FAST, name=name, taps=taps, footprint=f"square:{taps}", flops_hardware=1000 * 10**n)
        for n, name in enumerate(operators)
        for taps in (9, 25, 49)
    ]
    figure = roofline_figure(frame(rows), ROOFS)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    slanted, level = axes.texts[:2], [text.get_window_extent() for text in axes.texts[2:]]
    assert not level[0].overlaps(level[1])
    assert not [text for text in slanted for box in level if text.get_window_extent().overlaps(box)]
    memory, cache = slanted
    assert (memory.get_va(), cache.get_va()) == ("top", "bottom")
    (x0, y0), (x1, y1) = (text.get_position() for text in slanted)
    assert y1 / x1 > y0 / x0, "the label of the cache is above that of the memory"
    for text in axes.texts:
        box = text.get_window_extent()
        assert axes.bbox.padded(3).contains(*box.min), text.get_text()
        assert axes.bbox.padded(3).contains(*box.max), text.get_text()


def test_no_second_bandwidth_where_no_cache_is_faster():
    flat = replace(ROOFS, streams={"copy": {1000: 1.1e9, 4000: 1e9}})
    assert texts(roofline_figure(frame([FAST]), flat))[:2] == ["memory, 1 GB/s", "FMA, 100 GFLOP/s"]


@pytest.mark.parametrize("rows", [[], [STEP], [OTHER], [NETWORK], [FAILED], [replace(FAST, dtype="float16")]])
def test_a_figure_without_points_is_refused(rows):
    with pytest.raises(ValueError, match="no operator's forward computes and has a latency"):
        roofline_figure(frame(rows), ROOFS)


def test_layers_have_no_place_of_their_own():
    rows = profile_rows()
    lines = roofline.place(rows, roofs())
    assert [line["name"] for line in lines] == ["tiny"]
