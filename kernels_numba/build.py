"""`python -m kernels_numba.build` compiles the CPU kernels ahead of their first use, and leaves them on disk.

    python -m kernels_numba.build                                       all kernels in float32
    python -m kernels_numba.build --operator pairwise_attention --dtype float32,float64
    python -m kernels_numba.build --list                                which ones are compiled

Only this module of the package uses saprof, because a kernel must be compiled for exactly what saprof passes to it.
"""

from __future__ import annotations

import argparse
import time

from saprof import command
from saprof.operators import OPERATORS

MODES = ("forward", "training", "both")
DTYPES = ("float32", "float64")


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    names = command.choices("operator", arguments.operator, [*OPERATORS])
    dtypes = command.choices("dtype", arguments.dtype, DTYPES)
    from saprof.backends.numba import ahead, why_no_threads

    if reason := why_no_threads():
        raise ahead.CannotBuild(reason)
    start = time.monotonic()
    mode = "forward" if arguments.mode == "forward" else "training"
    kernels = ahead.kernels_for([OPERATORS[name] for name in names], dtypes, mode)
    where = ahead.folder()
    if arguments.list:
        absent = ahead.missing(kernels)
        print("\n".join(f"{'missing ' if kernel in absent else 'compiled'}  {kernel}" for kernel in kernels))
        print(f"{len(kernels) - len(absent)} of {len(kernels)} kernels are compiled, {where}")
        return command.OK
    built = ahead.build(kernels)
    if built:
        print(f"compiled {len(built)} of {len(kernels)} kernels in {time.monotonic() - start:.0f} s, {where}")
    else:
        print(f"all {len(kernels)} kernels are compiled already, {where}")
    return command.OK


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels_numba.build",
        description="Compile the CPU kernels of the numba backend, unless this has been done. They stay on disk. The "
        "other dtypes, float16 and bfloat16, are computed in float32.",
        epilog="Exit code 0: the kernels are compiled; 1: one cannot be compiled or kept; 2: wrong usage.",
    )
    parser.add_argument("--operator", default="all", help=f"{', '.join(OPERATORS)}, or all (default)")
    parser.add_argument("--dtype", default="float32", help="float32 (default), float64, both with a comma, or all")
    parser.add_argument(
        "--mode",
        default="both",
        choices=MODES,
        help="forward: a forward in eval mode; training: a training step, which needs these kernels and others; both "
        "(default)",
    )
    parser.add_argument("--list", action="store_true", help="print which kernels are compiled, and compile none")
    return parser


if __name__ == "__main__":
    command.run(main)
