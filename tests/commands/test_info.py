"""`saprof` lists its commands and runs them; `saprof info` describes this machine."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import saprof
from saprof import info
from saprof.__main__ import COMMANDS, listing, main
from saprof.operators import BACKENDS
from saprof.records.runs import RECORDED


def run(*arguments, **how):
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, **how)


def test_without_a_command_all_are_listed():
    done = run("saprof")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, listing(), "")
    for name, command in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert command.does in done.stdout
        assert f"saprof {name} {command.example}".rstrip() in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_list_imports_neither_torch_nor_a_command():
    probe = "import sys; from saprof.__main__ import listing; listing(); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout.split())
    assert "saprof.text" in loaded
    assert not loaded & {"torch", "numpy", "numba", *(command.module for command in COMMANDS.values())}


def test_every_module_with_a_command_is_listed():
    root = Path(saprof.__file__).parents[1]
    found = {
        f"{path.parent.name}.{path.stem}"
        for path in [*root.glob("saprof/*.py"), *root.glob("studies/*.py")]
        if 'if __name__ == "__main__":' in path.read_text() and path.stem != "__main__"
    }
    assert found == {command.module for command in COMMANDS.values()}


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"saprof {saprof.__version__}\n"


def test_a_command_is_that_of_its_module():
    arguments = shlex.split("--operator aggregation --stage 5 --footprint 3 --list")
    ours, theirs = run("saprof", "sweep", *arguments), run("saprof.sweep", *arguments)
    assert ours.returncode == 0
    assert ours.stdout
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


def test_a_command_keeps_its_exit_code_and_its_messages():
    done = run("saprof", "sweep", "--footprint", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: footprint is '0'")


def test_an_unknown_command(capsys):
    assert main(["swep"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'swep'; expected 'sweep', 'profile', 'verify'")


@pytest.fixture
def printed(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call():
        assert info.main([]) == 0
        return capsys.readouterr().out

    return call


def test_info(printed):
    text = printed()
    assert re.search(rf"^  saprof +{re.escape(saprof.__version__)}$", text, re.MULTILINE)
    assert re.search(r"^  unfold +cpu: (\d+) of \1 operators$", text, re.MULTILINE)
    assert re.search(r"^  studies +complete$", text, re.MULTILINE)
    for backend in BACKENDS:
        assert re.search(rf"^  {backend} +cpu: ", text, re.MULTILINE)
    assert str(RECORDED) in text
    assert "none in runs/; saprof roofline --calibrate" in text


def test_info_says_why_a_backend_cannot(printed):
    assert re.search(r"^  cuda +cpu: 0 of \d+ operators; no kernels for cpu tensors$", printed(), re.MULTILINE)


def test_info_knows_the_last_roofs(printed, tmp_path):
    for name in ("footprint_cpu", "relations_cpu"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "calibration.json").write_bytes((RECORDED / name / "calibration.json").read_bytes())
    times = {
        re.search(r'"time": "([^"]+)"', (RECORDED / name / "calibration.json").read_text())[1]: name
        for name in ("footprint_cpu", "relations_cpu")
    }
    text = printed()
    assert re.search(rf"last roofs +runs/{times[max(times)]}, {re.escape(max(times))}", text)
    assert re.search(r"^ +memory [\d.]+ GB/s$", text, re.MULTILINE)
    assert re.search(r"^ +float32 \d+ GFLOP/s$", text, re.MULTILINE)


def test_a_user_without_a_name_and_a_home(monkeypatch, capsys):
    """As in a container that was started with a number for its user."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "SAPROF_BUILD_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert info.main([]) == 0
    assert "CUDA library" in capsys.readouterr().out
