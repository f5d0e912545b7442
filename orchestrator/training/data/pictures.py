"""Grids of samples as files for people: PNG of images; GIF, and MP4 where PyAV is installed, of clips."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

FRAMES_PER_SECOND = 8
ENLARGED = 4
"""Pixels of a moving grid for one of a sample, which players would blur."""


def grids(samples: Tensor, columns: int) -> Mapping[str, bytes]:
    """Samples [n, c, h, w] or [n, c, f, h, w] in [-1, 1] as files, by suffix; what this machine can make."""
    if samples.dim() == 4:
        return {"png": grid_png(samples, columns)}
    moving = {"gif": grid_gif(samples, columns)}
    return moving | ({"mp4": grid_mp4(samples, columns)} if importlib.util.find_spec("av") is not None else {})


def grid_as(suffix: str, samples: Tensor, columns: int) -> bytes:
    """Samples as a file of one kind: png of images, gif or mp4 of clips.

    Raises:
        ValueError: there is no such file of these samples, or PyAV is wanted for it and is not installed.
    """
    check_suffix(suffix, moving=samples.dim() == 5)
    return {"png": grid_png, "gif": grid_gif, "mp4": grid_mp4}[suffix](samples, columns)


def check_suffix(suffix: str, *, moving: bool) -> None:
    """Refuse, with a ValueError, a kind of file that clips (`moving`) or images cannot be written as."""
    if suffix not in (("gif", "mp4") if moving else ("png",)):
        kind, wanted = ("clips", "gif or mp4") if moving else ("images", "png")
        raise ValueError(f"{kind} cannot be written as {suffix or 'a file without suffix'}; wanted {wanted}")


def grid_png(images: Tensor, columns: int) -> bytes:
    """[n, c, h, w] in [-1, 1] as one picture with a pixel between images; what the last row lacks is grey."""
    buffer = io.BytesIO()
    Image.fromarray(_grid(_bytes(images), columns)).save(buffer, format="PNG")
    return buffer.getvalue()


def grid_gif(clips: Tensor, columns: int) -> bytes:
    """[n, c, f, h, w] in [-1, 1] as a GIF that runs without end, laid out as `grid_png`."""
    first, *others = [Image.fromarray(frame) for frame in _frames(clips, columns)]
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=1000 // FRAMES_PER_SECOND, loop=0)
    return buffer.getvalue()


def grid_mp4(clips: Tensor, columns: int) -> bytes:
    """The same as an MP4.

    Raises:
        ValueError: PyAV is not installed, or has no encoder for MP4.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("an MP4 needs PyAV, which is not installed. Run: pip install av, or write a .gif") from error
    codec = next((name for name in ("libx264", "mpeg4") if name in av.codecs_available), None)
    if codec is None:
        raise ValueError("this PyAV has neither of the encoders libx264 and mpeg4; install another, or write a .gif")
    buffer = io.BytesIO()
    frames = _frames(clips, columns)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=FRAMES_PER_SECOND)
        stream.height, stream.width, stream.pix_fmt = *(side + side % 2 for side in frames[0].shape[:2]), "yuv420p"
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        for array in [*frames, *frames]:  # twice, as players stop at the end
            colour = np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array
            even = np.pad(colour, ((0, colour.shape[0] % 2), (0, colour.shape[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _bytes(samples: Tensor) -> UInt8[Tensor, "n c *size"]:
    return ((samples.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def _frames(clips: Tensor, columns: int) -> list[NDArray[np.uint8]]:
    """The grids of frames, enlarged."""
    pixels = _bytes(clips).repeat_interleave(ENLARGED, -1).repeat_interleave(ENLARGED, -2)
    return [_grid(frame, columns) for frame in pixels.unbind(2)]


def _grid(pixels: UInt8[Tensor, "n c h w"], columns: int) -> NDArray[np.uint8]:
    """[height, width] of grey samples, [height, width, 3] of others; of more than three channels the first three."""
    n, c, h, w = pixels.shape
    rows = -(-n // columns)
    canvas = torch.full((c, rows * (h + 1) - 1, columns * (w + 1) - 1), 128, dtype=torch.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (h + 1), index % columns * (w + 1)
        canvas[:, top : top + h, left : left + w] = image
    if c < 3:
        return canvas[0].numpy()
    return canvas[:3].permute(1, 2, 0).contiguous().numpy()
