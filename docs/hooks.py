"""What MkDocs adds to the pages: every command with its `--help`, as the commands themselves print it; every mutant;
and a recorded profile."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from mutants.campaign import MUTANTS, Mutant  # noqa: E402

from saprof.__main__ import COMMANDS, GROUPS, Command  # noqa: E402


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    for mark, sections in SECTIONS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, sections())
    return markdown


@cache
def commands() -> str:
    """A section for each command."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        helps = dict(zip(COMMANDS, pool.map(help_of, COMMANDS.values()), strict=True))
    sections = []
    for title, group in GROUPS.items():
        sections.append(f"## {title}")
        sections += [_section(command, helps[command.name]) for command in group]
    return "\n\n".join(sections)


def help_of(command: Command) -> str:
    """What the command prints on `--help`; it is the same on every machine."""
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    how = {"capture_output": True, "text": True, "check": True, "env": environment, "cwd": ROOT}
    return subprocess.run([sys.executable, "-m", command.module, "--help"], **how).stdout.strip()


def _section(command: Command, text: str) -> str:
    example = f"saprof {command.name} {command.example}".rstrip()
    same = f"`python -m {command.module}` is the same command."
    return f"### {command.name}\n\n{command.does} {same}\n\n```text\n{example}\n```\n\n```text\n{text}\n```"


def mutants() -> str:
    """A table for each room."""
    rooms: dict[str, list[str]] = {}
    for mutant in MUTANTS:
        rooms.setdefault(mutant.room, []).append(_line(mutant))
    head = "| mistake | file | tests that must fail |\n| --- | --- | --- |\n"
    return "\n\n".join(f"## {room}\n\n{head}" + "\n".join(lines) for room, lines in rooms.items())


def _line(mutant: Mutant) -> str:
    tests = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in mutant.tests)
    return f"| {mutant.name} | `{mutant.file}` | {tests} |"


def recorded_profile() -> str:
    """What `saprof profile --from` prints of the recorded profile, in a terminal of 80 columns."""
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    how = {"capture_output": True, "text": True, "check": True, "env": environment, "cwd": ROOT}
    asked = ["--from", "studies/recorded/profile_cpu", "--depth", "2"]
    return f"```text\n{subprocess.run([sys.executable, '-m', 'saprof.profile', *asked], **how).stdout.strip()}\n```"


SECTIONS = {
    "<!-- every command -->": commands,
    "<!-- every mutant -->": mutants,
    "<!-- the recorded profile -->": recorded_profile,
}
"""Comments in the pages, and the functions whose text replaces them."""
