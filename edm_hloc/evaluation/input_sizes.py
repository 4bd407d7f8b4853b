"""Photos at exactly the size that a published protocol asks for, enlarged or padded if it must be.

`images.load` never enlarges a photo, does not pad, and averages over areas; the protocols of the
papers do otherwise. `FittedMatcher` takes photos at full size and makes the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from edm_hloc.base.frames import inside
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher


@dataclass(frozen=True)
class InputSize:
    """How large a photo is for the network; one of the three sizes is given.

    Attributes:
        shorter: the shorter side in pixels.
        longer: the longer side in pixels.
        exact: (width, height) in pixels, whatever the aspect ratio of the photo.
        padded: with black pixels below and to the right to a square, as LoFTR does. Both sides of
            the photo inside it are multiples of 8.
        smooth: average over areas where a photo is reduced; else bilinear interpolation between
            four pixels, as LoFTR does.
    """

    shorter: int | None = None
    longer: int | None = None
    exact: tuple[int, int] | None = None
    padded: bool = False
    smooth: bool = True

    def of(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a photo of this size at the size of the protocol, to a pixel."""
        if self.exact is not None:
            return self.exact
        scale = (
            self.shorter / min(width, height)
            if self.shorter is not None
            else (self.longer or max(width, height)) / max(width, height)
        )
        return max(1, round(width * scale)), max(1, round(height * scale))

    def __str__(self) -> str:
        if self.exact is not None:
            text = f"{self.exact[0]} × {self.exact[1]} px"
        elif self.shorter is not None:
            text = f"shorter side {self.shorter} px"
        else:
            text = f"longer side {self.longer} px"
        return f"{text}, padded to a square" if self.padded else text


class FittedMatcher(Matcher):
    """Another matcher that sees photos at an `InputSize`; sides are rounded to what it can take.

    EDM masks what is padding; other matchers do not know of it, and their matches in it are left
    out.

    Args:
        matcher: the matcher.
        size: of its photos.
    """

    def __init__(self, matcher: Matcher, size: InputSize) -> None:
        self.matcher, self.size = matcher, size
        seen = matcher.info.preprocessing
        self._divisor = seen.divisor
        self.info = replace(matcher.info, preprocessing=replace(seen, resize_max=None, divisor=1))

    @property
    def provenance(self) -> Mapping[str, str | int | float | bool | None]:
        return {
            **self.matcher.provenance,
            "resize_max": None,
            "input_size": str(self.size),
            "input_smooth": self.size.smooth,
            **({"padding": "masked"} if self.size.padded else {}),
        }

    def encode(self, image: NetworkImage) -> Features:
        return self.encode_batch([image])[0]

    def encode_batch(self, images: Sequence[NetworkImage]) -> list[Features]:
        return self.matcher.encode_batch([self._fitted(image) for image in images])

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return self.matcher.match_pixels(pairs)

    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        kept = []
        for (first, second), found in zip(pairs, self.matcher.match_batch(pairs), strict=True):
            there = inside(found.keypoints0, *first.transform.size, 0.5)
            there &= inside(found.keypoints1, *second.transform.size, 0.5)
            kept.append(found[np.flatnonzero(there)])
        return kept

    def to_host(self, features: Features) -> Features | None:
        return self.matcher.to_host(features)

    def from_host(self, features: Features) -> Features:
        return self.matcher.from_host(features)

    def _fitted(self, image: NetworkImage) -> NetworkImage:
        pixels = (image.tensor.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
        height, width = pixels.shape[:2]
        size = self._rounded(self.size.of(width, height))
        reduced = size[0] < width or size[1] < height
        method = cv2.INTER_AREA if self.size.smooth and reduced else cv2.INTER_LINEAR
        resized = cv2.resize(pixels, size, interpolation=method).reshape(*size[::-1], -1)
        if self.size.padded:
            side = -(-max(size) // self._divisor) * self._divisor
            black = np.zeros((side, side, resized.shape[2]), np.uint8)
            black[: size[1], : size[0]] = resized
            resized = black
        channels = np.ascontiguousarray(resized.transpose(2, 0, 1), np.float32)
        transform = replace(image.transform, scale=(width / size[0], height / size[1]))
        return replace(
            image, tensor=torch.from_numpy(channels / np.float32(255)), transform=transform
        )

    def _rounded(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.size.padded:  # down, as LoFTR does
            return max(8, size[0] // 8 * 8), max(8, size[1] // 8 * 8)
        cells = (max(1, int(side / self._divisor + 0.5)) for side in size)
        width, height = (self._divisor * n for n in cells)
        return width, height
