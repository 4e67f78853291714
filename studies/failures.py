"""How a study ends that could not go on: a sentence for the user, and an exit code for the script that called it.

0 is success, 2 a mistake in the input (a plain ValueError).
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class Failure(ValueError):
    """A run that cannot go on. Holds a sentence alone, so that it passes from one process to another."""

    code = 2


class BadData(Failure):
    """Data are missing, unreadable, or not what they were."""

    code = 3


class NonFinite(Failure):
    """The loss or the weights are not finite any more."""

    code = 4


class BadCheckpoint(Failure):
    """What a run would go on from is lost or cannot be read: its checkpoints, or its lines of metrics."""

    code = 5


class CannotWrite(Failure):
    """The disk is full, or the folder is not to be written to."""

    code = 6


class Preempted(Exception):
    """A run was asked to stop, and has saved its state."""

    code = 75


def until_stopped(work: Callable[[], int]) -> int:
    """The exit code of `work`, or, with a sentence, that of one that was asked to stop."""
    try:
        return work()
    except Preempted as stopped:
        print(f"{stopped}; what is done is kept, and the same command goes on", file=sys.stderr)
        return stopped.code
