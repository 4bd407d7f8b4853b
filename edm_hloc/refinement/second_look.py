"""Matches pairs with few matches again, one image brought into the frame of the other.

A network that was taught upright photos of about one scale finds little where the camera was turned
or came much closer, and less where it moved far to the side. What little it finds still tells how
the images lie to each other. By the affine map that most of these matches agree on, the less
detailed image is warped into the frame of the other; the two then look alike, and are matched
again. Where the first matches agree on nothing, thumbnails a quarter turned, or at twice the scale
of each other, may give the hint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.frames import PixelTransform, inside
from edm_hloc.base.grid import CELL
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, WrappingMatcher

_SAME_PIXELS = PixelTransform((1.0, 1.0))
_SQUEEZED = 5.0  # an affine map that stretches one direction so much more than the other is wrong


@dataclass(frozen=True)
class SecondLookConfig:
    """When and how a pair is looked at again.

    Attributes:
        enough: confident matches, as a share of the smaller image's 8 px cells, with which a pair
            is done.
        tolerance: how far matches may be from one affine map to agree with it, as a share of the
            longer side: depth moves them.
        agreeing: so many confident matches make a map believable.
        sure: if fewer agree, as a share of the smaller image's cells, thumbnails are asked as well.
        clear: thumbnails of which such a share agrees know better than the first look: repeated
            and symmetric things look alike even upside down, but over less of the image.
        turn: degrees, and
        stretch: ratio of lengths, from which on images are different enough to look again.
        thumbnail: longest side of the thumbnails, pixels.
    """

    enough: float = 0.25
    tolerance: float = 0.04
    agreeing: int = 20
    sure: float = 0.1
    clear: float = 0.2
    turn: float = 12.0
    stretch: float = 1.25
    thumbnail: int = 256


class View(NamedTuple):
    """An image seen in another frame.

    Attributes:
        features: of the warped image, by the inner matcher.
        warp: (3, 3), from the network's input to the warped image, pixels.
        cells: how many 8 px cells it has.
    """

    features: Features
    warp: np.ndarray
    cells: int

    def back(self, keypoints: np.ndarray) -> np.ndarray:
        """Keypoints (M, 2) of the features in pixels of the network's input, float32."""
        return _apply(np.linalg.inv(self.warp), self.features.transform.to_network(keypoints))


class Looks(NamedTuple):
    """What is remembered of an image.

    Attributes:
        pixels: (C, H, W) float16, the network's input.
        whole: the image as it is.
        small: a thumbnail.
        double: the image at twice the thumbnail's size.
        turned1, turned2, turned3: the thumbnail after so many quarter turns.
    """

    pixels: Tensor
    whole: View
    small: View
    double: View
    turned1: View
    turned2: View
    turned3: View


_THUMBNAILS = (
    ("small", "double"),
    ("double", "small"),
    ("small", "turned1"),
    ("small", "turned2"),
    ("small", "turned3"),
)


class Hint(NamedTuple):
    """An affine map (3, 3) from image 0 to image 1 in the network's pixels, how many matches agree
    with it, and which share of the smaller view's cells that is."""

    warp: np.ndarray
    agreeing: int
    share: float


_NO_HINT = Hint(np.eye(3), 0, 0.0)


class SecondLookMatcher(WrappingMatcher):
    """Another matcher, that gets a second look at pairs in which it found little.

    It keeps each image's pixels, in half precision, and features of five thumbnails.
    """

    def __init__(self, matcher: Matcher, config: SecondLookConfig | None = None) -> None:
        super().__init__(matcher)
        self.config = config or SecondLookConfig()

    @property
    def provenance(self) -> Mapping[str, str | int | float | bool | None]:
        settings = {f"second_look_{k}": v for k, v in asdict(self.config).items()}
        return {**self.matcher.provenance, **settings}

    def encode(self, image: NetworkImage) -> Features:
        features = self.matcher.encode(image)
        pixels = image.tensor.half()
        scale = min(1.0, self.config.thumbnail / max(pixels.shape[1:]))
        small, first, second, third = (self._thumbnail(pixels, scale, k) for k in range(4))
        double = self._thumbnail(pixels, min(1.0, 2 * scale), 0)
        whole = View(features, np.eye(3), pixels[0].numel() // CELL**2)
        views = (whole, small, double, first, second, third)
        held = pixels.nbytes + sum(view.features.nbytes for view in views)
        return Features(Looks(pixels, *views), image.transform, held)

    def to_host(self, features: Features) -> Features | None:
        pixels, *views = features.data
        moved = []
        for view in views:
            on_host = self.matcher.to_host(view.features)
            if on_host is None:
                return None
            moved.append(view._replace(features=on_host))
        return replace(features, data=Looks(pixels, *moved))

    def from_host(self, features: Features) -> Features:
        pixels, *views = features.data
        moved = [view._replace(features=self.matcher.from_host(view.features)) for view in views]
        return replace(features, data=Looks(pixels, *moved))

    @torch.inference_mode()
    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        looks: list[tuple[Looks, Looks]] = [(first.data, second.data) for first, second in pairs]
        found = self.matcher.match_batch([(a.whole.features, b.whole.features) for a, b in looks])
        hints: dict[int, Hint] = {}
        for i, (pair, matches) in enumerate(zip(looks, found, strict=True)):
            if self._confident(matches) < self._enough(*pair):
                hints[i] = self._agreement((pair[0].whole, pair[1].whole), matches, pair[1])
        unsure = [i for i, hint in hints.items() if hint.share < self.config.sure]
        for i, hint in zip(unsure, self._ask_thumbnails([looks[i] for i in unsure]), strict=True):
            hints[i] = self._better(hints[i], hint)
        again = {i: hint.warp for i, hint in hints.items() if self._pays(hint)}
        second = self._match_aligned([(looks[i], warp) for i, warp in again.items()])
        for i, matches in zip(again, second, strict=True):
            if self._confident(matches) > self._confident(found[i]):
                found[i] = self._together(looks[i], matches, found[i])
        return found

    def _thumbnail(self, pixels: Tensor, scale: float, quarters: int) -> View:
        """The image at `scale`, turned by quarters, its sides filled up to the divisor."""
        height, width = pixels.shape[1:]
        turn = np.linalg.matrix_power(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), quarters)
        warp = turn @ np.diag([scale, scale, 1.0])
        ends = np.array([[0.0, 0.0], [width - 1, height - 1]])
        turned = _apply(warp, ends)
        warp[:2, 2] = -turned.min(axis=0)
        divisor = self.preprocessing.divisor
        sides = np.ptp(turned, axis=0) + scale
        across, down = (divisor * max(1, math.ceil(side / divisor - 0.1)) for side in sides)
        return self._view(pixels, warp, (across, down))

    def _view(self, pixels: Tensor, warp: np.ndarray, size: tuple[int, int]) -> View:
        """The image (C, H, W) warped into a frame of `size` (width, height), black around it."""
        image = np.ascontiguousarray(pixels.float().numpy().transpose(1, 2, 0))
        scale = math.sqrt(abs(np.linalg.det(warp[:2, :2])))
        onto = warp
        if scale < 0.75:  # averaged first: `warpAffine` takes single pixels
            height, width = image.shape[:2]
            small = max(1, round(width * scale)), max(1, round(height * scale))
            image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
            x, y = width / small[0], height / small[1]
            onto = warp @ np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
        warped = cv2.warpAffine(image, onto[:2], size).reshape(size[1], size[0], -1)
        tensor = torch.from_numpy(np.ascontiguousarray(warped.transpose(2, 0, 1)))
        features = self.matcher.encode(NetworkImage(tensor, _SAME_PIXELS, size))
        return View(features, warp, size[0] * size[1] // CELL**2)

    def _confident(self, matches: Matches) -> int:
        return int((matches.scores >= self.confident).sum())

    def _enough(self, looks0: Looks, looks1: Looks) -> float:
        share = self.config.enough * min(looks0.whole.cells, looks1.whole.cells)
        return share if self.matcher.topk is None else min(share, self.matcher.topk)

    def _agreement(self, views: tuple[View, View], matches: Matches, looks1: Looks) -> Hint:
        """The map that most confident matches agree on: a similarity, or better an affine map."""
        best = _NO_HINT
        chosen = matches.scores >= self.confident
        if chosen.sum() < self.config.agreeing:
            return best
        points0 = views[0].back(matches.keypoints0[chosen])
        points1 = views[1].back(matches.keypoints1[chosen])
        tolerance = self.config.tolerance * max(looks1.pixels.shape[1:])
        cells = min(view.cells for view in views)
        for fit in (cv2.estimateAffinePartial2D, cv2.estimateAffine2D):
            rows, agree = fit(
                points0,
                points1,
                method=cv2.RANSAC,
                ransacReprojThreshold=tolerance,
                maxIters=1000,
            )
            if rows is None or not np.isfinite(rows).all():
                continue
            long, short = np.linalg.svd(rows[:, :2], compute_uv=False)
            sane = np.linalg.det(rows[:, :2]) > 0 and long < _SQUEEZED * short
            # With fewer the freedom of an affine map is not worth its risk.
            if sane and agree.sum() >= max(self.config.agreeing, best.agreeing):
                count = int(agree.sum())
                best = Hint(np.vstack([rows, [0.0, 0.0, 1.0]]), count, count / cells)
        return best

    def _ask_thumbnails(self, pairs: Sequence[tuple[Looks, Looks]]) -> list[Hint]:
        """What most matches of any two thumbnails of each pair agree on."""
        best = [_NO_HINT] * len(pairs)
        if not pairs:
            return best
        for first, second in _THUMBNAILS:
            views = [(getattr(a, first), getattr(b, second)) for a, b in pairs]
            found = self.matcher.match_batch([(a.features, b.features) for a, b in views])
            for i, matches in enumerate(found):
                hint = self._agreement(views[i], matches, pairs[i][1])
                best[i] = self._better(best[i], hint)
        return best

    def _better(self, first: Hint, second: Hint) -> Hint:
        return max(first, second, key=lambda hint: (hint.share >= self.config.clear, hint.agreeing))

    def _pays(self, hint: Hint) -> bool:
        if hint.agreeing < self.config.agreeing:
            return False
        A = hint.warp[:2, :2]
        long, short = np.linalg.svd(A, compute_uv=False)
        turn = abs(math.degrees(math.atan2(A[1, 0] - A[0, 1], A[0, 0] + A[1, 1])))
        return turn > self.config.turn or max(long, 1 / short) > self.config.stretch

    def _match_aligned(
        self, pairs: Sequence[tuple[tuple[Looks, Looks], np.ndarray]]
    ) -> list[Matches]:
        """Matches, in the network's pixels, of images the less detailed of which is warped."""
        found: dict[int, Matches] = {}
        closer0 = [np.linalg.det(warp[:2, :2]) <= 1 for _, warp in pairs]
        for image0_stays in (True, False):
            chosen = [i for i, closer in enumerate(closer0) if closer == image0_stays]
            sides = []
            for i in chosen:
                (looks0, looks1), warp = pairs[i]
                height, width = (looks0 if image0_stays else looks1).pixels.shape[1:]
                if image0_stays:
                    view = self._view(looks1.pixels, np.linalg.inv(warp), (width, height))
                    sides.append((looks0.whole, view))
                else:
                    view = self._view(looks0.pixels, warp, (width, height))
                    sides.append((view, looks1.whole))
            matched = self.matcher.match_batch([(a.features, b.features) for a, b in sides])
            for i, (view0, view1), matches in zip(chosen, sides, matched, strict=True):
                points0, points1 = view0.back(matches.keypoints0), view1.back(matches.keypoints1)
                looks0, looks1 = pairs[i][0]
                seen = inside(points0, *looks0.pixels.shape[:0:-1]) & inside(
                    points1, *looks1.pixels.shape[:0:-1]
                )
                found[i] = Matches(points0[seen], points1[seen], matches.scores[seen])
        return [found[i] for i in range(len(pairs))]

    def _together(self, looks: tuple[Looks, Looks], second: Matches, first: Matches) -> Matches:
        """The second look's matches, in original pixels, and the first's in cells without any."""
        points0 = looks[0].whole.back(first.keypoints0)
        new = ~np.isin(_cells(points0), _cells(second.keypoints0))
        if self.matcher.topk is not None:
            new &= np.cumsum(new) <= self.matcher.topk - len(second.scores)
        transforms = [look.whole.features.transform for look in looks]
        return Matches(
            np.concatenate([transforms[0].to_original(second.keypoints0), first.keypoints0[new]]),
            np.concatenate([transforms[1].to_original(second.keypoints1), first.keypoints1[new]]),
            np.concatenate([second.scores, first.scores[new]]),
        )


def _cells(points: np.ndarray) -> np.ndarray:
    """A number for each point's cell."""
    column, row = np.rint(points.T / CELL).astype(np.int64)
    numbers: np.ndarray = (row << 32) + column
    return numbers


def _apply(warp: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (M, 2) through an affine map (3, 3), float32."""
    return (points @ warp[:2, :2].T + warp[:2, 2]).astype(np.float32)
