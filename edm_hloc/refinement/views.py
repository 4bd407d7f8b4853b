"""Other views of a photo, encoded by the network: thumbnails, and the photo warped by another."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.grid import CELL, cells_of
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.images.sift import RootSIFT
from edm_hloc.matchers.base import DISTINCTNESS_STEP, Features, Matcher
from edm_hloc.refinement.batched_warping import warped_together
from edm_hloc.refinement.sift_maps import sift_keypoints

ThumbnailName = Literal["upright", "turned_90", "turned_180", "turned_270", "upright_double"]

_IDENTITY = PixelTransform((1.0, 1.0))
_LARGEST_DISTINCTNESS = 12.0  # it is infinite in tiny photos
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
        warp: (3, 3) affine map from the pixels of the photo to those of the view.
        size: (width, height) of the view in pixels.
    """

    features: Features
    warp: np.ndarray
    size: tuple[int, int]

    @property
    def cells(self) -> int:
        """Number of 8 px cells of the view."""
        return self.size[0] * self.size[1] // CELL**2

    @property
    def reduction(self) -> float:
        """Length in the photo over length in the view."""
        return 1.0 / math.sqrt(abs(np.linalg.det(self.warp[:2, :2])))

    def warped(self, keypoints: np.ndarray) -> np.ndarray:
        """Points (M, 2) of the photo in pixels of the view, float32."""
        return _transform(self.warp, keypoints)

    def unwarp(self, keypoints: np.ndarray) -> np.ndarray:
        """Points (M, 2) of the view in pixels of the photo, float32."""
        return _transform(np.linalg.inv(self.warp), keypoints)


class OnDemand:
    """What is made of a photo when a pair first asks for it: encoded thumbnails, SIFT keypoints.

    Several threads may ask at once: it is made by the first, and the others wait for it.

    Args:
        thumbnails: those that have been made already.
        keypoints: likewise.

    Attributes:
        nbytes: memory that all made so far holds.
    """

    def __init__(
        self,
        thumbnails: Mapping[ThumbnailName, WarpedView] | None = None,
        keypoints: RootSIFT | None = None,
    ) -> None:
        self._thumbnails = dict(thumbnails or {})
        self._keypoints = keypoints
        self._making = threading.Lock()
        self.nbytes = sum(view.features.nbytes for view in self._thumbnails.values())
        self.nbytes += 0 if keypoints is None else keypoints.nbytes

    def thumbnail(self, name: ThumbnailName, encode: Callable[[], WarpedView]) -> WarpedView:
        """A thumbnail; `encode` makes it if that has not been done."""
        with self._making:
            if name not in self._thumbnails:
                view = self._thumbnails[name] = encode()
                self.nbytes += view.features.nbytes
            return self._thumbnails[name]

    def keypoints(self, find: Callable[[], RootSIFT]) -> RootSIFT:
        """SIFT keypoints; `find` finds them if that has not been done."""
        with self._making:
            if self._keypoints is None:
                self._keypoints = find()
                self.nbytes += self._keypoints.nbytes
            return self._keypoints

    def has(self, name: ThumbnailName) -> bool:
        """Whether a thumbnail has been made."""
        with self._making:
            return name in self._thumbnails

    def moved(self, move: Callable[[Features], Features | None]) -> OnDemand:
        """The same with the features of the thumbnails elsewhere, where these can be moved."""
        with self._making:
            views = dict(self._thumbnails)
            keypoints = self._keypoints
        there = {name: move(view.features) for name, view in views.items()}
        thumbnails = {
            name: views[name]._replace(features=features)
            for name, features in there.items()
            if features is not None
        }
        return OnDemand(thumbnails, keypoints)


class ImageViews(NamedTuple):
    """What the second look remembers of a photo.

    Attributes:
        pixels: (C, H, W) float16, the photo as it was loaded.
        whole: all of it, at the size at which the network sees it.
        distinctness: `Matcher.distinctness` of the whole view.
        on_demand: what pairs have asked for so far.
    """

    pixels: Tensor
    whole: WarpedView
    distinctness: np.ndarray | None
    on_demand: OnDemand

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the photo in pixels."""
        return _size(self.pixels)

    def keypoints(self) -> RootSIFT:
        """SIFT keypoints in pixels of the photo, found when first asked for."""
        return self.on_demand.keypoints(partial(sift_keypoints, self.pixels))

    def distinctness_at(self, points: np.ndarray) -> np.ndarray:
        """The distinctness (M,) of points (M, 2) in pixels of the photo, up to
        `_LARGEST_DISTINCTNESS`; as if all were distinct where the matcher cannot tell."""
        grid = self.distinctness
        if grid is None:
            return np.full(len(points), _LARGEST_DISTINCTNESS, np.float32)
        cells = cells_of(self.whole.warped(points) / DISTINCTNESS_STEP, grid.shape)
        return np.asarray(grid[cells].clip(0, _LARGEST_DISTINCTNESS))


def whole_view(features: Features, image: NetworkImage, seen: NetworkImage) -> WarpedView:
    """A whole photo.

    Args:
        features: of `seen`.
        image: the photo.
        seen: the same, perhaps reduced.
    """
    size = _size(seen.tensor)
    (width, height), (across, down) = _size(image.tensor), size
    return WarpedView(features, _scaling(across / width, down / height), size)


def distinctness_of(photos: tuple[ImageViews, ImageViews], matches: Matches) -> np.ndarray:
    """Of each match (M,), in pixels of the photos, the distinctness of its less distinct point."""
    first, second = photos
    points0, points1 = matches.keypoints0, matches.keypoints1
    return np.minimum(first.distinctness_at(points0), second.distinctness_at(points1))


def in_photos(views: tuple[WarpedView, WarpedView], matches: Matches) -> Matches:
    """Matches in pixels of two views, in those of the photos."""
    points = views[0].unwarp(matches.keypoints0), views[1].unwarp(matches.keypoints1)
    return Matches(*points, matches.scores)


class WarpedPhoto(NamedTuple):
    """How a photo is to be warped.

    Attributes:
        pixels: (C, H, W), the photo.
        warp: (3, 3) affine map from its pixels to those of the view.
        size: (width, height) of the view in pixels.
    """

    pixels: Tensor
    warp: np.ndarray
    size: tuple[int, int]

    def reduction(self) -> tuple[tuple[int, int], np.ndarray]:
        """The (width, height) that the photo is reduced to first, by area averaging, and the
        (3, 3) map from there to the view. Bilinear values alone would alias."""
        height, width = self.pixels.shape[1:]
        scale = math.sqrt(abs(np.linalg.det(self.warp[:2, :2])))
        if scale >= 0.75:
            return (width, height), self.warp
        small = max(1, round(width * scale)), max(1, round(height * scale))
        return small, self.warp @ _scaling(width / small[0], height / small[1])

    def cropped(self, divisor: int) -> WarpedPhoto:
        """The part of the view that shows some of the photo: sides and left upper corner are
        multiples of a divisor, as those of the view are."""
        height, width = self.pixels.shape[1:]
        x, y = (-0.5, width - 0.5), (-0.5, height - 0.5)
        corners = _transform(self.warp, np.array([(a, b) for a in x for b in y]))
        ends = np.array(self.size)
        first = np.floor((corners.min(axis=0) + 0.5) / divisor) * divisor
        last = np.ceil((corners.max(axis=0) + 0.5) / divisor) * divisor
        first = first.clip(0, ends - divisor).astype(int)
        last = last.clip(first + divisor, ends).astype(int)
        move = np.eye(3)
        move[:2, 2] = -first
        across, down = (last - first).tolist()
        return WarpedPhoto(self.pixels, move @ self.warp, (across, down))


class ViewEncoder:
    """Makes and encodes views of photos.

    Args:
        network: encodes them.
        thumbnail_size: longest side of the thumbnails in pixels; "upright_double" is twice as
            large.
        batched: warp several photos at a time, on the device that they are on.
    """

    def __init__(self, network: Matcher, thumbnail_size: int, batched: bool) -> None:
        self.network = network
        self.thumbnail_size = thumbnail_size
        self.batched = batched

    def thumbnails(self, photos: Sequence[ImageViews], name: ThumbnailName) -> list[WarpedView]:
        """Reduced and perhaps rotated copies of photos, encoded when first asked for."""
        if self.batched:
            missing = {id(p): p for p in photos if not p.on_demand.has(name)}.values()
            views = self.warped([self._thumbnail(photo.pixels, name) for photo in missing])
            for photo, view in zip(missing, views, strict=True):
                photo.on_demand.thumbnail(name, partial(_given, view))
        return [
            photo.on_demand.thumbnail(name, partial(self._encoded_thumbnail, photo.pixels, name))
            for photo in photos
        ]

    def _encoded_thumbnail(self, pixels: Tensor, name: ThumbnailName) -> WarpedView:
        return self.warped([self._thumbnail(pixels, name)])[0]

    def warped(self, photos: Sequence[WarpedPhoto]) -> list[WarpedView]:
        """Photos warped into other frames, black around them, and encoded."""
        images = _warped_together(photos) if self.batched else [_warped(p) for p in photos]
        encoded = self.network.encode_batch(
            [
                NetworkImage(image, _IDENTITY, photo.size)
                for image, photo in zip(images, photos, strict=True)
            ]
        )
        return [
            WarpedView(features, photo.warp, photo.size)
            for features, photo in zip(encoded, photos, strict=True)
        ]

    def _thumbnail(self, pixels: Tensor, name: ThumbnailName) -> WarpedPhoto:
        """How the photo (C, H, W) becomes a thumbnail, padded to the network's divisor."""
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
        return WarpedPhoto(pixels, warp, (across, down))


def _given(view: WarpedView) -> WarpedView:
    return view


def _warped(photo: WarpedPhoto) -> Tensor:
    """The warped photo (C, height, width), by OpenCV."""
    image = np.ascontiguousarray(photo.pixels.float().cpu().numpy().transpose(1, 2, 0))
    reduced, onto = photo.reduction()
    if reduced != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, reduced, interpolation=cv2.INTER_AREA)
    across, down = photo.size
    warped = cv2.warpAffine(image, onto[:2], photo.size).reshape(down, across, -1)
    return torch.from_numpy(np.ascontiguousarray(warped.transpose(2, 0, 1)))


def _warped_together(photos: Sequence[WarpedPhoto]) -> list[Tensor]:
    """The warped photos (C, height, width), by size on their device."""
    alike: dict[tuple[torch.Size, tuple[int, int]], list[int]] = {}
    for i, photo in enumerate(photos):
        alike.setdefault((photo.pixels.shape, photo.size), []).append(i)
    images: dict[int, Tensor] = {}
    for (_, size), chosen in alike.items():
        sizes, onto = zip(*(photos[i].reduction() for i in chosen), strict=True)
        pixels = torch.stack([photos[i].pixels for i in chosen])
        images |= zip(chosen, warped_together(pixels, sizes, np.stack(onto), size), strict=True)
    return [images[i] for i in range(len(photos))]


def _size(pixels: Tensor) -> tuple[int, int]:
    """(width, height) of an image (C, H, W)."""
    return pixels.shape[-1], pixels.shape[-2]


def _scaling(x: float, y: float) -> np.ndarray:
    """The affine map (3, 3) that scales an image by two factors, with pixels' centres at whole
    numbers."""
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def _transform(warp: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (M, 2) through an affine map (3, 3), float32."""
    return (points @ warp[:2, :2].T + warp[:2, 2]).astype(np.float32)
