"""Reports what is compiled: after a second, one line on stderr says what it is, and where it is kept.

    compiling pairwise_attention for float32, once; kept in /home/me/.cache/numba
    compiling pairwise_attention_backward for float32, once (2 kernels, 12 s so far)

On a terminal the line shows the seconds while it compiles. Nothing is written to stdout. `heard_by` gives the text to a
function instead, such as one that shows it in a progress bar. `silent`, or SAPROF_SILENT=1 in the environment, prevents
the lines.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

AFTER_S = 1.0
"""The seconds of compiling after which a line is printed."""
EVERY_S = 1.0
"""The seconds after which a line on a terminal changes."""
SILENT = "SAPROF_SILENT"
"""The environment variable that prevents the lines, in this process and in its children."""

Hearer = Callable[[str | None], object]

_lock = threading.RLock()
_hearers: list[Hearer] = []
_active: list[_Told] = []
"""What is being compiled; the last one is compiled on behalf of those before it, and its line is shown."""


class _Total:
    """What this process has compiled so far."""

    kernels = 0
    seconds = 0.0
    untold_s = 0.0
    """The seconds of compiling since the last line."""
    kept = ""
    """Where the last line said that kernels are kept."""


@contextmanager
def compiling(what: str, kept: str = "", kernels: int = 1) -> Iterator[Callable[[str], None]]:
    """Report what is compiled inside the `with` block. It is called in the thread that compiles.

    `what` is compiled, such as "pairwise_attention for float32". `kept` says for how long, such as "once; kept in
    /folder". `kernels` is the number of kernels, for the total in later lines. The context is a function: the block may
    call it with its progress, such as "5 of 12".
    """
    told = _Told(what, kept, kernels)
    told.begin()
    try:
        yield told.progress
    except BaseException:
        told.end("stopped compiling")
        raise
    told.end("compiled")


@contextmanager
def heard_by(hearer: Hearer) -> Iterator[None]:
    """Call `hearer` instead of printing, for all that this process compiles inside the `with` block.

    It is called with a text such as "compiling pairwise_attention for float32" when that begins, and with None when it
    has ended, in the thread that compiles.
    """
    with _lock:
        _hearers.append(hearer)
    try:
        yield
    finally:
        with _lock:
            _hearers.remove(hearer)


def silent() -> AbstractContextManager[None]:
    """Print nothing about what this process compiles inside the `with` block."""
    return heard_by(lambda text: None)


class _Told:
    """One compilation, and the thread that reports it."""

    def __init__(self, what: str, kept: str, kernels: int) -> None:
        self.what, self.kept, self.kernels = what, kept, kernels
        self.start = time.monotonic()
        self.detail = ""
        self.line = ""
        """The line that was printed, without the seconds; none yet if empty."""
        self.ended = threading.Event()
        self.hearer: Hearer | None = None

    def begin(self) -> None:
        with _lock:
            _active.append(self)
            self.hearer = _hearers[-1] if _hearers else None
        if self.hearer:
            self.hearer(f"compiling {self.what}")
        elif not _is_silent():
            threading.Thread(target=self._tell, args=(AFTER_S - _Total.untold_s,), daemon=True).start()

    def progress(self, detail: str) -> None:
        """Report the progress, such as "5 of 12"."""
        self.detail = detail
        if self.hearer:
            self.hearer(f"compiling {self.what}, {detail}")
        with _lock:
            if self.line and not _on_terminal():
                _write(f"compiling {self.what}: {detail}, {self._seconds:.0f} s\n")

    def end(self, verb: str) -> None:
        with _lock:
            self.ended.set()
            _active.remove(self)
            seconds = self._seconds
            if self.kernels:
                _Total.kernels += self.kernels
                _Total.seconds += seconds
            _Total.untold_s = 0.0 if self.line else _Total.untold_s + seconds
            if self.line and _on_terminal():
                _write(f"\r\x1b[K{_cut(f'{verb} {self.what} in {seconds:.0f} s{_after(self.kept)}')}\n")
        if self.hearer:
            self.hearer(None)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self.start

    def _tell(self, after_s: float) -> None:
        wait_s = max(after_s, 0.0)
        while not self.ended.wait(wait_s):
            with _lock:
                if self.ended.is_set():
                    return
                if _active[-1] is self:
                    self._say()
            if self.line and not _on_terminal():
                return
            wait_s = EVERY_S

    def _say(self) -> None:
        if not self.line:
            self.line = f"compiling {self.what}{'' if self.kept == _Total.kept else _after(self.kept)}"
            _Total.kept = self.kept
        total = _Total.kernels + self.kernels
        facts = (
            [f"{total} kernels, {_Total.seconds + self._seconds:.0f} s so far"] if self.kernels and total > 1 else []
        )
        if _on_terminal():
            facts = [*filter(None, [self.detail]), *(facts or [f"{self._seconds:.0f} s"])]
        line = f"{self.line} ({', '.join(facts)})" if facts else self.line
        _write(f"\r\x1b[K{_cut(line)}" if _on_terminal() else f"{line}\n")


def _after(kept: str) -> str:
    return f", {kept}" if kept else ""


def _is_silent() -> bool:
    return os.environ.get(SILENT, "") not in ("", "0")


def _on_terminal() -> bool:
    with suppress(ValueError):  # a stream that is closed
        return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return False


def _cut(line: str) -> str:
    """The line as far as it fits into a row of the terminal."""
    width = shutil.get_terminal_size().columns - 1
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _write(text: str) -> None:
    """Print to stderr. If that fails, nothing is raised: a kernel is compiled in any case."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _after_in_child() -> None:
    """Forget what the parent compiles: a forked child has neither its threads nor the owner of its lock."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_in_child)
