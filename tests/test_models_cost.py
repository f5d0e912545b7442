import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.config import SP, DiTConfig, MuP
from models.cost import cost
from models.dit import DiT

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


def paper_config(size: str, patch: int) -> DiTConfig:
    width, depth, heads = SIZES[size]
    return DiTConfig(
        image_size=32,
        channels=4,
        num_classes=1000,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        learn_sigma=True,
    )


@pytest.mark.parametrize(
    ("size", "params"), [("S", 32_865_056), ("B", 130_315_808), ("L", 457_840_672), ("XL", 674_834_720)]
)
def test_trainable_parameters_equal_the_published_models(size: str, params: int) -> None:
    config = paper_config(size, 2)
    with torch.device("meta"):
        model = DiT(config, SP())
    assert cost(config).params_total == params
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == params
    assert cost(config).params_backbone == params - 1001 * config.width


@pytest.mark.parametrize(
    ("size", "patch", "giga_multiply_adds"),
    [("S", 8, 0.36), ("S", 4, 1.41), ("S", 2, 6.06), ("B", 2, 23.01), ("L", 2, 80.71), ("XL", 2, 118.64)],
)
def test_forward_flops_are_twice_the_papers_multiply_adds(size: str, patch: int, giga_multiply_adds: float) -> None:
    assert cost(paper_config(size, patch)).forward_flops / 2e9 == pytest.approx(giga_multiply_adds, rel=0.01)


CONFIGS = [
    DiTConfig(image_size=28, channels=1, num_classes=10, patch=4, width=16, depth=2, heads=1),
    DiTConfig(image_size=16, channels=3, num_classes=5, patch=2, width=48, depth=3, heads=4, learn_sigma=True),
    DiTConfig(
        image_size=8, channels=4, num_classes=1, patch=8, width=32, depth=1, heads=2, mlp_ratio=3, frequency_size=64
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_forward_flops_equal_counted_flops(config: DiTConfig, batch: int) -> None:
    model = DiT(config, MuP(base_width=16))
    x = torch.zeros(batch, config.channels, config.image_size, config.image_size)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, torch.rand(batch), torch.zeros(batch, dtype=torch.long))
    assert counter.get_total_flops() == batch * cost(config).forward_flops
    assert cost(config).training_flops == 3 * cost(config).forward_flops


@pytest.mark.parametrize("config", CONFIGS)
def test_parameter_counts_equal_the_models(config: DiTConfig) -> None:
    model = DiT(config, SP())
    assert cost(config).params_total == sum(p.numel() for p in model.parameters())
    labels = model.y_embedder.embedding_table.weight.numel()
    assert cost(config).params_backbone == cost(config).params_total - labels


def test_matmul_parameters_weigh_adaln_once_per_image() -> None:
    config = CONFIGS[0]
    model = DiT(config, SP())
    per_image = [p.numel() for n, p in model.named_parameters() if p.dim() == 2 and ("t_emb" in n or "adaLN" in n)]
    per_token = [
        p.numel()
        for n, p in model.named_parameters()
        if p.dim() == 2 and not any(part in n for part in ("t_emb", "adaLN", "y_emb"))
    ]
    assert config.tokens == cost(config).tokens == 49
    assert cost(config).params_matmul == pytest.approx(sum(per_token) + sum(per_image) / 49, rel=1e-12)


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ValueError, match=r"no cost for str; wanted one of \['DiTConfig'\]"):
        cost("dit")  # type: ignore[arg-type]
