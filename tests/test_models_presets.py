"""Published sizes of the families have the parameters that were published, or differ by what the page says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.config import FAMILIES, preset_fields
from models.configs.text import TextShard
from models.configs.unet import CONDITION, UNetConfig
from models.cost import cost

LATENTS = {"image_size": 32, "channels": 4, "num_classes": 1000}
IMAGENET = {"image_size": 256, "channels": 3, "num_classes": 1000}


def preset(family: str, name: str, **fields: Any) -> Any:
    return FAMILIES[family](**{**preset_fields(FAMILIES[family], name), **fields})


def captions(tokens: int, pooled: int) -> dict[str, Any]:
    shard = TextShard(file="captions.safetensors", sha256="0" * 64, tokens=tokens, width=4096, pooled=pooled)
    return {"image_size": 128, "channels": 16, "num_classes": 1, "class_names": ("all",), "text": shard}


@pytest.mark.parametrize(
    ("family", "name", "data", "millions"),
    [
        # Bao et al. 2022, table 1.
        ("uvit", "S/2", LATENTS, 44),
        ("uvit", "M/2", LATENTS, 131),
        ("uvit", "L/2", LATENTS, 287),
        ("uvit", "H/2", LATENTS, 501),
        # Li & He 2025, table 6. The published code counts its fixed positions.
        ("jit", "B/16", IMAGENET, 131),
        ("jit", "L/16", IMAGENET, 459),
        ("jit", "H/16", IMAGENET, 953),
        ("jit", "B/32", {**IMAGENET, "image_size": 512}, 133),
    ],
)
def test_transformers_have_the_published_parameters(
    family: str, name: str, data: dict[str, Any], millions: int
) -> None:
    assert cost(preset(family, name, **data)).params_total / 1e6 == pytest.approx(millions, rel=0.02, abs=0.9)


def test_sd3_medium_and_flux_have_every_parameter_of_diffusers() -> None:
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel  # takes seconds

    with torch.device("meta"):
        sd3 = SD3Transformer2DModel(
            patch_size=2, in_channels=16, out_channels=16, num_layers=24, num_attention_heads=24, attention_head_dim=64,
            caption_projection_dim=1536, joint_attention_dim=4096, pooled_projection_dim=2048,
        )  # fmt: skip
        flux = FluxTransformer2DModel(guidance_embeds=True)
    ours = cost(preset("mmdit", "d24/2", qk_norm=False, **captions(154, 2048)))
    assert ours.params_total == sum(parameter.numel() for parameter in sd3.parameters()) == 2_028_328_000
    ours = cost(preset("flux", "12B/2", guidance=True, **captions(512, 768)))
    assert ours.params_total == sum(parameter.numel() for parameter in flux.parameters()) == 11_901_408_320


def test_sd3_s_ladder_goes_to_eight_thousand_million() -> None:
    sizes = [cost(preset("mmdit", f"d{depth}/2", **captions(154, 2048))).params_total for depth in (15, 18, 38)]
    assert [size / 1e9 for size in sizes] == pytest.approx([0.5, 0.86, 8.06], rel=0.02)


@pytest.mark.parametrize(("side", "millions"), [(64, 296), (128, 422), (256, 554)])
def test_adm_has_the_published_parameters_but_for_residual_resampling(side: int, millions: int) -> None:
    """ADM resamples within a residual block, which has a second convolution and a map of the condition, and gains."""
    config = preset("unet", f"ADM-{side}", image_size=side, channels=3, num_classes=1000, learn_sigma=True)
    assert isinstance(config, UNetConfig)
    resampled = [stage.outputs for stage in (*config.encoder, *config.decoder) if stage.resample]
    more = sum(9 * c**2 + c + CONDITION * config.width * 2 * c + 2 * c + 4 * c for c in resampled)
    assert (cost(config).params_total + more) / 1e6 == pytest.approx(millions, abs=0.6)
