"""Weights on disk: the authors' checkpoints give the authors' logits, ours are restored completely, and nothing else
loads."""

import errno
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import released_code
import torch
from torch import nn
from torch.nn.utils import prune

import saprof
from saprof.models import checkpoints
from saprof.models.checkpoints import official_to_ours

FAMILIES = ("pairwise", "patchwise")
TINY = {"channels": (32, 64), "blocks": (1, 1), "footprints": (3, 3), "num_classes": 5}
TINY_OFFICIAL = {"blocks": (1, 1), "channels": (32, 64), "sizes": (3, 3), "classes": 5}


def tiny(family="pairwise", **overrides):
    return saprof.create_model(f"san10_{family}", **TINY | overrides)


def tiny_weights(family="pairwise"):
    return {f"module.{key}": value for key, value in released_code.weights(family, **TINY_OFFICIAL).items()}


def training_checkpoint(weights):
    """A checkpoint of the released training script, which holds more than weights."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {
        "epoch": 100,
        "state_dict": weights,
        "optimizer": optimizer,
        "scheduler": {"last_epoch": 100, "_last_lr": [0.0]},
        "top1_val": np.float64(77.1),
        "top5_val": np.float32(93.5),
        "samples": np.int64(1281167),
    }


def copy(weights):
    return {key: value.clone() for key, value in weights.items()}


def assert_equal(ours, theirs):
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype
        assert torch.equal(value, theirs[key]), key


def refusal(action, *words):
    """The sentence of the ValueError that `action` raises: one line, with these words."""
    with pytest.raises(ValueError, match=r"\A[^\n\x1b]*\Z") as caught:
        action()
    message = str(caught.value)
    assert ". " not in message
    for word in words:
        assert str(word) in message
    return message


@pytest.mark.parametrize(
    ("family", "prefix", "zipped"),
    [
        ("pairwise", "module.", True),
        ("pairwise", "", False),
        ("patchwise", "module.", False),
        ("patchwise", "", True),
    ],
    ids=lambda value: {"": "bare", "module.": "parallel", True: "zip", False: "legacy"}.get(value, value),
)
def test_a_released_checkpoint_gives_the_released_logits(family, prefix, zipped, tmp_path):
    weights = released_code.weights(family, released_code.BLOCKS[10])
    path = tmp_path / "train_epoch_100.pth"
    content = training_checkpoint({prefix + key: value for key, value in weights.items()})
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = saprof.create_model(f"san10_{family}", backend="unfold").double()
    assert saprof.load_official(model, path) is model

    image = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = released_code.network(weights, image)
        assert 0.1 < expected.std() < 10
        torch.testing.assert_close(model.eval()(image), expected, rtol=1e-10, atol=1e-10)
        expected = released_code.network(weights, image, training=True)
        torch.testing.assert_close(model.train()(image), expected, rtol=1e-10, atol=1e-10)
    for key, value in weights.items():  # the running statistics changed in the same way
        torch.testing.assert_close(model.state_dict()[official_to_ours(key)], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["the loaded file", "its state dict"])
def test_a_loaded_checkpoint_will_do(form):
    weights = tiny_weights()
    model = tiny().double()
    saprof.load_official(model, training_checkpoint(weights) if form == "the loaded file" else weights)
    assert_equal({official_to_ours(key): model.state_dict()[official_to_ours(key)] for key in weights},
                 {official_to_ours(key): value for key, value in weights.items()})  # fmt: skip


def test_checkpoints_of_an_older_numpy_load(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(training_checkpoint(tiny_weights()), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core" in content
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    saprof.load_official(tiny(), path)


@pytest.mark.parametrize(
    ("depth", "family", "entries"),
    [
        (10, "pairwise", 368),
        (10, "patchwise", 348),
        (15, "pairwise", 533),
        (15, "patchwise", 503),
        (19, "pairwise", 665),
        (19, "patchwise", 627),
    ],
)
def test_every_released_entry_has_its_place(depth, family, entries):
    shapes = released_code.shapes(family, released_code.BLOCKS[depth])
    assert len(shapes) == entries
    with torch.device("meta"):
        model = saprof.create_model(f"san{depth}_{family}")
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {official_to_ours(f"module.{key}"): shape for key, shape in shapes.items()} == ours
    assert {official_to_ours(key) for key in shapes} == ours.keys()


# what does not load


class Trap:
    """Pickles as a call that leaves a marker."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def damage(content, path):
    """Files that are not checkpoints, by the words of their errors."""
    marker = path.with_name("marker")
    yield "missing key", without(content, "module.fc.bias"), ["head.bias is missing"]
    yield "extra key", add(content, "module.fc.scale", torch.ones(5)), ["head.scale is unexpected"]
    yield (
        "another architecture",
        add(content, "module.fc.weight", torch.ones(1000, 64)),
        ["head.weight is (1000, 64), expected (5, 64)"],
    )
    yield "integers", add(content, "module.fc.bias", torch.ones(5).int()), ["head.bias is torch.int32, expected torch"]
    yield "no data", add(content, "module.fc.bias", torch.ones(5, device="meta")), ["head.bias has no data"]
    yield "both names", add(content, "fc.bias", torch.ones(5)), ["twice"]
    yield "another family", {"state_dict": tiny_weights("patchwise")}, ["expected", " more"]
    yield "no state dict", {"state_dict": [1, 2]}, ["no state dict"]
    yield "no tensors", add(content, "module.fc.bias", 3), ["no state dict"]
    yield "no names", {"state_dict": {7: torch.ones(5)}}, ["no state dict"]
    yield "empty dictionary", {}, ["is missing"]
    yield "a list", [torch.ones(5)], ["holds a list; expected a dictionary"]
    yield (
        "a system call",
        {"state_dict": Trap(os.mkdir, str(marker))},
        ["it holds posix.mkdir, and nothing but tensors"],
    )
    yield "a shell command", content | {"epoch": Trap(os.system, f"touch {marker}")}, ["it holds posix.system"]
    yield "evaluated code", add(content, "x", Trap(eval, f"open({str(marker)!r}, 'w').close()")), ["it holds eval"]


def without(content, key):
    return content | {"state_dict": {k: v for k, v in content["state_dict"].items() if k != key}}


def add(content, key, value):
    return content | {"state_dict": content["state_dict"] | {key: value}}


DAMAGES = [what for what, *_ in damage(training_checkpoint(tiny_weights()), Path("x"))]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_changes_nothing(what, zipped, tmp_path):
    path = tmp_path / "bad.pth"
    _, content, words = next(d for d in damage(training_checkpoint(tiny_weights()), path) if d[0] == what)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = tiny()
    before = copy(model.state_dict())
    refusal(lambda: saprof.load_official(model, path), path, *words)
    assert_equal(model.state_dict(), before)
    assert not path.with_name("marker").exists()
    refusal(lambda: saprof.load(path), path)
    assert not path.with_name("marker").exists()


@pytest.mark.parametrize("what", [what for what in DAMAGES if what in ("a system call", "a shell command")])
def test_the_traps_would_work(what, tmp_path):
    _, content, _ = next(d for d in damage(training_checkpoint(tiny_weights()), tmp_path / "bad.pth") if d[0] == what)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=False)
    assert (tmp_path / "marker").exists()


def test_a_plain_pickle_is_not_run(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(Trap(os.system, f"touch {tmp_path / 'marker'}"), protocol=2))
    refusal(lambda: saprof.load_official(tiny(), path), path)
    refusal(lambda: saprof.load(path), path)
    assert not (tmp_path / "marker").exists()


FILES = {
    "empty": b"",
    "text": b"<html>404: Not Found</html>\n",
    "a zip of nothing": b"PK\x05\x06" + bytes(18),
    "noise": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("load", ["load", "load_official"])
@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_a_file_that_is_no_checkpoint(content, load, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    refusal(lambda: read(load, path), f"cannot read checkpoint {path}")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_never_loads(zipped, tmp_path):
    path = tmp_path / "cut.pth"
    torch.save(training_checkpoint(tiny_weights()), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    model = tiny()
    before = copy(model.state_dict())
    for length in [1, 2, 4, 7, 100, 130, 1000, *range(2000, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refusal(lambda: saprof.load_official(model, path), f"cannot read checkpoint {path}")
    assert_equal(model.state_dict(), before)


@pytest.mark.parametrize("load", ["load", "load_official"])
def test_nothing_to_read(load, tmp_path):
    refusal(lambda: read(load, tmp_path / "none.pth"), tmp_path / "none.pth", "No such file")
    refusal(lambda: read(load, tmp_path), tmp_path, "Is a directory")


def read(load, path):
    return saprof.load(path) if load == "load" else saprof.load_official(tiny(), path)


def test_the_two_formats_are_told_apart(tmp_path):
    ours, official = tmp_path / "ours.pt", tmp_path / "official.pth"
    saprof.save(tiny(), ours)
    torch.save(training_checkpoint(tiny_weights()), official)
    refusal(lambda: saprof.load_official(tiny(), ours), ours, "no state dict")
    refusal(lambda: saprof.load(official), official, "load_official")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"saprof": checkpoints.FORMAT + 1}, "not a saprof checkpoint of format"),
        ({"saprof": torch.ones(3)}, "not a saprof checkpoint"),
        ({"architecture": "VGG"}, "not a saprof checkpoint"),
        ({"architecture": []}, "not a saprof checkpoint"),
        ({"config": None}, "not a saprof checkpoint"),
        ({"config": {"depth": 10}}, "unknown option of SAN 'depth'; expected 'family'"),
        ({"config": {"blocks": "many"}}, "blocks is 'many'"),
        ({"config": {7: 7}}, "unknown option of SAN 7"),
        ({"weights": None}, "no state dict"),
        ({"weights": {}}, "is missing"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_file_of_ours_that_was_tampered_with(changes, words, tmp_path):
    path = tmp_path / "model.pt"
    saprof.save(tiny(), path)
    torch.save(torch.load(path) | changes, path)
    refusal(lambda: saprof.load(path), path, words)


# our own files

MODELS = {
    "pairwise": ("san10_pairwise", {}),
    "patchwise": ("san10_patchwise", {}),
    "stand-alone": ("san10_stand_alone", {"heads": 4}),
    "sizes of a boundary": ("san10_pairwise", {"footprints": (3, 4), "boundary": "circular"}),
    "irregular": (
        "san10_pairwise",
        {
            "footprints": (
                saprof.Footprint.disk(5, boundary="exclude"),
                saprof.Footprint.from_offsets([(2, 1), (0, 0), (-3, 4)], boundary="replicate"),
            )
        },
    ),
    "as text": ("san10_patchwise", {"footprints": ("cross:5 boundary=zero", "dilated:3x2")}),
    "variant": ("san10_pairwise_concatenation", {"mapping": "lrlrl", "transformations": "shared_phi_psi"}),
    "shared": ("san10_pairwise", {"transformations": "shared", "position": "absolute", "share": 2}),
    "reductions": ("san10_patchwise_clique_product", {"relation_reduction": 8, "value_reduction": 2, "mapping": "l"}),
    "backend": ("san10_pairwise_dot_product", {"backend": "unfold", "position": "none"}),
}


@pytest.mark.parametrize(("name", "overrides"), MODELS.values(), ids=MODELS.keys())
def test_a_san_comes_back_whole(name, overrides, tmp_path):
    assert_comes_back(saprof.create_model(name, **TINY | overrides), tmp_path / "model.pt")


@pytest.mark.parametrize("footprint", [3, 5])
def test_a_resnet_comes_back_whole(footprint, tmp_path):
    model = saprof.create_model("resnet26", channels=(8, 16), blocks=(1, 2), footprint=footprint, num_classes=5)
    assert_comes_back(model, tmp_path / "model.pt")


def test_the_dtype_comes_back(tmp_path):
    assert_comes_back(tiny().double(), tmp_path / "model.pt")


def assert_comes_back(model, path):
    image = torch.randn(2, 3, 32, 32, dtype=next(model.parameters()).dtype)
    model(image)  # in training mode: the running statistics are worth saving, too
    saprof.save(model, str(path))
    loaded = saprof.load(path)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert_equal(loaded.state_dict(), model.state_dict())
    assert [p.requires_grad for p in loaded.parameters()] == [True] * len(list(model.parameters()))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(image), model.eval()(image))
    loaded.train()(image).sum().backward()


def test_a_file_of_ours_holds_no_objects(tmp_path):
    saprof.save(tiny(), tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content.keys() == {"saprof", "architecture", "config", "weights"}


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(broken, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    model = tiny()
    saprof.save(model, path)
    before = path.read_bytes()
    nn.init.zeros_(model.head.weight)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if broken == "write":
        monkeypatch.setattr(torch, "save", fail)
    elif broken == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        saprof.save(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    saprof.save(model, path)
    assert not saprof.load(path).head.weight.any()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["in a file", "in no folder", "on a folder"])
def test_where_nothing_can_be_written(place, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    path = tmp_path / {"in a file": "file/model.pt", "in no folder": "none/model.pt", "on a folder": "folder"}[place]
    with pytest.raises(OSError, match=r"Not a directory|No such file|Is a directory") as caught:
        saprof.save(tiny(), path)
    assert caught.value.filename == str(path)
    assert str(path) in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_only_what_can_come_back_is_saved(tmp_path):
    path = tmp_path / "model.pt"
    refusal(lambda: saprof.save(nn.Sequential(tiny()), path), "cannot save a Sequential; expected a SAN, ResNet")
    refusal(lambda: saprof.save(torch.compile(tiny()), path), "cannot save a OptimizedModule")
    refusal(lambda: saprof.save(tiny().to("meta"), path), "meta device")
    assert not path.exists()


# what load would not give back


def _put(path, make):
    def change(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make(model.get_submodule(path)))

    return change


def _set(path, name, value):
    return lambda model: setattr(model.get_submodule(path), name, value)


def _reorder(model):
    model.stem.add_module("1", model.stem._modules.pop("1"))


BLOCK = "stages.0.blocks.0"
CHANGED = {
    "activation": (_put(f"{BLOCK}.attention.gamma.1", lambda _: nn.GELU()), "gamma.1 is a GELU; expected a ReLU"),
    "slope": (_put("stem.2", lambda _: nn.LeakyReLU(0.3)), "stem.2 is a LeakyReLU; expected a ReLU"),
    "epsilon": (_set(f"{BLOCK}.norm_in", "eps", 1e-3), f"{BLOCK}.norm_in has eps=0.001; expected 1e-05"),
    "momentum": (_set("stages.1.norm", "momentum", None), "stages.1.norm has momentum=None; expected 0.1"),
    "stride": (_set("stem.0", "stride", (2, 2)), "stem.0 has stride=(2, 2); expected (1, 1)"),
    "head": (_put("head", lambda h: nn.Linear(h.in_features, 7)), "head.weight is (7, 64), expected (5, 64)"),
    "no head": (_put("head", lambda _: nn.Identity()), "head.weight is missing"),
    "dropout": (_put("head", lambda h: nn.Sequential(nn.Dropout(), h)), "head.1.weight is unexpected"),
    "pool": (_put("pool", lambda _: nn.AdaptiveMaxPool2d(1)), "pool is a AdaptiveMaxPool2d; expected a AdaptiveAvg"),
    "another stage": (lambda m: m.stages.append(nn.Identity()), "stages.2 is unexpected"),
    "buffer": (lambda m: m.register_buffer("scale", torch.ones(1)), "scale is unexpected"),
    "lost buffer": (
        lambda m: m.register_buffer("scale", torch.ones(1), persistent=False),
        "SAN has an unexpected scale",
    ),
    "parameter": (
        lambda m: m.head.register_parameter("scale", nn.Parameter(torch.ones(1))),
        "head.scale is unexpected",
    ),
    "no running statistics": (
        _put("stem.1", lambda n: nn.BatchNorm2d(n.num_features, track_running_stats=False)),
        "stem.1.running_mean is missing",
    ),
    "hook": (lambda m: m.head.register_forward_hook(lambda *_: None), "head has hooks that run with its forward"),
    "hook before": (lambda m: m.register_forward_pre_hook(lambda *_: None), "SAN has hooks that run"),
    "forward": (_set("head", "forward", torch.tanh), "head has its own forward; expected that of its class"),
    "forward of the model": (_set("", "forward", torch.tanh), "SAN has its own forward; expected that of its class"),
    "method": (_set(f"{BLOCK}.attention", "alpha", torch.add), "attention has its own alpha"),
    "parametrization": (lambda m: nn.utils.parametrizations.weight_norm(m.head), "head.weight is missing"),
    "pruning": (lambda m: prune.identity(m.head, "weight"), "head.weight is missing"),
    "tied modules": (
        lambda m: setattr(m.get_submodule(f"{BLOCK}.attention"), "psi", m.get_submodule(f"{BLOCK}.attention.phi")),
        "attention.phi.weight and stages.0.blocks.0.attention.psi.weight are one tensor; expected one each",
    ),
    "tied weights": (
        lambda m: setattr(
            m.get_submodule(f"{BLOCK}.attention.psi"), "bias", m.get_submodule(f"{BLOCK}.attention.phi").bias
        ),
        "attention.phi.bias and stages.0.blocks.0.attention.psi.bias are one tensor; expected one each",
    ),
    "tied memory": (
        lambda m: setattr(
            m.get_submodule(f"{BLOCK}.attention.psi").weight,
            "data",
            m.get_submodule(f"{BLOCK}.attention.phi").weight.data,
        ),
        "attention.phi.weight and stages.0.blocks.0.attention.psi.weight are one tensor; expected one each",
    ),
    "footprint": (
        _set(f"{BLOCK}.attention", "footprint", saprof.Footprint.cross(3)),
        "attention has footprint=cross:3; expected square:3",
    ),
    "backend": (_set(f"{BLOCK}.attention", "backend", "unfold"), "attention has backend=unfold; expected auto"),
    "relation": (
        _set(f"{BLOCK}.attention", "relation", saprof.operators.pairwise_summation),
        f"{BLOCK}.attention has relation=pairwise_summation; expected pairwise_subtraction",
    ),
    "config": (_set("", "config", saprof.SANConfig(**TINY | {"boundary": "zero"})), "footprint=square:3; expected squ"),
    "order": (_reorder, "stem has its modules in another order"),
    "sparse": (_put("head", lambda h: _sparse(h)), "head has another kind of weight"),
    "complex": (
        _set("head", "bias", nn.Parameter(torch.zeros(5, dtype=torch.complex64))),
        "head.bias is torch.complex64",
    ),
}


def _sparse(linear):
    linear.weight = nn.Parameter(linear.weight.detach().to_sparse())
    return linear


@pytest.mark.parametrize("change", CHANGED)
def test_what_load_would_not_give_back_is_not_saved(change, tmp_path):
    act, words = CHANGED[change]
    path, model = tmp_path / "model.pt", tiny()
    path.write_bytes(b"the old file")
    act(model)
    message = refusal(lambda: saprof.save(model, path), words)
    assert message.startswith("cannot save this SAN, since load would ")
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["san10_patchwise", "resnet26"])
def test_a_network_for_inference_is_not_saved(name, tmp_path):
    model = saprof.create_model(name, **TINY if name.startswith("san") else {"num_classes": 5})
    refusal(lambda: saprof.save(saprof.optimize_for_inference(model), tmp_path / "model.pt"), "cannot save this")
    assert not any(tmp_path.iterdir())


def test_a_subclass_is_not_saved(tmp_path):
    other = type("SAN", (saprof.SAN,), {})(tiny().config)
    refusal(lambda: saprof.save(other, tmp_path / "model.pt"), "cannot save a SAN; expected a SAN, ResNet, SASA or")


HARMLESS = {
    "evaluation": lambda m: m.eval(),
    "frozen": lambda m: m.requires_grad_(False),
    "half": lambda m: m.to(torch.bfloat16),
    "half of it": lambda m: m.head.half(),
    "channels last": lambda m: m.to(memory_format=torch.channels_last),
    "NaN": lambda m: m.head.weight.data.fill_(float("nan")),
    "view": lambda m: setattr(m.head, "bias", nn.Parameter(torch.arange(10.0)[::2])),
    "note": lambda m: setattr(m, "names_of_classes", ["a", "b"]),
    "compiled": lambda m: setattr(m, "_compiled_call_impl", m.forward),  # as m.compile() does, which takes seconds
    "gradients": lambda m: m.head(torch.zeros(2, 64)).sum().backward(),
    "backward hook": lambda m: m.head.register_full_backward_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_no_logits_is_saved(change, tmp_path):
    model = tiny()
    HARMLESS[change](model)
    saprof.save(model, tmp_path / "model.pt")
    loaded = saprof.load(tmp_path / "model.pt")
    for name, value in loaded.state_dict().items():
        theirs = model.state_dict()[name]
        assert value.dtype == theirs.dtype
        torch.testing.assert_close(value, theirs, rtol=0, atol=0, equal_nan=True)


# networks that the released weights do not fit, though their shapes do


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"relation": "summation"}, "relation is 'summation'; expected 'subtraction'"),
        ({"relation": "hadamard_product"}, "relation is 'hadamard_product'; expected 'subtraction'"),
        ({"boundary": "zero"}, "footprint is square:3 boundary=zero; expected a square that reflects"),
        ({"position": "absolute"}, "position is 'absolute'; expected 'relative'"),
    ],
    ids=lambda value: "",
)
def test_released_weights_are_of_one_relation(options, words):
    model = tiny(**options)
    before = copy(model.state_dict())
    refusal(lambda: saprof.load_official(model, tiny_weights()), words)
    assert_equal(model.state_dict(), before)


@pytest.mark.parametrize("change", ["activation", "stride", "forward", "tied weights", "footprint"])
def test_released_weights_are_for_the_network_as_built(change):
    act, words = CHANGED[change]
    model = tiny()
    act(model)
    before = copy(model.state_dict())
    refusal(lambda: saprof.load_official(model, tiny_weights()), words)
    assert_equal(model.state_dict(), before)
    other = tiny()
    other.stages[0].blocks[0].attention.backend = "unfold"  # computes the same
    saprof.load_official(other.double(), tiny_weights())


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda m: setattr(m, "config", None), "cannot save a SAN without its config"),
        (lambda m: setattr(m, "head", Counting(64, 5)), "cannot save a SAN whose state has head._extra_state"),
    ],
    ids=["config", "state"],
)
def test_a_network_that_cannot_be_described_is_not_saved(act, words, tmp_path):
    model = tiny()
    act(model)
    refusal(lambda: saprof.save(model, tmp_path / "model.pt"), words)
    assert not list(tmp_path.iterdir())


class Counting(nn.Linear):
    def get_extra_state(self):
        return {"calls": 1}


def test_numbers_of_numpy_in_a_config_are_saved(tmp_path):
    path = tmp_path / "model.pt"
    saprof.save(tiny(stem_stride=np.int64(1)), path)
    assert saprof.load(path).config.stem_stride == 1
