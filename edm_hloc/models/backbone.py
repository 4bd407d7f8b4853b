"""EDM's backbone (Sec. 3.1): a ResNet-18 with fewer channels, down to 1/32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """ResNet's basic block: two 3×3 convolutions with a shortcut.

    (B, in_channels, H, W) → (B, channels, H/stride, W/stride).
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(in_channels, channels, stride), ResidualBlock(channels, channels)
    )


class Backbone(nn.Module):
    """ResNet-18 with fewer channels, down to 1/32."""

    def __init__(self, widths: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        w2, w4, w8, w16, w32 = widths
        self.conv1 = nn.Conv2d(1, w2, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(w2)
        self.layer1 = _stage(w2, w2, 1)
        self.layer2 = _stage(w2, w4, 2)
        self.layer3 = _stage(w4, w8, 2)
        self.layer4 = _stage(w8, w16, 2)
        self.layer5 = _stage(w16, w32, 2)
        self.fine_conv = nn.Sequential(
            _stage(w8, w8, 1), nn.Conv2d(w8, w32, 1, bias=False), nn.BatchNorm2d(w32)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 1, H, W) → maps at 1/8, 1/16, 1/32, and the map at 1/8 for the refinement."""
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x8 = self.layer3(self.layer2(self.layer1(x)))
        x16 = self.layer4(x8)
        x32 = self.layer5(x16)
        return x8, x16, x32, self.fine_conv(x8)
