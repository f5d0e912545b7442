"""Inception of 2015-12-05 against torch-fidelity's, with the same random weights in both."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from models.fid.catalog import ENCODERS
from models.fid.inception import Inception, resize_tensorflow_1


@pytest.fixture(scope="module")
def fidelity() -> Iterator[types.ModuleType]:
    """torch-fidelity's file of the network, without the package's own imports, which need torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity is not installed")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["torch_fidelity"] = package
    try:
        yield importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Weights that keep activations of size one, and statistics of normalisation that are not those of a new layer."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        empty = Inception()
    state = empty.to_empty(device="cpu").state_dict()
    for name, tensor in state.items():
        if name.endswith("conv.weight"):
            fan_in = tensor[0].numel()
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
        elif name.endswith(("bn.weight", "running_var")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + 0.8)
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return state


@pytest.fixture(scope="module")
def inception(weights) -> nn.Module:
    with torch.device("meta"):
        network = Inception().eval().requires_grad_(False)
    network.load_state_dict(weights, assign=True)
    return network


@pytest.fixture(scope="module")
def peer(fidelity, weights, tmp_path_factory) -> nn.Module:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(weights, path)
    return fidelity.FeatureExtractorInceptionV3("peer", ["2048"], str(path))


@pytest.mark.parametrize("size", [28, 299])
def test_features_equal_torch_fidelitys(inception, peer, size):
    images = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    (wanted,) = peer(images)
    got = inception(images)
    assert wanted.std() > 0.01
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("size", [8, 28, 299, 512])
def test_the_resize_equals_torch_fidelitys(fidelity, size):
    peer = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")
    x = torch.rand(1, 2, size, size + 3, generator=torch.Generator().manual_seed(2)) * 255
    wanted = peer.interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    assert torch.allclose(resize_tensorflow_1(x, 299), wanted, atol=2e-3)


def test_the_resize_is_not_the_usual_one():
    """Pixel i of the larger picture looks at i * 2 / 4 of the smaller one: no half pixel is added."""
    assert resize_tensorflow_1(torch.tensor([[[[0.0, 4.0]]]]), 4)[0, 0, 0].tolist() == [0, 2, 4, 4]


def test_its_flops_are_those_that_planning_counts():
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = Inception().eval()
        images = torch.empty(1, 3, 299, 299)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    assert counter.get_total_flops() == pytest.approx(ENCODERS["inception"].flops, rel=0.01)
