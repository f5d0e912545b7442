"""A codebook of patches: k-means over a dataset's patches, kept in a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "codebooks"
"""Codebooks that come with ditlaw."""


class Codebook(nn.Module):
    """`codes` patches of `values` numbers in [-1, 1]; random ones until `equip` has read a file."""

    patches: Tensor

    def __init__(self, *, codes: int, values: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("patches", torch.rand(codes, values, generator=generator) * 2 - 1, persistent=False)

    def equip(self, folder: Path, name: str, sha256: str) -> None:
        """Read the file `name` from the dataset's folder, or the one that comes with ditlaw.

        Raises:
            ValueError: there is none, or it is not the one of the checksum, or of another shape.
        """
        path = next((place / name for place in (Path(folder), FOLDER) if (place / name).is_file()), None)
        if path is None:
            raise ValueError(f"no codebook {name} in {folder} or {FOLDER}; run: ditlaw data codebook --help")
        data = path.read_bytes()
        if (digest := hashlib.sha256(data).hexdigest()) != sha256:
            raise ValueError(
                f"{path} has sha256 {digest}; wanted {sha256}, whose tokens the trial is of. Put the right codebook "
                "there, or correct models.codebook_sha256."
            )
        try:
            patches = load(data)["patches"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} holds no codebook: {error}") from error
        if patches.shape != self.patches.shape:
            raise ValueError(f"{path} holds patches {list(patches.shape)}; wanted {list(self.patches.shape)}")
        self.patches.copy_(patches)

    def nearest(self, x: Float[Tensor, "*n v"]) -> Int[Tensor, "*n"]:
        """The number of the nearest patch: |x - p|^2 without the part that is of x alone."""
        patches = self.patches.to(x.dtype)
        return (patches.square().sum(1) - 2 * x @ patches.T).argmin(-1)


def k_means(x: Float[Tensor, "n v"], *, codes: int, rounds: int = 30, seed: int = 0) -> Float[Tensor, "k v"]:
    """Centres of k-means (Lloyd's rounds) from `codes` different points drawn by `seed`; a centre that nothing is
    nearest to moves to the point that is farthest from its own.

    Raises:
        ValueError: there are fewer different points than codes.
    """
    distinct = torch.unique(x, dim=0)
    if len(distinct) < codes:
        raise ValueError(f"{len(distinct)} different patches for {codes} codes; wanted fewer codes or more images")
    generator = torch.Generator().manual_seed(seed)
    book = Codebook(codes=codes, values=x.shape[1])
    book.patches.copy_(distinct[torch.randperm(len(distinct), generator=generator)[:codes]])
    for _ in range(rounds):
        owner = torch.cat([book.nearest(part) for part in x.split(8192)])
        counts = torch.bincount(owner, minlength=codes)
        sums = torch.zeros(codes, x.shape[1], dtype=torch.float64).index_add_(0, owner, x.double())
        centres = (sums / counts.clamp(min=1)[:, None]).float()
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            distance = (x - centres[owner]).square().sum(1)
            centres[empty] = x[distance.topk(len(empty)).indices]
        book.patches.copy_(centres)
    return book.patches.clone()


def write(path: Path, patches: Float[Tensor, "k v"]) -> str:
    """Keep a codebook in a file; returns its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"patches": patches.contiguous()}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
