"""Models that share photos → one model of all their photos.

COLMAP's mapper begins another model where the photos that are left see too little of the first, and
lets it grow over some of the photos of the first. Their poses in both models tell how one lies to
the other.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import open_database, posed_images, verified_pairs
from edm_hloc.mapping.completion import complete_model
from edm_hloc.mapping.contradictions import misplaced_photos
from edm_hloc.mapping.database_reading import IdPair
from edm_hloc.mapping.frames import frame_change

logger = logging.getLogger(__name__)

_SHARED = 4  # photos of two models, at least, that tell how they lie to one another, or
_INDEPENDENT = 2  # where no verified pair connects them: neighbours can be wrong together
_AGREEING = 0.75  # share of these whose poses agree, all if they are fewer than four
_ROTATION = 3.0  # degrees between poses that agree
_POSITION = 0.05  # distance of their centres, of the median distance of the points
_KEPT = 0.95  # share of the images that are left in the joined model
_MOST_ERROR = 1.3  # reprojection error of the joined model, of the largest of the others'


def join_models(
    models: Sequence[pycolmap.Reconstruction],
    database: Path,
    colmap: pycolmap.IncrementalPipelineOptions,
) -> list[pycolmap.Reconstruction]:
    """Joins models in which the photos that they share have the same poses.

    All points of the joined model are triangulated anew, and all cameras adjusted together. It is
    kept if hardly an image is lost by that, if its points fit no worse, and if its poses contradict
    the matches of no more images.

    Args:
        models: of images of the database, the largest first; they stay as they are.
        database: the database that they were mapped from.
        colmap: options of the mapper.

    Returns:
        The joined models and those that could not be joined, in no particular order.
    """
    if len(models) < 2:
        return list(models)
    joined = []
    least = max(1, colmap.min_num_matches)
    with open_database(database) as db:
        verified = verified_pairs(db, least)

    def misplaced(found: Sequence[pycolmap.Reconstruction]) -> int:
        return len(misplaced_photos(found, database, least))

    for group in group_models(models, verified):
        if len(group) == 1:
            joined.append(group[0])
            continue
        first, *others = group
        own = {i: np.arange(image.num_points2D()) for i, image in first.images.items()}
        whole = complete_model(first, own, database, colmap, others)
        all_images = {i for model in group for i in model.reg_image_ids()}
        error = max(model.compute_mean_reprojection_error() for model in group)
        if (
            whole.num_reg_images() >= _KEPT * len(all_images)
            and whole.compute_mean_reprojection_error() <= _MOST_ERROR * error
            and misplaced([whole]) <= misplaced(group)
        ):
            counts = " and ".join(str(model.num_reg_images()) for model in group)
            logger.info("Models of %s photos became one of %d.", counts, whole.num_reg_images())
            joined.append(whole)
        else:
            joined += group
    return joined


def group_models(
    models: Sequence[pycolmap.Reconstruction], verified: Collection[IdPair]
) -> list[list[pycolmap.Reconstruction]]:
    """Models in groups of those that belong together, in the frame of the first of each group.

    Args:
        models: of images with the same ids, the largest first; they stay as they are.
        verified: ids of the images of the verified pairs, the smaller first.

    Returns:
        The groups in the order of their first models, which are those of `models`; the others are
        copies.
    """
    groups: list[list[pycolmap.Reconstruction]] = []
    for model in models:
        for group in groups:
            placed = next(
                (m for m in (_placed(model, other, verified) for other in group) if m), None
            )
            if placed is not None:
                group.append(placed)
                break
        else:
            groups.append([model])
    return groups


def _placed(
    model: pycolmap.Reconstruction, other: pycolmap.Reconstruction, verified: Collection[IdPair]
) -> pycolmap.Reconstruction | None:
    """A copy of a model in the frame of another; None where shared photos do not tell that."""
    here, there = posed_images(model), posed_images(other)
    shared = sorted(here.keys() & there.keys())
    ids = sorted(here[name].image_id for name in shared)
    independent = not any(pair in verified for pair in itertools.combinations(ids, 2))
    if len(shared) < (_INDEPENDENT if independent else _SHARED):
        return None
    placed = pycolmap.Reconstruction(model)
    placed.transform(frame_change(model, other, shared))
    moved = posed_images(placed)
    agreeing = 0
    for name in shared:
        a, b = moved[name], there[name]
        turn = a.cam_from_world().rotation.angle_to(b.cam_from_world().rotation)
        apart = np.linalg.norm(a.projection_center() - b.projection_center())
        near = apart < _POSITION * _depth(other, b)
        agreeing += bool(near and np.degrees(turn) < _ROTATION)
    least = _AGREEING if len(shared) >= _SHARED else 1.0
    return placed if agreeing >= least * len(shared) else None


def _depth(model: pycolmap.Reconstruction, image: pycolmap.Image) -> float:
    """Median distance of the points that an image observes."""
    ids = [p.point3D_id for p in image.get_observation_points2D()]
    if not ids:
        return 0.0
    xyz = np.array([model.points3D[i].xyz for i in ids])
    return float(np.median(np.linalg.norm(xyz - image.projection_center(), axis=1)))
