"""What all commands of saprof share: exit codes, errors, and reading of lists."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import warnings
from argparse import ArgumentTypeError, HelpFormatter
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from saprof.kept_memory import keep_memory
from saprof.terminal import paragraphs
from saprof.text import nearest

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

OK, FAILED, USAGE, REGRESSION, FULL = 0, 1, 2, 3, 6
"""Exit codes: success; some cells failed or disagreed; the input is wrong; a regression; the disk is full."""
INTERRUPTED, UNREAD = 128 + signal.SIGINT, 128 + 13
"""Exit codes that a shell gives: after Ctrl-C; after SIGPIPE, if the process that reads the output has ended."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""The disk or a quota is full, a file is too large, or the disk fails."""

PACKAGE = Path(__file__).parent
_PYTHONS = warnings.formatwarning
WHOLE = "[0-9]{1,9}"
"""A whole number in ASCII digits. Python's int also reads ٣ and 1_000."""
NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
LARGEST = 10**9 - 1
LONGEST = 10_000
"""The largest number of entries of a range."""
MOST_THREADS = 1024
"""With a hundred thousand threads, torch ends the process without an error message."""
LONGEST_S = 10**6
"""The longest time in seconds, eleven days. A timeout of the system cannot be much longer."""


def run(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Exit with the code of `main`. A mistake in the input is printed on stderr as one sentence; the exit code is then
    2, or the `code` of the exception. A full disk is FULL. The process keeps the memory that it frees."""
    _open_streams()
    keep_memory()
    warnings.formatwarning = _warning
    try:
        try:
            code = main(None)
        except SystemExit as stop:  # of argparse, which has printed the help or an error
            code = stop.code
        sys.stdout.flush()
    except BrokenPipeError:
        code = UNREAD
    except (ValueError, OSError) as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        code = getattr(error, "code", FULL if _is_full(error) else USAGE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    _discard_unwritable()
    sys.exit(code)


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in FULL_DISK


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is None and _is_full(error):
        return f"cannot write to stdout: {error.strerror}"
    return str(error)


def _warning(message: Warning | str, category: type[Warning], file: str, number: int, line: str | None = None) -> str:
    """A warning of saprof as one sentence; another one as Python prints it, with the line of code."""
    if category is UserWarning and Path(file).is_relative_to(PACKAGE):
        return f"warning: {message}\n"
    return _PYTHONS(message, category, file, number, line)


def _open_streams() -> None:
    """Open the streams that the caller has closed. Otherwise the next file that is opened would receive what is
    printed. A terminal without ✓ shows a ?."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _discard_unwritable() -> None:
    """Discard output that cannot be written. Otherwise Python tries again when it exits, and prints a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Prose(HelpFormatter):
    """Help whose description and epilog have paragraphs, which are wrapped to the terminal. Indented lines, such as
    examples, are kept."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip("\n").split("\n\n")
        return "\n\n".join(
            part if part.startswith(" ") else paragraphs(" ".join(part.split()), width) for part in parts
        )


def choices(what: str, text: str, valid: Sequence[str], extra: Sequence[str] = ()) -> list[str]:
    """Read a comma list of entries of `valid` or `extra`; `all` means all of `valid`."""
    names = list(valid) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*valid, *extra):
            every = (*valid, *extra)
            raise ValueError(f"unknown {what} {name!r}; expected {', '.join(every)} or all{nearest(name, every)}")
    return list(dict.fromkeys(names))


def alone(parser: ArgumentParser, arguments: Namespace, option: str, beside: Sequence[str]) -> None:
    """ValueError if `option` is given with options that it ignores: all except itself and those in `beside`."""
    asked = [name for name, value in vars(arguments).items() if value != parser.get_default(name)]
    undone = [f"--{name.replace('_', '-')}" for name in asked if name not in (option, *beside)]
    if option in asked and undone:
        raise ValueError(f"--{option.strip('_')} has no effect together with {', '.join(undone)}; omit these")


def integer(what: str, text: str, most: int = LARGEST) -> int:
    """Read one positive integer."""
    number = int(text) if re.fullmatch(f"-?{WHOLE}", text) else text
    if isinstance(number, str) or not 1 <= number <= most:
        raise ValueError(f"{what} is {number!r}; expected a positive integer, {most} at most")
    return number


def integers(what: str, text: str) -> list[int]:
    """Read a comma list of positive integers and ranges `first:last[:step]`, both ends included: `3:11:2`."""
    numbers: list[int] = []
    for part in text.split(","):
        bounds = part.strip().split(":")
        if not all(re.fullmatch(WHOLE, bound) and int(bound) for bound in bounds) or len(bounds) > 3:
            raise ValueError(
                f"{what} is {text!r}; expected positive integers such as 3,5,7 or a range 3:11:2, each of 9 digits at "
                "most"
            )
        first, last, step = (*map(int, bounds), 1)[:3] if len(bounds) > 1 else (int(part), int(part), 1)
        if last < first:
            raise ValueError(f"{what} is {text!r}; expected a range whose first is at most its last")
        if len(range(first, last + 1, step)) > LONGEST:
            raise ValueError(f"{what} is {text!r}; expected a range of at most {LONGEST} numbers")
        numbers += range(first, last + 1, step)
    return list(dict.fromkeys(numbers))


def check_seconds(number: object) -> None:
    """ValueError unless `seconds`, an argument of a function, is a positive number."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= LONGEST_S:
        raise ValueError(f"seconds is {number!r}; expected a positive number, {LONGEST_S} at most")


def seconds(what: str, text: str, least: float = 1e-6) -> float:
    """Read a number of seconds."""
    number = float(text) if re.fullmatch(f"-?(?:{NUMBER}|inf|nan)", text) else text
    if isinstance(number, str) or not least <= number <= LONGEST_S:
        expected = "a number of seconds, 0 or more" if least == 0 else "a positive number of seconds"
        raise ValueError(f"{what} is {number!r}; expected {expected}, {LONGEST_S} at most")
    return number


def device(text: str) -> str:
    """Read the name of a device. It need not exist on this machine."""
    if not re.fullmatch("cpu|cuda(:(0|[1-9][0-9]?))?", text):
        raise ValueError(f"device is {text!r}; expected cpu, cuda, or one of several GPUs such as cuda:1")
    return text


def whole(text: str) -> int:
    """Read a whole number in ASCII digits; argparse prints the error."""
    if not re.fullmatch("[-+]?[0-9]{1,18}", text):
        raise ArgumentTypeError(f"expected a whole number; got {text!r}")
    return int(text)


def path(text: str) -> Path:
    """Read a path; argparse prints the error."""
    if not text.strip():
        raise ArgumentTypeError(f"expected a path; got {text!r}")
    return Path(text)
