"""Exit codes and output of every command, where the reader, the streams or the disk fail."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
from saprof import command

def main(_):
    {}
    return 3

command.run(main)
"""


def start(main, redirection="", **streams):
    """Run a command with this `main`; the shell redirects its streams."""
    arguments = ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, PROGRAM.format(main)]
    return subprocess.run(arguments, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams, text=True)


def test_closed_streams(tmp_path):
    """The next file that is opened must not receive what is printed."""
    path = tmp_path / "rows"
    done = start(f"file = open({str(path)!r}, 'w'); print('x'); os.write(1, b'x'); os.write(2, b'x')", "<&- >&- 2>&-")
    assert (done.returncode, path.read_text()) == (3, "")


@pytest.mark.parametrize("how", ["print('x')", "print('x', flush=True)", "import argparse; print('x'); exit(0)"])
def test_a_reader_that_has_ended(how):
    """The exit code is that of SIGPIPE, since a check without output has not passed."""
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = start(how, stdout=reader.stdin)
    reader.stdin.close()
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("how", ["print('x')", "print('x', flush=True)", "print('x'); exit(0)"])
def test_a_full_disk_under_stdout(how):
    done = start(how, "> /dev/full")
    assert (done.returncode, done.stderr) == (6, "error: cannot write to stdout: No space left on device\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("ValueError('x is 1; expected 2')", 2),
        ("atomic.WriteError(28, 'No space left on device', 'x is 1; expected 2')", 6),
        ("atomic.WriteError(13, 'Permission denied', 'x is 1; expected 2')", 2),
        ("KeyboardInterrupt", 130),
    ],
)
def test_the_code_tells_a_full_disk_from_bad_input(error, code):
    done = start(f"from saprof import atomic; raise {error}")
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert "x is 1; expected 2" in done.stderr or code == 130


@pytest.mark.parametrize(
    ("file", "printed"),
    [("command.__file__", "warning: x was cut short\n"), ("'other.py'", "other.py:1: UserWarning: x was cut short\n")],
)
def test_a_warning_of_saprof_is_one_sentence(file, printed):
    done = start(f"import warnings; warnings.warn_explicit('x was cut short', UserWarning, {file}, 1)")
    assert done.stderr == printed
