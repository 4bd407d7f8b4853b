"""Points whose photos do not agree: they stay in a model as they were mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
import pycolmap

from edm_hloc.mapping.options import MappingOptions
from edm_hloc.tracks.adjustment import Freedom, adjuster_of, reprojection_errors, robust_scale
from edm_hloc.tracks.geometry import Tracks, Views


def put_back(
    model: pycolmap.Reconstruction,
    mapped: pycolmap.Reconstruction,
    repeated: Set[int],
    options: MappingOptions,
    late: Mapping[int, Sequence[tuple[int, int]]] | None = None,
) -> set[int]:
    """Puts the points that a refined model has lost back into it, with the keypoints they had.

    Only the points move, to where the refined cameras see them best: their keypoints are several
    times less exact than aligned ones, and so tell the cameras little that these do not know.

    Args:
        model: changed in place; its keypoints have the numbers of those of `mapped`.
        mapped: the model before.
        repeated: ids of points that others repeat; they stay out.
        options: maximum reprojection error, minimum angle of a point's rays, and threads.
        late: image and keypoint of what images that `mapped` lacks have seen, by the point's id.

    Returns:
        Ids of the points that were put back and fit the cameras.
    """
    lost = sorted(set(mapped.point3D_ids()) - set(model.point3D_ids()) - repeated)
    back: set[int] = set()
    keypoints = {i: image.points2D for i, image in model.images.items()}
    before = {i: image.points2D for i, image in mapped.images.items()}
    for point_id in lost:
        old = mapped.points3D[point_id]
        track = pycolmap.Track()
        for element in old.track.elements:
            image_id, index = element.image_id, element.point2D_idx
            keypoint = keypoints[image_id][index]
            if not keypoint.has_point3D():
                keypoint.xy = before[image_id][index].xy
                track.add_element(image_id, index)
        for image_id, index in (late or {}).get(point_id, ()):
            if not keypoints[image_id][index].has_point3D():
                track.add_element(image_id, index)
        if track.length() > 1:
            model.add_point3D_with_id(
                point_id, pycolmap.Point3D(xyz=old.xyz, color=old.color, track=track)
            )
            back.add(point_id)
    if not back:
        return back
    # The cameras may have moved by pixels: that is what the errors are of, to begin with.
    views = Views.of(model)
    tracks = Tracks.of(model, views)
    rows = np.flatnonzero(np.isin(tracks.ids, sorted(back)))
    scale = robust_scale(reprojection_errors(tracks.part(rows)[0], views))
    only_points = Freedom(poses=False, points=frozenset(back))
    adjuster_of(model, scale, only_points, options).solve()
    observations = pycolmap.ObservationManager(model)
    observations.filter_points3D(options.max_error, options.min_tri_angle, back)
    return {point_id for point_id in back if model.exists_point3D(point_id)}
