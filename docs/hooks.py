"""What MkDocs adds to the pages: every command with its `--help`, as the commands themselves print it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from saprof.__main__ import COMMANDS, GROUPS, Command  # noqa: E402

MARK = "<!-- every command -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown


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
