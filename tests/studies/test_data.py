"""The digits, and folders of images: pixels equal torchvision's, and problems of the files are named."""

import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from studies.config import Config
from studies.data import folder, load, torchvision
from studies.data.split import split
from studies.failures import BadData


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_digits_are_whole_and_lossless():
    from sklearn.datasets import load_digits

    digits = load(Config())
    pixels = torch.cat([digits.train.read(slice(None)), digits.test.read(slice(None))])
    assert len(pixels) == 1797
    assert digits.test.labels.bincount().tolist() == [50] * 10
    shades = (pixels.double() * 16 / 255).round()
    assert shades.unique().tolist() == list(range(17))
    assert len(pixels.unique()) == 17
    assert shades.sum() == load_digits().data.sum()


@pytest.mark.parametrize(("name", "side"), [("digits", 8), ("digits16", 16)])
def test_views_of_digits_have_their_size(name, side):
    digits = load(Config(data=name))
    image = digits.train.read(0)
    assert digits.size == (1, side, side)
    for view in (digits.view(image), digits.augment(image, generator())):
        assert view.shape == digits.size
        assert view.dtype == torch.uint8


def test_a_digit_moves_by_up_to_one_pixel():
    digits = load(Config())
    image = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 8, 8)
    draws = generator()
    views = {digits.augment(image, draws).numpy().tobytes() for _ in range(200)}
    padded = np.pad(image[0].numpy(), 1)
    assert views == {padded[top : top + 8, left : left + 8].tobytes() for top in range(3) for left in range(3)}


def test_an_unknown_data_set_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown data set 'imagenet'; expected 'digits', .+ or 'coco'"):
        load(Config(data="imagenet"))


CLASSES = ("ant", "bee")


def photograph(seed: int, rows: int = 50, columns: int = 60) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images per class to train on, one to judge."""
    for part, count in (("train", 3), ("val", 1)):
        for number, name in enumerate(CLASSES):
            (tmp_path / part / name).mkdir(parents=True)
            for image in range(count):
                photograph(10 * number + image).save(tmp_path / part / name / f"{image}.JPEG")
    return tmp_path


def config(root: Path | None) -> Config:
    return Config(data="folder", root=root, image_size=32, resize=40)


@pytest.fixture
def v2():
    """torchvision's transforms, if torchvision is installed."""
    try:
        torchvision.load()
    except ValueError as error:
        pytest.skip(str(error))
    from torchvision.transforms import v2

    return v2


def test_a_folder_is_what_image_folder_makes_of_it(root, v2):
    from torchvision.datasets import ImageFolder

    ours, theirs = load(config(root)), ImageFolder(str(root / "train"))
    assert ours.classes == tuple(theirs.classes)
    assert [str(root / "train" / name) for name in ours.train.names] == [path for path, _ in theirs.samples]
    assert ours.train.labels.tolist() == theirs.targets
    assert all(ours.train.read(n).tobytes() == theirs[n][0].tobytes() for n in range(len(theirs)))
    assert ours.test.names[:] == ["ant/0.JPEG", "bee/0.JPEG"]
    assert ours.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("size", [(50, 60), (20, 90), (90, 20), (1, 1), (7, 300)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_views_are_torchvisions(size, seed, root, v2):
    dataset, image = load(config(root)), photograph(3, *size)
    theirs = v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    torch.manual_seed(seed)
    expected = theirs(image), theirs(image)
    draws = generator(seed)
    views = dataset.augment(image, draws), dataset.augment(image, draws)
    assert all(map(torch.equal, views, expected))
    assert views[0].shape == dataset.size
    assert views[0].dtype == torch.uint8
    judged = v2.functional.center_crop(v2.functional.resize(image, [40]), [32])
    assert torch.equal(dataset.view(image), v2.functional.pil_to_tensor(judged))


def test_views_can_be_bicubic(root, v2):
    dataset, image = load(replace(config(root), interpolation="bicubic")), photograph(3, 50, 60)
    mode = v2.InterpolationMode.BICUBIC
    theirs = v2.Compose([v2.RandomResizedCrop(32, interpolation=mode), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    torch.manual_seed(4)
    assert torch.equal(dataset.augment(image, generator(4)), theirs(image))
    judged = v2.functional.center_crop(v2.functional.resize(image, [40], interpolation=mode), [32])
    assert torch.equal(dataset.view(image), v2.functional.pil_to_tensor(judged))
    assert not torch.equal(dataset.view(image), load(config(root)).view(image))


def test_draws_come_from_the_given_generator_alone(root, v2):
    dataset, image = load(config(root)), photograph(3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = dataset.augment(image, generator())
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(dataset.augment(image, generator()), first)
    assert not torch.equal(dataset.augment(image, generator(1)), first)


SCRIPT = """
import hashlib, random, sys
from pathlib import Path
import torch
from studies.config import Config
from studies.data import load
if __name__ == "__main__":
    torch.rand(3), random.random()
    dataset = load(Config(data="folder", root=Path(sys.argv[1]), image_size=32, resize=40))
    views = [dataset.augment(dataset.train.read(n), torch.Generator().manual_seed(n)) for n in range(6)]
    print(dataset.train.digest(), hashlib.sha256(torch.stack(views).numpy().tobytes()).hexdigest())
"""


@pytest.mark.deep
def test_another_process_sees_the_same_pixels(root, v2):
    dataset = load(config(root))
    views = [dataset.augment(dataset.train.read(n), generator(n)) for n in range(6)]
    here = f"{dataset.train.digest()} {hashlib.sha256(torch.stack(views).numpy().tobytes()).hexdigest()}"
    environment = os.environ | {"PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(root)]
    assert subprocess.run(command, env=environment, text=True, capture_output=True, check=True).stdout.strip() == here


def test_a_data_set_can_be_sent_to_a_process(root, v2):
    dataset, image = load(config(root)), photograph(3)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.train.names[:] == dataset.train.names[:]
    assert torch.equal(copy.augment(image, generator()), dataset.augment(image, generator()))


def test_loading_writes_nothing(root, v2):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    dataset = load(config(root))
    dataset.view(dataset.train.read(0))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_hidden_and_other_files_are_no_images_and_folders_in_a_class_are_searched(root):
    for name in (".DS_Store", "._0.JPEG", "notes.txt"):
        (root / "train" / "ant" / name).write_bytes(b"x")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "README.jpg").write_bytes(b"x")
    (root / "train" / "ant" / "more").mkdir()
    photograph(0).save(root / "train" / "ant" / "more" / "0.png")
    found = folder.survey(root).checked()
    expected = ["ant/0.JPEG", "ant/1.JPEG", "ant/2.JPEG", "ant/more/0.png", *(f"bee/{n}.JPEG" for n in range(3))]
    assert found.train.names[:] == expected
    assert found.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_class_folder_may_be_a_link_and_a_name_need_not_be_unicode(root):
    (root / "train" / "ant").rename(root / "elsewhere")
    (root / "train" / "ant").symlink_to(root / "elsewhere")
    strange = os.fsdecode(b"\xff.png")
    photograph(0).save(root / "elsewhere" / strange)
    images = folder.survey(root).checked().train
    assert f"ant/{strange}" in images.names[:]
    assert images.read(images.names[:].index(f"ant/{strange}")).size == (60, 50)
    assert len(images.digest()) == 64


def test_links_in_a_class_are_followed(root):
    (root / "elsewhere" / "deep").mkdir(parents=True)
    photograph(0).save(root / "elsewhere" / "deep" / "a.PNG")
    (root / "train" / "ant" / "more").symlink_to(root / "elsewhere")
    (root / "train" / "ant" / "file.jpg").symlink_to(root / "train" / "bee" / "0.JPEG")
    found = folder.survey(root).checked().train.names[:]
    assert [name for name in found if name.startswith("ant")][3:] == ["ant/file.jpg", "ant/more/deep/a.PNG"]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../train/ant", "../../train"])
def test_a_link_to_a_folder_that_contains_it_is_named(target, root):
    (root / "train" / "ant" / "loop").symlink_to(target)
    assert re.search(r"train/ant/loop(/\w+)* cannot be read: it is a link to a folder that contains it", problem(root))


@pytest.mark.parametrize("place", ["train/cat", "train/ant/folder", "val/ant/itself", "val/ant/x.jpg"])
def test_a_broken_link_is_named(place, root):
    (root / place).symlink_to("itself" if place.endswith("itself") else "nowhere")
    assert problem(root).startswith(f"{root / place} ")
    assert re.search("broken link|No such file|Too many levels", problem(root))


def test_a_pipe_is_not_opened(root):
    os.mkfifo(root / "train" / "ant" / "x.jpg")
    assert problem(root) == f"{root / 'train' / 'ant' / 'x.jpg'} is no regular file; remove it"


@pytest.mark.parametrize("damage", ["none", "no class", "one class"])
def test_a_network_is_judged_without_training_images(damage, root, v2):
    for name in CLASSES[: {"none": 2, "no class": 2, "one class": 1}[damage]]:
        shutil.rmtree(root / "train" / name)
    if damage == "none":
        (root / "train").rmdir()
    dataset = load(config(root))
    assert dataset.classes == CLASSES
    assert dataset.test.labels.tolist() == [0, 1]
    with pytest.raises(BadData, match="train"):
        len(dataset.train.labels)
    assert damage != "none" or split(dataset, replace(config(root), protocol="val-original")).judged is dataset.test


LAYOUT = r"expected ROOT/train/<class>/\*\.jpg and ROOT/val/<class>/\*\.jpg, with the same classes in both"


def problem(root: Path | None) -> str:
    with pytest.raises(BadData) as refused:
        folder.survey(root).checked()
    return str(refused.value)


def test_no_root_is_told_what_is_expected():
    with pytest.raises(BadData, match=f"the data set folder has no root; give --root ROOT: {LAYOUT}"):
        folder.survey(None).checked()


@pytest.mark.parametrize("missing", [".", "train", "val"])
def test_a_missing_folder_is_named(missing, root):
    shutil.rmtree(root / missing)
    with pytest.raises(BadData, match=f"{(root / missing).name} is not there; {LAYOUT}$"):
        folder.survey(root).checked()


def test_a_file_in_the_place_of_the_root_is_named(root):
    with pytest.raises(BadData, match=rf"0\.JPEG is no folder; {LAYOUT}"):
        folder.survey(root / "train" / "ant" / "0.JPEG").checked()


def test_a_part_without_classes_is_named(root):
    for name in CLASSES:
        (root / "val" / name).rename(root / name)
    assert f"{root / 'val'} holds no class folders; expected ROOT/train" in problem(root)


def test_an_empty_class_folder_is_named(root):
    (root / "train" / "cat").mkdir()
    (root / "val" / "cat").mkdir()
    assert problem(root).startswith(f"class folder {root / 'train' / 'cat'} holds no images; expected ROOT/train")


@pytest.mark.parametrize(("part", "other"), [("train", "val"), ("val", "train")])
def test_a_class_of_one_part_alone_is_named(part, other, root):
    (root / part / "cat").mkdir()
    photograph(0).save(root / part / "cat" / "0.png")
    assert problem(root).startswith(f"class 'cat' is in {root / part} and not in {root / other}; expected ROOT/train")


def test_an_empty_file_and_a_broken_link_are_named(root):
    (root / "val" / "bee" / "0.JPEG").write_bytes(b"")
    assert problem(root).startswith(f"{root / 'val' / 'bee' / '0.JPEG'} is an empty file")
    (root / "val" / "bee" / "0.JPEG").unlink()
    (root / "val" / "bee" / "0.JPEG").symlink_to(root / "nowhere")
    assert problem(root).startswith(f"{root / 'val' / 'bee' / '0.JPEG'} cannot be read: No such file")


def test_all_problems_are_found_at_once(root):
    (root / "train" / "cat").mkdir()
    (root / "val" / "dog").mkdir()
    found = folder.survey(root)
    assert len(found.problems) == 4
    assert problem(root).endswith("(3 more, which python -m studies.doctor names)")


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "grown", "moved"])
def test_the_digest_changes_with_the_listing(change, root):
    before, path = folder.survey(root).train.digest(), root / "train" / "ant" / "0.JPEG"
    assert folder.survey(root).train.digest() == before
    if change == "added":
        photograph(1).save(path.with_name("x.jpg"))
    elif change == "removed":
        path.unlink()
    elif change == "grown":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        path.rename(path.with_name("x.JPEG") if change == "renamed" else root / "train" / "bee" / "ant.JPEG")
    assert folder.survey(root).train.digest() != before


def only(root: Path, image: Image.Image, name: str, **options) -> tuple[folder.Folder, int]:
    """The images of a folder to which one was added, and its number."""
    image.save(root / "train" / "ant" / name, **options)
    images = folder.survey(root).checked().train
    assert isinstance(images, folder.Folder)
    return images, images.names[:].index(f"ant/{name}")


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "x.png"),
        ("1", "x.png"),
        ("LA", "x.png"),
        ("RGBA", "x.png"),
        ("P", "x.png"),
        ("CMYK", "x.jpg"),
        ("L", "x.jpg"),
    ],
)
def test_every_kind_of_image_becomes_rgb(mode, name, root):
    image = photograph(3).convert(mode)
    images, number = only(root, image, name)
    read = images.read(number)
    assert read.mode == "RGB"
    error = np.asarray(read, dtype=float) - np.asarray(image.convert("RGB"), dtype=float)
    assert np.abs(error).mean() < (0.01 if name.endswith("png") else 3)


@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.pgm"])
def test_16_bits_become_8_by_their_range(name, root):
    values = np.array([[0, 128, 129, 257, 32_767, 32_768, 65_406, 65_535]], dtype=np.uint16)
    images, number = only(root, Image.fromarray(values), name)
    read = images.read(number)
    assert read.mode == "RGB"
    assert np.asarray(read)[0].tolist() == [[v] * 3 for v in (0, 0, 1, 1, 127, 128, 254, 255)]


@pytest.mark.parametrize(("dtype", "kind"), [(np.int32, "integers"), (np.float32, "floating-point numbers")])
def test_pixels_of_32_bits_are_refused_with_the_name_of_the_file(dtype, kind, root):
    images, number = only(root, Image.fromarray(np.full((4, 4), 0.5, dtype)), "x.tiff")
    with pytest.raises(BadData, match=rf"train/ant/x\.tiff .*its pixels are {kind} of 32 bits, whose range is unknown"):
        images.read(number)


def test_orientation_is_not_applied(root):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90°
    images, number = only(root, photograph(3), "x.jpg", exif=exif)
    with Image.open(root / "train" / "ant" / "x.jpg") as image:
        assert image.getexif()[0x0112] == 6
    assert images.read(number).size == (60, 50)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.bmp", "x.tiff", "x.webp", "x.ppm"])
@pytest.mark.parametrize("broken", ["half", "head", "noise", "other"])
def test_a_broken_file_is_named(broken, name, root):
    images, number = only(root, photograph(3), name)
    path = root / "train" / "ant" / name
    whole = path.read_bytes()
    noise = np.random.default_rng(0).bytes(len(whole))
    path.write_bytes({"half": whole[: len(whole) // 2], "head": whole[:5], "noise": noise, "other": b"<html>"}[broken])
    with pytest.raises(BadData, match=rf"train/ant/{name} cannot be read as an image \(.+\); replace it or remove it"):
        images.read(number)


def test_a_file_that_went_away_is_named(root):
    images = folder.survey(root).train
    (root / "train" / "bee" / "1.JPEG").unlink()
    with pytest.raises(BadData, match=r"bee/1\.JPEG cannot be read as an image \(No such file or directory\)"):
        images.read(4)


def test_a_bomb_is_named(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadData, match=r"ant/0\.JPEG cannot be read as an image .*decompression bomb"):
        folder.survey(root).train.read(0)


@pytest.mark.parametrize("which", ["china.jpg", "flower.jpg"])
def test_a_photograph_is_seen_at_224(which, root, v2):
    from sklearn.datasets import load_sample_image

    images, number = only(root, Image.fromarray(load_sample_image(which)), "x.jpg")
    dataset = load(Config(data="folder", root=root))
    views: list[Tensor] = [dataset.view(images.read(number)), dataset.augment(images.read(number), generator())]
    assert all(view.shape == (3, 224, 224) for view in views)
    assert all(view.float().std() > 30 for view in views)
