"""Moves the points of matches to where the patches around both points agree best.

A semi-dense network tells a point's place to about a pixel; the photos themselves tell it to a
fraction of one, best at corners. So each match gives two: the strongest corner (Shi and Tomasi's
measure) of the cell around its point in one image, and where that corner is in the other. A cell's
corner is the same in all pairs of its image, so that points repeat. Its partner is found by
aligning the patches around both, related by the local affine map that neighbouring matches suggest,
with damped Gauss-Newton steps (Lucas and Kanade, in the inverse form of Baker and Matthews),
whatever the difference of brightness and contrast. The network's answer is a prior, so that along
an edge, or where there is no texture, a point stays.

Exact points tell wrong ones among them: a match stays if an affine map joins it with most of its
neighbours. And they tell what the network missed: the corners of the cells beside them are looked
for where the map has them, and what is found leads on to the next cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import KDTree
from torch import Tensor

from edm_hloc.base.frames import inside
from edm_hloc.base.grid import CELL
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, WrappingMatcher
from edm_hloc.models.types import default_topk

_FLAT = 0.02  # contrast (in [0, 1]) that is taken for noise
_LEAST_DETERMINANT = 0.05  # of a local map; others turn the patch over or squeeze it to a line
_CORNER = 5  # pixels a side of the neighbourhood that makes a corner
_FAINT = 3e-4  # strength of a corner that is taken for noise
_TWINS = 0.5  # pixels apart at most, in both photos together
_CHUNK = 512  # matches that are aligned together: what fits the cache of a CPU


@dataclass(frozen=True)
class RefinementConfig:
    """Lengths in pixels of the network's input.

    Attributes:
        radius: patches are squares of 2·radius + 1 pixels, weighted down towards their edge.
        prior: standard deviation of the network's points.
        noise: standard deviation of a pixel's difference between two true patches of contrast 1.
        iterations: Gauss-Newton steps a round.
        rounds: with better points the affine maps are better, and with these the points.
        min_correlation: matches whose aligned patches agree less are dropped (normalised
            cross-correlation; flat patches count as agreeing).
        neighbours: matches that tell the affine map around each.
        min_support: matches are dropped that fewer of their neighbours, as a share, agree with.
        min_aligned_support: likewise once they are aligned, when neighbours agree more closely.
        sure_correlation: matches whose patches agree so well need no such support, as what stands
            alone in front of a wall has none.
        least_to_grow: pairs with fewer matches, which may all be chance, stay as they are.
        min_grown_correlation: of the matches that are added beside others.
        enough: pairs with fewer matches are filled up to so many with those that the matcher is
            less than confident of, if the photos and their neighbours agree.
    """

    radius: int = 7
    prior: float = 2.0
    noise: float = 0.15
    iterations: int = 3
    rounds: int = 2
    min_correlation: float = 0.8
    neighbours: int = 20
    min_support: float = 0.4
    min_aligned_support: float = 0.8
    sure_correlation: float = 0.97
    least_to_grow: int = 50
    min_grown_correlation: float = 0.9
    enough: int = 400


class Alignment(NamedTuple):
    """Points (M, 2) float32 in pixels, and the correlation (M,) of the patches around them."""

    points: np.ndarray
    correlation: np.ndarray


class Photo(NamedTuple):
    """What refinement needs of a photo.

    Attributes:
        grey: (1, H, W) in [0, 1].
        corners: (H / 8, W / 8, 2) float32 pixels (x, y): the strongest corner of each cell.
        textured: (H / 8, W / 8) bool: it is one.
    """

    grey: Tensor
    corners: np.ndarray
    textured: np.ndarray


class Refinement(NamedTuple):
    """Aligned points (N, 2) float32 in pixels, the correlation (N,) of the patches around them,
    and the match (N,) that each pair of points comes from."""

    points0: np.ndarray
    points1: np.ndarray
    correlation: np.ndarray
    match: np.ndarray


def strongest_corners(grey: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Where in each cell the image changes most in the direction it changes least.

    Args:
        grey: (1, H, W) in [0, 1], on the CPU.

    Returns:
        (H / 8, W / 8, 2) float32 pixels (x, y), in the 8 px square around the cell's grid point, or
        half a pixel beyond; and (H / 8, W / 8) whether there is more than noise.
    """
    strength = cv2.cornerMinEigenVal(grey[0].float().numpy(), _CORNER)
    rows, columns = strength.shape[0] // CELL, strength.shape[1] // CELL
    half = CELL // 2
    padded = np.pad(strength, ((half, 0), (half, 0)), constant_values=-1.0)
    cells = padded[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
    dy, dx = (part.ravel() - half for part in np.mgrid[:CELL, :CELL])
    # Where all is flat the grid point is as good as any.
    cells = cells.transpose(0, 2, 1, 3).reshape(rows, columns, -1) - 1e-9 * (dx**2 + dy**2)
    place = cells.argmax(axis=2)
    y = np.arange(rows)[:, None] * CELL + dy[place]
    x = np.arange(columns) * CELL + dx[place]
    around = np.pad(strength, 1, mode="reflect")  # a peak at the border stays there
    peak = strength[y, x]
    dx = _vertex(around[y + 1, x], peak, around[y + 1, x + 2])
    dy = _vertex(around[y, x + 1], peak, around[y + 2, x + 1])
    return np.stack([x + dx, y + dy], axis=2).astype(np.float32), peak > _FAINT


def _vertex(before: np.ndarray, peak: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where the parabola through values at −1, 0 and 1 is highest; 0 unless that is the middle."""
    bend = np.maximum(2 * peak - before - after, 1e-12)
    place = (after - before) / (2 * bend)
    vertex: np.ndarray = np.where(np.abs(place) <= 0.5, place, 0.0)
    return vertex


def refine(
    photo0: Photo,
    photo1: Photo,
    points0: np.ndarray,
    points1: np.ndarray,
    config: RefinementConfig,
) -> Refinement:
    """Two pairs of points for each match: a corner next to either point, and what it looks like.

    First come those whose corner is in image 0. A corner that several matches lead to is given
    once, by the first of them.

    Args:
        photo0, photo1: sizes may differ.
        points0, points1: (M, 2) pixels, the top-left pixel's centre at (0, 0), best first.
    """
    affine = local_affine_maps(points0, points1, config.neighbours)
    inverse = np.linalg.inv(affine)
    first = _to_corners(points0, points1, affine, photo0.corners)
    second = _to_corners(points1, points0, inverse, photo1.corners)
    match = np.concatenate([first.match, second.match])
    split = len(first.match)
    points0 = np.concatenate([first.corners, second.others])
    points1 = np.concatenate([first.others, second.corners])
    correlation = np.zeros(len(match), np.float32)
    affine = affine[match]
    for number in range(config.rounds):
        if number > 0:
            affine = local_affine_maps(points0, points1, config.neighbours)
        onto1, onto0 = affine[:split], np.linalg.inv(affine[split:])
        in1 = align(photo0.grey, photo1.grey, points0[:split], points1[:split], onto1, config)
        in0 = align(photo1.grey, photo0.grey, points1[split:], points0[split:], onto0, config)
        points1[:split], points0[split:] = in1.points, in0.points
        correlation = np.concatenate([in1.correlation, in0.correlation])
    return Refinement(points0, points1, correlation, match)


def grow(
    photo0: Photo, photo1: Photo, found: Refinement, config: RefinementConfig, most: int
) -> Refinement:
    """Adds matches in cells that have none, beside those that have.

    The corner of such a cell is looked for where the affine map around the nearest match has it,
    first image 0's in image 1, then image 1's in image 0, and so on until there are `most` or
    nothing is added. A cell is asked once.
    """
    photos = photo0, photo1
    points = [found.points0, found.points1]
    correlation, match = found.correlation, found.match
    free = [photo.textured.copy() for photo in photos]
    for cells, taken in zip(free, points, strict=True):
        cells[_cells_of(taken, cells.shape)] = False
    fresh = 0  # what was there before has been asked
    while fresh < len(match) < most:
        new = np.arange(fresh, len(match))
        fresh = len(match)
        onto1 = local_affine_maps(points[0], points[1], config.neighbours, new)
        for here, affine in ((0, onto1), (1, np.linalg.inv(onto1))):
            beside = _beside(points[here][new], free[here])
            free[here][beside] = False
            corners = photos[here].corners[beside]
            if not len(corners):
                continue
            nearest = KDTree(points[here][new]).query(corners)[1]
            source = new[nearest]
            guess = _carried(
                corners, points[here][source], points[1 - here][source], affine[nearest]
            )
            grey, other = photos[here].grey, photos[1 - here].grey
            aligned = align(grey, other, corners, guess, affine[nearest], config)
            good = (
                (aligned.correlation >= config.min_grown_correlation)
                & (np.linalg.norm(aligned.points - guess, axis=1) <= config.prior / 2)
                & inside(aligned.points, other.shape[-1], other.shape[-2])
            ).nonzero()[0][: most - len(match)]
            points[here] = np.concatenate([points[here], corners[good]])
            points[1 - here] = np.concatenate([points[1 - here], aligned.points[good]])
            correlation = np.concatenate([correlation, aligned.correlation[good]])
            match = np.concatenate([match, match[source[good]]])
            # there may be several in a cell of the other image: they came from different ones
            cells = free[1 - here]
            cells[_cells_of(aligned.points[good], cells.shape)] = False
    return Refinement(points[0], points[1], correlation, match)


def _cells_of(points: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (N,) of the cells that points (N, 2) lie in."""
    column, row = np.rint(points.T / CELL).astype(np.int64)
    return row.clip(0, shape[0] - 1), column.clip(0, shape[1] - 1)


def _beside(points: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows and columns of those of the cells (R, C) that are next to a cell with a point."""
    taken = np.zeros(cells.shape, np.uint8)
    taken[_cells_of(points, cells.shape)] = 1
    return (cv2.dilate(taken, np.ones((3, 3), np.uint8)).astype(bool) & cells).nonzero()


class _AtCorners(NamedTuple):
    """Corners (N, 2), the other image's points (N, 2), and the match (N,) each is of."""

    corners: np.ndarray
    others: np.ndarray
    match: np.ndarray


def _to_corners(
    points: np.ndarray, others: np.ndarray, affine: np.ndarray, corners: np.ndarray
) -> _AtCorners:
    """Carries matches (M, 2), (M, 2) to the corners of the points' cells, each corner once."""
    row, column = _cells_of(points, corners.shape)
    match = np.sort(np.unique(row * corners.shape[1] + column, return_index=True)[1])
    found = corners[row[match], column[match]].astype(np.float32)
    return _AtCorners(found, _carried(found, points[match], others[match], affine[match]), match)


def _carried(
    corners: np.ndarray, points: np.ndarray, others: np.ndarray, affine: np.ndarray
) -> np.ndarray:
    """Where the maps (N, 2, 2) around matches (N, 2), (N, 2) have corners (N, 2) next to them."""
    moves = (affine @ (corners - points)[:, :, None])[:, :, 0]
    return (others + moves).astype(np.float32)


def local_affine_maps(
    points0: np.ndarray, points1: np.ndarray, neighbours: int, at: np.ndarray | None = None
) -> np.ndarray:
    """How the surroundings of matches map from image 0 to image 1.

    A robust fit to the nearest matches, drawn towards the identity where these are few or in a
    line.

    Args:
        points0, points1: (M, 2) pixels.
        neighbours: nearest other matches that count.
        at: (N,) matches to tell it for; by default all.

    Returns:
        (N, 2, 2) matrices.
    """
    centres0, centres1 = (points0, points1) if at is None else (points0[at], points1[at])
    count = min(neighbours + 1, len(points0))
    if count < 3:
        return np.tile(np.eye(2), (len(centres0), 1, 1))
    distance, nearest = KDTree(points0).query(centres0, k=count)
    source = points0[nearest] - centres0[:, None]
    target = points1[nearest] - centres1[:, None]
    fit = _robust_fit(source, target, np.exp(-((distance / (3 * CELL)) ** 2)), 1.5)
    maps = np.ascontiguousarray(fit[:, :2].transpose(0, 2, 1))
    maps[np.linalg.det(maps) < _LEAST_DETERMINANT] = np.eye(2)
    return maps


def neighbour_support(
    points0: np.ndarray, points1: np.ndarray, neighbours: int, aligned: bool = False
) -> np.ndarray:
    """Share of each match's neighbours that lie where one affine map through the match has them.

    Neighbours agree within half a cell and a tenth of their distance, which leaves room for depth;
    aligned ones within half of that.

    Args:
        points0, points1: (M, 2) pixels.
        neighbours: nearest other matches in image 0 that are asked.
        aligned: the matches have been.

    Returns:
        (M,) in [0, 1]; 1 where there are too few matches to ask.
    """
    if len(points0) < 4:
        return np.ones(len(points0))
    distance, nearest = KDTree(points0).query(points0, k=min(neighbours + 1, len(points0)))
    distance, nearest = distance[:, 1:], nearest[:, 1:]
    source = points0[nearest] - points0[:, None]
    target = points1[nearest] - points1[:, None]
    # The map of the neighbours among themselves: a wrong match in their middle has no part in it.
    close = 0.5 if aligned else 1.0
    fit = _robust_fit(source, target, np.ones_like(distance), 3.0 * close)
    away = np.linalg.norm(source @ fit[:, :2] - target, axis=2)
    share: np.ndarray = (away < close * (CELL / 2 + 0.1 * distance)).mean(axis=1)
    return share


def _robust_fit(
    source: np.ndarray, target: np.ndarray, weight: np.ndarray, scale: float
) -> np.ndarray:
    """Affine maps (N, 3, 2), the shift last, of (N, K, 2) onto (N, K, 2) points.

    They minimise a Cauchy loss of `scale` pixels, weighted by (N, K).
    """
    source = np.concatenate([source, np.ones((*source.shape[:2], 1))], axis=2)
    # Worth half a neighbour at the distance of a cell; nearly nothing for the common shift.
    prior = np.diag([0.5 * CELL**2, 0.5 * CELL**2, 1e-3])
    identity = np.eye(3)[:, :2]
    near = weight
    for _ in range(5):  # iteratively reweighted
        weighted = (source * weight[..., None]).transpose(0, 2, 1)
        fit = np.linalg.solve(weighted @ source + prior, weighted @ target + prior @ identity)
        squared = ((source @ fit - target) ** 2).sum(axis=2)
        weight = near / (1.0 + squared / scale**2)
    return fit


def align(
    image0: Tensor,
    image1: Tensor,
    points0: np.ndarray,
    points1: np.ndarray,
    affine: np.ndarray,
    config: RefinementConfig,
) -> Alignment:
    """Moves the points of image 1 to where their surroundings look most like image 0's.

    Args:
        image0, image1: (1, H, W) grey in [0, 1].
        points0, points1: (M, 2) pixels, the top-left pixel's centre at (0, 0).
        affine: (M, 2, 2), from image 0 to image 1 around each match.
    """
    points, correlation = [np.zeros((0, 2), np.float32)], [np.zeros(0, np.float32)]
    for start in range(0, len(points0), _CHUNK):
        part = slice(start, start + _CHUNK)
        p0, p1, A = (
            torch.as_tensor(values[part], dtype=torch.float32, device=image0.device)
            for values in (points0, points1, affine)
        )
        moved, agreement = _align(image0, image1, p0, p1, A, config)
        points.append(moved.cpu().numpy())
        correlation.append(agreement.cpu().numpy())
    return Alignment(np.concatenate(points), np.concatenate(correlation))


def _align(
    image0: Tensor, image1: Tensor, p0: Tensor, p1: Tensor, A: Tensor, config: RefinementConfig
) -> tuple[Tensor, Tensor]:
    wide = _square(config.radius + 1, p0.device)
    patch = wide[1:-1, 1:-1].flatten(0, 1)  # (P, 2)
    weight = torch.exp(-patch.square().sum(dim=1) / (2 * (config.radius / 1.7) ** 2))
    weight = weight / weight.sum()
    seen = _sample(image0, p0, wide.flatten(0, 1) * _pixel(image0))
    seen = seen.unflatten(1, wide.shape[:2])
    values = seen[:, 1:-1, 1:-1].flatten(1)
    dx = seen[:, 1:-1, 2:] - seen[:, 1:-1, :-2]
    dy = seen[:, 2:, 1:-1] - seen[:, :-2, 1:-1]
    J = torch.stack([dx, dy], dim=1).flatten(2) / 2
    mean = values @ weight
    contrast = _contrast(values, mean, weight)[:, None]
    template = (values - mean[:, None]) / contrast
    # Derivative of the normalised patch by the shift in image 1, (M, 2, P), taken from image 0
    # where it stays the same in all steps; what only changes mean and contrast does not count.
    J = torch.linalg.inv(A).mT @ J / contrast[..., None]
    weighted = weight * template
    J = J - (J @ weight)[..., None] - (J @ weighted[..., None]) * template[:, None]
    damping = (config.noise / config.prior) ** 2
    inverse = torch.linalg.inv((J * weight) @ J.mT + damping * torch.eye(2, device=J.device))
    # What a step asks of a patch: how much it is like the template, and where that is better. All
    # three rows sum to zero, so that the mean of the patch does not matter.
    basis = torch.cat([weighted[:, None], inverse @ (J * weight)], dim=1)
    own = (basis @ template[..., None])[..., 0]

    around = patch @ (A.mT * _pixel(image1))
    best_cost = torch.full_like(p1[:, 0], torch.inf)
    best = torch.zeros_like(p1)
    agreement = torch.zeros_like(best_cost)
    shift = torch.zeros_like(p1)
    for step in range(config.iterations + 1):
        seen = _sample(image1, p1 + shift, around)
        contrast = _contrast(seen, seen @ weight, weight)[:, None]
        found = (basis @ seen[..., None])[..., 0] / contrast
        power = (1 - _FLAT / contrast[:, 0]).square()
        squared = power - 2 * found[:, 0] + own[:, 0]
        cost = squared + damping * shift.square().sum(dim=1)
        better = cost < best_cost
        best_cost = torch.where(better, cost, best_cost)
        best = torch.where(better[:, None], shift, best)
        agreement = torch.where(better, 1 - squared / 2, agreement)
        if step == config.iterations:
            break
        pull = damping * (inverse @ shift[..., None])[..., 0]
        update = own[:, 1:] - found[:, 1:] - pull
        # From the best place so far; half a step back where the last one did not help.
        shift = torch.where(better[:, None], shift + update, (shift + best) / 2)
        shift = shift.clamp(-2 * config.prior, 2 * config.prior)
    return p1 + best, agreement


def _contrast(values: Tensor, mean: Tensor, weight: Tensor) -> Tensor:
    """Standard deviation (M,) of patches (M, P), and what is taken for noise."""
    variance = values.square() @ weight - mean.square()
    return variance.clamp(min=0).sqrt() + _FLAT


def _square(radius: int, device: torch.device) -> Tensor:
    """(2·radius + 1, 2·radius + 1, 2) pixels (x, y) around (0, 0)."""
    steps = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=2)


def _pixel(image: Tensor) -> Tensor:
    """(2,) width and height of a pixel where the image is [−1, 1]², as for `grid_sample`."""
    return 2 / torch.tensor([image.shape[-1], image.shape[-2]], device=image.device)


def _sample(image: Tensor, points: Tensor, around: Tensor) -> Tensor:
    """Values (M, P) of (1, H, W) around points (M, 2), pixels; the border repeats outside.

    Args:
        around: (P, 2) or (M, P, 2), the image being [−1, 1]².
    """
    grid = around + ((points + 0.5) * _pixel(image) - 1)[:, None]
    return F.grid_sample(
        image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0, 0]


class RefinedMatcher(WrappingMatcher):
    """Another matcher whose matches are refined by the photos themselves.

    It also keeps each photo, in half precision, and its corners: 2.1 bytes a pixel of the network's
    input. Each match of the other gives up to two, and what is beside them is added until there
    are as many as the network's own could give. Scores are the network's times the correlation.
    """

    def __init__(self, matcher: Matcher, config: RefinementConfig | None = None) -> None:
        super().__init__(matcher)
        self.config = config or RefinementConfig()

    @property
    def provenance(self) -> Mapping[str, str | int | float | bool | None]:
        settings = {f"refinement_{k}": v for k, v in asdict(self.config).items()}
        return {**self.matcher.provenance, **settings}

    def encode(self, image: NetworkImage) -> Features:
        features = self.matcher.encode(image)
        grey = image.tensor.mean(dim=0, keepdim=True)
        photo = Photo(grey.half().to(self.device), *strongest_corners(grey))
        nbytes = features.nbytes + sum(part.nbytes for part in photo)
        return Features((features, photo), image.transform, nbytes)

    def to_host(self, features: Features) -> Features | None:
        inner, photo = features.data
        on_host = self.matcher.to_host(inner)
        if on_host is None:
            return None
        return replace(features, data=(on_host, photo._replace(grey=photo.grey.cpu())))

    def from_host(self, features: Features) -> Features:
        inner, photo = features.data
        on_device = photo._replace(grey=photo.grey.to(self.device))
        return replace(features, data=(self.matcher.from_host(inner), on_device))

    @torch.inference_mode()
    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        found = self.matcher.match_batch(
            [(first.data[0], second.data[0]) for first, second in pairs]
        )
        return [
            self._refine(first, second, matches)
            for (first, second), matches in zip(pairs, found, strict=True)
        ]

    def _refine(self, features0: Features, features1: Features, matches: Matches) -> Matches:
        config = self.config
        points0 = features0.transform.to_network(matches.keypoints0)
        points1 = features1.transform.to_network(matches.keypoints1)
        support = neighbour_support(points0, points1, config.neighbours)
        kept = support >= config.min_support
        trusted = kept & (matches.scores >= self.confident)
        if trusted.sum() >= config.enough:
            kept = trusted
        # The best first, as `refine` wants them.
        order = np.argsort(-np.where(kept, matches.scores, -1), kind="stable")[: kept.sum()]
        scores = matches.scores[order]
        photo0, photo1 = (
            photo._replace(grey=photo.grey.float())
            for photo in (features0.data[1], features1.data[1])
        )
        refined = refine(photo0, photo1, points0[order], points1[order], config)
        agree = (
            (refined.correlation >= config.min_correlation)
            & inside(refined.points0, *photo0.grey.shape[:0:-1])
            & inside(refined.points1, *photo1.grey.shape[:0:-1])
        ).nonzero()[0]
        score = scores[refined.match[agree]]
        count = max(2 * config.enough, int((score >= self.confident).sum()))
        best = agree[np.argsort(-score, kind="stable")[:count]]
        most = self.matcher.topk or 2 * default_topk(photo0.textured.size)  # each may give two
        refined = _distinct(_chosen(refined, best))
        sure = refined.correlation >= config.sure_correlation
        found = self._supported(refined)
        if len(found.match) >= config.least_to_grow:
            found = self._supported(_distinct(grow(photo0, photo1, found, config, most)))
        found = _distinct(_joined(found, _chosen(refined, sure.nonzero()[0])))
        # The points of one match differ in correlation: ties would cost them where they are merged.
        scores = scores[found.match] * found.correlation.clip(min=0)
        order = np.argsort(-scores, kind="stable")[:most]
        return Matches(
            features0.transform.to_original(found.points0[order]),
            features1.transform.to_original(found.points1[order]),
            scores[order],
        )

    def _supported(self, found: Refinement) -> Refinement:
        count = self.config.neighbours
        support = neighbour_support(found.points0, found.points1, count, aligned=True)
        return _chosen(found, (support >= self.config.min_aligned_support).nonzero()[0])


def _chosen(found: Refinement, which: np.ndarray) -> Refinement:
    return Refinement(*(values[which] for values in found))


def _joined(first: Refinement, second: Refinement) -> Refinement:
    return Refinement(*(np.concatenate(both) for both in zip(first, second, strict=True)))


def _distinct(found: Refinement) -> Refinement:
    """Without the matches that repeat an earlier one, as where both photos have the same corner."""
    places = np.concatenate([found.points0, found.points1], axis=1)
    twins = KDTree(places).query_pairs(_TWINS, output_type="ndarray")
    return _chosen(found, np.setdiff1d(np.arange(len(places)), twins.max(axis=1, initial=-1)))
