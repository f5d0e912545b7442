"""A small convolutional classifier whose pooled features encode small images, where Inception's mean little.

It is cheap on purpose (7.5 MFLOPs for 28 x 28 grey pixels, 10 for 32 x 32 in colour), so that encoding does not cost
more than sampling from the smallest models of a sweep.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.fid.catalog import EncoderFacts

WIDTHS = (16, 32, 64, 64)
"""Channels of the four convolutions; the last is the number of features."""


class Classifier(nn.Module):
    """Four 3 x 3 convolutions, the picture halved after the first two, the mean over positions, and one linear map.

    Images are [n, channels, h, w] in [-1, 1]; `features` gives [n, 64], `forward` logits [n, classes].
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(zip((channels, *WIDTHS), WIDTHS, strict=False)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            if index < 2:
                layers.append(nn.MaxPool2d(2))
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The mean over positions of the last feature maps: what Frechet and kernel distances compare."""
        return self.trunk(x).mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(self.features(x))


CLIP_WIDTHS = (8, 16, 32, 64)
"""Channels of the four convolutions of the encoder of clips."""


class ClipClassifier(nn.Module):
    """The classifier with 3 x 3 x 3 convolutions; frames are halved in size after the first two, and never in number.

    Clips are [n, channels, f, h, w] in [-1, 1], of any number of frames; `features` gives [n, 64].
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(zip((channels, *CLIP_WIDTHS), CLIP_WIDTHS, strict=False)):
            layers += [nn.Conv3d(before, after, 3, padding=1, bias=False), nn.BatchNorm3d(after), nn.ReLU(inplace=True)]
            if index < 2:
                layers.append(nn.MaxPool3d((1, 2, 2)))
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(CLIP_WIDTHS[-1], num_classes)

    def features(self, x: Float[Tensor, "n c f h w"]) -> Float[Tensor, "n d"]:
        """The mean over frames and positions of the last feature maps."""
        return self.trunk(x).mean(dim=(2, 3, 4))

    def forward(self, x: Float[Tensor, "n c f h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(self.features(x))


def new_classifier(facts: EncoderFacts) -> Classifier | ClipClassifier:
    """The classifier, of ten classes, that an encoder with weights of our own is, freshly drawn."""
    assert facts.input is not None, f"{facts.name} is no classifier"
    kind = Classifier if facts.samples == "images" else ClipClassifier
    return kind(channels=facts.input[0], num_classes=10)


def clip_classifier_flops(frames: int, image_size: int, channels: int) -> float:
    """FLOPs of the features of one clip, as `classifier_flops`."""
    size, flops = image_size, 0.0
    for index, (before, after) in enumerate(zip((channels, *CLIP_WIDTHS), CLIP_WIDTHS, strict=False)):
        flops += 2.0 * frames * size * size * 27 * before * after
        size = size // 2 if index < 2 else size
    return flops


def classifier_flops(image_size: int, channels: int) -> float:
    """FLOPs of the features of one image (a multiply-add is 2; normalisation and pooling are left out)."""
    size, flops = image_size, 0.0
    for index, (before, after) in enumerate(zip((channels, *WIDTHS), WIDTHS, strict=False)):
        flops += 2.0 * size * size * 9 * before * after
        size = size // 2 if index < 2 else size
    return flops


def mirrored(x: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Images, each mirrored with probability 1/2."""
    flips = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(flips[:, None, None, None], x.flip(3), x)
