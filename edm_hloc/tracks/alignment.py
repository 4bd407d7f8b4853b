"""All photos of each track aligned to the mean of their patches, warped by the model's geometry."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from edm_hloc.base.compiled import floats
from edm_hloc.base.frames import from_colmap
from edm_hloc.base.progress import StepProgress
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import (
    Tracks,
    Views,
    determinants,
    mean_directions,
    plane_normals,
    reference_observations,
    spread_out,
    surface_maps,
)
from edm_hloc.tracks.kernel import align_tracks
from edm_hloc.tracks.photos import PhotoShelf, PhotoStack

_NOISE_CONTRAST = 2.0  # standard deviation of grey values, of 255, that is taken for noise
_SMALLEST_MAP, _LARGEST_MAP = 1e-3, 1e3  # determinants of maps between photos that are of use
_STEEPEST_MAP = 0.04  # change of scale a pixel of the patch, likewise
_BLOCK = 4000  # points that a thread aligns at a time
_BYTES_PER_PIXEL = 4 / 3  # of a photo with its reduced copies


@dataclass(frozen=True)
class Alignment:
    """What `align` gives for the observations (N,) and points (T,).

    Attributes:
        xy: (N, 2) aligned pixels, COLMAP's frame; NaN where nothing was aligned.
        moved: (N,) distance from the point's projection, pixels; NaN where nothing was aligned.
        correlation: (N,) of each patch with the mean of the others of its track, −1 where nothing
            was aligned.
        texture: (T,) gradient of the mean patch along the direction in which it is smallest, in
            contrasts per pixel.
    """

    xy: np.ndarray
    moved: np.ndarray
    correlation: np.ndarray
    texture: np.ndarray


class AlignmentSettings(NamedTuple):
    """What differs between the alignments of a run.

    Attributes:
        radius: of the patches.
        threads: number of them.
        shown: whether progress is shown.
    """

    radius: int
    threads: int
    shown: bool = True


@dataclass(frozen=True)
class _Round:
    """What all blocks of a round have in common.

    Attributes:
        views: the photos' cameras.
        config: the settings.
        radius: of the patches.
        facing, planes: (T, 3) normals of all points' surfaces, by the two geometries.
        votes: (N,) which observations count in the mean of their track.
    """

    views: Views
    config: TrackConfig
    radius: int
    facing: np.ndarray
    planes: np.ndarray
    votes: np.ndarray


def align(
    tracks: Tracks,
    voting: np.ndarray,
    views: Views,
    shelf: PhotoShelf,
    config: TrackConfig,
    how: AlignmentSettings,
) -> Alignment:
    """Aligns the photos of each track, from the projections of its point on.

    Args:
        tracks: points and observations.
        voting: (N,) which observations may count in the mean of their track.
        views: the photos' cameras.
        shelf: their pixels.
        config: the settings.
        how: patches, threads and progress.
    """
    voters = tracks.chosen(voting)
    facing = mean_directions(voters, views)
    votes = np.zeros(len(voting), np.float32)
    votes[np.flatnonzero(voting)] = spread_out(voters, views, config.max_photos)
    planes = plane_normals(tracks.xyz, facing, config.neighbours)
    of_round = _Round(views, config, how.radius, facing, planes, votes)
    n = len(voting)
    found = Alignment(
        np.full((n, 2), np.nan), np.full(n, np.nan), np.full(n, -1.0), np.zeros(len(tracks.ids))
    )
    with (
        StepProgress("Refining tracks", "point", len(tracks.ids), shown=how.shown) as progress,
        ThreadPoolExecutor(how.threads) as pool,
    ):
        for rows, needed in _groups(tracks, views, config):
            blocks = [rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK)]
            # nothing here keeps the stack, so that it is gone before the next is made
            align_block = partial(_align_block, tracks, shelf.stack(needed), of_round)
            results = pool.map(align_block, blocks)
            del align_block
            for block, (its, xy, moved, correlation, texture) in zip(blocks, results, strict=True):
                found.xy[its], found.moved[its] = xy, moved
                found.correlation[its], found.texture[block] = correlation, texture
                progress.update(len(block))
    return found


def _groups(
    tracks: Tracks, views: Views, config: TrackConfig
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Points in groups whose photos fit in the memory, and the numbers of these photos."""
    sizes = np.array([(camera.width, camera.height) for camera in views.cameras], float)
    reduction = np.minimum(1.0, config.max_side / np.maximum(sizes.max(axis=1), 1.0))
    room = sizes.prod(axis=1) * reduction**2 * _BYTES_PER_PIXEL
    seen = np.flatnonzero(np.diff(tracks.start))
    middle = tracks.view[(tracks.start[seen] + tracks.start[seen + 1]) // 2]
    order = seen[np.argsort(middle, kind="stable")]  # points of the same photos together
    every = np.unique(tracks.view)
    if room[every].sum() <= config.photo_bytes:
        if len(order):
            yield order, every
        return
    needed, first, used = np.zeros(len(sizes), bool), 0, 0.0
    for k, t in enumerate(order.tolist()):
        its = tracks.view[tracks.start[t] : tracks.start[t + 1]]
        new = np.unique(its[~needed[its]])
        if used + room[new].sum() > config.photo_bytes and k > first:
            yield order[first:k], np.flatnonzero(needed)
            needed[:], first, used, new = False, k, 0.0, np.unique(its)
        needed[new] = True
        used += room[new].sum()
    if first < len(order):
        yield order[first:], np.flatnonzero(needed)


def _align_block(
    every: Tracks, stack: PhotoStack, of_round: _Round, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Some points aligned: their observations' numbers, and the fields of `Alignment`."""
    views, config = of_round.views, of_round.config
    tracks, its = every.part(rows)
    start = views.project(tracks.xyz[tracks.track], tracks.view)
    usable = _inside(start, views, tracks.view) & (stack.first[tracks.view] >= 0)
    tracks, its, start = tracks.chosen(usable), its[usable], start[usable]
    first = stack.first[tracks.view]
    largest = stack.scales[first]
    by_planes, by_facing = (
        _between_photos(tracks, _scaled(surface_maps(tracks, views, normals[rows], start), largest))
        for normals in (of_round.planes, of_round.facing)
    )
    good = _of_use(by_planes)
    by_planes = np.where(good[:, None, None], by_planes, by_facing)
    usable = _of_use(by_planes)
    if not usable.any():
        return its[:0], start[:0], start[:0, 0], start[:0, 0], np.zeros(len(rows))
    tracks, its, start = tracks.chosen(usable), its[usable], start[usable]
    first, largest = first[usable], largest[usable]
    maps = np.array([by_planes[usable], by_facing[usable]])
    # The copy of the photo that has about as many pixels to a pixel of the patch
    scale = np.sqrt(np.abs(determinants(maps[0])))
    level = np.clip(np.floor(np.log2(scale) + 0.5), 0, stack.number[tracks.view] - 1)
    copy = first + level.astype(int)
    scales = stack.scales[copy]
    shifts, correlation, texture = align_tracks(
        (stack.pixels, stack.places),
        (
            tracks.start,
            copy,
            floats(from_colmap(start * scales)),
            of_round.votes[its],
        ),
        floats(_scaled(maps, scales / largest)),
        (
            int(of_round.radius),
            int(config.iterations),
            float(config.damping),
            _NOISE_CONTRAST,
            float(config.max_shift),
        ),
    )
    shifts = shifts / scales
    return its, start + shifts, np.linalg.norm(shifts, axis=1), correlation, texture


def _scaled(maps: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Maps (…, N, 3, 2) to copies of their photos, whose sizes are (N, 2) times as large."""
    return np.concatenate([maps[..., :2, :] * scales[:, :, None], maps[..., 2:, :]], axis=-2)


def _between_photos(tracks: Tracks, surface: np.ndarray) -> np.ndarray:
    """Maps (N, 3, 2) to each photo from the one that shows the same point at the middle scale.

    Args:
        surface: (N, 3, 2) how pixels move by shifts along the point's surface.
    """
    if not len(surface):
        return surface
    reference = surface[reference_observations(tracks, surface)]
    determinant = determinants(reference)
    sure = np.isfinite(determinant) & (np.abs(determinant) > 0)
    (a, b), (c, d), away = reference.transpose(1, 2, 0)
    back = np.array([[d, -b], [-c, a]]).transpose(2, 0, 1)
    back /= np.where(sure, determinant, np.nan)[:, None, None]
    surface = surface.copy()
    surface[:, 2] -= away.T[tracks.track]
    return np.asarray(surface @ back[tracks.track])


def _of_use(maps: np.ndarray) -> np.ndarray:
    """Which of the maps (N, 3, 2) are finite and of a sensible scale."""
    determinant = np.abs(determinants(maps))  # NaN is neither
    steep = np.abs(maps[:, 2]).sum(axis=1)
    sensible = (determinant > _SMALLEST_MAP) & (determinant < _LARGEST_MAP)
    return np.asarray(sensible & (steep < _STEEPEST_MAP))


def _inside(xy: np.ndarray, views: Views, view: np.ndarray) -> np.ndarray:
    """Whether pixels (N, 2) in COLMAP's frame lie in their photos; NaN does not."""
    size = np.array([(camera.width, camera.height) for camera in views.cameras])[view]
    return np.asarray(((xy > 0) & (xy < size)).all(axis=1))
