"""Other views of a photo, encoded by the network: thumbnails, and the photo warped by another."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.grid import CELL
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher

ThumbnailName = Literal["upright", "turned_90", "turned_180", "turned_270", "upright_double"]

_IDENTITY = PixelTransform((1.0, 1.0))
# Of each thumbnail: its size as a multiple of the smallest, and its quarter turns.
_THUMBNAILS: dict[ThumbnailName, tuple[float, int]] = {
    "upright": (1.0, 0),
    "turned_90": (1.0, 1),
    "turned_180": (1.0, 2),
    "turned_270": (1.0, 3),
    "upright_double": (2.0, 0),
}


class WarpedView(NamedTuple):
    """A photo warped into another frame, and encoded.

    Attributes:
        features: of the warped image, by the network.
        warp: (3, 3) affine map from the pixels of the network's input to those of the view.
        cells: number of 8 px cells of the view.
    """

    features: Features
    warp: np.ndarray
    cells: int

    def unwarp(self, keypoints: np.ndarray) -> np.ndarray:
        """Points (M, 2) of the view in pixels of the network's input, float32."""
        return _transform(np.linalg.inv(self.warp), keypoints)


class Thumbnails:
    """The encoded thumbnails of a photo, each made when it is first asked for.

    Several threads may ask at once: a thumbnail is made by the first, and the others wait for it.

    Args:
        encoded: thumbnails that have been made already.

    Attributes:
        nbytes: memory that the thumbnails made so far hold.
    """

    def __init__(self, encoded: Mapping[ThumbnailName, WarpedView] | None = None) -> None:
        self._encoded = dict(encoded or {})
        self._making = threading.Lock()
        self.nbytes = sum(view.features.nbytes for view in self._encoded.values())

    def get(self, name: ThumbnailName, encode: Callable[[], WarpedView]) -> WarpedView:
        """A thumbnail; `encode` makes it if that has not been done."""
        with self._making:
            if name not in self._encoded:
                view = self._encoded[name] = encode()
                self.nbytes += view.features.nbytes
            return self._encoded[name]

    def encoded(self) -> dict[ThumbnailName, WarpedView]:
        """Those made so far."""
        with self._making:
            return dict(self._encoded)


class ImageViews(NamedTuple):
    """What the second look remembers of a photo.

    Attributes:
        pixels: (C, H, W) float16, the network's input.
        whole: the photo as it is.
        thumbnails: what pairs have asked for so far; see `ViewEncoder.thumbnail`.
    """

    pixels: Tensor
    whole: WarpedView
    thumbnails: Thumbnails

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the network's input in pixels."""
        return self.pixels.shape[-1], self.pixels.shape[-2]


def whole_view(features: Features, pixels: Tensor) -> WarpedView:
    """A photo (C, H, W) as it is."""
    return WarpedView(features, np.eye(3), pixels[0].numel() // CELL**2)


class ViewEncoder:
    """Makes and encodes views of photos.

    Args:
        network: encodes them.
        thumbnail_size: longest side of the thumbnails in pixels; "upright_double" is twice as
            large.
    """

    def __init__(self, network: Matcher, thumbnail_size: int) -> None:
        self.network = network
        self.thumbnail_size = thumbnail_size

    def thumbnail(self, views: ImageViews, name: ThumbnailName) -> WarpedView:
        """A reduced and perhaps rotated copy of a photo, encoded when first asked for."""
        return views.thumbnails.get(name, lambda: self._thumbnail(views.pixels, name))

    def warped(self, pixels: Tensor, warp: np.ndarray, size: tuple[int, int]) -> WarpedView:
        """A photo warped into another frame, black around it.

        Args:
            pixels: (C, H, W), the photo.
            warp: (3, 3) affine map from its pixels to those of the view.
            size: (width, height) of the view in pixels.
        """
        image = np.ascontiguousarray(pixels.float().cpu().numpy().transpose(1, 2, 0))
        scale = math.sqrt(abs(np.linalg.det(warp[:2, :2])))
        onto = warp
        if scale < 0.75:  # area averaging first: `warpAffine` would alias
            height, width = image.shape[:2]
            small = max(1, round(width * scale)), max(1, round(height * scale))
            image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
            x, y = width / small[0], height / small[1]
            onto = warp @ np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
        warped = cv2.warpAffine(image, onto[:2], size).reshape(size[1], size[0], -1)
        tensor = torch.from_numpy(np.ascontiguousarray(warped.transpose(2, 0, 1)))
        features = self.network.encode(NetworkImage(tensor, _IDENTITY, size))
        return WarpedView(features, warp, size[0] * size[1] // CELL**2)

    def _thumbnail(self, pixels: Tensor, name: ThumbnailName) -> WarpedView:
        """A copy of the photo (C, H, W), padded to the network's divisor."""
        multiple, quarters = _THUMBNAILS[name]
        height, width = pixels.shape[1:]
        scale = min(1.0, multiple * min(1.0, self.thumbnail_size / max(width, height)))
        turn = np.linalg.matrix_power(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), quarters)
        warp = turn @ np.diag([scale, scale, 1.0])
        ends = np.array([[0.0, 0.0], [width - 1, height - 1]])
        turned = _transform(warp, ends)
        warp[:2, 2] = -turned.min(axis=0)
        divisor = self.network.info.preprocessing.divisor
        sides = np.ptp(turned, axis=0) + scale
        across, down = (divisor * max(1, math.ceil(side / divisor - 0.1)) for side in sides)
        return self.warped(pixels, warp, (across, down))


def _transform(warp: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (M, 2) through an affine map (3, 3), float32."""
    return (points @ warp[:2, :2].T + warp[:2, 2]).astype(np.float32)
