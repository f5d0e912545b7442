"""Our blocks give what diffusers' faithful modules give, with weights copied across."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.blocks import rotations_2d
from models.config import SP
from models.configs.flux import FluxConfig
from models.configs.mmdit import MMDiTConfig
from models.configs.unet import UNetConfig
from models.flux import SingleBlock
from models.mmdit import JointBlock, Stream
from models.unet import UNet

if TYPE_CHECKING:  # takes seconds to import: tests do it, in the one process that runs them
    from diffusers import UNet2DModel

WIDTH, HEADS = 32, 2


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def copied(ours: nn.Module, theirs: nn.Module) -> None:
    ours.load_state_dict(theirs.state_dict())


def join(ours: nn.Module, *theirs: nn.Module, order: Tensor | None = None) -> None:
    """Queries, keys and values in one map; `order` rearranges the outputs of queries and keys."""
    with torch.no_grad():
        for name in ("weight", "bias"):
            parts = [getattr(module, name) for module in theirs]
            if order is not None:
                parts[:2] = [part[order] for part in parts[:2]]
            getattr(ours, name).copy_(torch.cat(parts))


def copy_stream(ours: Stream, theirs: nn.Module, added: bool, order: Tensor | None = None) -> None:
    """The image's stream of a joint block, or the `added` one of the text."""
    attn, mlp, norm = (
        (theirs.attn, theirs.ff_context, theirs.norm1_context) if added else (theirs.attn, theirs.ff, theirs.norm1)
    )
    names = ("add_q_proj", "add_k_proj", "add_v_proj") if added else ("to_q", "to_k", "to_v")
    join(ours.attn.qkv, *(getattr(attn, name) for name in names), order=order)
    gains = (attn.norm_added_q, attn.norm_added_k) if added else (attn.norm_q, attn.norm_k)
    head = slice(None) if order is None else order[: WIDTH // HEADS]
    with torch.no_grad():
        for mine, gain in zip((ours.attn.q_norm, ours.attn.k_norm), gains, strict=True):
            mine.weight.copy_(gain.weight[head])
    copied(ours.adaLN_modulation[1], norm.linear)
    if not ours.read_only:
        copied(ours.attn.proj, attn.to_add_out if added else attn.to_out[0])
        copied(ours.mlp.fc1, mlp.net[0].proj)
        copied(ours.mlp.fc2, mlp.net[2])


def test_a_joint_block_is_that_of_stable_diffusion_3() -> None:
    from diffusers.models.attention import JointTransformerBlock

    config = MMDiTConfig.example(width=WIDTH, depth=2, head_dim=WIDTH // HEADS)
    x, text, condition = normal(2, 16, WIDTH, seed=1), normal(2, 5, WIDTH, seed=2), normal(2, WIDTH, seed=3)
    for last in (False, True):
        theirs = randomised(JointTransformerBlock(WIDTH, HEADS, WIDTH // HEADS, last, qk_norm="rms_norm")).eval()
        ours = JointBlock(config, qk_norm=True, branch=1.0, last=last)
        copy_stream(ours.image, theirs, added=False)
        copy_stream(ours.text, theirs, added=True)
        if last:  # there scale comes before shift
            with torch.no_grad():
                for parameter in ours.text.adaLN_modulation.parameters():
                    parameter.copy_(parameter.roll(WIDTH, dims=0))
        with torch.no_grad():
            wanted_text, wanted = theirs(x, text, condition)
            got, got_text = ours(x, text, torch.nn.functional.silu(condition))
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        if not last:
            torch.testing.assert_close(got_text, wanted_text, atol=1e-5, rtol=1e-5)


def rotary() -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Our rotation of a 4 x 4 image; theirs, of text and then image; and what our halves of a head are of theirs."""
    half = WIDTH // HEADS // 2
    rotation = rotations_2d(4, WIDTH // HEADS)
    still = torch.stack([torch.ones(5, half), torch.zeros(5, half)])
    cos, sin = torch.cat([still, rotation], dim=1).repeat_interleave(2, dim=-1).unbind(0)
    pairs = torch.cat([torch.arange(0, 2 * half, 2), torch.arange(1, 2 * half, 2)])
    order = torch.cat([pairs + head * 2 * half for head in range(HEADS)])
    return rotation, (cos, sin), order


def test_blocks_of_two_streams_and_of_one_are_those_of_flux() -> None:
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

    config = FluxConfig.example(width=WIDTH, depth=1, head_dim=WIDTH // HEADS)
    x, text, condition = normal(2, 16, WIDTH, seed=1), normal(2, 5, WIDTH, seed=2), normal(2, WIDTH, seed=3)
    rotation, theirs_rotation, order = rotary()
    active = torch.nn.functional.silu(condition)
    theirs = randomised(FluxTransformerBlock(WIDTH, HEADS, WIDTH // HEADS)).eval()
    ours = JointBlock(config, qk_norm=True, branch=1.0)
    copy_stream(ours.image, theirs, added=False, order=order)
    copy_stream(ours.text, theirs, added=True, order=order)
    with torch.no_grad():
        wanted_text, wanted = theirs(x, text, condition, image_rotary_emb=theirs_rotation)
        got, got_text = ours(x, text, active, rotation)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got_text, wanted_text, atol=1e-5, rtol=1e-5)

    alone = randomised(FluxSingleTransformerBlock(WIDTH, HEADS, WIDTH // HEADS)).eval()
    single = SingleBlock(config, 1.0)
    join(single.attn.qkv, alone.attn.to_q, alone.attn.to_k, alone.attn.to_v, order=order)
    with torch.no_grad():
        single.attn.q_norm.weight.copy_(alone.attn.norm_q.weight[order[: WIDTH // HEADS]])
        single.attn.k_norm.weight.copy_(alone.attn.norm_k.weight[order[: WIDTH // HEADS]])
    copied(single.fc1, alone.proj_mlp)
    copied(single.proj, alone.proj_out)
    copied(single.adaLN_modulation[1], alone.norm.linear)
    turned = torch.cat([rotation, torch.stack([torch.ones(5, 8), torch.zeros(5, 8)])], dim=1)
    with torch.no_grad():
        wanted_text, wanted = alone(x, text, condition, image_rotary_emb=theirs_rotation)
        got = single(torch.cat([x, text], dim=1), active, turned)
    torch.testing.assert_close(got[:, :16], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[:, 16:], wanted_text, atol=1e-5, rtol=1e-5)


def stages(theirs: UNet2DModel) -> Iterator[tuple[nn.Module, nn.Module | None, nn.Module | None]]:
    """Residual block, attention and resampling convolution of every stage, in order."""
    for side, blocks in (("down", theirs.down_blocks), ("mid", [theirs.mid_block]), ("up", theirs.up_blocks)):
        for block in blocks:
            attentions = list(getattr(block, "attentions", None) or [])
            samplers = getattr(block, f"{side}samplers", None) or [None]
            for index, resnet in enumerate(block.resnets):
                attention = attentions[index] if index < len(attentions) else None
                last = index == len(block.resnets) - 1 and samplers[0] is not None
                yield resnet, attention, samplers[0].conv if last else None


def test_the_unet_is_that_of_diffusers() -> None:
    from diffusers import UNet2DModel

    config = UNetConfig(
        image_size=8, channels=2, num_classes=4, width=16, depth=1, multipliers=(1, 2), attention=(4,), head_dim=8,
        groups=8, frequency_size=16,
    )  # fmt: skip
    theirs = randomised(
        UNet2DModel(
            sample_size=8, in_channels=2, out_channels=2, block_out_channels=(16, 32), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8, norm_num_groups=8, attn_norm_num_groups=8, resnet_time_scale_shift="scale_shift",
            num_class_embeds=5, flip_sin_to_cos=True, freq_shift=0, downsample_padding=1,
        )
    ).eval()  # fmt: skip
    ours = UNet(config, SP())
    copied(ours.x_embedder, theirs.conv_in)
    copied(ours.t_embedder.mlp[0], theirs.time_embedding.linear_1)
    copied(ours.t_embedder.mlp[2], theirs.time_embedding.linear_2)
    copied(ours.y_embedder.embedding_table, theirs.class_embedding)
    copied(ours.readout.norm, theirs.conv_norm_out)
    copied(ours.readout.conv, theirs.conv_out)
    for index, (resnet, attention, resample) in enumerate(stages(theirs)):
        residual = ours.stages[index].residual
        for mine, its in (("norm1", "norm1"), ("conv1", "conv1"), ("modulation", "time_emb_proj"), ("norm2", "norm2")):
            copied(getattr(residual, mine), getattr(resnet, its))
        copied(residual.conv2, resnet.conv2)
        if residual.shortcut is not None:
            copied(residual.shortcut, resnet.conv_shortcut)
        if attention is not None:
            mine = ours.stages[index].attention
            copied(mine.norm, attention.group_norm)
            join(mine.attn.qkv, attention.to_q, attention.to_k, attention.to_v)
            copied(mine.attn.proj, attention.to_out[0])
        if resample is not None:
            copied(ours.resamplers[str(index)], resample)
    assert index == len(ours.stages) - 1
    x, t, y = normal(3, 2, 8, 8, seed=1), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 2, 4])
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t, y), theirs(x, 1000 * t, y).sample, atol=1e-5, rtol=1e-5)
