"""Roofs: the bounds that follow from them, their file, and their measurement. No test asserts a time."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up import ANCHOR, ROOFS
from made_up import row_under_roofs as row

from kernels_numba.cpu import rates
from saprof.backends import numba as backend
from saprof.measure import calibrate
from saprof.measure.latency import Latency
from saprof.records import calibration
from saprof.records.calibration import Bound, above_roof, bound, share, why_not


@pytest.mark.parametrize(
    ("size", "rate"),
    [(0, 8e9), (999, 8e9), (1000, 8e9), (4000, 8e9), (15999, 8e9), (16000, 2.5e9), (1e12, 2.5e9)],
)
def test_bandwidth_is_that_of_the_fastest_stream_from_the_next_smaller_set_on(size, rate):
    assert ROOFS.bandwidth(size) == rate


def test_a_faster_set_beyond_makes_the_bound_no_looser():
    times = [size / ROOFS.bandwidth(size) for size in range(100, 40000, 100)]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("dtype", "rate"), [("float32", 100e9), ("float64", 60e9), ("bfloat16", 100e9), ("float16", None)]
)
def test_rate_of_a_dtype(dtype, rate):
    """bfloat16 may be computed in float32, where its own products are slower; float16 was not measured."""
    assert ROOFS.flop_rate(dtype) == rate


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Bound(250e-9, "memory")),
        ({"mode": "train_forward"}, Bound(250e-9, "memory")),
        ({"flops_hardware": 50_000}, Bound(500e-9, "compute")),
        ({"flops_hardware": 0}, Bound(250e-9, "memory")),
        ({"dtype": "float64", "flops_hardware": 30000}, None),  # whose FMA loop is slower than the product
        ({"kind": "model", "n": 8, "compulsory_bytes": 10**9}, Bound(80e-9, "compute")),
        ({"mode": "backward"}, None),
        ({"dtype": "float16"}, None),
        ({"device": "cuda:0"}, None),
        ({"flops_hardware": None}, None),
        ({"status": "oom", "reason": "large", "latency_s": None}, Bound(250e-9, "memory")),
    ],
)
def test_bound(fields, expected):
    assert bound(row(**fields), ROOFS) == expected


def test_share():
    assert share(row(), ROOFS) == pytest.approx(0.25)
    assert share(row(mode="train_step"), ROOFS) is None
    assert share(row(status="oom", reason="large", latency_s=None), ROOFS) is None


@pytest.mark.parametrize(("high", "is_above"), [(249e-9, True), (250e-9, False), (1e-6, False), (None, False)])
def test_above_the_roof_with_the_whole_interval(high, is_above):
    fast = row(latency_s=200e-9, latency_high_s=high)
    assert above_roof(fast, ROOFS) is is_above
    assert not above_roof(replace(fast, mode="backward"), ROOFS)


def test_roofs_measured_beside_other_processes_accuse_nobody():
    contended = replace(ROOFS, anchors=(replace(ANCHOR, contended=True), ANCHOR))
    assert not above_roof(row(latency_s=1e-9, latency_high_s=1e-9), contended)
    late = calibration.with_anchor(ROOFS, replace(ANCHOR, contended=True))
    assert above_roof(row(latency_s=1e-9, latency_high_s=1e-9), late), "the roofs were measured in peace"


def test_an_fma_loop_slower_than_a_product_is_no_roof():
    found = replace(ROOFS, fma={"float32": 50e9})
    slow = "the FMA loop in float32 reached 50 GFLOP/s, less than the 80 of the float32 matrix product"
    for dtype in ("float32", "bfloat16"):
        one = row(dtype=dtype)
        assert share(one, ROOFS) is not None
        assert share(one, found) is None
        assert why_not(one, found) == f"no roof of FLOP/s: {slow}; measure the roofs again"


def test_products_on_tensor_cores_are_compared_with_no_fma_loop():
    found = replace(ROOFS, device="A GPU", gemm={**ROOFS.gemm, "tf32": 400e9})
    assert found.why_too_low() is None
    assert found.flop_rate("float32") == 400e9
    assert found.flop_rate("bfloat16") == ROOFS.flop_rate("bfloat16")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"fma": {"float32": 80e9}}, None),
        ({"fma": {"float32": 76e9}}, None),  # within the noise
        (
            {"fma": {"float32": 75e9}},
            "the FMA loop in float32 reached 75 GFLOP/s, less than the 80 of the float32 matrix product",
        ),
        ({"streams": {"copy": {1000: 4e9, 4000: 2e9}, "read": {4000: 3e9}}}, None),
        (
            {"streams": {"copy": {1000: 3e9, 2000: 2e9, 4000: 4e9}}},
            "a copy in the caches reached 3 GB/s, less than the 4 of a copy in memory",
        ),
        ({"anchors": (replace(ANCHOR, contended=True),)}, "other processes ran meanwhile"),
    ],
)
def test_why_roofs_are_too_low(fields, reason):
    """Then no row can be above them, and a share of them is too high."""
    found = replace(ROOFS, **fields)
    assert found.why_too_low(["float32"]) == found.why_too_low(["bfloat16"]) == reason
    fast = row(latency_s=1e-9, latency_high_s=1e-9)
    assert above_roof(fast, found) is (reason is None)


def test_units_that_differ_may_differ():
    """Of a GPU: float64 products run on tensor cores, and a small copy takes as long as its start."""
    found = replace(ROOFS, device="A GPU", streams={"copy": {1000: 1e9, 4000: 4e9}})
    assert found.why_too_low() is None
    assert "in float64 reached 50" in (ROOFS.why_too_low(["float64"]) or "")
    low = replace(found, fma={"float32": 50e9}).why_too_low()
    assert low == "the FMA loop in float32 reached 50 GFLOP/s, less than the 80 of the float32 matrix product"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"status": "oom", "reason": "large", "latency_s": None}, "oom, so without a latency"),
        ({"mode": "train_step"}, "mode train_step; declared costs are of one forward"),
        ({"dtype": "float16"}, "no FLOP/s were measured for float16"),
        ({"device": "cuda"}, "ran on cuda; the roofs are those of A CPU"),
        ({"flops_hardware": None}, "no declared costs"),
    ],
)
def test_why_a_row_has_no_place(fields, reason):
    assert why_not(row(**fields), ROOFS) == reason


def test_a_gpu_is_no_cpu():
    gpu = replace(ROOFS, device="A GPU")
    assert (ROOFS.kind, gpu.kind) == ("cpu", "cuda")
    assert share(row(device="cuda:1"), gpu) == pytest.approx(0.25)
    assert why_not(row(), gpu) == "ran on cpu; the roofs are those of A GPU"


def test_noise():
    assert ROOFS.noise_within == pytest.approx(0.03)
    assert ROOFS.noise_between == pytest.approx(0.10)
    later = replace(ANCHOR, blocks_s={"copy": (4.2, 5.0), "gemm": (0.5, 1.0)}, ratios={"gemm": (0.99, 1.07)})
    both = calibration.with_anchor(ROOFS, later)
    assert both.anchors == (ANCHOR, later)
    assert both.noise_within == pytest.approx(0.07)
    assert both.noise_between == pytest.approx(1.0)


def test_what_is_written_is_read(tmp_path):
    assert calibration.read(tmp_path) is None
    calibration.write(tmp_path, ROOFS)
    assert calibration.read(tmp_path) == ROOFS
    kept = json.loads((tmp_path / "calibration.json").read_text())
    assert kept["streams_bytes_per_s"]["copy"]["4000"] == 8e9
    assert kept["gemm_flop_per_s"] == ROOFS.gemm
    assert "noise_within" not in kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kept: kept.pop("threads"), "KeyError"),
        (lambda kept: kept.update(schema=99), "expected a calibration of schema 1"),
        (lambda kept: kept["fma_flop_per_s"].update(float32=0), "positive"),
        (lambda kept: kept["gemm_flop_per_s"].update(float64=float("nan")), "finite"),
        (lambda kept: kept["streams_bytes_per_s"]["read"].update({"1000": float("inf")}), "finite"),
        (lambda kept: kept.update(streams_bytes_per_s={}), "expected streams"),
        (lambda kept: kept.update(anchors=[]), "an anchor"),
        (lambda kept: kept["anchors"][0].pop("ratios"), "KeyError"),
        (lambda kept: kept["gemm_flop_per_s"].update(float32="fast"), "not a calibration"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, change, message):
    calibration.write(tmp_path, ROOFS)
    kept = json.loads((tmp_path / "calibration.json").read_text())
    change(kept)
    (tmp_path / "calibration.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=f"calibration.json .*{message}.*calibrate again"):
        calibration.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_file_that_is_something_else(tmp_path, text):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(ValueError, match=r"cannot read .*calibration\.json"):
        calibration.read(tmp_path)


def test_reading_needs_no_torch():
    code = "import sys, saprof.records.calibration; assert not {'torch', 'numpy'} & {*sys.modules}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def iterated(values, a, b, steps):
    for _ in range(steps):
        values = a * values + b
    return values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_fma_loop_computes_what_it_says(dtype, threads):
    values = np.random.default_rng(0).normal(size=(threads, rates.CHAINS * rates.BYTES // np.dtype(dtype).itemsize))
    values = values.astype(dtype)
    expected = iterated(values.astype("float64"), 0.75, 1.5, 20)
    rates.iterate(len(values), values, 0.75, 1.5, 20)
    np.testing.assert_allclose(values, expected, rtol=20 * np.finfo(dtype).eps)


def test_the_fma_loop_of_a_gpu_computes_the_same():
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here; the simulator is off")
    from kernels_numba.gpu import rates

    values = np.random.default_rng(0).normal(size=(rates.CHAINS, 40)).astype("float32")
    steps = 2 * rates.UNROLLED + 5
    expected = iterated(values.astype("float64"), 0.75, 1.5, steps)
    with backend.on_stream(torch.device("cpu")) as stream:
        rates.iterate(values, 0.75, 1.5, steps, stream)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_flops_of_the_fma_loop():
    flops, call = calibrate._fma_on_cpu("cpu", torch.float64, steps=3)
    assert flops == 2 * torch.get_num_threads() * rates.CHAINS * 4 * 3
    call()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(calibrate, "LARGEST", {"cpu": 100 << 10})
    monkeypatch.setattr(calibrate, "_last_level_cache", lambda: 40 << 10)
    monkeypatch.setattr(calibrate, "ANCHOR_BYTES", 64 << 10)
    monkeypatch.setattr(calibrate, "GEMM_SIDE", {"cpu": 256})
    monkeypatch.setattr(calibrate, "ANCHOR_SIDE", {"cpu": 32})


@pytest.mark.usefixtures("small")
def test_calibrate_measures_every_roof(tmp_path, capsys):
    found = calibrate.calibrate("cpu", ["bfloat16"], seconds_each=0.01)
    assert (found.kind, found.threads, found.torch) == ("cpu", torch.get_num_threads(), torch.__version__)
    assert {name: list(stream) for name, stream in found.streams.items()} == {
        "copy": [64 << 10, 160 << 10],
        "read": [64 << 10, 160 << 10],
    }
    assert (list(found.fma), list(found.gemm)) == (["float32"], ["bfloat16", "float32"])
    (anchor,) = found.anchors
    assert {name: len(blocks) for name, blocks in anchor.blocks_s.items()} == {"copy": 2, "gemm": 2}
    assert all(low <= high for low, high in anchor.ratios.values())
    assert found.time <= anchor.time
    calibration.write(tmp_path, found)
    assert calibration.read(tmp_path) == found
    output = capsys.readouterr()
    assert output.err.startswith(f"measuring the roofs of {found.device}")
    assert output.out == ""


@pytest.mark.parametrize(("rates", "fma", "times"), [([3, 5, 9], 5e9, 2), ([3], 3e9, 3), ([4, 3], 4e9, 1)])
def test_roofs_that_cannot_be_are_measured_again(monkeypatch, capsys, rates, fma, times):
    """The product reaches 4 GFLOP/s; the last rate of the FMA loop is repeated."""
    measured = []

    def measure(*arguments):
        rate = rates[min(len(measured), len(rates) - 1)]
        measured.append(replace(ROOFS, fma={"float32": rate * 1e9}, gemm={"float32": 4e9 - len(measured)}))
        return measured[-1]

    monkeypatch.setattr(calibrate, "_measure", measure)
    found = calibrate.calibrate("cpu", ["float32"])
    assert (len(measured), found.fma, found.gemm) == (times, {"float32": fma}, {"float32": 4e9})
    assert bool(found.impossible()) is (fma < 4e9)
    error = capsys.readouterr().err
    assert error.count("reached 3 GFLOP/s, less than the 4 of the float32 matrix product: measuring again") == times - 1
    assert ("the roofs are too low, and shares of them too high: " in error) is bool(found.why_too_low())


@pytest.mark.parametrize(("others", "contended"), [(0.1, False), (0.2, True)])
def test_processes_beside_the_whole_measurement_count(monkeypatch, others, contended):
    monkeypatch.setattr(calibrate, "_measure", lambda *_: ROOFS)
    monkeypatch.setattr(calibrate.Usage, "since", lambda self: (0, 1.0, others))
    found = calibrate.calibrate("cpu", ["float32"])
    assert (found.contended, found.anchors[0].others_cpu) == (contended, others)


@pytest.mark.usefixtures("small")
def test_rates_by_hand(monkeypatch):
    """If calls take 1 to 11 ms: a roof follows from the 10th percentile, 2 ms."""
    latency = Latency(tuple(1e-3 * i for i in range(1, 12)), 1, "rounds", 0, 1.0, 0.0)
    moved = []

    def interleaved(calls, *_):
        moved.extend(2 * call().nbytes for name, call in calls.items() if name == "copy")
        return dict.fromkeys(calls, latency)

    monkeypatch.setattr(calibrate, "interleave", interleaved)
    monkeypatch.setattr(calibrate, "_product", lambda device, dtype: (512, None))
    streams = calibrate._streams("cpu", 1.0)
    assert streams == {name: {size: pytest.approx(size / 2e-3) for size in moved} for name in ("copy", "read")}
    assert calibrate._gemm_rate("cpu", "float32", 1.0) == pytest.approx(2 * 512**3 / 2e-3)


@pytest.mark.usefixtures("small")
def test_an_anchor_compares_a_call_with_itself(monkeypatch):
    def interleaved(calls, device, seconds, seed):
        assert list(calls) == ["copy", "gemm", "copy again", "gemm again"]
        assert calls["gemm"] is calls["gemm again"]
        assert calls["gemm"]().shape == (32, 32)
        times = {"copy": 1.0, "gemm": 2.0 + seed, "copy again": 1.1, "gemm again": 2.0 + seed}
        return {
            name: SimpleNamespace(samples=(time,) * 7, others_cpu=0.1 * seed, status=("ok", "contended")[seed])
            for name, time in times.items()
        }

    monkeypatch.setattr(calibrate, "interleave", interleaved)
    found = calibrate.anchor("cpu")
    assert found.blocks_s == {"copy": (1.05, 1.05), "gemm": (2.0, 3.0)}
    assert found.ratios == {"copy": (pytest.approx(1 / 1.1),) * 2, "gemm": (1.0, 1.0)}
    assert (found.others_cpu, found.contended) == (0.1, True)


@pytest.mark.parametrize(("seconds", "side"), [(1e-4, 1024), (2e-3, 512), (1.0, 256)])
def test_a_product_takes_long_enough(monkeypatch, seconds, side):
    """If a product of side 256 takes this long, and each doubling takes 8 times as long."""
    times = iter([seconds, 8 * seconds, 64 * seconds])
    monkeypatch.setattr(calibrate, "_seconds", lambda call: next(times))
    found, call = calibrate._product("cpu", "float64")
    assert found == side
    assert (call().shape, call().dtype) == ((side, side), torch.float64)


def test_working_sets_end_beyond_the_caches_and_within_the_memory(monkeypatch):
    sets = lambda: [size >> 10 for size in calibrate._working_sets("cpu")]  # noqa: E731
    free = SimpleNamespace(available=64 << 30)
    monkeypatch.setattr(calibrate.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(calibrate, "_last_level_cache", lambda: 32 << 20)
    assert sets() == [64, 256, 1024, 4096, 16384, 65536, 262144]
    monkeypatch.setattr(calibrate, "_last_level_cache", lambda: 96 << 20)
    assert sets()[-2:] == [262144, 393216]
    free.available = 2 << 20
    assert sets() == [64, 256, 512]
    free.available = 100 << 10
    with pytest.raises(ValueError, match="102400 bytes are free on cpu; expected at least 262144"):
        sets()


def test_last_level_cache_counts_each_instance_once(tmp_path):
    caches = [(0, 0, 2, "0", "512K"), (0, 1, 3, "0-1", "16384K"), (1, 1, 3, "0-1", "16384K"), (2, 1, 3, "2", "8192K")]
    for cpu, index, level, shared, size in caches:
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, value in (("level", level), ("shared_cpu_list", shared), ("size", size)):
            (folder / name).write_text(f"{value}\n")
    (tmp_path / "cpu2" / "cache" / "index2").mkdir()
    assert calibrate._last_level_cache(tmp_path) == 24 << 20
    assert calibrate._last_level_cache(tmp_path / "cpu7") == 0


def test_one_thread_is_not_plural():
    assert [calibrate._with(*of) for of in ((1, "cpu"), (2, "cpu"), (1, "cuda"))] == [
        " with 1 thread",
        " with 2 threads",
        "",
    ]
