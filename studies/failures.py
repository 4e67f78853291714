"""Failures of a study: each has a sentence for the user and an exit code for scripts.

Exit code 0 is success, 2 is a mistake in the input (a plain ValueError).
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class Failure(ValueError):
    """A run cannot continue. The exception holds only a sentence, so that it can be pickled."""

    code = 2


class BadData(Failure):
    """Data are missing, unreadable, or have changed."""

    code = 3


class NonFinite(Failure):
    """The loss or a weight is not finite."""

    code = 4


class BadCheckpoint(Failure):
    """The checkpoints or the metrics of a run are lost or cannot be read, so that it cannot be resumed."""

    code = 5


class CannotWrite(Failure):
    """The disk is full, or the folder cannot be written."""

    code = 6


class Preempted(Exception):
    """A run was stopped by a signal, after it saved its state."""

    code = 75


def until_stopped(work: Callable[[], int]) -> int:
    """The exit code of `work`; if it is stopped by a signal, print a sentence and return the code of Preempted."""
    try:
        return work()
    except Preempted as stopped:
        print(f"{stopped}; finished work is kept, and the same command resumes", file=sys.stderr)
        return stopped.code
