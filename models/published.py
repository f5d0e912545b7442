"""The published sizes and what they cost, as a table."""

from __future__ import annotations

from models.config import preset
from models.configs.dit import DiTConfig
from models.cost import cost

PAPER_GIGA_MULTIPLY_ADDS = {
    "S/8": 0.36, "S/4": 1.41, "S/2": 6.06,
    "B/8": 1.42, "B/4": 5.56, "B/2": 23.01,
    "L/8": 5.01, "L/4": 19.70, "L/2": 80.71,
    "XL/8": 7.39, "XL/4": 29.05, "XL/2": 118.64,
}  # fmt: skip
"""The "Gflops" of the DiT paper (Peebles & Xie 2022, arXiv 2212.09748, table 4), which are multiply-adds."""


def preset_table() -> str:
    """The presets' parameters and work as a Markdown table: 32 x 32 x 4 latents, 1000 classes, learned variance."""
    lines = [
        "| preset | parameters | backbone | tokens | forward, 10^9 multiply-adds | in the paper | "
        "training, 10^9 FLOPs a sample |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in DiTConfig.presets:
        size = cost(preset(name, learn_sigma=True))
        lines.append(
            f"| DiT-{name} | {size.params_total:,} | {size.params_backbone:,} | {size.tokens} "
            f"| {size.forward_flops / 2e9:.2f} | {PAPER_GIGA_MULTIPLY_ADDS[name]:.2f} "
            f"| {size.training_flops / 1e9:.2f} |"
        )
    return "\n".join(lines)
