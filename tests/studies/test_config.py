"""Configs: errors are named, a config survives its file, and the fingerprint covers what decides the result."""

import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from studies.config import Config, dump, load, parse, recipes

SETTINGS = {
    "batch_per_process": 16,
    "output": Path("elsewhere"),
    "root": Path("images"),
    "device": "cpu",
    "threads": 2,
    "workers": 3,
    "evaluate_every": 5,
    "checkpoint_every": 7,
    "tensorboard": True,
}


def read(*argv: str) -> Config:
    return parse(argv, "train", "")


def test_no_arguments_are_the_defaults():
    assert read() == Config()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--lrr", "1"], "--lrr"),
        (["extra"], "extra"),
        (["--epochs", "many"], '"epochs": Expected .*int.* Got value: many'),
        (["--epochs", "2.5"], '"epochs": .*2.5'),
        (["--epochs", "true"], '"epochs": .*True'),
        (["--nesterov", "1"], '"nesterov": .*bool'),
        (["--lr", "nan"], '"lr": .*nan'),
        (["--clip_norm", "inf"], '"clip_norm": .*inf'),
        (["--options", "[1]"], '"options": .*'),
        (["--epochs", "0"], "epochs is 0; expected between 1 and 100000"),
        (["--ema", "1"], "ema is 1.*, with which nothing is learned; expected a number below 1"),
        (["--momentum", "1"], "momentum is 1.*, with which nothing is learned"),
        (["--output", ""], "output is empty; expected a path"),
        (["--root= "], "root is empty; expected a path"),
        (["--momentum", "1.5"], "momentum is 1.5; expected between 0 and 1"),
        (["--norm_momentum", "0"], "norm_momentum is 0, with which nothing is learned; expected a number above 0"),
        (["--norm_momentum", "1.5"], "norm_momentum is 1.5; expected between 0 and 1"),
        (["--interpolation", "area"], "unknown interpolation 'area'; expected 'bilinear' or 'bicubic'"),
        (["--weight_decay_on", "norms"], "unknown weight_decay_on 'norms'; expected 'all' or 'weights'"),
        (["--ema_of", "buffers"], "unknown ema_of 'buffers'; expected 'state' or 'parameters'"),
        (["--ema", "2"], "ema is 2.*; expected between 0 and 1"),
        (["--seed", "-1"], "seed is -1; expected between 0"),
        (["--seed", "1" * 30], "seed is 1+; expected between 0"),
        (["--protocol", "test"], "unknown protocol 'test'; expected 'val-original' or 'val-split'"),
        (["--precision", "fp8"], "unknown precision 'fp8'; expected 'fp32', 'fp64', 'bf16' or 'fp16'"),
        (["--clip_norm", "0"], "clip_norm is 0, with which nothing is learned"),
        (["--threads", "99999999"], "threads is 99999999; expected between 1 and 1024"),
        (["--remainder", "both"], "unknown remainder 'both'; expected 'drop' or 'keep'"),
        (["--batch_per_process", "0"], "batch_per_process is 0; expected at least 1"),
        (["--device", "tpu"], "unknown device 'tpu'; expected 'auto', 'cpu' or 'cuda'"),
        (["--nesterov", "true", "--momentum", "0"], "nesterov needs a momentum"),
        (["--sides", "[1000000]"], r"sides is \[1000000\]; expected pixels from 1 to 4096; choose smaller ones"),
        (["--sides", "640,x"], '"sides": .*x'),
        (["--sides", "640,0"], r"sides is \[640, 0\]; expected numbers of at least 1"),
        (["--crop", "5000"], "crop is 5000; expected between 1 and 4096"),
        (["--image_size", "5000", "--resize", "6000"], "image_size is 5000; expected between 1 and 4096"),
        (["--canvases", "1000000000"], "canvases is 1000000000; expected between 1 and 10000000"),
        (["--workers", "5000"], "workers is 5000; expected between 0 and 1024"),
        (["--anchor_scale", "1e9"], "anchor_scale is 1000000000.0; expected between 0 and 1000"),
        (["--resize", "100"], "resize is 100; expected at least image_size, 224"),
        (
            ["--recipe", "nope"],
            "unknown recipe 'nope'; expected 'canvas', 'canvas_study', .+ or 'sasa_imagenet'; the path of a YAML",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_named(argv, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(*argv)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lrr: 1\n", "lrr"),
        ("lr: fast\n", '"lr": .*fast'),
        ("", "Unexpected config"),
        ("hello\n", "hello"),
        ("[1, 2]\n", "1, 2"),
        ("lr: [\n", "parsing"),
        ("ema: .nan\n", "ema is nan"),
        ("lr: .inf\n", "lr is inf; expected a finite number"),
    ],
)
def test_a_mistake_in_a_file_is_named_and_so_is_the_file(tmp_path, text, sentence):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read("--recipe", str(path))
    with pytest.raises(ValueError, match=f"{path} is no config of a run: .*{sentence}"):
        load(path)


@pytest.mark.parametrize(("processes", "accumulate", "seen"), [(8, 1, 32), (1, 8, 32), (4, 2, 32), (1, 1, 256)])
def test_a_process_that_sees_more_images_than_in_the_recipe_is_warned_of(processes, accumulate, seen):
    config = replace(read("--recipe", "san_imagenet"), accumulate=accumulate)
    warning = config.unlike_recipe(processes)
    if seen == 32:
        assert warning is None
    else:
        assert f"see {seen} images at a time; in the published recipe they see 32" in warning
        assert "add --accumulate 8 to one process" in warning
    assert Config(batch=256).unlike_recipe(1) is None


def test_the_released_recipe_keeps_the_remainder_and_computes_in_fp32():
    config = read("--recipe", "san_imagenet")
    assert (config.remainder, config.tf32, config.batch_per_process) == ("keep", False, 32)


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_read(name):
    assert read("--recipe", name) != Config()


@pytest.mark.parametrize(
    ("argv", "sides"),
    [
        (["--sides", "640,672"], (640, 672)),
        (["--sides=640,672"], (640, 672)),
        (["--sides", "640, 672"], (640, 672)),
        (["--sides", "640"], (640,)),
        (["--sides", "[640, 672]"], (640, 672)),
        (["--sides", ""], ()),
    ],
)
def test_lists_are_written_with_commas_or_as_in_files(argv, sides):
    assert read(*argv).sides == sides
    assert read("--lr_drops", "3,5", "--lr", "0.5") == Config(lr_drops=(3, 5), lr=0.5)


def test_what_comes_later_wins(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("lr: 0.2\nepochs: 3\noptions: {channels: [8, 8]}\n")
    second.write_text("lr: 0.3\n")
    assert read("--recipe", str(first)) == Config(lr=0.2, epochs=3, options={"channels": [8, 8]})
    assert read("--recipe", str(first), "--lr", "0.5").lr == 0.5
    assert read("--lr", "0.5", "--recipe", str(first)).lr == 0.2
    assert read("--lr", "0.5", "--lr", "0.6").lr == 0.6
    both = read("--recipe", str(first), "--recipe", str(second), "--options.share", "2")
    assert both == Config(lr=0.3, epochs=3, options={"channels": [8, 8], "share": 2})


def test_a_file_gives_back_what_it_was_written_from(tmp_path):
    path = tmp_path / "config.yaml"
    config = Config(options={"relation": "subtraction", "channels": [8, 8]}, clip_norm=1.5, lr=1e-4, **SETTINGS)
    path.write_text(dump(config))
    assert load(path) == config
    path.write_text(dump(Config()))
    assert load(path) == Config()


def test_settings_are_the_fields_that_are_no_facts():
    assert {f.name for f in fields(Config)} - set(Config().facts()) == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_leaves_the_fingerprint(name):
    assert replace(Config(), **{name: SETTINGS[name]}).fingerprint() == Config().fingerprint()


CHANGED = {
    "train_per_class": 7,
    "model": "resnet_mini",
    "options": {"share": 2},
    "data": "digits16",
    "protocol": "val-original",
    "smoothing_over": "all",
    "lr_every": "step",
    "precision": "fp64",
    "clip_norm": 1.0,
    "ema": 0.5,
    "nesterov": True,
    "channels_last": True,
    "compile": True,
    "lr": 0.2,
    "momentum": 0.5,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "image_size": 192,
    "remainder": "keep",
    "tf32": True,
    "interpolation": "bicubic",
    "weight_decay_on": "weights",
    "norm_momentum": 0.01,
    "ema_of": "parameters",
    "detector": "torchvision",
    "backbone": "resnet50.pt",
    "anchor_scale": 2.0,
    "sides": (640,),
    "longest": 1333,
    "jitter": 0.2,
    "crop": 640,
    "lr_drops": (8, 11),
}


@pytest.mark.parametrize("name", Config().facts())
def test_a_fact_changes_the_fingerprint(name):
    value = CHANGED.get(name, getattr(Config(), name) + 1 if name not in CHANGED else None)
    assert replace(Config(), **{name: value}).fingerprint() != Config().fingerprint()


def test_runs_of_earlier_versions_keep_their_fingerprint():
    assert Config().fingerprint() == "ce12f898db38a76a"
    assert {"remainder", "tf32"} < Config().facts().keys()


def test_the_fingerprint_is_of_values_and_not_of_how_they_were_written(tmp_path):
    one = Config(options={"a": 1, "b": [2, 3]}, lr=1.0, clip_norm=2.0)
    assert Config(options={"b": (2, 3), "a": 1}, lr=1, clip_norm=2).fingerprint() == one.fingerprint()
    path = tmp_path / "config.yaml"
    path.write_text("clip_norm: 2\noptions: {b: [2, 3], a: 1}\nlr: 1\n")
    assert load(path).fingerprint() == one.fingerprint()


def test_the_fingerprint_is_the_same_in_another_process():
    code = "from studies.config import Config; print(Config(options={'a': 1, 'b': 2}, lr=0.3).fingerprint())"
    env = os.environ | {"PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == Config(options={"b": 2, "a": 1}, lr=0.3).fingerprint()


def test_the_config_can_be_printed_and_read_back(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        read("--recipe", "cifar10", "--lr", "0.25", "--print_config")
    assert not stopped.value.code
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert load(path) == read("--recipe", "cifar10", "--lr", "0.25")


def test_every_number_has_a_limit():
    for name in ("lr", "momentum", "weight_decay", "label_smoothing", "warmup_epochs"):
        with pytest.raises(ValueError, match=f"{name} is -1"):
            Config(**{name: -1.0})
        with pytest.raises(ValueError, match=f"{name} is nan"):
            Config(**{name: math.nan})
