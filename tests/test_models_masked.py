"""The masked image model: tokens, masks, decoding, codebooks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.codebook import Codebook, k_means, write
from models.config import SP, RectifiedFlow
from models.configs.masked import SHIPPED, MaskedConfig
from models.families import build
from models.masked import MaskedTokens, MaskedTransformer, decode, masked_share, patches
from models.objectives import build_objective
from models.samplers import sample


@pytest.fixture(scope="module")
def model() -> MaskedTransformer:
    built = build(MaskedConfig.example(width=16, depth=1, head_dim=8, channels=3), SP(), 0)
    assert isinstance(built, MaskedTransformer)
    return built


def test_images_of_codes_have_those_codes(model: MaskedTransformer) -> None:
    tokens = torch.randint(0, 24, (5, 16), generator=torch.Generator().manual_seed(0))
    images = model.image_of(tokens)
    assert images.shape == (5, 3, 8, 8)
    assert torch.equal(model.tokens_of(images), tokens)
    assert torch.equal(patches(images, 2), model.codebook.patches[tokens])


def test_the_mask_grows_with_t_and_the_loss_is_of_masked_tokens_alone(model: MaskedTransformer) -> None:
    assert masked_share(torch.tensor([0.0, 1 / 3, 1.0])) == pytest.approx(torch.tensor([0.0, 0.5, 1.0]))
    seen: list[Tensor] = []

    class Spy:
        config, tokens_of = model.config, staticmethod(model.tokens_of)

        def __call__(self, tokens: Tensor, y: Tensor) -> Tensor:
            seen.append(tokens)
            logits = torch.zeros(*tokens.shape, 24)
            right = torch.nn.functional.one_hot(true, 24) * 30.0
            return torch.where((tokens == 24)[..., None], logits, -right)  # wrong wherever nothing is masked

    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, 3, 3, 8, 8, generator=generator)
    true, t = model.tokens_of(x), torch.tensor([1e-6, 0.5, 1.0])
    loss = MaskedTokens().loss(Spy(), x, torch.zeros(3, dtype=torch.long), t, noise)
    assert (seen[0] == 24).sum(1).tolist() == [1, 12, 16]
    assert loss == pytest.approx(torch.full((3,), torch.tensor(24.0).log().item()))


@pytest.mark.parametrize("steps", [1, 12])
def test_decoding_fills_every_token_and_finds_what_the_model_is_sure_of(model: MaskedTransformer, steps: int) -> None:
    wanted = torch.arange(16) % 24
    calls = []

    class Sure:
        config, image_of = model.config, staticmethod(model.image_of)

        def __call__(self, tokens: Tensor, y: Tensor) -> Tensor:
            calls.append(int((tokens == 24).sum(1)[0]))
            return torch.nn.functional.one_hot(wanted, 24).expand(len(y), -1, -1) * 100.0

    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4)
    images = decode(
        Sure(), y, y, steps=steps, guidance=1.0, normal=lambda like: torch.randn(like.shape, generator=generator)
    )
    assert torch.equal(model.tokens_of(images), wanted.expand(4, -1))
    assert len(calls) == steps
    assert calls[0] == 16
    assert calls == sorted(calls, reverse=True)


def test_samplers_are_of_images_or_of_tokens(model: MaskedTransformer) -> None:
    noise, y = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    settings = {"steps": 2, "guidance": 1.5, "null_class": 10, "generator": torch.Generator()}
    with pytest.raises(ValueError, match=r"'heun' for a model that predicts tokens; wanted .*parallel-decoding"):
        sample(model, MaskedTokens(), noise, y, sampler="heun", **settings)
    with pytest.raises(ValueError, match=r"'parallel-decoding' for a model that predicts images; wanted one of .*ddpm"):
        sample(model, build_objective(RectifiedFlow()), noise, y, sampler="parallel-decoding", **settings)
    assert sample(model, MaskedTokens(), noise, y, sampler="parallel-decoding", **settings).shape == noise.shape


def test_k_means_comes_to_rest_with_every_centre_the_mean_of_what_is_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([[-1.0, -1.0], [0.0, 1.0], [1.0, -0.5]]).repeat(50, 1)
    x = x + 0.1 * torch.randn(150, 2, generator=generator)
    found = k_means(x, codes=5)
    book = Codebook(codes=5, values=2)
    book.patches.copy_(found)
    owner = book.nearest(x)
    assert torch.equal(owner, torch.cdist(x, found).argmin(1))
    assert len(owner.unique()) == 5
    for code in range(5):
        assert found[code].tolist() == pytest.approx(x[owner == code].mean(0).tolist(), abs=1e-5)
    assert torch.equal(found, k_means(x, codes=5)), "the same at every call"
    with pytest.raises(ValueError, match="1 different patches for 2 codes"):
        k_means(torch.zeros(5, 2), codes=2)


def test_codebooks_come_from_the_datasets_folder_or_with_ditlaw(tmp_path: Path) -> None:
    book, name = Codebook(codes=512, values=16), "fashion-mnist-p4-c512.safetensors"
    book.equip(tmp_path, name, SHIPPED[name])
    assert book.patches.min() >= -1.001
    own = write(tmp_path / name, torch.zeros(512, 16))
    book.equip(tmp_path, name, own)
    assert not book.patches.any()
    with pytest.raises(ValueError, match=rf"{name} has sha256 {own}; wanted {SHIPPED[name]}, whose tokens"):
        book.equip(tmp_path, name, SHIPPED[name])
    with pytest.raises(ValueError, match=r"no codebook moons-p4-c512.safetensors in .*; run: ditlaw data codebook"):
        book.equip(tmp_path, "moons-p4-c512.safetensors", own)
    with pytest.raises(ValueError, match=r"holds patches \[512, 16\]; wanted \[512, 4\]"):
        Codebook(codes=512, values=4).equip(tmp_path, name, own)


def test_which_codebook_it_is_is_part_of_the_configuration() -> None:
    data = {"image_size": 28, "channels": 1, "num_classes": 10, "width": 16, "depth": 1, "heads": 2}
    shipped = MaskedConfig(dataset="fashion-mnist", patch=4, **data)
    assert shipped.codebook_sha256 == SHIPPED[shipped.codebook]
    assert shipped == MaskedConfig(dataset="fashion-mnist", patch=4, codebook_sha256=shipped.checksum, **data)
    with pytest.raises(ValueError, match=r"^codebook_sha256 is not given, and no fashion-mnist-p7-c512.safetensors"):
        MaskedConfig(dataset="fashion-mnist", patch=7, **data)
    with pytest.raises(ValueError, match=r"^codebook_sha256 has 3 characters"):
        MaskedConfig(dataset="fashion-mnist", patch=4, codebook_sha256="abc", **data)
