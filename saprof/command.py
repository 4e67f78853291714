"""What all commands of saprof share: exit codes, errors, and reading of lists."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

OK, FAILED, USAGE, REGRESSION = 0, 1, 2, 3
"""Exit codes: success; some cells failed or disagreed; the input is wrong; a regression."""


def run(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Exit with the code of `main`. A mistake in the input is printed on stderr as one sentence; the exit code is then
    2, or the `code` of the exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ✓ shows a ?
    try:
        code = main(None)
        sys.stdout.flush()
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the process that reads our output has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(OK)
        print(f"error: {error}", file=sys.stderr)
        code = getattr(error, "code", USAGE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def choices(what: str, text: str, valid: Sequence[str], extra: Sequence[str] = ()) -> list[str]:
    """Read a comma list of entries of `valid` or `extra`; `all` means all of `valid`."""
    names = list(valid) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*valid, *extra):
            raise ValueError(f"unknown {what} {name!r}; expected {', '.join((*valid, *extra))} or all")
    return list(dict.fromkeys(names))


def alone(parser: ArgumentParser, arguments: Namespace, option: str, beside: Sequence[str]) -> None:
    """ValueError if `option` is given with options that it ignores: all except itself and those in `beside`."""
    asked = [name for name, value in vars(arguments).items() if value != parser.get_default(name)]
    undone = [f"--{name.replace('_', '-')}" for name in asked if name not in (option, *beside)]
    if option in asked and undone:
        raise ValueError(f"--{option.strip('_')} has no effect together with {', '.join(undone)}; omit these")


def integers(what: str, text: str) -> list[int]:
    """Read a comma list of positive integers and ranges `first:last[:step]`, both ends included: `3:11:2`."""
    numbers: list[int] = []
    for part in text.split(","):
        bounds = part.strip().split(":")
        if not all(bound.isdigit() and int(bound) for bound in bounds) or len(bounds) > 3:
            raise ValueError(f"{what} is {text!r}; expected positive integers such as 3,5,7 or a range 3:11:2")
        first, last, step = (*map(int, bounds), 1)[:3] if len(bounds) > 1 else (int(part), int(part), 1)
        if last < first:
            raise ValueError(f"{what} is {text!r}; expected a range whose first is at most its last")
        numbers += range(first, last + 1, step)
    return list(dict.fromkeys(numbers))
