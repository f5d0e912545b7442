"""What ditlaw's training step is measured against: a DiT and a loop as one writes them first, from the paper.

The model has the parameters and the arithmetic of `models.dit.DiT`. `reference_step` is the recipe of the paper's
released code in our words: TF32 products, eager, one optimizer call, an average kept parameter by parameter, the loss
read in every step. `plain_step` is what a careful user makes of it: bf16 autocast and torch.compile (on a GPU), fused
AdamW, a foreach average.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from models.blocks import positions_2d
from models.config import SP, RectifiedFlow
from models.configs.dit import DiTConfig
from models.ema import Ema
from models.families import build
from models.objectives import build_objective
from orchestrator.training.engine import LossModule

DECAY = 0.9999
"""Of the average."""
Step = Callable[[Tensor, Tensor], Tensor]
"""One optimizer step on images in [-1, 1] and labels; the loss, perhaps not waited for."""


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


class _Block(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_hidden
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = _Attention(width, config.heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class PlainDiT(nn.Module):
    """A DiT with convolution, nn.LayerNorm and nn.GELU, a SiLU a block."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.patch = nn.Conv2d(config.channels, width, config.patch, stride=config.patch)
        self.register_buffer("positions", positions_2d(config.image_size // config.patch, width))
        size = config.frequency_size
        self.time = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(config.num_classes + 1, width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.readout = nn.Linear(width, config.patch**2 * config.channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        half = self.config.frequency_size // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = 1000 * t[:, None] * rates
        c = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1)) + self.label(y)
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        out = self.readout(self.norm(tokens) * (1 + scale) + shift)
        side, p = self.config.image_size // self.config.patch, self.config.patch
        out = out.reshape(len(x), side, side, p, p, self.config.channels)
        return torch.einsum("nhwpqc->nchpwq", out).reshape(x.shape)


def _loss(model: nn.Module, x: Tensor, y: Tensor, config: DiTConfig) -> Tensor:
    """Rectified flow's, with label dropout."""
    t = torch.rand(len(x), device=x.device)
    noise = torch.randn_like(x)
    y = torch.where(torch.rand(len(x), device=x.device) < config.class_dropout, config.num_classes, y)
    mixed = torch.lerp(x, noise, t[:, None, None, None])
    return F.mse_loss(model(mixed, t, y).float(), noise - x)


def reference_step(config: DiTConfig, device: torch.device) -> Step:
    """The released code's recipe."""
    model = PlainDiT(config).to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)

    def step(x: Tensor, y: Tensor) -> Tensor:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        loss = _loss(model, x, y, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for held, parameter in zip(average.parameters(), model.parameters(), strict=True):
                held.mul_(DECAY).add_(parameter, alpha=1 - DECAY)
        loss.item()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return loss.detach()

    return step


def plain_step(config: DiTConfig, device: torch.device) -> Step:
    """bf16 autocast and torch.compile on a GPU; fused AdamW and a foreach average anywhere."""
    model = PlainDiT(config).to(device)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0, fused=True)
    cuda = device.type == "cuda"
    loss_of = torch.compile(_loss) if cuda else _loss

    def step(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=cuda):
            loss: Tensor = loss_of(model, x, y, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(average, [parameter.detach() for parameter in model.parameters()], 1 - DECAY)
        return loss.detach()

    return step


def bare_step(config: DiTConfig, device: torch.device) -> Step:
    """ditlaw's own model, loss and arithmetic without DeepSpeed: bf16 weights with fp32 masters and compiled on a GPU.

    What DeepSpeed costs is this step's speed over an attempt's.
    """
    cuda, objective = device.type == "cuda", build_objective(RectifiedFlow())
    model = build(config, SP(), 0).to(device)
    masters = [parameter.detach().float().clone().requires_grad_() for parameter in model.parameters()]
    module = LossModule(model.to(torch.bfloat16) if cuda else model, objective.loss)
    weights = [parameter.detach() for parameter in model.parameters()]
    sums = [torch.zeros_like(master) for master in masters]
    for master, gradient in zip(masters, sums, strict=True):
        master.grad = gradient
    average = Ema(masters, 0.1)
    optimizer = torch.optim.AdamW(masters, lr=1e-4, betas=(0.9, 0.99), weight_decay=0, fused=True)
    seen = 0
    if cuda:
        module.compile(dynamic=False)

    def step(x: Tensor, y: Tensor) -> Tensor:
        nonlocal seen
        draws = torch.rand(2, len(x), device=x.device)
        y = torch.where(draws[0] < config.class_dropout, config.num_classes, y)
        loss: Tensor = module(x, y, objective.draw_t(draws[1]), torch.randn_like(x))
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        torch._foreach_copy_(sums, gradients)
        module.zero_grad()
        optimizer.step()
        torch._foreach_copy_(weights, masters)
        average.update(masters, seen, seen + len(x))
        seen += len(x)
        return loss.detach()

    return step


def loaded(images: Tensor, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images in [-1, 1] from a DataLoader, epoch after epoch."""
    loader = DataLoader(TensorDataset(images, labels), batch_size=batch, shuffle=True, drop_last=True)
    while True:
        for x, y in loader:
            yield x.float() / 127.5 - 1, y


def held(images: Tensor, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images in [-1, 1] where the images are: no loader in the way."""
    while True:
        chosen = torch.randint(len(images), (batch,), device=images.device)
        yield images[chosen].float() / 127.5 - 1, labels[chosen]
