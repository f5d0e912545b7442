"""Closed forms of cost as sums over the parts of a model, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from models.cost import Cost


@dataclass
class Tally:
    """Adds up what a model is made of. `uses` is how often an image goes through a part: its tokens, pixels, or 1."""

    weights: int = 0
    vectors: int = 0
    tables: int = 0
    """Parameters of embedding tables and learned positions, which the backbone is without."""
    multiply_adds: int = 0
    """Of weights, an image."""
    products: int = 0
    """Multiply-adds of q k^T and of its product with v, an image."""

    def linear(self, inputs: int, outputs: int, *, uses: int, bias: bool = True) -> None:
        """A matrix product."""
        self.weights += inputs * outputs
        self.multiply_adds += inputs * outputs * uses
        self.vectors += outputs if bias else 0

    def convolution(self, inputs: int, outputs: int, *, side: int, uses: int, frames: int = 1) -> None:
        """A square convolution over `frames` frames; `uses` are the pixels of its output."""
        self.weights += frames * side**2 * inputs * outputs
        self.multiply_adds += frames * side**2 * inputs * outputs * uses
        self.vectors += outputs

    def attention(self, queries: int, keys: int, width: int) -> None:
        """Logits and their product with the values."""
        self.products += 2 * queries * keys * width

    def timestep(self, frequency_size: int, width: int) -> None:
        """The two-layer MLP of a time."""
        self.linear(frequency_size, width, uses=1)
        self.linear(width, width, uses=1)

    def cost(self, tokens: int) -> Cost:
        """The sum; `tokens` are those of a sample."""
        backbone = self.weights + self.vectors
        return Cost(
            params_total=backbone + self.tables,
            params_backbone=backbone,
            params_matmul=self.multiply_adds / tokens,
            forward_flops=2.0 * (self.multiply_adds + self.products),
            tokens=tokens,
        )


def block_values(*, tokens: int, width: int, hidden: int, heads: int, joint: bool = False) -> int:
    """A bound of the numbers that one transformer block keeps of one stream for the backward pass.

    The stream, its norm and the modulated norm twice; queries, keys and values, normed, and joined with those of
    another stream; what attention gives; in and out of the MLP's non-linearity (of a gated one: its halves, theirs
    product); what the gates multiply; and the adaLN vectors.
    """
    return tokens * ((19 if joint else 16) * width + 2 * hidden + 4 * heads + 8) + 9 * width
