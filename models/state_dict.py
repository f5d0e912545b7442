"""Published checkpoints: the state dicts of facebookresearch/DiT and willisma/SiT, onto ours and back.

Names are the same; two things differ. The published patch embedding is a convolution, [width, channels, patch, patch],
and ours its matrix, [width, channels patch patch]. The published positions are saved, as `pos_embed` [1, tokens,
width]; ours are fixed and not saved, and learned ones are `positions` [tokens, width].

Times differ too. Our models take t in [0, 1] and multiply it by 1000, with t = 1 as noise. To compare outputs:

- DiT takes integer timesteps 0..999, of which 999 is noise, as they are: `time_of_dit`. It predicts the noise.
  `DiTNoise` wraps such a model for our `DDPM` objective and the samplers, whose step k is DiT's timestep k - 1.
- SiT takes t in [0, 1] *without* multiplying it, with t = 1 as *data*: `time_of_sit`. It predicts the velocity
  towards the data. `SiTVelocity` wraps such a model into one for our rectified flow, with our times and our sign.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from models.blocks import positions_2d
from models.config import SP
from models.configs.dit import DiTConfig
from models.dit import DiT

PATCH_EMBEDDING = "x_embedder.proj.weight"
PUBLISHED_POSITIONS = "pos_embed"


def time_of_dit(timestep: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Our time of a DiT's integer timestep 0..999: timestep / 1000, exact in the embedding to one unit of float32."""
    return timestep.to(torch.float32) / 1000.0


def time_of_sit(t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """What our model with a SiT's weights takes for that SiT's own t: t / 1000, as SiT embeds t itself."""
    return t.to(torch.float32) / 1000.0


class DiTNoise(nn.Module):
    """Our model with a DiT's weights, as the noise prediction of our `DDPM` objective.

    Our step k of 1..1000 is at t = k / 1000 and has the cumulative product of k betas, which DiT calls timestep k - 1.
    """

    def __init__(self, model: DiT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c_out h w"]:
        prediction: Tensor = self.model(x, (1000.0 * t.float() - 1.0).clamp(min=0.0) / 1000.0, y)
        return prediction


class SiTVelocity(nn.Module):
    """Our model with a SiT's weights, as the prediction of our rectified flow.

    SiT (Ma et al. 2024, arXiv 2401.08740, linear path) has x_t = t x + (1 - t) eps and predicts x - eps, so
    our prediction eps - x at our t is minus its own at 1 - t. Channels of a learned variance are dropped.
    """

    def __init__(self, model: DiT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        prediction: Tensor = self.model(x, time_of_sit(1.0 - t.float()), y)
        return -prediction[:, : x.shape[1]]


def from_published(state: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The state dict of our model of `config`, under SP, from a published one; tensors are views where they can be.

    Raises:
        ValueError: it is not a state dict of that model. Every missing, unexpected and mis-shaped key is told, and
            positions that are not the fixed ones of `config`.
    """
    wanted = _published_shapes(config)
    problems = [f"missing {name} {list(shape)}" for name, shape in wanted.items() if name not in state]
    problems += [f"unexpected {name} {list(state[name].shape)}" for name in state if name not in wanted]
    for name, shape in wanted.items():
        if name in state and tuple(state[name].shape) != shape:
            problems.append(f"{name} has shape {list(state[name].shape)}; wanted {list(shape)}")
        elif name == PUBLISHED_POSITIONS and name in state and config.positions == "sincos":
            problems += _other_positions(state[name], config)
    if problems:
        raise ValueError(
            f"the state dict is not of this model ({config}):\n  "
            + "\n  ".join(problems)
            + "\nTake the configuration from config_of(state), or the checkpoint of this configuration."
        )
    ours = dict(state)
    ours[PATCH_EMBEDDING] = state[PATCH_EMBEDDING].flatten(1)
    positions = ours.pop(PUBLISHED_POSITIONS, None)
    if config.positions == "learned" and positions is not None:
        ours["positions"] = positions[0]
    return ours


def to_published(model: DiT) -> dict[str, Tensor]:
    """The published state dict of one of our models, detached.

    Multipliers are folded into weights, as the published forward pass has none: the readout's (of µP) into the
    readout, those of residual branches (of CompleteP) into their gates. Loaded again it is a model under SP.
    """
    config = model.config
    assert isinstance(config, DiTConfig), "a DiT has the configuration of a DiT"
    state = {name: value.detach() for name, value in model.state_dict().items() if name != "positions"}
    kernel = (config.width, config.channels, config.patch, config.patch)
    state[PATCH_EMBEDDING] = state[PATCH_EMBEDDING].view(kernel)
    if model.final_layer.multiplier != 1.0:
        state["final_layer.linear.weight"] = state["final_layer.linear.weight"] * model.final_layer.multiplier
    for index, block in enumerate(model.blocks):
        if block.branch != 1.0:
            for kind in ("weight", "bias"):
                name = f"blocks.{index}.adaLN_modulation.1.{kind}"
                vectors = state[name].unflatten(0, (config.modulation_vectors, config.width)).clone()
                vectors[2::3] *= block.branch  # shift, scale, gate
                state[name] = vectors.flatten(0, 1)
    if model.positions is not None:
        state[PUBLISHED_POSITIONS] = model.positions.detach()[None]
    return state


def config_of(
    state: Mapping[str, Tensor], *, image_size: int | None = None, heads: int | None = None, **options: Any
) -> DiTConfig:
    """The configuration of a published state dict, from its shapes.

    Args:
        state: a published state dict.
        image_size: height and width in (latent) pixels; where absent, that of the square grid of `pos_embed`.
        heads: attention heads, which no shape tells; where absent, those of the published size of that width and depth.
        options: fields that take the place of those read from shapes, such as `positions="learned"`.

    Raises:
        ValueError: a key that is needed is missing or has an impossible shape, or heads cannot be known.
    """
    needed = (
        PATCH_EMBEDDING, "t_embedder.mlp.0.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight",
        "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight",
        "blocks.0.adaLN_modulation.1.weight",
    )  # fmt: skip
    if missing := [name for name in needed if name not in state]:
        raise ValueError(f"the state dict has no {', '.join(missing)}; wanted that of a DiT or SiT, got {_some(state)}")
    kernel = state[PATCH_EMBEDDING]
    dims = {name: 4 if name == PATCH_EMBEDDING else 2 for name in needed}
    if wrong := [f"{name} {list(state[name].shape)}" for name, dim in dims.items() if state[name].dim() != dim]:
        raise ValueError(
            f"of impossible shape: {', '.join(wrong)}; wanted matrices, and for {PATCH_EMBEDDING} the convolution's "
            "[width, channels, patch, patch]"
        )
    width, channels, patch, _ = kernel.shape
    depth = 1 + max(int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name)))
    fields: dict[str, Any] = {
        "image_size": image_size if image_size is not None else _image_size(state, patch),
        "channels": channels,
        "num_classes": state["y_embedder.embedding_table.weight"].shape[0] - 1,
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": heads if heads is not None else _published_heads(width, depth),
        "frequency_size": state["t_embedder.mlp.0.weight"].shape[1],
        "learn_sigma": state["final_layer.linear.weight"].shape[0] == 2 * channels * patch**2,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "block": "parallel" if state["blocks.0.adaLN_modulation.1.weight"].shape[0] == 3 * width else "serial",
        "bias": "blocks.0.attn.qkv.bias" in state,
        **_mlp_fields(state, width),
    }
    return DiTConfig(**{**fields, **options})


def load_file(path: Path | str) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU: `.safetensors`, or torch's format without running any code of it.

    A training checkpoint gives its `ema` if it has one, else its `model`.

    Raises:
        ValueError: the file is no checkpoint, holds objects other than plain data, or no state dict.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise pickle.UnpicklingError("it is not a file of torch.save")
        # The training checkpoints of DiT and SiT keep their arguments; a namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a checkpoint that can be read safely: {str(error).splitlines()[0]}. Wanted .safetensors, "
            "or torch.save of a state dict; save only its tensors, with safetensors.torch.save_file."
        ) from None
    for wrapper in ("ema", "model"):
        if isinstance(held, Mapping) and isinstance(held.get(wrapper), Mapping):
            held = held[wrapper]
            break
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        got = _some(held) if isinstance(held, Mapping) else type(held).__name__
        raise ValueError(f"{path} holds {got}; wanted names and tensors, or these under `ema` or `model`")
    return dict(held)


def _published_shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = DiT(config, SP())
    return {name: tuple(value.shape) for name, value in to_published(model).items()}


def _other_positions(got: Tensor, config: DiTConfig) -> list[str]:
    """What is wrong with saved positions, if they are not the fixed ones up to the rounding of their precision."""
    wanted = positions_2d(config.image_size // config.patch, config.width)
    difference = (got.detach().cpu().float()[0] - wanted).abs().max().item()
    if difference <= max(1e-5, 2 * torch.finfo(got.dtype).eps):
        return []
    return [
        f"{PUBLISHED_POSITIONS} differs by up to {difference:.3g} from the 2-D sin-cos positions of this model; "
        'wanted these, or a config with positions="learned"'
    ]


def _image_size(state: Mapping[str, Tensor], patch: int) -> int:
    if PUBLISHED_POSITIONS not in state or state[PUBLISHED_POSITIONS].dim() != 3:
        raise ValueError(
            f"the state dict has no {PUBLISHED_POSITIONS} [1, tokens, width] to tell the image's size; give image_size"
        )
    tokens = state[PUBLISHED_POSITIONS].shape[1]
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise ValueError(f"{PUBLISHED_POSITIONS} has {tokens} positions, which make no square; give image_size")
    return side * patch


def _published_heads(width: int, depth: int) -> int:
    for shape in DiTConfig.presets.values():
        if (shape["width"], shape["depth"]) == (width, depth):
            return shape["heads"]
    raise ValueError(f"width {width} and depth {depth} are of no published size, so heads are not known; give heads")


def _mlp_fields(state: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    """Kind and ratio of the MLP, from the shapes of its two matrices."""
    out, hidden = state["blocks.0.mlp.fc1.weight"].shape[0], state["blocks.0.mlp.fc2.weight"].shape[1]
    if out == hidden and hidden % width == 0:
        return {"mlp": "gelu", "mlp_ratio": hidden // width}
    ratio = max(1, round(1.5 * hidden / width))
    if out == 2 * hidden:
        return {"mlp": "swiglu", "mlp_ratio": ratio}
    raise ValueError(
        f"the MLP has matrices of {out} rows and {hidden} columns at width {width}; wanted a multiple of the width for "
        "both, or twice as many rows as columns (SwiGLU)"
    )


def _some(state: Mapping[Any, Any]) -> str:
    names = [str(name) for name in state]
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" or "nothing"
