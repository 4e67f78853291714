"""Provenance: the part of the code that belongs to a row."""

import subprocess
import sys

import pytest

from saprof.records.environment import MEASURED_CODE, ROOT, code_hash, commit


@pytest.fixture
def sources(tmp_path):
    """A small source tree."""
    for folder in (*MEASURED_CODE, "records", "paper", "plots"):
        (tmp_path / "saprof" / folder).mkdir(parents=True)
        (tmp_path / "saprof" / folder / "some.py").write_text("x = 1\n")
    (tmp_path / "saprof" / "sweep.py").write_text("x = 1\n")
    for kernels, file in (("kernels_numba/cpu", "some.py"), ("kernels_cuda/csrc", "some.cu")):
        (tmp_path / kernels).mkdir(parents=True)
        (tmp_path / kernels / file).write_text("x = 1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        *((f"saprof/{folder}/some.py", True) for folder in MEASURED_CODE),
        ("kernels_numba/cpu/some.py", True),
        ("kernels_cuda/csrc/some.cu", True),
        ("saprof/plots/some.py", False),
        ("saprof/paper/some.py", False),
        ("saprof/records/some.py", False),
        ("saprof/sweep.py", False),
    ],
)
def test_only_the_code_that_is_measured_ends_a_run(sources, changed, matters):
    before = code_hash(sources)
    (sources / changed).write_text("x = 2\n")
    assert (code_hash(sources) != before) is matters


def test_the_measured_packages_exist():
    assert all((ROOT / "saprof" / name / "__init__.py").exists() for name in MEASURED_CODE)
    assert len({code_hash(), code_hash()}) == 1


def test_records_do_not_import_torch():
    modules = ", ".join(f"saprof.records.{path.stem}" for path in (ROOT / "saprof" / "records").glob("[a-z]*.py"))
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    answer = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return answer.stdout.strip()


def repository(folder):
    """A repository with a commit of all that is in the folder."""
    git(folder, "init", "-q")
    git(folder, "add", "-f", ".")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")
    return folder


def copy(folder, project="saprof"):
    """An unpacked source distribution."""
    for name in ("saprof/__init__.py", "studies/config.py", "README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x = 1\n")
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
    return folder


def installed(user):
    return copy(repository(user) / ".venv" / "site-packages")


def installed_and_tracked(user):
    copy(user / ".venv" / "site-packages")
    return repository(user) / ".venv" / "site-packages"


def installed_into_the_root(user):
    return repository(copy(user, project="theirs"))


def untracked_in_the_root(user):
    repository(user)
    return copy(user)


def broken(user):
    (repository(copy(user)) / ".git" / "HEAD").write_text("nonsense")
    return user


def bare(user):
    git(repository(copy(user)), "config", "core.bare", "true")
    return user


def without_a_commit(user):
    git(copy(user), "init", "-q")
    git(user, "add", ".")
    return user


def without_git(user):
    return copy(user)


@pytest.mark.parametrize(
    "situation",
    [
        installed,
        installed_and_tracked,
        installed_into_the_root,
        untracked_in_the_root,
        broken,
        bare,
        without_a_commit,
        without_git,
    ],
)
def test_the_commit_of_somebody_else_is_not_ours(tmp_path, situation):
    assert commit(situation(tmp_path)) == (None, False)


def test_without_the_program_git_there_is_no_commit(tmp_path, monkeypatch):
    repository(copy(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path) == (None, False)


def test_a_checkout_has_its_commit_in_a_hook_a_worktree_and_a_submodule(tmp_path, monkeypatch):
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    ours, theirs = repository(copy(tmp_path / "ours")), tmp_path / "theirs"
    (theirs / "x").touch()
    repository(theirs)
    head = git(ours, "rev-parse", "HEAD")
    assert head != git(theirs, "rev-parse", "HEAD")
    git(ours, "worktree", "add", "-q", str(tmp_path / "worktree"))
    git(theirs, "submodule", "add", "-q", str(ours), "module")
    monkeypatch.setenv("GIT_DIR", str(theirs / ".git"))  # git sets these where it runs a hook
    monkeypatch.setenv("GIT_WORK_TREE", str(theirs))
    monkeypatch.setenv("GIT_INDEX_FILE", str(theirs / ".git" / "index"))
    for root in (ours, tmp_path / "worktree", theirs / "module"):
        assert commit(root) == (head, False), root


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("saprof/__init__.py", True),
        ("saprof/new.py", True),
        ("studies/config.py", True),
        ("studies/recorded/new/rows.jsonl", False),
        ("README.md", False),
    ],
)
def test_changes_are_those_of_code(tmp_path, changed, matters):
    repository(copy(tmp_path))
    (tmp_path / changed).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / changed).write_text("x = 2\n")
    assert commit(tmp_path)[1] is matters
