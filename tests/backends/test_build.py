"""The build of the CUDA kernels: when it compiles, for which GPUs, into which folder, and its errors.

Most tests replace nvcc by a script: it has version 13.0.88, records each call, prints what a source has after `//
says`, and fails if that is an `error`.
"""

import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock

from kernels_cuda import build, compiler

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the CUDA kernels are for Linux")
needs_nvcc = pytest.mark.skipif(not compiler.find_nvcc(), reason="there is no nvcc")

NVCC = r"""#!/bin/sh
case "$1" in --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit;; esac
echo "$$ $*" >> "$NVCC_LOG"
[ -z "$NVCC_SLEEP" ] || sleep "$NVCC_SLEEP"
[ -z "$NVCC_EDITS" ] || echo >> "$NVCC_EDITS"
while [ $# -gt 0 ]; do case "$1" in -o) output=$2;; -c) source=$2;; esac; shift; done
[ -z "$source" ] || sed -n 's,^// says ,,p' "$source" >&2
[ -z "$source" ] || ! grep -q '^// says .*error' "$source" || exit 2
echo "$output" > "$output"
"""
RESOURCES = """// says ptxas info    : 0 bytes gmem
// says ptxas info    : Compiling entry function '_Z5scaleIfEvPT_S0_' for 'sm_80'
// says ptxas info    : Function properties for _Z5scaleIfEvPT_S0_
// says     256 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
// says ptxas info    : Used 56 registers, used 1 barriers, 1024 bytes smem, 364 bytes cmem[0]
// says ptxas info    : Compile time = 12.637 ms
// says ptxas info    : Compiling entry function '_Z2shPf' for 'sm_80'
// says ptxas info    : Function properties for _Z2shPf
// says     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
// says ptxas info    : Used 8 registers, 364 bytes cmem[0]
"""
KERNELS = [build.Kernel("scale<float>", "sm_80", 56, 12, 20, 256, 1024), build.Kernel("sh", "sm_80", 8, 0, 0, 0, 0)]


class Project:
    """Two sources, a compiler, and a folder for the libraries."""

    def __init__(self, root: Path) -> None:
        self.csrc, self.built, self.log = root / "project/csrc", root / "built", root / "log"
        self.csrc.mkdir(parents=True)
        (self.csrc / "one.cu").write_text("__global__ void one(float* x) { x[threadIdx.x] = 1; }\n")
        (self.csrc / "two.cpp").write_text('extern "C" int two() { return 2; }\n')
        (self.csrc / "two.h").write_text("\n")
        self.nvcc = nvcc(root / "cuda")

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def libraries(self) -> list[Path]:
        return sorted(self.built.glob("*.so"))

    def process(self, code: str = "print(build.library())") -> subprocess.Popen:
        """Another process that builds."""
        given = (
            f"build.CSRC, build.SOURCES, compiler.CUDA = Path({str(self.csrc)!r}), {build.SOURCES}, Path('/nowhere')"
        )
        code = f"from pathlib import Path\nfrom kernels_cuda import build, compiler\n{given}\n{code}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # which a shell's background job ignores
        code = f"import signal\n{heard}\n{code}"
        return subprocess.Popen([sys.executable, "-c", code], text=True, cwd=Path(build.__file__).parents[1], **pipes)

    def wait_for_calls(self, count: int) -> list[int]:
        """The process ids of the compilers, once there are so many."""
        deadline = time.monotonic() + 60
        while len(self.calls()) < count:
            assert time.monotonic() < deadline, "no compiler was started"
            time.sleep(0.02)
        return [int(call.split()[0]) for call in self.calls()]


def nvcc(home: Path, version: str = "13.0.88") -> Path:
    path = home / "bin/nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(NVCC.replace("13.0.88", version))
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    project = Project(tmp_path)
    monkeypatch.setattr(build, "CSRC", project.csrc)
    monkeypatch.setattr(build, "SOURCES", ("one.cu", "two.cpp"))
    monkeypatch.setattr(compiler, "CUDA", tmp_path / "none")
    for name in ("CUDA_PATH", "NVCC_SLEEP", "NVCC_EDITS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("SAPROF_BUILD_DIR", str(project.built))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.setenv("NVCC_LOG", str(project.log))
    return project


@pytest.fixture
def without_nvcc(tmp_path, monkeypatch):
    """Call it to remove the compiler."""

    def take() -> None:
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
        monkeypatch.setenv("PATH", str(tmp_path / "none"))

    return take


def test_is_compiled_once(project):
    built = build.library()
    before, calls = built.stat(), project.calls()
    assert build.library() == built
    assert (built.stat().st_mtime_ns, built.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert project.calls() == calls
    assert len(calls) == len(build.SOURCES) + 1
    assert sorted(p.name for p in project.built.iterdir()) == [".lock", built.name, f"{built.name}.json"]


def test_force_compiles_again(project, capsys):
    assert build.library() == build.library(force=True)
    assert len(project.calls()) == 6
    assert "again" not in capsys.readouterr().err


@pytest.mark.parametrize("change", ["source", "header", "new header", "name", "flags", "architecture", "torch", "CUDA"])
def test_fingerprint(project, monkeypatch, change):
    first = build.library()
    match change:
        case "source":
            (project.csrc / "one.cu").write_text("// changed\n")
        case "header":
            (project.csrc / "two.h").write_text("// changed\n")
        case "new header":
            (project.csrc / "deeper").mkdir()
            (project.csrc / "deeper/three.h").write_text("\n")
        case "name":
            (project.csrc / "two.h").rename(project.csrc / "three.h")
        case "flags":
            monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DMORE"))
        case "architecture":
            monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
        case "torch":
            monkeypatch.setattr(torch, "__version__", "2.99")
        case "CUDA":
            monkeypatch.setattr(torch.version, "cuda", "99.9")
    second = build.library()
    assert first != second
    assert project.libraries() == sorted([first, second])


def test_fingerprint_leaves_out_the_order_of_architectures(project, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0 8.0")
    first = build.library()
    assert first == build.library(compiler.architectures("8.0;9.0"))


def test_library_of_another_nvcc_is_compiled_again(project, tmp_path, monkeypatch, capsys):
    first = build.library()
    other = nvcc(tmp_path / "other", "13.1.7")
    monkeypatch.setenv("CUDA_HOME", str(other.parents[1]))
    assert build.library() == first
    assert "was compiled by nvcc 13.0.88; compiling it again" in capsys.readouterr().err
    assert len(project.calls()) == 6


def test_without_nvcc_a_library_that_is_there_will_do(project, without_nvcc):
    first = build.library()
    without_nvcc()
    assert build.library() == first
    assert build.why_not() is None


def truncated(library):
    library.write_bytes(library.read_bytes()[:3])


def altered(library):
    library.write_bytes(library.read_bytes()[::-1])


def without_stamp(library):
    build.stamp_of(library).unlink()


def with_torn_stamp(library):
    stamp = build.stamp_of(library)
    stamp.write_text(stamp.read_text()[:40])


def with_strange_stamp(library):
    build.stamp_of(library).write_text("[]")


@pytest.mark.parametrize("damage", [truncated, altered, without_stamp, with_torn_stamp, with_strange_stamp])
def test_damaged_library_is_compiled_again(project, damage, capsys):
    built = build.library()
    content = built.read_bytes()
    damage(built)
    capsys.readouterr()
    assert build.library() == built
    told = [line for line in capsys.readouterr().err.splitlines() if "compiling CUDA" not in line]
    assert told == [f"saprof: {built} is damaged; compiling it again"]
    assert built.read_bytes() == content
    assert build.library() == built
    assert len(project.calls()) == 6


def test_renamed_library_is_not_loaded(project):
    first = build.library()
    other = first.with_name(build.file_name(build.inputs_of(["9.0"])))
    shutil.copy(first, other)
    shutil.copy(build.stamp_of(first), build.stamp_of(other))
    build.library(["9.0"])
    assert len(project.calls()) == 6


def test_newest_libraries_are_kept(project):
    other = project.built / "saprof_kernels-mine.so"
    project.built.mkdir()
    other.write_text("not one of ours")
    built = [build.library([f"{major}.0"]) for major in range(8, 14)]
    assert set(project.libraries()) == {other, *built[2:]}
    assert len(list(project.built.glob("*.json"))) == 4


@pytest.mark.deep
def test_processes_that_start_together_compile_once(project, monkeypatch):
    monkeypatch.setenv("NVCC_SLEEP", "1")
    processes = [project.process() for _ in range(3)]
    told = [process.communicate(timeout=120) for process in processes]
    assert {out for out, _ in told} == {f"{project.libraries()[0]}\n"}, told
    assert len(project.calls()) == 3


def test_says_that_it_waits(project, capsys):
    project.built.mkdir()
    lock, held, enough = FileLock(project.built / ".lock"), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            enough.wait(1.5)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    built = build.library()
    other.join()
    assert built.exists()
    waiting = f"saprof: waiting for another process, which compiles CUDA kernels in {project.built}\n"
    assert capsys.readouterr().err.startswith(waiting)


def test_killed_builder_leaves_nothing_to_load(project, monkeypatch):
    monkeypatch.setenv("NVCC_SLEEP", "60")
    builder = project.process()
    compilers = project.wait_for_calls(min(2, len(os.sched_getaffinity(0))))
    builder.kill()
    builder.communicate()
    for process in compilers:
        os.killpg(process, signal.SIGKILL)
    assert not project.libraries()
    assert list(project.built.glob(".building-*"))
    monkeypatch.delenv("NVCC_SLEEP")
    assert [build.library()] == project.libraries()
    assert not list(project.built.glob(".building-*"))


def test_only_folders_of_dead_processes_of_this_machine_are_deleted(project):
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = platform.node()
    kept = [f".building-{host}-{os.getppid()}-abc", f".building-elsewhere-{dead.pid}-abc", ".building-abc"]
    left = [f".building-{host}-{dead.pid}-abc", f".building-{host}-{os.getpid()}-abc"]
    for name in (*kept, *left):
        (project.built / name).mkdir(parents=True)
    build.library()
    assert sorted(path.name for path in project.built.glob(".building-*")) == sorted(kept)


def test_interrupt_ends_the_compilers(project, monkeypatch):
    monkeypatch.setenv("NVCC_SLEEP", "60")
    builder = project.process()
    compilers = project.wait_for_calls(min(2, len(os.sched_getaffinity(0))))
    builder.send_signal(signal.SIGINT)
    _, told = builder.communicate(timeout=30)
    assert "KeyboardInterrupt" in told
    assert not any(map(psutil.pid_exists, compilers))
    assert [path.name for path in project.built.iterdir()] == [".lock"]


def test_compile_error(project):
    (project.csrc / "two.cpp").write_text(f"{RESOURCES}// says two.cpp:3: error: expected ';'\n// says 1 error\n")
    with pytest.raises(build.BuildError) as caught:
        build.library()
    assert str(caught.value) == "nvcc failed at two.cpp, exit code 2:\ntwo.cpp:3: error: expected ';'\n1 error"
    assert [path.name for path in project.built.iterdir()] == [".lock"]


def test_compile_error_ends_the_other_compilers(project, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    (project.csrc / "one.cu").write_text("// says error: here\n")
    project.nvcc.write_text(NVCC.replace('[ -z "$NVCC_SLEEP" ]', 'case "$*" in *two.cpp*) sleep 60;; esac'))
    start = time.monotonic()
    with pytest.raises(build.BuildError, match=r"one\.cu"):
        build.library()
    assert time.monotonic() - start < 30
    assert not any(psutil.pid_exists(int(call.split()[0])) for call in project.calls())


def test_missing_header_has_a_hint(project):
    (project.csrc / "one.cu").write_text("// says one.cu:1:10: fatal error: a.h: No such file or directory\n")
    with pytest.raises(build.BuildError, match=r"a\.h: No such file or directory\nhint: torch's and CUDA's headers"):
        build.library()


def test_warnings_are_shown_and_not_fatal(project, capsys):
    (project.csrc / "two.cpp").write_text(f"{RESOURCES}// says two.cpp:3: warning: unused\n")
    build.library()
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "two.cpp:3: warning: unused"
    assert len(told) == 3
    for line, source in zip(sorted(told[:2]), build.SOURCES, strict=True):
        assert line.startswith(f"saprof: compiling CUDA kernels for sm_80: {source} ")


def test_one_line_on_a_terminal(project, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    build.library()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.endswith("saprof: compiling CUDA kernels for sm_80: 2/2, 0 s\r\n")


def test_source_that_changes_meanwhile(project, monkeypatch):
    monkeypatch.setenv("NVCC_EDITS", str(project.csrc / "two.h"))
    with pytest.raises(build.BuildError, match="changed while it was compiled"):
        build.library()
    assert not project.libraries()


def test_missing_nvcc(project, without_nvcc):
    without_nvcc()
    with pytest.raises(build.BuildError, match=r"no nvcc in \$CUDA_HOME/bin, .* CUDA 12 or later: install"):
        build.library()
    assert "there is no nvcc" in (build.why_not() or "")
    assert not project.built.exists()


def test_nvcc_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "CUDA", tmp_path / "default")
    homes = {name: nvcc(tmp_path / name) for name in ("default", "PATH", "CUDA_PATH", "CUDA_HOME")}
    for name in ("CUDA_HOME", "CUDA_PATH", "PATH"):
        monkeypatch.setenv(name, str(homes[name].parents[name != "PATH"]))
    for name in ("CUDA_HOME", "CUDA_PATH", "PATH", "default"):
        assert compiler.find_nvcc() == str(homes[name])
        homes[name].unlink()
    assert compiler.find_nvcc() is None


@pytest.mark.parametrize(("version", "message"), [("11.8.89", "expected CUDA 12 or later"), ("?", "its version")])
def test_nvcc_that_will_not_do(project, tmp_path, monkeypatch, version, message):
    monkeypatch.setenv("CUDA_HOME", str(nvcc(tmp_path / "other", version).parents[1]))
    with pytest.raises(build.BuildError, match=message):
        build.library()


def test_why_not_does_not_build(project, monkeypatch):
    assert build.why_not() is None
    assert not project.calls()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert build.why_not() == "the CUDA kernels are for Linux; this is darwin"


@pytest.mark.parametrize(
    ("text", "architectures", "codes"),
    [
        ("8.0;9.0", ["8.0", "9.0"], ["compute_80,code=sm_80", "compute_90,code=sm_90"]),
        ("9.0+PTX 8.0", ["8.0", "9.0+PTX"], ["compute_80,code=sm_80", "compute_90,code=sm_90"]),
        (" 10.0, 9.0a;9.0a; ", ["9.0a", "10.0"], ["compute_90a,code=sm_90a", "compute_100,code=sm_100"]),
    ],
)
def test_architectures(project, monkeypatch, text, architectures, codes):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert compiler.architectures() == architectures == compiler.architectures(text)
    build.library()
    codes = codes + ["compute_90,code=compute_90"] * ("PTX" in text)
    for call in project.calls():
        assert [flag for flag in call.split() if "gencode" in flag] == [f"-gencode=arch={code}" for code in codes]


@pytest.mark.parametrize("text", ["Hopper", "9", "sm_90", "8.0:9.0", "8.0;Ampere", "9.0+ptx"])
def test_nonsense_architectures(project, monkeypatch, text):
    with pytest.raises(ValueError, match=r"--arch has .*; expected numbers such as 8\.0;9\.0"):
        compiler.architectures(text)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    with pytest.raises(ValueError, match=r"TORCH_CUDA_ARCH_LIST has"):
        build.library()
    assert "TORCH_CUDA_ARCH_LIST has" in (build.why_not() or "")


@pytest.mark.parametrize("listed", ["", None])
def test_architectures_of_the_gpus_here(monkeypatch, listed):
    if listed is None:
        monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    else:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", [(10, 0), (9, 0), (9, 0)].__getitem__)
    assert compiler.architectures() == ["9.0", "10.0"]


def test_no_gpu_to_take_the_architecture_from(project, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(build.BuildError, match="no GPU to take the architecture from; set TORCH_CUDA_ARCH_LIST or"):
        build.library()
    assert "no GPU" in (build.why_not() or "")


def test_is_built_beside_the_sources(project, monkeypatch):
    monkeypatch.delenv("SAPROF_BUILD_DIR")
    assert build.library().parent == project.csrc.parent / "build"


@pytest.mark.parametrize("named", [True, False])
def test_is_built_in_the_cache_if_not_beside_the_sources(project, tmp_path, monkeypatch, named):
    monkeypatch.delenv("SAPROF_BUILD_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg") if named else "")
    (project.csrc.parent / "build").write_text("a file, which not even root can write into")
    built = build.library()
    assert built.parent == tmp_path / ("xdg" if named else ".cache") / "saprof"
    assert build.library() == built
    assert len(project.calls()) == 3


def test_library_in_a_folder_that_cannot_be_written_to(project, tmp_path, monkeypatch):
    """Another user has built the library there."""
    monkeypatch.delenv("SAPROF_BUILD_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    built = build.library()
    monkeypatch.setattr(build, "writable_folder", lambda: pytest.fail("asked for a folder to write to"))
    assert build.library() == built


def test_nowhere_to_write(project, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAPROF_BUILD_DIR", str(tmp_path / "file/built"))
    with pytest.raises(
        build.BuildError, match=r"cannot write to .*file/built \(Not a directory\); set SAPROF_BUILD_DIR"
    ) as raised:
        build.library()
    assert build.why_not() == str(raised.value)


def test_import_and_help_leave_torch_alone():
    code = "import sys\nfrom kernels_cuda import build\nassert 'torch' not in sys.modules\nbuild.main(['--help'])"
    code = f"try:\n  {code.replace(chr(10), chr(10) + '  ')}\nexcept SystemExit: assert 'torch' not in sys.modules"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: python -m kernels_cuda.build" in told.stdout


def test_command_prints_the_path(project, capsys):
    assert build.main(["--arch", "8.0,9.0"]) == 0
    first = capsys.readouterr()
    assert first.out == f"{project.libraries()[0]}\n"
    assert "for sm_80, sm_90: " in first.err
    assert build.main(["--arch", "8.0,9.0"]) == 0
    assert capsys.readouterr() == (first.out, "")
    assert build.main(["--arch", "8.0,9.0", "--force"]) == 0
    assert len(project.calls()) == 6


@pytest.mark.parametrize("arch", ["Hopper", ""])
def test_command_of_no_architecture(project, capsys, arch):
    assert build.main(["--arch", arch]) == 2
    assert capsys.readouterr().err.startswith(f"error: --arch has {arch!r}; expected")


def test_command_that_fails(project, capsys):
    (project.csrc / "one.cu").write_text("// says error: here\n")
    assert build.main([]) == 1
    assert "error: nvcc failed at one.cu" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("c++filt"), reason="there is no c++filt")
def test_report(project, capsys):
    (project.csrc / "one.cu").write_text(RESOURCES)
    assert sorted(build.report(build.library())) == sorted(KERNELS)
    capsys.readouterr()
    assert build.main(["--report"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "",
        "kernel        arch   registers  spill bytes  shared  stack",
        "------------  -----  ---------  -----------  ------  -----",
        "scale<float>  sm_80         56           32    1024    256",
        "sh            sm_80          8            0       0      0",
    ]
    assert len(project.calls()) == 3


def test_report_without_a_demangler(project, monkeypatch):
    (project.csrc / "one.cu").write_text(RESOURCES)
    built = build.library()
    monkeypatch.setenv("PATH", "")
    assert [kernel.name for kernel in build.report(built)] == ["_Z2shPf", "_Z5scaleIfEvPT_S0_"]


@pytest.fixture
def compiled(project, monkeypatch):
    """The project, with the real compiler."""
    monkeypatch.undo()
    monkeypatch.setattr(build, "CSRC", project.csrc)
    monkeypatch.setattr(build, "SOURCES", ("one.cu", "two.cpp"))
    monkeypatch.setenv("SAPROF_BUILD_DIR", str(project.built))
    return project


@pytest.mark.deep
@needs_nvcc
def test_nvcc_compiles(compiled):
    built = build.library(["8.0", "9.0+PTX"])
    assert ctypes.CDLL(str(built)).two() == 2
    kernels = build.report(built)
    assert [kernel.arch for kernel in kernels] == ["sm_80", "sm_90"]
    assert all("one" in kernel.name and 0 < kernel.registers < 32 for kernel in kernels)


@needs_nvcc
def test_nvcc_refuses(compiled):
    (compiled.csrc / "one.cu").write_text('#include "nowhere.h"\n')
    with pytest.raises(build.BuildError, match=r"(?s)at one\.cu.*fatal error: nowhere\.h: No such file.*\nhint:"):
        build.library(["9.0"])
    (compiled.csrc / "one.cu").write_text("__global__ void one(float* x) { y = 1; }\n")
    with pytest.raises(build.BuildError, match=r'(?s)at one\.cu.*identifier "y" is undefined'):
        build.library(["9.0"])
    with pytest.raises(build.BuildError, match=r"(?s)Unsupported gpu architecture 'compute_990'"):
        build.library(["99.0"])


@pytest.fixture(scope="module")
def real(request):
    """The library of csrc/ for one architecture. The build takes minutes, so the library is kept between runs."""
    if not compiler.find_nvcc():
        pytest.skip("there is no nvcc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAPROF_BUILD_DIR", str(request.config.cache.mkdir("kernels_cuda")))
        return build.library(["9.0"])


@pytest.mark.deep
def test_no_kernel_spills(real):
    assert {path.name for path in build.CSRC.iterdir() if path.suffix in (".cu", ".cpp")} == set(build.SOURCES)
    kernels = build.report(real)
    assert {kernel.arch for kernel in kernels} == {"sm_90"}
    names = Counter(kernel.name for kernel in kernels)
    assert not [name for name, count in names.items() if count > 1], "a profiler could not tell them apart"
    assert not [kernel for kernel in kernels if kernel.spill_stores or kernel.spill_loads]


def loading(real: Path, stub: str) -> subprocess.CompletedProcess:
    """A process that loads the library and prints the operator's schema. No test can unload a library."""
    code = f"import ctypes\nfrom kernels_cuda import build\n{stub}\nprint(build.load().default._schema)"
    environment = {**os.environ, "SAPROF_BUILD_DIR": str(real.parent), "TORCH_CUDA_ARCH_LIST": "9.0"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.deep
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_torch_without_cuda_cannot_load(real):
    told = loading(real, "assert not build.why_not()")
    assert told.returncode
    message = told.stderr.splitlines()[-1]
    assert message.startswith(f"RuntimeError: cannot load {real}: ")
    assert "undefined symbol: aoti_torch_get_current_cuda_stream" in message
    assert message.endswith("expected a torch with CUDA, the one that it was built for")


@pytest.mark.deep
@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_loads(real, tmp_path):
    """A torch without CUDA lacks one symbol."""
    (tmp_path / "stub.c").write_text(
        "int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }\n"
    )
    stub = ""
    if torch.version.cuda is None:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "stub.so", tmp_path / "stub.c"], check=True)
        stub = f"ctypes.CDLL({str(tmp_path / 'stub.so')!r}, ctypes.RTLD_GLOBAL)"
    told = loading(real, stub)
    schema = "saprof_kernels::launch(str name, Tensor[] arrays, Tensor[] tables, int[] numbers) -> ()\n"
    assert told.stdout == schema, told.stderr
    assert not told.stderr
