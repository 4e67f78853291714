"""The doctor names every problem, and its exit code reports whether there are any."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studies import doctor
from studies.data import torchvision


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Path:
    """Two classes with 100 training images and two for evaluation, and a torchvision, installed or not."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    for part, count in (("train", 100), ("val", 2)):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for image in range(count):
                Image.fromarray(pixels).save(tmp_path / part / name / f"{image:03}.png")
    monkeypatch.setattr(torchvision, "load", lambda: type("torchvision", (), {"__version__": "0.0"}))
    monkeypatch.setattr(torchvision, "_declared", [])
    return tmp_path


def test_a_whole_folder_is_counted_and_well(root, capsys):
    assert doctor.main(["--data", "folder", "--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert "2 classes" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in ("train 200 100 (ant) 100 (ant)", "validation 4 2 (ant) 2 (ant)", "ant 100 2", "bee 100 2"):
        assert line in lines
    assert "torchvision 0.0\n" in out
    assert "opened 68 images, 68 of them readable" in out
    assert out.endswith("all is well\n")


def test_every_problem_is_named(root, capsys):
    (root / "train" / "cat").mkdir()
    (root / "val" / "bee" / "000.png").write_bytes(b"x")
    (root / "val" / "ant" / "001.png").write_bytes(b"")
    assert doctor.main(["--data", "folder", "--root", str(root)]) == 3
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "PROBLEM" in line]
    assert len(lines) == 5
    for part in ("train/cat holds no images", "class 'cat' is in", "val/ant/001.png is an empty file"):
        assert sum(part in line for line in lines) == 1
    for file in ("val/bee/000.png", "val/ant/001.png"):
        assert sum(f"{file} cannot be read as an image" in line for line in lines) == 1
    assert "all is well" not in out


def add(root: Path, name: str, image: Image.Image, **options) -> Path:
    path = root / "train" / "ant" / name
    image.save(path, **options)
    return path


def test_what_is_no_problem_is_noted_with_all_names(root, capsys):
    """Files that are read otherwise than they look, and warnings, which do not name the file."""
    photo = Image.open(root / "train" / "ant" / "000.png").convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("a.jpg", "b.jpg"):
        add(root, name, photo, exif=turned)
    damaged = [add(root, name, photo, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12") for name in ("c.jpg", "d.jpg")]
    clear = photo.copy()
    clear.putalpha(100)
    add(root, "e.png", clear)
    add(root, "f.webp", photo, save_all=True, append_images=[photo.rotate(90)])
    add(root, "g.png", Image.fromarray(np.full((4, 4), 4095, np.uint16)))
    strange = os.fsdecode(b"\xff.png")
    add(root, strange, clear)
    for name in ("notes.txt", "x.gif", ".hidden.jpg"):
        (root / "train" / "ant" / name).write_bytes(b"x")
    (root / "val" / "LICENSE").write_bytes(b"x")
    photo.save(root / "train" / "bee" / "000.PNG")
    assert doctor.main(["--root", str(root), "--all"]) == 0
    out = capsys.readouterr().out
    notes = {block.split("\n")[0]: [line.strip() for line in block.split("\n")[1:]] for block in out.split("NOTE ")[1:]}
    found = {sentence: [path for path in paths if path.startswith(str(root))] for sentence, paths in notes.items()}

    def named(sentence: str, *names: str) -> bool:
        (paths,) = (
            paths for said, paths in found.items() if said.startswith(sentence) and said.endswith(str(len(names)))
        )
        return [Path(path).name for path in paths] == list(names)

    assert named("the EXIF orientation is not applied: ", "a.jpg", "b.jpg")
    warned = [paths for said, paths in found.items() if said.startswith("PIL warns: ")]
    assert warned
    assert set(warned[0]) == set(map(str, damaged))
    assert named("the transparency is dropped: ", "e.png", "\\udcff.png")
    assert named("the first of several frames is used: ", "f.webp")
    assert named("16 bits are reduced to 8, and the image is dark", "g.png")
    assert named("the file is hidden, and ignored: ", ".hidden.jpg")
    assert set(found["the file has no name of an image, and is ignored: 2"]) == {
        str(root / "train" / "ant" / name) for name in ("notes.txt", "x.gif")
    }
    assert named("the file is in no class folder, and is ignored: ", "LICENSE")
    assert named("another name differs only in upper and lower case: ", "000.PNG", "000.png")
    assert "all is well" not in out


def test_one_class_is_nothing_to_tell_apart(root, capsys):
    for part in ("train", "val"):
        (root / part / "bee").rename(root / part / ".bee")
    assert doctor.main(["--root", str(root)]) == 3
    out, err = capsys.readouterr()
    assert "PROBLEM the data set folder has 1 class; expected at least 2, to tell them apart" in err
    assert "all is well" not in out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--label_smoothing=0.9"], "label_smoothing is 0.9; expected below 0.9; with 10 classes the label would get"),
        (["--batch=900"], "batch is 900; expected at most the 797 images to train on"),
        (["--held_out=200"], "held_out takes 200 of them"),
        (["--model=builtins:dict"], "model 'builtins:dict' returns an object of type dict; expected package.module"),
    ],
)
def test_a_run_that_cannot_be_is_found_before_it_starts(options, sentence, capsys):
    assert doctor.main(["--data=digits", *options]) == 3
    out, err = capsys.readouterr()
    assert sentence in err
    assert "all is well" not in out


def test_all_opens_every_image(root, capsys):
    for name in ("017", "018"):
        (root / "train" / "ant" / f"{name}.png").write_bytes(b"x")
    assert doctor.main(["--root", str(root), "--all"]) == 3
    out, err = capsys.readouterr()
    assert "opened 204 images, 202 of them readable" in out
    assert "ant/017.png" in err
    assert "ant/018.png" in err


def test_a_torchvision_without_operators_or_none_is_told(root, capsys, monkeypatch):
    monkeypatch.setattr(torchvision, "_declared", [object()])
    assert doctor.main(["--root", str(root)]) == 0
    assert "torchvision 0.0, without its compiled operators" in capsys.readouterr().out

    def absent():
        raise ValueError("there is none")

    monkeypatch.setattr(torchvision, "load", absent)
    assert doctor.main(["--root", str(root)]) == 3
    assert "PROBLEM there is none" in capsys.readouterr().err


def test_a_missing_root_is_told_what_is_expected(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torchvision, "load", lambda: type("torchvision", (), {"__version__": "0.0"}))
    assert doctor.main(["--data", "folder", "--root", str(tmp_path / "away")]) == 3
    assert "away is not there; expected ROOT/train/<class>/*.jpg" in capsys.readouterr().err
    assert doctor.main(["--data", "cifar10"]) == 3
    assert "PROBLEM the data set cifar10 has no root; give --root ROOT" in capsys.readouterr().err


def test_the_embedded_digits_are_well(capsys):
    assert doctor.main(["--data", "digits", "--all"]) == 0
    out = capsys.readouterr().out
    assert "10 classes" in out
    assert "opened 1797 images, 1797 of them readable" in out


SCRIPT = """
import sys
from studies import doctor
try:
    doctor.main(["--help"])
except SystemExit as end:
    print(sorted({"torch", "numpy", "PIL", "sklearn", "torchvision"} & set(sys.modules)), end.code)
"""


def test_help_is_quick():
    done = subprocess.run([sys.executable, "-c", SCRIPT], text=True, capture_output=True, check=True)
    assert done.stdout.endswith("[] 0\n")
    assert "python -m studies.doctor" in done.stdout


@pytest.mark.deep
def test_the_exit_code_reaches_the_shell(tmp_path):
    command = [sys.executable, "-m", "studies.doctor", "--data", "cifar10", "--root", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 3
    assert "holds no file of CIFAR-10" in done.stderr
    assert "Traceback" not in done.stderr
