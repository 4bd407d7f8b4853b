"""Pairs of a COLMAP model's images: those that share 3D points, or whose cameras are near."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
from scipy.sparse import csr_array

from edm_hloc.base.colmap import centres_of, posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.grid import blocks
from edm_hloc.pairs.rules import (
    Pair,
    exhaustive,
    in_natural_order,
    sequential,
    unique_pairs,
)

_BLOCK = 256  # rows of the (images × images) table of scores that are in memory at a time
_NEXT = 3  # images by name that each is paired with where poses may be wrong
_MAX_ROTATION = 30.0  # degrees between two cameras that may see the same things


def from_model(model: Path, num_matched: int) -> list[Pair]:
    """`from_covisibility` for a model with points, `from_cameras` for one without.

    Raises:
        EdmHlocError: as those two.
    """
    reconstruction = read_model(model)
    if reconstruction.num_points3D():
        return _by_covisibility(reconstruction, model, num_matched)
    return from_cameras(reconstruction, model, num_matched)


def from_covisibility(model: Path, num_matched: int) -> list[Pair]:
    """Each image of a COLMAP model with those that share most 3D points with it.

    Args:
        model: folder of the model.
        num_matched: number of partners of each image.

    Raises:
        EdmHlocError: the model cannot be read, or no two images share a point.
    """
    return _by_covisibility(read_model(model), model, num_matched)


def _by_covisibility(
    reconstruction: pycolmap.Reconstruction, model: Path, num_matched: int
) -> list[Pair]:
    names, sees = visibility(reconstruction)
    seen_by = sees.T.tocsr()
    pairs = []
    for block in blocks(len(names), _BLOCK):
        rows = np.arange(block.start, block.stop)
        shared = (sees[rows] @ seen_by).toarray()
        shared[np.arange(len(shared)), rows] = 0
        pairs += _best(names, rows, shared.astype(np.float64), num_matched, at_least=1)
    if not pairs:
        raise EdmHlocError(
            f"No two images of {model} share a 3D point: get the model again if it should have "
            "points, or take pairs from its poses instead."
        )
    return unique_pairs(pairs)


def from_cameras(
    reconstruction: pycolmap.Reconstruction,
    model: Path,
    num_matched: int,
    max_rotation: float = _MAX_ROTATION,
) -> list[Pair]:
    """Each image of a COLMAP model with the nearest ones that look in a similar direction.

    Args:
        reconstruction: the model, which need not have points.
        model: where it is from, for the message.
        num_matched: number of partners of each image.
        max_rotation: largest angle between the orientations of two cameras, degrees.

    Raises:
        EdmHlocError: no two cameras have similar orientations.
    """
    images = posed_images(reconstruction)
    names = list(images)
    centres = centres_of(images.values())
    centres -= centres.mean(axis=0) if len(names) else 0.0
    rotations = np.array(
        [image.cam_from_world().rotation.matrix().ravel() for image in images.values()]
    ).reshape(-1, 9)
    min_trace = 1.0 + 2.0 * np.cos(np.deg2rad(min(max_rotation, 180.0))) - 1e-9
    pairs = []
    for block in blocks(len(names), _BLOCK):
        rows = np.arange(block.start, block.stop)
        # the trace of R_i R_jᵀ is 1 + 2 cos of the angle between the two orientations
        turned_away = rotations[rows] @ rotations.T < min_trace
        distance = np.linalg.norm(centres[rows, None] - centres[None], axis=2)
        distance[turned_away] = np.inf
        distance[np.arange(len(distance)), rows] = np.inf
        pairs += _best(names, rows, -distance, num_matched, at_least=-np.finfo(np.float64).max)
    if not pairs:
        raise EdmHlocError(
            f"No two cameras of {model} look within {max_rotation:g}° of each other. "
            "Allow a larger rotation."
        )
    return unique_pairs(pairs)


def for_rough_poses(model: pycolmap.Reconstruction, source: Path, partners: int) -> list[Pair]:
    """Pairs of cameras whose poses are not exact, and some of which may be quite wrong.

    All pairs where each image has no more than `partners` others; else those of `from_cameras`, and
    each image with the next three by name: a camera with a wrong pose has its true neighbours among
    them, as photos are mostly named in the order in which they were taken.

    Args:
        model: the posed cameras.
        source: where they are from, for the message.
        partners: number of partners of each image.

    Raises:
        EdmHlocError: no two cameras have similar orientations.
    """
    names = in_natural_order(posed_images(model))
    if len(names) <= partners + 1:
        return exhaustive(names)
    try:
        near = from_cameras(model, source, partners)
    except EdmHlocError as error:
        raise EdmHlocError(
            f"No two cameras of {source} look within {_MAX_ROTATION:g}° of each other: are they in "
            "the convention of their format? --pairs auto chooses pairs without them."
        ) from error
    return unique_pairs([*near, *sequential(names, _NEXT)])


def visibility(model: pycolmap.Reconstruction) -> tuple[list[str], csr_array]:
    """Which registered image of a model observes which 3D point.

    Returns:
        Names of the N registered images, in the order of `posed_images`, and an (N, P) int32
        matrix, 1 where an image is in a point's track; points in the order of `model.points3D`.
    """
    images = posed_images(model)
    index = {image.image_id: i for i, image in enumerate(images.values())}
    tracks = [
        [index[element.image_id] for element in point.track.elements if element.image_id in index]
        for point in model.points3D.values()
    ]
    ends = np.cumsum([0] + [len(track) for track in tracks])
    rows = np.fromiter((i for track in tracks for i in track), np.int64, count=int(ends[-1]))
    seen_by = csr_array(
        (np.ones(len(rows), np.int32), rows, ends), shape=(len(tracks), len(images))
    )
    seen_by.sum_duplicates()
    seen_by.data[:] = 1  # a track may have two observations in one image
    return list(images), seen_by.T.tocsr()


def _best(
    names: Sequence[str], rows: np.ndarray, scores: np.ndarray, k: int, *, at_least: float
) -> list[Pair]:
    """Pairs of the images `rows` with their best others.

    Args:
        names: of all N images.
        rows: (R,) consecutive indices of images.
        scores: (R, N) of each of them with all images, higher is better.
        k: most partners of an image.
        at_least: smallest score of a partner.

    Returns:
        The partners of each image in descending order of score.
    """
    if k < 1:
        raise EdmHlocError("The number of images to match each image with must be at least 1.")
    k = min(k, scores.shape[1])
    columns = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    best = np.take_along_axis(scores, columns, axis=1)
    order = np.lexsort((columns, -best), axis=1)
    pairs = []
    for row, places, kept in zip(rows, columns, order, strict=True):
        good = places[kept][scores[row - rows[0], places[kept]] >= at_least]
        pairs += [(names[row], names[column]) for column in good]
    return pairs
