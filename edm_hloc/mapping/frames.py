"""The similarity between two models of the same photos, and the way to the origin and back."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pycolmap

from edm_hloc.base.colmap import centres_of, posed_images
from edm_hloc.base.geometry import nearest_rotation

_OUTLIER = 3.0  # times the median distance: images that moved so far do not determine the frame


def frame_change(
    model: pycolmap.Reconstruction,
    earlier: pycolmap.Reconstruction,
    names: Collection[str],
    *,
    scaled: bool = True,
) -> pycolmap.Sim3d:
    """The similarity that brings cameras of a model to where they are in an earlier one.

    Rotations count as well as centres, so that cameras in a row determine it. Cameras that moved
    much more than the others do not count.

    Args:
        model, earlier: the two models.
        names: images to compare; those that are not in both do not count.
        scaled: or else the similarity has a scale of 1.
    """
    now, then = posed_images(model), posed_images(earlier)
    common = sorted(set(names) & now.keys() & then.keys())
    new, old = (
        [
            (p[name].cam_from_world().rotation.matrix(), p[name].projection_center())
            for name in common
        ]
        for p in (now, then)
    )
    turns = np.array([b[0].T @ a[0] for a, b in zip(new, old, strict=True)])
    centres, targets = (np.array([c for _, c in rows]) for rows in (new, old))
    use = np.ones(len(common), bool)
    for _ in range(3):
        R = nearest_rotation(turns[use].sum(axis=0))
        middle, goal = centres[use].mean(axis=0), targets[use].mean(axis=0)
        turned = (centres - middle) @ R.T
        spread = (turned[use] ** 2).sum()
        scale = float((turned[use] * (targets[use] - goal)).sum() / spread) if spread > 0 else 1.0
        scale = scale if scaled else 1.0
        error = np.linalg.norm(scale * turned + goal - targets, axis=1)
        use = error <= max(_OUTLIER * float(np.median(error)), 1e-12)
    return pycolmap.Sim3d(scale, pycolmap.Rotation3d(R), goal - scale * R @ middle)


def move_to_origin(model: pycolmap.Reconstruction) -> pycolmap.Sim3d:
    """Moves a model to where its cameras are around the origin.

    An adjustment turns cameras about the origin, so it fails for those that are a hundred times
    their extent away from it, as in the coordinates of a map.

    Args:
        model: changed in place; it has posed images.

    Returns:
        The way back.
    """
    middle = np.median(centres_of(posed_images(model).values()), axis=0)
    model.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(), -middle))
    return pycolmap.Sim3d(1.0, pycolmap.Rotation3d(), middle)
