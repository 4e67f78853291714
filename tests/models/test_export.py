"""Exported networks keep the batch and the size of the image dynamic, and compute what the network computes."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export

import saprof
from saprof.backends import Unsupported

TWO_STAGES = {
    "channels": (32, 64),
    "blocks": (1, 1),
    "footprints": (3, "disk:5"),
    "value_reduction": 2,
    "relation_reduction": 8,
    "share": 4,
}
NETWORKS = {
    "pairwise": ("san10_pairwise", TWO_STAGES),
    "pairwise-absolute": ("san10_pairwise", TWO_STAGES | {"position": "absolute", "boundary": "circular"}),
    "patchwise": ("san10_patchwise", TWO_STAGES | {"relation": "clique_product"}),
    "stand_alone": ("sasa_resnet26", {"channels": (16, 16), "blocks": (1, 1)}),
    "stand_alone-absolute": ("sasa_resnet26", {"channels": (16, 16), "blocks": (1, 1), "position": "absolute"}),
    "convolution": ("resnet26", {"channels": (16, 16), "blocks": (1, 1)}),
}
HOW = {"auto": {}, "unfold": {"attention": "composed", "backend": "unfold"}}


def network(name: str, how: str = "auto") -> nn.Module:
    torch.manual_seed(0)
    model, options = NETWORKS[name]
    options = options | (HOW[how] if name != "convolution" else {})
    return saprof.create_model(model, num_classes=10, **options).eval()


@pytest.mark.deep_unless(case=lambda name, how: how == "unfold" and name in ("pairwise", "patchwise"))
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_batch_height_and_width_stay_dynamic(name, how):
    net = network(name, how)
    blocks = name.startswith("stand_alone")  # the stem takes whole blocks of 4 × 4 pixels
    height, width = (4 * Dim(f"{axis}_blocks", min=4, max=64) if blocks else Dim.DYNAMIC for axis in "hw")
    program = export(net, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: Dim.DYNAMIC, 2: height, 3: width},))
    assert how == "auto" or not uses_saprof(program)
    for n, h, w in ((1, 32, 32), (3, 16, 44), (2, 24, 20)):
        images = torch.randn(n, 3, h, w)
        torch.testing.assert_close(program.module()(images), net(images))


def uses_saprof(program) -> bool:
    return any("saprof" in str(node.target) for node in program.graph.nodes)


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own
@torch.no_grad()
def test_decomposes_into_core_operators():
    net, images = network("pairwise", "unfold"), torch.randn(2, 3, 16, 16)
    program = export(net, (images,)).run_decompositions()
    torch.testing.assert_close(program.module()(images), net(images))


@pytest.fixture
def onnx(monkeypatch):
    """As inside torch.onnx.export."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)


@torch.no_grad()
def test_auto_exports_to_onnx_without_compiled_kernels(onnx):
    program = export(network("pairwise"), (torch.randn(2, 3, 16, 16),))
    assert not uses_saprof(program)


def test_a_compiled_backend_does_not_export_to_onnx(onnx):
    net = saprof.create_model("san10_pairwise", **TWO_STAGES, backend="numba").eval()
    with pytest.raises(Unsupported, match=r"ONNX has no operators for compiled kernels; only backend='unfold' exports"):
        net(torch.randn(1, 3, 16, 16))
