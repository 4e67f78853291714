"""What a sweep is doing, on stderr: a bar on a terminal, else plain lines, and a line for each row that is finished.

On a terminal, the bar names the cell that is worked on now, and its step. In a log it is a line from time to time.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from saprof.compiling import heard_by
from saprof.measure.cell import TIMING
from saprof.quantities import LATENCY, digits
from saprof.records.rows import Row
from saprof.text import counted

NARROW = 80
"""The columns that a line of a finished row needs."""
REDRAW_S = 0.1
"""On a terminal, the bar is drawn again at most this often."""
TICK_S = 1.0
"""The time after which the bar shows new seconds, although nothing has happened."""
QUIET_S = 2.0
"""In a log, the time after which a line says what is being done."""
BAR = 12
"""The characters of the bar."""
WHAT = 28
"""The characters for what a row is about."""
UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}


class Progress:
    """A bar over cells. While it is open, other output on stderr is shown above it, and the bar says what
    is compiled."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total, self.done = total, 0
        self._stream = stream or sys.stderr
        self.on_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._now = self._what = self._step = ""
        self._started = self._written = time.monotonic()
        self._lock = threading.RLock()
        self._may_tick, self._closed = threading.Event(), threading.Event()

    def at(self, what: str, step: str) -> None:
        """The cell, or the part of the sweep, that is worked on now, and its step."""
        with self._lock:
            changed = self._kind(self._now) != self._kind(now := f"{what}: {step}")
            self._now, self._what, self._step = now, what, step
            waited = time.monotonic() - self._written
            if waited >= (REDRAW_S if self.on_terminal else QUIET_S) or (changed and self.on_terminal):
                self._show()
        (self._may_tick.clear if step.startswith(TIMING) else self._may_tick.set)()

    def compiles(self, text: str | None) -> None:
        """A kernel is compiled on behalf of the current cell: `text` says which; None if it is done."""
        what, step = self._what, self._step
        self.at(what, text or step)
        self._step = step

    def above(self, line: str) -> None:
        """Print a line above the bar."""
        with self._lock:
            self._stream.write(f"{self._clear()}{line}\n")
            self._show() if self.on_terminal and self._now else self._wrote()

    def finish(self, cells: int) -> None:
        """Count cells as done."""
        with self._lock:
            self.done += cells
            if self.on_terminal:
                self._show()

    @contextmanager
    def open(self) -> Iterator[Progress]:
        """Show the bar inside the `with` block."""
        thread = threading.Thread(target=self._tick, daemon=True)
        before, sys.stderr = sys.stderr, _Above(self)
        thread.start()
        try:
            with heard_by(self.compiles):
                yield self
        finally:
            sys.stderr = before
            self._closed.set()
            self._may_tick.set()
            thread.join()
            with self._lock, suppress(OSError, ValueError):
                self._now = ""
                self._stream.write(self._clear())
                self._stream.flush()

    def _tick(self) -> None:
        """Show that time passes. While a cell is timed, this thread sleeps."""
        while True:
            self._may_tick.wait()
            if self._closed.wait(TICK_S):
                return
            with self._lock:
                waited = time.monotonic() - self._written
                if self._may_tick.is_set() and self._now and waited >= (TICK_S if self.on_terminal else QUIET_S):
                    self._show()

    def _show(self) -> None:
        seconds = int(time.monotonic() - self._started)
        clock = f"{seconds // 60}:{seconds % 60:02}"
        if self.on_terminal:
            full = BAR * self.done // max(self.total, 1)
            text = f"[{'#' * full}{'-' * (BAR - full)}] {self.done}/{self.total} {clock} {self._now}"
            self._stream.write(f"\r{cut(text, columns() - 1)}\x1b[K")
        else:
            self._stream.write(f"{self.done} of {counted(self.total, 'cell')} done, {clock}; {self._now}\n")
        self._wrote()

    def _wrote(self) -> None:
        self._stream.flush()
        self._written = time.monotonic()

    def _clear(self) -> str:
        return "\r\x1b[K" if self.on_terminal else ""

    @staticmethod
    def _kind(now: str) -> str:
        """The cell and its step, without the number of the round."""
        return now.partition(" round ")[0]


class _Above:
    """A stream that writes whole lines above the bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._stream, self._rest = progress, progress._stream, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._progress.above(line)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def columns() -> int:
    """The width of the terminal; 80 if there is none."""
    return shutil.get_terminal_size((NARROW, 24)).columns


def cut(text: str, room: int) -> str:
    """The text, or its beginning and … if there is no room for it."""
    return text if len(text) <= room else f"{text[: max(room - 1, 0)]}…"


def line_of(row: Row, what: str) -> str:
    """A finished row in one line: `what` was measured, what ran, latency, interval, peak memory, and doubts."""
    most = max(columns(), NARROW)
    if row.latency_s is None:
        return cut(f"{_shortened(what, WHAT):<{WHAT}} {row.ran_on:<12} {row.status}: {row.reason}", most)
    spread = ""
    if row.latency_low_s is not None and row.latency_high_s is not None:
        half = max(row.latency_high_s - row.latency_s, row.latency_s - row.latency_low_s)  # as in the tables
        percent = 100 * half / row.latency_s
        spread = f"± {percent:.{int(percent < 99.95)}f} %"
    latency = f"{LATENCY.text(row.latency_s)} {LATENCY.unit}"
    numbers = f" {row.ran_on:<12} {latency:>9} {spread:>8} {_bytes(row.peak_bytes):>8}"
    doubt = "" if row.status == "ok" else f"  {row.status}"
    room = min(most - len(numbers) - len("  host_bound"), 2 * WHAT)
    return f"{_shortened(what, room):<{min(room, WHAT)}}{numbers}{doubt}".rstrip()


def _shortened(what: str, room: int) -> str:
    """The text, whose first word is shortened if there is no room for it."""
    name, gap, rest = what.partition(" ")
    return what if len(what) <= room else cut(f"{cut(name, max(room - len(gap + rest), 4))}{gap}{rest}", room)


def _bytes(number: int | None) -> str:
    """`2.56 kB`, `143 MB`; nothing for what was not measured."""
    if number is None:
        return ""
    unit, size = next((unit for unit in UNITS.items() if number >= 0.9995 * unit[1]), ("B", 1))
    return f"{digits(number / size)} {unit}"
