"""`python -m saprof.build`: compiles kernels ahead of their first use, those of `numba` and of `cuda`.

    saprof build                                    all that can run here
    saprof build --operator pairwise_attention --dtype float32,float64
    saprof build --backend cuda --arch 8.0,9.0

The options are those of `kernels_numba.build` and of `kernels_cuda.build`, which do the work.
"""

from __future__ import annotations

import argparse
import sys

import kernels_cuda.build
import kernels_numba.build
from saprof import command
from saprof.terminal import paragraphs

COMMANDS = {"numba": kernels_numba.build, "cuda": kernels_cuda.build}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    found, options = parser().parse_known_args(argv)
    if found.help:
        print(_help())
        return command.OK
    for backend in [found.backend] if found.backend else _chosen(options):
        if code := COMMANDS[backend].main(options):
            return code
    return command.OK


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m saprof.build", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--backend", choices=[*COMMANDS])
    return parser


def _chosen(options: list[str]) -> list[str]:
    """The backend that has the options; without options, those that can run here."""
    if options:
        names = [option.partition("=")[0] for option in options if option.startswith("-")]
        return ["cuda" if any(name in _options("cuda") for name in names) else "numba"]
    import torch

    return ["numba", "cuda"] if torch.cuda.is_available() else ["numba"]


def _options(backend: str) -> set[str]:
    actions = COMMANDS[backend].parser()._actions
    return {name for action in actions for name in action.option_strings} - {"-h", "--help"}


def _help() -> str:
    parts = [
        "usage: python -m saprof.build [--backend numba|cuda] [OPTION ...]",
        paragraphs("Compile kernels ahead of their first use. Without options: all that can run on this machine."),
    ]
    for backend, module in COMMANDS.items():
        parts += [f"With --backend {backend}, or with options of it:", module.parser().format_help()]
    return "\n\n".join(parts)


if __name__ == "__main__":
    command.run(main)
