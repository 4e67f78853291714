"""Plant one mistake at a time in a copy of the sources, and run the tests that must fail with it.

`python tests/mutants/campaign.py [ROOM or NAME …]` runs all mutants, or some. The exit code is 0 only if all fell: a
mutant falls if a test fails, and not if the tests cannot be collected. Only a temporary folder is written to.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FELL = "fell"
FAILED = 10
OUTCOMES = {0: "SURVIVED", FAILED: FELL, None: "TOO LONG"}
"""The outcome of a mutant, by the exit code of its tests. With any other code, no test has failed and not all ran."""
LIMIT_S = 600
"""The longest time that the tests of a mutant may take."""
PACKAGES = ("kernels_cuda", "kernels_numba", "saprof", "studies")

# Each mutant is tested in a process of its own. The server, from which they are forked, has imported what takes long
# to import and is not ours.
CONTEXT: Any = get_context("forkserver")
CONTEXT.set_forkserver_preload(["beartype", "hypothesis", "matplotlib.figure", "pytest", "scipy.stats", "torch"])


@dataclass(frozen=True)
class Mutant:
    """A mistake in one file: `old`, which is there once, becomes `new`, and one of `tests` must fail."""

    room: str
    name: str
    file: str
    old: str
    new: str
    tests: list[str]

    def planted_in(self, text: str) -> str:
        """The content of the file with the mistake. ValueError if `old` is not there exactly once."""
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.file} has this text {found} times; expected once: {self.old}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    outcome: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.outcome:8}  {self.seconds:5.1f} s  {self.mutant.room:11}  {self.mutant.name}"


MUTANTS = [
    Mutant(path.stem, name, **facts)
    for path in sorted(Path(__file__).parent.glob("*.toml"))
    for name, facts in tomllib.loads(path.read_text(encoding="utf-8")).items()
]


def results(mutants: Sequence[Mutant]) -> Iterator[Result]:
    """The result of each mutant, as soon as it is known. RuntimeError if a test fails without any mistake, ValueError
    if a mutant cannot be planted."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder).resolve() / "sources"
        _copy_sources(copy)
        for mutant in mutants:
            mutant.planted_in((copy / mutant.file).read_text(encoding="utf-8"))
        if _run_tests(copy, [test for mutant in mutants for test in mutant.tests], None):
            printed = copy / ".printed"
            text = printed.read_text(errors="replace") if printed.exists() else "The process of the tests was killed."
            raise RuntimeError(f"{text}\nThese tests must pass without any mistake.")
        for mutant in mutants:
            start = time.perf_counter()
            path = copy / mutant.file
            text = path.read_text(encoding="utf-8")
            path.write_text(mutant.planted_in(text), encoding="utf-8")
            code = _run_tests(copy, mutant.tests, LIMIT_S)
            path.write_text(text, encoding="utf-8")
            yield Result(mutant, OUTCOMES.get(code, "NO TEST"), time.perf_counter() - start)


def _copy_sources(copy: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        if (ROOT / name).is_file():  # the user may have deleted it
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)


def _run_tests(copy: Path, tests: Sequence[str], limit_s: float | None) -> int | None:
    """The exit code of the tests; None if they took too long."""
    process = CONTEXT.Process(target=_test, args=(copy, list(dict.fromkeys(tests))))
    process.start()
    try:
        process.join(limit_s)
        return process.exitcode
    finally:
        process.kill()
        process.join()


def _test(copy: Path, tests: list[str]) -> None:
    """Run the tests in the copy, in this process. It exits with 0 if all pass, and with FAILED if one fails."""
    import pytest

    (copy / ".printed").unlink(missing_ok=True)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": str(copy / ".numba")}
    sys.path.insert(0, str(copy))
    # Python would take the bytecode of the original for a mistake of the same length and second
    sys.dont_write_bytecode = True
    for package in PACKAGES:
        if (found := find_spec(package)) is None or not Path(str(found.origin)).is_relative_to(copy):
            (copy / ".printed").write_text(f"{package} would be {found and found.origin}; expected it in {copy}")
            sys.exit(2)
    verdict, printed = _Verdict(), io.StringIO()  # in memory: a test limits the size of files
    with redirect_stdout(printed):
        code = pytest.main(["-q", "-x", "--assert=plain", *tests], plugins=[verdict])  # else it compiles every plugin
    (copy / ".printed").write_text(printed.getvalue(), errors="replace")
    sys.exit(FAILED if verdict.failed else 2 * bool(code))


class _Verdict:
    """A plugin of pytest that notes whether a test failed. A test that cannot be collected or set up is none."""

    failed = False

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed |= report.failed and report.when == "call"


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _chosen(arguments)
    print(f"running the tests of {len(chosen)} mutants without any mistake …", file=sys.stderr)
    found: list[Result] = []
    try:
        for result in results(chosen):
            print(f"{len(found) + 1}/{len(chosen)} {result}", file=sys.stderr, flush=True)
            found.append(result)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    fell = sum(result.outcome == FELL for result in found)
    print(*sorted(found, key=lambda result: result.outcome == FELL), sep="\n")
    print(f"{fell} of {len(chosen)} mutants fell")
    return int(fell < len(chosen))


def _chosen(arguments: Sequence[str] | None) -> list[Mutant]:
    rooms = ", ".join(dict.fromkeys(mutant.room for mutant in MUTANTS))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mutants", nargs="*", help=f"names of mutants, or rooms: {rooms}; all mutants by default")
    names = parser.parse_args(arguments).mutants
    for name in names:
        if not any(name in (mutant.room, mutant.name) for mutant in MUTANTS):
            parser.error(f"there is no mutant {name!r}; expected the name of a mutant, or a room: {rooms}")
    return [mutant for mutant in MUTANTS if not names or {mutant.room, mutant.name} & {*names}]


if __name__ == "__main__":
    sys.exit(main())
