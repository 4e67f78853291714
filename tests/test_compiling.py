"""What is told of a compilation: when, where to, and to whom. Seconds are counted by a clock of the test."""

import io
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from saprof import compiling as module
from saprof.compiling import compiling, heard_by, silent


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """A line is due after a moment, in a process that has compiled nothing."""
    monkeypatch.setattr(module, "AFTER_S", 0.01)
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    monkeypatch.setattr(
        module, "_Total", type("_Total", (), {"kernels": 0, "seconds": 0.0, "untold_s": 0.0, "kept": ""})
    )
    monkeypatch.delenv("SAPROF_SILENT", raising=False)


def use(monkeypatch, stream):
    """Let the module print to this stream; pytest replaces sys.stderr itself between a fixture and its test."""
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def stderr(monkeypatch):
    return use(monkeypatch, io.StringIO())


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    return use(monkeypatch, Terminal())


def until(condition):
    """Wait until the condition holds; a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def slow(stream, what="pairwise_attention for float32", kept="once; kept in /folder", **options):
    """Compile until more is printed."""
    before = len(stream.getvalue())
    with compiling(what, kept, **options):
        until(lambda: len(stream.getvalue()) > before)


def test_the_line_comes_while_it_compiles_and_only_on_stderr(stderr, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with compiling("pairwise_attention for float32", "once; kept in /folder"):
        until(stderr.getvalue)
        assert stderr.getvalue() == "compiling pairwise_attention for float32, once; kept in /folder\n"
    assert stderr.getvalue().count("\n") == 1
    assert sys.stdout.getvalue() == ""


def test_the_second_line_counts_and_does_not_repeat_the_folder(stderr):
    slow(stderr)
    slow(stderr, "pairwise_attention_backward for float32")
    slow(stderr, "fold for float32", "once; kept in /elsewhere")
    _, second, third = stderr.getvalue().splitlines()
    assert second == "compiling pairwise_attention_backward for float32 (2 kernels, 0 s so far)"
    assert third == "compiling fold for float32, once; kept in /elsewhere (3 kernels, 0 s so far)"


def test_a_fast_one_is_silent(stderr, monkeypatch):
    monkeypatch.setattr(module, "AFTER_S", 3600)
    with compiling("fast"):
        time.sleep(0.02)
    assert stderr.getvalue() == ""


def test_many_fast_ones_are_told_of_when_they_have_taken_a_second_together(stderr, monkeypatch):
    monkeypatch.setattr(module, "AFTER_S", 3600)
    with compiling("first"):
        pass
    assert 0 < module._Total.untold_s < 60
    module._Total.untold_s = 3600
    slow(stderr, "the last of many")
    assert stderr.getvalue().startswith("compiling the last of many, ")
    assert module._Total.untold_s == 0


@pytest.mark.parametrize("value", ["1", "yes"])
def test_is_silent_by_the_environment(stderr, monkeypatch, value):
    monkeypatch.setenv("SAPROF_SILENT", value)
    with compiling("slow"):
        time.sleep(0.05)
    assert stderr.getvalue() == ""


def test_is_silent_in_a_block_and_not_after_it(stderr):
    with silent(), compiling("slow"):
        time.sleep(0.05)
    assert stderr.getvalue() == ""
    slow(stderr)


def test_a_hearer_is_told_instead_at_once(stderr):
    heard = []
    with heard_by(heard.append), compiling("pairwise_attention for float32") as progress:
        assert heard == ["compiling pairwise_attention for float32"]
        progress("1 of 2")
        time.sleep(0.05)
    assert heard[1:] == ["compiling pairwise_attention for float32, 1 of 2", None]
    assert stderr.getvalue() == ""


def test_the_innermost_hearer_is_told():
    outer, inner = [], []
    with heard_by(outer.append):
        with heard_by(inner.append), compiling("a"):
            pass
        with compiling("b"):
            pass
    assert (outer, inner) == (["compiling b", None], ["compiling a", None])


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_an_error_passes_and_ends_the_line(stderr, error):
    heard = []

    def broken():
        with compiling("broken"):
            until(stderr.getvalue)
            raise error

    with pytest.raises(type(error)):
        broken()
    with suppress(type(error)), heard_by(heard.append), compiling("broken"):
        raise error
    assert heard == ["compiling broken", None]
    assert not module._active
    slow(stderr, "the next")


def test_compilation_in_another_thread_is_told_of(stderr):
    thread = threading.Thread(target=slow, args=(stderr,))
    thread.start()
    thread.join(60)
    assert stderr.getvalue() == "compiling pairwise_attention for float32, once; kept in /folder\n"


def test_a_terminal_shows_the_seconds_in_one_row(terminal):
    with compiling("pairwise_attention for float32", "once; kept in /a/folder/with/a/long/name"):
        until(lambda: terminal.getvalue().count("\r") > 2)
        assert "\n" not in terminal.getvalue()
    rows = terminal.getvalue().split("\r\x1b[K")
    assert rows[0] == ""
    assert rows[-1].startswith("compiled pairwise_attention for float32 in 0 s, once; kept")
    assert rows[-1].endswith("…\n")
    assert all(len(row.rstrip("\n")) < 60 for row in rows)


def test_what_is_compiled_inside_is_shown_in_the_row_of_a_terminal(terminal):
    with compiling("Net with torch.compile", kernels=0):
        until(lambda: "Net" in terminal.getvalue())
        with compiling("pairwise_attention for float32"):
            until(lambda: "compiling pairwise_attention" in terminal.getvalue())
            before = terminal.getvalue().count("Net")
            until(lambda: terminal.getvalue().count("pairwise_attention") > 3)
            assert terminal.getvalue().count("Net") == before
    assert "compiled Net with torch.compile in 0 s\n" in terminal.getvalue()
    assert module._Total.kernels == 1


def test_an_error_on_a_terminal_is_not_called_compiled(terminal):
    with suppress(ValueError), compiling("broken"):
        until(terminal.getvalue)
        raise ValueError
    assert terminal.getvalue().endswith("\r\x1b[Kstopped compiling broken in 0 s\n")


@pytest.mark.parametrize("dumb", ["dumb", None])
def test_progress_is_a_line_where_there_is_no_terminal(stderr, dumb):
    with compiling("CUDA kernels for sm_90", kernels=0) as progress:
        progress("1 of 3")
        until(stderr.getvalue)
        progress("2 of 3")
    assert stderr.getvalue().splitlines() == [
        "compiling CUDA kernels for sm_90",
        "compiling CUDA kernels for sm_90: 2 of 3, 0 s",
    ]


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [None, closed(), Full()], ids=["none", "closed", "full"])
def test_a_stderr_that_takes_nothing_stops_no_compilation(monkeypatch, stream):
    use(monkeypatch, stream)
    with compiling("slow"):
        until(lambda: module._active[-1].line)
    assert module._Total.kernels == 1
