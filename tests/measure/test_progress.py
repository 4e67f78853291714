"""What a sweep shows while it measures: on a terminal, and in a log."""

import io
import re
import sys
import time

import pytest
from made_up import row

from saprof.compiling import compiling
from saprof.measure import progress as shown
from saprof.measure.progress import Progress, line_of


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True

    def screen(self):
        """The lines that a terminal shows, the last of which is the bar."""
        return [re.split(r"\r|\x1b\[K", line.removesuffix("\x1b[K"))[-1] for line in self.getvalue().split("\n")]


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


def test_the_bar_names_the_cell_and_its_step():
    stream = Terminal()
    with Progress(53, stream).open() as progress:
        progress.finish(12)
        progress.at("san10_pairwise 7×7 numba", "checking")
        progress.at("san10_pairwise 7×7 numba", "timing round 3 of 7")
        assert stream.screen()[-1] == "[##----------] 12/53 0:00 san10_pairwise 7×7 numba: timing round 3 of 7"
        progress.above("a finished row")
        assert stream.screen()[-2] == "a finished row"
        assert stream.screen()[-1].startswith("[##----------] 12/53")
    assert stream.screen()[-1] == "", "the bar should be gone at the end"


def test_the_bar_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    with Progress(2, stream).open() as progress:
        progress.at("an operator with a name that is far too long", "checking")
        assert len(stream.screen()[-1]) == 39
        assert stream.screen()[-1].endswith("…")


def test_rounds_do_not_redraw_the_bar_every_time():
    stream = Terminal()
    with Progress(2, stream).open() as progress:
        progress.at("a", "timing round 1 of 200")
        drawn = stream.getvalue().count("\r")
        progress._written = time.monotonic() + 10  # just now
        for number in range(2, 100):
            progress.at("a", f"timing round {number} of 200")
        assert stream.getvalue().count("\r") == drawn


def test_a_log_has_plain_lines_from_time_to_time(monkeypatch):
    stream, now = io.StringIO(), 0.0
    monkeypatch.setattr(shown.time, "monotonic", lambda: now)
    with Progress(3, stream).open() as progress:
        for number in range(50):
            now += 0.5
            progress.at("aggregation 7×7 numba", f"timing round {number} of 50")
        progress.above("a finished row")
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert lines[0] == "0 of 3 cells done, 0:02; aggregation 7×7 numba: timing round 3 of 50"
    assert len(lines) == 12 + 1, "a line every two of 25 seconds, and the row"


def test_a_step_that_takes_long_is_not_silent(monkeypatch):
    monkeypatch.setattr(shown, "TICK_S", 0.01)
    monkeypatch.setattr(shown, "QUIET_S", 0.02)
    stream = io.StringIO()
    with Progress(1, stream).open() as progress:
        progress.at("a", "compiling")
        deadline = time.monotonic() + 60
        while stream.getvalue().count("compiling") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert stream.getvalue().count("a: compiling") >= 3


def test_nothing_wakes_up_while_a_cell_is_timed(monkeypatch):
    monkeypatch.setattr(shown, "TICK_S", 0.005)
    stream = Terminal()
    with Progress(1, stream).open() as progress:
        progress.at("a", "timing round 1 of 7")
        time.sleep(0.05)  # for a tick that had begun
        before = stream.getvalue()
        time.sleep(0.1)
        assert stream.getvalue() == before


def test_what_others_print_is_above_the_bar(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(1).open() as progress:
        progress.at("a", "checking")
        print("a warning", file=sys.stderr)
        assert stream.screen()[-2] == "a warning"
        assert stream.screen()[-1].endswith("a: checking")
    assert sys.stderr is stream


def test_the_bar_says_what_is_compiled():
    stream = Terminal()
    with Progress(1, stream).open() as progress:
        progress.at("a", "checking")
        with compiling("pairwise_attention for float32"):
            assert stream.screen()[-1].endswith("a: compiling pairwise_attention for float32")
        assert stream.screen()[-1].endswith("a: checking")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"latency_s": 0.0982, "latency_low_s": 0.0964, "latency_high_s": 0.1, "peak_bytes": 143_000_000},
            "san10_pairwise 7×7          numba          98.2 ms  ± 1.8 %   143 MB",
        ),
        (
            {"latency_s": 1.0, "latency_low_s": 0.5, "latency_high_s": 1.5, "status": "contended", "peak_bytes": 2560},
            "san10_pairwise 7×7          numba         1,000 ms ± 50.0 %  2.56 kB  contended",
        ),
        (
            {"latency_s": 0.01, "latency_low_s": 0.0098, "latency_high_s": 0.013},  # the larger half, as in the tables
            "san10_pairwise 7×7          numba            10 ms ± 30.0 %",
        ),
        ({}, "san10_pairwise 7×7          numba             1 ms"),
        (
            {"status": "incorrect", "reason": "value is off by 3"},
            "san10_pairwise 7×7           numba        incorrect: value is off by 3",
        ),
    ],
)
def test_a_finished_row_is_one_line(fields, expected):
    assert line_of(row(**fields), "san10_pairwise 7×7") == expected


def test_no_line_of_a_row_is_wider_than_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    long = row(
        backend="numba", attention="fused", compiled=True, latency_s=12345.6, latency_low_s=1.0, latency_high_s=99999.0,
        peak_bytes=10**13, status="contended",
    )  # fmt: skip
    failed = row(status="error", reason="a" * 300)
    for one in (long, failed):
        text = line_of(one, "a_network_of_the_user_with_a_very_long_name 7×7 112×112 n8 float16 train_step")
        assert len(text) <= 80
    assert "7×7 train_step" in line_of(row(), "a_network_of_the_user_with_a_very_long_name 7×7 train_step")
