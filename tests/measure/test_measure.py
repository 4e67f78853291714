"""Memory is exact, statistics are correct, rounds are interleaved. No test here asserts a time."""

from collections import namedtuple
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import saprof
from saprof.backends import run
from saprof.measure import latency as timing
from saprof.measure import rounds
from saprof.measure.latency import MIN_ROUNDS, Latency, Warm, interleave, ratio
from saprof.measure.memory import peak_bytes, predicted_peak_bytes, saved_bytes
from saprof.operators import OPERATORS
from saprof.operators.workload import Workload
from saprof.records import environment
from saprof.records.ratios import Ratio, median_interval

MIB = 2**20


SystemTimes = namedtuple("SystemTimes", "user nice system idle iowait irq softirq steal guest guest_nice")


class Freed:
    """An output whose memory is given back when nothing refers to it."""

    def __init__(self, free):
        self.free = free

    def __del__(self):
        self.free()


def latency(samples, others=0.0):
    return Latency(tuple(samples), 1, "rounds", 0, 1.0, others)


def test_peak_of_known_allocations():
    def call():
        a = torch.empty(MIB)
        b = a + 1
        del a
        c = torch.empty(MIB // 2)
        return b.sum() + c[0]

    assert peak_bytes(call) == pytest.approx(8 * MIB, abs=1024)
    assert peak_bytes(lambda: None) == 0


def test_predicted_peak_of_known_allocations():
    def function(x):
        y = x + 1
        z = y * 2
        del y
        return z.sum()

    assert predicted_peak_bytes(function, [torch.empty(MIB)]) == 8 * MIB


@pytest.mark.parametrize("size", [3, 5, 7, 9, 11])
def test_peak_of_unfolded_aggregation_in_closed_form(size):
    """Unfolded β, its products with α, and their sum live at once."""
    workload = Workload(OPERATORS["aggregation"], saprof.Footprint.square(size), v=16, g=4, h=32, w=32)
    inputs = workload.tensors()
    sizes = workload.sizes
    expected = 4 * sizes["v"] * sizes["p"] * (2 * sizes["k"] + 1)

    def function(*inputs):
        with torch.no_grad():
            return run(workload.operator, *inputs, footprint=workload.footprint, backend="unfold")

    assert peak_bytes(lambda: function(*inputs)) == expected
    assert predicted_peak_bytes(function, inputs) == expected


@pytest.mark.parametrize("name", OPERATORS)
def test_predicted_peak_is_the_measured_one(name):
    workload = Workload(OPERATORS[name], saprof.Footprint.square(5), r=8, v=16, g=4, h=28, w=28)
    inputs = workload.tensors()

    def function(*inputs):
        return run(workload.operator, *inputs, footprint=workload.footprint, backend="unfold")

    measured = peak_bytes(lambda: function(*inputs))
    # a matrix product of the CPU library packs a few kB
    assert measured == pytest.approx(predicted_peak_bytes(function, inputs), rel=2e-2)


def test_prediction_takes_no_memory():
    huge = torch.empty(1, dtype=torch.float32).expand(1, 64, 100_000, 100_000)
    assert predicted_peak_bytes(lambda x: x + 1, [huge]) == 4 * huge.numel()


def test_saved_for_backward():
    a, b = (torch.randn(MIB, requires_grad=True) for _ in range(2))
    assert saved_bytes(lambda a, b: a * b, [a, b]) == 0
    assert saved_bytes(lambda a, b: (a + b).exp(), [a, b]) == 4 * MIB
    assert saved_bytes(lambda a: a * b, [a], own=[b]) == 0
    assert saved_bytes(lambda a: a * b, [a]) == 4 * MIB


def test_unfold_saves_the_unfolded_value():
    workload = Workload(OPERATORS["aggregation"], saprof.Footprint.square(7), v=16, g=4, h=14, w=14)
    inputs = [x.requires_grad_() for x in workload.tensors()]
    saved = saved_bytes(lambda *x: run(workload.operator, *x, footprint=workload.footprint, backend="unfold"), inputs)
    unfolded = 4 * 16 * 49 * 14 * 14
    assert unfolded <= saved <= unfolded + 4096  # and the indices of the padding


def test_rounds_are_interleaved_and_shuffled():
    calls = []
    measured = interleave({name: lambda name=name: calls.append(name) for name in "abc"}, max_seconds=0)
    assert {len(x.samples) for x in measured.values()} == {MIN_ROUNDS}
    runs = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert len(runs) > 2 * MIN_ROUNDS, "each candidate's calls should be spread over the rounds"
    assert len({tuple(runs[i : i + 3]) for i in range(6, len(runs) - 3, 3)}) > 1, "rounds should be shuffled"


def test_a_measurement_without_time_still_has_all_rounds():
    measured = interleave({"a": lambda: None}, max_seconds=0)
    assert len(measured["a"].samples) == MIN_ROUNDS


def test_median_and_percentiles_by_hand():
    of_eleven = latency([5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 100.0])
    assert of_eleven.median == 6
    assert of_eleven.percentile(10) == 2
    assert of_eleven.percentile(90) == 10


def test_measuring_stops_when_every_interval_is_narrow(monkeypatch):
    now, noise = 0.0, np.random.default_rng(0)

    def call(spread):
        nonlocal now
        now += 1 + spread * noise.normal()

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    calls = {"steady": lambda: call(0.001), "noisy": lambda: call(0.05)}
    for latency in interleave(calls, max_seconds=1e9).values():
        low, high = median_interval(latency.samples, resamples=200)
        assert latency.stopped == "narrow"
        assert high - low <= 2 * timing.NARROW * latency.median


def simulated(monkeypatch, seconds, **options):
    """The latencies of candidates whose calls take the seconds that their generators give, and the order of calls."""
    now, order = 0.0, []

    def call(name):
        nonlocal now
        order.append(name)
        now += next(seconds[name])

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    return interleave({name: partial(call, name) for name in seconds}, **options), order


def steady(seconds):
    while True:
        yield seconds


def noisy(seconds, spread=0.3):
    noise = np.random.default_rng(0)
    while True:
        yield seconds * (1 + spread * noise.uniform(-1, 1))


def test_a_candidate_leaves_when_its_interval_is_narrow_and_the_others_go_on(monkeypatch):
    found, _ = simulated(monkeypatch, {"steady": steady(1.0), "noisy": noisy(1.0)}, max_seconds=60)
    assert (len(found["steady"].samples), found["steady"].stopped) == (MIN_ROUNDS, "narrow")
    assert len(found["noisy"].samples) > 3 * MIN_ROUNDS, "it has the time that the other one left over"
    assert found["noisy"].stopped == "time"
    assert sum(sum(x.samples) for x in found.values()) == pytest.approx(60, abs=3)


def test_a_short_candidate_has_its_share_of_the_time_beside_a_long_one(monkeypatch):
    """The long one uses all of the time in the first rounds."""
    found, _ = simulated(monkeypatch, {"short": noisy(0.2), "long": noisy(1.0)}, max_seconds=4)
    assert len(found["long"].samples) == MIN_ROUNDS
    assert sum(found["short"].samples) == pytest.approx(2, abs=0.3)
    assert {x.stopped for x in found.values()} == {"time"}


def test_a_ratio_uses_the_rounds_that_both_have():
    assert ratio(latency([2.0, 4.0, 6.0]), latency([1.0, 2.0, 3.0, 500.0, 900.0])).median == 2


def test_a_candidate_that_has_just_run_for_long_is_not_warmed_up_again(monkeypatch):
    calls = {"long": 0, "short": 0}
    now = 0.0

    def call(name, seconds):
        nonlocal now
        calls[name] += 1
        now += seconds

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    took = {"long": 0.3, "short": 0.15}
    found = interleave({name: Warm(partial(call, name, s), s) for name, s in took.items()}, max_seconds=0)
    assert calls == {"long": MIN_ROUNDS, "short": MIN_ROUNDS + 3}
    assert [x.calls_per_sample for x in found.values()] == [1, 1]


def test_who_watches_knows_the_round_and_the_most_that_there_will_be():
    seen = []
    interleave({"a": lambda: None}, max_seconds=0, watch=lambda *what: seen.append(what))
    assert seen == [("a", done, MIN_ROUNDS) for done in range(1, MIN_ROUNDS + 1)]


def test_the_number_of_rounds_is_estimated_from_the_time_that_is_left(monkeypatch):
    seen = []
    watch = lambda name, done, most: seen.append(most)  # noqa: E731
    simulated(monkeypatch, {"a": noisy(1.0)}, max_seconds=30, watch=watch)
    assert seen[0] == MIN_ROUNDS
    assert all(25 <= most <= 35 for most in seen[MIN_ROUNDS:])


def test_a_median_is_no_mean():
    skewed = latency([1.0] * 8 + [9.0] * 3)
    assert skewed.median == 1
    assert skewed.interval[0] == 1


def test_each_field_of_a_row_has_the_statistic_of_its_name():
    measured = latency([5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 100.0], others=0.1)
    measured = replace(measured, calls_per_sample=3, stopped="time", involuntary_switches=4, host_s=0.25)
    low, high = measured.interval
    assert 1 < low < 6 < high < 100
    assert rounds.timed(measured) == {
        "status": "unstable",
        "latency_s": 6,
        "latency_low_s": low,
        "latency_high_s": high,
        "latency_p10_s": 2,
        "latency_p90_s": 10,
        "samples_s": [5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 100.0],
        "calls_per_sample": 3,
        "stopped": "time",
        "host_s": 0.25,
        "cpu_per_wall": 1.0,
        "others_cpu": 0.1,
        "involuntary_switches": 4,
    }


@pytest.mark.parametrize(("call_s", "calls"), [(10e-6, 100), (1e-3, 1), (0.3, 1)])
def test_a_sample_is_the_time_of_one_call(monkeypatch, call_s, calls):
    now = 0.0

    def call():
        nonlocal now
        now += call_s

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    measured = interleave({"call": call}, max_seconds=0)["call"]
    assert measured.calls_per_sample == calls
    assert measured.samples == pytest.approx([call_s] * MIN_ROUNDS)
    assert measured.median == pytest.approx(call_s)


def test_the_cpu_time_of_others_does_not_include_our_own(monkeypatch):
    """In 4 s this process used 2 s of a CPU, and all together 3 s; 5 s were idle or waited for a disk."""
    before, after = ((0, 0.0, 0.0, 0.0, 0.0, 0.0), (7, 1.5, 0.5, 2.5, 0.5, 4.0))
    for switches, user, system, all_user, all_system, wall in (before, after):
        times = SystemTimes(all_user, 0.0, all_system, 10 + wall, 10 + 0.25 * wall, 0.0, 0.0, 0.0, 99.0, 99.0)
        used = SimpleNamespace(ru_nivcsw=switches, ru_utime=user, ru_stime=system)
        monkeypatch.setattr(timing.psutil, "cpu_times", lambda times=times: times)
        monkeypatch.setattr(timing.resource, "getrusage", lambda who, used=used: used)
        monkeypatch.setattr(timing.time, "perf_counter", lambda wall=wall: wall)
        if not wall:
            usage = timing.Usage()
    assert usage.since() == (7, 0.5, 0.25)


def test_peak_on_a_gpu_is_above_what_was_held_before(monkeypatch):
    """A call that holds 300 bytes at most, beside 1000 bytes of inputs and weights; its first time it holds more."""
    held, peak, calls = 1000, 5000, 0

    def allocate(size):
        nonlocal held, peak
        held += size
        peak = max(peak, held)

    def call():
        nonlocal calls
        calls += 1
        allocate(300 + (700 if calls == 1 else 0))
        allocate(-100 - (700 if calls == 1 else 0))
        return Freed(lambda: allocate(-200))

    def reset(device):
        nonlocal peak
        peak = held

    fakes = {
        "synchronize": lambda device: None,
        "reset_peak_memory_stats": reset,
        "memory_allocated": lambda device: held,
        "max_memory_allocated": lambda device: peak,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert peak_bytes(call, "cuda:1") == 300
    assert held == 1000


def test_short_calls_are_repeated_and_long_ones_are_not():
    import time

    measured = interleave({"short": lambda: None, "long": lambda: time.sleep(2e-3)}, max_seconds=0.01)
    assert measured["short"].calls_per_sample > 100
    assert measured["long"].calls_per_sample == 1


def test_a_short_call_does_not_pay_for_the_candidate_before(monkeypatch):
    now, last = 0.0, None

    def call(name, seconds, after_another):
        nonlocal now, last
        now += seconds + (after_another if last not in (name, None) else 0.0)
        last = name

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    measured = interleave({"short": lambda: call("short", 0.002, 0.008), "long": lambda: call("long", 0.5, 0.001)})
    assert measured["short"].samples == pytest.approx([0.002] * len(measured["short"].samples))
    assert max(measured["long"].samples) == pytest.approx(0.501), "a long one has no untimed call before it"


def test_the_interval_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = sum(low <= 1.0 <= high for low, high in (median_interval(rng.lognormal(0, 0.2, 25)) for _ in range(300)))
    assert 0.90 < covered / 300 < 0.99


@pytest.mark.parametrize(("factor", "verdict"), [(1.5, "slower"), (0.5, "faster"), (1.0, "same"), (1.021, "ambiguous")])
def test_ratios_are_taken_within_rounds(factor, verdict):
    rng = np.random.default_rng(0)
    machine = rng.uniform(1, 30, 40)  # the speed of the machine varies thirtyfold from round to round
    noise = rng.normal(1, 0.01, 40)
    compared = ratio(latency(machine * factor * noise), latency(machine))
    assert compared.median == pytest.approx(factor, rel=0.01)
    assert compared.verdict() == verdict


def test_a_wide_interval_is_ambiguous():
    assert Ratio(1.1, 0.9, 1.3).verdict() == "ambiguous"


def test_status_of_a_latency():
    assert latency([1.0, 1.01, 0.99] * 5).status == "ok"
    assert latency([1.0, 2.0, 3.0] * 3).status == "unstable"
    assert latency([1.0, 1.01, 0.99] * 5, others=0.9).status == "contended"
    on_gpu = [replace(latency([1.0, 1.01, 0.99] * 5), host_s=seconds).status for seconds in (0.5, 1.5)]
    assert on_gpu == ["ok", "host_bound"]


def test_provenance_says_where_and_its_fingerprint_what_must_not_change():
    where = environment.provenance("cpu", threads=2)
    assert where["versions"]["torch"] == torch.__version__
    assert where["threads"] == 2
    assert where["cpu"]
    same = environment.fingerprint(where | {"argv": ["other"]})
    assert environment.fingerprint(where) == same
    assert environment.fingerprint(where | {"threads": 1}) != same
