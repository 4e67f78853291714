"""Held-out images depend only on the seed, come from every class, and never change silently."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studies.config import Config
from studies.data import Dataset, Pixels, load
from studies.data.split import Subset, split, verify, write
from studies.failures import BadData, CannotWrite


def dataset(labels: torch.Tensor, classes: int) -> Dataset:
    pixels = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    images = Pixels(pixels, labels)
    return Dataset(
        name="numbers",
        classes=tuple(f"class {number}" for number in range(classes)),
        train=images,
        test=Pixels(pixels[:3], labels[:3]),
        size=(1, 1, 1),
        mean=(0.0,),
        std=(1.0,),
        augment=lambda image, generator: image,
        view=lambda image: image,
    )


@given(st.data())
def test_every_class_gives_as_many_and_no_image_is_in_both(data):
    counts = data.draw(st.lists(st.integers(2, 30), min_size=1, max_size=6))
    held_out = data.draw(st.integers(1, min(counts) - 1))
    labels = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    whole = dataset(labels, len(counts))
    parts = split(whole, Config(held_out=held_out, split_seed=data.draw(st.integers(0, 99))))
    assert parts.judged.labels.bincount(minlength=len(counts)).tolist() == [held_out] * len(counts)
    assert sorted([*parts.train.names, *parts.judged.names], key=int) == whole.train.names
    for images in (parts.train, parts.judged):
        for position, name in enumerate(images.names):
            assert images.read(position).item() == int(name)
            assert images.labels[position] == labels[int(name)]


def test_the_paper_holds_out_50_per_class():
    parts = split(load(Config()), Config())
    assert parts.judged.labels.bincount().tolist() == [50] * 10
    assert len(parts.train.labels) == 797


def test_val_original_trains_on_all_and_judges_the_validation_set():
    digits = load(Config())
    parts = split(digits, Config(protocol="val-original"))
    assert parts.train is digits.train
    assert parts.judged is digits.test
    assert parts.manifest["held_out"] == []


def test_another_seed_holds_out_others():
    digits = load(Config())
    held_out = [set(split(digits, Config(split_seed=seed)).judged.names) for seed in range(3)]
    assert len(held_out[0] & held_out[1]) < 250 > len(held_out[1] & held_out[2])  # 192 are expected


def test_each_image_is_held_out_as_often_as_another():
    numbers = dataset(torch.zeros(20, dtype=torch.int64), 1)
    often = torch.zeros(20)
    for seed in range(400):
        often[[int(name) for name in split(numbers, Config(held_out=5, split_seed=seed)).judged.names]] += 1
    assert ((often - 100).abs() < 5 * (400 * 0.25 * 0.75) ** 0.5).all()


def test_the_seed_of_the_run_and_the_global_generator_change_nothing():
    digits = load(Config())
    before = split(digits, Config(seed=0)).manifest
    torch.manual_seed(17)
    state = torch.get_rng_state()
    assert split(digits, Config(seed=1)).manifest == before
    assert torch.equal(torch.get_rng_state(), state)


def test_other_images_of_the_class_and_their_order_change_little():
    numbers = dataset(torch.arange(40) % 2, 2)
    before = split(numbers, Config(held_out=5)).judged.names
    more = dataset(torch.arange(41) % 2, 2)  # one more image of class 0
    assert len(set(before) - set(split(more, Config(held_out=5)).judged.names)) <= 1


SCRIPT = """
import hashlib, json, torch
from studies.config import Config
from studies.data import load
from studies.data.split import split
torch.rand(3)
print(hashlib.sha256(json.dumps(split(load(Config()), Config()).manifest).encode()).hexdigest())
"""


@pytest.mark.deep
def test_another_process_holds_out_the_same():
    here = hashlib.sha256(json.dumps(split(load(Config()), Config()).manifest).encode()).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "1"}
    there = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, text=True, capture_output=True, check=True)
    assert there.stdout.strip() == here


@pytest.mark.parametrize("held_out", [3, 4])
def test_a_class_that_would_keep_nothing_is_named(held_out):
    labels = torch.tensor([0] * 9 + [1] * 3 + [2] * 9)
    with pytest.raises(ValueError, match=r"class 'class 1' has 3 images to train on.* expected held_out below 3"):
        split(dataset(labels, 3), Config(held_out=held_out))


@pytest.fixture
def written(tmp_path: Path):
    """A manifest on the disk, and the data set and config it is of."""
    numbers, config = dataset(torch.arange(30) % 3, 3), Config(held_out=2)
    write(tmp_path / "split.json", split(numbers, config))
    return tmp_path / "split.json", numbers, config


def test_what_did_not_change_is_verified(written):
    path, numbers, config = written
    verify(path, split(numbers, config))


def added(images: Pixels) -> Pixels:
    return Pixels(torch.cat([images.pixels, images.pixels[:1]]), torch.cat([images.labels, images.labels[:1]]))


@pytest.mark.parametrize(("part", "field"), [("train", "train"), ("validation", "test")])
def test_a_changed_listing_is_refused_and_named(written, part, field):
    path, numbers, config = written
    changed = replace(numbers, **{field: added(getattr(numbers, field))})
    with pytest.raises(BadData, match=rf"the listing of the {part} images changed since .*split\.json was written"):
        verify(path, split(changed, config))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"split_seed": 1}, "split_seed changed from 0 to 1"),
        ({"held_out": 3}, "per_class changed from 2 to 3"),
        ({"protocol": "val-original"}, "protocol changed from 'val-split' to 'val-original'"),
    ],
)
def test_another_split_is_refused_and_named(written, change, named):
    path, numbers, config = written
    with pytest.raises(BadData, match=named):
        verify(path, split(numbers, replace(config, **change)))


def test_changed_names_are_refused(written):
    path, numbers, config = written
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"held_out": manifest["held_out"][1:]}))
    with pytest.raises(BadData, match="held_out changed"):
        verify(path, split(numbers, config))


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_what_is_no_manifest_is_refused(written, content):
    path, numbers, config = written
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(BadData, match="is no manifest of a split"):
        verify(path, split(numbers, config))


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(BadData, match=r"split\.json cannot be read: No such file"):
        verify(tmp_path / "split.json", split(load(Config()), Config()))


def test_a_full_disk_leaves_the_old_manifest(written, monkeypatch):
    path, numbers, config = written
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match=r"split\.json cannot be written: No space left on device"):
        write(path, split(numbers, replace(config, split_seed=1)))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["split.json"]


def test_the_digest_of_a_subset_changes_with_its_choice_and_its_images():
    images = dataset(torch.zeros(9, dtype=torch.int64), 1).train
    digests = {Subset(images, torch.tensor(some)).digest() for some in ([1, 2], [2, 1], [1, 3])}
    digests.add(Subset(added(images), torch.tensor([1, 2])).digest())
    assert len(digests) == 4
    assert Subset(images, torch.tensor([1, 2])).digest() in digests


def test_both_protocols_train_on_the_same_part_of_the_images():
    digits = load(Config())
    halves = [
        split(digits, Config(protocol=protocol, train_per_class=60)) for protocol in ("val-split", "val-original")
    ]
    assert halves[0].train.names == halves[1].train.names
    assert halves[0].train.labels.bincount().tolist() == [60] * 10
    assert not {*halves[0].train.names} & {*halves[0].judged.names}
    assert halves[0].manifest["held_out"] == split(digits, Config()).manifest["held_out"]
    assert "train_per_class" not in split(digits, Config()).manifest
    larger = split(digits, Config(train_per_class=70)).train
    assert {*halves[0].train.names} < {*larger.names}


def test_a_class_that_has_fewer_images_than_wanted_is_named():
    labels = torch.tensor([0] * 9 + [1] * 6)
    with pytest.raises(ValueError, match=r"class 'class 1' has 4 images to train on; expected train_per_class to be"):
        split(dataset(labels, 2), Config(held_out=2, train_per_class=5))
    assert len(split(dataset(labels, 2), Config(held_out=2, train_per_class=4)).train.labels) == 8
