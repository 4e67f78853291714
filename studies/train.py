"""Train and judge one classifier or detector; the same command resumes a run that was stopped.

    python -m studies.train --model san_mini_patchwise --data digits --epochs 30 --output runs/patchwise
    torchrun --nproc-per-node 8 -m studies.train --recipe san_imagenet --model san10_pairwise --root /data/imagenet

Exit codes: 0 finished, 2 wrong input, 3 missing or damaged data, 4 a loss or weight that is not finite, 5 lost or
damaged checkpoints, 6 a folder that cannot be written, 75 stopped by a signal after saving.
"""

from __future__ import annotations

import os
import sys

from saprof.command import OK
from studies.config import parse
from studies.failures import Preempted
from studies.training.run import Run
from studies.training.session import folder, train


def main(argv: list[str] | None = None) -> int:
    description = (__doc__ or "").partition("\n\n")[0]
    config = parse(argv, "python -m studies.train", description)
    finished, first = Run(folder(config)).result() is not None, os.environ.get("RANK", "0") == "0"
    try:
        result = train(config)
    except Preempted as stopped:
        if first:
            print(f"stopped, and saved; the same command resumes from there ({folder(config)})", file=sys.stderr)
        return stopped.code
    if first:
        from studies.training.tasks import outcome

        before = "finished already, nothing was changed: " if finished else ""
        print(f"{before}{folder(config)}: {outcome(result)}")
    return OK


if __name__ == "__main__":
    from saprof.command import run

    run(main)
